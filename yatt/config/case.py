"""The input of the rules: the settings, the model's sizes and the machine."""

from __future__ import annotations

from dataclasses import dataclass

from yatt.config.placement import train_slots
from yatt.config.schema import Config
from yatt.models.facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The input of a rule. `model` is None where the folder cannot be read, which is a mistake of its own; `slots` is
    None where only the cluster knows; `slots_name` is how the user says their number."""

    config: Config
    model: ModelFacts | None
    gpus: int
    slots: int | None
    slots_name: str = "cluster.slots"

    @property
    def offline(self) -> bool:
        """Whether rows are learned from, and no responses drawn."""
        return not self.config.algorithm.recipe.reinforces

    @property
    def name(self) -> str:
        return f"algorithm.name={self.config.algorithm.name}"

    @property
    def train_slots(self) -> int | None:
        return None if self.slots is None else train_slots(self.config, self.slots)
