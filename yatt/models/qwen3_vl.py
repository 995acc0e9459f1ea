"""Qwen3-VL, dense: a Qwen3 whose positions have three axes, and a tower of which inner features go into the language
model's first layers too (deepstack)."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from yatt.models.family import PLAIN, QK_NORMS, Config, Family, Shape
from yatt.models.fields import no_windows
from yatt.models.values import shown
from yatt.models.vision import Tower, layer_numbers


def _tower_checks(vision: Config) -> Iterator[str]:
    positions = vision.get("num_position_embeddings")
    if not isinstance(positions, int) or positions < 1 or isqrt(positions) ** 2 != positions:
        yield f"vision_config has {shown('num_position_embeddings', positions)}, which is no square of a whole number"
    yield from layer_numbers(vision, "deepstack_visual_indexes")


def _tensors(vision: Config) -> dict[str, Shape]:
    width, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    patch, merged = vision["patch_size"], width * vision["spatial_merge_size"] ** 2

    def linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str, size: int) -> dict[str, Shape]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    def merger(name: str, size: int) -> dict[str, Shape]:
        return {
            **norm(f"{name}.norm", size),
            **linear(f"{name}.linear_fc1", merged, merged),
            **linear(f"{name}.linear_fc2", out, merged),
        }

    block = {
        **norm("norm1", width),
        **norm("norm2", width),
        **linear("attn.qkv", 3 * width, width),
        **linear("attn.proj", width, width),
        **linear("mlp.linear_fc1", inner, width),
        **linear("mlp.linear_fc2", width, inner),
    }
    tensors: dict[str, Shape] = {
        "patch_embed.proj.weight": (width, 3, vision["temporal_patch_size"], patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (vision["num_position_embeddings"], width),
        **{f"blocks.{i}.{name}": shape for i in range(vision["depth"]) for name, shape in block.items()},
        **merger("merger", width),
    }
    for k in range(len(vision["deepstack_visual_indexes"])):
        tensors |= merger(f"deepstack_merger_list.{k}", merged)
    return tensors


QWEN3_VL = Family(
    name="Qwen3VL",
    model_type="qwen3_vl",
    language_type="qwen3_vl_text",
    parts=PLAIN | QK_NORMS,
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    values={"use_sliding_window": (False, None), "attention_bias": (False,)},
    rope_types=("default",),
    sections="interleaved",
    checks=no_windows,
    tower=Tower(
        tensors=_tensors,
        activation="gelu_pytorch_tanh",
        obeys=("num_position_embeddings", "deepstack_visual_indexes"),
        checks=_tower_checks,
        prefixes=(("model.language_model.", "model.visual."),),
    ),
)
