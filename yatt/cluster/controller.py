"""A controller in a process of its own: the heart's parts, bound to Ray actors, a tokenizer and the run's files."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from yatt.algorithm.samples import samples
from yatt.cluster.calls import first_error
from yatt.cluster.generator import RemoteGenerator
from yatt.cluster.process import SlotProcess, settle
from yatt.cluster.rank import RankHandle, RemoteTrainer
from yatt.config.facts import model_facts
from yatt.config.schema import Config
from yatt.controller.evaluator import Evaluator
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Responder, Rollouter
from yatt.controller.router import Router
from yatt.controller.stage import Publisher, Stage
from yatt.controller.step import Controller, Desk, SftController
from yatt.data.loader import Loader, evaluation_prompts
from yatt.data.prompts import DemonstrationEncoder, PromptEncoder, load_tokenizer
from yatt.data.source import open_source
from yatt.placement.plan import colocated, resident
from yatt.protocols import Peers
from yatt.reward.pool import FunctionScorer
from yatt.types import EvaluationReport, Group, StepReport, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorHandle:
    """A started generator: its actor, what it is called, and where it stands."""

    actor: Any
    name: str
    slots: tuple[int, ...]
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Whom a controller talks to. `hub` is controller 0; without ranks the cluster can only evaluate."""

    hub: Any
    generators: tuple[GeneratorHandle, ...]
    ranks: tuple[RankHandle, ...]
    dp_size: int
    sleep: bool


class WallClock:
    """Seconds since the epoch."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ControllerActor:
    """Hosts one controller."""

    def __init__(self, process: SlotProcess, config: Config, *, index: int, count: int, run_path: str) -> None:
        settle(process)
        self._config = config
        self._index = index
        self._count = count
        self._log = SampleLog(Path(run_path) / "samples", index, config.log.samples)
        self._hub = Hub(count, config.cluster.step_timeout)
        self._scorer: FunctionScorer | None = None
        self._controller: Controller | SftController | None = None
        self._evaluator: Evaluator | None = None

    async def meet(self, tag: str, index: int, value: Any) -> list[Any]:
        """The hub of all controllers' collectives; only controller 0 is asked."""
        return await self._hub.gather(tag, index, value)

    async def start(self, wiring: Wiring) -> None:
        """Open the data, start the reward workers, wire everything up."""
        config = self._config
        gather = self._hub.gather if self._index == 0 else partial(_over_the_wire, wiring.hub)
        peers = HubPeers(self._index, self._count, gather)
        trainer = RemoteTrainer(
            wiring.ranks, weights_kind=config.weights.transport, timeout=config.cluster.step_timeout
        )
        tokenizer = load_tokenizer(config.model.path)
        if config.algorithm.name == "sft":
            encoder = DemonstrationEncoder(tokenizer, config.data, config.model.context_length)
            self._controller = SftController(desk=self._desk(encoder, peers, trainer, wiring))
            return
        self._scorer = FunctionScorer(config.reward)
        await self._scorer.start()
        client, timeout = f"controller {self._index}", config.cluster.step_timeout
        generators = [
            RemoteGenerator(g.actor, name=g.name, client=client, slots=g.slots, node=g.node, timeout=timeout)
            for g in wiring.generators
        ]
        plan = (colocated if wiring.sleep else resident)(s for g in generators for s in g.slots)
        stage = Stage(plan, generators, trainer, peers)
        prompts = PromptEncoder(tokenizer, config.data, config.model.context_length, config.rollout.max_tokens)
        respond = partial(
            Responder, Router(generators, first=self._index), self._scorer, partial(_decode, tokenizer), config.run.seed
        )
        self._evaluator = self._evaluation(prompts, respond("evaluate"), peers, stage)
        if wiring.ranks:
            desk = self._desk(prompts, peers, trainer, wiring)
            self._controller = Controller(
                desk=desk,
                rollouter=Rollouter(source=desk.source, responder=respond("rollout"), config=config.rollout),
                to_samples=partial(samples, config=config.algorithm, max_tokens=config.rollout.max_tokens),
                stage=stage,
                publisher=Publisher(generators, trainer, peers),
                on_groups=self._log.groups,
            )

    def _evaluation(self, encode: PromptEncoder, responder: Responder, peers: Peers, stage: Stage) -> Evaluator | None:
        """The evaluator of this controller's share of the held-out rows, where there are any."""
        config = self._config
        if config.evaluate.path is None and config.evaluate.size is None:
            return None
        prompts = evaluation_prompts(config, encode, index=self._index, count=self._count)
        return Evaluator(
            prompts=prompts,
            responder=responder,
            rollout=config.rollout,
            config=config.evaluate,
            peers=peers,
            stage=stage,
            on_evaluated=self._log.evaluation,
        )

    def _desk(self, encode: Any, peers: Peers, trainer: RemoteTrainer, wiring: Wiring) -> Desk[Any]:
        train = self._config.train
        return Desk(
            peers=peers,
            source=self._loader(encode),
            exchange=Exchange(
                peers,
                ranks=wiring.dp_size,
                updates=train.updates_per_step,
                budget=train.tokens_per_micro_batch,
                quadratic=1 / (12 * model_facts(self._config.model.path).hidden_size),
            ),
            trainer=trainer,
            recorder=Recorder(f"controller {self._index}", WallClock()),
            batch_size=train.batch_size,
        )

    def _loader(self, encode: Any) -> Loader[Any]:
        config = self._config
        return Loader(
            open_source(config.data, config.run.seed),
            encode,
            seed=config.run.seed,
            shuffle=config.data.shuffle,
            index=self._index,
            count=self._count,
            bad_rows=config.data.bad_rows,
        )

    async def step(self, step: int) -> StepReport:
        try:
            return await self._controller.step(step)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    async def evaluate(self, step: int) -> EvaluationReport:
        try:
            return await self._evaluator.evaluate(step)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    async def state(self) -> dict[str, Any]:
        return await self._controller.state()

    async def restore(self, state: dict[str, Any]) -> None:
        await self._controller.restore(state)

    async def close(self) -> None:
        if self._scorer is not None:
            await self._scorer.close()


