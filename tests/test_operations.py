"""Operations with backward passes of their own, against the same put together by autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved_rotary
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from yatt.training.operations import ACTIVATIONS, gated, rms_norm, rotary_tables, rotate

Operation = Callable[..., Tensor]


def outcome(operation: Operation, *inputs: Tensor) -> list[Tensor]:
    """What comes out, and the gradient of each input under the same gradient of the outcome."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = operation(*leaves)
    result.backward(torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view(result.shape))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def alike(ours: Operation, theirs: Operation, *inputs: Tensor) -> None:
    """Equal up to rounding of float32, where the other is worked out in float64."""
    wide = outcome(theirs, *(tensor.double() for tensor in inputs))
    for mine, expected in zip(outcome(ours, *inputs), wide, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(7, 1, 48), (7, 1, 3, 16)])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_rms_norm(shape: tuple[int, ...], shift: float) -> None:
    """Far from a mean of 0 too, of which an RMSNorm, unlike a LayerNorm, knows nothing."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape) + shift, torch.rand(shape[-1]) + 0.5
    alike(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), x, weight)


def test_rms_norm_of_a_view_with_gaps() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3, 32), torch.rand(16)
    alike(
        lambda x, w: rms_norm(x[..., 8:24], w, 1e-6),
        lambda x, w: F.rms_norm(x[..., 8:24], w.shape, w, 1e-6),
        x,
        weight,
    )


def test_rms_norm_by_hand() -> None:
    """x = (3, 4): the root of the mean square is sqrt(12.5). d y_0 / d x = w_0 (1 / r - x_0 x / (2 r^3))."""
    x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([2.0, 1.0])
    y = rms_norm(x, weight, 0.0)
    r = 12.5**0.5
    assert y[0].tolist() == pytest.approx([6 / r, 4 / r])
    y[0, 0].backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([2 / r - 2 * 9 / (2 * r**3), -2 * 12 / (2 * r**3)])


def angles(tokens: int, pairs: int) -> Tensor:
    return torch.arange(tokens, dtype=torch.float32)[:, None, None] / 3 * 10.0 ** -torch.arange(pairs)


@pytest.mark.parametrize("size", [16, 8])
def test_rotary_halves(size: int) -> None:
    """Against transformers, and with only some dimensions turned, of which the others stay."""
    torch.manual_seed(0)
    turned = angles(7, size // 2)

    def theirs(x: Tensor) -> Tensor:
        wide = torch.cat([turned, turned], -1)[:, 0].to(x)[None]
        own = x[..., :size].transpose(0, 1)[None]
        own = apply_rotary_pos_emb(own, own, wide.cos(), wide.sin())[0][0].transpose(0, 1)
        return torch.cat([own, x[..., size:]], -1)

    tables = rotary_tables(turned.cos(), turned.sin(), interleaved=False)
    alike(lambda x: rotate(x, *tables, False), theirs, torch.randn(7, 3, 16))


def test_rotary_neighbours() -> None:
    torch.manual_seed(0)
    turned = angles(7, 8)

    def theirs(x: Tensor) -> Tensor:
        wide = turned.repeat_interleave(2, -1)[:, 0].to(x)[None]
        own = x.transpose(0, 1)[None].to(x)
        # Its own works in float32.
        first, second = own[..., ::2], own[..., 1::2]
        swapped = torch.stack([-second, first], -1).flatten(-2)
        result = own * wide.cos()[:, None] + swapped * wide.sin()[:, None]
        expected = interleaved_rotary(own.float(), own.float(), wide.cos().float(), wide.sin().float())[0]
        assert torch.allclose(result.float(), expected, atol=1e-5)
        return result[0].transpose(0, 1)

    tables = rotary_tables(turned.cos(), turned.sin(), interleaved=True)
    alike(lambda x: rotate(x, *tables, True), theirs, torch.randn(7, 3, 16))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activations(name: str) -> None:
    torch.manual_seed(0)
    functions = {"silu": F.silu, "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh")}

    def theirs(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return functions[name](gate) * up

    alike(lambda x: gated(x, ACTIVATIONS[name]), theirs, 3 * torch.randn(5, 1, 24))
