"""What the options of an engine must obey so that it runs the model of the folder, whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yatt.models.facts import ModelFacts

AS_IT_STANDS: dict[str, tuple[Any, ...]] = {
    "load_format": ("auto", "hf", "safetensors"),
    **dict.fromkeys(("quantization", "hf_config_path"), (None,)),
    "hf_overrides": (None, {}),
    "config_format": ("auto", "hf"),
    "model_impl": ("auto", "vllm"),
}
"""Options of vLLM that make another model of the folder, and their values that do not."""


def reading_mistakes(options: Mapping[str, Any], at: str) -> Iterator[str]:
    """One line for each option with which the policy's engine would read another model than the trainer."""
    for name, allowed in AS_IT_STANDS.items():
        if name in options and options[name] not in allowed:
            yield f"{at}.engine_args.{name}={options[name]} has the engine read another model than is trained; unset it"


def size_mistakes(options: Mapping[str, Any], model: ModelFacts, at: str) -> Iterator[str]:
    """One line where the tensor-parallel size of an engine does not cut the model evenly. vLLM gives each of them
    whole heads, or a copy of a key/value head, and pads the vocabulary itself."""
    size = options.get("tensor_parallel_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        return  # a rule of its own says it
    broken = _uneven(size, model)
    if broken:
        *head, last = [str(n) for n in range(1, model.heads + 1) if not _uneven(n, model)]
        use = f"{', '.join(head)} or {last}" if head else last
        yield f"{at}.engine_args.tensor_parallel_size={size} does not divide {' and '.join(broken)}; use {use}"


def _uneven(size: int, model: ModelFacts) -> list[str]:
    counts = {"attention heads": model.heads, "MLP columns": model.intermediate_size}
    broken = [f"{count} {what}" for what, count in counts.items() if count % size]
    groups = model.kv_heads
    return broken + [f"{groups} key/value heads"] * bool(groups % size and size % groups)