async def _over_the_wire(hub: Any, tag: str, index: int, value: Any) -> list[Any]:
    return await hub.meet.remote(tag, index, value)


def _decode(tokenizer: Any, tokens: np.ndarray) -> str:
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=True)


class SampleLog:
    """A few trajectories to read, straight from the controller to the run folder."""

    def __init__(self, folder: Path, index: int, limit: int) -> None:
        self._folder = folder
        self._index = index
        self._limit = limit

    def groups(self, step: int, groups: Sequence[Group]) -> None:
        """The first trajectory of the step's first groups, failed ones included."""
        chosen = [(group.failures + group.trajectories)[0] for group in groups[: self._limit]]
        self._write("step", step, chosen, None)

    def evaluation(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Every response to the first prompts; sibling 0 is the greedy one."""
        uids = list(dict.fromkeys(t.prompt.uid for t in trajectories))[: self._limit]
        chosen = [t for t in trajectories if t.prompt.uid in uids]
        self._write("eval", step, chosen, lambda t: "sampled" if t.sibling else "greedy")

    def _write(self, kind: Literal["step", "eval"], step: int, chosen: Sequence[Trajectory], mode: Any) -> None:
        if not chosen or not self._limit:
            return
        with open(self._folder / f"{kind}-{step}.c{self._index}.jsonl", "w", encoding="utf-8") as out:
            for t in chosen:
                row = {
                    "step": step,
                    "uid": t.prompt.uid,
                    "sibling": t.sibling,
                    "prompt": t.prompt.text,
                    "response": t.text,
                    "reward": t.score.value if t.score else None,
                    "parts": dict(t.score.parts) if t.score else {},
                    "status": t.score.status if t.score else None,
                    "detail": t.score.detail if t.score else "",
                    "finish": t.finish,
                    "response_tokens": t.response_tokens,
                    "answer": t.prompt.answer,
                }
                out.write(json.dumps(row | ({"mode": mode(t)} if mode else {}), ensure_ascii=False) + "\n")
