"""A model on one rank: what passes through it, where its memory is, and how it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from yatt.config.schema import Config, OptimizerConfig
from yatt.training.batch import MicroBatch, pack
from yatt.training.checkpoint import fill, generator
from yatt.training.fsdp.attention import Lay
from yatt.training.fsdp.model import DTYPES, Opened, open_model
from yatt.training.fsdp.names import exported
from yatt.training.fsdp.optimizer import Optimizer
from yatt.training.identity import transformers_identity, verify
from yatt.training.kernels import Kernel
from yatt.training.layout import Layout
from yatt.training.memory import Resident, Shelf
from yatt.training.model import Head, OnOutput
from yatt.training.saving import Saving
from yatt.training.schedule import Progress
from yatt.types import Denominator, Sample, SampleKey


class Network(Resident):
    """A frozen model, read from a Hugging Face folder. `setting` is the field to blame in errors."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        path: str,
        setting: str,
        head: Head = "tokens",
        *,
        learns: bool = False,
    ) -> None:
        """Collective. Raises ConfigError for a folder that cannot be read or trained."""
        self.opened: Opened = open_model(config, layout, path, setting, head, learns=learns)
        self.identity = transformers_identity(self.opened.hf, config.model.dtype)
        self.layout, self._dtype = layout, DTYPES[config.model.dtype]
        self._kernel: Kernel | None = None if config.train.attention == "auto" else config.train.attention
        # What a CPU rank put away would go into the same memory.
        self.moves = config.train.offload and layout.device.type == "cuda"
        self.shelf = Shelf(lambda: (tensor for _, tensor in self.opened.shards()))

    def infer(self, micro_batches: Sequence[MicroBatch], on_output: Callable[[MicroBatch, Tensor], None]) -> None:
        """Put micro-batches through, without gradients; `on_output` sees what comes out. Collective."""
        with torch.no_grad():
            for micro, own in self._together(micro_batches):
                output = self._forward(micro)
                if own:
                    on_output(micro, output)
        self.opened.rest()

    def _forward(self, micro: MicroBatch) -> Tensor:
        lay = Lay(micro.packing, self._kernel)
        return self.opened.forward(input_ids=micro.tokens, position_ids=micro.position_ids, lay=lay)

    def _together(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
        """The same number of micro-batches on every rank, for each pass gathers weights from all: of one token, and not
        a rank's own, where it has no more."""
        if self.layout.dp.size() == 1:
            yield from ((micro, True) for micro in micro_batches)
            return
        most = torch.tensor(len(micro_batches), device=self.layout.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.layout.dp)
        yield from ((micro, True) for micro in micro_batches)
        for _ in range(int(most) - len(micro_batches)):
            yield _nothing(self.layout.device), False

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its folder's name, as `exported`."""
        with self.aboard():
            yield from exported(self.opened, self._dtype)


class LearningNetwork(Network):
    """A model that learns, for `planned` updates."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        path: str,
        setting: str,
        head: Head = "tokens",
        *,
        settings: OptimizerConfig,
        planned: int,
    ) -> None:
        """As `Network`; makes the optimizer too."""
        super().__init__(config, layout, path, setting, head, learns=True)
        self.optimizer = Optimizer(settings, self.opened, layout)
        per_step = config.train.updates_per_step * config.train.epochs_per_step
        self._progress = Progress(settings, planned=planned, per_step=per_step)
        self._saving: Saving | None = None
        self.shelf = Shelf(self._kept)

    def learn(self, micro_batches: Sequence[MicroBatch], loss: OnOutput) -> None:
        """Leave the gradients of the sum of the losses, summed over the ranks, each on the rank that has the weight.
        Collective over all ranks."""
        self.optimizer.zero_grad()
        for micro, own in self._together(micro_batches):
            output = self._forward(micro)
            if own:
                loss(micro, output).backward()
            else:
                output.backward(torch.zeros_like(output))
        self.opened.rest()

    def without_adapters(self) -> None:
        """It learns without any."""

    def step(self) -> tuple[float, bool]:
        """Apply the gradients; returns their norm, and whether they were applied. Collective over all ranks."""
        self.secure()
        norm, applied = self.optimizer.step(self.rate)
        self.optimizer.zero_grad()
        self._progress.updates += 1
        return norm, applied

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self._progress.rate

    def save(self, path: str, more: dict[str, Any]) -> Callable[[], None]:
        """Begin to write a checkpoint, with `more` beside it; what is returned waits for its end. The one before is
        waited for."""
        if self._saving is not None:
            self._saving.over()
        rank, ranks = self.layout.rank, self.layout.dp.size()
        with self.aboard():
            boxes = [*self.optimizer.boxes(), *((generator(),) if rank == 0 else ())]
            state = {**self._progress.state(), "optimizer_updates": self.optimizer.updates, **more}
            self._saving = Saving(path, boxes, rank=rank, ranks=ranks, model=self.identity, state=state)
        return self._saving.wait

    def put_away(self) -> None:
        self.secure()
        super().put_away()

    def secure(self) -> None:
        """Return once what a checkpoint is written from may change."""
        if self._saving is not None:
            self._saving.secure()

    def load(self, path: str) -> dict[str, Any]:
        """Go on from a checkpoint, written on any number of ranks; returns all that was saved beside the weights.
        Collective."""
        self.secure()
        state, drawn = verify(path, self.identity), generator()
        with self.aboard():
            fill(path, [*self.optimizer.boxes(), drawn])
        self.optimizer.updates = state["optimizer_updates"]
        torch.set_rng_state(drawn.values)
        self._progress.restore(state)
        return state

    def _kept(self) -> Iterator[Tensor]:
        yield from (tensor for _, tensor in self.opened.shards())
        yield from self.optimizer.tensors()


def _nothing(device: torch.device) -> MicroBatch:
    """A micro-batch of one token, which nothing is learnt from."""
    sample = Sample(key=SampleKey(0, 0), tokens=np.zeros(1, np.int32), loss_mask=np.zeros(1, bool))
    return pack([sample], Denominator(tokens=1, sequences=1), device, 1)
