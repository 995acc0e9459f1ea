"""Rules of the engines that serve the policy and the judges. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yatt.config.schema import Config
from yatt.generation.table import ENGINES, option_mistakes
from yatt.placement.cost import engine_of, settings_for, settings_of
from yatt.placement.plan import POLICY, Role


def engine_mistakes(config: Config) -> Iterator[str]:
    """One line for each option of an engine that is not one of its own, or no number."""
    for role in (POLICY, *config.reward.served):
        yield from option_mistakes(engine_of(config, role), settings_for(config, role).engine_args, settings_of(role))


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
