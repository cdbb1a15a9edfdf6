"""vLLM in this process, as `protocol.Backend`; the only module that imports it.

Contract: `make_backend` starts vLLM with a scheduler that keeps the given journal; what of vLLM is
known to be wrong on CPUs is put right first (see `patches`). An option that vLLM does not have, or
a model it cannot load, is a `LoadError` that says so.

Not covered: pipeline parallelism; vLLM's scheduler in a process of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.core import Grammar, InvalidRequestError
from greenllm.model.info import LoadError
from greenllm.model.lora_config import AdapterError
from greenllm.options import EngineConfig
from greenllm.vllm import schema
from greenllm.vllm.heads import DraftMethod
from greenllm.vllm.quantization import Survey, quantization_values, survey, together
from greenllm.vllm.schedule import Journal, follow
from greenllm.vllm.translate import MOST_LOGPROBS

_MOST_ADAPTERS, _MOST_CACHED_ADAPTERS, _LARGEST_RANK = 8, 64, 64
_CPU_BLOCK = 32
_EXTENSION = "greenllm.vllm.worker.Extension"
_METHODS = {"off": None, "prompt_lookup": "ngram", "draft_model": "draft_model"}


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """What is to be loaded: a folder or hub id, the context, and where it runs."""

    source: str
    context_length: int
    dtype: str
    on_gpu: bool
    draft_source: str | None = None
    draft_method: DraftMethod = "draft_model"


def prepare_environment(*, on_gpu: bool) -> None:
    """Switches that vLLM reads when it is imported; what is set already stays."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    local = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    # Compiling for the first log probability takes longer than any answer here.
    eager = {} if on_gpu else {"TORCH_COMPILE_DISABLE": "1"}
    for name, value in (quiet | local | eager).items():
        os.environ.setdefault(name, value)


def prepare_workers(threads: str) -> None:
    """The same for processes that share a model on CPUs; they take their threads from here."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if threads.isdecimal():
        os.environ["OMP_NUM_THREADS"] = threads


def make_backend(config: EngineConfig, plan: BackendPlan, journal: Journal) -> VllmBackend:
    """Start vLLM.

    Raises:
        LoadError: with vLLM's reason.
    """
    prepare_environment(on_gpu=plan.on_gpu)
    if config.tensor_parallel > 1 and not plan.on_gpu:
        prepare_workers(config.threads)
    try:
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from greenllm.vllm.patches import put_right

        if not plan.on_gpu:
            put_right()
        if config.threads.isdecimal():
            torch.set_num_threads(int(config.threads))  # vLLM lets nobody change it afterwards
        values = engine_values(config, plan)
        backend = VllmBackend(LLMEngine.from_engine_args(EngineArgs(**values)))
        backend.follow(journal)
        return backend
    except LoadError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise LoadError(f"vLLM cannot serve {config.model}: {reason}") from error


def engine_values(config: EngineConfig, plan: BackendPlan) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`.

    On CPUs prompts are not cut into chunks: seeds and chunks together stop vLLM there.
    """
    most = config.step_tokens(on_gpu=plan.on_gpu, context_length=plan.context_length)
    tokens = most if plan.on_gpu else plan.context_length
    values: dict[str, Any] = {
        "model": plan.source,
        "dtype": plan.dtype,
        "max_model_len": plan.context_length,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(tokens, most),
        "enable_chunked_prefill": plan.on_gpu,
        "kv_cache_memory_bytes": int(config.kv_cache_gb * 1e9),
        "enable_prefix_caching": config.prefix_cache,
        "enforce_eager": config.eager or not plan.on_gpu,
        "async_scheduling": False,
        "trust_remote_code": config.trust_remote_code,
        "max_logprobs": MOST_LOGPROBS,
        "seed": 0,
        "use_tqdm_on_load": False,
        "enable_lora": True,
        "max_loras": _MOST_ADAPTERS,
        "max_cpu_loras": _MOST_CACHED_ADAPTERS,
        "max_lora_rank": _LARGEST_RANK,
        # Small models would go on with blanks between two tokens of JSON.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "speculative_config": speculative_values(config, plan),
        **quantization_values(config.quantize),
    }
    if config.tensor_parallel > 1:
        values["tensor_parallel_size"] = config.tensor_parallel
        values |= {} if plan.on_gpu else {"worker_extension_cls": _EXTENSION}
    block_size = config.block_size or (None if plan.on_gpu else _CPU_BLOCK)
    return values if block_size is None else values | {"block_size": block_size}


