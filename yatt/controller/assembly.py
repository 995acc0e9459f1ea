"""Puts a controller together from the parts that a runtime brings: the same for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from yatt.algorithm.filter import Filter
from yatt.algorithm.samples import samples
from yatt.config.schema import Config
from yatt.controller.evaluator import Evaluator, OnEvaluated
from yatt.controller.exchange import Exchange
from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Decode, Responder, Rollouter
from yatt.controller.router import Router
from yatt.controller.stage import Publisher, Stage
from yatt.controller.step import Controller, Desk, OnGroups, SftController, T
from yatt.placement.plan import colocated, resident
from yatt.protocols import Clock, Peers, Scorer, Source, Trainer
from yatt.types import Prompt, Sample

RUNNING = 256
"""Requests an engine runs at once where `rollout.engine_args` does not say: vLLM's own default."""


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
    """What a runtime brings where responses are drawn. With `sleep`, engines and ranks take turns on a slot."""

    generators: Sequence[PlacedGenerator]
    scorer: Scorer
    decode: Decode
    sleep: bool


class Assembly:
    """One controller's fleet, router and stage, shared by its training and its evaluation."""

    def __init__(self, parts: Parts, engines: Engines) -> None:
        config, peers = parts.config, parts.peers
        self._parts = parts
        self._fleet = Fleet(engines.generators)
        plan = (colocated if engines.sleep else resident)(s for g in engines.generators for s in g.slots)
        self._stage = Stage(plan, self._fleet, parts.trainer, peers)
        running = int(config.rollout.engine_args.get("max_num_seqs", RUNNING))
        router = Router(
            self._fleet,
            clock=parts.clock,
            # Twice what an engine runs at once, over all controllers: enough that it never waits for them.
            limit=max(config.rollout.n, -(-2 * running // peers.count)),
            first=peers.index * len(self._fleet) // peers.count,
            timeout=config.cluster.step_timeout,
        )
        self._responder = partial(Responder, router, engines.scorer, engines.decode, config.run.seed)

    def controller(self, source: Source[Prompt], drop: Filter, on_groups: OnGroups) -> Controller:
        """The controller that trains. `drop` is the filter of groups."""
        config, parts = self._parts.config, self._parts
        return Controller(
            desk=desk(parts, source),
            rollouter=Rollouter(source=source, responder=self._responder("rollout"), drop=drop, config=config.rollout),
            to_samples=partial(samples, config=config.algorithm, max_tokens=config.rollout.max_tokens),
            stage=self._stage,
            publisher=Publisher(self._fleet, parts.trainer, parts.peers),
            fleet=self._fleet,
            on_groups=on_groups,
        )

    def evaluator(self, prompts: Sequence[Prompt], on_evaluated: OnEvaluated) -> Evaluator:
        """The evaluator of this controller's share of the held-out prompts."""
        return Evaluator(
            prompts=prompts,
            responder=self._responder("evaluate"),
            rollout=self._parts.config.rollout,
            config=self._parts.config.evaluate,
            peers=self._parts.peers,
            stage=self._stage,
            on_evaluated=on_evaluated,
        )


def sft_controller(parts: Parts, source: Source[Sample]) -> SftController:
    return SftController(desk=desk(parts, source))


def desk(parts: Parts, source: Source[T]) -> Desk[T]:
    return Desk(
        peers=parts.peers,
        source=source,
        exchange=parts.exchange,
        trainer=parts.trainer,
        recorder=Recorder(f"controller {parts.peers.index}", parts.clock),
        batch_size=parts.config.train.batch_size,
    )
