"""A cluster that only spends time: real controllers over simulated engines, ranks, scorers and links."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from yatt.algorithm.rewards import part_weights
from yatt.balance import Assignment, assign
from yatt.config.placement import train_slots
from yatt.config.schema import Config
from yatt.controller.assembly import (
    Assembly,
    Engines,
    Parts,
    Reading,
    engine_sites,
    exchange_of,
    layout_of,
    mode_of,
    resident,
    responses_per_prompt,
)
from yatt.controller.carry_over import CarriedGroup
from yatt.controller.conversation import Limits
from yatt.controller.peers import Hub
from yatt.controller.player import ConversationSetup
from yatt.controller.router import Router
from yatt.controller.step import Controller
from yatt.data.loader import Loader
from yatt.data.rows import Row
from yatt.errors import ConfigError, ProcessDied
from yatt.placement.cost import served, size_setting
from yatt.placement.plan import POLICY, EngineSite, Role
from yatt.protocols import Clock
from yatt.recovery import Recovery
from yatt.reports import EvaluationReport, Incident, PhaseSpan, StepReport
from yatt.revival import Engine
from yatt.reward.filter import load_filter
from yatt.simulation.costs import Costs
from yatt.simulation.engine import PROMPT, SimulatedGenerator
from yatt.simulation.lengths import LengthModel
from yatt.simulation.loop import VirtualClock
from yatt.simulation.network import NODE_DEVICES, Network, RemoteGenerator, SimulatedPeers, Site
from yatt.simulation.ranks import Ranks, SimulatedTrainer
from yatt.simulation.scorer import SimulatedJudge, SimulatedScorer
from yatt.simulation.standing import divided
from yatt.simulation.talks import SilentChat, SimulatedEnvironment
from yatt.simulation.witness import Witness
from yatt.types import Prompt

R = TypeVar("R")
Event = tuple[Any, ...]
"""(seconds, actor, what, details ...)"""
START = 20.0
"""Seconds until an engine's process is up and has loaded its model."""
SILENCE = 120.0
"""Seconds without an answer after which an engine is ended."""
ROWS = 1 << 40
"""Rows of the data: no run comes to their end."""


class EndlessRows:
    """Rows of which only the number is of interest."""

    def __len__(self) -> int:
        return ROWS

    def row(self, index: int) -> Row:
        return {}

    def origin(self, index: int) -> str:
        return f"row {index}"

    def folder(self, index: int) -> str:
        return ""


def remembering() -> Callable[..., Assignment]:
    """`balance.assign`, computed once where all controllers of a step ask for the same."""
    last: dict[tuple[bytes, bytes], Assignment] = {}

    def ask(tokens: np.ndarray, *, holders: np.ndarray, **limits: Any) -> Assignment:
        asked = (tokens.tobytes(), holders.tobytes())
        if asked not in last:
            last.clear()
            last[asked] = assign(tokens, holders=holders, **limits)
        return last[asked]

    return ask


