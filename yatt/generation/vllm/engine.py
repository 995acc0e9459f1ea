"""vLLM behind the calls of `yatt.generation.engine.Engine`.

The engine core runs in this process and is stepped by its caller, below vLLM's own output layer: tokens and logprobs
are taken as they leave the scheduler, which spares the Python objects and strings that layer makes for every token.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams as VllmParams
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor import Executor

from yatt.config.facts import tensor_shapes
from yatt.config.schema import RolloutConfig
from yatt.errors import BackendError
from yatt.generation.engine import Image, Read, Sampled, Step
from yatt.generation.facts import served_facts
from yatt.generation.kind import Device
from yatt.generation.table import check_options
from yatt.generation.vllm.arguments import arguments, shape
from yatt.types import Finish, SamplingParams, WeightManifest
from yatt.weights import check_names, verify

FINISHES: dict[FinishReason, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
VISION = "yatt.generation.vllm.vision"
"""Imported only for a model that sees."""


class VllmEngine:
    """Implements `yatt.generation.engine.Engine` with one vLLM engine core."""

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
        check_options("vllm", config.engine_args, setting)
        self.shape = shape(config.engine_args)
        chosen = arguments(config.engine_args, device) | dict(
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
            worker_extension_cls="yatt.generation.vllm.worker.WorkerExtension",
            disable_log_stats=True,
        )
        facts = served_facts(model, setting, classifies=classifies)
        self._vision: Any = None if facts.vision is None else importlib.import_module(VISION)
        if self._vision is not None:
            self._vision.prepare(facts.architecture)
            chosen |= self._vision.OPTIONS
        vllm_config: VllmConfig = EngineArgs(**chosen).create_engine_config()
        self._core = InprocClient(vllm_config, Executor.get_class(vllm_config), log_stats=False)
        self._executor = self._core.engine_core.model_executor
        self._asleep = False
        self._on_cpu = device == "cpu"
        self._sleeps = config.sleep
        self._shapes = tensor_shapes(model)
        self._tied = facts.tied

    def add(
        self,
        id: str,
        tokens: Sequence[int],
        params: SamplingParams,
        seed: int,
        stop_token_ids: Sequence[int],
        images: Sequence[Image] = (),
    ) -> None:
        self._queue(id, tokens, sampling_params=_sampling(params, seed, stop_token_ids), images=images)

    def classify(self, id: str, tokens: Sequence[int]) -> None:
        self._queue(id, tokens, pooling_params=PoolingParams(task="classify", use_activation=False))

    def _queue(
        self,
        id: str,
        tokens: Sequence[int],
        *,
        sampling_params: VllmParams | None = None,
        pooling_params: PoolingParams | None = None,
        images: Sequence[Image] = (),
    ) -> None:
        request = EngineCoreRequest(
            request_id=id,
            prompt_token_ids=list(tokens),
            mm_features=self._vision.features(images) if images else None,
            sampling_params=sampling_params,
            pooling_params=pooling_params,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._core.add_request(request)

    def step(self) -> Step:
        sampled, read = [], []
        for output in self._core.get_output().outputs:
            reason = output.finish_reason
            if reason is not None and reason not in FINISHES:
                raise BackendError(f"vLLM ended a request with {reason}")
            if output.pooling_output is not None:
                read.append(Read(output.request_id, float(output.pooling_output[0])))
                continue
            logprobs = output.new_logprobs.logprobs[:, 0].tolist() if output.new_logprobs else []
            finish = FINISHES[reason] if reason is not None else None
            sampled.append(Sampled(output.request_id, output.new_token_ids, logprobs, finish))
        return Step(sampled, read)

    def abort(self, ids: Sequence[str]) -> None:
        self._core.abort_requests(list(ids))

    def forget_prefixes(self) -> None:
        """Drop every cached key and value, and what the tower made of images; running requests are queued again and
        recompute theirs."""
        self._core.reset_prefix_cache(reset_running_requests=True)
        if self._vision is not None:
            self._core.reset_encoder_cache()

    def check(self, manifest: WeightManifest) -> None:
        check_names(manifest, self._shapes, self._tied)
        verify(manifest)

    def load(self, manifest: WeightManifest) -> None:
        if "weights" in self._executor.sleeping_tags:
            self._executor.wake_up(["weights"])
            self._asleep = False
        self._executor.collective_rpc("yatt_load", args=(manifest,))
        self.forget_prefixes()

    def sleep(self) -> int:
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
        # On a CPU there is nothing to do: pages come back as they are touched.
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
