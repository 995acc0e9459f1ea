"""What travels as columns is read back as it was, as views, with siblings' prompts and images sent once."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.cluster.columns import pack, read
from yatt.cluster.wire import pack_completions, pack_requests, pack_share, read_completions, read_requests, read_share
from yatt.types import (
    Completion,
    Denominator,
    Finish,
    Media,
    Pair,
    Request,
    Sample,
    SampleKey,
    SamplingParams,
    Share,
    Span,
)

BIG = 10**12
keys = st.builds(SampleKey, st.integers(0, BIG), st.integers(0, 64))
lengths = st.integers(0, 6)


def tokens(n: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + n, dtype=np.int32)


def image(seed: int, nbytes: int = 5) -> Media:
    return Media(handle=np.full(nbytes, seed, dtype=np.uint8), nbytes=nbytes)


@st.composite
def completions(draw) -> Completion:
    n = draw(lengths)
    cut = draw(st.integers(0, n))
    spans = [Span(start=a, stop=b, version=v) for a, b, v in ((0, cut, 3), (cut, n, 7)) if b > a]
    return Completion(
        key=draw(keys),
        tokens=tokens(n, draw(st.integers(0, 9))),
        rollout_logprobs=-np.arange(n, dtype=np.float32),
        spans=tuple(spans),
        finish=draw(st.sampled_from(["stop", "length", "aborted"])),
        logit=draw(st.none() | st.floats(width=32, allow_nan=False)),
    )


@st.composite
def groups(draw) -> list[Request]:
    """Siblings of one prompt, or requests that go on with tokens of their own."""
    params = SamplingParams(max_tokens=draw(st.integers(1, 9)), stop=("x",))
    media = tuple(image(i) for i in range(draw(st.integers(0, 2))))
    shared = tokens(draw(lengths))
    return [
        Request(
            key=SampleKey(draw(st.integers(0, BIG)), i),
            tokens=shared if draw(st.booleans()) else tokens(draw(lengths), 50),
            params=params,
            seed=draw(st.integers(0, 2**62)),
            media=media,
        )
        for i in range(draw(st.integers(0, 4)))
    ]


def samples(scored: bool) -> st.SearchStrategy[Sample | Pair]:
    def sample(key: SampleKey, n: int, advantage: float, images: int) -> Sample:
        return Sample(
            key=key,
            tokens=tokens(n),
            loss_mask=np.arange(n) % 2 == 0,
            rollout_logprobs=np.arange(n, dtype=np.float32) if scored else None,
            advantage=advantage,
            reward=-2 * advantage,
            reference=advantage if n % 2 else None,
            media=tuple(image(i, 3) for i in range(images)),
            fresh=n // 3,
        )

    def pair(first: Sample, second: Sample) -> Pair:
        return Pair(first=first, second=second)

    alone = st.builds(sample, keys, lengths, st.floats(-3, 3), st.integers(0, 2))
    return alone | st.builds(pair, alone, alone)


@st.composite
def shares(draw) -> Share:
    batch = st.lists(samples(draw(st.booleans())), max_size=3).map(tuple)
    updates = draw(st.lists(st.lists(batch, max_size=3).map(tuple), max_size=3).map(tuple))
    return Share(
        step=draw(st.integers(0, 9)),
        rank=2,
        controller=1,
        senders=(0, 1),
        updates=updates,
        denominators=tuple(Denominator(tokens=u, sequences=1) for u in range(len(updates))),
    )


def plain_sample(i: int) -> Sample:
    return Sample(key=SampleKey(8, i), tokens=tokens(i, 7), loss_mask=tokens(i) > 0)


def arrays(columns) -> list[np.ndarray]:
    """All arrays of a message."""
    if isinstance(columns, list | tuple):
        return [array for part in columns for array in arrays(part)]
    return [columns] if isinstance(columns, np.ndarray) else []


def plain(value):
    """A value that can be compared: arrays as their type and numbers."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if isinstance(value, SampleKey):
        return tuple(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def sent(message):
    """The message after a journey, and the number of buffers and the bytes besides that it took."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(body, buffers=buffers), len(buffers), len(body)


streams = st.lists(st.integers(0, 99), unique=True, max_size=4)


@given(st.data(), streams)
@settings(max_examples=60)
def test_completions_come_back(data, numbers):
    ended = [(n, data.draw(st.lists(completions(), max_size=4) | st.just("it failed"))) for n in numbers]
    assert plain(read_completions(sent(pack_completions(ended))[0])) == plain(ended)


@given(st.data(), streams)
@settings(max_examples=60)
def test_requests_come_back(data, numbers):
    asked = [(n, data.draw(groups())) for n in numbers]
    columns, handles = pack_requests(asked)
    assert plain(read_requests(sent(columns)[0], handles)) == plain(asked)


@given(shares())
@settings(max_examples=60)
def test_a_share_comes_back(share):
    columns, handles = pack_share(share)
    assert plain(read_share(sent(columns)[0], handles)) == plain(share)


def test_siblings_send_their_prompt_and_its_image_once():
    prompt, media, params = tokens(100), (image(1), image(2)), SamplingParams(max_tokens=4)
    eight = [Request(key=SampleKey(3, i), tokens=prompt, params=params, seed=i, media=media) for i in range(8)]
    columns, handles = pack_requests([(0, eight), (1, eight)])
    assert [len(a) for a in arrays(columns)] == [100] and pickle.dumps(columns).count(b"SamplingParams") == 1
    assert [h is m.handle for h, m in zip(handles, media, strict=True)] == [True, True]
    ((_, read), (_, again)) = read_requests(columns, handles)
    assert all(r.tokens is read[0].tokens and r.media is read[0].media for r in (*read, *again))
    assert read[0].media[1].handle is media[1].handle


def test_a_share_names_an_image_once_and_takes_few_buffers():
    media = (image(1, 1 << 20),)

    def sibling(i: int) -> Sample:
        zeros = np.zeros(500, dtype=np.float32)
        return Sample(
            key=SampleKey(3, i), tokens=tokens(500), loss_mask=zeros == 0, rollout_logprobs=zeros, media=media
        )

    share = Share(
        step=0,
        rank=0,
        controller=0,
        senders=(0,),
        updates=((tuple(sibling(i) for i in range(400)),),),
        denominators=(Denominator(tokens=1, sequences=1),),
    )
    columns, handles = pack_share(share)
    assert len(handles) == 1
    read, buffers, besides = sent(columns)
    # Siblings, tokens, masks and logprobs; the rest is numbers that all have in common.
    assert buffers == 4 and besides < 2000
    assert sum(a.nbytes for a in arrays(read)) == 400 * 2 + 400 * 500 * (4 + 4) + 400 * 500 // 8
    whole = {a.dtype: a for a in arrays(read)}
    for sample in read_share(read, handles).updates[0][0]:
        assert np.shares_memory(sample.tokens, whole[np.dtype(np.int32)])
        assert np.shares_memory(sample.rollout_logprobs, whole[np.dtype(np.float32)])


def test_numbers_take_as_few_bytes_as_hold_them():
    """More than the few that are sent as a list; what is far or below 0 takes more."""

    def kept(hint, values):
        (column,) = arrays(pack(list[hint], values)[0])
        assert plain(read(list[hint], pack(list[hint], values)[0])) == plain(values)
        return column.dtype

    many = list(range(40))
    assert kept(int, many) == np.uint8 and kept(int, [*many, 256]) == np.uint16
    assert kept(int, [*many, -1]) == np.int8 and kept(int, [*many, -1, 200]) == np.int16
    assert kept(int, [*many, -1, 2**40]) == np.int64 and kept(int, [*many, 2**63 - 1]) == np.uint64
    assert kept(float, [*map(float, many), math.pi]) == np.float64 and kept(bool, [True, False] * 20) == np.bool_
    with pytest.raises(TypeError, match="float64 values where the annotation says int64"):
        pack(list[int], [0.5] * 40)
    for few in ([0.0, -0.0], [math.nan, math.nan, 1.0], [-0.0] * 40, [0.0] * 39 + [-0.0], [-math.inf] * 40):
        back = read(list[float], sent(pack(list[float], few)[0])[0])
        assert list(map(repr, back)) == list(map(repr, few))


class Place(NamedTuple):
    row: int
    of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    at: Place
    what: Literal["good", "bad"]
    weights: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked(Sample):
    """A sample with fields of every kind that a codec knows."""

    weight: float
    depth: int | None = None
    entropy: np.ndarray | None = None
    turns: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()
    pair: tuple[float, float] | None = None
    free: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish = "stop"


def marked(i: int, media=()) -> Marked:
    return Marked(
        key=SampleKey(9, i),
        tokens=tokens(i),
        loss_mask=tokens(i) > 1,
        media=media,
        weight=i / 3,
        depth=None if i % 2 else -i,
        entropy=np.linspace(0, 1, i) if i % 3 else None,
        turns=tuple(Span(start=j, stop=j + 1, version=i) for j in range(i % 4)),
        marks=tuple(Mark(at=Place(i, str(i) if i % 2 else None), what="bad") for _ in range(i % 3)),
        pair=(0.5, i) if i % 5 else None,
        free={"i": i},
        finish="length" if i % 2 else "aborted",
    )


@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_field_that_is_new_travels_without_other_code(count):
    """The fields of a subclass that the wire has never heard of; beside samples that have none of them."""
    media = (image(1), image(2))
    every = tuple(sample for i in range(count) for sample in (marked(i, media), plain_sample(i)))
    share = Share(step=0, rank=0, controller=0, senders=(0,), updates=((every, ()), ((),)), denominators=())
    columns, handles = pack_share(share)
    read_back = read_share(sent(columns)[0], handles)
    assert plain(read_back) == plain(share)
    assert [type(s) for s in read_back.updates[0][0]] == [type(s) for s in every]
    assert [h is m.handle for h, m in zip(handles, media, strict=True)] == [True, True]


def test_what_is_one_object_is_one_object_again():
    shared, other = tokens(6), tokens(6)
    value = [(1, shared), (2, other), (3, shared), (4, shared)]
    columns, _ = pack(list[tuple[int, np.ndarray]], value)
    back = read(list[tuple[int, np.ndarray]], sent(columns)[0])
    assert plain(back) == plain(value)
    assert back[0][1] is back[2][1] is back[3][1] is not back[1][1]


@dataclass
class Loose:
    """Without slots, and with a field that is not given."""

    n: int
    half: float = field(init=False, default=0.5)


@dataclass(slots=True)
class Derived:
    """Its second field follows from the first."""

    n: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.n


@dataclass(frozen=True, slots=True)
class Counted:
    """Made with a side effect."""

    n: int

    def __post_init__(self) -> None:
        MADE.append(self.n)


class Own(Span):
    """Not decorated itself."""


@dataclass(frozen=True, slots=True)
class Empty:
    """There is nothing to say of it."""


MADE: list[int] = []


def test_what_happens_when_a_dataclass_is_made_happens_where_it_is_read():
    values = [Loose(n=1), Loose(n=2), Derived(3), Counted(4), Own(start=0, stop=1, version=2), Empty()]
    values[1].half = 9.0  # of what is not given, nothing travels
    MADE.clear()
    back = read(list[Any], sent(pack(list[Any], values)[0])[0])
    assert back is not values and MADE == []  # an annotation of nothing: what stands there is left as it is
    hint = list[Loose | Derived | Counted | Own | Empty]
    back = read(hint, sent(pack(hint, values)[0])[0])
    assert list(map(type, back)) == list(map(type, values)) and MADE == [4]
    assert back[:4] == [Loose(1), Loose(2), Derived(3), Counted(4)]
    assert [back[2].double, back[1].half, back[4].stop, back[5]] == [6, 0.5, 1, Empty()]


def test_what_is_read_is_frozen_and_like_what_was_packed():
    sample = marked(5)
    back = read(Sample, sent(pack(Sample, sample)[0])[0])
    assert repr(back) == repr(sample) and back is not sample
    with pytest.raises(FrozenInstanceError):
        back.weight = 2.0
