"""Rules between the settings and this machine: its engines, devices and memory. Of others, nothing is known here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from yatt.config.case import Case
from yatt.config.engines import serving_mistakes, size_mistakes
from yatt.config.judges import judge_facts
from yatt.config.placement import slot_memory
from yatt.errors import ConfigError
from yatt.generation.kind import Device
from yatt.models.facts import ModelFacts
from yatt.placement import cost
from yatt.placement.plan import POLICY


def serving(case: Case) -> Iterator[str]:
    """Whether the engines are there. What other machines have is not known here."""
    config = case.config
    if case.offline or config.cluster.address is not None:
        return
    architectures = {} if case.model is None else {POLICY: case.model.architecture}
    judges: dict[str, ModelFacts] = {}
    for name, judge in config.reward.served.items():
        with suppress(ConfigError):  # said already
            judges[name] = judge_facts(name, judge, weights=False)
    yield from size_mistakes(config, judges)
    yield from serving_mistakes(config, architectures | {name: facts.architecture for name, facts in judges.items()})


def devices(case: Case) -> Iterator[str]:
    cluster = case.config.cluster
    if cluster.address is not None:
        return
    if cluster.device == "cuda" and not case.gpus:
        yield "cluster.device=cuda but this machine shows no GPU; use cpu or auto, or mend CUDA_VISIBLE_DEVICES"
    elif cluster.device != "cpu" and case.gpus and (cluster.slots or 0) > case.gpus:
        yield f"cluster.slots={cluster.slots} is over the {case.gpus} GPU(s) of this machine; use at most {case.gpus}"


def memory(case: Case) -> Iterator[str]:
    """Whether the roles fit on this machine's slots. What other machines have is not known here."""
    config, trained = case.config, case.train_slots
    if case.model is None or config.cluster.address is not None or not case.slots or not trained:
        return
    gpus = 0 if config.cluster.device == "cpu" else case.gpus
    capacity = slot_memory(gpus, case.slots)
    if capacity is None:
        return
    try:
        judges = {name: judge_facts(name, config.reward.models[name]) for name in cost.served(config) if name != POLICY}
    except ConfigError:  # a rule of its own says it
        return
    kind: Device = "cuda" if gpus else "cpu"
    yield from cost.mistakes(config, {POLICY: case.model, **judges}, train_slots=trained, kind=kind, capacity=capacity)
