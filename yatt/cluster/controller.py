"""A controller in a process of its own: the heart's parts, bound to Ray actors, a tokenizer and the run's files."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from transformers import PreTrainedTokenizerFast

from yatt.cluster.backends import Backends, HostedScorer, load
from yatt.cluster.calls import first_error
from yatt.cluster.clock import WallClock
from yatt.cluster.generator import RemoteGenerator
from yatt.cluster.media import RayMediaStore
from yatt.cluster.process import Hosted, SlotProcess, settle
from yatt.cluster.rank import RankHandle, RemoteTrainer
from yatt.cluster.samplelog import SampleLog
from yatt.config.models import policy_facts
from yatt.config.schema import Config
from yatt.controller.assembly import (
    Assembly,
    Engines,
    Parts,
    Reading,
    exchange_of,
    mode_of,
    offline_controller,
    resident,
)
from yatt.controller.carry_over import CarriedGroup
from yatt.controller.conversation import Limits
from yatt.controller.evaluator import Evaluator
from yatt.controller.exchange import Exchange
from yatt.controller.offline import OfflineController
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.player import ConversationSetup
from yatt.controller.reference_rows import PrecomputedReference
from yatt.controller.step import Controller
from yatt.data.encoders import held_out_rows, row_encoder
from yatt.data.loader import Encode, Loader, good_rows
from yatt.data.rows import RowSource
from yatt.data.source import open_source
from yatt.data.template import with_arguments
from yatt.data.turns import ResponseText
from yatt.environments.chat import Chat
from yatt.environments.hosted import HostedEnvironment
from yatt.errors import ProcessDied
from yatt.placement.plan import Layout, Role
from yatt.protocols import MediaStore, Peers
from yatt.reports import EvaluationReport, StepReport
from yatt.reward.filter import load_filter
from yatt.types import Group

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorHandle:
    """A started generator: its actor, its name, the role it serves, and where it stands."""

    actor: Any
    name: str
    role: Role
    slots: tuple[int, ...]
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The actors that a controller talks to. `hub` is controller 0; without ranks the cluster can only evaluate.
    Controllers of `world` 2 stand in for those of world 1, who died: engines must not take them for the same. With
    `coming`, engines that die are started anew."""

    hub: Any
    layout: Layout
    parameters: Mapping[Role, float]
    generators: tuple[GeneratorHandle, ...]
    ranks: tuple[RankHandle, ...]
    world: int
    coming: bool


