"""What every `Generator` must do: one suite, run for each engine, for the doubles, through the wire, and simulated.

A subclass gives the fixture `generator` (started, running, awake). `ProtocolContract` is about who is answered, when,
and with how many tokens of which version; `GeneratorContract` adds what the tokens are, for a generator that draws them
(of a model like `tiny_model("qwen3")`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.tiny_models import tiny_model
from yatt.errors import BackendError
from yatt.protocols import Generator
from yatt.types import Completion, Request, SampleKey, SamplingParams, WeightManifest
from yatt.weights import writer_for

CONTEXT = 512
NEVER = 1_000_000  # a stop token outside every vocabulary: responses end where the test says
LONG = 200

_uids = itertools.count(10_000)  # away from those that a scorer gives its own requests


def requests(
    n: int = 4, *, max_tokens: int = 16, seed: int = 0, start: int = 3, length: int = 40, **params
) -> list[Request]:
    """`n` siblings of one prompt: tokens start, start + 1, ... below 90."""
    uid = next(_uids)
    tokens = (np.arange(start, start + length) % 87 + 3).astype(np.int32)
    return [
        Request(
            key=SampleKey(uid, i), tokens=tokens, params=SamplingParams(max_tokens=max_tokens, **params), seed=seed + i
        )
        for i in range(n)
    ]


async def answers(generator: Generator, wanted: list[Request]) -> list[Completion]:
    """All completions, in the order of the requests; fails unless each is answered exactly once."""
    ended = [completion async for batch in generator.generate(wanted) for completion in batch]
    assert sorted(c.key for c in ended) == sorted(r.key for r in wanted)
    by_key = {completion.key: completion for completion in ended}
    for completion in ended:
        assert len(completion.rollout_logprobs) == len(completion.tokens)
        edges = [0, *(span.stop for span in completion.spans)]
        assert [span.start for span in completion.spans] == edges[:-1] and edges[-1] == len(completion.tokens)
    return [by_key[request.key] for request in wanted]


async def until_sampled(generator: Generator, tokens: int) -> None:
    """Wait until so many more tokens have been sampled."""
    target = await sampled(generator) + tokens
    while await sampled(generator) < target:
        await asyncio.sleep(0.001)


async def sampled(generator: Generator) -> int:
    """Tokens it has sampled since it started."""
    return (await generator.pulse()).tokens


async def served(generator: Generator) -> int:
    """The version that a token is drawn under now."""
    (ended,) = await answers(generator, requests(1, max_tokens=1))
    return ended.spans[-1].version


async def until_running(generator: Generator, requests: int) -> None:
    """Wait until so many requests run or wait in it."""
    while (await generator.pulse()).running != requests:
        await asyncio.sleep(0.001)


def same(a: list[Completion], b: list[Completion]) -> bool:
    return [c.tokens.tolist() for c in a] == [c.tokens.tolist() for c in b]


@pytest.fixture
def publish(tmp_path) -> Iterator[Callable[..., WeightManifest]]:
    """publish(version, seed, kind="shm") -> manifest of the weights of `tiny_model("qwen3", seed=seed)`.

    To be called while nothing is sampled: building a model and sampling share torch's global random state.
    """
    writers = {kind: writer_for(kind, tmp_path, f"test-{kind}") for kind in ("shm", "disk")}

    def write(version: int, seed: int, kind: str = "shm", **options) -> WeightManifest:
        return writers[kind].write(tiny_model("qwen3", seed=seed, **options).state_dict().items(), version)

    yield write
    for writer in writers.values():
        writer.close()


async def swap(generator: Generator, manifest: WeightManifest) -> int:
    await generator.pause()
    version = await generator.load(manifest)
    await generator.resume()
    return version


class ProtocolContract:
    async def test_every_request_is_answered_once_with_all_its_tokens(self, generator):
        ended = await answers(generator, requests(8, max_tokens=5))
        assert [len(c.tokens) for c in ended] == [5] * 8
        assert {c.finish for c in ended} == {"length"}

    async def test_short_responses_are_yielded_before_long_ones(self, generator):
        short, long = requests(1, max_tokens=3), requests(1, max_tokens=60)
        order = [c.key for batch in [b async for b in generator.generate(long + short)] for c in batch]
        assert order == [short[0].key, long[0].key]

    async def test_no_request_is_no_answer(self, generator):
        assert await answers(generator, []) == []

    async def test_greedy_ignores_the_seed(self, generator):
        ended = await answers(generator, requests(3, temperature=0.0))
        assert len({tuple(c.tokens) for c in ended}) == 1

    async def test_abort_answers_with_the_tokens_so_far(self, generator):
        wanted = requests(2, max_tokens=LONG, seed=30)
        task = asyncio.create_task(answers(generator, wanted))
        await until_sampled(generator, 20)
        await generator.abort([wanted[0].key, SampleKey(10**9, 0)])
        aborted, other = await task
        assert aborted.finish == "aborted" and 0 < len(aborted.tokens) < LONG
        assert other.finish == "length" and len(other.tokens) == LONG
        whole = (await answers(generator, requests(1, max_tokens=LONG, seed=30)))[0]
        assert aborted.tokens.tolist() == whole.tokens[: len(aborted.tokens)].tolist()

    async def test_abort_ends_none_but_those_named(self, generator):
        """Also where the ids that an engine gives them begin alike."""
        wanted = requests(24, max_tokens=60)
        task = asyncio.create_task(answers(generator, wanted))
        await until_sampled(generator, 24)
        await generator.abort([wanted[1].key, wanted[2].key])
        lengths = [len(c.tokens) for c in await task]
        assert [i for i, length in enumerate(lengths) if length < 60] == [1, 2]

    async def test_leaving_a_stream_ends_its_requests(self, generator):
        stream = generator.generate(requests(1, max_tokens=2) + requests(2, max_tokens=LONG))
        await anext(stream)
        await stream.aclose()
        await generator.pause()
        await generator.resume()
        before = await sampled(generator)
        await asyncio.sleep(0.05)
        assert await sampled(generator) == before

    async def test_pause_stops_sampling_and_resume_goes_on(self, generator):
        wanted = requests(2, max_tokens=LONG, seed=40)
        task = asyncio.create_task(answers(generator, wanted))
        await until_sampled(generator, 20)
        await generator.pause()
        before = await sampled(generator)
        late = asyncio.create_task(answers(generator, requests(1, max_tokens=4)))
        await asyncio.sleep(0.1)
        assert await sampled(generator) == before
        assert not task.done() and not late.done()
        await generator.resume()
        assert same(await task, await answers(generator, requests(2, max_tokens=LONG, seed=40)))
        assert len((await late)[0].tokens) == 4

    async def test_pulse_counts_what_runs_and_what_was_sampled(self, generator):
        before = await generator.pulse()
        wanted = requests(4, max_tokens=LONG)
        task = asyncio.create_task(answers(generator, wanted))
        await until_sampled(generator, 10)
        during = await generator.pulse()
        assert during.running == 4 and before.tokens + 10 <= during.tokens < before.tokens + 4 * LONG
        assert during.ended == before.ended and during.steps > before.steps and during.seconds > before.seconds
        await generator.abort([wanted[-1].key])
        aborted = (await task)[-1]
        after = await generator.pulse()
        assert (after.running, after.tokens) == (0, before.tokens + 3 * LONG + len(aborted.tokens))
        # The aborted one did not end by itself. Three that begin together take at least a step for each token of one of
        # them, and at most a step for each token of any.
        assert after.ended == before.ended + 3
        assert LONG <= after.steps - before.steps <= 4 * LONG

    async def test_pulse_counts_what_the_cache_holds_at_each_step(self, generator):
        """The prompt once, at each step of the first sibling, and what each has sampled by then."""
        before = await generator.pulse()
        first, second = [len(c.tokens) for c in await answers(generator, requests(2, max_tokens=9, length=40))]
        held = 40 * first + sum(range(first)) + sum(range(second))
        assert (await generator.pulse()).cached == before.cached + held

    async def test_what_is_asked_of_a_sleeping_generator_waits_for_its_waking(self, generator):
        free = await answers(generator, requests(3, seed=45))
        await generator.sleep()
        wanted = requests(3, seed=45)
        task = asyncio.create_task(answers(generator, wanted))
        await until_running(generator, 3)
        before = await sampled(generator)
        await asyncio.sleep(0.05)
        assert await sampled(generator) == before and not task.done()
        await generator.wake()
        await generator.resume()
        assert same(free, await task)

    async def test_what_waits_in_a_sleeping_generator_can_be_aborted(self, generator):
        begun, fresh = requests(2, max_tokens=LONG, seed=46), requests(2, max_tokens=8, seed=47)
        first = asyncio.create_task(answers(generator, begun))
        await until_sampled(generator, 20)
        await generator.sleep()
        second = asyncio.create_task(answers(generator, fresh))
        await until_running(generator, 4)
        await generator.abort([begun[0].key, fresh[0].key])
        await until_running(generator, 2)
        assert not first.done() and not second.done()
        await generator.wake()
        await generator.resume()
        (cut, whole), (never, short) = await first, await second
        assert [c.finish for c in (cut, whole, never, short)] == ["aborted", "length", "aborted", "length"]
        assert 0 < len(cut.tokens) < LONG and len(never.tokens) == 0
        assert (len(whole.tokens), len(short.tokens)) == (LONG, 8)

    async def test_a_sleeping_generator_takes_weights(self, generator, publish):
        version = await served(generator)
        manifest = publish(version + 1, seed=4)
        await swap(generator, manifest)
        wanted = await answers(generator, requests(2, seed=55))
        await swap(generator, publish(version + 2, seed=5))
        assert not same(wanted, await answers(generator, requests(2, seed=55)))
        await generator.sleep()
        task = asyncio.create_task(answers(generator, requests(2, seed=55)))
        again = publish(version + 1, seed=4)
        assert await generator.load(again) == version + 1
        await generator.wake()
        await generator.resume()
        assert same(wanted, await task)

    async def test_load_gives_new_tokens_the_new_version(self, generator, publish):
        version = await served(generator)
        before = await answers(generator, requests(2, seed=50))
        assert await swap(generator, publish(version + 1, seed=1)) == version + 1
        after = await answers(generator, requests(2, seed=50))
        assert not same(before, after)
        assert {span.version for c in before for span in c.spans} == {version}
        assert {span.version for c in after for span in c.spans} == {version + 1}

    async def test_a_request_that_lives_through_a_load_has_a_span_of_each(self, generator, publish):
        version = await served(generator)
        manifests = publish(version + 1, seed=2), publish(version + 2, seed=3)
        task = asyncio.create_task(answers(generator, requests(2, max_tokens=LONG, seed=60)))
        await until_sampled(generator, 20)
        await generator.pause()
        for manifest in manifests:
            await generator.load(manifest)
        before = await sampled(generator)
        await generator.resume()
        ended = await task
        for completion in ended:
            assert [span.version for span in completion.spans] == [version, version + 2]
        assert before < await sampled(generator) and len(ended[0].tokens) == LONG

    async def test_load_needs_a_pause(self, generator, publish):
        with pytest.raises(BackendError, match="pause"):
            await generator.load(publish(1, seed=1))

    async def test_sleep_frees_and_wake_brings_back(self, generator):
        before = await answers(generator, requests(4, max_tokens=100, seed=80))
        task = asyncio.create_task(answers(generator, requests(4, max_tokens=100, seed=80)))
        await until_sampled(generator, 40)
        assert await generator.sleep() > 0
        assert await generator.sleep() == 0
        with pytest.raises(BackendError, match="wake"):
            await generator.resume()
        drawn = await sampled(generator)
        await generator.wake()
        await asyncio.sleep(0.05)
        assert await sampled(generator) == drawn and not task.done()
        await generator.resume()
        assert same(before, await task)
        assert same(before, await answers(generator, requests(4, max_tokens=100, seed=80)))


class GeneratorContract(ProtocolContract):
    """Of a generator that draws tokens."""

    async def test_seed_decides(self, generator):
        first = await answers(generator, requests(4, seed=10))
        again = await answers(generator, requests(4, seed=10))
        assert same(first, again)
        assert len({tuple(c.tokens) for c in first}) == 4
        assert not same(first, await answers(generator, requests(4, seed=20)))

    async def test_a_stop_token_ends_a_response_and_is_its_last_token(self, generator):
        free = (await answers(generator, requests(1, seed=5)))[0].tokens.tolist()
        stop = free[9]
        (ended,) = await answers(generator, requests(1, seed=5, stop_token_ids=(stop,)))
        assert ended.finish == "stop"
        assert ended.tokens.tolist() == free[: free.index(stop) + 1]

    async def test_the_context_ends_a_response(self, generator):
        (ended,) = await answers(generator, requests(1, max_tokens=100, length=CONTEXT - 7))
        assert (ended.finish, len(ended.tokens)) == ("length", 7)

    async def test_a_prompt_that_fills_the_context_is_refused(self, generator):
        with pytest.raises(BackendError, match=f"context.*{CONTEXT}"):
            await answers(generator, requests(1, length=CONTEXT))

    async def test_a_wrong_checksum_is_refused_and_the_old_weights_serve(self, generator, publish):
        version = await served(generator)
        before = await answers(generator, requests(2, seed=70))
        manifest = publish(version + 1, seed=9)
        await generator.pause()
        with pytest.raises(BackendError, match="checksum"):
            await generator.load(dataclasses.replace(manifest, checksum="0" * 16))
        await generator.resume()
        assert await served(generator) == version
        assert same(before, await answers(generator, requests(2, seed=70)))


async def check_close(generator: Generator) -> None:
    """Close answers what runs and refuses what comes. Ends the generator."""
    task = asyncio.create_task(answers(generator, requests(2, max_tokens=LONG)))
    await until_sampled(generator, 10)
    await generator.close()
    assert {c.finish for c in await task} == {"aborted"}
    with pytest.raises(BackendError, match="closed"):
        await answers(generator, requests(1))
    await generator.close()
