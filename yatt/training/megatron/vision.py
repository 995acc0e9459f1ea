"""A GPTModel that sees: transformers' vision tower on the first stage, whole on each of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from torch import Tensor

from yatt.training.images import PackedImages
from yatt.training.megatron.attention import Turned
from yatt.vision.tower import look


class SeeingModel(GPTModel):
    """Tokens that images take are embedded by the tower, and by nothing else: where they are is known from the images,
    whatever the tokens' ids. The sequence is cut for sequence parallelism after that."""

    def __init__(self, *given: Any, tower: torch.nn.Module | None, **more: Any) -> None:
        """`tower` is None on stages but the first."""
        super().__init__(*given, scatter_embedding_sequence_parallel=False, **more)
        if tower is not None:
            self.visual = tower

    def freeze_tower(self) -> None:
        """Let it learn nothing."""
        if self.pre_process:
            self.visual.requires_grad_(False)

    def forward(
        self, tokens: Tensor, position_ids: Tensor, mask: None, *, packed_seq_params: Turned, **more: Any
    ) -> Tensor:
        """As GPTModel's."""
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=tokens, position_ids=position_ids)  # [P, 1, H]
            hidden = self._with_images(hidden, packed_seq_params)
        output: Tensor = super().forward(
            tokens, position_ids, mask, decoder_input=hidden, packed_seq_params=packed_seq_params, **more
        )
        return output

    def _with_images(self, hidden: Tensor, turned: Turned) -> Tensor:
        """Put images in; what goes into the layers is left in `turned`."""
        turned.deepstack = ()
        if turned.images is None:
            return self._cut(hidden)
        images, zeros = turned.images, hidden.new_zeros(hidden.shape)
        features = look(self.visual, images.normalised(), images.sizes)
        hidden = self._cut(_placed(features.tokens, images, hidden))
        deepstack = [self._cut(_placed(feature, images, zeros)) for feature in features.deepstack]
        if deepstack:
            hidden, turned.deepstack = _apart(hidden, deepstack)
        return hidden

    def _cut(self, hidden: Tensor) -> Tensor:
        """This rank's tokens, under sequence parallelism."""
        cut: Tensor = scatter_to_sequence_parallel_region(hidden) if self.config.sequence_parallel else hidden
        return cut


def _placed(features: Tensor, images: PackedImages, hidden: Tensor) -> Tensor:
    """features [M, H] of the distinct images, in `hidden` [P, 1, H] wherever they are shown."""
    shown = features.index_select(0, images.rows).to(hidden.dtype)
    return hidden.index_copy(0, images.places, shown[:, None])


def _apart(hidden: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`hidden` as it is, and the features cut off their graph, into which their gradients go with that of `hidden`.

    Layers that are computed again for the backward pass each have one of their own, and none may lead into the tower,
    whose graph is there once."""
    leaves = tuple(feature.detach().requires_grad_(feature.requires_grad) for feature in features)
    return _join(hidden, leaves, *features), leaves


class _Join(torch.autograd.Function):
    """The gradient of what goes into the first layer comes after those of all layers: the leaves have theirs then."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, leaves: tuple[Tensor, ...], *features: Tensor) -> Tensor:
        ctx.leaves = leaves
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *(leaf.grad for leaf in ctx.leaves)


_join: Callable[..., Tensor] = _Join.apply
