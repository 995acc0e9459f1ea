"""A GPTModel of Megatron-Core from a Hugging Face config, of a family in `yatt.models`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import VocabParallelEmbedding, gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor
from transformers import AutoConfig

from yatt.config.facts import no_folder, padding_row
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.models.family import head_size
from yatt.models.table import FAMILIES, LANGUAGES
from yatt.training.layout import Layout
from yatt.training.megatron.layer import NORMS, layer_spec
from yatt.training.megatron.vision import SeeingModel
from yatt.training.model import Head
from yatt.vision.tower import open_tower

PADDED = -1e30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Kernels of TransformerEngine and Apex, and what is not in these models.
UNUSED = (
    *("bias_activation_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "apply_rope_fusion"),
    *("gradient_accumulation_fusion", "persist_layer_norm", "add_bias_linear"),
    *("hidden_dropout", "attention_dropout"),
)
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


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
    """The Hugging Face config in `path`, of a model that sees that of its language model, with the tower's beside it as
    `vision_config`. Raises ConfigError for an architecture that cannot be trained; what else it may say,
    `yatt.config.folders` has seen."""
    if not os.path.isdir(path):  # else transformers takes it for a name on the Hub
        raise ConfigError(no_folder(setting, path))
    try:
        hf = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{setting}={path}: no model config can be read there: {error}") from error
    if hf.model_type not in FAMILIES:
        raise ConfigError(
            f"{setting}={path}: model_type={hf.model_type!r} cannot be trained; use {', '.join(FAMILIES)}"
        )
    if FAMILIES[hf.model_type].tower is None:
        return hf
    language = hf.text_config
    language.tie_word_embeddings, language.vision_config = hf.tie_word_embeddings, hf.vision_config
    return language


def shard_rows(hf: Any, layout: Layout) -> int:
    """Rows of the vocabulary that each rank has. Where they do not come out even, the last ones are padding."""
    rows: int = -(-hf.vocab_size // layout.tp.size())
    return rows


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits within the bound that their family has, if it has one."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def without_padding(logits: Tensor, hf: Any, layout: Layout) -> Tensor:
    """This rank's logits [1, P, V / tp], those of padded rows as good as minus infinity: no softmax sees them, and no
    gradient comes from them. In place."""
    rows = shard_rows(hf, layout)
    real = hf.vocab_size - layout.tp.rank() * rows
    if real < rows:
        logits[..., max(0, real) :] = PADDED  # finite: an entropy multiplies it by 0
    return logits


def transformer_config(hf: Any, config: Config) -> TransformerConfig:
    """Megatron's settings for this model and layout. Gradients are summed, never averaged: the loss carries its own
    denominator."""
    described = hf.to_dict()
    family = LANGUAGES[hf.model_type]
    layer = family.layer(described)
    dtype = DTYPES[config.model.dtype]
    train = config.train

    def unset(weight: Tensor) -> Tensor:
        return weight  # every weight is loaded, none is drawn

    return TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_size(described, family),
        ffn_hidden_size=hf.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        gated_linear_unit=True,
        # Has each MLP build the activation of its spec, whatever the name says; the other must then be one of three.
        use_te_activation_func=True,
        activation_func=F.silu,
        add_qkv_bias="qkv_bias" in layer,
        # Megatron sums the gradients of norms that each rank applies to its own heads.
        qk_layernorm="q_norm" in layer and not family.whole_qk_norm,
        tensor_model_parallel_size=train.tp,
        pipeline_model_parallel_size=train.pp,
        sequence_parallel=train.sequence_parallel and train.tp > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        **dict.fromkeys(("init_method", "output_layer_init_method", "embedding_init_method"), unset),
        **dict.fromkeys(UNUSED, False),
        **(RECOMPUTED if train.recompute == "full" else {}),
        calculate_per_token_loss=True,
        # Pipeline stages exchange the length of each micro-batch; Megatron asks for this dispatcher with it.
        variable_seq_lengths=train.pp > 1,
        moe_token_dispatcher_type="alltoall",
    )


def build(hf: Any, settings: TransformerConfig, layout: Layout, head: Head = "tokens") -> GPTModel:
    """This rank's part of the model, weights not yet set. Rotary embedding is left to the core attention."""
    family = LANGUAGES[hf.model_type]
    spec = layer_spec(hf.to_dict(), family)
    norm = NORMS[family.unit_offset]
    block = TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(settings), layer_norm=norm)
    make = GPTModel if family.tower is None else partial(SeeingModel, tower=_tower(hf, settings, layout))
    model = make(
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
        _scale(model.embedding.word_embeddings, hf)
        _hold_padding(model.embedding.word_embeddings, hf, layout)
    return model.to(layout.device)


def _tower(hf: Any, settings: TransformerConfig, layout: Layout) -> torch.nn.Module | None:
    """The first stage has it, whole on each of its ranks."""
    if not layout.first_stage:
        return None
    return open_tower(hf.vision_config, settings.params_dtype, recompute=settings.recompute_granularity == "full")


def _scale(embedding: VocabParallelEmbedding, hf: Any) -> None:
    """Multiply embeddings as their family does, in their own precision."""
    scale = LANGUAGES[hf.model_type].embedding_scale(hf.to_dict())
    if scale != 1:
        rounded = torch.tensor(scale, dtype=embedding.weight.dtype).item()
        embedding.register_forward_hook(lambda module, given, output: output * rounded)


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
