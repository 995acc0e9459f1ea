"""Rules of the section `placement`, each broken on purpose."""

import pytest
from tiny_models import save_tiny

from yatt.config.load import load_config
from yatt.config.placement import placement_mistakes, slot_memory, train_slots
from yatt.config.rules import check, check_plan
from yatt.errors import ConfigError

BASE = ["model.path=no/such", "train.steps=1", "train.batch_size=8"]
JUDGE = "{path: no/such, parser: number, template: '{response}'%s}"


def config(*words, judges=1, tp=1, judge_tp=1):
    served = [
        f"reward.models.j{i}={JUDGE % f', engine_args: {{tensor_parallel_size: {judge_tp}}}'}" for i in range(judges)
    ]
    return load_config(None, [*BASE, *served, f"rollout.engine_args={{tensor_parallel_size: {tp}}}", *words])


def said(*words, slots=4, **kind):
    return list(placement_mistakes(config(*words, **kind), slots, "cluster.slots"))


def test_what_breaks_no_rule():
    assert said(judges=0) == []
    assert said("placement.mode=colocated", judges=2) == []
    assert said("placement.mode=dynamic") == said("placement.mode=weighted", judges=3) == []
    assert said("placement.mode=partial", "placement.split={policy: 3, j0: 1}") == []
    assert said("placement.mode=partial") == []
    assert said("placement.mode=partial", "placement.split={policy: 4, j0: 4}", slots=8, judge_tp=4) == []
    assert said("placement.mode=partial", "placement.split={policy: 3, j0: 1}", slots=None) == []
    assert said("placement.mode=disaggregated", judges=0) == []
    assert said("placement.mode=disaggregated", "placement.train_slots=2", "train.tp=2", slots=3) == []
    assert said("algorithm.name=sft", judges=0) == []


BROKEN = """
1 4 | placement.mode=partial | placement.split={polcy: 3, j0: 1}
    placement.split names polcy, which this run does not serve; did you mean policy?
1 4 | placement.mode=partial | placement.split={policy: 3, x: 1}
    placement.split names x, which this run does not serve; use policy, j0
2 4 | placement.mode=partial | placement.split={policy: 3, j0: 1}
    placement.split={policy: 3, j0: 1} leaves j1 with nothing; give each of policy, j0, j1 some, such as {policy: 2, j0: 1, j1: 1}
1 4 | placement.mode=partial | placement.split={policy: 4, j0: 0}
    placement.split={policy: 4, j0: 0} leaves j0 with nothing; give each of policy, j0 some, such as {policy: 2, j0: 2}
1 4 | placement.mode=partial | placement.split={policy: 3, j0: 2}
    placement.split={policy: 3, j0: 2} adds up to 5, not to cluster.slots=4; use {policy: 2, j0: 2}
1 4 | placement.mode=dynamic | placement.split={policy: 3, j0: 1}
    placement.split={policy: 3, j0: 1} is only for placement.mode=partial, not dynamic; unset it
1 4 | placement.train_slots=2
    placement.train_slots=2 is only for placement.mode=disaggregated; unset it
0 4 | placement.mode=dynamic
    placement.mode=dynamic divides the slots between the policy and the judges that this run serves, and reward.models has none with a path; use colocated
0 4 | algorithm.name=sft | placement.mode=dynamic
    placement.mode=dynamic has no meaning for algorithm.name=sft; use colocated
1 1 | placement.mode=weighted
    placement.mode=weighted needs 2 slots, 1 each for policy, j0, and cluster.slots=1; use colocated
0 1 | placement.mode=disaggregated
    placement.mode=disaggregated needs a slot that trains and one that draws, and cluster.slots=1; use 2, or placement.mode=colocated
0 4 | placement.mode=disaggregated | placement.train_slots=4
    placement.train_slots=4 of cluster.slots=4 leave none to draw on; use at most 3
0 4 | placement.mode=disaggregated | placement.train_slots=3 | train.tp=2
    placement.train_slots=3 is not a multiple of train.tp=2 x train.pp=1; use 2 or 4
0 2 | placement.mode=disaggregated | train.tp=2
    placement.train_slots=2 of cluster.slots=2 leave none to draw on; use more slots
"""  # noqa: E501
"""Judges and slots, words, then the one line of the error."""


