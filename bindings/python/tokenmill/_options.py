"""ServerArgs and SamplingParams, made from the engine's own tables of options. _options.pyi spells them out."""
from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from . import _native

if TYPE_CHECKING:
    import argparse


def _with_checked_names(cls: type, unknown: Callable[[str], str], aliases: Dict[str, str]) -> type:
    """Has cls(misspelt=1) name the nearest known field."""
    names = {field.name for field in dataclasses.fields(cls)}
    init = cls.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for alias, name in aliases.items():
            if alias in kwargs:
                if name in kwargs:
                    raise TypeError(f"{cls.__name__} got both {name} and its other name {alias}.")
                kwargs[name] = kwargs.pop(alias)
        for name in kwargs:
            if name not in names:
                raise TypeError(unknown(name))
        init(self, *args, **kwargs)

    __init__.__wrapped__ = init  # type: ignore[attr-defined]  # the signature that help() shows
    cls.__init__ = __init__
    return cls


def _field(name: str, type_: str, default: Any) -> Any:
    if isinstance(default, (list, dict)):
        return (name, type_, dataclasses.field(default_factory=lambda: type(default)(default)))
    return (name, type_, dataclasses.field(default=default))


# --- ServerArgs -------------------------------------------------------------------------------------------------------
_SERVER_ROWS = _native.server_args_fields()
_FLAG_ALIASES = {"model_path": ["--model"], "tp_size": ["--tp"], "dp_size": ["--dp"]}


def _text_or_none(text: str) -> Optional[str]:
    return None if text in ("None", "none") else text


def _number(kind: type, optional: bool) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if optional and text in ("None", "none") else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


def _add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field: --mem-fraction-static, --log-requests / --no-log-requests and so on."""
    import argparse

    for name, type_, default, help_, _ in _SERVER_ROWS:
        flags = ["--" + name.replace("_", "-"), *_FLAG_ALIASES.get(name, [])]
        text = f"{help_} [{default!r}]".replace("%", "%%")
        optional = type_.endswith("| None")
        if type_.startswith("bool"):
            parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=default, help=help_)
        elif type_.startswith("list"):
            parser.add_argument(*flags, dest=name, nargs="*", default=default, help=text)
        elif type_.startswith(("int", "float")):
            kind = _number(int if type_.startswith("int") else float, optional)
            parser.add_argument(*flags, dest=name, type=kind, default=default, help=text)
        elif name == "model_path":
            parser.add_argument(*flags, dest=name, required=True, help=help_)
        else:
            parser.add_argument(*flags, dest=name, type=_text_or_none if optional else str, default=default, help=text)


def _make_server_args() -> type:
    fields: List[Any] = []
    for name, type_, default, _, _ in _SERVER_ROWS:
        fields.append((name, type_) if name == "model_path" else _field(name, type_, default))

    def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
        """The arguments out of what a parser with add_cli_args() gave."""
        return cls(**{name: getattr(args, name) for name, *_ in _SERVER_ROWS})

    def check(self: Any) -> None:
        """Raises TypeError, ValueError or NotImplementedError for what this build cannot honour."""
        _native.check_server_args(_server_values(self))

    def __repr__(self: Any) -> str:
        return str(_native.server_args_text(_server_values(self)))

    cls = dataclasses.make_dataclass("ServerArgs", fields, repr=False, namespace={
        "__doc__": "The engine's options. Only model_path is required; unknown names raise TypeError.\n\n"
                   + "\n".join(f"{name}: {type_} = {default!r}\n    {help_}"
                               for name, type_, default, help_, _ in _SERVER_ROWS),
        "__module__": "tokenmill",
        "__repr__": __repr__,
        "add_cli_args": staticmethod(_add_cli_args),
        "from_cli_args": classmethod(from_cli_args),
        "check": check,
    })
    return _with_checked_names(cls, _native.unknown_server_args_field_message, {})


def _server_values(args: Any) -> Dict[str, Any]:
    """Field name -> value, for the engine."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    values["model_path"] = os.fspath(values["model_path"])
    return values


# --- SamplingParams ---------------------------------------------------------------------------------------------------
_SAMPLING_ROWS = _native.sampling_params_fields()
_SAMPLING_DEFAULTS = {**{name: default for name, _, default, _ in _SAMPLING_ROWS}, "custom_logit_processor": None}


def _unknown_sampling_param(name: str) -> str:
    try:
        _native.find_sampling_param(name)
    except TypeError as error:
        return str(error)
    return f"SamplingParams has no field {name!r}."


def _make_sampling_params() -> type:
    def __post_init__(self: Any) -> None:
        _native.check_sampling_params(sampling_values(self))

    cls = dataclasses.make_dataclass(
        "SamplingParams", [_field(name, type_, default) for name, type_, default, _ in _SAMPLING_ROWS]
        + [_field("custom_logit_processor", "LogitProcessor | None", None)], namespace={
            "__doc__": "How one request's tokens are drawn and where it ends. A plain dict of the same keys serves as "
                       "well.\n\n" + "\n".join(f"{name}: {type_} = {default!r}\n    {help_}"
                                               for name, type_, default, help_ in _SAMPLING_ROWS),
            "__module__": "tokenmill",
            "__post_init__": __post_init__,
        })
    return _with_checked_names(cls, _unknown_sampling_param, {"seed": "sampling_seed"})


def sampling_values(params: Any) -> Dict[str, Any]:
    """Parameter name -> value, for the engine; params is None, a dict or a SamplingParams."""
    if params is None:
        return {}
    if isinstance(params, dict):
        values = params
        if "seed" in values and "sampling_seed" in values:
            raise TypeError("sampling_params got both sampling_seed and its other name seed.")
    elif isinstance(params, SamplingParams):
        values = {name: value for name, default in _SAMPLING_DEFAULTS.items()
                  if (value := getattr(params, name)) is not default}
    else:
        raise TypeError(f"sampling_params must be a dict or a SamplingParams, got {type(params).__name__}.")
    if any(isinstance(values.get(name), dict) for name in ("json_schema", "structural_tag")):
        import json

        values = dict(values)
        for name in ("json_schema", "structural_tag"):
            if isinstance(values.get(name), dict):
                values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


ServerArgs: Any = _make_server_args()
SamplingParams: Any = _make_sampling_params()
