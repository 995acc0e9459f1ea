"""Rules of an algorithm's settings: those it has, those that go together, and the models it needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from yatt.config import folders
from yatt.config.algorithms import LONE, RECIPES, REWARDED_TOKENS, TOKEN_ADVANTAGES
from yatt.config.facts import differing_token
from yatt.config.models import any_family, facts_beside, models_beside, scores
from yatt.config.paths import OBJECT
from yatt.config.schema import (
    AlgorithmConfig,
    Config,
    CorrectionConfig,
    CriticConfig,
    EvaluateConfig,
    KlConfig,
    RolloutConfig,
    Section,
    truncates,
)
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.models.generic import can_score

NAMED = 3
"""Algorithms an error names that have a setting."""
KL_STEP = 0.2
"""By this share of responses / horizon a step moves the coefficient of the KL at most (`yatt.algorithm.kl`)."""


def algorithm_mistakes(config: Config) -> Iterator[str]:
    """One line for each broken rule between the settings of the algorithm and others; looks at no model."""
    yield from _foreign(config)
    yield from _models(config)
    yield from _kl(config)
    yield from _correction(config)
    yield from _functions(config)
    yield from _group(config) if config.algorithm.recipe.reinforces else _rows(config)


def _foreign(config: Config) -> Iterator[str]:
    """Settings that are another algorithm's."""
    algorithm, recipe = config.algorithm, config.algorithm.recipe
    name, own = algorithm.name, AlgorithmConfig(name=algorithm.name)
    for field in AlgorithmConfig.model_fields:
        if field != "name" and field not in recipe.has:
            given, unset = getattr(algorithm, field), getattr(own, field)
            for setting, value, default in _differing(f"algorithm.{field}", given, unset):
                owners = _owners(name, [other for other, its in RECIPES.items() if field in its.has])
                yield f"{setting}={value} is not a setting of {name}; {owners} it; leave it at {default}"
    if not recipe.critic:
        for setting, value, default in _differing("critic", config.critic, CriticConfig()):
            owners = _owners(name, [other for other, its in RECIPES.items() if its.critic])
            yield f"{setting}={value} is for a critic, which {name} has not; {owners} one; leave it at {default}"
    if config.data.margin_key is not None and not scores(config):
        yield f"data.margin_key={config.data.margin_key} is only for algorithm.name=reward_model, not {name}; unset it"


def _models(config: Config) -> Iterator[str]:
    """Whether the models that are named are used, and those that are used named."""
    model, algorithm, name = config.model, config.algorithm, config.algorithm.name
    if algorithm.recipe.teacher and model.teacher is None:
        yield f"model.teacher is not set; algorithm.name={name} needs the folder of a model to learn from"
    elif model.teacher is not None and not algorithm.recipe.teacher:
        yield f"model.teacher={model.teacher} is only for algorithm.name=distillation, not {name}; unset it"
    if model.reference is not None and "reference" not in algorithm.loads:
        why = "algorithm.kl.coefficient=0" if algorithm.recipe.reinforces else f"algorithm.name={name}"
        yield f"model.reference={model.reference} is never loaded, for {why}; unset it"
    critic = config.critic
    if algorithm.recipe.critic and critic.warmup_steps >= config.train.steps:
        yield (
            f"critic.warmup_steps={critic.warmup_steps} is not under train.steps={config.train.steps}: "
            "the policy would never learn; lower it"
        )
    rate, least = critic.learning_rate, config.train.optimizer.min_learning_rate
    if algorithm.recipe.critic and rate is not None and rate < least:
        yield (
            f"critic.learning_rate={rate} is under train.optimizer.min_learning_rate={least}, where its schedule would "
            "end; lower that"
        )


def _kl(config: Config) -> Iterator[str]:
    kl, algorithm = config.algorithm.kl, config.algorithm
    if "kl" not in algorithm.recipe.has:
        return
    if kl.place == "reward" and kl.coefficient == 0:
        yield (
            "algorithm.kl.place=reward needs a reference, and algorithm.kl.coefficient=0 loads none; "
            "use a coefficient such as 0.01, or leave the place at loss"
        )
    elif kl.place == "reward" and algorithm.recipe.advantage not in REWARDED_TOKENS:
        owners = _owners(algorithm.name, [other for other, its in RECIPES.items() if its.advantage in REWARDED_TOKENS])
        yield (
            f"algorithm.kl.place=reward needs a reward for every token, and {algorithm.name} has none; "
            f"{owners} them; use loss"
        )
    if kl.target is not None and kl.place == "loss":
        yield (
            f"algorithm.kl.target={kl.target} adapts the coefficient of a KL in the reward, and "
            "algorithm.kl.place=loss; unset it, or use algorithm.kl.place=reward"
        )
    if kl.target is None and kl.horizon != KlConfig().horizon:
        yield (
            f"algorithm.kl.horizon={kl.horizon} has no meaning without algorithm.kl.target; "
            f"leave it at {KlConfig().horizon}"
        )
    responses = config.train.batch_size * config.rollout.n
    if kl.target is not None and kl.horizon <= KL_STEP * responses:
        yield (
            f"algorithm.kl.horizon={kl.horizon} is far under the {responses} responses of a step: one step could "
            f"take the coefficient to 0 or below; use at least {responses}"
        )


