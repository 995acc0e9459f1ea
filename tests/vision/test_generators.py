"""Each generator keeps the contract of images; an engine's logprobs are those of transformers."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.generator_contract import NEVER, answers, requests, until_running, until_sampled
from tests.test_generator_double import double
from tests.test_generator_simulated import simulated
from tests.tiny_models import save_tiny
from tests.vision.models import save_seeing
from tests.vision.seeing_contract import SeeingContract, SeeingProtocolContract, looks, picture
from yatt.config.schema import RolloutConfig
from yatt.errors import BackendError
from yatt.generation.images import ImageQueue
from yatt.generation.stepped import SteppedClassifier, SteppedGenerator
from yatt.generation.table import ENGINES
from yatt.simulation.loop import run
from yatt.vision.images import ImageReader

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_passes_the_suite(engine):
    """The engine's environment has to be there before Python starts, as in a run."""
    own = ENGINES[engine].environment("cpu") | {"OMP_NUM_THREADS": "1", "YATT_TEST_ENGINE": engine}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "seeing_suite.py")],
        cwd=HERE.parents[1],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout


class TestDouble(SeeingContract):
    @pytest.fixture
    def generator(self):
        return double()


@pytest.mark.parametrize("case", [name for name in dir(SeeingProtocolContract) if name.startswith("test_")])
def test_the_simulated_one_keeps_the_contract(case):
    async def main() -> None:
        generator = simulated()
        await generator.resume()
        await getattr(SeeingProtocolContract(), case)(generator)

    run(main())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_seeing(tmp_path_factory.mktemp("seeing"), "qwen3_vl")


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Images are read once it is set."""
    gate, read = threading.Event(), ImageReader.read

    def wait(self, *image):
        assert gate.wait(60)
        return read(self, *image)

    monkeypatch.setattr(ImageReader, "read", wait)
    return gate


@pytest.fixture
def make(folder, monkeypatch):
    """make(backend=SteppedGenerator) -> a generator on `PlainEngine`."""
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], engine="tests.vision.plain_engine:PlainEngine"))

    async def started(backend: type[SteppedGenerator] = SteppedGenerator, model: str = folder) -> SteppedGenerator:
        generator = backend(
            model=model,
            config=RolloutConfig(),
            context_length=512,
            dtype="float32",
            device="cpu",
            seed=0,
            stop_token_ids=(NEVER,),
        )
        await generator.start()
        return generator

    return started


async def test_text_is_drawn_while_an_image_is_read(make, gate):
    generator = await make()
    seeing = asyncio.create_task(answers(generator, looks(3, [picture(1), picture(2)])))
    await until_running(generator, 3)
    assert [len(c.tokens) for c in await answers(generator, requests(2))] == [16, 16]
    assert not seeing.done() and generator._engine.given == [(), ()]
    gate.set()
    assert [len(c.tokens) for c in await seeing] == [16] * 3
    assert generator._images.read == 2, "once for all siblings"
    first, *others = generator._engine.given[2:]
    for images in (first, *others):
        for image, one in zip(images, first, strict=True):
            assert image.patches is one.patches
    expected = ImageReader(generator._model).read(picture(2).file, (1, 4, 6))
    assert np.array_equal(first[1].patches, expected) and first[1].media.patches == (1, 4, 6)
    await generator.close()


async def test_what_is_aborted_while_its_images_are_read_never_reaches_the_engine(make, gate):
    generator = await make()
    wanted = looks(2, [picture(1)])
    task = asyncio.create_task(answers(generator, wanted))
    await until_running(generator, 2)
    await generator.abort([wanted[0].key])
    await until_running(generator, 1)
    gate.set()
    aborted, other = await task
    assert (aborted.finish, len(aborted.tokens), len(other.tokens)) == ("aborted", 0, 16)
    assert len(generator._engine.given) == 1
    await generator.close()


async def test_a_stream_that_is_left_while_its_images_are_read_is_forgotten(make, gate):
    generator = await make()
    task = asyncio.create_task(answers(generator, looks(2, [picture(1)])))
    await until_running(generator, 2)
    task.cancel()
    await until_running(generator, 0)
    gate.set()
    await answers(generator, looks(1, [picture(1)]))
    assert len(generator._engine.given) == 1
    await generator.close()


async def test_close_answers_what_waits_for_an_image(make, gate):
    generator = await make()
    task = asyncio.create_task(answers(generator, looks(2, [picture(1)])))
    await until_running(generator, 2)
    closing = asyncio.create_task(generator.close())
    assert {c.finish for c in await task} == {"aborted"}
    gate.set()
    await closing
    with pytest.raises(BackendError, match="closed"):
        await answers(generator, looks(1, [picture(1)]))


async def test_a_request_under_way_keeps_its_patches_for_others(make, gate):
    """Also where no room is left to keep any for later."""
    gate.set()
    generator = await make()
    generator._images._most_bytes = 0
    endless = looks(1, [picture(1)], max_tokens=1_000_000)
    task = asyncio.create_task(answers(generator, endless))
    await until_sampled(generator, 1)
    await answers(generator, looks(2, [picture(1)]))
    assert generator._images.read == 1
    await generator.abort([endless[0].key])
    await task
    generator._engine.given.clear()
    gc.collect()
    await answers(generator, looks(2, [picture(1)]))
    assert generator._images.read == 2
    await generator.close()


async def test_images_are_refused_where_nothing_sees_them(make, tmp_path):
    text = await make(model=save_tiny(tmp_path))
    with pytest.raises(BackendError, match=r"has images, and .* sees none"):
        await answers(text, looks(1, [picture(1)]))
    await text.close()
    classifier = await make(SteppedClassifier, model=save_tiny(tmp_path, labels=1))
    with pytest.raises(BackendError, match="sees none"):
        await answers(classifier, looks(1, [picture(1)]))
    await classifier.close()


def test_patches_are_kept_up_to_so_many_bytes(folder):
    """An image of 24 x 16 pixels has 24 patches of 2 x 3 x 4 x 4 bytes."""
    queue = ImageQueue(folder, kept_bytes=2 * 24 * 96)
    asked = []
    for seed in (1, 2, 1, 3, 1, 2):
        done: Future = Future()
        queue.ask([picture(seed).at(4)], done.set_result)
        (image,) = done.result(60).result()
        assert image.patches.shape == (24, 96)
        del image, done
        gc.collect()
        asked.append(queue.read)
    assert asked == [1, 2, 2, 3, 3, 4], "the one that was asked for longest ago has gone"
    queue.close()
