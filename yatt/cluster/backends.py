"""Which class stands behind a backend's name. It is imported in the process that hosts it, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from yatt.config.schema import Config
from yatt.protocols import Generator, Scorer
from yatt.reports import Probed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The classes that a cluster is made of, each as "module:name", called as its default is."""

    generator: str = "yatt.generation.stepped:SteppedGenerator"
    classifier: str = "yatt.generation.stepped:SteppedClassifier"
    trainer: str = "yatt.training.megatron.backend:open_rank"
    scorer: str = "yatt.reward.mixed:open_scorer"
    tokenizer: str = "yatt.data.prompts:load_tokenizer"


TRAINERS = {"megatron": Backends().trainer, "fsdp": "yatt.training.fsdp.backend:open_rank"}
"""By `train.backend`."""


def backends_of(config: Config) -> Backends:
    """The classes that a run of this config is made of."""
    return Backends(trainer=TRAINERS[config.train.backend])


class HostedGenerator(Generator, Protocol):
    """A generator in this process."""

    async def start(self) -> None:
        """Load the engine."""
        ...


class HostedScorer(Scorer, Protocol):
    """A scorer in this process."""

    async def start(self) -> None:
        """Start its workers."""
        ...


class HostedRank(Protocol):
    """A trainer rank in this process, blocking. Methods that take shares are called by their names in `rank.Work`,
    those that take none by theirs in `rank.Collective`."""

    @property
    def dp_rank(self) -> int: ...

    @property
    def dp_size(self) -> int: ...

    def start(self) -> None:
        """Collective. Join the other ranks and load the models."""
        ...

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Collective: every rank must exhaust it. The policy's weights under Hugging Face names."""
        ...

    def probe(self) -> Probed | None:
        """Collective. What the policy makes of fixed tokens; from the last pipeline stage."""
        ...

    def end_save(self) -> None:
        """Wait until what `begin_save` began is on the disk; from any thread."""
        ...

    def close(self) -> None:
        """Leave the other ranks; waits for what is being saved alone."""
        ...


def load(backend: str) -> Any:
    """The object at "module:name"."""
    module, name = backend.split(":")
    return getattr(importlib.import_module(module), name)
