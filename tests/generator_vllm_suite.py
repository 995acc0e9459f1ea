"""What only vLLM's adapter has; run in the same process as `generator_suite.py`."""

from __future__ import annotations

import dataclasses

import pytest
from vllm.engine.arg_utils import EngineArgs

from tests.generator_contract import publish
from tests.tiny_models import save_tiny
from yatt.generation.vllm.arguments import arguments, known_options, shape
from yatt.generation.vllm.engine import VllmEngine

__all__ = ["publish"]

CUDA_BYTES = {"weights": 100, "kv_cache": 1000}


class Cuda:
    """What an engine asks of vLLM's executor on CUDA, by vLLM's own account: weights of 100 bytes and a cache of 1000,
    each mapped or not, of which `sleep` takes both and `wake_up` those it names."""

    def __init__(self) -> None:
        self.sleeping_tags: set[str] = set()
        self.done: list[str] = []

    def sleep(self, level: int) -> None:
        assert level == 1 and "weights" not in self.sleeping_tags
        self.done.append("sleep")
        self.sleeping_tags |= set(CUDA_BYTES)

    def wake_up(self, tags: list[str]) -> None:
        assert set(tags) <= self.sleeping_tags
        self.done += tags
        self.sleeping_tags -= set(tags)

    def collective_rpc(self, method: str, args: tuple = ()) -> list[int]:
        if method == "yatt_load":
            assert "weights" not in self.sleeping_tags, "weights are written to memory that is there"
            self.done.append("load")
        return [sum(size for part, size in CUDA_BYTES.items() if part not in self.sleeping_tags)]


def test_on_cuda_weights_wake_first_and_for_a_load_alone(publish):
    engine, executor = VllmEngine.__new__(VllmEngine), Cuda()
    engine._executor, engine._on_cpu, engine._sleeps, engine._asleep = executor, False, True, False
    engine.forget_prefixes = lambda: None
    assert [engine.sleep(), engine.sleep()] == [1100, 0]
    engine.load(publish(1, seed=0))
    assert executor.sleeping_tags == {"kv_cache"}
    assert engine.sleep() == 100  # what the load has taken
    engine.wake()
    engine.wake()
    assert executor.done == ["sleep", "weights", "load", "sleep", "weights", "kv_cache"]
    assert engine.sleep() == 1100


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("options", "expected"), [({}, 256), ({"max_num_seqs": 7}, 7), ({"max_num_batched_tokens": 96}, 96)]
)
def test_an_engine_runs_as_many_requests_as_is_planned_for(tmp_path, device, options, expected):
    """What vLLM itself makes of the arguments, as against what planner, router and forecast read."""
    folder = save_tiny(tmp_path, max_position_embeddings=96)
    made = EngineArgs(model=folder, max_model_len=96, **arguments(options, device)).create_engine_config()
    assert made.scheduler_config.max_num_seqs == shape(options).running == expected


def test_options_are_read_without_importing_it():
    assert known_options() == {field.name for field in dataclasses.fields(EngineArgs)}
