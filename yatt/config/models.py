"""The models that a run trains or reads: the policy, and those that ranks hold beside it."""

from __future__ import annotations

from yatt.config.facts import model_facts
from yatt.config.schema import Config
from yatt.models.facts import ModelFacts


def scores(config: Config) -> bool:
    """Whether what is trained is a reward model: one score for a whole sequence."""
    return config.algorithm.recipe.loss == "bradley_terry"


def policy_facts(config: Config, *, weights: bool = True) -> ModelFacts:
    """Sizes of what is trained, as `model_facts` reads them. A reward model may be a classifier already."""
    return model_facts(config.model.path, weights=weights, scalar=scores(config), any_family=any_family(config))


def facts_beside(config: Config, setting: str, path: str) -> ModelFacts:
    """Sizes of a model beside the policy, as `model_facts` reads them. A critic may be a classifier."""
    return model_facts(path, setting, scalar=setting == "critic.path", any_family=any_family(config))


def any_family(config: Config) -> bool:
    """Whether the trainer takes any family that transformers has."""
    return config.train.backend == "fsdp"


def models_beside(config: Config) -> dict[str, str]:
    """The folders of the models that ranks hold beside the policy and that are not its own, by their settings."""
    named = {
        "reference": ("model.reference", config.model.reference),
        "teacher": ("model.teacher", config.model.teacher),
        "critic": ("critic.path", config.critic.path),
    }
    used = dict(named[name] for name in config.algorithm.loads)
    return {setting: path for setting, path in used.items() if path is not None and path != config.model.path}


def reference_apart(config: Config) -> bool:
    """Whether the reference is a model of its own on the ranks. Else it is not needed, or is the policy itself: before
    it has learnt, or without its adapters."""
    if "reference" not in config.algorithm.loads:
        return False
    if config.train.lora.rank and config.model.reference in (None, config.model.path):
        return False
    return not (config.algorithm.precompute_reference and config.model.reference is None)
