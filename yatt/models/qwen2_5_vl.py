"""Qwen2.5-VL, dense: a Qwen2 whose positions have three axes, and a tower that mostly looks through windows."""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models.family import PLAIN, QKV_BIAS, Config, Family, Shape, head_size
from yatt.models.fields import no_windows
from yatt.models.values import shown
from yatt.models.vision import PLAIN_PREFIXES, Tower, layer_numbers


def _checks(config: Config) -> Iterator[str]:
    heads, size, hidden = config["num_attention_heads"], head_size(config, QWEN2_5_VL), config["hidden_size"]
    if size * heads != hidden:
        yield f"head_dim={size} is not hidden_size={hidden} / num_attention_heads={heads}, which is taken instead"
    yield from no_windows(config)


def _tower_checks(vision: Config) -> Iterator[str]:
    window, token = vision.get("window_size"), vision["patch_size"] * vision["spatial_merge_size"]
    if not isinstance(window, int) or isinstance(window, bool) or window < token:
        yield f"vision_config has {shown('window_size', window)}, under the {token} pixels of a token"
    yield from layer_numbers(vision, "fullatt_block_indexes")


def _tensors(vision: Config) -> dict[str, Shape]:
    width, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    patch, merged = vision["patch_size"], width * vision["spatial_merge_size"] ** 2
    block: dict[str, Shape] = {
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.gate_proj.bias": (inner,),
        "mlp.up_proj.weight": (inner, width),
        "mlp.up_proj.bias": (inner,),
        "mlp.down_proj.weight": (width, inner),
        "mlp.down_proj.bias": (width,),
    }
    return {
        "patch_embed.proj.weight": (width, 3, vision["temporal_patch_size"], patch, patch),
        **{f"blocks.{i}.{name}": shape for i in range(vision["depth"]) for name, shape in block.items()},
        "merger.ln_q.weight": (width,),
        "merger.mlp.0.weight": (merged, merged),
        "merger.mlp.0.bias": (merged,),
        "merger.mlp.2.weight": (out, merged),
        "merger.mlp.2.bias": (out,),
    }


QWEN2_5_VL = Family(
    name="Qwen2_5_VL",
    model_type="qwen2_5_vl",
    language_type="qwen2_5_vl_text",
    parts=PLAIN | {"qkv_bias": QKV_BIAS},
    defaults={"num_key_value_heads": 8},
    values={"use_sliding_window": (False, None), "qk_norm": (False, None)},
    rope_types=("default",),
    sections="apart",
    checks=_checks,
    tower=Tower(
        tensors=_tensors,
        activation="silu",
        obeys=("window_size", "fullatt_block_indexes"),
        checks=_tower_checks,
        ties_within=True,
        prefixes=(PLAIN_PREFIXES, ("model.language_model.", "model.visual.")),
    ),
)
