"""Rules of low-rank adapters. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from yatt.config.case import Case
from yatt.config.models import facts_beside, models_beside
from yatt.config.schema import LoraConfig
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.models.lora import ALL, chosen, layers_of
from yatt.models.table import family_of


def lora_mistakes(case: Case) -> Iterator[str]:
    """Whether the models that learn have the layers that are to have adapters, and whether these are smaller."""
    lora = case.config.train.lora
    if not lora.rank:
        unset = LoraConfig()
        if lora.alpha != unset.alpha:
            yield f"train.lora.alpha={lora.alpha:g} needs train.lora.rank > 0; set a rank such as 8, or unset it"
        if lora.targets != unset.targets:
            yield f"train.lora.targets={_named(lora)} needs train.lora.rank > 0; set a rank such as 8, or unset it"
        return
    if case.config.train.backend != "megatron":
        yield f"train.lora.rank={lora.rank} needs train.backend=megatron, not {case.config.train.backend}; set it to 0"
        return
    if case.config.train.vision == "trained":
        yield f"train.lora.rank={lora.rank} needs train.vision=frozen, not trained: adapters are the language model's"
    if case.model is not None:
        yield from _layers(lora, case.model)
    path = models_beside(case.config).get("critic.path")
    with suppress(ConfigError):  # said already
        if path is not None:
            yield from _layers(lora, facts_beside(case.config, "critic.path", path), f" (critic.path={path})")


def _layers(lora: LoraConfig, model: ModelFacts, of: str = "") -> Iterator[str]:
    family = family_of(model.architecture)
    if family is None:  # a rule of its own says it
        return
    layers = layers_of(model, family)
    named = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    unknown = [name for name in named if name not in layers and lora.targets != ALL]
    if unknown or not named:
        what = f"{unknown[0]} is no linear layer of a {model.architecture}{of}" if unknown else "nothing would learn"
        yield f"train.lora.targets={_named(lora)}: {what}; use some of {', '.join(layers)}, or {ALL}"
        return
    least = {name: min(layers[name]) for name in chosen(lora.targets, layers)}
    smallest = min(least, key=lambda name: least[name])
    if lora.rank > least[smallest]:
        out, into = layers[smallest]
        most = least[smallest]
        yield f"train.lora.rank={lora.rank} is over a side of {smallest}, {out} x {into}{of}; use at most {most}"


def _named(lora: LoraConfig) -> str:
    return lora.targets if isinstance(lora.targets, str) else f"[{', '.join(lora.targets)}]"
