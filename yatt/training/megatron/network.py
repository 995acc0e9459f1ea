"""A model on one rank: what passes through it, where its memory is, and how it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from yatt.config.schema import Config, LoraConfig, OptimizerConfig
from yatt.models.table import LANGUAGES
from yatt.training.batch import MicroBatch
from yatt.training.identity import identity
from yatt.training.kernels import Kernel
from yatt.training.layout import Layout
from yatt.training.megatron import checkpoint, model, optimizer
from yatt.training.megatron.attention import Rotary
from yatt.training.megatron.convert import Converter, Reader
from yatt.training.megatron.lora import Adapters
from yatt.training.megatron.optimizer_state import Places
from yatt.training.megatron.vision import SeeingModel
from yatt.training.memory import Resident, Shelf
from yatt.training.model import Head, Model, OnOutput
from yatt.training.saving import Saving
from yatt.training.schedule import Progress


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
        lora: LoraConfig | None = None,
    ) -> None:
        """Collective over the pipeline. Raises ConfigError for a folder that cannot be read or trained."""
        self.hf = model.read_hf_config(path, setting)
        self.identity = identity(self.hf, config.model.dtype, lora)
        self.layout, self._cap = layout, LANGUAGES[self.hf.model_type].soft_cap(self.hf.to_dict())
        self._predicts = head == "tokens" and layout.last_stage
        self._kernel: Kernel | None = None if config.train.attention == "auto" else config.train.attention
        self._rotary = Rotary(self.hf, layout.device, model.DTYPES[config.model.dtype])
        self.module: Any = model.build(self.hf, model.transformer_config(self.hf, config), layout, head)
        reader = Reader(path, setting)
        self.converter = Converter(self.hf, self.module, layout, head, names=reader.where)
        self.converter.load(reader)
        self.module.requires_grad_(learns)
        if isinstance(self.module, SeeingModel) and config.train.vision == "frozen":
            self.module.freeze_tower()
        # What a CPU rank put away would go into the same memory.
        self.moves = config.train.offload and layout.device.type == "cuda"
        self.shelf = Shelf(self.module.parameters)

    def infer(self, micro_batches: Sequence[MicroBatch], on_output: Callable[[MicroBatch, Tensor], None]) -> None:
        """Put micro-batches through, without gradients; `on_output` sees what comes out on the last stage."""

        def seen(micro: MicroBatch, output: Tensor) -> Tensor:
            on_output(micro, output)
            return output.new_zeros(())

        with torch.no_grad():
            self._run(micro_batches, seen, forward_only=True)

    def _run(self, micro_batches: Sequence[MicroBatch], loss: OnOutput, *, forward_only: bool) -> None:
        if not micro_batches:
            return

        def forward(batches: Iterator[MicroBatch], part: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
            micro = next(batches)
            packing = self._rotary.turned(micro, self._kernel)
            output = part(micro.tokens, micro.position_ids, None, packed_seq_params=packing)
            if self._predicts:
                output = model.without_padding(model.soft_capped(output, self._cap), self.hf, self.layout)
            # A loss, a number of tokens (which would divide it again: none), and nothing to log.
            none = torch.zeros((), dtype=torch.int, device=output.device)
            return output, lambda output: (loss(micro, output), none, {})

        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(micro_batches),
            model=[self.module],
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0].tokens.shape[1],
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face name, as `Converter.export`."""
        with self.aboard():
            yield from self.converter.export()


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
        lora = config.train.lora
        super().__init__(config, layout, path, setting, head, learns=not lora.rank, lora=lora)
        self._adapters = Adapters(lora, self.converter, config.run.seed) if lora.rank else None
        if self._adapters is not None and config.train.recompute == "full":
            # What is computed again has a gradient only where its input has one, and nothing before the layers learns.
            self.module.decoder.register_forward_pre_hook(_follow_input, with_kwargs=True)
        self.bare, self.module = self.module, optimizer.wrap(self.module)
        self.bare.config.finalize_model_grads_func = _reduce
        self.optimizer = optimizer.build(settings, model.DTYPES[config.model.dtype], self.module)
        self._settings = settings
        per_step = config.train.updates_per_step * config.train.epochs_per_step
        self._progress = Progress(settings, planned=planned, per_step=per_step)
        self._saving: Saving | None = None
        self.shelf = Shelf(self._held, lambda: (buffer.grad_data for buffer in self.module.buffers))

    def learn(self, micro_batches: Sequence[MicroBatch], loss: OnOutput) -> None:
        """Leave the reduced gradients of the sum of the losses in the model's buffers. Collective over all ranks."""
        self.module.zero_grad_buffer()
        self.optimizer.zero_grad()
        if micro_batches:
            self._run(micro_batches, loss, forward_only=False)
        else:
            _reduce([self.module])

    def step(self) -> tuple[float, bool]:
        """Apply the gradients; returns their norm, and whether they were applied. Collective over all ranks."""
        self.secure()
        norm, applied = optimizer.step(self.optimizer, self.rate, self._settings.vision_rate)
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
        state = {**self._progress.state(), **more}
        with self.aboard():
            self._saving = checkpoint.save(path, self._places(), self.optimizer, state, self.identity, self.layout)
        return self._saving.wait

    def put_away(self) -> None:
        self.secure()
        super().put_away()

    def secure(self) -> None:
        """Return once what a checkpoint is written from may change."""
        if self._saving is not None:
            self._saving.secure()

    def load(self, path: str) -> dict[str, Any]:
        """Go on from a checkpoint; returns all that was saved beside the weights. Collective."""
        self.secure()
        with self.aboard():
            state = checkpoint.load(path, self._places(), self.optimizer, self.identity)
        self._progress.restore(state)
        return state

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """As of any model; what adapters add is in the weights."""
        if self._adapters is None:
            yield from super().export()
            return
        with self.aboard():
            yield from self.converter.export(self._adapters.merged)

    def without_adapters(self) -> Model | None:
        """The model as it was before it learnt, without a copy of it; None where it learns without adapters."""
        return None if self._adapters is None else WithoutAdapters(self, self._adapters)

    def _places(self) -> Places:
        """Where what learns, or without adapters every weight, has its place in a checkpoint."""
        if self._adapters is None:
            return checkpoint.places_of_model(self.bare, self.layout)
        return self._adapters.places()

    def _held(self) -> Iterable[Tensor]:
        yield from self.bare.parameters()
        yield from optimizer.tensors(self.optimizer)


class WithoutAdapters:
    """Implements `yatt.training.model.Model`: the one that adapters stand beside. Its memory is theirs."""

    def __init__(self, network: LearningNetwork, adapters: Adapters) -> None:
        self._network, self._adapters = network, adapters
        self.identity = network.identity | {"lora": None}
        self.aboard, self.put_away, self.take_back = network.aboard, network.put_away, network.take_back

    def infer(self, micro_batches: Sequence[MicroBatch], on_output: Callable[[MicroBatch, Tensor], None]) -> None:
        with self._adapters.off():
            self._network.infer(micro_batches, on_output)

    def export(self) -> Iterator[tuple[str, Tensor]]:
        with self.aboard():
            yield from self._network.converter.export()


def _follow_input(decoder: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    hidden = named.get("hidden_states")
    if hidden is not None and torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()


def _reduce(
    models: list[torch.nn.Module],
    num_tokens: Tensor | None = None,
    pg_collection: Any = None,
    force_all_reduce: bool = False,
) -> None:
    """Sum gradients over the replicas and leave them so: the loss was divided by its denominator already."""
    finalize_model_grads(models, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
