"""Rules of a policy that sees, and of the models beside it. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from yatt.config.case import Case
from yatt.config.models import facts_beside, models_beside
from yatt.config.schema import OptimizerConfig, TrainConfig
from yatt.config.weight_files import read_json
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.models.table import FAMILIES

PROCESSOR = "preprocessor_config.json"
SAME = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
"""Fields of a processor in which a model beside the policy must agree with it: both are given the same patches."""


def vision_mistakes(case: Case) -> Iterator[str]:
    """Whether the settings of images fit the model, and who reads the images reads them alike."""
    config, model = case.config, case.model
    if model is None:
        return
    path, key = config.model.path, config.data.media_key
    if key is not None and case.offline:
        yield f"data.media_key={key}: {case.name} takes no images yet; unset it"
        return
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
        own = read_json(Path(path) / PROCESSOR, "model.path")
        yield from _processor(own, model, f"model.path={path}")
        for setting, other in models_beside(config).items():
            yield from _beside(own, setting, other)
    except ConfigError as error:
        yield str(error)


def _blind(case: Case, model: ModelFacts) -> Iterator[str]:
    config, train = case.config, case.config.train
    able = " or ".join(family.causal for family in FAMILIES.values() if family.tower is not None)
    if config.data.media_key is not None:
        yield (
            f"data.media_key={config.data.media_key}: a {model.architecture} sees no images; unset it, or set "
            f"model.path to a {able}"
        )
    idle: dict[str, tuple[Any, Any]] = {
        "train.vision": (train.vision, TrainConfig.model_fields["vision"].default),
        "train.optimizer.vision_rate": (train.optimizer.vision_rate, OptimizerConfig().vision_rate),
        "train.patches_per_micro_batch": (train.patches_per_micro_batch, None),
    }
    for setting, (value, default) in idle.items():
        if value != default:
            yield f"{setting}={value} is for a model that sees, and a {model.architecture} does not; unset it"


def _processor(read: dict[str, Any], model: ModelFacts, at: str) -> Iterator[str]:
    """Whether the tower gets patches of its own size."""
    assert model.vision is not None
    for name, value in (("patch_size", model.vision.patch), ("merge_size", model.vision.merge)):
        if read.get(name) != value:
            yield f"{at}: {PROCESSOR} has {name}={json.dumps(read.get(name))}, and the vision tower {value}; mend it"


def _beside(own: dict[str, Any], setting: str, path: str) -> Iterator[str]:
    """Whether a model beside the policy sees what the policy sees."""
    facts = None
    with suppress(ConfigError):  # said already
        facts = facts_beside(setting, path)
    if facts is None:
        return
    if facts.vision is None:
        yield f"{setting}={path} is a {facts.architecture}, which sees no images as the policy does; use one that sees"
        return
    theirs = read_json(Path(path) / PROCESSOR, setting)
    yield from _processor(theirs, facts, f"{setting}={path}")
    for name in SAME:
        if own.get(name) != theirs.get(name):
            yield (
                f"{setting}={path}: its {PROCESSOR} has {name}={json.dumps(theirs.get(name))} and the policy's "
                f"{json.dumps(own.get(name))}; both read the same patches, so use a model with the same"
            )
