"""One trainer process, synchronous: methods are called from one thread, and those marked collective on every rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from yatt.config.models import policy_facts, reference_apart
from yatt.config.schema import Config
from yatt.errors import BackendError
from yatt.reports import Probed, UpdateReport
from yatt.training import export
from yatt.training.identity import verify
from yatt.training.images import Eyes
from yatt.training.layout import Layout
from yatt.training.memory import keep_freed_memory, release_freed_memory
from yatt.training.model import Backend, Model
from yatt.training.reinforce import Reinforcement
from yatt.training.update import Training, open_objective
from yatt.types import Share

M = TypeVar("M", bound=Model)
CRITIC = "critic"
"""Folder of the critic within a trainer's checkpoint."""


class TrainerRank:
    """A shard of the policy with its optimizer, and of the other models that the algorithm needs."""

    def __init__(
        self, backend: Backend, config: Config, *, rank: int, world_size: int, address: str, port: int
    ) -> None:
        """Cheap: nothing is read or joined before `start`. `address` and `port` are where rank 0 listens."""
        self.backend, self.config = backend, config
        self.rank, self.world_size, self.address, self.port = rank, world_size, address, port
        self._training: Training | None = None
        self._writing: list[Callable[[], None]] = []

    def start(self) -> None:
        """Collective. Join the other ranks, load the model, make the optimizer.

        Waits for every rank, at most `cluster.start_timeout`. Raises ConfigError for a model or layout that cannot be
        trained, WaitTimeout where a rank is missing."""
        config = self.config
        torch.manual_seed(config.run.seed)
        layout = self.backend.join(
            config, rank=self.rank, world_size=self.world_size, address=self.address, port=self.port
        )
        if layout.device.type == "cpu":
            keep_freed_memory()
        self._training = open_training(self.backend, config, layout)

    @property
    def dp_rank(self) -> int:
        """Which shares this rank trains on."""
        return self._started.layout.dp.rank()

    @property
    def dp_size(self) -> int:
        return self._started.layout.dp.size()

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        """Collective. Every optimizer update of one step from all controllers' shares for this `dp_rank`."""
        return self._started.update(shares)

    def evaluate(self, shares: Sequence[Share]) -> UpdateReport:
        """Collective. The loss of samples under the weights as they are, which stay so."""
        return self._started.evaluate(shares)

    def reference(self, shares: Sequence[Share]) -> dict[int, tuple[float, float]]:
        """Collective. By uid, the reference's log-probabilities of both sequences of this rank's samples; from the last
        pipeline stage. Without a folder of its own the reference is the policy as it is now."""
        return self._started.reference_sums(shares)

    def forget_reference(self) -> None:
        """Free the reference: all it had to say is known."""
        self._started.forget_reference()

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Collective: every rank must exhaust it. The policy's weights, in full, one after another, on the model's
        device, under Hugging Face names; what is yielded must not be changed."""
        return self._started.policy.export()

    def probe(self) -> Probed | None:
        """Collective. What the policy makes of fixed tokens; from the last pipeline stage."""
        return self._started.probe()

    def save_folder(self, path: str) -> None:
        """Collective. Write the policy, or the reward model, as a Hugging Face folder that transformers loads; rank 0
        writes."""
        head = self._started.objective.head
        export.write_folder(self.export(), self.config, path, writer=self.rank == 0, head=head)

    def begin_save(self, path: str) -> None:
        """Begin to write a checkpoint into the folder `path`: model, optimizer, schedule, RNG. Training may go on; what
        it changes is copied first. Waits for an earlier save of this rank alone."""
        training = self._started
        release_freed_memory()
        more: dict[str, Any] = {}
        if isinstance(training.objective, Reinforcement):
            more = {"kl_coefficient": training.objective.coefficient.state()}
        self._writing = [training.policy.save(path, more)]
        if training.critic is not None:
            self._writing.append(training.critic.save(os.path.join(path, CRITIC), {}))

    def end_save(self) -> None:
        """Wait until this rank's part of the checkpoint is on the disk; from any thread. Raises BackendError where it
        could not be written: the checkpoint is then incomplete, and is refused."""
        for wait in self._writing:
            wait()

    def save(self, path: str) -> None:
        """Collective. Write a checkpoint, and wait for every rank's part. Raises BackendError, on every rank, where one
        could not be written."""
        failures: list[str | None] = [None] * self.world_size
        failure = None
        try:
            self.begin_save(path)
            self.end_save()
        except BackendError as error:
            failure = str(error)
        dist.all_gather_object(failures, failure)
        if failure := next(filter(None, failures), None):
            raise BackendError(failure)

    def load(self, path: str) -> None:
        """Collective. Go on from a checkpoint, written under any layout.

        Raises CheckpointError, before anything changes, for one that is missing, broken or of another model."""
        training, critic = self._started, self._started.critic
        beside = os.path.join(path, CRITIC)
        if critic is not None:
            verify(beside, critic.identity)
        state = training.policy.load(path)
        if isinstance(training.objective, Reinforcement) and "kl_coefficient" in state:
            training.objective.coefficient.restore(state["kl_coefficient"])
        if critic is not None:
            critic.load(beside)

    def offload(self) -> None:
        """Leave the device's memory to the engines. On a CPU there is nowhere to move anything to: nothing happens.
        After it, all that is collective needs `onload` first."""
        training = self._started
        if training.layout.device.type == "cuda":
            for model in training.models:
                model.put_away()
            torch.cuda.empty_cache()

    def onload(self) -> None:
        """Undo `offload`; with `train.offload` each model comes back when it is at work."""
        for model in () if self.config.train.offload else self._started.models:
            model.take_back()

    def close(self) -> None:
        """Leave the other ranks and free everything; waits for what is being saved alone."""
        with suppress(BackendError):  # told to who asked for the save
            self.end_save()
        self._training, self._writing = None, []
        self.backend.leave()

    @property
    def _started(self) -> Training:
        if self._training is None:
            raise BackendError(f"trainer rank {self.rank} was used before start()")
        return self._training


def open_training(backend: Backend, config: Config, layout: Layout) -> Training:
    """All models of a run, on this rank. Collective; raises ConfigError for one that cannot be read or trained."""
    train, start, loads = config.train, config.model.path, config.algorithm.loads
    objective, vision = open_objective(config, layout), policy_facts(config, weights=False).vision
    updates = train.updates_per_step * train.epochs_per_step
    warmup = config.critic.warmup_steps if "critic" in loads else 0

    def rested(model: M) -> M:
        """Off the device before the next is made: with `train.offload` there is never room for two."""
        if train.offload and layout.device.type == "cuda":
            model.put_away()
        return model

    def frozen(name: str, path: str | None) -> Model | None:
        return rested(backend.frozen(config, layout, path, f"model.{name}")) if path and name in loads else None

    policy = rested(
        backend.learner(
            config,
            layout,
            start,
            "model.path",
            objective.head,
            settings=train.optimizer,
            planned=(train.steps - warmup) * updates,
        )
    )
    critic = None
    if "critic" in loads:
        rate = {"learning_rate": config.critic.learning_rate or train.optimizer.learning_rate}
        settings = train.optimizer.model_copy(update=rate)
        path, planned = config.critic.path or start, train.steps * updates
        critic = rested(
            backend.learner(config, layout, path, "critic.path", "value", settings=settings, planned=planned)
        )
    if reference_apart(config):
        reference = frozen("reference", config.model.reference or start)
    else:
        reference = policy.without_adapters() if train.lora.rank and "reference" in loads else None
    return Training(
        config,
        layout,
        objective,
        policy,
        reference=reference,
        teacher=frozen("teacher", config.model.teacher),
        critic=critic,
        eyes=None if vision is None else Eyes(start, merge=vision.merge, reads=layout.first_stage),
    )
