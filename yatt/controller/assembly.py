"""Puts a controller together from the parts that a runtime brings: the same for every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from yatt import balance
from yatt.algorithm.filter import Filter
from yatt.algorithm.rewards import RewardShaper, part_weights
from yatt.algorithm.samples import samples
from yatt.config.placement import train_slots
from yatt.config.schema import Config
from yatt.controller.desk import Desk, T
from yatt.controller.director import Director
from yatt.controller.engine_stats import EngineStats
from yatt.controller.evaluator import Evaluator, OnEvaluated
from yatt.controller.exchange import Assign, Exchange
from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.offline import OfflineController
from yatt.controller.phases import Phases
from yatt.controller.player import ConversationSetup, Player
from yatt.controller.recorder import Recorder
from yatt.controller.reference_rows import PrecomputedReference
from yatt.controller.responder import Decode, Responder
from yatt.controller.rollouter import Rollouter
from yatt.controller.router import Router
from yatt.controller.step import Controller, OnGroups
from yatt.controller.tally import takes_greedy
from yatt.controller.weight_sync import WeightSync
from yatt.diagnosis import ROUNDING
from yatt.errors import ProcessDied
from yatt.models.facts import NO_IMAGES, ImageCost
from yatt.placement.cost import served, shape_of
from yatt.placement.forecast import FAIR
from yatt.placement.plan import POLICY, EngineSite, Layout, Role, apportion, arrange
from yatt.placement.policy import Mode, open_mode
from yatt.protocols import Clock, Peers, Scorer, Source, Trainer
from yatt.types import Pair, Prompt, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a runtime brings to every kind of controller."""

    config: Config
    peers: Peers
    trainer: Trainer
    exchange: Exchange
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What a runtime brings where responses are drawn: the generators of each role on the slots of `layout`, the
    policy's first. With `resident`, engines and ranks do not take turns on their slots; with `coming`, the runtime
    starts an engine that dies anew, and says so by `Assembly.join` or `Assembly.give_up`."""

    layout: Layout
    mode: Mode
    generators: Mapping[Role, Sequence[PlacedGenerator]]
    resident: bool
    coming: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How responses are read: token ids to text, and text to a score; and what conversations are played in, where
    prompts are more than answered."""

    decode: Decode
    scorer: Scorer
    setup: ConversationSetup | None = None


