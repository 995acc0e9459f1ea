"""Weights: a model's export into one flat buffer on the device, which another process takes in place, and the way of
today, through the host's shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import Tensor

from benchmarks.gpu import models, sides
from benchmarks.gpu.device import copy_rate, seconds
from benchmarks.gpu.part import Bench, Section
from benchmarks.gpu.receiver import checksum, receive
from yatt.training.layout import Layout
from yatt.training.megatron.backend import MegatronBackend
from yatt.training.megatron.network import Network
from yatt.types import TensorEntry
from yatt.weights import verify
from yatt.weights.flat import ALIGNMENT, FlatWriter, describe

PATIENCE = 120.0
"""Seconds in which the other process must answer."""


def sections(bench: Bench) -> Iterator[Section]:
    with TemporaryDirectory() as folder:
        name = "toy" if bench.toy else "0.5B" if bench.quick else "7B"
        path = models.write_shape(Path(folder), models.SHAPES[name])
        settings = sides.config(path, "bfloat16", tokens=4096)
        with sides.joined(settings) as layout:
            opened: list[Any] = []
            yield f"opening {name}", partial(_open, opened, settings, layout, path)
            flat: list[Any] = []
            yield "export", partial(_export, bench, name, opened, flat)
            yield "another process", partial(_hand_over, bench, name, flat)
            flat.clear()
            yield "shared memory", partial(_shared_memory, bench, name, opened)


def _open(opened: list[Any], settings: Any, layout: Layout, path: str) -> None:
    with models.drawn():
        model = MegatronBackend().frozen(settings, layout, path, "model.path")
    assert isinstance(model, Network)
    opened.append(model)


def place(weights: Iterator[tuple[str, Tensor]]) -> list[TensorEntry]:
    """Where each tensor lies, end to end."""
    entries, offset = [], 0
    for name, tensor in weights:
        entries.append(describe(name, tensor, offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return entries


def fill(flat: Tensor, entries: list[TensorEntry], weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy an export into the buffer."""
    for entry, (name, tensor) in zip(entries, weights, strict=True):
        assert entry.name == name
        flat[entry.offset : entry.offset + entry.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _export(bench: Bench, name: str, opened: list[Any], flat: list[Any]) -> None:
    (model,) = opened
    entries = place(model.export())
    buffer = torch.zeros(entries[-1].offset + -(-entries[-1].nbytes // ALIGNMENT) * ALIGNMENT, dtype=torch.uint8)
    buffer = buffer.to(bench.device.torch)
    fill(buffer, entries, model.export())
    taken = seconds(bench.device, lambda: fill(buffer, entries, model.export()))
    same = all(
        torch.equal(buffer[e.offset : e.offset + e.nbytes].view(t.dtype).view(t.shape), t)
        for e, (_, t) in zip(entries, model.export(), strict=True)
    )
    rate = copy_rate(bench.device, 1 << 20 if bench.toy else 1 << 31)
    size = sum(entry.nbytes for entry in entries)
    speeds = {"ms": taken * 1e3, "gb_s": size / taken / 1e9, "of_copy": size / taken / rate}
    bench.row("export", shape=name, gb=size / 1e9, tensors=len(entries), **speeds, ok=same)
    flat += [buffer, entries]


def _hand_over(bench: Bench, name: str, flat: list[Any]) -> None:
    """The handle goes through a pipe, the bytes stay where they are: what is written here is seen there at once."""
    buffer, entries = flat
    here, there = processes.get_context("spawn").Pipe()
    described = [(e.dtype, e.shape, e.offset, e.nbytes) for e in entries]
    other = processes.get_context("spawn").Process(
        target=receive, args=(there, bench.device.kind, described), daemon=True
    )
    other.start()
    there.close()
    try:
        _answer(here)
        size, rate = sum(entry.nbytes for entry in entries), copy_rate(bench.device, 1 << 20 if bench.toy else 1 << 31)
        for version in range(2):
            buffer[:8] += version  # the second time, other bytes
            known = checksum(buffer)
            sending = seconds(bench.device, lambda: here.send(buffer))
            said = _answer(here)
            rates = {"load_gb_s": size / said["load"] / 1e9, "of_copy": size / said["load"] / rate}
            rates |= {"checksum_gb_s": buffer.nbytes / said["summing"] / 1e9, "send_ms": sending * 1e3}
            bench.row("in place", shape=name, version=version, **rates, ok=said["checksum"] == known)
        here.send(None)
        other.join(PATIENCE)
    except RuntimeError as error:
        allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF") or "its defaults"
        raise RuntimeError(f"{error} (allocator: {allocator}; expandable segments are shared another way)") from error
    finally:
        other.kill()


def _answer(pipe: Any) -> dict[str, Any]:
    """Raises RuntimeError for an error there, and where nothing comes."""
    if not pipe.poll(PATIENCE):
        raise RuntimeError(f"the other process gave no answer in {PATIENCE:g} s")
    said: dict[str, Any] = pipe.recv()
    if "error" in said:
        raise RuntimeError(f"in the other process: {said['error']}")
    return said


def _shared_memory(bench: Bench, name: str, opened: list[Any]) -> None:
    """What `weights.transport=shm` does: through the host, with its checksum."""
    (model,) = opened
    with TemporaryDirectory(dir="/dev/shm") as folder:
        writer = FlatWriter(folder, "gpu")
        try:
            manifests = []
            taken = seconds(bench.device, lambda: manifests.append(writer.write(model.export(), 1)))
            reading = seconds(bench.device, lambda: verify(manifests[0]))
            size = sum(entry.nbytes for entry in manifests[0].entries)
            rates = {"write_gb_s": size / taken / 1e9, "verify_gb_s": size / reading / 1e9}
            bench.row("shared memory", shape=name, gb=size / 1e9, **rates)
        finally:
            writer.close()
