"""Each engine keeps the contract of a generator; its logprobs are those of a Hugging Face forward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generator_contract import answers, requests
from tests.tiny_models import save_tiny
from yatt.config.schema import RolloutConfig
from yatt.errors import BackendError, ConfigError
from yatt.generation.engine import Step
from yatt.generation.stepped import SteppedGenerator, end_tokens
from yatt.generation.table import ENGINES
from yatt.types import WeightManifest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SUITES = {
    "vllm": ("generator_suite.py", "generator_vllm_suite.py"),
    "sglang": ("generator_suite.py", "generator_sglang_suite.py"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_passes_the_suite(engine):
    """The engine's environment has to be there before Python starts, as in a run."""
    own = ENGINES[engine].environment("cpu") | {"OMP_NUM_THREADS": "1", "YATT_TEST_ENGINE": engine}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f) for f in SUITES[engine])],
        cwd=HERE.parent,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "passed" in result.stdout and "skipped" not in result.stdout


class BrokenEngine:
    """Takes requests and weights, and fails to do anything with them."""

    def add(self, *arguments) -> None:
        pass

    def check(self, manifest) -> None:
        pass

    def load(self, manifest) -> None:
        raise RuntimeError("worker lost")

    def step(self) -> Step:
        raise RuntimeError("device lost")


def generator(folder) -> SteppedGenerator:
    return SteppedGenerator(
        model=str(folder), config=RolloutConfig(), context_length=64, dtype="float32", device="cpu", seed=0
    )


async def test_a_failing_engine_fails_its_requests_and_every_call_after(tmp_path, monkeypatch):
    broken = generator(save_tiny(tmp_path))
    monkeypatch.setattr(broken, "_build", lambda: setattr(broken, "_engine", BrokenEngine()))
    await broken.start()
    with pytest.raises(BackendError, match="device lost"):
        await answers(broken, requests(2, length=10))
    with pytest.raises(BackendError, match="device lost"):
        await broken.pause()
    await broken.close()


async def test_a_load_that_fails_half_way_leaves_nothing_that_serves(tmp_path, monkeypatch):
    broken = generator(save_tiny(tmp_path))
    monkeypatch.setattr(broken, "_build", lambda: setattr(broken, "_engine", BrokenEngine()))
    await broken.start()
    await broken.pause()
    with pytest.raises(BackendError, match="worker lost"):
        await broken.load(WeightManifest(version=1, kind="flat", path="", checksum=""))
    with pytest.raises(BackendError, match=r"loading weights.*worker lost"):
        await broken.resume()
    await broken.close()


async def test_it_says_when_it_was_not_started(tmp_path):
    with pytest.raises(BackendError, match="not started"):
        await generator(save_tiny(tmp_path)).pause()


async def test_stop_strings_need_a_fast_tokenizer(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    bare = generator(folder)
    monkeypatch.setattr(bare, "_build", lambda: setattr(bare, "_engine", BrokenEngine()))
    await bare.start()
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        await answers(bare, requests(1, length=10, stop=("x",)))
    await bare.pause()


def test_end_tokens_come_from_the_folder(tmp_path):
    assert end_tokens(save_tiny(tmp_path)) == (1,)
