"""Parts of the Megatron trainer that need no processes but this one, and how ranks meet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.megatron_cases import config
from tests.megatron_pool import free_port
from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from yatt.config.schema import AlgorithmConfig, Config
from yatt.errors import BackendError, ConfigError, WaitTimeout
from yatt.training import objective
from yatt.training.attention import BUCKET_RATIO, BUCKET_TOKENS, packing
from yatt.training.export import write_folder
from yatt.training.megatron.attention import Rotary
from yatt.training.megatron.backend import open_rank
from yatt.training.megatron.model import ValueHead
from yatt.training.memory import Shelf

pytestmark = pytest.mark.slow

PLAIN = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_every_token_has_one_place_in_a_bucket_of_its_like(lengths: list[int]) -> None:
    plan = packing(lengths, torch.device("cpu"))
    total = sum(lengths)
    assert torch.equal(plan.index[plan.inverse], torch.arange(total))
    assert len(plan.index) == sum(s * n for s, n in plan.shapes)
    sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    offset = 0
    for count, longest in plan.shapes:
        rows = plan.index[offset : offset + count * longest].view(count, longest)
        offset += count * longest
        for row in rows:
            owner = int(sequence[row[0]])
            length = lengths[owner]
            # A row is one sequence in order, then padding; and never padded to more than the bounds say.
            assert torch.equal(row[:length], torch.arange(length) + sum(lengths[:owner]))
            assert longest <= max(length * BUCKET_RATIO, length + BUCKET_TOKENS)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default", "rope_theta": 5000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_rotary_angles_are_those_of_transformers(scaling: dict[str, object]) -> None:
    hf = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=256, rope_parameters=scaling)
    positions = torch.arange(200)
    cos, sin = Rotary(hf, torch.device("cpu"), torch.float32)(positions)[""]
    expected = LlamaRotaryEmbedding(hf)(torch.zeros(1), positions[None])
    # Theirs negates the second half of a head in place of the first half's sines.
    assert torch.equal(cos[:, 0], expected[0][0])
    assert torch.equal(sin[:, 0], expected[1][0] * torch.tensor([-1.0] * 8 + [1.0] * 8))


def test_rotary_types_that_follow_the_batch_are_refused() -> None:
    hf = LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(ConfigError, match="rope_type='dynamic' cannot be trained; use one of default"):
        Rotary(hf, torch.device("cpu"), torch.float32)


def test_a_missing_rank_is_named(tmp_path: object) -> None:
    folder = save_tiny(f"{tmp_path}/model", "qwen3")
    short = Config(**config(folder), cluster={"start_timeout": 1.0})
    alone = open_rank(short, rank=0, world_size=2, address="127.0.0.1", port=free_port())
    with pytest.raises(WaitTimeout, match=r"rank 0 waited 1 s for 1 other rank"):
        alone.start()
    late = open_rank(short, rank=1, world_size=2, address="127.0.0.1", port=free_port())
    with pytest.raises(WaitTimeout, match=r"rank 1 waited 1 s for rank 0 at 127\.0\.0\.1"):
        late.start()
    with pytest.raises(BackendError, match=r"rank 1 was used before start"):
        late.update([])


def test_a_taken_port_is_named(tmp_path: object) -> None:
    folder = save_tiny(f"{tmp_path}/model", "qwen3")
    port = free_port()
    holder = torch.distributed.TCPStore("127.0.0.1", port, 1, True)
    rank = open_rank(Config(**config(folder)), rank=0, world_size=1, address="127.0.0.1", port=port)
    with pytest.raises(BackendError, match=rf"cannot listen at 127\.0\.0\.1:{port}"):
        rank.start()
    del holder


HOOK = """
import torch
before = {name: getattr(torch.cuda, name) for name in dir(torch.cuda)}
import yatt.training.megatron, megatron.core.optimizer, megatron.core.jit
assert before == {name: getattr(torch.cuda, name) for name in before}, "torch.cuda itself stays as it was"
assert megatron.core.optimizer.__spec__.loader.__class__.__module__ == "yatt.training.megatron.cpu"
assert megatron.core.jit.jit_fuser is megatron.core.jit.noop_decorator
print("cpu only")
"""
LATE = "import megatron.core, yatt.training.megatron"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the hook does nothing where CUDA exists")
def test_the_hook_touches_megatron_only(tmp_path: object) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", HOOK], capture_output=True, text=True, timeout=200, env=environment)
    assert run.returncode == 0 and "cpu only" in run.stdout, run.stderr
    run = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=200, env=environment)
    assert "import yatt.training.megatron first" in run.stderr


def test_a_shelf_frees_what_it_is_given_and_brings_it_back() -> None:
    whole = torch.arange(10.0)
    view, scratch = whole[3:5], torch.ones(4)
    shelf = Shelf(lambda: [whole, view], lambda: [scratch])
    assert shelf.put_away() == 40 + 16, "a view's storage counts once"
    assert whole.untyped_storage().nbytes() == scratch.untyped_storage().nbytes() == 0
    assert shelf.put_away() == 0, "it is away already"
    assert shelf.take_back() == 40 + 16
    assert torch.equal(whole, torch.arange(10.0)) and view.tolist() == [3.0, 4.0] and scratch.tolist() == [0.0] * 4
    whole += 1
    assert view.tolist() == [4.0, 5.0], "it is still a view"


@pytest.mark.parametrize(("padding", "written"), [("<pad>", 0), ("<eos>", None), (None, 5)])
def test_the_score_of_a_response_is_read_at_its_end(tmp_path: Path, padding: str | None, written: int | None) -> None:
    """A text that ends with <eos> is scored there, also where <eos> pads: never one token earlier."""
    source, target = Path(save_tiny(tmp_path / "policy", pad_token_id=5)), tmp_path / "scorer"
    words = tiny_tokenizer()
    words.pad_token = padding
    words.save_pretrained(source)
    model = tiny_model(labels=1)
    given = Config.model_validate(config(str(source)))
    write_folder(iter(model.state_dict().items()), given, str(target), writer=True, head="value")
    read = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
    assert read.config.pad_token_id == written
    text = torch.tensor([[7, 8, 9, words.eos_token_id]])
    with torch.no_grad():
        at_end = model.score(model.model(text).last_hidden_state[0, -1])
        assert torch.allclose(read(text).logits[0], at_end, atol=1e-5)


def test_a_value_is_as_exact_as_float32() -> None:
    """Of bfloat16 states and weights: 1.0078125 ** 2 = 1.01568603515625, where bfloat16 has 1.015625 only."""
    head = ValueHead(SimpleNamespace(hidden_size=1, params_dtype=torch.bfloat16, sequence_parallel=False))
    with torch.no_grad():
        head.weight.fill_(1.0078125)
        value, _ = head(torch.full((1, 1, 1), 1.0078125, dtype=torch.bfloat16))
    assert value.dtype == torch.float32 and value.item() == 1.0078125**2


def test_ipo_over_sums_and_over_means_by_hand(monkeypatch):
    """Log ratios 6 over three tokens and 1 over two, beta 1/2: (6 - 1 - 1)^2 = 16, and (6/3 - 1/2 - 1)^2 = 1/4."""
    monkeypatch.setattr(objective, "_log_ratios", lambda micro, output, groups: torch.tensor([6.0, 1.0]))
    batch = SimpleNamespace(
        loss_mask=torch.tensor([0, 1, 1, 1, 0, 1, 1]).bool(),
        cu_seqlens=torch.tensor([0, 4, 7]),
        denominator=SimpleNamespace(sequences=1),
    )
    for averaged, expected in ((False, 16.0), (True, 0.25)):
        own = AlgorithmConfig(name="ipo", beta=0.5, average_logprobs=averaged)
        loss = objective.Preference(SimpleNamespace(algorithm=own), None).loss
        assert loss(SimpleNamespace(batch=batch), None, SimpleNamespace(add=lambda **sums: None)).item() == expected
