"""What travels as columns is read back as it was, as views, with siblings' prompts and images sent once."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.cluster.wire import pack_completions, pack_requests, pack_share, read_completions, read_requests, read_share
from yatt.types import Completion, Denominator, Media, Request, Sample, SampleKey, SamplingParams, Share, Span

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


def samples(scored: bool) -> st.SearchStrategy[Sample]:
    def sample(key: SampleKey, n: int, advantage: float, images: int) -> Sample:
        return Sample(
            key=key,
            tokens=tokens(n),
            loss_mask=np.arange(n) % 2 == 0,
            rollout_logprobs=np.arange(n, dtype=np.float32) if scored else None,
            advantage=advantage,
            reward=-2 * advantage,
            second=n // 2,
            reference=(advantage, float(n)) if n % 2 else None,
            media=tuple(image(i, 3) for i in range(images)),
            fresh=n // 3,
        )

    return st.builds(sample, keys, lengths, st.floats(-3, 3), st.integers(0, 2))


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
    assert len(columns.tokens) == 100 and len(columns.params) == 1
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
    # keys, lengths, tokens, masks, logprobs, advantages, rewards, seconds, fresh, media; the rest is names and counts.
    assert buffers == 10 and besides < 2000
    views = [s.tokens.base for s in read_share(read, handles).updates[0][0]]
    assert all(np.shares_memory(view, read.tokens) for view in views)
