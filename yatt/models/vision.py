"""Families that see: the fields of their vision tower in config.json, its tensors, and the two shapes of their folders.

The language model's fields stand in `text_config`, or, in older folders, at the top. What reads a config here takes the
older shape, which `language` gives of both: the language model's fields at the top, the tower's in `vision_config`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yatt.models.values import shown

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Prefixes = tuple[str, str]
"""How names in a folder begin: those of the language model but its head, and those of the tower."""
PLAIN_PREFIXES: Prefixes = ("model.", "visual.")
"""As in the tables of families, and in the trainer."""
SIZES = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"),
    *("patch_size", "spatial_merge_size", "temporal_patch_size"),
)
"""Fields of every tower that are whole numbers above 0."""
VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("in_channels", "in_chans"), (3,)),
    "temporal_patch_size": (2,),
    # Transformers reads them for the tower's rotary embedding, engines do not.
    **dict.fromkeys(("rope_parameters", "head_dim"), (None,)),
    **dict.fromkeys(("quantization_config", "auto_map"), (None,)),
}
"""Fields of any tower -> the values that are trained, the first of which is offered."""
ROPE = {"rope_type": "axial", "rope_theta": 10000.0}
"""Rotary parameters as transformers writes them into a folder: those that engines take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The vision tower of a family."""

    tensors: Callable[[Config], dict[str, Shape]]
    """Name below the tower's prefix -> shape of each tensor, of a `vision_config`."""
    activation: str
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    obeys: tuple[str, ...] = ()
    """Fields beside the sizes that its forward pass depends on."""
    checks: Callable[[Config], Iterator[str]] = lambda vision: iter(())
    prefixes: tuple[Prefixes, ...] = (PLAIN_PREFIXES,)
    """Spellings of its folders, of which the first is what transformers writes."""
    ties_within: bool = False
    """Whether transformers takes `tie_word_embeddings` from `text_config` where the top has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFacts:
    """Sizes of a tower and what its passes cost. `merge` by `merge` patches are a token; `deepstack` so many features
    are added after as many layers of the language model. `per_patch` are multiplications and additions, halved, of a
    patch in one forward pass; `per_pair` those of two patches of one image that see each other everywhere."""

    parameters: int
    patch: int
    merge: int
    deepstack: int
    per_patch: float
    per_pair: float


def language(config: Config, tower: Tower | None) -> Config:
    """A config.json, of a family with this tower, with the language model's fields at the top. What transformers does
    not read there, where they have a place of their own, is left out."""
    text = config.get("text_config")
    if tower is None or not isinstance(text, Mapping):
        return config
    kept = ("architectures", "model_type", "vision_config", "tie_word_embeddings", "quantization_config", "auto_map")
    outer = {name: config[name] for name in kept if name in config}
    return {**text, **outer}


def named(name: str, prefixes: Prefixes) -> str:
    """A tensor's name in a folder, by its name in the tables here."""
    for plain, prefix in zip(PLAIN_PREFIXES, prefixes, strict=True):
        if name.startswith(plain):
            return prefix + name.removeprefix(plain)
    return name


def prefixes_of(names: Collection[str], tower: Tower | None) -> Prefixes:
    """How the names of a folder with these tensors begin."""
    if tower is None:
        return PLAIN_PREFIXES
    fitting = (each for each in tower.prefixes if named("model.embed_tokens.weight", each) in names)
    return next(fitting, tower.prefixes[0])


def vision_mistakes(config: Config, tower: Tower) -> Iterator[str]:
    """One line for each reason why a config.json's tower, and what belongs to both models, would not be trained."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        yield "config.json has no vision_config"
        return
    wrong = [name for name in SIZES if isinstance(vision.get(name), bool) or not isinstance(vision.get(name), int)]
    wrong += [name for name in SIZES if name not in wrong and vision[name] < 1]
    if wrong:
        yield f"config.json has no whole number above 0 under vision_config.{', vision_config.'.join(wrong)}"
        return
    allowed = {**VALUES, "hidden_act": (tower.activation,), **tower.values}
    for name, some in allowed.items():
        if name in vision and vision[name] not in some and not (name == "rope_parameters" and _axial(vision[name])):
            able = [value for value in some if value is not None]
            remedy = f"only {shown(name, able[0])} can" if able else "remove it"
            yield f"vision_config has {shown(name, vision[name])}, which cannot be trained; {remedy}"
    width, heads = vision["hidden_size"], vision["num_heads"]
    if width % heads or width // heads % 4:
        yield f"vision_config has hidden_size={width} and num_heads={heads}; a head of the tower turns quadruples"
    hidden = language(config, tower).get("hidden_size")
    if vision["out_hidden_size"] != hidden:
        out = vision["out_hidden_size"]
        yield f"vision_config has out_hidden_size={out}, and hidden_size={hidden}; mend config.json"
    inner, outer = ((part or {}).get("tie_word_embeddings") for part in (config.get("text_config"), config))
    if inner is not None and inner != outer and not (outer is None and (tower.ties_within or not inner)):
        top = "not there" if outer is None else shown("", outer)[1:]
        yield f"{shown('tie_word_embeddings', inner)} in text_config, and {top} at the top; write the same"
    yield from tower.checks(vision)


def _axial(rope: Any) -> bool:
    return isinstance(rope, Mapping) and {**ROPE, **rope} == ROPE


def layer_numbers(vision: Config, name: str) -> Iterator[str]:
    """A tower's check: a field is a rising list of its layers."""
    numbers, depth = vision.get(name), vision["depth"]
    whole = isinstance(numbers, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if not whole or numbers != sorted(set(numbers)) or not all(0 <= n < depth for n in numbers):
        yield f"vision_config has {shown(name, numbers)}, which is no rising list of its {depth} layers, from 0 on"


def vision_facts(config: Config, tower: Tower) -> VisionFacts:
    """Of a config that `vision_mistakes` finds nothing in."""
    vision = config["vision_config"]
    tensors, merge = tower.tensors(vision), vision["spatial_merge_size"]
    by_patch = by_token = 0
    for name, shape in tensors.items():
        size = _numbers(shape)
        if len(shape) < 2 or name.startswith("pos_embed."):
            continue
        if name.startswith(("blocks.", "patch_embed.")):
            by_patch += size
        else:  # the mergers
            by_token += size
    width, depth = vision["hidden_size"], vision["depth"]
    side = vision["window_size"] // merge // vision["patch_size"] * merge if "window_size" in vision else 0
    windowed = depth - len(vision["fullatt_block_indexes"]) if side else 0
    return VisionFacts(
        parameters=sum(_numbers(shape) for shape in tensors.values()),
        patch=vision["patch_size"],
        merge=merge,
        deepstack=len(vision.get("deepstack_visual_indexes", ())),
        # Attention over a window: QK^T and AV with each of its patches.
        per_patch=by_patch + by_token / merge**2 + windowed * 2.0 * width * side**2,
        per_pair=(depth - windowed) * 2.0 * width,
    )


def _numbers(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
