"""Brings a cluster up and lets the driver command it: actors started on slots, wired, and in the end removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from yatt.cluster import forks
from yatt.cluster.backends import Backends, backends_of
from yatt.cluster.calls import wait_all, wait_one
from yatt.cluster.controller import ControllerActor, GeneratorHandle, Wiring
from yatt.cluster.generator import GeneratorActor
from yatt.cluster.kinds import Slot, controller_kind, generator_kind, rank_kind
from yatt.cluster.payload import payload_bytes
from yatt.cluster.process import SlotProcess
from yatt.cluster.rank import RankActor, RankHandle, RemoteTrainer
from yatt.cluster.session import find_slots, place
from yatt.config.facts import parameters
from yatt.config.models import policy_facts
from yatt.config.placement import train_slots
from yatt.config.schema import Config
from yatt.controller.assembly import engine_sites, layout_of, mode_of
from yatt.errors import ConfigError, ProcessDied
from yatt.placement.cost import served
from yatt.placement.plan import POLICY, TRAINER, Layout, Role
from yatt.placement.policy import Mode
from yatt.reports import EvaluationReport, PhaseSpan, StepReport
from yatt.simulation.standing import costs_for, divided

T = TypeVar("T")

OnPhase = Callable[[str, str], None]
"""Called with the name of an actor and what it does, at last "ready", while the cluster comes up; and of an evaluation
that takes long."""
PATIENCE = 5.0
"""Seconds an engine or rank has to say what it did."""
NEWS = 2.0
"""Seconds after which it is asked how far an evaluation is, again and again."""


class ClusterCrew:
    """The controllers, generators and ranks of one run, on Ray. What steps and evaluations send to the driver passes
    through `_receive`, which counts the bytes of data in it: `payload` stays 0."""

    def __init__(self, config: Config, run_path: Path, on_phase: OnPhase, made_of: Backends | None = None) -> None:
        self._config = config
        self._backends = made_of or backends_of(config)
        self._run_path = run_path.absolute()
        self._on_phase = on_phase
        self._controllers: dict[str, Any] = {}
        self._actors: list[Any] = []
        self._on_slots: dict[str, Any] = {}
        self._trainer: RemoteTrainer | None = None
        self._up = False
        self.slots: list[Slot] = []
        self._train_slots: list[Slot] = []
        self.payload = 0

    async def start(self, *, model: str, train: bool, generate: bool) -> None:
        """Start everything at once and wait until all of it is ready. `model` is what the generators load; without
        `train` there are no ranks, without `generate` no engines."""
        self.slots = find_slots(self._config.cluster)
        if generate:
            self._config = _divided(self._config, len(self.slots))
        layout = self._layout()
        judges = [role for role in layout.sizes if role != POLICY]
        models = {POLICY: model} | {role: self._config.reward.models[role].path or "" for role in judges}
        weigh = parameters(models) if generate and judges else {}
        mode = mode_of(self._config, layout, weigh)
        self._on_phase("imports", "engines, ranks and controllers import their libraries")
        await forks.ready(self._config.cluster.start_timeout)
        self._on_phase("imports", "ready")
        places = self._engines(layout, mode, models) if generate else {}
        engines = {name: engine.actor for name, engine in places.items()}
        count = self._config.cluster.controllers or len({slot.node for slot in self.slots})
        self._train_slots = self.slots[-train_slots(self._config, len(self.slots)) :] if train else []
        ranks = [self._place_rank(i, slot) for i, slot in enumerate(self._train_slots)]
        self._on_slots = engines | {f"rank {i}": rank for i, rank in enumerate(ranks)}
        nodes = list(dict.fromkeys(slot.node for slot in self.slots))
        self._controllers = {f"controller {i}": self._place_controller(i, count, nodes) for i in range(count)}
        timeout = self._config.cluster.start_timeout
        policy = {name for name, engine in places.items() if engine.role == POLICY}
        shared = bool(judges)
        started = await asyncio.gather(
            self._start("engines", {name: engines[name].start.remote(shared) for name in policy}, timeout),
            self._start_ranks(ranks, timeout),
        )
        for judge in judges:  # one after another: each takes memory of its slots before it sleeps
            calls = {
                name: engines[name].start.remote(shared) for name, engine in places.items() if engine.role == judge
            }
            await self._start("judges", calls, timeout)
        handles: tuple[RankHandle, ...] = started[1]
        wiring = Wiring(
            hub=next(iter(self._controllers.values())),
            layout=layout,
            parameters=weigh,
            generators=tuple(places.values()),
            ranks=handles,
        )
        self._trainer = RemoteTrainer(
            handles, weights_kind=self._config.weights.transport, timeout=self._config.cluster.step_timeout
        )
        await self._start(
            "controllers", {name: actor.start.remote(wiring) for name, actor in self._controllers.items()}, timeout
        )
        if train and self._config.algorithm.precompute_reference:
            await self._ask_reference()
        self._up = True

    async def _ask_reference(self) -> None:
        """Have the reference look at every row, while the ranks have the weights that the run starts from."""
        seen = 0
        while rows := (await self._on_controllers("prepare"))[0]:
            seen += rows
            self._on_phase("reference", f"{seen} rows")
        await self.trainer.on_all("forget_reference")
        self._on_phase("reference", "ready")

    async def _start(self, what: str, calls: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Wait for actors to come up, telling of each as it does."""

        doing = "starting reward workers, reading rows" if what == "controllers" else "loading weights"

        async def tell(name: str, call: Any) -> Any:
            self._on_phase(name, doing)
            answer = await wait_one(f"starting {what}", name, call, timeout)
            self._on_phase(name, "ready")
            return answer

        answers = await asyncio.gather(*(tell(name, call) for name, call in calls.items()))
        return dict(zip(calls, answers, strict=True))

    async def _start_ranks(self, ranks: Sequence[Any], timeout: float) -> tuple[RankHandle, ...]:
        if not ranks:
            return ()
        host, port = await wait_one("starting ranks", "rank 0", ranks[0].endpoint.remote(), timeout)
        writers = {slot.node: index for index, slot in reversed(list(enumerate(self._train_slots)))}
        run_token = f"{os.getpid()}-{secrets.token_hex(4)}"
        folder = self._config.weights.dir or str(self._run_path / "weights")
        calls = {
            f"rank {i}": actor.start.remote(
                host, port, token=f"{run_token}-{i}" if self._writes(i, writers) else None, weights_dir=folder
            )
            for i, actor in enumerate(ranks)
        }
        places = await self._start("ranks", calls, timeout)
        return tuple(
            RankHandle(actor=actor, name=name, node=slot.node, dp_rank=places[name][0])
            for actor, name, slot in zip(ranks, calls, self._train_slots, strict=True)
        )

    def _writes(self, rank: int, writers: dict[str, int]) -> bool:
        """Through shared memory one rank per node writes; on disk rank 0 does."""
        if not self._config.algorithm.recipe.reinforces:
            return False
        return rank == 0 if self._config.weights.transport == "disk" else rank in writers.values()

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

    def _engines(self, layout: Layout, mode: Mode, models: Mapping[Role, str]) -> dict[str, GeneratorHandle]:
        """The engines of every role, by name."""
        handles: dict[str, GeneratorHandle] = {}
        for role, sites in engine_sites(layout, mode).items():
            for number, site in enumerate(sites):
                name = f"{'generator' if role == POLICY else role} {number}"
                slots = [self.slots[slot] for slot in site.slots]
                actor = self._place_generator(name, role, slots, models[role])
                handles[name] = GeneratorHandle(actor=actor, name=name, role=role, slots=site.slots, node=slots[0].node)
        return handles

    def _process(self, name: str, device: Any, role: str = "", slots: Sequence[Slot] = ()) -> SlotProcess:
        log = self._run_path / "log" / f"{name.replace(' ', '-')}.log"
        where = tuple(slot.index for slot in slots)
        return SlotProcess(name=name, device=device, directory=os.getcwd(), log=str(log), role=role, slots=where)

    def _place_generator(self, name: str, role: Role, slots: Sequence[Slot], model: str) -> Any:
        kind = generator_kind(self._config, role, slots, self._backends)
        process = self._process(name, slots[0].device, role, slots)
        return self._keep(place(GeneratorActor, slots[0].node, kind, process, self._config, model, self._backends))

    def _place_rank(self, rank: int, slot: Slot) -> Any:
        process = self._process(f"rank {rank}", slot.device, TRAINER, [slot])
        place_of = {"rank": rank, "world_size": len(self._train_slots)}
        kind, backend = rank_kind(slot, self._backends), self._backends.trainer
        return self._keep(place(RankActor, slot.node, kind, process, self._config, backend, **place_of))

    def _place_controller(self, index: int, count: int, nodes: Sequence[str]) -> Any:
        process = self._process(f"controller {index}", "cpu")
        kind = controller_kind(self.slots[0], self._backends)
        keywords = {"index": index, "count": count, "run_path": str(self._run_path)}
        node = nodes[index % len(nodes)]
        return self._keep(place(ControllerActor, node, kind, process, self._config, self._backends, **keywords))

    def _keep(self, actor: Any) -> Any:
        self._actors.append(actor)
        return actor

    async def _on_controllers(self, method: str, *arguments: Any) -> list[Any]:
        calls = {name: getattr(actor, method).remote(*arguments) for name, actor in self._controllers.items()}
        timeout = self._config.cluster.step_timeout
        return list((await wait_all(f"{method} on the controllers", calls, timeout)).values())

    def _receive(self, answers: Sequence[T]) -> T:
        self.payload += payload_bytes(answers)
        return answers[0]

    async def step(self, step: int) -> StepReport:
        reports: list[StepReport] = await self._on_controllers("step", step)
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
        """Raises ProcessDied where an engine or a rank is gone. Asked of Ray, which notices late on a machine out of
        memory."""
        calls = {name: actor.__ray_ready__.remote() for name, actor in self._on_slots.items()}
        await wait_all("roll call", calls, self._config.cluster.step_timeout)

    async def recover(self, error: ProcessDied) -> int:
        """Nothing is brought up anew while a run goes on: it ends, and `resume=auto` continues it."""
        raise error

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
        if self._up:
            farewells = {f"actor {i}": actor.close.remote() for i, actor in enumerate(self._actors)}
            with contextlib.suppress(Exception):  # one that is gone or stuck is killed like the rest
                await wait_all("closing", farewells, 10.0)
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()


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
