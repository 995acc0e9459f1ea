"""What is said of engines without importing one: their shapes, options, and whether they can serve a folder."""

from __future__ import annotations

import json

import pytest

from tests.tiny_models import save_tiny
from yatt.config.engines import engine_mistakes, serving_mistakes
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.generation.kind import Need
from yatt.generation.table import ENGINES, check_options, option_mistakes
from yatt.placement.cost import engine_of, served
from yatt.placement.plan import POLICY

BASE = ["model.path=m", "train.steps=1", "train.batch_size=2"]
JUDGE = "reward.models.j={path: j, kind: classifier}"


def config(*words: str) -> Config:
    return load_config(None, [*BASE, *words])


def test_shapes_are_read_from_each_engines_own_options():
    vllm = {"tensor_parallel_size": 2, "max_num_seqs": 7, "gpu_memory_utilization": 0.8, "kv_cache_memory_bytes": 500}
    sglang = {"tp_size": 2, "max_running_requests": 7, "mem_fraction_static": 0.8, "max_total_tokens": 25}
    for engine, options in (("vllm", vllm), ("sglang", sglang)):
        shape = ENGINES[engine].shape(options)
        assert (shape.tensor_parallel, shape.running, shape.device_share) == (2, 7, 0.8)
        # A GPU's engine takes 0.8 of 1000 bytes. On a CPU half of 300 bytes of weights lie on each of two slots, and
        # half of a token's 40 bytes, so that 25 tokens are 500 bytes of each.
        need = {"weights": 300.0, "token": 40.0, "capacity": 1000.0}
        assert shape.need(**need, device="cuda") == Need(800.0, 0.0)
        assert shape.need(**need, device="cpu") == Need(150.0 + 500.0, 150.0)
        bare = ENGINES[engine].shape({})
        assert (bare.tensor_parallel, bare.running, bare.device_share) == (1, 256, 0.5)
        assert bare.need(**need, device="cpu") == Need(300.0 + (256 << 20), 300.0)


def test_a_judge_has_the_engine_of_the_policy_unless_it_names_one():
    assert [engine_of(config(JUDGE), role) for role in (POLICY, "j")] == ["vllm", "vllm"]
    mixed = config(JUDGE, "rollout.engine=sglang", "rollout.engine_args={tp_size: 2}", "reward.models.j.engine=vllm")
    assert [engine_of(mixed, role) for role in (POLICY, "j")] == ["sglang", "vllm"]
    assert {role: shape.tensor_parallel for role, shape in served(mixed).items()} == {POLICY: 2, "j": 1}
    assert engine_of(config(JUDGE, "rollout.engine=sglang"), "j") == "sglang"
    with pytest.raises(ConfigError, match="is not one of vllm, sglang"):
        config("rollout.engine=sglan")


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("vllm", {"tp_size": 2}, "tp_size is an option of SGLang, not of vLLM; use tensor_parallel_size"),
        (
            "sglang",
            {"tensor_parallel_size": 2},
            "tensor_parallel_size is an option of vLLM, not of SGLang; use tp_size",
        ),
        ("sglang", {"max_num_seqs": 2}, "max_num_seqs is an option of vLLM, not of SGLang; use max_running_requests"),
        ("sglang", {"kv_cache_memory_bytes": 2}, "kv_cache_memory_bytes is an option of vLLM, not of SGLang; use max_"),
        (
            "vllm",
            {"mem_fraction_static": 0.5},
            "mem_fraction_static is an option of SGLang, not of vLLM; use gpu_memory",
        ),
        ("sglang", {"enforce_eager": True}, "enforce_eager is an option of vLLM, not of SGLang; remove it"),
        ("sglang", {"max_model_len": 9}, "max_model_len is an option of vLLM, not of SGLang; remove it"),
        (
            "vllm",
            {"attention_backend_": "x"},
            "attention_backend_ is not an option of vLLM; did you mean attention_back",
        ),
        (
            "sglang",
            {"schedule_polisy": "x"},
            "schedule_polisy is not an option of SGLang; did you mean schedule_policy?",
        ),
        ("vllm", {"max_model_len": 7}, "max_model_len cannot be chosen; set model.context_length instead"),
        ("sglang", {"context_length": 7}, "context_length cannot be chosen; set model.context_length instead"),
        (
            "sglang",
            {"sampling_backend": "x"},
            "sampling_backend cannot be chosen; remove it: the adapter depends on it",
        ),
        ("sglang", {"tp_size": 2.5}, "tp_size=2.5 must be a whole number above 0; leave it out for the default"),
        ("sglang", {"max_running_requests": True}, "max_running_requests=True must be a whole number above 0; leave"),
        ("sglang", {"max_total_tokens": float("inf")}, "max_total_tokens=inf must be a whole number above 0; leave it"),
        (
            "vllm",
            {"gpu_memory_utilization": 1.5},
            "gpu_memory_utilization=1.5 must be a number above 0, at most 1; leave",
        ),
        ("sglang", {"mem_fraction_static": "half"}, "mem_fraction_static='half' must be a number above 0, at most 1;"),
    ],
)
def test_wrong_options_are_a_line_each(engine, options, said):
    (line,) = option_mistakes(engine, options, "rollout")
    assert line.startswith(f"rollout.engine_args.{said}")
    with pytest.raises(ConfigError):
        check_options(engine, options, "rollout")


