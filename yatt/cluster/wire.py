"""How lists of small objects travel: as columns, which pickle as a few large buffers, and are read back as views.

Images do not travel inside: packing gives their handles, each once, to be sent beside the columns (see `media`), and
reading puts back the arrays that they are opened as.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np

from yatt.types import Completion, Denominator, Finish, Media, Request, Sample, SampleKey, SamplingParams, Share, Span

T = TypeVar("T")
FINISHES: tuple[Finish, ...] = get_args(Finish)

Ended = list[tuple[int, list[Completion] | str]]
"""By stream: completions that have ended, or why the stream failed."""


class CompletionColumns(NamedTuple):
    """What an engine answers to streams; `streams` says how many completions each has, or why it failed.
    keys [n, 2], lengths [n], tokens and logprobs end to end, spans [s, 4] (completion, start, stop, version); `logits`
    are a classifier's answers, by completion."""

    streams: list[tuple[int, int | str]]
    keys: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    spans: np.ndarray
    finishes: bytes
    logits: dict[int, float]


def pack_completions(ended: Ended) -> CompletionColumns:
    every = [c for _, completions in ended if not isinstance(completions, str) for c in completions]
    return CompletionColumns(
        streams=[(stream, part if isinstance(part, str) else len(part)) for stream, part in ended],
        keys=_keys(every),
        lengths=np.array([len(c.tokens) for c in every], dtype=np.int64),
        tokens=_end_to_end([c.tokens for c in every], np.int32),
        logprobs=_end_to_end([c.rollout_logprobs for c in every], np.float32),
        spans=np.array(
            [(i, s.start, s.stop, s.version) for i, c in enumerate(every) for s in c.spans], dtype=np.int64
        ).reshape(-1, 4),
        finishes=bytes(FINISHES.index(c.finish) for c in every),
        logits={i: c.logit for i, c in enumerate(every) if c.logit is not None},
    )


def read_completions(columns: CompletionColumns) -> Ended:
    spans: list[list[Span]] = [[] for _ in columns.finishes]
    for index, start, stop, version in columns.spans.tolist():
        spans[index].append(Span(start=start, stop=stop, version=version))
    every = (
        Completion(
            key=key,
            tokens=tokens,
            rollout_logprobs=logprobs,
            spans=tuple(own),
            finish=FINISHES[finish],
            logit=columns.logits.get(index),
        )
        for index, key, tokens, logprobs, own, finish in zip(
            range(len(columns.finishes)),
            _read_keys(columns.keys),
            _cut(columns.tokens, columns.lengths),
            _cut(columns.logprobs, columns.lengths),
            spans,
            columns.finishes,
            strict=True,
        )
    )
    return [(stream, part if isinstance(part, str) else list(islice(every, part))) for stream, part in columns.streams]


class RequestColumns(NamedTuple):
    """Requests of streams. Siblings share their prompt: `prompt` [n] says which of `lengths` [p] (tokens end to end)
    a request has, and `images` [p] how many images belong to it; `param` [n] is the place of its `params`."""

    streams: list[tuple[int, int]]
    keys: np.ndarray
    seeds: np.ndarray
    prompt: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    images: list[int]
    param: np.ndarray
    params: list[SamplingParams]


def pack_requests(streams: Sequence[tuple[int, Sequence[Request]]]) -> tuple[RequestColumns, list[Any]]:
    """The columns, and the handles of the images."""
    every = list(chain.from_iterable(requests for _, requests in streams))
    prompts, prompt = _distinct(every, [(id(r.tokens), id(r.media)) for r in every])
    params, param = _distinct([r.params for r in every], [id(r.params) for r in every])
    columns = RequestColumns(
        streams=[(stream, len(requests)) for stream, requests in streams],
        keys=_keys(every),
        seeds=np.array([r.seed for r in every], dtype=np.int64),
        prompt=prompt,
        lengths=np.array([len(r.tokens) for r in prompts], dtype=np.int64),
        tokens=_end_to_end([r.tokens for r in prompts], np.int32),
        images=[len(r.media) for r in prompts],
        param=param,
        params=params,
    )
    return columns, [image.handle for r in prompts for image in r.media]


def read_requests(columns: RequestColumns, opened: Sequence[Any]) -> list[tuple[int, list[Request]]]:
    """`opened` are the images in the order of their handles."""
    prompts = list(zip(_cut(columns.tokens, columns.lengths), _media(columns.images, opened), strict=True))
    every = (
        Request(key=key, tokens=prompts[p][0], params=columns.params[q], seed=seed, media=prompts[p][1])
        for key, seed, p, q in zip(
            _read_keys(columns.keys),
            columns.seeds.tolist(),
            columns.prompt.tolist(),
            columns.param.tolist(),
            strict=True,
        )
    )
    return [(stream, list(islice(every, count))) for stream, count in columns.streams]


