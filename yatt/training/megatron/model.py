"""A GPTModel of Megatron-Core from a Hugging Face config: Llama, Qwen2 and Qwen3, dense."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import VocabParallelEmbedding, gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor
from transformers import AutoConfig

from yatt.config.facts import no_folder, padding_row
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.training.layout import Layout
from yatt.training.megatron.attention import PackedAttention
from yatt.training.model import Head

PADDED = -1e30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# (bias on q, k and v; norm on q and k)
ARCHITECTURES = {"llama": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
# Kernels of TransformerEngine and Apex, and what is not in these models.
UNUSED = (
    *("bias_activation_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "apply_rope_fusion"),
    *("gradient_accumulation_fusion", "persist_layer_norm", "add_bias_linear"),
    *("hidden_dropout", "attention_dropout"),
)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked so that its gradient is summed where the sequence is sharded."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **options: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class ValueHead(torch.nn.Module):
    """In place of the output layer: one float32 number per token, from a weight [1, H] that every rank has whole."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))
        self._sharded = config.sequence_parallel

    def forward(self, hidden: Tensor, weight: None = None, runtime_gather_output: None = None) -> tuple[Tensor, None]:
        if self._sharded:
            # What follows is the same on all ranks of the group, and so is its gradient.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return F.linear(hidden.float(), self.weight.float()), None


def read_hf_config(path: str, setting: str = "model.path") -> Any:
    """The Hugging Face config in `path`. Raises ConfigError for an architecture that cannot be trained; what else it
    may say, `yatt.config.folders` has seen."""
    if not os.path.isdir(path):  # else transformers takes it for a name on the Hub
        raise ConfigError(no_folder(setting, path))
    try:
        hf = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{setting}={path}: no model config can be read there: {error}") from error
    if hf.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{setting}={path}: model_type={hf.model_type!r} cannot be trained; use {', '.join(ARCHITECTURES)}"
        )
    return hf


def shard_rows(hf: Any, layout: Layout) -> int:
    """Rows of the vocabulary that each rank has. Where they do not come out even, the last ones are padding."""
    return -(-hf.vocab_size // layout.tp.size())


def without_padding(logits: Tensor, hf: Any, layout: Layout) -> Tensor:
    """This rank's logits [1, P, V / tp], those of padded rows as good as minus infinity: no softmax sees them, and no
    gradient comes from them. In place."""
    rows = shard_rows(hf, layout)
    real = hf.vocab_size - layout.tp.rank() * rows
    if real < rows:
        logits[..., max(0, real) :] = PADDED  # finite: an entropy multiplies it by 0
    return logits


def head_size(hf: Any) -> int:
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


def transformer_config(hf: Any, config: Config) -> TransformerConfig:
    """Megatron's settings for this model and layout. Gradients are summed, never averaged: the loss carries its own
    denominator."""
    qkv_bias, qk_norm = ARCHITECTURES[hf.model_type]
    dtype = DTYPES[config.model.dtype]
    train = config.train

    def unset(weight: Tensor) -> Tensor:
        return weight  # every weight is loaded, none is drawn

    return TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_size(hf),
        ffn_hidden_size=hf.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_qkv_bias=qkv_bias,
        qk_layernorm=qk_norm,
        tensor_model_parallel_size=train.tp,
        pipeline_model_parallel_size=train.pp,
        sequence_parallel=train.sequence_parallel and train.tp > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        **dict.fromkeys(("init_method", "output_layer_init_method", "embedding_init_method"), unset),
        **dict.fromkeys(UNUSED, False),
        calculate_per_token_loss=True,
        # Pipeline stages exchange the length of each micro-batch; Megatron asks for this dispatcher with it.
        variable_seq_lengths=train.pp > 1,
        moe_token_dispatcher_type="alltoall",
    )


def build(hf: Any, settings: TransformerConfig, layout: Layout, head: Head = "tokens") -> GPTModel:
    """This rank's part of the model, weights not yet set. Rotary embedding is left to the core attention."""
    layer = get_gpt_layer_local_spec(qk_layernorm=settings.qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if settings.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    block = TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(settings), layer_norm=RMSNorm)
    model = GPTModel(
        settings,
        block,
        vocab_size=settings.tensor_model_parallel_size * shard_rows(hf, layout),
        max_sequence_length=hf.max_position_embeddings,
        position_embedding_type="none",
        share_embeddings_and_output_weights=hf.tie_word_embeddings and head == "tokens",
        pre_process=layout.first_stage,
        post_process=layout.last_stage,
        parallel_output=True,
    )
    if head == "value" and layout.last_stage:
        model.output_layer = ValueHead(settings)
    if layout.first_stage:
        _hold_padding(model.embedding.word_embeddings, hf, layout)
    return model.to(layout.device)


def _hold_padding(embedding: VocabParallelEmbedding, hf: Any, layout: Layout) -> None:
    """Give the input embedding of `pad_token_id` no gradient, as in Hugging Face's models (`torch.nn.Embedding` with a
    `padding_idx`). Where the output layer has the same weights, its use of them keeps its gradient."""
    pad = padding_row(getattr(hf, "pad_token_id", None), hf.vocab_size)
    if pad is None:
        return

    def hold(module: torch.nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        padded = given[0] == pad
        if module.reduce_scatter_embeddings:  # sequence parallel: [P, 1] cut by tokens, instead of [1, P]
            padded = padded.transpose(0, 1).chunk(layout.tp.size())[layout.tp.rank()]
        return torch.where(padded[..., None], output.detach(), output)

    embedding.register_forward_hook(hold)