def speculative_values(config: EngineConfig, plan: BackendPlan) -> dict[str, Any] | None:
    """How vLLM gets draft tokens.

    Raises:
        LoadError: it has no such method.
    """
    if config.speculative == "early_exit":
        raise LoadError(
            "--speculative early_exit: vLLM cannot leave a model early; write its first layers"
            " with `greenllm truncate`, and give them as --speculative draft_model --draft-model"
        )
    if config.speculative not in _METHODS:
        raise LoadError(
            f"--speculative {config.speculative} is not vLLM's; it has {', '.join(_METHODS)}"
        )
    method = _METHODS[config.speculative]
    if method is None:
        return None
    values: dict[str, Any] = {"method": method, "num_speculative_tokens": config.speculative_tokens}
    if method == "ngram":
        return values | {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return values | {"method": plan.draft_method, "model": plan.draft_source}


def _surveyed(worker: Any) -> Survey:
    """Runs where a part of the model is."""
    return survey(getattr(worker, "worker", worker).model_runner.get_model())


class VllmBackend:
    """See `protocol.Backend`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._adapters: dict[str, Any] = {}

    @property
    def _core(self) -> Any:
        return self._llm.engine_core.engine_core

    @property
    def num_blocks(self) -> int:
        """Blocks of keys and values there are."""
        return int(self._core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)

    @property
    def num_free_blocks(self) -> int:
        """Those that nobody uses."""
        return int(self._core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def follow(self, journal: Journal) -> None:
        """Have every decision of the scheduler written down."""
        follow(self._core.scheduler, journal)

    def survey(self) -> Survey:
        """What vLLM holds, on all devices together."""
        return together(self._llm.collective_rpc(_surveyed))

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        values: Mapping[str, Any],
        adapter: str | None,
        salt: str | None,
    ) -> None:
        """Queue a sequence."""
        params = _params(values)
        lora = None if adapter is None else self._adapters[adapter]
        text: dict[str, Any] = {"prompt_token_ids": list(prompt)}
        if salt is not None:
            text["cache_salt"] = salt
        self._llm.add_request(name, text, params, lora_request=lora)

    def check_grammar(self, grammar: Grammar) -> None:
        """Refuse what xgrammar would pass over (see `schema`), or cannot read.

        Raises:
            InvalidRequestError: with its reason.
        """
        from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

        try:
            schema.check(json.loads(grammar.source))
            validate_xgrammar_grammar(_params({"grammar": grammar}))
        except InvalidRequestError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InvalidRequestError(f"response_format: {reason}", "response_format") from error

    def step(self) -> list[Any]:
        """Run a step."""
        return list(self._llm.step())

    def abort(self, names: Sequence[str]) -> None:
        """End sequences; those that have ended are ignored."""
        self._llm.abort_request(list(names))

    def load(self, digest: str, name: str, folder: Path) -> None:
        """Have an adapter ready; a bad one must not reach vLLM's step, which it would stop.

        Raises:
            AdapterError: vLLM does not take it.
        """
        from vllm.lora.request import LoRARequest

        known = self._adapters.get(digest)
        request = known or LoRARequest(digest, len(self._adapters) + 1, str(folder))
        try:
            self._llm.add_lora(request)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise AdapterError(f"vLLM does not take adapter {name!r}: {reason}") from error
        self._adapters[digest] = request

    def close(self) -> None:
        """End vLLM."""
        self._llm.engine_core.shutdown()


def _params(values: Mapping[str, Any]) -> Any:
    """Of `translate.sampling_values`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    given = dict(values)
    grammar: Grammar | None = given.pop("grammar", None)
    held = None if grammar is None else StructuredOutputsParams(json=grammar.source)
    return SamplingParams(**given, structured_outputs=held, output_kind=RequestOutputKind.DELTA)
