"""A model of transformers from a folder, whole or sharded over the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from yatt.config.facts import HEADS, architecture_of, no_folder
from yatt.config.folders import DERIVED
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.models.family import SCORE
from yatt.training.fsdp.attention import NAME
from yatt.training.layout import Layout
from yatt.training.model import Head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


class ValueHead(nn.Module):
    """A decoder with one float32 number per token on top, in place of the output layer: the weights [1, H] are zeros
    where the folder has none."""

    def __init__(self, decoder: nn.Module, size: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.score = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, **given: Any) -> Tensor:
        hidden = self.decoder(**given).last_hidden_state
        return F.linear(hidden.float(), self.score.weight.float())


class Opened:
    """A model on this rank. `module` is what is called and trained; `source` is transformers' own, which knows how
    its tensors are spelt in a folder, and `prefix` where the decoder of a value head stands in it."""

    def __init__(self, hf: Any, source: PreTrainedModel, module: nn.Module) -> None:
        self.hf, self.source, self.module = hf, source, module
        self.prefix = source.base_model_prefix if module is not source else ""

    def name(self, name: str) -> str:
        """A parameter's name in transformers' model, by its name in `module`."""
        return name.replace("decoder.", f"{self.prefix}.", 1) if self.prefix else name

    def forward(self, **given: Any) -> Tensor:
        """Logits [1, T, V], or values [1, T, 1]."""
        output = self.module(**given, use_cache=False)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def rest(self) -> None:
        """Keep no more than this rank's shards: what a forward pass has gathered could not be seen to be old."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def shards(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's parts of all parameters, and the buffers."""
        yield from ((name, local(p)) for name, p in self.module.named_parameters())
        yield from self.module.named_buffers()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, each once, and buffers that a folder has."""
        yield from self.module.named_parameters()
        kept = self.module.state_dict(keep_vars=True).keys()
        yield from ((name, tensor) for name, tensor in self.module.named_buffers() if name in kept)


def read_hf_config(path: str, setting: str) -> Any:
    """The Hugging Face config in `path`. Raises ConfigError where it cannot be read."""
    if not os.path.isdir(path):  # else transformers takes it for a name on the Hub
        raise ConfigError(no_folder(setting, path))
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except UNREADABLE as error:
        raise ConfigError(f"{setting}={path}: no model config can be read there: {_line(error)}") from error


def open_model(config: Config, layout: Layout, path: str, setting: str, head: Head, *, learns: bool) -> Opened:
    """Collective. The model of a folder, each of its tensors cut by rows over all ranks. Rank 0 reads the files and
    sends every rank its shards.

    In float32 on one rank nothing is cut. A model that learns has float32 weights, which are computed with in the
    run's dtype; a frozen one has them in that dtype. Raises ConfigError for a folder that cannot be read or trained."""
    hf, dtype = read_hf_config(path, setting), DTYPES[config.model.dtype]
    reads = layout.dp.rank() == 0
    source, failure = None, None
    try:
        source = _read(hf, path, setting) if reads else _empty(hf, path, setting)
        _check(source, config, f"{setting}={path}")
    except ConfigError as error:
        failure = str(error)
    failures: list[str | None] = [None] * layout.dp.size()
    dist.all_gather_object(failures, failure, group=layout.dp)
    if source is None or any(failures):
        raise ConfigError(next(filter(None, failures)))
    spelling = [source._weight_conversions if reads else None]
    dist.broadcast_object_list(spelling, src=0, group=layout.dp)
    source._weight_conversions = spelling[0]  # type: ignore[assignment]
    opened = Opened(hf, source, _headed(source, head, hf))
    module = opened.module
    module.requires_grad_(learns).eval()  # without dropout
    if not learns:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    if config.train.recompute == "full" and learns:
        for layer in _layers(source):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    _place(opened, layout, dtype)
    return opened


