"""Made by tools/make_python_stubs.py from the engine's tables of options; not for editing."""
import argparse
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, TypedDict, Union

from typing_extensions import Self

from .logits import LogitProcessor

@dataclass
class ServerArgs:
    model_path: str
    tokenizer_path: Optional[str] = None
    tokenizer_mode: str = 'auto'
    skip_tokenizer_init: bool = False
    load_format: str = 'auto'
    trust_remote_code: bool = True
    dtype: str = 'auto'
    kv_cache_dtype: str = 'auto'
    quantization: Optional[str] = None
    context_length: Optional[int] = None
    device: Optional[str] = None
    served_model_name: Optional[str] = None
    chat_template: Optional[str] = None
    is_embedding: bool = False
    host: str = '127.0.0.1'
    port: int = 30000
    api_key: Optional[str] = None
    log_level_http: Optional[str] = None
    file_storage_pth: str = 'sglang_storage'
    mem_fraction_static: float = 0.88
    max_running_requests: Optional[int] = None
    max_total_tokens: Optional[int] = None
    chunked_prefill_size: Optional[int] = None
    max_prefill_tokens: int = 16384
    schedule_policy: str = 'lpm'
    schedule_conservativeness: float = 1.0
    tp_size: int = 1
    dp_size: int = 1
    load_balance_method: str = 'round_robin'
    stream_interval: int = 1
    random_seed: Optional[int] = None
    constrained_json_whitespace_pattern: Optional[str] = None
    decode_log_interval: int = 40
    log_level: str = 'info'
    log_requests: bool = False
    show_time_cost: bool = False
    enable_cache_report: bool = False
    watchdog_timeout: float = 600.0
    dist_init_addr: Optional[str] = None
    nnodes: int = 1
    node_rank: int = 0
    json_model_override_args: str = '{}'
    lora_paths: Optional[Union[str, Sequence[str]]] = None
    max_loras_per_batch: int = 8
    disable_radix_cache: bool = False
    disable_cuda_graph: bool = False
    enable_mixed_chunk: bool = True
    disable_overlap_schedule: bool = False
    cuda_graph_max_bs: Optional[int] = None
    page_size: Optional[int] = None
    enable_deterministic_inference: Optional[bool] = None
    incremental_streaming_output: bool = True
    num_threads: Optional[int] = None
    revision: Optional[str] = None
    download_dir: Optional[str] = None
    max_queued_requests: Optional[int] = None
    radix_eviction_policy: str = 'lru'
    enable_metrics: bool = False
    allow_auto_truncate: bool = False
    waiting_timeout: Optional[float] = None
    trace_path: Optional[str] = None
    running_timeout: Optional[float] = None
    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None: ...
    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self: ...
    def check(self) -> None: ...

class ServerArgsDict(TypedDict, total=False):
    model_path: str
    tokenizer_path: Optional[str]
    tokenizer_mode: str
    skip_tokenizer_init: bool
    load_format: str
    trust_remote_code: bool
    dtype: str
    kv_cache_dtype: str
    quantization: Optional[str]
    context_length: Optional[int]
    device: Optional[str]
    served_model_name: Optional[str]
    chat_template: Optional[str]
    is_embedding: bool
    host: str
    port: int
    api_key: Optional[str]
    log_level_http: Optional[str]
    file_storage_pth: str
    mem_fraction_static: float
    max_running_requests: Optional[int]
    max_total_tokens: Optional[int]
    chunked_prefill_size: Optional[int]
    max_prefill_tokens: int
    schedule_policy: str
    schedule_conservativeness: float
    tp_size: int
    dp_size: int
    load_balance_method: str
    stream_interval: int
    random_seed: Optional[int]
    constrained_json_whitespace_pattern: Optional[str]
    decode_log_interval: int
    log_level: str
    log_requests: bool
    show_time_cost: bool
    enable_cache_report: bool
    watchdog_timeout: float
    dist_init_addr: Optional[str]
    nnodes: int
    node_rank: int
    json_model_override_args: str
    lora_paths: Optional[Union[str, Sequence[str]]]
    max_loras_per_batch: int
    disable_radix_cache: bool
    disable_cuda_graph: bool
    enable_mixed_chunk: bool
    disable_overlap_schedule: bool
    cuda_graph_max_bs: Optional[int]
    page_size: Optional[int]
    enable_deterministic_inference: Optional[bool]
    incremental_streaming_output: bool
    num_threads: Optional[int]
    revision: Optional[str]
    download_dir: Optional[str]
    max_queued_requests: Optional[int]
    radix_eviction_policy: str
    enable_metrics: bool
    allow_auto_truncate: bool
    waiting_timeout: Optional[float]
    trace_path: Optional[str]
    running_timeout: Optional[float]

@dataclass
class SamplingParams:
    max_new_tokens: Optional[int] = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: Optional[Union[str, Sequence[str]]] = None
    stop_token_ids: Optional[Sequence[int]] = None
    stop_regex: Optional[Union[str, Sequence[str]]] = None
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    n: int = 1
    json_schema: Union[str, Dict[str, Any], None] = None
    regex: Optional[str] = None
    ebnf: Optional[str] = None
    structural_tag: Union[str, Dict[str, Any], None] = None
    logit_bias: Optional[Mapping[int, float]] = None
    bad_words: Optional[Union[str, Sequence[str]]] = None
    allowed_token_ids: Optional[Sequence[int]] = None
    sampling_seed: Optional[int] = None
    stream_interval: Optional[int] = None
    custom_logit_processor: Optional[LogitProcessor] = None

class SamplingParamsDict(TypedDict, total=False):
    max_new_tokens: Optional[int]
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    stop: Optional[Union[str, Sequence[str]]]
    stop_token_ids: Optional[Sequence[int]]
    stop_regex: Optional[Union[str, Sequence[str]]]
    ignore_eos: bool
    no_stop_trim: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    n: int
    json_schema: Union[str, Dict[str, Any], None]
    regex: Optional[str]
    ebnf: Optional[str]
    structural_tag: Union[str, Dict[str, Any], None]
    logit_bias: Optional[Mapping[int, float]]
    bad_words: Optional[Union[str, Sequence[str]]]
    allowed_token_ids: Optional[Sequence[int]]
    sampling_seed: Optional[int]
    stream_interval: Optional[int]
    seed: Optional[int]
    custom_logit_processor: Optional[LogitProcessor]

def sampling_values(params: Any) -> Dict[str, Any]: ...
def _server_values(args: Any) -> Dict[str, Any]: ...
