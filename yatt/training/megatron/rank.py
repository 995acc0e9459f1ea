"""One trainer process, synchronous: methods are called from one thread, and those marked collective on every rank."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yatt.config.schema import Config
from yatt.errors import BackendError
from yatt.training.identity import identity, verify
from yatt.training.megatron import checkpoint, export, model, optimizer, parallel
from yatt.training.megatron.attention import Rotary
from yatt.training.megatron.convert import Converter, folder_reader
from yatt.training.megatron.update import Learner
from yatt.types import Share, UpdateReport


@dataclass(frozen=True, slots=True)
class _Loaded:
    learner: Learner
    converter: Converter
    identity: dict[str, Any]


class MegatronRank:
    """A shard of the policy, of its optimizer and, where the loss has a KL, of the reference."""

    def __init__(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> None:
        """Cheap: nothing is read or joined before `start`. `address` and `port` are where rank 0 listens."""
        self.config = config
        self.rank, self.world_size, self.address, self.port = rank, world_size, address, port
        self._loaded: _Loaded | None = None

    def start(self) -> None:
        """Collective. Join the other ranks, load the model, make the optimizer.

        Waits for every rank, at most `cluster.start_timeout`. Raises ConfigError for a model or layout that cannot be
        trained, WaitTimeout where a rank is missing."""
        config = self.config
        hf = model.read_hf_config(config.model.path)
        torch.manual_seed(config.run.seed)
        groups = parallel.start(
            config, rank=self.rank, world_size=self.world_size, address=self.address, port=self.port
        )
        settings = model.transformer_config(hf, config)
        policy = model.build(hf, settings, groups)
        converter = Converter(hf, policy, groups)
        converter.load(folder_reader(config.model.path, "model.path"))
        reference = None
        if config.algorithm.kl.coefficient > 0:
            path = config.model.reference or config.model.path
            reference = model.build(hf, settings, groups).requires_grad_(False)
            Converter(hf, reference, groups).load(folder_reader(path, "model.reference"))
        wrapped = optimizer.wrap(policy)
        rotary = Rotary(hf, groups.device, model.DTYPES[config.model.dtype])
        learner = Learner(config, groups, rotary, wrapped, optimizer.build(config, wrapped), reference)
        self._loaded = _Loaded(learner, converter, identity(hf, config.model.dtype))

    @property
    def dp_rank(self) -> int:
        """Which shares this rank trains on."""
        return self._started.learner.groups.dp.rank()

    @property
    def dp_size(self) -> int:
        return self._started.learner.groups.dp.size()

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        """Collective. Every optimizer update of one step from all controllers' shares for this `dp_rank`."""
        return self._started.learner.run(shares)

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Collective: every rank must exhaust it. The policy's weights, in full, one after another, on the model's
        device, under Hugging Face names; what is yielded must not be changed."""
        return self._started.converter.export()

    def save_folder(self, path: str) -> None:
        """Collective. Write the policy as a Hugging Face folder that transformers loads; rank 0 writes."""
        export.write_folder(self.export(), self.config, path, writer=self.rank == 0)

    def save(self, path: str) -> None:
        """Collective. Write a checkpoint into the folder `path`: model, optimizer, schedule, RNG.

        Waits for every rank. Raises BackendError where it cannot be written."""
        learner = self._started.learner
        checkpoint.save(
            path, learner.model.module, learner.optimizer, learner.updates, self._started.identity, learner.groups
        )

    def load(self, path: str) -> None:
        """Collective. Go on from a checkpoint, written under any layout.

        Raises CheckpointError, before anything changes, for one that is missing, half-written or of another model."""
        learner = self._started.learner
        learner.updates = checkpoint.load(
            path, learner.model.module, learner.optimizer, self._started.identity, learner.groups
        )

    def offload(self) -> None:
        """Move the optimizer's state and drop the gradient buffers from the device. On a CPU there is nowhere to move
        them to: nothing happens. After it, `update`, `save` and `load` need `onload` first."""
        learner = self._started.learner
        if learner.groups.device.type == "cuda":
            learner.model.offload_grad_buffers()
            optimizer.move(learner.optimizer, torch.device("cpu"))
            torch.cuda.empty_cache()

    def onload(self) -> None:
        """Undo `offload`."""
        learner = self._started.learner
        if learner.groups.device.type == "cuda":
            learner.model.restore_grad_buffers()
            optimizer.move(learner.optimizer, learner.groups.device)

    def close(self) -> None:
        """Leave the other ranks and free everything; waits for nobody."""
        self._loaded = None
        parallel.stop()

    @property
    def _started(self) -> _Loaded:
        if self._loaded is None:
            raise BackendError(f"trainer rank {self.rank} was used before start()")
        return self._loaded


def export_checkpoint(config: Config, checkpoint_path: str, out: str) -> None:
    """Write the policy of a trainer's checkpoint as a Hugging Face folder, in this process alone.

    Raises CheckpointError for a checkpoint that is missing, half-written or of another model than `model.path`."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"tp": 1, "pp": 1})})
    hf = model.read_hf_config(config.model.path)
    described = identity(hf, config.model.dtype)
    verify(checkpoint_path, described)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    groups = parallel.start(config, rank=0, world_size=1, address="127.0.0.1", port=port)
    try:
        policy = model.build(hf, model.transformer_config(hf, config), groups)
        checkpoint.load_model(checkpoint_path, policy, described, groups)
        export.write_folder(Converter(hf, policy, groups).export(), config, out, writer=True)
    finally:
        parallel.stop()
