"""Real engines of tiny models that see. `test_generators.py` runs it for each engine of the table, in a process of its
own, since engines patch torch; YATT_TEST_ENGINE says which.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from tests.generator_contract import answers, requests, served, swap, until_sampled
from tests.generator_suite import ENGINE, make, place
from tests.vision.models import IMAGE, VISION_START, Seeing, save_seeing
from tests.vision.seeing_contract import SeeingContract, looks, picture
from yatt.errors import BackendError
from yatt.generation.stepped import SteppedGenerator
from yatt.types import Completion, Request, WeightManifest
from yatt.weights import writer_for

__all__ = ["place"]

TOLERANCE = 1e-5
# Two vLLM ranks take half a minute to start; SGLang's second one takes a few seconds.
RANKS: dict[Seeing, dict] = {"qwen2_5_vl": {}, "qwen3_vl": {"tp_size": 2} if ENGINE == "sglang" else {}}
# vLLM has no attention of 16 numbers a head on a CPU, which the tiny Qwen2.5-VL would have.
WIDE = {
    "num_attention_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
}
OWN: dict[Seeing, dict] = {"qwen2_5_vl": WIDE, "qwen3_vl": {}}
SEEDS = (0, 1)
# With tokens in it that look like images, as after a response that was moved here.
MOVED = (40, IMAGE, VISION_START, 41, IMAGE, IMAGE, 42)


class Reference:
    """transformers' model of a folder. It is told which tokens are an image's: it would find them by their id."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    @torch.no_grad()
    def logprobs(self, request: Request, tokens: np.ndarray) -> np.ndarray:
        """Of the response [R]."""
        ids = torch.tensor([[*request.tokens.tolist(), *tokens.tolist()]])
        kinds = torch.zeros_like(ids)
        for media in request.media:
            kinds[0, media.start : media.start + media.tokens] = 1
        files = [Image.open(io.BytesIO(media.handle.tobytes())) for media in request.media]
        images = self.processor(images=files, return_tensors="pt")
        model, grid = self.model.model, images["image_grid_thw"]
        tower = model.visual(images["pixel_values"], grid_thw=grid, return_dict=True)
        embedded = model.get_input_embeddings()(ids)
        embedded[kinds.bool()] = tower.pooler_output
        deep = getattr(tower, "deepstack_features", None)
        more = {} if deep is None else {"visual_pos_masks": kinds.bool(), "deepstack_visual_embeds": deep}
        positions, _ = model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        hidden = model.language_model(inputs_embeds=embedded, position_ids=positions, **more).last_hidden_state
        logprobs = self.model.lm_head(hidden)[0].log_softmax(-1)
        return logprobs[:-1].gather(1, ids[0, 1:, None])[len(request.tokens) - 1 :, 0].numpy()

    def gap(self, wanted: list[Request], ended: list[Completion], part: Callable = lambda c: slice(None)) -> float:
        """The largest difference of logprobs, over a part of each response."""
        pairs = [
            (c.rollout_logprobs[part(c)], self.logprobs(r, c.tokens)[part(c)])
            for r, c in zip(wanted, ended, strict=True)
        ]
        return max(float(np.abs(given - expected).max()) for given, expected in pairs)


@dataclasses.dataclass
class Case:
    """A family's engine, and of each seed its weights, in transformers and to be published."""

    family: Seeing
    generator: SteppedGenerator
    references: list[Reference]
    publish: Callable[..., WeightManifest]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def case(request, place, tmp_path_factory) -> Iterator[Case]:
    root: Path = tmp_path_factory.mktemp(request.param)
    folders = [save_seeing(root / str(seed), request.param, seed=seed, **OWN[request.param]) for seed in SEEDS]
    writer = writer_for("shm", root, f"test-{request.param}")

    def publish(version: int, seed: int) -> WeightManifest:
        return writer.write(load_file(Path(folders[seed]) / "model.safetensors").items(), version)

    generator = asyncio.run(place.start(make(folders[0], **RANKS[request.param])))
    yield Case(request.param, generator, [Reference(folder) for folder in folders], publish)
    writer.close()
    place.running.remove(generator)
    asyncio.run(generator.close())


class TestEngine(SeeingContract):
    @pytest.fixture
    def generator(self, case):
        return case.generator


def tower(generator: SteppedGenerator) -> torch.nn.Module:
    """Of an engine in this process."""
    engine = generator._engine
    if ENGINE == "vllm":
        return engine._executor.driver_worker.worker.model_runner.model.visual
    return engine._scheduler.tp_worker.model_runner.model.visual


