"""What only SGLang's adapter has; run in the same process as `generator_suite.py`, after it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import yatt.generation.sglang.standins  # noqa: F401  (before SGLang)

# isort: split
from sglang.srt.server_args import ServerArgs

from tests.generator_contract import LONG, answers, publish, requests, swap, until_sampled
from tests.generator_suite import TOLERANCE, gap, make, place, reference
from tests.tiny_models import save_tiny, tiny_model
from yatt.errors import BackendError, ConfigError
from yatt.generation.sglang.arguments import known_options
from yatt.generation.sglang.attention import _one_by_one, decode
from yatt.generation.sglang.sampler import draw, truncate, uniform
from yatt.generation.stepped import SteppedGenerator
from yatt.generation.table import ENGINES
from yatt.types import WeightManifest

__all__ = ["place", "publish"]


def test_seeds_and_positions_give_even_chances():
    """Against splitmix64 written out on Python's numbers; the mean of 4,096 is within five standard errors of 1/2."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    seeds, positions = torch.tensor([0, 1, 2**62 + 5]), torch.tensor([0, 7, 4000])
    expected = [(mix(mix(s) ^ p) >> 11) / 2**53 for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)]
    assert uniform(seeds, positions).tolist() == expected
    many = uniform(torch.full((4096,), 3), torch.arange(4096))
    assert abs(many.mean().item() - 0.5) < 5 * (1 / 12 / 4096) ** 0.5


def test_options_and_models_are_read_without_importing_it():
    assert known_options() == {name for name in ServerArgs.__struct_fields__ if not name.startswith("_")}
    assert ENGINES["sglang"].lists("LlamaForSequenceClassification") and not ENGINES["sglang"].lists("EntryClass")


def test_a_chance_falls_into_the_token_that_covers_it():
    logprobs = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log().expand(6, -1)
    chances = torch.tensor([0.0, 0.199, 0.2001, 0.699, 0.7001, 0.999999]).double()
    assert draw(logprobs, chances).tolist() == [0, 0, 2, 2, 3, 3]


def test_truncation_keeps_the_fewest_that_reach_top_p_of_the_top_k():
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log().expand(5, -1)
    top_ks, top_ps = torch.tensor([4, 2, 4, 3, 1]), torch.tensor([1.0, 1.0, 0.5, 0.7, 1e-9])
    kept = [row.isfinite().nonzero()[:, 0].tolist() for row in truncate(logits, top_ks, top_ps)]
    # Of the three likeliest, 0.4, 0.3, 0.2 of 0.9: 0.44 does not reach 0.7, 0.78 does.
    assert kept == [[0, 1, 2, 3], [0, 2], [0, 2], [0, 2], [0]]


@pytest.mark.parametrize("gathered", [1 << 17, 20])
def test_attention_of_a_batch_is_that_of_each_request(gathered, monkeypatch):
    monkeypatch.setattr("yatt.generation.sglang.attention.GATHERED", gathered)
    torch.manual_seed(0)
    query, (k, v) = torch.randn(5, 4, 8), torch.randn(2, 64, 2, 8)
    places = torch.stack([torch.randperm(64)[:16] for _ in range(6)])
    arguments = (k, v, places, torch.tensor([5, 0, 3, 2, 1]), torch.tensor([3, 16, 1, 9, 10]))
    got, expected = torch.empty_like(query), torch.empty_like(query)
    decode(None, query, got, *arguments, scaling=0.3, enable_gqa=True)
    _one_by_one(None, query, expected, *arguments, scaling=0.3, enable_gqa=True)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


async def test_a_cache_that_holds_no_whole_response_is_refused(tmp_path):
    said = "rollout.engine_args.max_total_tokens=500 holds less than one response of 512 tokens; use at least 520"
    with pytest.raises(ConfigError, match=re.escape(said)):
        await make(save_tiny(tmp_path), max_total_tokens=500).start()


async def test_requests_that_are_put_back_for_want_of_cache_are_drawn_as_they_would_have_been(place, tmp_path):
    """16 responses of 200 tokens in a cache of 1,200; then the same with room for all."""
    folder, ended = save_tiny(tmp_path, seed=0), []
    for tokens in (1200, 8192):
        generator = await place.start(make(folder, max_total_tokens=tokens))
        ended.append(await answers(generator, requests(16, max_tokens=LONG, seed=3)))
        steps = (await generator.pulse()).steps
        assert (steps > 2 * LONG) == (tokens == 1200), "some had to wait for others"
    for small, large in zip(*ended, strict=True):
        assert small.tokens.tolist() == large.tokens.tolist()
        np.testing.assert_allclose(small.rollout_logprobs, large.rollout_logprobs, atol=TOLERANCE)


async def test_two_ranks_are_one_engine(place, publish, tmp_path):
    """Logprobs before and after loads and a sleep, under way and aborted; then a load that fails."""
    generator = await place.start(make(save_tiny(tmp_path / "two", seed=0), tp_size=2))
    assert await gap(generator, tiny_model(seed=0)) <= TOLERANCE
    wanted = requests(3, max_tokens=LONG, seed=7)
    task = asyncio.create_task(answers(generator, wanted))
    await until_sampled(generator, 30)
    await generator.abort([wanted[2].key])
    await swap(generator, publish(1, seed=1))
    ended = await task
    assert [c.finish for c in ended] == ["length", "length", "aborted"]
    for request, completion in zip(wanted[:2], ended, strict=False):
        for span, seed in zip(completion.spans, (0, 1), strict=True):
            expected = reference(tiny_model(seed=seed), request.tokens, completion.tokens)[span.start : span.stop]
            assert np.abs(completion.rollout_logprobs[span.start : span.stop] - expected).max() <= TOLERANCE
    assert await generator.sleep() > 0
    assert await generator.load(publish(2, seed=2)) == 2
    await generator.wake()
    await generator.resume()
    assert await gap(generator, tiny_model(seed=2)) <= TOLERANCE
    await check_failing_load(generator, tmp_path)
    place.running.remove(generator)


async def check_failing_load(generator: SteppedGenerator, folder: Path) -> None:
    """Of a folder that is gone when the ranks read it: the engine says so, and serves nobody any more."""
    await generator.pause()
    generator._engine.check = lambda manifest: None
    lost = WeightManifest(version=3, kind="folder", path=str(folder / "gone"), checksum="0" * 16)
    with pytest.raises(BackendError, match="loading weights: BackendError: SGLang: "):
        await generator.load(lost)
    with pytest.raises(BackendError, match="loading weights"):
        await generator.resume()
    generator._engine.close()
    await generator.close()
