"""The data path's controls: one process through which all data flows, with the same engines, ranks and mathematics.

`Naive` does it the usual way: a batch is a dict of padded tensors with a row per response; every image is repeated per
response; each hop (generate, old logprobs, reference logprobs, update) splits the whole batch, sends each worker its
part by value, and gathers what comes back into the batch. `Lean` is the strongest of the usual kind that we can write:
one image per prompt in the store and references to it, columns end to end, the two hops that the parallel controllers
have, no streaming. `Packed` is the same with their parcels of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.datapath_meters import pid_of
from benchmarks.datapath_parts import PROMPT, Engine, Rank, Reward, Tokenizer
from yatt.algorithm.samples import samples
from yatt.cluster.media import RayMediaStore, address, opened
from yatt.cluster.wire import (
    CompletionColumns,
    RequestColumns,
    ShareColumns,
    pack_completions,
    pack_requests,
    pack_share,
    read_completions,
    read_requests,
    read_share,
)
from yatt.config.schema import Config
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.responder import request_seed
from yatt.controller.tally import as_group
from yatt.data.encoders import row_encoder
from yatt.data.loader import Loader
from yatt.data.source import open_source
from yatt.protocols import MediaStore
from yatt.reports import UpdateReport
from yatt.types import Completion, Media, Prompt, Request, Sample, SampleKey, SamplingParams, Span, Trajectory


class Batch(dict[str, np.ndarray]):
    """Columns with a row per response. In a message they are torch tensors, pickled as torch and Ray do."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A slice is cloned: pickled as it is, it would take the whole column along.
        return read_batch, ({name: torch.from_numpy(column).clone() for name, column in self.items()},)


def read_batch(tensors: Mapping[str, torch.Tensor]) -> Batch:
    return Batch({name: tensor.numpy() for name, tensor in tensors.items()})


class Worker:
    """The process of one engine, or of one rank."""

    def __init__(self, config: Config, index: int) -> None:
        self.engine = Engine(config.rollout)
        self.rank = Rank(config, rank=index, world_size=1)
        self.params = SamplingParams(max_tokens=config.rollout.max_tokens)

    def generate_columns(self, columns: RequestColumns, *images: Any) -> CompletionColumns:
        streams = read_requests(columns, opened(images))
        return pack_completions([(stream, list(map(self.engine.answer, requests))) for stream, requests in streams])

    def update_columns(self, columns: ShareColumns, *images: Any) -> UpdateReport:
        return self.rank.update([read_share(columns, opened(images))])

    def generate(self, batch: Batch) -> Batch:
        ended = [self.engine.answer(self._request(batch, row)) for row in range(len(batch["seeds"]))]
        responses = np.stack([c.tokens for c in ended]).astype(np.int64)
        logprobs = np.stack([c.rollout_logprobs for c in ended])
        return type(batch)(responses=responses, rollout_logprobs=logprobs, response_mask=np.ones_like(responses))

    def _request(self, batch: Batch, row: int) -> Request:
        key, tokens = SampleKey(*batch["keys"][row].tolist()), batch["prompts"][row]
        return Request(
            key=key, tokens=tokens, params=self.params, seed=int(batch["seeds"][row]), media=image_of(batch, row)
        )

    def logprobs(self, batch: Batch) -> Batch:
        return type(batch)(logprobs=np.full(batch["responses"].shape, -0.5, dtype=np.float32))

    def update(self, batch: Batch) -> float:
        zeros = np.zeros(PROMPT, dtype=np.float32)
        return self.rank.total(
            [
                Sample(
                    key=SampleKey(*batch["keys"][row].tolist()),
                    tokens=batch["input_ids"][row],
                    loss_mask=np.arange(batch["input_ids"].shape[1]) >= PROMPT,
                    rollout_logprobs=np.concatenate([zeros, batch["rollout_logprobs"][row]]),
                    advantage=float(batch["advantages"][row]),
                    media=image_of(batch, row),
                )
                for row in range(len(batch["keys"]))
            ]
        )


def image_of(batch: Batch, row: int) -> tuple[Media, ...]:
    image = batch["images"][row]
    return (Media(handle=image, nbytes=image.nbytes),) if image.nbytes else ()