async def test_logprobs_are_those_of_transformers(case):
    """Siblings of two images of two sizes; of one shown twice, after which tokens look like images."""
    await swap(case.generator, case.publish(await served(case.generator) + 1, 0))
    pictures = [picture(1, 24, 24), picture(2, 16, 40)]
    again = [pictures[1], *pictures]
    wanted = looks(4, pictures, max_tokens=40) + looks(4, again, max_tokens=40, after=MOVED)
    assert case.references[0].gap(wanted, await answers(case.generator, wanted)) <= TOLERANCE


async def test_logprobs_after_loads_and_a_sleep(case):
    """Of weights of both models, whose towers read the same images."""
    for seed in (1, 0, 1):
        await swap(case.generator, case.publish(await served(case.generator) + 1, seed))
        wanted = looks(2, [picture(1), picture(2)])
        assert case.references[seed].gap(wanted, await answers(case.generator, wanted)) <= TOLERANCE
    assert await case.generator.sleep() > 0
    await case.generator.wake()
    await case.generator.resume()
    wanted = looks(2, [picture(1), picture(2)])
    assert case.references[1].gap(wanted, await answers(case.generator, wanted)) <= TOLERANCE


async def test_logprobs_of_a_request_that_lived_through_a_load(case):
    """Its later tokens are drawn from images that the new tower has read."""
    version = await swap(case.generator, case.publish(await served(case.generator) + 1, 0))
    new = case.publish(version + 1, 1)
    wanted = looks(3, [picture(1)], max_tokens=80, after=MOVED)
    task = asyncio.create_task(answers(case.generator, wanted))
    await until_sampled(case.generator, 60)
    await swap(case.generator, new)
    ended = await task
    for number, reference in enumerate(case.references):
        part = lambda c, number=number: slice(c.spans[number].start, c.spans[number].stop)  # noqa: E731
        assert reference.gap(wanted, ended, part) <= TOLERANCE


async def test_a_response_with_images_goes_on_elsewhere_as_it_would_have_here(case):
    (whole,) = await answers(case.generator, looks(1, [picture(1)], max_tokens=24, temperature=0.0))
    (request,) = looks(1, [picture(1)], max_tokens=14, temperature=0.0)
    begun = dataclasses.replace(request, tokens=np.concatenate([request.tokens, whole.tokens[:10]]))
    (rest,) = await answers(case.generator, [begun])
    assert rest.tokens.tolist() == whole.tokens[10:].tolist()


async def test_siblings_share_one_call_of_the_tower(case):
    read: list[int] = []
    hook = tower(case.generator).register_forward_pre_hook(
        lambda module, arguments, named: read.append(len(named["grid_thw"])), with_kwargs=True
    )
    await swap(case.generator, case.publish(await served(case.generator) + 1, 0))
    decoded = case.generator._images.read
    await answers(case.generator, looks(8, [picture(7), picture(8)]))
    assert sum(read) == 2
    await answers(case.generator, looks(2, [picture(8), picture(9)]))  # another prompt
    assert sum(read) == 3 and case.generator._images.read == decoded + 3
    await swap(case.generator, case.publish(await served(case.generator) + 1, 0))
    await answers(case.generator, looks(2, [picture(8)]))
    assert sum(read) == 4 and case.generator._images.read == decoded + 3, "read anew, and not decoded"
    hook.remove()


async def test_an_image_that_cannot_be_read_ends_its_own_stream(case):
    """So does one that is not what was said of it; what runs beside it goes on."""
    task = asyncio.create_task(answers(case.generator, looks(2, [picture(3)], max_tokens=60)))
    torn = picture(4)._replace(file=picture(4).file[:40])
    with pytest.raises(BackendError, match="image 2 cannot be read"):
        await answers(case.generator, looks(2, [picture(3), torn]))
    (wrong,) = looks(1, [picture(4)])
    media = dataclasses.replace(wrong.media[0], tokens=5)
    with pytest.raises(BackendError, match="has 24 patches, but is said to have 1 x 4 x 6 and to take 5 tokens"):
        await answers(case.generator, [dataclasses.replace(wrong, media=(media,))])
    assert [len(c.tokens) for c in await task] == [60, 60]
    assert (await case.generator.pulse()).running == 0


async def test_weights_without_the_tower_are_refused(case):
    whole = case.publish(await served(case.generator) + 1, 0)
    language = tuple(entry for entry in whole.entries if "visual." not in entry.name)
    await case.generator.pause()
    with pytest.raises(BackendError, match=r"visual\.\S+ is missing"):
        await case.generator.load(dataclasses.replace(whole, entries=language))
    await case.generator.resume()
    assert len(await answers(case.generator, requests(1, max_tokens=3))) == 1
