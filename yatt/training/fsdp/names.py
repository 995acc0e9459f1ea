"""Weights under the names of their folder: transformers keeps some of them in other shapes, such as all experts of a
layer as one tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from yatt.training.fsdp.model import Opened

LAYER = re.compile(r"\.\d+\.")


@torch.no_grad()
def exported(opened: Opened, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight in full under the name that its folder has, one layer in memory at a time: parameters in `dtype`,
    buffers as they are. Collective over the ranks: each must exhaust it."""
    parameters = {name for name, _ in opened.module.named_parameters()}
    for _, members in groupby(opened.tensors(), key=lambda named: _layer(named[0])):
        part = {}
        for name, tensor in members:
            whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
            part[opened.name(name)] = whole.to(dtype) if name in parameters else whole
        yield from revert_weight_conversion(opened.source, part).items()


def _layer(name: str) -> str:
    """What comes before a tensor's name within its layer."""
    found = LAYER.search(name)
    return name[: found.end()] if found else ""
