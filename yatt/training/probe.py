"""The fixed tokens by which an engine is held against the trainer after every set of new weights."""

from __future__ import annotations

import numpy as np
import torch.distributed as dist
from torch import Tensor

from yatt.config.image_tokens import image_tokens
from yatt.config.models import policy_facts
from yatt.config.schema import Config

TOKENS = 16


def probe_tokens(config: Config) -> np.ndarray:
    """[n] int32, drawn from the whole vocabulary, always the same: no text, so that the model is not sure how it goes
    on, and what it would say depends on every weight. None is one of an image's."""
    facts = policy_facts(config, weights=False)
    count = min(TOKENS, config.model.context_length - 1)
    tokens = np.setdiff1d(np.arange(facts.vocab_size), image_tokens(config.model.path) or ())
    return np.random.default_rng(0).choice(tokens, count).astype(np.int32)


def likeliest(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    """logits [n, V / tp] -> [n], the log-probability of the likeliest token."""
    logits = logits.detach().float()
    top = logits.amax(-1)
    if group.size() > 1:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    total = (logits - top[:, None]).exp().sum(-1)
    if group.size() > 1:
        dist.all_reduce(total, group=group)
    return -total.log()
