"""vLLM behind plain synchronous calls. Every detail of vLLM is here; only `VllmGenerator`'s thread calls it.

The engine core runs in this process and is stepped by its caller, below vLLM's own output layer: tokens and logprobs
are taken as they leave the scheduler, which spares the Python objects and strings that layer makes for every token.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams as VllmParams
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from yatt.config.facts import tensor_shapes
from yatt.config.schema import RolloutConfig
from yatt.errors import BackendError, ConfigError
from yatt.placement.cost import KV_CACHE, UTILIZATION, running
from yatt.types import Finish, SamplingParams, WeightManifest
from yatt.weights import check_names, verify

Device = Literal["cpu", "cuda"]

FINISHES: dict[FinishReason, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}

DEFAULTS: dict[Device, dict[str, Any]] = {
    "cpu": dict(
        enforce_eager=True,
        kv_cache_memory_bytes=int(KV_CACHE),
        block_size=32,  # vLLM's 128 is longer than many prompts: they would never be shared
        # A prompt read in parts has vLLM turn the request's random generator back, which torch cannot on a CPU.
        enable_chunked_prefill=False,
    ),
    "cuda": dict(gpu_memory_utilization=UTILIZATION),
}
SAMPLING = "rollout.temperature, rollout.top_p and rollout.top_k"
# What the adapter rests on, and what other settings already say.
RESERVED = {
    "model": "model.path",
    "tokenizer": "model.path",
    "dtype": "model.dtype",
    "max_model_len": "model.context_length",
    "seed": "run.seed",
    "enable_sleep_mode": "rollout.sleep",
    "runner": None,
    "convert": None,
    "pooler_config": None,
    "async_scheduling": None,
    "pipeline_parallel_size": None,
    "data_parallel_size": None,
    "logprobs_mode": None,
    "logits_processors": None,  # tokens would come from another distribution than the trainer's
    "generation_config": SAMPLING,  # of no effect below vLLM's output layer, nor is the file in the model's folder
    "override_generation_config": SAMPLING,
    "skip_tokenizer_init": None,
    "worker_extension_cls": None,
}
JUDGES_OWN = {"model": "path", "tokenizer": "path", "max_model_len": "context_length"}
"""Those that a judge's own settings say."""


