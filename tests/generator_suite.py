"""A real engine on tiny models. `test_generator_engines.py` runs it for each engine of the table, in a process of its
own, since engines patch torch; YATT_TEST_ENGINE says which.

SGLang has one engine in a process at a time: a test that starts another one closes what runs, so they come last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os

import numpy as np
import pytest
import torch

from tests.generator_contract import (
    CONTEXT,
    LONG,
    NEVER,
    GeneratorContract,
    answers,
    check_close,
    publish,
    requests,
    served,
    swap,
    until_running,
    until_sampled,
)
from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from yatt.config.schema import JudgeConfig, RewardConfig, RolloutConfig
from yatt.errors import BackendError
from yatt.generation.stepped import SteppedClassifier, SteppedGenerator
from yatt.reward.engine import EngineAsker, Engines
from yatt.reward.mixed import open_scorer
from yatt.types import Prompt, Trajectory

__all__ = ["publish"]

TOLERANCE = 1e-5


ENGINE = os.environ["YATT_TEST_ENGINE"]
# 64 MiB of KV cache for `tiny_model`, whose token takes 2 layers x 2 (k, v) x 2 heads x 32 x 4 bytes.
CACHE = {"vllm": {"kv_cache_memory_bytes": 64 << 20}, "sglang": {"max_total_tokens": 65_536}}[ENGINE]
IN_PARTS = {
    "vllm": {"max_num_batched_tokens": 256, "enable_chunked_prefill": True},
    "sglang": {"chunked_prefill_size": 256},
}[ENGINE]
"""Options with which texts of more than 256 tokens are read in two parts."""
ALONE = ENGINE == "sglang"


def make(folder, backend=SteppedGenerator, **engine_args) -> SteppedGenerator:
    return backend(
        model=str(folder),
        config=RolloutConfig(engine=ENGINE, engine_args=CACHE | engine_args),
        context_length=CONTEXT,
        dtype="float32",
        device="cpu",
        seed=0,
        stop_token_ids=(NEVER,),
    )


class Place:
    """The engines of this process."""

    def __init__(self) -> None:
        self.running: list[SteppedGenerator] = []

    async def start(self, generator: SteppedGenerator) -> SteppedGenerator:
        if ALONE:
            await self.close()
        await generator.start()
        self.running.append(generator)
        return generator

    async def close(self) -> None:
        while self.running:
            await self.running.pop().close()


@pytest.fixture(scope="module")
def place():
    place = Place()
    yield place
    asyncio.run(place.close())


@pytest.fixture(scope="module")
def tied(place, tmp_path_factory):
    return asyncio.run(place.start(make(save_tiny(tmp_path_factory.mktemp("tied"), seed=0))))


def reference(model: torch.nn.Module, prompt: np.ndarray, tokens: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Logprobs [R] of the response by a Hugging Face forward."""
    ids = torch.tensor([[*prompt.tolist(), *tokens.tolist()]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
    return logprobs[:-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].numpy()


async def gap(generator: SteppedGenerator, model: torch.nn.Module, temperature: float = 1.0, **params) -> float:
    """Largest difference between the engine's logprobs and the reference's, over 8 responses to 2 prompts."""
    wanted = [
        r for start in (3, 50) for r in requests(4, start=start, max_tokens=40, temperature=temperature, **params)
    ]
    return max(
        float(np.abs(c.rollout_logprobs - reference(model, r.tokens, c.tokens, temperature or 1.0)).max())
        for r, c in zip(wanted, await answers(generator, wanted), strict=True)
    )


class TestEngine(GeneratorContract):
    @pytest.fixture
    def generator(self, tied):
        return tied


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
async def test_logprobs_are_those_of_the_distribution_sampled_from(tied, publish, temperature):
    await swap(tied, publish(1, seed=0))
    assert await gap(tied, tiny_model(seed=0), temperature) <= TOLERANCE


async def test_top_k_logprobs_are_renormalised(tied, publish):
    """With top_k 2 a token has probability p / (p1 + p2) of the two likeliest."""
    await swap(tied, publish(1, seed=0))
    (request,) = requests(1, top_k=2)
    (ended,) = await answers(tied, [request])
    ids = torch.tensor([[*request.tokens.tolist(), *ended.tokens.tolist()]])
    with torch.no_grad():
        logits = tiny_model(seed=0)(ids).logits[0, len(request.tokens) - 1 : -1].float()
    two = logits.topk(2, dim=-1)
    chosen = two.indices == torch.tensor(ended.tokens.tolist())[:, None]
    assert chosen.any(dim=-1).all()
    expected = two.values.log_softmax(-1)[chosen].numpy()
    np.testing.assert_allclose(ended.rollout_logprobs, expected, atol=TOLERANCE)


async def test_top_p_logprobs_are_renormalised(tied, publish):
    """With top_p 0.5 a token is one of the fewest likeliest that hold half of the probability, and its logprob that
    among these."""
    await swap(tied, publish(1, seed=0))
    (request,) = requests(1, top_p=0.5, temperature=2.0)
    (ended,) = await answers(tied, [request])
    ids = torch.tensor([[*request.tokens.tolist(), *ended.tokens.tolist()]])
    with torch.no_grad():
        logits = tiny_model(seed=0)(ids).logits[0, len(request.tokens) - 1 : -1].double() / 2.0
    expected = []
    for row, token in zip(logits.softmax(-1).tolist(), ended.tokens.tolist(), strict=True):
        kept, held = {}, 0.0
        for likeliest in sorted(range(len(row)), key=lambda i: -row[i]):
            if held >= 0.5:
                break
            kept[likeliest] = row[likeliest]
            held += row[likeliest]
        expected.append(np.log(kept[token] / held))
    np.testing.assert_allclose(ended.rollout_logprobs, expected, atol=TOLERANCE)
    assert min(expected) < -0.1, "more than one token was kept"


async def test_the_likeliest_of_one_is_certain(tied, publish):
    """top_k 1 is a distribution of one token; temperature 0 is the model's own, of which the likeliest is taken."""
    await swap(tied, publish(1, seed=0))
    (certain,), (greedy,) = await answers(tied, requests(1, top_k=1)), await answers(tied, requests(1, temperature=0.0))
    assert certain.tokens.tolist() == greedy.tokens.tolist()
    np.testing.assert_allclose(certain.rollout_logprobs, 0.0, atol=TOLERANCE)
    assert greedy.rollout_logprobs.min() < -0.1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_response_goes_on_elsewhere_as_it_would_have_here(tied, temperature):
    """From the tokens so far; a sampled one too, where an engine draws by seed and position."""
    (whole,) = await answers(tied, requests(1, max_tokens=40, seed=9, temperature=temperature))
    (request,) = requests(1, max_tokens=28, seed=9, temperature=temperature)
    begun = dataclasses.replace(request, tokens=np.concatenate([request.tokens, whole.tokens[:12]]).astype(np.int32))
    (rest,) = await answers(tied, [begun])
    if temperature == 0 or ENGINE == "sglang":
        assert rest.tokens.tolist() == whole.tokens[12:].tolist()
        np.testing.assert_allclose(rest.rollout_logprobs, whole.rollout_logprobs[12:], atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["shm", "disk"])
async def test_logprobs_after_loads_and_sleep(tied, publish, kind):
    """Other weights are really served, through either transport, and survive a sleep."""
    version = await served(tied)
    for seed in (1, 2, 1):
        version = await swap(tied, publish(version + 1, seed=seed, kind=kind))
        assert await gap(tied, tiny_model(seed=seed)) <= TOLERANCE
    await tied.sleep()
    await tied.wake()
    await tied.resume()
    assert await gap(tied, tiny_model(seed=1)) <= TOLERANCE


async def test_logprobs_of_a_request_that_lived_through_a_load(tied, publish):
    """Its later tokens are drawn under the new weights from a prefix recomputed with them."""
    version = await swap(tied, publish(await served(tied) + 1, seed=1))
    new = publish(version + 1, seed=2)
    wanted = requests(3, max_tokens=LONG, seed=7)
    task = asyncio.create_task(answers(tied, wanted))
    await until_sampled(tied, 60)
    await swap(tied, new)
    for request, ended in zip(wanted, await task, strict=True):
        for span, seed in zip(ended.spans, (1, 2), strict=True):
            expected = reference(tiny_model(seed=seed), request.tokens, ended.tokens)[span.start : span.stop]
            assert np.abs(ended.rollout_logprobs[span.start : span.stop] - expected).max() <= TOLERANCE


async def test_weights_of_another_model_are_refused(tied, publish):
    before = await answers(tied, requests(2, seed=3))
    version = await served(tied)
    other = publish(version + 1, seed=0)
    await tied.pause()
    lacking = dataclasses.replace(other, entries=other.entries[:3] + other.entries[4:])
    with pytest.raises(BackendError, match=f"{other.entries[3].name} is missing"):
        await tied.load(lacking)
    wrong = dataclasses.replace(other.entries[3], shape=(1, 1))
    with pytest.raises(BackendError, match=r"is \(1, 1\), in the model"):
        await tied.load(dataclasses.replace(other, entries=(*other.entries[:3], wrong, *other.entries[4:])))
    await tied.resume()
    after = await answers(tied, requests(2, seed=3))
    assert [c.tokens.tolist() for c in before] == [c.tokens.tolist() for c in after]


async def test_sleep_gives_memory_back_to_the_system(tied):
    """64 sequences of about 240 tokens x 2 layers x 2 (k, v) x 2 heads x 32 x 4 bytes = 15 MiB of KV cache."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    await answers(tied, requests(64, max_tokens=LONG))
    before = resident()
    freed = await tied.sleep()
    after = resident()
    await tied.wake()
    await tied.resume()
    assert freed > 10 << 20
    assert before - after > 10 << 20


async def test_prompts_over_what_one_step_reads_wait_for_the_next(tied, publish):
    """8 prompts of 400 tokens are 3,200; a step reads 2,048 at most, and must not read a part of one."""
    await swap(tied, publish(1, seed=0))
    wanted = [r for start in range(8) for r in requests(1, start=start, length=400, max_tokens=4)]
    for request, ended in zip(wanted, await answers(tied, wanted), strict=True):
        expected = reference(tiny_model(seed=0), request.tokens, ended.tokens)
        np.testing.assert_allclose(ended.rollout_logprobs, expected, atol=TOLERANCE)


async def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(tied):
    tokenizer = tiny_tokenizer()
    free = (await answers(tied, requests(1, seed=5, max_tokens=60)))[0].tokens.tolist()
    stop = tokenizer.decode(free[20:23])
    assert len(stop) >= 3, "the stop string spans several tokens"
    (ended,) = await answers(tied, requests(1, seed=5, max_tokens=60, stop=(stop, "never seen")))
    text = tokenizer.decode(ended.tokens)
    assert ended.finish == "stop" and text.endswith(stop) and text.count(stop) == 1
    assert ended.tokens.tolist() == free[: len(ended.tokens)]


async def test_a_judge_writes_what_its_model_would(tied, publish, tmp_path):
    """Greedy, against a Hugging Face forward for each token, from the question in the judge's chat template."""
    await swap(tied, publish(await served(tied) + 1, seed=0))
    settings = JudgeConfig(path=save_tiny(tmp_path, seed=0), template="{response}", temperature=0.0, max_tokens=12)
    judge = EngineAsker(Engines("j", settings, tied.generate))
    await judge.start()
    answers = await judge.ask(["2+2=4?", "2+2=5?"], [1, 2])
    model, tokenizer = tiny_model(seed=0), tiny_tokenizer()
    for text, answer in zip(["2+2=4?", "2+2=5?"], answers, strict=True):
        tokens = tokenizer(f"user: {text}\nassistant: ")["input_ids"]
        for _ in range(12):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answer.unparsed and answer.detail.endswith(f"in {tokenizer.decode(tokens[-12:])!r}")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
async def test_a_classifiers_logits_are_those_of_transformers(architecture, place, tmp_path):
    """Of talks from a few tokens to the context's length, some of which begin alike, also after a sleep."""
    # vLLM has no attention of 16 numbers a head on a CPU, which the tiny Qwen2 would have.
    wide = {"hidden_size": 128, "head_dim": 32} if architecture == "qwen2" else {}
    folder = save_tiny(tmp_path, architecture, labels=1, seed=3, **wide)
    generator = await place.start(make(folder, SteppedClassifier, **IN_PARTS))
    scorer = open_scorer(
        RewardConfig(models={"rm": JudgeConfig(path=folder, kind="classifier")}), {"rm": generator.generate}
    )
    await scorer.start()
    texts = ["", "4", "five", "x" * 100, "x" * 100 + "y", "ab" * 200]
    model, tokenizer = tiny_model(architecture, labels=1, seed=3, **wide), tiny_tokenizer()
    ids = [tokenizer(f"user: 2+2=\nassistant: {text}\n", return_tensors="pt")["input_ids"] for text in texts]
    with torch.no_grad():
        expected = [float(model(i).logits[0, 0]) for i in ids]
    assert max(i.shape[1] for i in ids) > 256, "one talk is read in two parts"
    assert np.std(expected) > 100 * TOLERANCE, "the logits differ"
    scored = await scorer.score([talk(text) for text in texts])
    np.testing.assert_allclose([score.value for score in scored], expected, atol=TOLERANCE)
    assert await generator.sleep() > 0
    waiting = asyncio.create_task(answers(generator, wanted := requests(2)))
    again = asyncio.create_task(scorer.score([talk(text) for text in texts]))
    await until_running(generator, len(texts) + 2)
    await generator.abort([wanted[0].key])
    await generator.wake()
    await generator.resume()
    np.testing.assert_allclose([score.value for score in await again], expected, atol=TOLERANCE)
    gone, read = await waiting
    assert (gone.finish, len(gone.tokens), read.finish, read.tokens.tolist()) == ("aborted", 0, "stop", [])
    pulse = await generator.pulse()
    assert (pulse.running, pulse.ended, pulse.tokens) == (0, 2 * len(texts) + 1, 2 * len(texts) + 1)
    await generator.close()
    place.running.remove(generator)


def talk(text: str) -> Trajectory:
    prompt = Prompt(uid=0, text="", tokens=np.zeros(0), question="2+2=")
    none = np.zeros(0)
    return Trajectory(
        prompt=prompt, sibling=0, tokens=none, loss_mask=none, rollout_logprobs=none, spans=(), finish="stop", text=text
    )


async def test_untied_llama_and_close(place, tmp_path):
    """Another architecture, its own lm_head, a second engine in the process; and what `close` does."""
    folder = save_tiny(tmp_path / "llama", "llama", tie=False, seed=0)
    generator = await place.start(make(folder))
    assert await gap(generator, tiny_model("llama", tie=False, seed=0)) <= TOLERANCE
    place.running.remove(generator)
    await check_close(generator)
