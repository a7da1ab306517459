"""tokenmill: an LLM inference engine that lives inside your program.

    import tokenmill

    llm = tokenmill.Engine(model_path=tokenmill.demo_model())
    print(llm.generate("The capital of France is", {"max_new_tokens": 16})["text"])
"""
from ._native import EngineError
from ._native import version as _version
from ._options import SamplingParams, ServerArgs
from ._streams import AsyncStream, Stream
from .engine import Engine, PinnedPrefix
from .logits import LogitProcessor
from .outputs import FinishReason, MetaInfo, Output
from .tokenizer import Tokenizer

__version__: str = _version()


def demo_model() -> str:
    """The path of the demo model, SmolLM2-135M-Instruct as a Q4_1 GGUF; fetched (98 MB) on first use.

    It is kept in TOKENMILL_CACHE, else XDG_CACHE_HOME/tokenmill, else ~/.cache/tokenmill. Raises RuntimeError where it
    cannot be fetched.
    """
    from ._demo_model import demo_model as fetch  # its imports are not for every program

    return fetch()


__all__ = [
    "AsyncStream",
    "Engine",
    "EngineError",
    "FinishReason",
    "LogitProcessor",
    "MetaInfo",
    "Output",
    "PinnedPrefix",
    "SamplingParams",
    "ServerArgs",
    "Stream",
    "Tokenizer",
    "__version__",
    "demo_model",
]
