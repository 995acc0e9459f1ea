"""Rules of the engines that serve the policy and the judges. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.generation.table import ENGINES, option_mistakes
from yatt.models.facts import ModelFacts
from yatt.placement.cost import engine_of, settings_for, settings_of, shape_of
from yatt.placement.plan import POLICY, Role


def engine_mistakes(config: Config) -> Iterator[str]:
    """One line for each option of an engine that is not one of its own, or no number; and for each with which the
    policy's engine would read another model than the trainer."""
    for role in (POLICY, *config.reward.served):
        yield from option_mistakes(engine_of(config, role), settings_for(config, role).engine_args, settings_of(role))
    yield from _reading_mistakes(config)


def _reading_mistakes(config: Config) -> Iterator[str]:
    options, at = config.rollout.engine_args, f"{settings_of(POLICY)}.engine_args"
    for name, allowed in ENGINES[engine_of(config, POLICY)].as_it_stands.items():
        if name in options and options[name] not in allowed:
            yield f"{at}.{name}={options[name]} has the engine read another model than is trained; unset it"


def size_mistakes(config: Config, models: Mapping[Role, ModelFacts]) -> Iterator[str]:
    """One line for each role whose engine's tensor-parallel size does not cut its model evenly. Engines give each part
    whole heads, or a copy of a key/value head, and pad the vocabulary themselves."""
    for role, model in models.items():
        try:
            shape = shape_of(config, role)
        except ConfigError:  # a rule of its own says it
            continue
        size = shape.tensor_parallel
        if broken := _uneven(size, model):
            *head, last = [str(n) for n in range(1, model.heads + 1) if not _uneven(n, model)]
            use = f"{', '.join(head)} or {last}" if head else last
            setting = f"{settings_of(role)}.engine_args.{shape.names.tensor_parallel}"
            yield f"{setting}={size} does not divide {' and '.join(broken)}; use {use}"


def _uneven(size: int, model: ModelFacts) -> list[str]:
    counts = {"attention heads": model.heads, "MLP columns": model.intermediate_size}
    broken = [f"{count} {what}" for what, count in counts.items() if count % size]
    groups = model.kv_heads
    return broken + [f"{groups} key/value heads"] * bool(groups % size and size % groups)


def serving_mistakes(config: Config, architectures: Mapping[Role, str]) -> Iterator[str]:
    """One line for each role whose engine is not installed on this machine, or has no model of its architecture."""
    installed = [name for name, kind in ENGINES.items() if kind.installed]
    for role, architecture in architectures.items():
        engine, at = engine_of(config, role), settings_of(role)
        title = ENGINES[engine].title
        if engine not in installed:
            other = f", or use {' or '.join(installed)}" if installed else ""
            yield f"{at}.engine={engine}: {title} is not installed here; `yatt doctor` says how to install it{other}"
        elif not ENGINES[engine].lists(architecture):
            able = [name for name in installed if ENGINES[name].lists(architecture)]
            path = config.model.path if role == POLICY else config.reward.models[role].path
            setting = "model.path" if role == POLICY else f"{at}.path"
            remedy = f"set {at}.engine={able[0]}" if able else "choose another model"
            yield f"{setting}={path}: {title} has no {architecture}; {remedy}"