def _read(hf: Any, path: str, setting: str) -> PreTrainedModel:
    """The model with its weights, in float32."""
    kind = _kind(hf)
    try:
        model, told = kind.from_pretrained(path, config=hf, output_loading_info=True, **_options())
    except UNREADABLE as error:
        raise ConfigError(f"{setting}={path}: transformers cannot load it: {_line(error)}") from error
    for keys, what in (("missing_keys", "its weight files have no"), ("unexpected_keys", "its model has no")):
        names = sorted(name for name in told[keys] if not name.endswith(DERIVED))
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise ConfigError(f"{setting}={path}: {what} {names[0]}{more}; save the model with save_pretrained")
    loaded: PreTrainedModel = model
    return loaded


def _empty(hf: Any, path: str, setting: str) -> PreTrainedModel:
    """The same model without memory."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = _kind(hf).from_config(hf, dtype=torch.float32, attn_implementation=NAME)
        return model
    except UNREADABLE as error:
        raise ConfigError(f"{setting}={path}: transformers cannot build it: {_line(error)}") from error


def _options() -> dict[str, Any]:
    return {"dtype": torch.float32, "attn_implementation": NAME, "trust_remote_code": False, "local_files_only": True}


def _kind(hf: Any) -> Any:
    classifies = architecture_of(hf.to_dict()).endswith(HEADS["classifier"])
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def _check(source: PreTrainedModel, config: Config, at: str) -> None:
    """What `yatt.config` cannot see without transformers."""
    kernel = config.train.attention
    sinks = any(name.endswith("sinks") for name, _ in source.named_parameters())
    if sinks and kernel not in ("auto", "buckets"):
        raise ConfigError(f"train.attention={kernel} cannot give scores to attention sinks, as in {at}; use auto")


def _headed(source: PreTrainedModel, head: Head, hf: Any) -> nn.Module:
    if head == "tokens":
        return source
    made = ValueHead(source.base_model, hf.hidden_size)
    weight = dict(source.named_parameters()).get(SCORE)
    made.score.weight = nn.Parameter(made.score.weight.to(source.device) if weight is None else weight)
    return made


def _layers(source: PreTrainedModel) -> list[nn.Module]:
    """Parts that are gathered, and computed again, one at a time."""
    names = set(source._no_split_modules or ())
    return [module for module in source.modules() if type(module).__name__ in names]


def _place(opened: Opened, layout: Layout, dtype: torch.dtype) -> None:
    """Cut the model and set its tensors on the device: one layer after another, so that no rank but the first ever has
    more than one of them whole."""
    module, ranks = opened.module, layout.dp.size()
    if ranks == 1:
        module.to(layout.device)
        if dtype == torch.float32:
            return
    mesh = DeviceMesh.from_group(layout.dp, layout.device.type)
    policy, sent = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32), dict[Tensor, nn.Parameter]()
    for part in (*_layers(opened.source), module):
        if ranks > 1:
            _receive(part, layout, sent)
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # Gradients are summed, never averaged: the loss carries its own denominator.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def _receive(part: nn.Module, layout: Layout, sent: dict[Tensor, nn.Parameter]) -> None:
    """Set tensors that are not cut yet to what rank 0 has. A parameter in two places stays one: `sent` has the new one
    of each old one."""

    def receive(tensor: Tensor) -> Tensor:
        whole = tensor.to(layout.device) if layout.dp.rank() == 0 else torch.empty_like(tensor, device=layout.device)
        whole = whole.contiguous()
        dist.broadcast(whole, src=0, group=layout.dp)
        return whole

    for module in part.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if parameter not in sent:
                sent[parameter] = nn.Parameter(receive(parameter), requires_grad=parameter.requires_grad)
                sent[sent[parameter]] = sent[parameter]
            module._parameters[name] = sent[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer not in sent:
                received = receive(buffer)
                # A buffer is never looked up as a parameter; it is kept, so that it is not sent again.
                module._buffers[name] = sent[received] = received  # type: ignore[assignment]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, from where it lies."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def row_range(tensor: DTensor) -> tuple[int, int]:
    """The first row of this rank's part, and how many there are: parts are cut as `torch.chunk` does."""
    ranks, rows = tensor.device_mesh.size(), tensor.shape[0]
    size = -(-rows // ranks)
    start = min(rows, size * tensor.device_mesh.get_local_rank())
    return start, min(size, rows - start)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