def test_options_of_a_judge_name_its_own_settings():
    (line,) = engine_mistakes(config(JUDGE, "reward.models.j.engine=sglang", "reward.models.j.engine_args={dtype: x}"))
    assert line == "reward.models.j.engine_args.dtype cannot be chosen; set model.dtype instead"
    (line,) = engine_mistakes(config(JUDGE, "reward.models.j.engine_args={max_model_len: 9}"))
    assert line.endswith("max_model_len cannot be chosen; set reward.models.j.context_length instead")
    assert list(engine_mistakes(config(JUDGE, "rollout.engine_args={max_num_seqs: 9, block_size: 16}"))) == []
    assert list(option_mistakes("sglang", {"schedule_policy": "fcfs", "tp_size": 2}, "rollout")) == []


def test_an_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("yatt.generation.kind.find_spec", lambda name: None)
    monkeypatch.setattr("yatt.generation.kind.folder_of", lambda module: None if module == "sglang" else "somewhere")
    mixed = config(JUDGE, "reward.models.j.engine=sglang")
    roles = {POLICY: "Qwen3ForCausalLM", "j": "Qwen3ForSequenceClassification"}
    assert list(serving_mistakes(mixed, roles)) == [
        "reward.models.j.engine=sglang: SGLang is not installed here; `yatt doctor` says how to install it, or use vllm"
    ]
    # Options that another engine has are known without either.
    (line,) = option_mistakes("sglang", {"max_num_seqs": 2, "whatever": 1}, "rollout")
    assert line.endswith("use max_running_requests")


def test_a_folder_that_an_engine_cannot_serve():
    """vLLM puts a head on any model that it has; SGLang has heads of its own for some."""
    roles = {POLICY: "Qwen3ForCausalLM", "j": "MistralForSequenceClassification"}
    assert list(serving_mistakes(config(JUDGE), roles)) == []
    (line,) = serving_mistakes(config(JUDGE, "rollout.engine=sglang"), roles)
    assert line == (
        "reward.models.j.path=j: SGLang has no MistralForSequenceClassification; set reward.models.j.engine=vllm"
    )
    (line,) = serving_mistakes(config(JUDGE), roles | {"j": "NobodysForSequenceClassification"})
    assert line == "reward.models.j.path=j: vLLM has no NobodysForSequenceClassification; choose another model"
    for name in ("Llama", "Qwen2", "Qwen3"):
        for head in ("ForCausalLM", "ForSequenceClassification"):
            assert ENGINES["sglang"].lists(name + head) and ENGINES["vllm"].lists(name + head)


def test_the_rules_of_a_run_ask_it_all(tmp_path, monkeypatch):
    """Through the check that every command makes before it starts anything."""
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)
    policy, judge = save_tiny(tmp_path / "policy"), save_tiny(tmp_path / "judge", "llama", labels=1)
    (tmp_path / "d.jsonl").write_text('{"prompt": "1"}\n')
    words = [f"model.path={policy}", "train.steps=1", "train.batch_size=2", f"data.path={tmp_path}/d.jsonl"]
    words += [
        "model.context_length=64",
        "rollout.max_tokens=32",
        f"reward.models.j={{path: {judge}, kind: classifier}}",
    ]
    assert check(load_config(None, [*words, "rollout.engine=sglang"])) == []
    settings = json.loads((tmp_path / "judge/config.json").read_text())
    settings["architectures"] = ["MistralForSequenceClassification"]
    (tmp_path / "judge/config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as caught:
        check(load_config(None, [*words, "rollout.engine=sglang", "rollout.engine_args={max_num_seqs: 4}"]))
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "rollout.engine_args.max_num_seqs",
        f"reward.models.j.path={judge}:",
    ]
