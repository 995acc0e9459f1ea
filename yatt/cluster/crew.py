"""Brings a cluster up and lets the driver command it: actors started on slots, wired, and in the end removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from yatt.cluster import forks
from yatt.cluster.backends import Backends, backends_of
from yatt.cluster.calls import wait_all, wait_one
from yatt.cluster.clock import WallClock
from yatt.cluster.controller import ControllerActor, GeneratorHandle, Wiring
from yatt.cluster.generator import GeneratorActor
from yatt.cluster.heartbeat import Heartbeat
from yatt.cluster.hosts import EngineHosts, end_all
from yatt.cluster.kinds import Slot, controller_kind, generator_kind, rank_kind
from yatt.cluster.payload import payload_bytes
from yatt.cluster.process import SlotProcess
from yatt.cluster.rank import RankActor, RankHandle, RemoteTrainer
from yatt.cluster.rankhosts import RankHosts
from yatt.cluster.session import find_slots, place
from yatt.config.facts import parameters
from yatt.config.models import policy_facts
from yatt.config.placement import train_slots
from yatt.config.schema import Config
from yatt.controller.assembly import engine_sites, layout_of, mode_of
from yatt.errors import BackendError, ConfigError, ProcessDied, WaitTimeout
from yatt.placement.cost import served
from yatt.placement.plan import POLICY, TRAINER, Layout, Role
from yatt.placement.policy import Mode
from yatt.recovery import Recovery
from yatt.reports import EvaluationReport, Incident, PhaseSpan, StepReport
from yatt.revival import Engine
from yatt.simulation.standing import costs_for, divided

T = TypeVar("T")

OnPhase = Callable[[str, str], None]
"""Called with the name of an actor and what it does, at last "ready", while the cluster comes up; and of an evaluation
that takes long."""
PATIENCE = 5.0
"""Seconds an engine or rank has to say what it did."""
ROLL_CALL = 60.0
"""Seconds in which Ray is to notice who died, once something has failed."""
NEWS = 2.0
"""Seconds after which it is asked how far an evaluation is, again and again."""


class ClusterCrew:
    """The controllers, generators and ranks of one run, on Ray. What steps and evaluations send to the driver passes
    through `_receive`, which counts the bytes of data in it: `payload` stays 0. `tell` hears of deaths, and what was
    done about them."""

    def __init__(
        self,
        config: Config,
        run_path: Path,
        on_phase: OnPhase,
        made_of: Backends | None = None,
        tell: Callable[[Incident], object] = bool,
    ) -> None:
        self._config = config
        self._backends = made_of or backends_of(config)
        self._run_path = run_path.absolute()
        self._on_phase = on_phase
        self._controllers: dict[str, Any] = {}
        self._trainer: RemoteTrainer | None = None
        self._up = False
        self.slots: list[Slot] = []
        self._models: dict[Role, str] = {}
        self._parameters: dict[Role, float] = {}
        self._heartbeat = Heartbeat(config.cluster.silence, WallClock(), tell)
        self._hosts = EngineHosts(config.cluster, self._place_anew, self._heartbeat.listen)
        weights_dir = config.weights.dir or str(self._run_path / "weights")
        self._ranks = RankHosts(config, weights_dir, self._place_rank, self._start)
        self._recovery = Recovery(self, self._hosts, WallClock(), tell, most=config.train.max_recoveries)
        self._world = 0  # how many times controllers and ranks were started
        self.payload = 0

    async def start(self, *, model: str, train: bool, generate: bool) -> None:
        """Start everything at once and wait until all of it is ready. `model` is what the generators load; without
        `train` there are no ranks, without `generate` no engines."""
        self.slots = find_slots(self._config.cluster)
        if generate:
            self._config = _divided(self._config, len(self.slots))
        self._division = layout = self._layout()
        judges = [role for role in layout.sizes if role != POLICY]
        self._models = {POLICY: model} | {role: self._config.reward.models[role].path or "" for role in judges}
        self._parameters = parameters(self._models) if generate and judges else {}
        self._on_phase("imports", "engines, ranks and controllers import their libraries")
        await forks.ready(self._config.cluster.start_timeout)
        self._on_phase("imports", "ready")
        self._hosts.asleep = bool(judges)
        if generate:
            self._place_engines(mode_of(self._config, layout, self._parameters))
        self._ranks.slots = self.slots[-train_slots(self._config, len(self.slots)) :] if train else []
        self._place_ranks_and_controllers()
        ranks, _ = await asyncio.gather(self._ranks.start(), self._start_engines(POLICY))
        for judge in judges:  # one after another: each takes memory of its slots before it sleeps
            await self._start_engines(judge)
        await self._wire(ranks)
        self._up = True
        if train:
            self._recovery.watch()

    def _place_ranks_and_controllers(self) -> None:
        """Start their processes, at once."""
        count = self._config.cluster.controllers or len({slot.node for slot in self.slots})
        nodes = list(dict.fromkeys(slot.node for slot in self.slots))
        self._ranks.place()
        self._controllers = {f"controller {i}": self._place_controller(i, count, nodes) for i in range(count)}

    async def _start_engines(self, role: Role) -> None:
        await asyncio.gather(
            *(self._come_up(h.name, h.actor, self._hosts.load(h)) for h in self._engines if h.role == role)
        )

    async def _wire(self, ranks: tuple[RankHandle, ...]) -> None:
        """Have the controllers know of everyone."""
        self._world += 1
        wiring = Wiring(
            hub=next(iter(self._controllers.values())),
            layout=self._division,
            parameters=self._parameters,
            generators=tuple(self._engines),
            ranks=ranks,
            world=self._world,
            coming=bool(ranks),
        )
        self._hosts.controllers = self._controllers
        self._trainer = RemoteTrainer(
            ranks, weights_kind=self._config.weights.transport, timeout=self._config.cluster.step_timeout
        )
        calls = {name: actor.start.remote(wiring) for name, actor in self._controllers.items()}
        await self._start("controllers", calls, self._controllers)
        if ranks and self._config.algorithm.precompute_reference:
            await self._ask_reference()

    async def _ask_reference(self) -> None:
        """Have the reference look at every row, while the ranks have the weights that the run starts from."""
        seen = 0
        while rows := (await self._on_controllers("prepare"))[0]:
            seen += rows
            self._on_phase("reference", f"{seen} rows")
        await self.trainer.on_all("forget_reference")
        self._on_phase("reference", "ready")

    async def _start(self, what: str, calls: Mapping[str, Any], actors: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for actors to come up."""
        timeout = self._config.cluster.start_timeout
        doing = "starting reward workers, reading rows" if what == "controllers" else "loading weights"
        waits = {name: wait_one(f"starting {what}", name, call, timeout) for name, call in calls.items()}
        ups = (self._come_up(name, actors[name], wait, doing) for name, wait in waits.items())
        answers = await asyncio.gather(*ups)
        return dict(zip(calls, answers, strict=True))

    async def _come_up(self, name: str, actor: Any, wait: Awaitable[T], doing: str = "loading weights") -> T:
        """Wait for an actor to come up, telling of it; listen to it from then on."""
        self._on_phase(name, doing)
        answer = await wait
        self._on_phase(name, "ready")
        self._heartbeat.listen(name, actor)
        return answer

    def _layout(self) -> Layout:
        """How the slots can be divided. Raises ConfigError where a block would lie on two nodes."""
        layout = layout_of(self._config, len(self.slots))
        for block in layout.blocks:
            if len({self.slots[slot].node for slot in block}) > 1:
                on_node = sum(slot.node == self.slots[block[0]].node for slot in self.slots)
                names = {shape.names.tensor_parallel: None for shape in served(self._config).values()}
                raise ConfigError(
                    f"engines of {len(block)} slots do not divide the {on_node} slots of a node; use a divisor as "
                    f"{' and '.join(names)} in rollout.engine_args and the judges' engine_args"
                )
        return layout

    def _place_engines(self, mode: Mode) -> None:
        for role, sites in engine_sites(self._division, mode).items():
            for number, site in enumerate(sites):
                name = f"{'generator' if role == POLICY else role} {number}"
                node = self.slots[site.slots[0]].node
                handle = GeneratorHandle(actor=None, name=name, role=role, slots=site.slots, node=node)
                self._hosts.handles[role, number] = self._place_anew(handle)

    @property
    def _engines(self) -> list[GeneratorHandle]:
        return list(self._hosts.handles.values())

    @property
    def _on_slots(self) -> dict[str, Any]:
        """Engines and ranks, by name."""
        return {engine.name: engine.actor for engine in self._engines} | self._ranks.actors

    @property
    def _actors(self) -> list[Any]:
        return [*self._on_slots.values(), *self._controllers.values()]

    def _process(self, name: str, device: Any, role: str = "", slots: Sequence[Slot] = ()) -> SlotProcess:
        log = self._run_path / "log" / f"{name.replace(' ', '-')}.log"
        where = tuple(slot.index for slot in slots)
        return SlotProcess(name=name, device=device, directory=os.getcwd(), log=str(log), role=role, slots=where)

    def _place_anew(self, handle: GeneratorHandle) -> GeneratorHandle:
        """A process for this engine; its handle."""
        slots = [self.slots[slot] for slot in handle.slots]
        kind = generator_kind(self._config, handle.role, slots, self._backends)
        process = self._process(handle.name, slots[0].device, handle.role, slots)
        model = self._models[handle.role]
        actor = place(GeneratorActor, handle.node, kind, process, self._config, model, self._backends)
        return replace(handle, actor=actor)

    def _place_rank(self, rank: int, slot: Slot) -> Any:
        process = self._process(f"rank {rank}", slot.device, TRAINER, [slot])
        place_of = {"rank": rank, "world_size": len(self._ranks.slots)}
        kind, backend = rank_kind(slot, self._backends), self._backends.trainer
        return place(RankActor, slot.node, kind, process, self._config, backend, **place_of)

    def _place_controller(self, index: int, count: int, nodes: Sequence[str]) -> Any:
        process = self._process(f"controller {index}", "cpu")
        kind = controller_kind(self.slots[0], self._backends)
        keywords = {"index": index, "count": count, "run_path": str(self._run_path)}
        node = nodes[index % len(nodes)]
        return place(ControllerActor, node, kind, process, self._config, self._backends, **keywords)

    async def _on_controllers(self, method: str, *arguments: Any) -> list[Any]:
        """Raises ProcessDied at once where a rank or a controller dies, though nobody may need it yet, or another's
        call failed first; and where they have waited for too long, which is taken for a death."""
        calls = {name: getattr(actor, method).remote(*arguments) for name, actor in self._controllers.items()}
        timeout = self._config.cluster.step_timeout
        work = asyncio.ensure_future(wait_all(f"{method} on the controllers", calls, timeout))
        try:
            await asyncio.wait([work, *self._ranks.deaths], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise next(death.result() for death in self._ranks.deaths if death.done())
            return list(work.result().values())
        except (BackendError, WaitTimeout) as error:
            if not isinstance(error, ProcessDied):
                await self.roll_call()
            if isinstance(error, WaitTimeout):
                self._heartbeat.dump()
                raise ProcessDied(f"{error}; the stacks of all are in the run's log/") from error
            raise
        finally:
            work.cancel()

    def _receive(self, answers: Sequence[T]) -> T:
        self.payload += payload_bytes(answers)
        return answers[0]

    async def step(self, step: int) -> StepReport:
        reports: list[StepReport] = await self._on_controllers("step", step)
        self._recovery.step_done(step)
        spans = tuple(span for report in reports for span in report.spans) + await self.take_spans()
        return replace(self._receive(reports), spans=spans)

    async def take_spans(self) -> tuple[PhaseSpan, ...]:
        """The spans of engines and ranks since the last call, numbers only. It costs one empty call to each of them,
        all at once, and an answer of about 100 bytes per span. Those that do not answer within PATIENCE seconds, or are
        dead, are left out: a picture is not worth a step."""
        calls = {name: actor.take_spans.remote() for name, actor in self._on_slots.items()}
        waits = (wait_one("spans", name, call, PATIENCE) for name, call in calls.items())
        answers = [a for a in await asyncio.gather(*waits, return_exceptions=True) if isinstance(a, tuple)]
        self.payload += payload_bytes(answers)
        return tuple(span for answer in answers for span in answer)

    async def roll_call(self) -> None:
        """Raises ProcessDied where a rank or a controller is gone. Asked of Ray, which notices late on a machine out of
        memory."""
        calls = {n: actor.__ray_ready__.remote() for n, actor in (self._ranks.actors | self._controllers).items()}
        with contextlib.suppress(WaitTimeout):
            await wait_all("roll call", calls, ROLL_CALL)

    async def recover(self, error: ProcessDied) -> int:
        return await self._recovery.recover(error)

    def revivable(self) -> Iterable[Engine]:
        return list(self._hosts.handles)

    async def tear_down(self) -> None:
        everyone = self._ranks.actors | self._controllers
        self._ranks.leave()
        self._heartbeat.leave(everyone)
        await end_all(everyone)
        self._ranks.remove_weights()

    async def build(self) -> None:
        self._place_ranks_and_controllers()
        ranks, _ = await asyncio.gather(self._ranks.start(), self._hosts.forget_all())
        await self._wire(ranks)

    async def go_back(self) -> int:
        """To the start of the run."""
        await self._on_controllers("restore", None, "")
        return 0

    async def evaluate(self, step: int) -> EvaluationReport:
        evaluation = asyncio.ensure_future(self._on_controllers("evaluate", step))
        told = False
        try:
            while not (await asyncio.wait([evaluation], timeout=NEWS))[0]:
                self._on_phase("evaluation", await self._evaluated())
                told = True
        finally:
            if not evaluation.done():
                evaluation.cancel()
        if told:
            self._on_phase("evaluation", "done")
        reports: list[EvaluationReport] = await evaluation
        return self._receive(reports)

    async def _evaluated(self) -> str:
        """How far an evaluation is, in words; those who do not answer in time are left out."""
        calls = [actor.evaluated.remote() for actor in self._controllers.values()]
        waits = (asyncio.wait_for(_answer(call), PATIENCE) for call in calls)
        answers = await asyncio.gather(*waits, return_exceptions=True)
        counts = [answer for answer in answers if isinstance(answer, tuple)]
        self.payload += payload_bytes(counts)
        done, prompts = (sum(count[place] for count in counts) for place in (0, 1))
        return f"{done:,} of {prompts:,} prompts" if prompts else "running"

    async def write_state(self, folder: Path, go_on: Callable[[], object] = bool) -> dict[str, Any]:
        """Have ranks and controllers write what they hold into `folder`; returns what all controllers share. Calls
        `go_on` once the next step may begin, while the ranks write."""
        states: list[dict[str, Any]] = await self._on_controllers("save", str(folder / "controllers"))
        await self.trainer.on_all("begin_save", str(folder / "trainer"))
        go_on()
        await self.trainer.end_save()
        return self._receive(states)

    async def restore(self, trainer: str, controllers: str, state: dict[str, Any]) -> None:
        """Load a checkpoint's folders and state into ranks and controllers, and its weights into the engines."""
        await self.trainer.on_all("load", trainer)
        await self._on_controllers("restore", state, controllers)

    @property
    def controllers(self) -> int:
        """How many controllers there are."""
        return len(self._controllers)

    @property
    def trainer(self) -> RemoteTrainer:
        if self._trainer is None:
            raise RuntimeError("the cluster has no ranks yet")
        return self._trainer

    async def close(self) -> None:
        """End every actor; what an actor started ends with it. Once all are up, waits ten seconds for their goodbye."""
        await self._recovery.close()
        await self._heartbeat.close()
        self._ranks.leave()
        actors = self._actors
        if self._up:
            farewells = {f"actor {i}": actor.close.remote() for i, actor in enumerate(actors)}
            with contextlib.suppress(Exception):  # one that is gone or stuck is killed like the rest
                await wait_all("closing", farewells, 10.0)
        for actor in actors:
            ray.kill(actor)
        self._ranks.actors, self._controllers = {}, {}
        self._hosts.handles.clear()


async def _answer(call: Any) -> Any:
    return await call


def _divided(config: Config, slots: int) -> Config:
    """The config with the split that is foreseen where it has to have one and has none; as it is where nothing can be
    foreseen, such as for models that `plan.device` has no room for."""
    if config.placement.mode != "partial" or config.placement.split:
        return config
    with contextlib.suppress(ConfigError):
        facts = policy_facts(config, weights=False)
        return divided(config, slots, costs_for(config, facts))
    return config
