"""The parts of a trainer backend: models that samples pass through, and models that learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor

from yatt.config.schema import Config, OptimizerConfig
from yatt.training.batch import MicroBatch
from yatt.training.layout import Layout

Head = Literal["tokens", "value"]
"""The layer on top of the decoder: logits over the vocabulary, or one number per token."""
OnOutput = Callable[[MicroBatch, Tensor], Tensor]
"""(micro-batch, the model's output) -> a loss, on the last pipeline stage. The output is logits [1, P, V / tp], or
values [1, P, 1] of a value head."""


class Model(Protocol):
    """A model on one rank. Methods are collective over the ranks that hold it."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields in which a checkpoint and this model must agree."""
        ...

    def infer(self, micro_batches: Sequence[MicroBatch], on_output: Callable[[MicroBatch, Tensor], None]) -> None:
        """Put micro-batches through, without gradients; `on_output` sees what comes out on the last stage."""
        ...

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight in full, under its Hugging Face name; each rank must exhaust it."""
        ...

    def aboard(self) -> AbstractContextManager[None]:
        """On the device meanwhile; with `train.offload`, only meanwhile."""
        ...

    def put_away(self) -> None:
        """Leave the device's memory to others."""
        ...

    def take_back(self) -> None:
        """Undo `put_away`."""
        ...


class Learner(Model, Protocol):
    """A model that learns."""

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        ...

    def learn(self, micro_batches: Sequence[MicroBatch], loss: OnOutput) -> None:
        """Leave the gradients of the sum of the losses, added up over the replicas. Collective over all ranks."""
        ...

    def without_adapters(self) -> Model | None:
        """The model as it was before it learnt, without a copy of it; None where it learns without adapters."""
        ...

    def step(self) -> tuple[float, bool]:
        """Apply the gradients; returns their norm, and whether they were applied. Collective over all ranks."""
        ...

    def save(self, path: str, more: dict[str, Any]) -> Callable[[], None]:
        """Begin to write weights, optimizer and schedule into the folder `path`, with the plain values `more` beside
        them. What is returned waits until this rank's part is on the disk, from any thread, and raises BackendError
        where it could not be written."""
        ...

    def load(self, path: str) -> dict[str, Any]:
        """Go on from a checkpoint, written under any layout; returns what was saved beside the weights. Collective.
        Raises CheckpointError, before anything changes, for one that is missing, broken or of another model."""
        ...


class Backend(Protocol):
    """A library that trains: how ranks meet, and how models are opened on them."""

    def join(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
        """Join the other ranks, of which rank 0 listens at `address` and `port`. Waits for all of them,
        `cluster.start_timeout` at most, then raises WaitTimeout."""
        ...

    def leave(self) -> None:
        """Leave the groups; waits for nobody."""
        ...

    def frozen(self, config: Config, layout: Layout, path: str, setting: str) -> Model:
        """A model that stays as its folder has it. `setting` is the field to blame in errors. Raises ConfigError for a
        folder that cannot be read or trained. Collective."""
        ...

    def learner(
        self,
        config: Config,
        layout: Layout,
        path: str,
        setting: str,
        head: Head,
        *,
        settings: OptimizerConfig,
        planned: int,
    ) -> Learner:
        """A model with an optimizer, for `planned` updates; otherwise as `frozen`."""
        ...