class Engine:
    """One vLLM engine core. Blocking, not thread-safe, to be used from one thread."""

    def __init__(
        self,
        *,
        model: str,
        config: RolloutConfig,
        context_length: int,
        dtype: str,
        device: Device,
        seed: int,
        setting: str = "rollout",
        classifies: bool = False,
    ) -> None:
        arguments = engine_arguments(config, device, setting) | dict(
            model=model,
            tokenizer=model,
            dtype=dtype,
            max_model_len=context_length,
            seed=seed,
            runner="pooling" if classifies else "generate",
            enable_sleep_mode=config.sleep and device == "cuda",
            async_scheduling=False,
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            worker_extension_cls="yatt.generation.vllm_worker.WorkerExtension",
            disable_log_stats=True,
        )
        vllm_config: VllmConfig = EngineArgs(**arguments).create_engine_config()
        self._core = InprocClient(vllm_config, Executor.get_class(vllm_config), log_stats=False)
        self._executor = self._core.engine_core.model_executor
        self._classifies = classifies
        self._asleep = False
        self._on_cpu = device == "cpu"
        self._sleeps = config.sleep
        self._shapes = tensor_shapes(model)
        self._tied = bool(json.loads((Path(model) / "config.json").read_text()).get("tie_word_embeddings", False))

    def add(
        self, id: str, tokens: Sequence[int], params: SamplingParams, seed: int, stop_token_ids: Sequence[int]
    ) -> None:
        """Queue a request. Stop strings are not the engine's business here."""
        request = EngineCoreRequest(
            request_id=id,
            prompt_token_ids=list(tokens),
            mm_features=None,
            sampling_params=None if self._classifies else _sampling(params, seed, stop_token_ids),
            pooling_params=PoolingParams(task="classify", use_activation=False) if self._classifies else None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._core.add_request(request)

    def step(self) -> list[tuple[str, list[int], list[float], Finish | None]]:
        """Sample a token for each running request: its id, new tokens and their logprobs, and how it ended."""
        sampled = []
        for output in self._core.get_output().outputs:
            reason = output.finish_reason
            if reason is not None and reason not in FINISHES:
                raise BackendError(f"vLLM ended a request with {reason}")
            logprobs = output.new_logprobs.logprobs[:, 0].tolist() if output.new_logprobs else []
            finish = FINISHES[reason] if reason is not None else None
            if output.pooling_output is not None:  # a classifier's logits, as the logprob of a token
                sampled.append((output.request_id, [0], output.pooling_output.tolist(), finish))
            else:
                sampled.append((output.request_id, output.new_token_ids, logprobs, finish))
        return sampled

    def abort(self, ids: Sequence[str]) -> None:
        self._core.abort_requests(list(ids))

    def forget_prefixes(self) -> None:
        """Drop every cached key and value; running requests are queued again and recompute theirs."""
        self._core.reset_prefix_cache(reset_running_requests=True)

    def check(self, manifest: WeightManifest) -> None:
        """Raise BackendError where a name, shape or byte is not as it should be."""
        check_names(manifest, self._shapes, self._tied)
        verify(manifest)

    def load(self, manifest: WeightManifest) -> None:
        """Write checked weights into the model and forget what the old ones computed. A sleeping engine takes back the
        memory of its weights for it, and no other."""
        if "weights" in self._executor.sleeping_tags:
            self._executor.wake_up(["weights"])
            self._asleep = False
        self._executor.collective_rpc("yatt_load", args=(manifest,))
        self.forget_prefixes()

    def sleep(self) -> int:
        """Free the KV cache (on CUDA the weights too, kept in host memory) where that has not been done; returns the
        bytes freed."""
        if not self._sleeps or self._asleep:
            return 0
        self._asleep = True
        self.forget_prefixes()
        if self._on_cpu:
            return int(sum(self._executor.collective_rpc("yatt_free_kv_cache")))
        before = sum(self._executor.collective_rpc("yatt_device_bytes"))
        self._executor.sleep(level=1)
        return int(before - sum(self._executor.collective_rpc("yatt_device_bytes")))

    def wake(self) -> None:
        """Take everything back, weights before the KV cache. On a CPU there is nothing to do: pages come back as they
        are touched."""
        self._asleep = False
        for part in ("weights", "kv_cache"):
            if part in self._executor.sleeping_tags:
                self._executor.wake_up([part])

    def close(self) -> None:
        self._core.shutdown()


def _sampling(params: SamplingParams, seed: int, stop_token_ids: Sequence[int]) -> VllmParams:
    return VllmParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(0, params.top_k),
        seed=seed % (1 << 63),
        stop_token_ids=list(stop_token_ids),
        logprobs=0,
        detokenize=False,
    )


def engine_arguments(config: RolloutConfig, device: Device, setting: str = "rollout") -> dict[str, Any]:
    """The device's defaults under the user's `engine_args`, written under `setting`. Raises ConfigError on a name vLLM
    does not have."""
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    reserved = RESERVED if setting == "rollout" else RESERVED | {n: f"{setting}.{own}" for n, own in JUDGES_OWN.items()}
    for name in config.engine_args:
        if name in reserved:
            remedy = f"set {reserved[name]} instead" if reserved[name] else "remove it: the adapter depends on it"
            raise ConfigError(f"{setting}.engine_args.{name} cannot be chosen; {remedy}")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"{setting}.engine_args.{name} is not an option of vLLM{hint}")
    # Named, since vLLM would choose Ray workers of its own inside a Ray actor.
    executor = "mp" if config.engine_args.get("tensor_parallel_size", 1) > 1 else "uni"
    common = dict(
        distributed_executor_backend=executor, use_tqdm_on_load=False, max_num_seqs=running(config.engine_args)
    )
    return DEFAULTS[device] | common | config.engine_args