class ShareColumns(NamedTuple):
    """A share: `counts[u][m]` samples of micro-batch m of update u, whose columns lie end to end; sample i has the
    images `media[i]`, and `images` says how many each of those are. `logprobs` is None where the samples have none.
    keys [n, 2], lengths, advantages, rewards, seconds and fresh [n], masks, tokens and logprobs end to end.
    `references` are pairs, or None."""

    head: tuple[int, int, int, tuple[int, ...], tuple[Denominator, ...]]
    counts: list[list[int]]
    keys: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    masks: np.ndarray
    logprobs: np.ndarray | None
    advantages: np.ndarray
    rewards: np.ndarray
    seconds: np.ndarray
    fresh: np.ndarray
    references: list[tuple[float, float] | None]
    media: np.ndarray
    images: list[int]


def pack_share(share: Share) -> tuple[ShareColumns, list[Any]]:
    """The columns, and the handles of the images."""
    every = [sample for update in share.updates for micro in update for sample in micro]
    bare = all(s.rollout_logprobs is None for s in every)
    held, media = _distinct([s.media for s in every], [id(s.media) for s in every])
    columns = ShareColumns(
        head=(share.step, share.rank, share.controller, share.senders, share.denominators),
        counts=[[len(micro) for micro in update] for update in share.updates],
        keys=_keys(every),
        lengths=np.array([len(s.tokens) for s in every], dtype=np.int64),
        tokens=_end_to_end([s.tokens for s in every], np.int32),
        masks=_end_to_end([s.loss_mask for s in every], np.bool_),
        logprobs=None if bare else _end_to_end([s.rollout_logprobs for s in every], np.float32),
        advantages=np.array([s.advantage for s in every], dtype=np.float64),
        rewards=np.array([s.reward for s in every], dtype=np.float64),
        seconds=np.array([s.second for s in every], dtype=np.int64),
        fresh=np.array([s.fresh for s in every], dtype=np.int64),
        references=[s.reference for s in every],
        media=media,
        images=[len(images) for images in held],
    )
    return columns, [image.handle for images in held for image in images]


def read_share(columns: ShareColumns, opened: Sequence[Any]) -> Share:
    """`opened` are the images in the order of their handles."""
    media, lengths = _media(columns.images, opened), columns.lengths
    bare = columns.logprobs is None
    every = (
        Sample(
            key=key,
            tokens=tokens,
            loss_mask=mask,
            rollout_logprobs=logprobs,
            advantage=advantage,
            reward=reward,
            second=second,
            reference=reference,
            media=media[m],
            fresh=fresh,
        )
        for key, tokens, mask, logprobs, advantage, reward, second, fresh, reference, m in zip(
            _read_keys(columns.keys),
            _cut(columns.tokens, lengths),
            _cut(columns.masks, lengths),
            [None] * len(lengths) if bare else _cut(columns.logprobs, lengths),
            columns.advantages.tolist(),
            columns.rewards.tolist(),
            columns.seconds.tolist(),
            columns.fresh.tolist(),
            columns.references,
            columns.media.tolist(),
            strict=True,
        )
    )
    step, rank, controller, senders, denominators = columns.head
    return Share(
        step=step,
        rank=rank,
        controller=controller,
        senders=senders,
        updates=tuple(tuple(tuple(islice(every, count)) for count in update) for update in columns.counts),
        denominators=denominators,
    )


def _keys(items: Sequence[Completion | Request | Sample]) -> np.ndarray:
    return np.array([item.key for item in items], dtype=np.int64).reshape(-1, 2)


def _read_keys(keys: np.ndarray) -> Iterator[SampleKey]:
    return map(SampleKey._make, keys.tolist())


def _end_to_end(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def _cut(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Views of arrays that lie end to end."""
    return [values[start:stop] for start, stop in pairwise(accumulate(lengths.tolist(), initial=0))]


def _media(counts: Iterable[int], opened: Sequence[Any]) -> list[tuple[Media, ...]]:
    images = (Media(handle=array, nbytes=array.nbytes) for array in opened)
    return [tuple(islice(images, count)) for count in counts]


def _distinct(items: Sequence[T], names: Sequence[Hashable]) -> tuple[list[T], np.ndarray]:
    """The first item of each name, and for every item the place [n] of its name's."""
    firsts: dict[Hashable, T] = {}
    for name, item in zip(names, items, strict=True):
        firsts.setdefault(name, item)
    places = {name: place for place, name in enumerate(firsts)}
    return list(firsts.values()), np.array([places[name] for name in names], dtype=np.int64)
