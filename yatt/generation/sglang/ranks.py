"""The tensor-parallel ranks of an engine beyond the first: each a process that takes every step with rank 0."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import traceback
from multiprocessing.process import BaseProcess

import yatt.generation.sglang.standins

# isort: split
from sglang.srt.server_args import ServerArgs

import yatt.generation.sglang.attention  # noqa: F401  (as on rank 0)
from yatt.generation.sglang.scheduler import build
from yatt.models.facts import ModelFacts

PR_SET_PDEATHSIG = 1


def start_ranks(arguments: ServerArgs, facts: ModelFacts, count: int) -> list[BaseProcess]:
    """Begin to start ranks 1 to `count` - 1; they wait for rank 0 to load its model with them."""
    spawn = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    for rank in range(1, count):
        process = spawn.Process(target=follow, args=(arguments, facts, rank), daemon=True)
        process.start()
        processes.append(process)
    return processes


def follow(arguments: ServerArgs, facts: ModelFacts, rank: int) -> None:
    """Be a rank until the process is ended, by its parent or with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        scheduler = build(arguments, facts, rank)
        while True:
            scheduler.advance()
    except Exception:  # rank 0 sees its connections close
        traceback.print_exc()
        raise SystemExit(1) from None


def end_ranks(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