class World:
    """The parts of a cluster of `devices`, the crew of its controllers (`yatt.supervisor.Crew`), the hosts of its
    engines (`yatt.revival.Hosts`) and the builder of all else (`yatt.recovery.Builder`). Controllers are spread over
    the nodes, the first at the first. Raises ConfigError where the devices do not divide into engines and ranks."""

    def __init__(
        self,
        config: Config,
        costs: Costs,
        *,
        devices: int,
        controllers: int,
        witness: Witness | None = None,
        events: list[Event] | None = None,
    ) -> None:
        _check(config, devices)
        config = divided(config, devices, costs)
        self.config, self.costs, self.devices, self.events = config, costs, devices, events
        self.witness = witness or Witness()
        self.layout = layout_of(config, devices)
        self.mode = mode_of(config, self.layout, {role: costs.of(role).parameters for role in self.layout.sizes})
        self.network = Network(costs.controller, -(-devices // NODE_DEVICES), self.log)
        traces = {
            role: costs.judges[role].answers if role != POLICY else costs.workload.responses
            for role in self.layout.sizes
        }
        self.turns = costs.workload.turns
        turns = {role: self.turns if role == POLICY else 1 for role in traces}
        self.lengths = {role: LengthModel(traces[role], config.run.seed, role, turns[role]) for role in traces}
        self._prompt = np.full(costs.workload.prompt_tokens, PROMPT, dtype=np.int32)
        sites = engine_sites(self.layout, self.mode)
        self.engines = {r: [self._engine(site, n) for n, site in enumerate(theirs)] for r, theirs in sites.items()}
        self.gone: list[SimulatedGenerator] = []  # engines that were replaced
        self.rank_devices = config.train.tp * config.train.pp
        first = devices - train_slots(config, devices)
        self.ranks = Ranks(
            costs.trainer,
            [self.network.of_device(device) for device in range(first, devices, self.rank_devices)],
            slots=tuple(range(first, devices)),
            stages=config.train.pp,
            log=self.log,
            on_trained=self.witness.trained,
            timeout=config.cluster.step_timeout,
        )
        nodes = self.network.nodes
        self.sites = [Site(self.network, c, nodes[c * len(nodes) // controllers]) for c in range(controllers)]
        self.scorers: list[SimulatedScorer] = []
        self.assemblies: list[Assembly] = []
        self.controllers = self._assemble()
        self.recovery = Recovery(self, self, VirtualClock(), self._incident, most=config.train.max_recoveries)
        self.reports: list[StepReport] = []
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._deaths: dict[int, ProcessDied] = {}
        self._saved: tuple[int, dict[str, Any], list[CarriedGroup]] = (0, self.controllers[0].desk.state(), [])

    def take_spans(self) -> tuple[PhaseSpan, ...]:
        """The spans of engines and ranks since the last call."""
        actors: list[Ranks | SimulatedGenerator] = [self.ranks, *self.gone]
        actors += [engine for engines in self.engines.values() for engine in engines]
        spans = tuple(span for actor in actors for span in actor.spans)
        for actor in actors:
            actor.spans.clear()
        return spans

    def log(self, actor: str, what: str, *details: Any) -> None:
        if self.events is not None:
            self.events.append((asyncio.get_running_loop().time(), actor, what, *details))

    def kill(self, controller: int) -> None:
        """This controller is gone until the crew recovers."""
        self.log(f"controller {controller}", "died")
        self._deaths[controller] = ProcessDied(f"controller {controller} died")
        if controller in self._tasks:
            self._tasks[controller].cancel()

    def _incident(self, incident: Incident) -> None:
        self.log(incident.process, incident.text.split()[0], incident.text)

    def hang(self, engine: SimulatedGenerator) -> None:
        """It answers nobody any more: what is silent for so long is ended."""
        engine.hang()
        asyncio.get_running_loop().call_later(SILENCE, engine.die)

    async def step(self, step: int) -> StepReport:
        self.recovery.watch()
        for lengths in self.lengths.values():
            lengths.step = step
        self.log("driver", "step", step)
        self.reports = await self._all(lambda controller: controller.step(step))
        self.recovery.step_done(step)
        return self.reports[0]

    async def evaluate(self, step: int) -> EvaluationReport:
        raise ConfigError("evaluate.path, evaluate.size: a simulated run has no held-out rows; unset both")

    async def save(self, step: int, go_on: Callable[[], object] = bool) -> None:
        states = await self._all(lambda controller: controller.state())
        self._saved = (step, states[0][0], [group for _, carried in states for group in carried])
        self.log("driver", "saved", step)
        self.witness.saved(states[0][0]["source"], self._saved[2])

    async def recover(self, error: ProcessDied) -> int:
        return await self.recovery.recover(error)

    def revivable(self) -> list[Engine]:
        return [(role, number) for role, engines in self.engines.items() for number in range(len(engines))]

    async def tear_down(self) -> None:
        self.log("driver", "recovers", self._saved[0])
        await asyncio.gather(*(controller.close() for controller in self.controllers))
        self.witness.rewound(self._saved[0])

    async def build(self) -> None:
        self.ranks.revive()
        self._deaths.clear()
        for scorer in self.scorers:
            scorer.leave()
        self.scorers = []
        self.controllers = self._assemble()
        if len(self.engines) > 1:  # they come up asleep
            alive = [engine for engines in self.engines.values() for engine in engines if not engine.dead]
            await asyncio.gather(*(engine.sleep() for engine in alive), return_exceptions=True)

    async def go_back(self) -> int:
        step, state, carried = self._saved
        await self._all(lambda controller: controller.restore(state, carried))
        return step

    def name(self, engine: Engine) -> str:
        return self._of(engine).name

    def _of(self, engine: Engine) -> SimulatedGenerator:
        role, number = engine
        return self.engines[role][number]

    async def death(self, engine: Engine) -> ProcessDied:
        one = self._of(engine)
        await one.died.wait()
        return one.dead or ProcessDied(one.name)

    async def start(self, engine: Engine) -> None:
        role, number = engine
        before = self._of(engine)
        self.gone.append(before)
        new = self.engines[role][number] = self._engine(EngineSite(role=role, slots=before.slots), number, asleep=True)
        await asyncio.sleep(START)
        if new.dead is not None:
            raise new.dead

    async def join(self, engine: Engine) -> None:
        role, number = engine
        for site, assembly in zip(self.sites, self.assemblies, strict=True):
            await assembly.join(role, number, RemoteGenerator(self._of(engine), site))

    async def end(self, engine: Engine) -> None:
        self._of(engine).die()

    async def give_up(self, engine: Engine, error: ProcessDied) -> None:
        for assembly in self.assemblies:
            assembly.give_up(*engine, error)

    async def _all(self, call: Callable[[Controller], Coroutine[Any, Any, R]]) -> list[R]:
        """One call to every controller. The first failure ends all of them."""
        self._tasks = {c: asyncio.create_task(self._one(c, call)) for c in range(len(self.controllers))}
        tasks = list(self._tasks.values())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in tasks if task in done and task.exception() is not None]
            if failed:
                raise next((e for e in map(_error, failed) if isinstance(e, ProcessDied)), _error(failed[0]))
            return [task.result() for task in tasks]
        finally:
            self._tasks = {}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, index: int, call: Callable[[Controller], Coroutine[Any, Any, R]]) -> R:
        try:
            if index in self._deaths:
                raise self._deaths[index]
            return await call(self.controllers[index])
        except asyncio.CancelledError:
            if index in self._deaths:
                raise self._deaths[index] from None
            raise

    def _engine(self, site: EngineSite, number: int, *, asleep: bool = False) -> SimulatedGenerator:
        return SimulatedGenerator(
            self.costs.of(site.role),
            name=f"{'generator' if site.role == POLICY else site.role} {number}",
            slots=site.slots,
            node=self.network.of_device(site.slots[0]).name,
            length=self.lengths[site.role],
            log=self.log,
            role=site.role,
            asleep=asleep or len(self.layout.sizes) > 1,
            talks=site.role == POLICY and self.turns > 1,
        )

    def _scorer(self, routers: Mapping[Role, Router]) -> SimulatedScorer:
        judges = [
            SimulatedJudge(
                self.config.reward.models[role],
                router,
                template_tokens=self.costs.judges[role].template_tokens,
                siblings=responses_per_prompt(self.config),
            )
            for role, router in routers.items()
            if role != POLICY
        ]
        return SimulatedScorer(
            self.costs,
            timeout=self.config.reward.timeout,
            seed=self.config.run.seed,
            on_scored=self.witness.scored,
            judges=judges,
            parts=part_weights(self.config.reward),
        )

    def _assemble(self) -> list[Controller]:
        self.assemblies = []
        hub, assign = Hub(len(self.sites), self.config.cluster.step_timeout), remembering()
        return [self._controller(site, hub, assign) for site in self.sites]

    def _controller(self, site: Site, hub: Hub, assign: Callable[..., Assignment]) -> Controller:
        config, trainer = self.config, self.costs.trainer
        count = len(self.sites)
        peers = SimulatedPeers(site, count, hub, self.sites[0].node)
        exchange = exchange_of(
            config,
            peers,
            quadratic=trainer.per_token_squared / trainer.per_token if trainer.per_token else 0.0,
            node=site.node.name,
            rank_nodes=[node.name for node in self.ranks.nodes],
            assign=assign,
        )
        parts = Parts(
            config=config,
            peers=peers,
            trainer=SimulatedTrainer(self.ranks, site, trainer),
            exchange=exchange,
            clock=VirtualClock(),
        )
        engines = Engines(
            layout=self.layout,
            mode=self.mode,
            generators={role: [RemoteGenerator(e, site) for e in engines] for role, engines in self.engines.items()},
            resident=resident(config, trains=True),
            coming=True,
        )
        assembly = Assembly(parts, engines)
        self.assemblies.append(assembly)
        self.scorers.append(self._scorer(assembly.routers))
        reading = Reading(decode=lambda tokens: "", scorer=self.scorers[-1], setup=self._setup(parts.clock))
        source = Loader[Prompt](
            EndlessRows(),
            partial(self._encode, site),
            seed=config.run.seed,
            shuffle=False,
            index=site.index,
            count=count,
            bad_rows="fail",
        )
        return assembly.controller(source, reading, load_filter(config.rollout), self.witness.accepted)

    def _setup(self, clock: Clock) -> ConversationSetup | None:
        """What conversations are played in, where responses are."""
        work = self.costs.workload
        if work.turns == 1:
            return None
        return ConversationSetup(
            environment=SimulatedEnvironment(work, self.config.run.seed, clock),
            chat=SilentChat(),
            limits=Limits(turns=work.turns, tokens=None, context=self.config.model.context_length),
            retries=0,
            judged=True,
        )

    def _encode(self, site: Site, row: Row, uid: int, index: int) -> Prompt:
        work = self.costs.workload
        media = (site.read(work.image_bytes),) if work.image_bytes or work.image_pixels else ()
        return Prompt(uid=uid, text="", tokens=self._prompt, media=media)


def _check(config: Config, devices: int) -> None:
    """Raises ConfigError where engines or ranks do not divide the devices."""
    sizes = {"train.tp * train.pp": config.train.tp * config.train.pp}
    sizes |= {size_setting(config, role): shape.tensor_parallel for role, shape in served(config).items()}
    for what, size in sizes.items():
        if devices % size:
            raise ConfigError(f"{what}={size} does not divide {devices} devices; use {devices - devices % size}")


def _error(task: asyncio.Task[Any]) -> BaseException:
    """Why it failed: the first error of a group of them."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert error is not None
    return error
