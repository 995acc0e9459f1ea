"""RMSNorm, rotary embedding and gated activations with backward passes of their own.

On a CPU such operations are bound by memory. What autograd puts together from smaller ones goes through it two to three
times as often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n] over the root of the mean of its squares, times weight [n]."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return _rms_norm(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """Its backward pass is that of a LayerNorm whose mean is 0, for which torch has one kernel, and takes back what
    that does for the mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares: Tensor = torch.linalg.vecdot(x, x)
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        of_mean = (grad @ weight)[..., None].mul_(inverse).div_(x.shape[-1])
        return of_x.add_(of_mean), of_weight, None


_rms_norm: Callable[[Tensor, Tensor, float], Tensor] = _RMSNorm.apply


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of the first n dimensions of each head; the others stay.

    x [T, heads, d]; cos and sin [T, 1, n] as `rotary_tables` lays them out. A pair is a dimension and the one n / 2 on,
    or its neighbour where they are interleaved."""
    turned = cos.shape[-1]
    if turned == x.shape[-1]:
        return _rotate(x, cos, sin, interleaved)
    own, rest = x.split([turned, x.shape[-1] - turned], dim=-1)
    return torch.cat([_rotate(own, cos, sin, interleaved), rest], dim=-1)


def rotary_tables(cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """cos and sin [..., n / 2], one for each pair -> [..., n], one for each dimension; the sine of a pair's first one
    is negative."""
    if interleaved:
        return cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class _Rotate(torch.autograd.Function):
    """x cos + swapped x sin; its backward pass turns by the opposite angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return (x * cos).addcmul_(_swapped(x, interleaved), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return (grad * cos).addcmul_(_swapped(grad, ctx.interleaved), sin, value=-1), None, None, None


_rotate: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = _Rotate.apply


def _swapped(x: Tensor, interleaved: bool) -> Tensor:
    """Both sides of each pair in each other's place."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else x.roll(x.shape[-1] // 2, dims=-1)


@dataclass(frozen=True, slots=True)
class Activation:
    """`function` of x, and `differentiate`, which writes the gradient of x (of the function's gradient and x) into a
    tensor."""

    function: Callable[[Tensor], Tensor]
    differentiate: Callable[[Tensor, Tensor, Tensor], object]


ACTIVATIONS = {
    "silu": Activation(F.silu, lambda grad, x, out: torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)),
    "gelu_pytorch_tanh": Activation(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda grad, x, out: torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out),
    ),
}


def gated(x: Tensor, activation: Activation) -> Tensor:
    """The activation of the first half of x [..., 2 n], times the second half."""
    return _gated(x, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        activated = activation.function(gate)
        ctx.save_for_backward(x, activated)
        ctx.activation = activation
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, activated = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(grad, activated, out=of_up)
        ctx.activation.differentiate(grad * up, gate, of_gate)
        return result, None


_gated: Callable[[Tensor, Activation], Tensor] = _Gated.apply