def _correction(config: Config) -> Iterator[str]:
    correction = config.algorithm.correction
    if correction.level == "none":
        for setting, value, default in _differing("algorithm.correction", correction, CorrectionConfig()):
            yield (
                f"{setting}={value} has no meaning with algorithm.correction.level=none; "
                f"leave it at {default}, or use level token, sequence or geometric"
            )
        return
    if correction.low > correction.high:
        yield (
            f"algorithm.correction.low={correction.low} is over algorithm.correction.high={correction.high}; "
            "give the lower bound first"
        )
    rollout = config.rollout
    if truncates(rollout):
        setting = f"rollout.top_p={rollout.top_p}" if rollout.top_p < 1 else f"rollout.top_k={rollout.top_k}"
        yield (
            f"algorithm.correction.level={correction.level} weighs by the trainer's probability among all tokens over "
            f"the engine's among those that {setting} keeps, which is too small for every token; use rollout.top_p=1 "
            "and rollout.top_k=-1, or level none"
        )


def _functions(config: Config) -> Iterator[str]:
    for setting in ("advantage", "loss"):
        name = getattr(config.algorithm, setting)
        file = (name or "").rpartition(":")[0]
        if name and not file:
            yield f"algorithm.{setting}={name} names no function; use FILE.py:NAME"
        elif file.endswith((".py", OBJECT)) and not os.path.isfile(file):
            yield f"algorithm.{setting}={name}: no such file, from {os.getcwd()}"


def _group(config: Config) -> Iterator[str]:
    """Whether the responses to a prompt teach anything."""
    rollout, algorithm = config.rollout, config.algorithm
    if rollout.n < 2 and algorithm.recipe.advantage not in LONE:
        yield f"rollout.n={rollout.n} gives a group of one, which teaches {algorithm.name} nothing; use at least 2"
    elif rollout.filter == "all_equal" and (rollout.n < 2 or not _rewarded(config)):
        why = f"rollout.n={rollout.n}" if rollout.n < 2 else "a run without a reward"
        yield f"rollout.filter=all_equal drops every group of {why}: the rewards of each are all equal; use none"
    if algorithm.overlong == "penalty" and "overlong_buffer" not in algorithm.recipe.has:
        yield f"algorithm.overlong=penalty is for a reward, and {algorithm.name} learns from none; use keep or mask"
    if algorithm.whiten == "sequences" and algorithm.recipe.advantage in TOKEN_ADVANTAGES:
        yield (
            f"algorithm.whiten=sequences would make one of the advantages that {algorithm.name} has for each token; "
            "use tokens or none"
        )
    if rollout.temperature == 0:
        yield "rollout.temperature=0 makes all responses to a prompt the same: nothing to learn from; use 1"


def _rewarded(config: Config) -> bool:
    reward = config.reward
    return bool(reward.function or reward.functions or reward.models)


def _rows(config: Config) -> Iterator[str]:
    """Settings that mean nothing where the model learns from rows."""
    name = f"algorithm.name={config.algorithm.name}"
    unset, evaluate = RolloutConfig(), EvaluateConfig()
    idle = {
        "rollout.filter": (config.rollout.filter, unset.filter),
        "train.epochs_per_step": (config.train.epochs_per_step, 1),
    }
    for field in ("samples", "temperature", "correct_at", "by"):
        idle[f"evaluate.{field}"] = (getattr(config.evaluate, field), getattr(evaluate, field))
    for setting, (value, default) in idle.items():
        if value != default:
            yield f"{setting}={_shown(value)} has no meaning for {name}; leave it at {_shown(default)}"


def beside_mistakes(config: Config, policy: ModelFacts) -> Iterator[str]:
    """One line for each model beside the policy, in a folder of its own, that cannot be read or does not fit it."""
    if any_family(config) and scores(config) and not can_score(policy.architecture):
        yield (
            f"model.path={config.model.path}: transformers has no classifier of a {policy.architecture}'s family; "
            "use another"
        )
    for setting, path in models_beside(config).items():
        try:
            facts = facts_beside(config, setting, path)
            differs = differing_token(config.model.path, path, setting)
            yield from folders.mistakes(path, setting, any_family=any_family(config))
        except ConfigError as error:
            yield str(error)
            continue
        if facts.vocab_size != policy.vocab_size:
            yield (
                f"{setting}={path} has vocab_size={facts.vocab_size} but the policy has {policy.vocab_size}; "
                "use a model with the same tokenizer"
            )
        elif differs is not None:
            token, *texts = differs
            here, there = ("missing" if text is None else repr(text) for text in texts)
            yield (
                f"{setting}={path}: its tokenizer is not the policy's: token {token} is {there}, and {here} in "
                f"model.path={config.model.path}; use a model with the same tokenizer"
            )
        if facts.max_positions < config.model.context_length:
            yield (
                f"{setting}={path} has max_position_embeddings={facts.max_positions}, under "
                f"model.context_length={config.model.context_length}; use at most {facts.max_positions}"
            )


def _differing(prefix: str, given: Any, default: Any) -> Iterator[tuple[str, str, str]]:
    """Settings that are not at their default: name, value and default as they are written."""
    if isinstance(given, Section):
        for field in type(given).model_fields:
            yield from _differing(f"{prefix}.{field}", getattr(given, field), getattr(default, field))
    elif given != default:
        yield prefix, _shown(given), _shown(default)


def _owners(name: str, others: list[str]) -> str:
    """Those algorithms of `others` that are nearest to `name`, and "has" or "have"."""
    own = RECIPES[name]
    near = sorted(others, key=lambda other: (RECIPES[other].rows != own.rows, RECIPES[other].loss != own.loss))
    *head, last = near if len(near) <= NAMED else [*near[:NAMED], "others"]
    return f"{', '.join(head)} and {last} have" if head else f"{last} has"


def _shown(value: Any) -> str:
    """As in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
