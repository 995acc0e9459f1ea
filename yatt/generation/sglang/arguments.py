"""SGLang's arguments: the device's defaults under the user's options. Does not import SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yatt.generation.kind import Device, EngineKind, EngineShape, OptionNames, fields_of, folder_of
from yatt.generation.sglang.environment import PROBE, environment, lists

NAMES = OptionNames(
    tensor_parallel="tp_size",
    running="max_running_requests",
    device_share="mem_fraction_static",
    cache="max_total_tokens",
)
RUNNING = 256
DEVICE_SHARE = 0.5
CACHE_BYTES = 256 << 20

ALWAYS: dict[str, Any] = dict(
    max_running_requests=RUNNING,
    grammar_backend="none",
    log_level="error",
    # An engine that takes no step for so long, a paused one, would have its parent process killed.
    watchdog_timeout=1e9,
    # Ranks that wait for the next step wait as long as the engine has nothing to do.
    dist_timeout=10**6,
)
DEFAULTS: dict[Device, dict[str, Any]] = {
    "cpu": dict(
        attention_backend="torch_native",
        mm_attention_backend="sdpa",
        chunked_prefill_size=-1,
        disable_custom_all_reduce=True,
        mem_fraction_static=0.9,  # of what is free: a bound that the cache, given in tokens, stays below
    ),
    # Attention (FlashInfer) and CUDA graphs are SGLang's own choice there. Not run on a GPU yet.
    "cuda": dict(mem_fraction_static=DEVICE_SHARE),
}
# What the adapter rests on, and what other settings already say.
RESERVED = {
    "model_path": "model.path",
    "tokenizer_path": "model.path",
    "dtype": "model.dtype",
    "context_length": "model.context_length",
    "random_seed": "run.seed",
    "device": "cluster.device",
    "enable_memory_saver": "rollout.sleep",
    "enable_weights_cpu_backup": "rollout.sleep",
    "is_embedding": None,
    "disable_overlap_schedule": None,
    "skip_tokenizer_init": None,
    "sampling_backend": None,
    "stream_interval": None,
    "speculative_algorithm": None,
    "pp_size": None,
    "dp_size": None,
    "nnodes": None,
    # Of a model that sees: patches are made by us, as the trainer's are, and the tower is called by us.
    **dict.fromkeys(("enable_multimodal", "mm_process_config", "limit_mm_data_per_request", "mm_enable_dp_encoder")),
    **dict.fromkeys(("language_model_only", "language_only", "encoder_only")),
}

AS_IT_STANDS: dict[str, tuple[Any, ...]] = {
    "load_format": ("auto", "safetensors"),
    "quantization": (None,),
    "json_model_override_args": ("{}",),
    "model_config_parser": ("auto",),
    "model_impl": ("auto", "sglang"),
}


def shape(engine_args: Mapping[str, Any]) -> EngineShape:
    """The engine that these options make."""
    tokens = engine_args.get("max_total_tokens")
    return EngineShape(
        names=NAMES,
        tensor_parallel=int(engine_args.get("tp_size", 1)),
        running=int(engine_args.get("max_running_requests", RUNNING)),
        device_share=float(engine_args.get("mem_fraction_static", DEVICE_SHARE)),
        cache_bytes=float(CACHE_BYTES),
        cache_tokens=None if tokens is None else int(tokens),
    )


def known_options() -> frozenset[str] | None:
    """Fields of SGLang's ServerArgs, which is put together from the classes of a folder."""
    folder = folder_of("sglang")
    if folder is None:
        return None
    files = (folder / "srt/arg_groups/fields").glob("*.py")
    return frozenset(name for file in files for name in fields_of(file) if not name.startswith("_"))


def arguments(engine_args: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """The device's defaults under the user's options, which have been checked."""
    return ALWAYS | DEFAULTS[device] | dict(engine_args)


KIND = EngineKind(
    title="SGLang",
    module="sglang",
    packages={"cpu": "sglang", "cuda": "sglang"},
    engine="yatt.generation.sglang.engine:SglangEngine",
    names=NAMES,
    reserved=RESERVED,
    as_it_stands=AS_IT_STANDS,
    of_a_judge={"model_path": "path", "tokenizer_path": "path", "context_length": "context_length"},
    known_options=known_options,
    lists=lists,
    shape=shape,
    environment=environment,
    probe=PROBE,
)
