"""Four trainer processes, started once, in which tests run scripts of calls to a TrainerRank on 1, 2 or 4 ranks."""

from __future__ import annotations

import functools
import multiprocessing
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from yatt.training.meeting import reserve_port

SIZE = 4
Action = tuple[Any, ...]


def free_port() -> int:
    with reserve_port() as keeper:
        return keeper.getsockname()[1]


def _serve(pipe: Connection) -> None:
    import torch  # noqa: PLC0415

    from tests.megatron_worker import play  # noqa: PLC0415

    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        pipe.send(play(*job))


def _main(pipe: Connection) -> None:
    # As in an actor: the process was spawned, and every call comes from one thread that is not the main one.
    thread = threading.Thread(target=_serve, args=(pipe,))
    thread.start()
    thread.join()


class _Pool:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        for _ in range(SIZE):
            here, there = context.Pipe()
            # Daemons: they end with the test process.
            context.Process(target=_main, args=(there,), daemon=True).start()
            self.pipes.append(here)


@functools.cache
def _pool() -> _Pool:
    return _Pool()


def play(
    world: int, config: dict[str, Any], actions: Sequence[Action], timeout: float = 240, backend: str = "megatron"
) -> list[list[Any]]:
    """Run the actions on `world` ranks; results by rank, one per action. An error ends that rank's script and is its
    last result, as ("error", type name, message). `backend` "plain" is the double of `plain_backend`;
    where the config names one, it is that."""
    pipes, port = _pool().pipes[:world], free_port()
    for rank, pipe in enumerate(pipes):
        pipe.send((backend, rank, world, port, config, list(actions)))
    results = []
    for rank, pipe in enumerate(pipes):
        assert pipe.poll(timeout), f"rank {rank} of {world} gave no answer in {timeout} s"
        results.append(pipe.recv())
    return results
