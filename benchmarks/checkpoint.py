"""Memory and time while a checkpoint is saved beside training: the largest sum of PSS over all ranks and what they
start, sampled every 10 ms, from the start of a save to the end of the update that follows and of the save.

Four kinds take turns (`_timed`). Each rank makes one update first, and gives back what it has freed. `states` are the
weights, gradients and moments that the ranks hold, in float32; `before` and `peak` have Python and its libraries too,
some 300 MiB a rank."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import toy
from benchmarks.common import main, significant
from yatt.config.schema import Config, ModelConfig, TrainConfig
from yatt.training.meeting import reserve_port
from yatt.training.megatron.backend import open_rank
from yatt.training.memory import release_freed_memory
from yatt.training.rank import TrainerRank
from yatt.types import Denominator, Sample, SampleKey, Share

SAMPLE_SECONDS = 0.01
MIB = 2**20
KINDS = ["update", "save", "begin", "hurry"]
# Parameters of the larger one, SmolLM's shape: 134.5 million.
LARGE = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30) | dict(
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=256, tie_word_embeddings=True
)


def _large(folder: str) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LARGE)).save_pretrained(folder)


MODELS = {"0.5M": toy.save_model, "135M": _large}


def _share(rank: int) -> Share:
    """Eight sequences of 64 tokens."""
    random, mask = np.random.default_rng(rank), np.arange(64) >= 8
    samples = tuple(
        Sample(
            key=SampleKey(uid, 0),
            tokens=random.integers(3, 20, 64).astype(np.int32),
            loss_mask=mask,
            rollout_logprobs=np.zeros(64, dtype=np.float32),
            advantage=float(random.normal()),
        )
        for uid in range(8)
    )
    total = Denominator(tokens=8 * int(mask.sum()), sequences=8)
    return Share(step=0, rank=rank, controller=0, senders=(0,), updates=((samples,),), denominators=(total,))


def _rank(pipe: Connection, folder: str, rank: int, ranks: int, port: int, path: str) -> None:
    """A process of its own: one update, then save when told; says what it holds, and when each is done."""
    config = Config(
        model=ModelConfig(path=folder, dtype="float32", context_length=128), train=TrainConfig(steps=10, batch_size=8)
    )
    trainer = open_rank(config, rank=rank, world_size=ranks, address="127.0.0.1", port=port)
    trainer.start()
    trainer.update([_share(rank)])
    weights = sum(tensor.numel() for _, tensor in trainer.export())
    release_freed_memory()
    pipe.send(4 * (2 * weights + 2 * weights / ranks))
    while (what := pipe.recv()) != "close":
        pipe.send(_timed(trainer, rank, path, what))
    trainer.close()


def _timed(trainer: TrainerRank, rank: int, path: str, what: str) -> tuple[float, float, float]:
    """Seconds until the update could begin, until it was done, and until the checkpoint was written.

    "update" saves nothing, "save" waits for the save before the update, and "begin" does not; "hurry" is an update that
    takes no time: what is not written is copied or waited for at once."""
    start = time.perf_counter()
    if what != "update":
        (trainer.save if what == "save" else trainer.begin_save)(path)
    begun = time.perf_counter() - start
    if what == "hurry":
        trainer._started.policy.secure()  # type: ignore[attr-defined]
    else:
        trainer.update([_share(rank)])
    updated = time.perf_counter() - start
    trainer.end_save()
    return begun, updated, time.perf_counter() - start


def _family(pids: Iterable[int]) -> set[int]:
    """These processes and all that descend from them."""
    found = set(pids)
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    waiting = list(found)
    while waiting:
        new = [child for child in children.get(waiting.pop(), []) if child not in found]
        found.update(new)
        waiting += new
    return found


def _pss(pids: Iterable[int]) -> int:
    """Bytes of these processes and their descendants, what several share counted once."""
    total = 0
    for pid in _family(pids):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return total


class _Peak:
    """The largest PSS of processes while it is entered."""

    def __init__(self, pids: list[int]) -> None:
        self._pids, self._over, self.bytes = pids, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.bytes = max(self.bytes, _pss(self._pids))

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


@dataclass(frozen=True)
class Round:
    """What came of one kind of save: seconds of the slowest rank, and the largest memory in bytes."""

    begun: float
    updated: float
    written: float
    peak: int


@dataclass(frozen=True)
class Saving:
    """What saves took: bytes, and all rounds of each kind."""

    states: float
    before: int
    written: int
    rounds: dict[str, list[Round]]


def saving(name: str, ranks: int, rounds: int) -> Saving:
    """Save a model of MODELS from so many ranks, each a process; the kinds of saves take turns."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, reserve_port() as keeper:
        MODELS[name](folder)
        port = keeper.getsockname()[1]
        path, ends, processes = os.path.join(folder, "checkpoint"), [], []
        for rank in range(ranks):
            end, theirs = spawn.Pipe()
            process = spawn.Process(target=_rank, args=(theirs, folder, rank, ranks, port, path), daemon=True)
            process.start()
            theirs.close()
            ends.append(end)
            processes.append(process)
        states = sum(end.recv() for end in ends)
        pids = [process.pid for process in processes if process.pid is not None]
        before = _pss(pids)
        results: dict[str, list[Round]] = {kind: [] for kind in KINDS}
        for kind in KINDS * rounds:
            shutil.rmtree(path, ignore_errors=True)
            with _Peak(pids) as peak:
                for end in ends:
                    end.send(kind)
                begun, updated, written = map(max, zip(*(end.recv() for end in ends), strict=True))
            results[kind].append(Round(begun, updated, written, peak.bytes))
            if kind != "update":
                size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        for end, process in zip(ends, processes, strict=True):
            end.send("close")
            process.join()
    return Saving(states, before, size, results)


def measure(quick: bool) -> dict[str, Any]:
    cases = [("0.5M", 1)] if quick else [("0.5M", 1), ("0.5M", 2), ("135M", 1), ("135M", 2)]
    results = []
    for name, ranks in cases:
        took = saving(name, ranks, 2 if quick else 5)
        update, save, begin, hurry = (took.rounds[kind] for kind in KINDS)
        peak = max(one.peak for one in (*save, *begin, *hurry))
        alone = median(one.updated for one in update)
        waited = median(one.updated for one in save) - alone
        results.append(
            {
                "model": name,
                "ranks": ranks,
                "checkpoint_mib": significant(took.written / MIB),
                "states_mib": significant(took.states / MIB),
                "before_mib": significant(took.before / MIB),
                "peak_mib": significant(peak / MIB),
                "peak_over_states": significant(peak / took.states),
                "update_peak_over_states": significant(max(one.peak for one in update) / took.states),
                "update_s": significant(alone),
                "save_s": significant(median(one.begun for one in save)),
                "begin_s": significant(median(one.begun for one in begin)),
                "begin_written_s": significant(median(one.written for one in begin)),
                "hurry_s": significant(median(one.updated for one in hurry)),
                "save_adds_s": significant(waited),
                "begin_adds_s": significant(median(one.updated for one in begin) - alone),
            }
        )
    return {"results": results}


if __name__ == "__main__":
    main("checkpoint", measure)