class ControllerActor(Hosted):
    """Hosts one controller."""

    def __init__(
        self, process: SlotProcess, config: Config, backends: Backends, *, index: int, count: int, run_path: str
    ) -> None:
        settle(process)
        self._recorder = process.recorder()
        self._config = config
        self._backends = backends
        self._index = index
        self._count = count
        self._log = SampleLog(Path(run_path) / "samples", index, config.log.samples)
        self._hub = Hub(count, config.cluster.step_timeout)
        self._scorer: HostedScorer | None = None
        self._setup: ConversationSetup | None = None
        self._controller: Controller | OfflineController | None = None
        self._evaluator: Evaluator | OfflineController | None = None
        self._assembly: Assembly | None = None
        self._client = ""

    async def meet(self, tag: str, index: int, value: Any) -> list[Any]:
        """The hub of all controllers' collectives; only controller 0 is asked."""
        return await self._hub.gather(tag, index, value)

    async def hear(self, seen: int) -> tuple[int, Any]:
        """The leader's announcements; only controller 0 is asked."""
        return await self._hub.hear(seen)

    async def start(self, wiring: Wiring) -> None:
        """Open the data, start the reward workers, wire everything up."""
        await self._start(wiring)
        gc.freeze()  # what the process holds for good need not be looked through for garbage

    async def _start(self, wiring: Wiring) -> None:
        config = self._config
        self._client = f"controller {self._index} of world {wiring.world}"
        host = self._hub if self._index == 0 else None
        peers = HubPeers(self._index, self._count, host or HubOverTheWire(wiring.hub), host)
        parts = Parts(
            config=config,
            peers=peers,
            trainer=RemoteTrainer(
                wiring.ranks, weights_kind=config.weights.transport, timeout=config.cluster.step_timeout
            ),
            exchange=self._exchange(peers, wiring),
            clock=WallClock(),
        )
        plain: PreTrainedTokenizerFast = load(self._backends.tokenizer)(config.model.path)
        tokenizer = with_arguments(plain, config.data.template_arguments)
        place = {"index": self._index, "count": self._count}
        nodes = {_node(), *(g.node for g in wiring.generators), *(rank.node for rank in wiring.ranks)}
        store = partial(RayMediaStore, together=len(nodes) == 1)
        if not config.algorithm.recipe.reinforces:
            self._controller = self._evaluator = self._offline(parts, tokenizer, store)
            return
        assembly = self._assembly = Assembly(parts, self._engines(wiring))
        ask = {role: router.generate for role, router in assembly.routers.items()}
        scorer: HostedScorer = load(self._backends.scorer)(config.reward, ask, **place)
        self._scorer = scorer
        await scorer.start()
        self._setup = await self._open_environment(tokenizer)
        text = ResponseText(tokenizer)
        reading = Reading(decode=text, scorer=scorer, setup=self._setup)
        self._log.decode = text.whole
        if config.evaluate.path is not None or config.evaluate.size is not None:
            held_out = held_out_rows(config, tokenizer, index=self._index, count=self._count, store=store())
            self._evaluator = assembly.evaluator(held_out, reading, self._log.evaluation)
        if wiring.ranks:
            drop = load_filter(config.rollout)
            source = open_source(config.data, config.run.seed)
            loader = self._loader(source, row_encoder(config, tokenizer, source, store()))
            self._controller = assembly.controller(loader, reading, drop, self._log_groups)

    def _log_groups(self, step: int, groups: Sequence[Group]) -> None:
        """Write some of the step's groups, and of those that were dropped since the last step."""
        assert isinstance(self._controller, Controller)
        rollouter = self._controller.rollouter
        dropped, rollouter.dropped = rollouter.dropped, []
        self._log.groups(step, groups, dropped)

    async def _open_environment(self, tokenizer: PreTrainedTokenizerFast) -> ConversationSetup | None:
        """What conversations are played in, its workers started."""
        config, environment = self._config, self._config.environment
        if not environment.played:
            return None
        hosted = HostedEnvironment(environment)
        await hosted.start()
        limits = Limits(turns=environment.max_turns, tokens=environment.max_tokens, context=config.model.context_length)
        return ConversationSetup(
            environment=hosted,
            chat=Chat(tokenizer, environment.calls),
            limits=limits,
            retries=environment.retries,
            judged=bool(config.reward.function or config.reward.functions or config.reward.models),
        )

    def _offline(
        self, parts: Parts, tokenizer: PreTrainedTokenizerFast, store: Callable[[], MediaStore]
    ) -> OfflineController:
        config, place = self._config, {"index": self._index, "count": self._count}
        source = open_source(config.data, config.run.seed)
        encode, reference = row_encoder(config, tokenizer, source, store()), None
        held_out = held_out_rows(config, tokenizer, index=self._index, count=self._count, store=store())
        if config.algorithm.precompute_reference:
            rows = good_rows(source, encode, **place)
            reference = PrecomputedReference(
                peers=parts.peers, exchange=parts.exchange, trainer=parts.trainer, rows=rows, held_out=held_out
            )
            encode = reference.added_to(encode)
        controller = offline_controller(parts, self._loader(source, encode), held_out, reference)
        self._log.decode = ResponseText(tokenizer).whole
        controller.on_rows = self._log.learned
        return controller

    def _engines(self, wiring: Wiring) -> Engines:
        generators: dict[Role, list[RemoteGenerator]] = {role: [] for role in wiring.layout.sizes}
        for handle in wiring.generators:
            generators[handle.role].append(self._remote(handle))
        return Engines(
            layout=wiring.layout,
            mode=mode_of(self._config, wiring.layout, wiring.parameters),
            generators=generators,
            resident=resident(self._config, trains=bool(wiring.ranks)),
            coming=wiring.coming,
        )

    def _remote(self, handle: GeneratorHandle) -> RemoteGenerator:
        return RemoteGenerator(
            handle.actor,
            name=handle.name,
            client=self._client,
            slots=handle.slots,
            node=handle.node,
            timeout=self._config.cluster.step_timeout,
        )

    async def join(self, role: Role, number: int, handle: GeneratorHandle) -> None:
        """See `Assembly.join`."""
        assert self._assembly is not None
        await _first(self._assembly.join(role, number, self._remote(handle)))

    async def give_up(self, role: Role, number: int, why: str) -> None:
        """See `Assembly.give_up`."""
        assert self._assembly is not None
        self._assembly.give_up(role, number, ProcessDied(why))

    def _exchange(self, peers: Peers, wiring: Wiring) -> Exchange:
        nodes, facts = {rank.dp_rank: rank.node for rank in reversed(wiring.ranks)}, policy_facts(self._config)
        return exchange_of(
            self._config,
            peers,
            quadratic=facts.quadratic,
            image_cost=facts.image_cost(trained=self._config.train.vision == "trained"),
            node=_node(),
            rank_nodes=[nodes[dp_rank] for dp_rank in sorted(nodes)],
        )

    def _loader(self, source: RowSource, encode: Encode[Any]) -> Loader[Any]:
        config = self._config
        return Loader(
            source,
            encode,
            seed=config.run.seed,
            shuffle=config.data.shuffle,
            index=self._index,
            count=self._count,
            bad_rows=config.data.bad_rows,
        )

    async def prepare(self) -> int:
        """See `OfflineController.prepare`."""
        assert isinstance(self._controller, OfflineController)
        return await _first(self._controller.prepare())

    async def step(self, step: int) -> StepReport:
        assert self._controller is not None
        return await _first(self._controller.step(step))

    async def evaluate(self, step: int) -> EvaluationReport:
        if isinstance(self._controller, Controller):
            await _first(self._controller.settle())
        assert self._evaluator is not None
        return await _first(self._evaluator.evaluate(step))

    async def evaluated(self) -> tuple[int, int]:
        """Of the evaluation under way: prompts answered, and all there are; zeros where rows are evaluated at once."""
        return self._evaluator.progress if isinstance(self._evaluator, Evaluator) else (0, 0)

    async def save(self, folder: str) -> dict[str, Any]:
        """Write the groups carried over into `folder`; returns the state that is the same for all. Collective."""
        assert self._controller is not None
        state, carried = await self._controller.state()
        if carried:
            with open(Path(folder) / f"controller-{self._index}.jsonl", "w", encoding="utf-8") as out:
                out.writelines(json.dumps(asdict(group)) + "\n" for group in carried)
        return state

    async def restore(self, state: dict[str, Any] | None, folder: str) -> None:
        """Go on from what `save` returned and what all controllers wrote into `folder`; without a state, from the start
        of the run. Collective."""
        assert self._controller is not None
        if state is None:
            await _first(self._controller.restore(self._controller.desk.state()))
            return
        lines = [line for file in sorted(Path(folder).glob("controller-*.jsonl")) for line in file.open()]
        await _first(self._controller.restore(state, [CarriedGroup(**json.loads(line)) for line in lines]))

    async def close(self) -> None:
        if self._scorer is not None:
            await self._scorer.close()
        if self._setup is not None:
            await self._setup.environment.close()


async def _first(work: Awaitable[R]) -> R:
    """The result of `work`; of several errors at once, the one that tells why is raised."""
    try:
        return await work
    except BaseExceptionGroup as group:
        raise first_error(group) from group


class HubOverTheWire:
    """`yatt.controller.peers.Meeting`, where another controller hosts the hub."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def gather(self, tag: str, index: int, value: Any) -> list[Any]:
        values: list[Any] = await self._actor.meet.remote(tag, index, value)
        return values

    async def hear(self, seen: int) -> tuple[int, Any]:
        news: tuple[int, Any] = await self._actor.hear.remote(seen)
        return news


def _node() -> str:
    """The node of this process."""
    return ray.get_runtime_context().get_node_id()