class Assembly:
    """One controller's fleets, routers and phases, shared by its training and its evaluation."""

    def __init__(self, parts: Parts, engines: Engines) -> None:
        peers, self._parts = parts.peers, parts
        self._recorder = Recorder(f"controller {peers.index}", parts.clock)
        self._fleets = {role: Fleet(one, coming=engines.coming) for role, one in engines.generators.items()}
        dtype, stops = parts.config.model.dtype, parts.config.rollout.engine_gap == "stop"
        self._weight_sync = WeightSync(
            self._fleets[POLICY], parts.trainer, peers, ROUNDING[dtype], dtype=dtype, stops=stops
        )
        self.routers = {role: self._router(role, fleet) for role, fleet in self._fleets.items()}
        self._phases = Phases(
            routers=self.routers,
            director=Director(
                mode=engines.mode,
                layout=engines.layout,
                routers=self.routers,
                stats={role: self._stats(role, engines.layout) for role in self._fleets},
                clock=parts.clock,
            ),
            trainer=parts.trainer,
            weight_sync=self._weight_sync,
            peers=peers,
            recorder=self._recorder,
            resident=engines.resident,
            continuous=draws_ahead(parts.config),
        )

    async def join(self, role: Role, number: int, generator: PlacedGenerator) -> None:
        """See `Phases.join`. The leader is told first."""
        await self._phases.join(role, number, generator)

    def give_up(self, role: Role, number: int, error: ProcessDied) -> None:
        """This engine died and is not started anew."""
        self._phases.give_up(role, number, error)

    def _router(self, role: Role, fleet: Fleet) -> Router:
        config, peers = self._parts.config, self._parts.peers
        siblings = responses_per_prompt(config) if role == POLICY else config.reward.models[role].judgements
        return Router(
            fleet,
            clock=self._parts.clock,
            # Twice what an engine runs at once, over all controllers: enough that it never waits for them.
            limit=max(siblings, -(-2 * running(config, role) // peers.count)),
            index=peers.index,
            controllers=peers.count,
            timeout=config.cluster.step_timeout,
        )

    def _stats(self, role: Role, layout: Layout) -> EngineStats:
        config, block = self._parts.config, max(layout.sizes.values())
        judge = config.reward.models.get(role)
        return EngineStats(
            per_response=judge.judgements if judge else 1,
            max_tokens=judge.max_tokens if judge else config.rollout.max_tokens,
            capacity=running(config, role),
            engines=block // layout.sizes[role],
        )

    def controller(self, source: Source[Prompt], reading: Reading, drop: Filter, on_groups: OnGroups) -> Controller:
        """The controller that trains. `drop` is the filter of groups."""
        config, parts = self._parts.config, self._parts
        shaper = RewardShaper(config.algorithm, config.rollout.max_tokens)
        return Controller(
            desk=desk(parts, source, self._recorder),
            rollouter=Rollouter(
                source=source,
                responder=self._responder(reading, "rollout"),
                drop=drop,
                config=config.rollout,
                advantage=config.algorithm.recipe.advantage,
            ),
            to_samples=partial(
                samples,
                config=config.algorithm,
                max_tokens=config.rollout.max_tokens,
                shaper=shaper,
                weights=part_weights(config.reward),
            ),
            shaper=shaper,
            phases=self._phases,
            weight_sync=self._weight_sync,
            fleet=self._fleets[POLICY],
            on_groups=on_groups,
            responses=config.train.batch_size * responses_per_prompt(config),
            ahead=config.train.steps if draws_ahead(config) else 0,
        )

    def evaluator(self, prompts: Sequence[Prompt], reading: Reading, on_evaluated: OnEvaluated) -> Evaluator:
        """The evaluator of this controller's share of the held-out prompts."""
        return Evaluator(
            prompts=prompts,
            responder=self._responder(reading, "evaluate"),
            rollout=self._parts.config.rollout,
            config=self._parts.config.evaluate,
            peers=self._parts.peers,
            phases=self._phases,
            on_evaluated=on_evaluated,
        )

    def _responder(self, reading: Reading, purpose: str) -> Responder:
        seed, router = self._parts.config.run.seed, self.routers[POLICY]
        if reading.setup is None:
            return Responder(router, reading.scorer, reading.decode, seed, purpose)
        clock = self._parts.clock
        return Player(router, reading.scorer, reading.decode, seed, purpose, setup=reading.setup, clock=clock)


def responses_per_prompt(config: Config) -> int:
    """What the engines draw for a prompt of a rollout."""
    return config.rollout.n + takes_greedy(config.algorithm.recipe.advantage)


def running(config: Config, role: Role) -> int:
    """Requests that an engine of this role runs at once."""
    return shape_of(config, role).running


def exchange_of(
    config: Config,
    peers: Peers,
    *,
    quadratic: float,
    image_cost: ImageCost = NO_IMAGES,
    node: str,
    rank_nodes: Sequence[str],
    assign: Assign = balance.assign,
) -> Exchange:
    """The exchange of a controller on `node`, with a data-parallel rank on each of `rank_nodes`."""
    train = config.train
    return Exchange(
        peers,
        ranks=len(rank_nodes),
        updates=train.updates_per_step,
        budget=train.tokens_per_micro_batch,
        quadratic=quadratic,
        stages=train.pp,
        image_cost=image_cost,
        patches=train.patches_per_micro_batch,
        node=node,
        rank_nodes=rank_nodes,
        assign=assign,
    )


def resident(config: Config, *, trains: bool) -> bool:
    """Whether engines keep their memory all the time, in place of taking turns with ranks on their slots."""
    return not (config.rollout.sleep and trains) or config.placement.mode == "disaggregated"


def draws_ahead(config: Config) -> bool:
    """Whether the next step's responses are drawn while this one trains: on slots of their own, from a policy that may
    be one version behind."""
    return config.placement.mode == "disaggregated" and config.rollout.max_staleness > 0


def layout_of(config: Config, slots: int) -> Layout:
    """How so many slots, but for those that only train, can be divided between the policy and the judges that this run
    serves."""
    sizes = {role: shape.tensor_parallel for role, shape in served(config).items()}
    apart = train_slots(config, slots) if config.placement.mode == "disaggregated" else 0
    return Layout(slots=tuple(range(slots - apart)), sizes=sizes)


def mode_of(config: Config, layout: Layout, parameters: Mapping[Role, float]) -> Mode:
    """How the run places roles on the layout; `parameters` are what each role's model weighs."""
    given = {role: slots // max(layout.sizes.values()) for role, slots in config.placement.split.items()}
    if config.placement.mode == "partial" and not given:
        given = apportion(len(layout.blocks), dict.fromkeys(layout.sizes, 1.0))
    return open_mode(config.placement.mode, given=given, parameters=parameters)


def engine_sites(layout: Layout, mode: Mode) -> dict[Role, list[EngineSite]]:
    """Where each role has engines: on every block, or, where none ever changes hands, on its own."""
    blocks = range(len(layout.blocks))
    if mode.look is not None or len(layout.sizes) == 1:
        return {role: layout.engines(role, blocks) for role in layout.sizes}
    holders = arrange(mode.start(len(blocks), None, None, 0.0, FAIR).split)
    return {role: layout.engines(role, [b for b in blocks if holders[b] == role]) for role in layout.sizes}


def offline_controller(
    parts: Parts,
    source: Source[Sample | Pair],
    held_out: Sequence[Sample | Pair],
    reference: PrecomputedReference | None = None,
) -> OfflineController:
    recorder = Recorder(f"controller {parts.peers.index}", parts.clock)
    return OfflineController(desk=desk(parts, source, recorder), held_out=held_out, reference=reference)


def desk(parts: Parts, source: Source[T], recorder: Recorder) -> Desk[T]:
    return Desk(
        peers=parts.peers,
        source=source,
        exchange=parts.exchange,
        trainer=parts.trainer,
        recorder=recorder,
        batch_size=parts.config.train.batch_size,
    )
