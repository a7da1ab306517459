#!/usr/bin/env python3
"""Writes bindings/python/tokenmill/_options.pyi from the engine's tables of options; --check only compares.

Needs the built package on PYTHONPATH: `make python`, then PYTHONPATH=build/python tools/make_python_stubs.py
"""
import os
import sys

from tokenmill import _native

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bindings", "python", "tokenmill",
                    "_options.pyi")
HEAD = '''"""Made by tools/make_python_stubs.py from the engine's tables of options; not for editing."""
import argparse
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, TypedDict, Union

from typing_extensions import Self

from .logits import LogitProcessor

@dataclass
class ServerArgs:
'''
METHODS = '''    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None: ...
    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self: ...
    def check(self) -> None: ...
'''


def spelled(type_, given):
    """The type as given (wider) or as held."""
    optional = type_.endswith(" | None")
    inner = type_.removesuffix(" | None")
    if given:
        inner = {"list[str]": "Union[str, Sequence[str]]", "list[int]": "Sequence[int]",
                 "dict[int, float]": "Mapping[int, float]"}.get(inner, inner)
    return f"Optional[{inner}]" if optional else inner


def main():
    server = [(row[0], row[1], row[2]) for row in _native.server_args_fields()]
    sampling = [(row[0], row[1], row[2]) for row in _native.sampling_params_fields()]
    lines = [HEAD.rstrip("\n")]
    for name, type_, default in server:
        lines.append(f"    {name}: {spelled(type_, True)}" + ("" if name == "model_path" else f" = {default!r}"))
    lines += [METHODS.rstrip("\n"), "", "class ServerArgsDict(TypedDict, total=False):"]
    lines += [f"    {name}: {spelled(type_, True)}" for name, type_, _ in server]
    lines += ["", "@dataclass", "class SamplingParams:"]
    for name, type_, default in sampling:
        wide = spelled(type_, True)
        if name in ("json_schema", "structural_tag"):
            wide = "Union[str, Dict[str, Any], None]"
        lines.append(f"    {name}: {wide} = {default!r}")
    lines += ["    custom_logit_processor: Optional[LogitProcessor] = None", "",
              "class SamplingParamsDict(TypedDict, total=False):"]
    for name, type_, _ in sampling:
        wide = spelled(type_, True)
        if name in ("json_schema", "structural_tag"):
            wide = "Union[str, Dict[str, Any], None]"
        lines.append(f"    {name}: {wide}")
    lines += ["    seed: Optional[int]", "    custom_logit_processor: Optional[LogitProcessor]", "",
              "def sampling_values(params: Any) -> Dict[str, Any]: ...",
              "def _server_values(args: Any) -> Dict[str, Any]: ..."]
    text = "\n".join(lines) + "\n"
    if "--check" in sys.argv[1:]:
        with open(PATH, encoding="utf-8") as file:
            if file.read() != text:
                print(f"{os.path.basename(PATH)} is not what the tables say; run tools/make_python_stubs.py", file=sys.stderr)
                return 1
        return 0
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
