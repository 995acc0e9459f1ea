"""A layer of Megatron-Core as its family has it: which norms there are, and where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from yatt.models.family import Config, Family
from yatt.training.megatron.attention import PackedAttention, Turned
from yatt.training.operations import ACTIVATIONS, gated, rms_norm

Add = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked so that its gradient is summed where the sequence is sharded."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **options: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.epsilon = eps
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


class OffsetNorm(RMSNorm):
    """A Gemma's: times 1 + weight, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), 1 + self.weight.float(), self.epsilon).to(x.dtype)


NORMS = {False: RMSNorm, True: OffsetNorm}
"""By `Family.unit_offset`."""


class Gate(MegatronModule):
    """What stands between both linear layers of a gated MLP: [T, 1, 2 n] -> [T, 1, n]."""

    def __init__(self, config: TransformerConfig, activation: str) -> None:
        super().__init__(config)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return gated(x, self.activation)


class WholeNorm(torch.nn.Module):
    """RMSNorm over all heads of q or of k [T, 1, heads, d], which tensor parallelism cuts by heads. `heads`: of all
    ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, heads: int) -> None:
        super().__init__()
        self.eps, self.size = eps, heads * hidden_size
        own = self.size // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.ones(own, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        # Each rank's output depends on all ranks' squares: they are summed on the way forth, their gradients back.
        squares = reduce_from_tensor_model_parallel_region(wide.square().sum((-2, -1), keepdim=True))
        mean = copy_to_tensor_model_parallel_region(squares) / self.size
        return (self.weight.view(x.shape[-2:]) * (wide * torch.rsqrt(mean + self.eps))).to(x.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """How a checkpoint holds the weight, cut by heads."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=get_tensor_model_parallel_group(),
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )


class Layer(TransformerLayer):
    """Megatron's layer, with norms between what attention and MLP return and the residual that it is added to."""

    def __init__(
        self, config: TransformerConfig, *given: Any, after: tuple[bool, bool], norm: type[RMSNorm], **more: Any
    ) -> None:
        super().__init__(config, *given, **more)
        if after[0]:
            self.post_attention_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)
            self.self_attn_bda = partial(_adding, self.post_attention_layernorm)
        if after[1]:
            self.post_mlp_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)
            self.mlp_bda = partial(_adding, self.post_mlp_layernorm)


class DeepLayer(TransformerLayer):
    """Megatron's layer; the first ones add what the tower saw deep inside to what they return (deepstack)."""

    def forward(self, *given: Any, packed_seq_params: Turned, **more: Any) -> tuple[Tensor, Any]:
        hidden, context = super().forward(*given, packed_seq_params=packed_seq_params, **more)
        deepstack = packed_seq_params.deepstack
        if self.layer_number <= len(deepstack):
            hidden = hidden + deepstack[self.layer_number - 1]
        return hidden, context


def _adding(norm: RMSNorm, training: bool, fused: bool) -> Add:
    """In place of Megatron's function that adds bias and residual; there is neither bias nor dropout here."""
    return lambda output, residual, dropout: residual + norm(output[0])


def layer_spec(config: Config, family: Family) -> ModuleSpec:
    """The modules of each layer. `config` is one that transformers completed."""
    parts, norm = family.layer(config), NORMS[family.unit_offset]
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    inner = spec.submodules
    inner.input_layernorm = norm if "input_norm" in parts else IdentityOp
    inner.pre_mlp_layernorm = norm if "mlp_input_norm" in parts else IdentityOp
    after = ("attention_norm" in parts, "mlp_norm" in parts)
    if any(after):
        spec.module, spec.params = Layer, {"after": after, "norm": norm}
    elif family.tower is not None:
        spec.module = DeepLayer
    inner.mlp.submodules.activation_func = ModuleSpec(module=Gate, params={"activation": family.activation})
    attention = inner.self_attention.submodules
    attention.core_attention = ModuleSpec(
        module=PackedAttention, params={"kinds": family.attention(config), "interleaved": family.interleaved}
    )
    if "q_norm" in parts and family.whole_qk_norm:
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        attention.q_layernorm = ModuleSpec(module=WholeNorm, params={"heads": heads})
        attention.k_layernorm = ModuleSpec(module=WholeNorm, params={"heads": groups})
    elif "q_norm" in parts:
        attention.q_layernorm = attention.k_layernorm = norm
    return spec
