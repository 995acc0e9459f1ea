"""Rules of the rotary embedding's fields in config.json."""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models.family import Config, Family, head_size
from yatt.models.values import number, shown

ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Rotary embeddings whose angles depend on the position alone, and the parameters of each."""
ROPE_NEEDS = {"linear": ("factor",), "llama3": ROPE["llama3"][:3], "yarn": ("factor",)}
SECTIONS = ("mrope_section", "mrope_interleaved")
"""Parameters of positions with three axes."""
ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def rope_mistakes(config: Config, family: Family) -> Iterator[str]:
    """One line for each reason why the rotary embedding would not be one that is trained; transformers takes
    rope_scaling, the older name, first."""
    at = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(at) or {}
    if not isinstance(rope, dict):
        yield f"{shown(at, rope)} is no object"
    elif at == "rope_parameters" and family.rope_layers and rope:
        yield from _by_layer(rope, config, family)
    else:
        yield from _one(rope, at, config, family)


def _by_layer(rope: Config, config: Config, family: Family) -> Iterator[str]:
    for kind, own in rope.items():
        if kind not in family.rope_layers:
            yield f"rope_parameters has {shown(kind, own)}, which is no kind of layer; remove it"
        elif not isinstance(own, dict):
            yield f"rope_parameters has {shown(kind, own)}, which is no object"
        else:
            yield from _one(own, f"rope_parameters.{kind}", config, family)


def _one(rope: Config, at: str, config: Config, family: Family) -> Iterator[str]:
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if not number(theta):
        yield f"{shown('rope_theta', theta)} is no number above 0"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if family.sections == "apart" and (kind, rope.get("type", kind)) in (("mrope", "mrope"), ("default", "mrope")):
        rope, kind = {**rope, "type": "default"}, "default"  # the older name of the same
    if rope.get("type", kind) != kind:
        yield f"{at} has {shown('rope_type', kind)} and {shown('type', rope['type'])}; keep one of them"
    elif kind not in family.rope_types:
        able = ", ".join(family.rope_types)
        yield f"{at} has {shown('rope_type', kind)}, which cannot be trained; use one of {able}"
    else:
        yield from _partial(rope, at, config, family)
        own = {name: value for name, value in rope.items() if family.sections == "none" or name not in SECTIONS}
        yield from _angles(own, kind, at, config)
        if family.sections != "none":
            yield from _sections(rope, at, config, family)


def _sections(rope: Config, at: str, config: Config, family: Family) -> Iterator[str]:
    """Transformers and engines read the sections each in its own way where they are not as the family has them."""
    sections, half = rope.get("mrope_section"), head_size(config, family) // 2
    whole = isinstance(sections, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in sections)
    if not whole or len(sections) != 3 or min(sections) < 1 or sum(sections) != half:
        yield f"{at} has {shown('mrope_section', sections)}, which are not three whole numbers that add up to {half}"
    interleaved = family.sections == "interleaved"
    if rope.get("mrope_interleaved", False) is not interleaved:
        yield f"{at} needs {shown('mrope_interleaved', interleaved)}, as a {family.name} has it"


def _partial(rope: Config, at: str, config: Config, family: Family) -> Iterator[str]:
    name = "partial_rotary_factor"
    factor = rope.get(name, 1)
    if not family.partial_rotary:
        if factor != 1:
            yield f"{at} has {shown(name, factor)}, which cannot be trained; only {name}=1.0 can"
        return
    beside, size = config.get(name), head_size(config, family)
    if name in rope and beside is not None and beside != factor:
        yield f"{shown(name, beside)} and, in {at}, {shown(name, factor)}; keep one of them"
        return
    factor = rope.get(name, family.value(config, name))
    if factor is not None and not (number(factor) and factor <= 1):
        yield f"{shown(name, factor)} is no number above 0 and up to 1"
    elif factor is not None and (int(size * factor) < 2 or int(size * factor) % 2):
        yield f"{shown(name, factor)} turns {int(size * factor)} of head_dim={size}; a rotary embedding turns pairs"


def _angles(rope: Config, kind: str, at: str, config: Config) -> Iterator[str]:
    for name in rope:
        if name not in (*ROPE_COMMON, *ROPE[kind]):
            yield f"{at} has {shown(name, rope[name])}, which is not of rope_type={kind}; remove it"
    wrong = [name for name in ROPE_NEEDS.get(kind, ()) if not number(rope.get(name))]
    optional = [name for name in ROPE[kind] if name in rope and name not in (*wrong, "truncate")]
    wrong += [name for name in optional if not number(rope[name]) and (rope[name] is not None or "beta" in name)]
    for name in wrong:
        yield f"{at} has {shown(name, rope.get(name))}; rope_type={kind} needs a number above 0"
    if wrong:
        return
    if kind == "linear" and not isinstance(rope["factor"], float):
        yield f"{at} has factor={rope['factor']}, which an engine reads as a decimal only; write {rope['factor']}.0"
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        low = shown("low_freq_factor", rope["low_freq_factor"])
        yield f"{at} has {shown('high_freq_factor', rope['high_freq_factor'])}, which is not above {low}"
    most = config["max_position_embeddings"]
    first = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", most))
    if kind in ("llama3", "yarn") and not number(first):
        yield f"{shown('original_max_position_embeddings', first)} is no number above 0"
    elif kind == "yarn" and most > first * rope["factor"]:
        yield (
            f"max_position_embeddings={most} is over {at}'s original_max_position_embeddings={first} x "
            f"factor={rope['factor']}, beyond which an engine has no angles; lower it"
        )