def broken():
    lines = BROKEN.strip().splitlines()
    for given, line in zip(lines[::2], lines[1::2], strict=True):
        numbers, *words = given.split(" | ")
        yield *map(int, numbers.split()), words, line.strip()


@pytest.mark.parametrize(("judges", "slots", "words", "line"), list(broken()))
def test_broken_rules(judges, slots, words, line):
    assert said(*words, judges=judges, slots=slots) == [line]


def test_engines_of_several_slots():
    partial = "placement.mode=partial"
    assert said(partial, "placement.split={policy: 5, j0: 3}", slots=8, judge_tp=2) == [
        "placement.split={policy: 5, j0: 3}: policy's slots are not a multiple of 2, the slots of the largest engine; "
        "use {policy: 4, j0: 4}"
    ]
    assert said("placement.mode=dynamic", slots=6, judge_tp=4) == [
        "engines of 4 slots (reward.models.j0) do not fill the 6 slots to draw and judge on; use 4 or 8"
    ]
    assert said("placement.mode=dynamic", slots=12, tp=2, judge_tp=3) == [
        "rollout.engine_args.tensor_parallel_size=2 does not divide reward.models.j0's 3, so that blocks of slots "
        "cannot change hands; use 1"
    ]
    # Half of 6 slots train: the other 3 hold no whole number of engines of 2.
    assert said("placement.mode=disaggregated", slots=6, tp=2, judges=0) == [
        "engines of 2 slots (rollout) do not fill the 3 slots to draw and judge on; use 2 or 4"
    ]


def test_slots_that_train():
    assert train_slots(config(), 5) == 5
    apart = "placement.mode=disaggregated"
    assert train_slots(config(apart), 5) == 2  # half, rounded down
    assert train_slots(config(apart, "train.tp=2", "train.pp=2"), 14) == 4  # a multiple of 4 that is at most 7
    assert train_slots(config(apart, "placement.train_slots=1"), 5) == 1


def test_a_slot_of_a_cpu_is_its_part_of_the_memory(monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert slot_memory(0, 4) == 1_024_000


def test_a_slot_of_a_gpu_is_its_smallest(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '81559\\n40960\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slot_memory(2, 2) == 40960 * 2**20
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert slot_memory(2, 2) is None
    smi.unlink()
    assert slot_memory(2, 2) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def words(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)
    (tmp_path / "d.jsonl").write_text('{"prompt": "1"}\n')
    judge = f"{{path: {tiny}, parser: number, template: '{{response}}', max_tokens: 8}}"
    base = [f"model.path={tiny}", "train.steps=4", "train.batch_size=8", "model.context_length=64", "cluster.slots=2"]
    return [*base, "rollout.max_tokens=32", f"data.path={tmp_path}/d.jsonl", f"reward.models.j={judge}"]


def test_rules_are_those_of_runs_and_plans(words):
    with pytest.raises(ConfigError, match="adds up to 3"):
        check(load_config(None, [*words, "placement.mode=partial", "placement.split={policy: 2, j: 1}"]))
    with pytest.raises(ConfigError, match="needs 2 slots, 1 each for policy, j, and --devices=1; use colocated"):
        check_plan(load_config(None, [*words, "placement.mode=dynamic"]), [1, 2])


def test_a_run_that_does_not_fit_is_refused_with_the_numbers(words, monkeypatch):
    settings = load_config(None, [*words, "placement.mode=dynamic"])
    check(settings)
    monkeypatch.setattr("yatt.config.machine_rules.slot_memory", lambda gpus, slots: 2.7e8)
    with pytest.raises(ConfigError) as caught:
        check(settings)
    assert [line.split(", ")[0].split(": ")[1] for line in str(caught.value).splitlines()] == [
        "while policy is awake",
        "while j is awake",
    ]
    assert "and has 0.27 GB; lower kv_cache_memory_bytes in reward.models.j.engine_args" in str(caught.value)
    check(load_config(None, [*words, "placement.mode=dynamic", "cluster.address=head:6379"]))  # unknown machines
