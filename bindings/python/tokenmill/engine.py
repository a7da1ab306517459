"""Engine: load a model once, then generate from any thread or event loop."""
from __future__ import annotations

import atexit
import itertools
import json
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Literal, Optional, Tuple, Union, overload

from . import _logging, _native, _score, _streams
from ._options import ServerArgs, _server_values
from ._progress import ProgressBar
from ._request import Prepared, RequestArgs, make_options, prepare, request_fields
from ._streams import WAIT_MS, AsyncStream, LoopInboxes, Stream, failure
from .outputs import Output
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import SamplingParams, SamplingParamsDict, ServerArgsDict

    Params = Union[SamplingParams, SamplingParamsDict, Dict[str, Any], None]
    Ids = Union[List[int], Any]  # Any: numpy arrays

_call_numbers = itertools.count()
_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()

_NOT_AN_EMBEDDING_MODEL = ("This model does not appear to be an embedding model by default. Please add --is-embedding "
                           "(is_embedding=True) when making the engine, or try another model.")


class PinnedPrefix:
    """A prompt whose K/V stay in the cache until release(), the end of a with block, or the end of this object."""

    def __init__(self, native: Any) -> None:
        self._native = native

    @property
    def tokens(self) -> int:
        """The prompt's length in tokens; 0 once released."""
        count: int = self._native.tokens()
        return count

    def release(self) -> None:
        """Lets the cache evict it, from the next step on. May be called again."""
        self._native.release()

    def __enter__(self) -> "PinnedPrefix":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.release()


def _one_prompt(method: str, prompt: Any, input_ids: Any, messages: Any, chat_template_kwargs: Optional[Dict[str, Any]],
                fields: Dict[str, Any]) -> Tuple[Any, Any, Any]:
    """Kind, prompt and options of a method that takes one prompt."""
    fields = {**request_fields(fields), "chat_kwargs": json.dumps(chat_template_kwargs or {})}
    prepared = prepare(prompt, None, input_ids, messages, fields)
    if not prepared.single:
        raise TypeError(f"{method} takes one prompt, got a list of them.")
    return prepared.kind, prepared.prompts[0], prepared.options[0]


