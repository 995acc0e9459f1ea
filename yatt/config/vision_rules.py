"""Rules of a policy that sees, and of the models beside it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from yatt.config.case import Case
from yatt.config.models import facts_beside, models_beside
from yatt.config.schema import Config, OptimizerConfig, TrainConfig
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.vision.processor import Processor, read_processor

SAME = {"patch": "patch_size", "times": "temporal_patch_size", "merge": "merge_size", "mean": "image_mean"}
SAME |= {"std": "image_std"}
"""Fields of a processor in which a model beside the policy must agree with it: both are given the same patches."""


def vision_mistakes(case: Case) -> Iterator[str]:
    """Whether the settings of images fit the model, and who reads the images reads them alike."""
    config, model = case.config, case.model
    if model is None:
        return
    path, key = config.model.path, config.data.media_key
    if model.vision is None:
        yield from _blind(case, model)
        return
    if config.algorithm.name == "reward_model":
        yield f"model.path={path}: a reward model is a classifier, and transformers has none that sees; use another"
    rate = config.train.optimizer.vision_rate
    if config.train.vision == "frozen" and rate != OptimizerConfig().vision_rate:
        yield f"train.optimizer.vision_rate={rate} needs train.vision=trained, not frozen; unset it"
    if key is None:
        return
    try:
        own = read_processor(path, config.data.max_pixels)
        yield from _sizes(own, model, f"model.path={path}")
        for setting, other in models_beside(config).items():
            yield from _beside(config, own, setting, other)
    except ConfigError as error:
        yield str(error)


def _blind(case: Case, model: ModelFacts) -> Iterator[str]:
    train = case.config.train
    idle: dict[str, tuple[Any, Any]] = {
        "train.vision": (train.vision, TrainConfig.model_fields["vision"].default),
        "train.optimizer.vision_rate": (train.optimizer.vision_rate, OptimizerConfig().vision_rate),
        "train.patches_per_micro_batch": (train.patches_per_micro_batch, None),
    }
    for setting, (value, default) in idle.items():
        if value != default:
            yield f"{setting}={value} is for a model that sees, and a {model.architecture} does not; unset it"


def _sizes(read: Processor, model: ModelFacts, at: str) -> Iterator[str]:
    """Whether the tower gets patches of its own size."""
    assert model.vision is not None
    for name, value, wanted in (
        ("patch_size", read.patch, model.vision.patch),
        ("merge_size", read.merge, model.vision.merge),
        ("temporal_patch_size", read.times, model.vision.times),
    ):
        if value != wanted:
            yield f"{at}: its image processor has {name}={value}, and its vision tower {wanted}; mend the former"


def _beside(config: Config, own: Processor, setting: str, path: str) -> Iterator[str]:
    """Whether a model beside the policy sees what the policy sees."""
    facts = None
    with suppress(ConfigError):  # said already
        facts = facts_beside(config, setting, path)
    if facts is None:
        return
    if facts.vision is None:
        yield f"{setting}={path} is a {facts.architecture}, which sees no images as the policy does; use one that sees"
        return
    theirs = read_processor(path, setting=setting)
    yield from _sizes(theirs, facts, f"{setting}={path}")
    for name, written in SAME.items():
        here, there = getattr(own, name), getattr(theirs, name)
        if here != there:
            yield (
                f"{setting}={path}: its image processor has {written}={there} and the policy's {here}; both read the "
                "same patches, so use a model with the same"
            )
