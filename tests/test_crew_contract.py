"""Crews keep their contract: the cluster's, its actors in this process, the double, and the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from benchmarks.datapath_parts import BACKENDS, Size, lay_out, settings
from benchmarks.datapath_parts import Rank as BenchmarkRank
from tests.crew_contract import Case, CrewContract
from tests.simulation.worlds import COSTS
from tests.simulation.worlds import settings as simulated_settings
from tests.test_remote import Handle
from tests.test_supervisor import Crew as DoubleCrew
from yatt.cluster import controller as controller_module
from yatt.cluster import crew as crew_module
from yatt.cluster import generator as generator_module
from yatt.cluster import rank as rank_module
from yatt.cluster.kinds import Slot
from yatt.faces.checkpoints import Checkpoints
from yatt.faces.rundir import RunDirectory
from yatt.faces.train import CheckpointingCrew
from yatt.simulation.loop import run
from yatt.simulation.world import World

SIZE = Size(prompts=4, responses=2, tokens=4, controllers=2)
FULL = "full"
"""While there is a file of this name beside a run's checkpoints, a rank cannot write."""


class Rank(BenchmarkRank):
    def begin_save(self, path: str) -> None:
        self.path = path

    def load(self, path: str) -> None:
        assert Path(path).is_dir()

    def end_save(self) -> None:
        path = self.path
        if (Path(path).parents[1] / FULL).exists():
            raise OSError(28, "No space left on device")
        Path(path).mkdir(parents=True, exist_ok=True)


class Here(Handle):
    """An actor in this process. One that was killed answers no more; who waits for it hears so."""

    def __init__(self, actor: Any) -> None:
        super().__init__(actor)
        self._pending: set[asyncio.Task[Any]] = set()
        self._killed = asyncio.Event()

    def kill(self) -> None:
        self._killed.set()
        for call in self._pending:
            call.cancel()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._remote, method))

    def _remote(self, method: str, *arguments: Any, **keywords: Any) -> asyncio.Task[Any]:
        call = asyncio.ensure_future(self._call(method, *arguments, **keywords))
        self._pending.add(call)
        call.add_done_callback(self._pending.discard)
        return call

    async def _call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            if self._killed.is_set():
                raise RayActorError
            return None if method == "__ray_ready__" else await getattr(self.actor, method)(*arguments, **keywords)
        except asyncio.CancelledError:
            if self._killed.is_set():
                raise RayActorError from None
            raise


def place(actor: type, node: str, environment: Mapping[str, str], *arguments: Any, **keywords: Any) -> Here:
    return Here(actor(*arguments, **keywords))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [Slot(index=i, node="n", device="cpu", device_index=i, threads=1) for i in range(SIZE.workers)]
    monkeypatch.setattr(crew_module, "find_slots", lambda cluster: slots)
    monkeypatch.setattr(crew_module, "place", place)
    monkeypatch.setattr(crew_module.ray, "kill", lambda actor: actor.kill())
    monkeypatch.setattr(controller_module, "_node", lambda: "n")
    monkeypatch.setattr(rank_module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(rank_module.ray, "put", lambda value: value)
    for module in (controller_module, generator_module, rank_module):
        monkeypatch.setattr(module, "settle", lambda process: None)


class TestCluster(CrewContract):
    @pytest.fixture
    async def case(self, tmp_path: Path, without_ray: None):
        lay_out(tmp_path, SIZE)
        base = settings(tmp_path, SIZE)
        held_out = base.evaluate.model_copy(update={"path": str(tmp_path / "rows.jsonl")})
        rollout = base.rollout.model_copy(update={"filter": "none"})
        config = base.model_copy(update={"evaluate": held_out, "rollout": rollout})
        folder = RunDirectory(tmp_path / "run")
        folder.checkpoints_folder.mkdir(parents=True)
        crew = CheckpointingCrew(config, folder.path, lambda name, state: None, Checkpoints(folder, config))
        crew._backends = replace(BACKENDS, trainer="tests.test_crew_contract:Rank")

        def saved() -> int:
            last = folder.latest_checkpoint()
            return 0 if last is None else int(last.name.removeprefix("step-"))

        full = folder.checkpoints_folder / FULL
        write = crew.write_state

        async def once(aside: Path, go_on: Callable[[], object]) -> dict[str, Any]:
            try:
                return await write(aside, go_on)
            finally:
                full.unlink(missing_ok=True)

        crew.write_state = once  # type: ignore[method-assign]
        try:
            await crew.start(model=config.model.path, train=True, generate=True)
            yield Case(crew, saved, full.touch, recovers=True, evaluates=True)
        finally:
            await crew.close()


class TestDouble(CrewContract):
    @pytest.fixture
    def case(self) -> Iterator[Case]:
        crew = DoubleCrew([])

        def fail() -> None:
            crew.full_at = 2

        return Case(crew, lambda: crew.saved, fail, recovers=True, evaluates=True)


def simulated() -> Case:
    world = World(simulated_settings(), COSTS, devices=2, controllers=2)
    return Case(world, lambda: world._saved[0], lambda: world.kill(1), recovers=True, evaluates=False)


CASES = [name for name in dir(CrewContract) if iscoroutinefunction(getattr(CrewContract, name))]


@pytest.mark.parametrize("case", CASES)
def test_the_simulated_crew_keeps_the_contract(case):
    async def main() -> None:
        await getattr(CrewContract(), case)(simulated())

    run(main())
