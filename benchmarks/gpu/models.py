"""Models of known shapes with weights drawn from their names, wherever they are asked for: no folder of weights, and
both sides of a comparison have the same."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from yatt.config.facts import model_facts
from yatt.models.facts import ModelFacts
from yatt.models.family import tensors
from yatt.models.table import LANGUAGES
from yatt.training.megatron import network
from yatt.types import Denominator, Sample, SampleKey, Share

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "vocab_size": 151936}
QWEN2 |= {"max_position_embeddings": 32768, "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": True}


def _qwen2(hidden: int, inner: int, layers: int, heads: int, groups: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**QWEN2, **sizes, "num_attention_heads": heads, "num_key_value_heads": groups, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": _qwen2(896, 4864, 24, 14, 2),
    "1.5B": _qwen2(1536, 8960, 28, 12, 2),
    "7B": _qwen2(3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False),
    "toy": _qwen2(64, 128, 2, 4, 2, vocab_size=512),
}
"""Those of Qwen2.5."""
GAIN = 1.5
"""A matrix's numbers have this over the root of their row's length for a standard deviation."""


def write_shape(folder: Path, config: Mapping[str, Any], **changes: Any) -> str:
    """A model folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


class Drawn:
    """Stands for `yatt.training.megatron.convert.Reader`: weights by their names, on the device."""

    def __init__(self, path: str, setting: str = "model.path", device: torch.device | None = None) -> None:
        hf = AutoConfig.from_pretrained(path, local_files_only=True)
        family = LANGUAGES[hf.model_type]
        self.where = tensors(hf.to_dict(), family, family.causal)
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, name: str) -> Tensor:
        shape = self.where[name]
        random = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        numbers = torch.randn(shape, generator=random, device=self._device)
        if len(shape) == 1:  # norms and biases
            return numbers.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
        return numbers.mul_(GAIN * shape[-1] ** -0.5)


@contextmanager
def drawn() -> Iterator[None]:
    """Trainers opened meanwhile draw their weights."""
    with mock.patch.object(network, "Reader", Drawn):
        yield


def transformer(path: str, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """transformers' model of a folder, with the same weights."""
    read = Drawn(path, device=device)
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
    return model


def facts(path: str) -> ModelFacts:
    return model_facts(path, weights=False)


def update_flops(model: ModelFacts, lengths: list[int]) -> float:
    """Of a forward and a backward pass over sequences of these lengths, nothing computed twice: see ModelFacts."""
    matrices = model.layers * model.heads * model.head_dim / model.quadratic
    return 6 * matrices * sum(n + model.quadratic * n * n for n in lengths)


def lognormal(total: int, seed: int, *, median: float, sigma: float, most: int) -> list[int]:
    """Lengths that fill `total` tokens, the last one cut to fit."""
    random, lengths = np.random.default_rng(seed), list[int]()
    while (left := total - sum(lengths)) > 0:
        lengths.append(min(left, most, max(2, round(float(random.lognormal(np.log(median), sigma))))))
    if lengths[-1] < 2:
        lengths[-2:] = [lengths[-2] + lengths[-1]]
    return lengths


def samples(lengths: list[int], vocabulary: int, seed: int) -> list[Sample]:
    """Random tokens, all trained but the first of each."""
    random = np.random.default_rng(seed)
    return [
        Sample(
            key=SampleKey(uid, 0),
            tokens=random.integers(3, vocabulary, n).astype(np.int32),
            loss_mask=np.arange(n) > 0,
            rollout_logprobs=np.zeros(n, dtype=np.float32),
            advantage=float(random.normal()),
        )
        for uid, n in enumerate(lengths)
    ]


def denominator(batch: list[Sample]) -> Denominator:
    return Denominator(tokens=sum(s.trained_tokens for s in batch), sequences=len(batch))


def share(*micro_batches: list[Sample]) -> list[Share]:
    """One update of these, as the one controller of one rank sends it."""
    total = denominator([sample for micro in micro_batches for sample in micro])
    parts = tuple(tuple(micro) for micro in micro_batches)
    return [Share(step=1, rank=0, controller=0, senders=(0,), updates=(parts,), denominators=(total,))]


def activations(model: ModelFacts, tokens: int, recompute: str) -> float:
    """Bytes of half precision that so many tokens leave behind for the backward pass: of a layer the residual before
    each norm, each norm's output, queries, keys and values before and after they are turned, attention's output, the
    two halves of the MLP's input, the activation and the product. With recomputing, each layer's input, and one layer's
    inside."""
    q, k = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer = 4 * model.hidden_size + 3 * q + 3 * k + 4 * model.intermediate_size
    if recompute == "full":
        return 2.0 * tokens * (model.layers * model.hidden_size + layer)
    return 2.0 * tokens * model.layers * layer