class Central:
    """What all controls share: the rows, the workers, rewards and group advantages, all in this process."""

    worker: type[Any] = Worker

    def __init__(self, config: Config, store: MediaStore) -> None:
        self.config = config
        rows = open_source(config.data, config.run.seed)
        order = dict(seed=config.run.seed, shuffle=True, index=0, count=1, bad_rows="fail")
        self.source: Loader[Prompt] = Loader(rows, row_encoder(config, Tokenizer(""), rows, store), **order)
        self.params = SamplingParams(max_tokens=config.rollout.max_tokens)
        self.reward = Reward(config.reward)
        actors = [
            [ray.remote(self.worker).options(num_cpus=0).remote(config, index) for index in range(config.cluster.slots)]
            for _ in range(2)
        ]
        self.engines, self.ranks = actors
        self.actors = [*self.engines, *self.ranks]
        limits = dict(updates=1, budget=config.train.tokens_per_micro_batch, quadratic=1e-5)
        self.exchange = Exchange(HubPeers(0, 1, Hub(1, 1.0)), ranks=len(self.ranks), **limits)

    async def start(self) -> None:
        await self.everywhere(pid_of)

    async def everywhere(self, function: Any) -> list[Any]:
        """The answers of `function(actor)` in every actor's process."""
        return ray.get([actor.__ray_call__.remote(function) for actor in self.actors])

    async def controllers(self, function: Any) -> list[Any]:
        """The same of every controller: this process."""
        return [function(self)]

    def draw(self) -> list[Prompt]:
        self.source.begin_step()
        prompts = [self.source.draw() for _ in range(self.config.train.batch_size)]
        self.source.end_step([len(prompts)])
        return prompts

    def requests(self, prompt: Prompt) -> list[Request]:
        keys = [SampleKey(prompt.uid, sibling) for sibling in range(self.config.rollout.n)]
        return [
            Request(
                key=key,
                tokens=prompt.tokens,
                params=self.params,
                seed=request_seed(self.config.run.seed, key, "rollout"),
                media=prompt.media,
            )
            for key in keys
        ]

    async def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Sample]:
        """Rewards and group advantages, with the package's own functions."""
        texts, n, groups = Tokenizer(""), self.config.rollout.n, []
        for place, prompt in enumerate(prompts):
            drawn = [
                Trajectory.single_turn(prompt, c, texts.decode(c.tokens.tolist(), skip_special_tokens=True))
                for c in completions[place * n : (place + 1) * n]
            ]
            scores = await self.reward.score(drawn)
            groups.append(as_group(prompt, [replace(t, score=s) for t, s in zip(drawn, scores, strict=True)]))
        return samples(groups, config=self.config.algorithm, max_tokens=self.config.rollout.max_tokens)

    async def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class Lean(Central):
    """One image per prompt in the store, columns, two hops."""

    together = False

    def __init__(self, config: Config) -> None:
        super().__init__(config, RayMediaStore(self.together))

    async def step(self, step: int) -> None:
        prompts = self.draw()
        parts = [prompts[number :: len(self.engines)] for number in range(len(self.engines))]
        calls = []
        for engine, part in zip(self.engines, parts, strict=True):
            columns, handles = pack_requests([(0, [r for prompt in part for r in self.requests(prompt)])])
            calls.append(engine.generate_columns.remote(columns, *address(handles)))
        by_key = {c.key: c for columns in ray.get(calls) for c in read_completions(columns)[0][1]}
        keys = [SampleKey(p.uid, sibling) for p in prompts for sibling in range(self.config.rollout.n)]
        shares = await self.exchange.balance(step, await self.judge(prompts, [by_key[key] for key in keys]))
        calls = []
        for share in shares:
            columns, handles = pack_share(share)
            calls.append(self.ranks[share.rank].update_columns.remote(columns, *address(handles)))
        ray.get(calls)


class Packed(Lean):
    """The same with the parcels of the parallel controllers: several images are one object of the store."""

    together = True


class OwnMemory:
    """Keeps images in this process."""

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        return tuple(images)


class Naive(Central):
    """Padded tensors by value, four hops."""

    message: type[dict[str, np.ndarray]] = Batch

    def __init__(self, config: Config) -> None:
        super().__init__(config, OwnMemory())

    async def step(self, step: int) -> None:
        prompts = self.draw()
        n, count = self.config.rollout.n, len(prompts)
        requests = [r for prompt in prompts for r in self.requests(prompt)]
        images = np.stack([p.media[0].handle if p.media else np.empty(0, dtype=np.uint8) for p in prompts])
        batch = Batch(
            keys=np.array([r.key for r in requests]),
            seeds=np.array([r.seed for r in requests]),
            prompts=np.repeat(np.stack([p.tokens for p in prompts]).astype(np.int64), n, axis=0),
            images=np.repeat(images, n, axis=0),
        )
        batch |= self.hop(self.engines, "generate", split(batch, len(self.engines)))
        batch["input_ids"] = np.concatenate([batch["prompts"], batch["responses"]], axis=1)
        batch["attention_mask"] = np.ones_like(batch["input_ids"])
        batch["position_ids"] = np.cumsum(batch["attention_mask"], axis=1) - 1
        for name in ("old_logprobs", "ref_logprobs"):
            batch[name] = self.hop(self.ranks, "logprobs", split(batch, len(self.ranks)))["logprobs"]
        judged = await self.judge(prompts, [self.completion(batch, row) for row in range(count * n)])
        batch["advantages"] = np.array([s.advantage for s in judged])
        row_of = {s.key: row for row, s in enumerate(judged)}
        shares = await self.exchange.balance(step, judged)
        rows = [[row_of[s.key] for update in share.updates for micro in update for s in micro] for share in shares]
        self.hop(self.ranks, "update", [Batch({name: column[part] for name, column in batch.items()}) for part in rows])

    @staticmethod
    def completion(batch: Batch, row: int) -> Completion:
        tokens = batch["responses"][row]
        return Completion(
            key=SampleKey(*batch["keys"][row].tolist()),
            tokens=tokens.astype(np.int32),
            rollout_logprobs=batch["rollout_logprobs"][row],
            spans=(Span(start=0, stop=len(tokens), version=0),),
            finish="length",
        )

    def hop(self, actors: Sequence[Any], method: str, parts: Sequence[Batch]) -> Batch:
        """Send each its part, gather what they give."""
        sent = zip(actors, map(self.message, parts), strict=True)
        answers = ray.get([getattr(actor, method).remote(part) for actor, part in sent])
        if not isinstance(answers[0], Mapping):
            return Batch()
        return Batch({name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]})


class Arrays(Naive):
    """The same in numpy arrays, which Ray sends without pickling them: kinder than what is usual."""

    message = dict


def split(batch: Batch, count: int) -> list[Batch]:
    bounds = [len(batch["keys"]) * part // count for part in range(count + 1)]
    return [Batch({name: column[a:b] for name, column in batch.items()}) for a, b in pairwise(bounds)]