class Engine:
    """A loaded model. Keyword arguments are ServerArgs' fields; only model_path is required.

    No other process, no signal handler and no event loop of its own; several engines may live in one process. Raises
    TypeError, ValueError, NotImplementedError or EngineError (a RuntimeError) that names what is wrong and the remedy.
    """

    if TYPE_CHECKING:

        @overload
        def __init__(self, *, server_args: ServerArgs) -> None: ...

        @overload
        def __init__(self, **kwargs: Unpack[ServerArgsDict]) -> None: ...

    def __init__(self, *, server_args: Any = None, **kwargs: Any) -> None:
        if server_args is not None:
            if kwargs:
                raise TypeError(f"Give server_args or fields of it, not both; got server_args and {next(iter(kwargs))}.")
            if not isinstance(server_args, ServerArgs):
                raise TypeError(f"server_args must be a ServerArgs, got {type(server_args).__name__}.")
            values = _server_values(server_args)
        else:
            for name in kwargs:
                if name not in _FIELD_NAMES:
                    raise TypeError(_native.unknown_server_args_field_message(name))
            if kwargs.get("model_path") is None:
                raise TypeError("Engine needs model_path: a model folder, a .gguf file or a Hugging Face id.")
            values = {**kwargs, "model_path": os.fspath(kwargs["model_path"])}
        _logging.pump.start()
        try:
            self._native = _native.Engine(values, _logging.pump.queue)
        finally:
            _logging.pump.flush()
        self._inboxes = LoopInboxes()
        _engines.add(self)

    # --- generation ---------------------------------------------------------------------------------------------------
    def _submit(self, prepared: Prepared, mailbox: Any, number: int, stream: bool, later: bool) -> Any:
        """Tokenises and submits: here, or later in a thread of the engine's own, which tells what is wrong by mail."""
        return self._native.submit(mailbox, number, prepared.kind, prepared.prompts, prepared.options, prepared.rids,
                                   stream, prepared.single, later, prepared.first)

    def _run(self, prepared: Prepared, stream: bool, use_tqdm: bool) -> Any:
        mailbox = _native.Mailbox(False)
        # A thread that tokenises cannot hear Ctrl-C; where that is soon over, going to another costs more.
        later = not prepared.is_short()
        call = self._submit(prepared, mailbox, 0, stream, later)
        if stream:
            chunks = Stream(self, call, mailbox, prepared.samples, _logging.pump.flush)
            if later:
                chunks.wait_until_taken()
            return chunks
        outputs: List[Any] = [None] * prepared.samples
        bar = ProgressBar(prepared.samples) if use_tqdm else None
        try:
            left = prepared.samples
            while left:
                while not mailbox.wait(1 if bar is not None else left, WAIT_MS):
                    pass
                for _, index, _, payload in mailbox.take():
                    if isinstance(payload, BaseException):
                        raise failure(payload)
                    outputs[index] = payload
                    left -= 1
                    if bar is not None:
                        bar.add(payload)
        except BaseException:
            call.abort()
            raise
        finally:
            if bar is not None:
                bar.close()
            _logging.pump.flush()
        return outputs[0] if prepared.single and prepared.samples == 1 else outputs

    async def _run_async(self, prepared: Prepared, stream: bool, use_tqdm: bool) -> Any:
        inbox = self._inboxes.of_running_loop()
        number = next(_call_numbers)
        sink = inbox.open(number)
        call: Any = None
        bar = None
        try:
            call = self._submit(prepared, inbox.mailbox, number, stream, True)
            if stream:
                await sink.wait_until_taken()
                return AsyncStream(self, call, inbox, number, sink, prepared.samples)
            bar = ProgressBar(prepared.samples) if use_tqdm else None
            outputs: List[Any] = [None] * prepared.samples
            for _ in range(prepared.samples):
                _, index, _, payload = await sink.get()
                if isinstance(payload, BaseException):
                    raise failure(payload)
                outputs[index] = payload
                if bar is not None:
                    bar.add(payload)
        except BaseException:
            if call is not None:
                call.abort()
            inbox.close(number)
            raise
        finally:
            if bar is not None:
                bar.close()
        inbox.close(number)
        return outputs[0] if prepared.single and prepared.samples == 1 else outputs

    @overload
    def generate(self, prompt: Union[str, List[str], None] = ..., sampling_params: Union[Params, List[Params]] = ...,
                 input_ids: Any = ..., *, stream: Literal[True], **kwargs: Unpack[RequestArgs]) -> Stream: ...

    @overload
    def generate(self, prompt: str, sampling_params: Params = ..., input_ids: None = ..., *,
                 stream: Literal[False] = ..., use_tqdm: bool = ..., **kwargs: Unpack[RequestArgs]) -> Output: ...

    @overload
    def generate(self, prompt: List[str], sampling_params: Union[Params, List[Params]] = ..., input_ids: None = ..., *,
                 stream: Literal[False] = ..., use_tqdm: bool = ...,
                 **kwargs: Unpack[RequestArgs]) -> List[Output]: ...

    @overload
    def generate(self, prompt: Any = ..., sampling_params: Any = ..., input_ids: Any = ..., *, stream: bool = ...,
                 use_tqdm: bool = ..., **kwargs: Unpack[RequestArgs]) -> Any: ...

    def generate(self, prompt: Any = None, sampling_params: Any = None, input_ids: Any = None, *, stream: bool = False,
                 use_tqdm: bool = False, **kwargs: Any) -> Any:
        """Generates from text or token ids and waits.

        prompt: str or a list of str; or input_ids: a list of int or a list of these (numpy arrays serve too).
        sampling_params: a dict or SamplingParams for all, or a list with one a prompt. kwargs: return_logprob,
        logprob_start_len, top_logprobs_num, token_ids_logprob, lora_path, rid, priority, cache_salt and
        return_prompt_token_ids, each one for all or, for a list of prompts, a list with one a prompt.
        Returns one Output for one prompt, a list in input order for a list (prompt-major over samples with n > 1), or
        with stream=True a Stream of chunks whose text and output_ids are deltas. What is wrong with the arguments
        raises TypeError or ValueError before anything runs, and a grammar (json_schema, regex, ebnf, structural_tag)
        NotImplementedError. What goes wrong with one item of a list later (it is too long, its custom_logit_processor
        raises, every token is masked), or for its grammar, is that item's finish_reason, of type abort; a single prompt
        raises ValueError there, a Stream once the chunks before it are told. Ctrl-C ends the requests and leaves the
        engine usable.
        """
        prepared = prepare(prompt, sampling_params, input_ids, None, request_fields(kwargs))
        return self._run(prepared, stream, use_tqdm)

    @overload
    async def async_generate(self, prompt: Union[str, List[str], None] = ...,
                             sampling_params: Union[Params, List[Params]] = ...,
                             input_ids: Any = ..., *, stream: Literal[True], **kwargs: Unpack[RequestArgs]) -> AsyncStream: ...

    @overload
    async def async_generate(self, prompt: str, sampling_params: Params = ..., input_ids: None = ..., *,
                             stream: Literal[False] = ..., use_tqdm: bool = ..., **kwargs: Unpack[RequestArgs]) -> Output: ...

    @overload
    async def async_generate(self, prompt: List[str], sampling_params: Union[Params, List[Params]] = ...,
                             input_ids: None = ..., *,
                             stream: Literal[False] = ..., use_tqdm: bool = ...,
                             **kwargs: Unpack[RequestArgs]) -> List[Output]: ...

    @overload
    async def async_generate(self, prompt: Any = ..., sampling_params: Any = ..., input_ids: Any = ..., *,
                             stream: bool = ...,
                             use_tqdm: bool = ..., **kwargs: Unpack[RequestArgs]) -> Any: ...

    async def async_generate(self, prompt: Any = None, sampling_params: Any = None, input_ids: Any = None, *,
                             stream: bool = False,
                             use_tqdm: bool = False, **kwargs: Any) -> Any:
        """generate() for asyncio: same results, same errors; with stream=True the await gives an asynchronous generator.

        Bound to no event loop: any loop in any thread may call it, one after the other or at once. Cancelling the task,
        or closing or dropping the generator, ends the requests within one step.
        """
        prepared = prepare(prompt, sampling_params, input_ids, None, request_fields(kwargs))
        return await self._run_async(prepared, stream, use_tqdm)

    def generate_iter(self, prompt: Optional[Iterable[str]] = None, sampling_params: Any = None,
                      input_ids: Optional[Iterable[Any]] = None, *, use_tqdm: bool = False,
                      **kwargs: Any) -> Iterator[Tuple[int, Output]]:
        """Yields (index, output) as each prompt of an iterable finishes, in order of finishing.

        prompt or input_ids may be a generator: it is pulled on the calling thread only, at most 4,096 prompts ahead.
        sampling_params is one for all or an equally lazy iterable. With n > 1 the samples are counted through.
        The other arguments are generate()'s but stream and rid, one value for all; a progress bar shows no total.
        """
        from ._iterate import iterate

        make_bar = (lambda: ProgressBar(None)) if use_tqdm else None
        return iterate(self, prompt, sampling_params, input_ids, make_bar, kwargs)

    def chat(self, messages: Any, sampling_params: Any = None, *, chat_template_kwargs: Optional[Dict[str, Any]] = None,
             stream: bool = False, use_tqdm: bool = False, **kwargs: Any) -> Any:
        """The model's reply to [{'role': 'user', 'content': …}, …], or replies to a list of such conversations.

        Applies the model's chat template, with chat_template_kwargs (such as tools or enable_thinking) given to it; the
        other arguments are generate()'s. Raises ValueError where the model has no template.
        """
        return self._run(self._prepare_chat(messages, sampling_params, chat_template_kwargs, kwargs), stream, use_tqdm)

    async def async_chat(self, messages: Any, sampling_params: Any = None, *,
                         chat_template_kwargs: Optional[Dict[str, Any]] = None, stream: bool = False,
                         use_tqdm: bool = False, **kwargs: Any) -> Any:
        """chat() for asyncio."""
        prepared = self._prepare_chat(messages, sampling_params, chat_template_kwargs, kwargs)
        return await self._run_async(prepared, stream, use_tqdm)

    def _prepare_chat(self, messages: Any, sampling_params: Any, template_kwargs: Optional[Dict[str, Any]],
                      kwargs: Dict[str, Any]) -> Prepared:
        if messages is None:
            raise TypeError("messages must be a list of {'role': …, 'content': …}, got None.")
        fields = {**request_fields(kwargs), "chat_kwargs": json.dumps(template_kwargs or {})}
        return prepare(None, sampling_params, None, messages, fields)

    def run_batch(self, input: Union[str, "os.PathLike[str]"], output: Union[str, "os.PathLike[str]"],
                  sampling_params: Params = None, *, return_logprob: bool = False, top_logprobs_num: int = 0,
                  ordered: bool = False, overwrite: bool = False,
                  error_path: Union[str, "os.PathLike[str]", None] = None, window: int = 4096,
                  use_tqdm: bool = False) -> Dict[str, Any]:
        """Runs a file of requests (JSON lines, OpenAI's batch form too) and appends each result as it finishes.

        Run again after any end, kill -9 included, it does what is missing and nothing twice; memory does not grow with
        the file. sampling_params is what a line does not say itself; ordered: results in the input's order; overwrite:
        start afresh; error_path: for bad lines and failed requests (None: beside the output). Returns counts: total,
        resumed, done, failed, prompt_tokens, cached_tokens, completion_tokens, and error_path. Raises ValueError for
        files that cannot be read or written or do not belong together, EngineError where the engine died.
        """
        options = make_options(sampling_params, return_logprob, top_logprobs_num)
        bar = ProgressBar(None) if use_tqdm else None

        def on_progress(total: int, finished: int, tokens: int) -> None:
            if bar is not None:
                bar.set(total, finished, tokens)

        try:
            report: Dict[str, Any] = self._native.run_batch(
                os.fspath(input), os.fspath(output), options, ordered, overwrite,
                None if error_path is None else os.fspath(error_path), window, on_progress)
        finally:
            if bar is not None:
                bar.close()
            _logging.pump.flush()
        return report

    # --- embeddings (not built yet) and scores ------------------------------------------------------------------------
    def encode(self, prompt: Any, **kwargs: Any) -> Any:
        """Embeddings. Raises ValueError: no embedding model can be loaded yet."""
        raise ValueError(_NOT_AN_EMBEDDING_MODEL)

    async def async_encode(self, prompt: Any, **kwargs: Any) -> Any:
        """encode() for asyncio. Raises ValueError: no embedding model can be loaded yet."""
        raise ValueError(_NOT_AN_EMBEDDING_MODEL)

    def score(self, query: Any, items: Any, label_token_ids: Any, apply_softmax: bool = False,
              item_first: bool = False) -> List[List[float]]:
        """How likely each label token is as the next one after query and item: a list an item, in the labels' order.

        query: text, or token ids; items: texts, or lists of token ids; item_first puts the item before the query. The
        numbers are probabilities over the whole vocabulary, or with apply_softmax over the labels (sum 1). The text is
        tokenised as one; what items share at their beginning is computed once. Raises TypeError and ValueError for
        arguments that do not fit, and ValueError for an item that cannot run.
        """
        return _score.score(self, query, items, label_token_ids, apply_softmax, item_first)

    # --- control ------------------------------------------------------------------------------------------------------
    def abort(self, rid: str) -> None:
        """Ends the request of that id within one step; an id that is not running is ignored."""
        self._native.abort(rid)

    def abort_all(self) -> None:
        """Ends every request."""
        self._native.abort_all()

    def flush_cache(self) -> bool:
        """Empties the prefix cache. False (and a warning in the log) while requests are pending."""
        flushed: bool = self._native.flush_cache()
        _logging.pump.flush()
        return flushed

    def pin(self, prompt: Optional[str] = None, input_ids: Any = None, *, messages: Any = None,
            chat_template_kwargs: Optional[Dict[str, Any]] = None, lora_path: Optional[str] = None,
            cache_salt: Optional[str] = None) -> PinnedPrefix:
        """Computes one prompt (text, token ids or a conversation) and keeps it in the cache until released.

        Requests that start with it find it there, whoever runs meanwhile. Pins may hold three quarters of the KV pool;
        raises ValueError beyond that, without a radix cache, and where the prompt cannot run.
        """
        return PinnedPrefix(self._native.pin(*_one_prompt("pin", prompt, input_ids, messages, chat_template_kwargs,
                                                          {"lora_path": lora_path, "cache_salt": cache_salt})))

    def save_prefix(self, path: Union[str, "os.PathLike[str]"], prompt: Optional[str] = None, input_ids: Any = None, *,
                    messages: Any = None, chat_template_kwargs: Optional[Dict[str, Any]] = None) -> int:
        """Computes one prompt (text, token ids or a conversation) and writes its K/V to a file, for load_prefix().

        Returns the number of tokens saved: whole blocks of page_size. The file holds the prompt's token ids and can be
        read by its owner only; an older file of that name is replaced once the new one is whole. Raises ValueError
        where the prompt cannot run or fills no block, and without a radix cache; RuntimeError where the file cannot be
        written, or the model's files have changed since they were loaded; NotImplementedError for models with a KV pool
        for sliding-window layers.
        """
        saved: int = self._native.save_prefix(
            *_one_prompt("save_prefix", prompt, input_ids, messages, chat_template_kwargs, {}), os.fspath(path))
        return saved

    def load_prefix(self, path: Union[str, "os.PathLike[str]"], cache_salt: Optional[str] = None) -> int:
        """Puts the K/V of a file of save_prefix() into the cache, where requests that begin with its tokens find them.

        Returns their number. They may be evicted as what any request has left there: pin() holds them. Raises
        ValueError for a file of another model, dtype, page_size, code path or version, and for a damaged one: where
        results repeat bit for bit, its first 64 tokens are computed again and must give the same bits. Raises
        RuntimeError where the KV pool cannot take it now.
        """
        loaded: int = self._native.load_prefix(os.fspath(path), cache_salt)
        return loaded

    def get_server_info(self) -> Dict[str, Any]:
        """Resolved arguments, sizes (max_total_num_tokens …), version, start-up timings, internal_states."""
        info: Dict[str, Any] = json.loads(self._native.server_info_json())
        return info

    def stats(self) -> Dict[str, float]:
        """Counts since the start (requests, finished, generated_tokens …), gauges (running, blocks_free …), histograms.

        A histogram is NAME_count, NAME_sum, NAME_p50, NAME_p99 and NAME_le_BOUND (how many were at most BOUND), for
        queue_time_seconds, time_to_first_token_seconds, inter_token_latency_seconds, e2e_latency_seconds, batch_size,
        step_tokens and step_{admit,schedule,forward,sample,commit,publish}_seconds.
        """
        return {name: int(value) if value.is_integer() and name != "last_gen_throughput" else value
                for name, value in self._native.stats().items()}

    def prometheus_metrics(self) -> str:
        """stats() as Prometheus text (format 0.0.4), for a /metrics page."""
        text: str = self._native.prometheus_metrics()
        return text

    @property
    def server_args(self) -> Any:
        """The arguments with every None that has a default of its own replaced by it."""
        return ServerArgs(**self._native.server_args())

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError with skip_tokenizer_init."""
        return Tokenizer(self._native)

    def get_all_child_pids(self) -> List[int]:
        """[]: the engine lives in this process."""
        return []

    def shutdown(self) -> None:
        """Ends what runs (waiting calls raise EngineError) and gives the memory back. May be called again."""
        native = getattr(self, "_native", None)  # absent where the constructor raised
        if native is not None:
            native.shutdown()
            _logging.pump.flush()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.shutdown()


_FIELD_NAMES = frozenset(row[0] for row in _native.server_args_fields())


def _shut_all_down() -> None:
    """Leaving the interpreter ends what still runs, quietly."""
    _streams.leaving = True
    for engine in list(_engines):
        try:
            engine.shutdown()
        except Exception:  # nobody is left to hear of it
            pass
    _logging.pump.stop()
    _native.leave()
    deadline = time.monotonic() + 1
    while _native.waiting_threads() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)


atexit.register(_shut_all_down)
os.register_at_fork(after_in_child=_logging.reset_after_fork)
