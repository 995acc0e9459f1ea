"""A run whose reward is given by a judge that it serves itself, on slots that change hands: the real engines."""

from __future__ import annotations

import json

import pytest
from real_runs import make_place, rows, yatt

pytestmark = pytest.mark.slow

REWARD = '''
def seen(response):
    """A rule of weight 0: only to be looked at."""
    return float(len(response))

def verdict(text):
    """An untrained judge says anything: how many even digits is a number that differs from response to response."""
    return float(sum(c in "02468" for c in text))
'''


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    judge = {
        "path": "work/model",
        "context_length": 64,
        "template": "{response}",
        "parser": "reward.py:verdict",
        "max_tokens": 40,
        "engine_args": {"max_num_seqs": 64, "kv_cache_memory_bytes": 16 << 20},
    }
    reward = {"functions": {"seen": {"function": "reward.py:seen", "weight": 0.0}}, "models": {"judge": judge}}
    place = make_place(tmp_path_factory.mktemp("judged"), REWARD, "seen", reward=reward, placement={"mode": "dynamic"})
    yatt(place, "train", "config.yaml", "run.name=judged", "train.steps=2", "checkpoint.every=0")
    return place


def test_the_judge_gives_the_reward_and_the_rule_is_seen(judged):
    """The reward is the judge's mean verdict, whatever the rule of weight 0 says, over what could be judged."""
    for row in rows(judged, "judged"):
        # Of an untrained judge many answers come to no end; and an empty response gives it nothing to read.
        assert row["groups"] > 0
        assert row["reward_mean"] == pytest.approx(row["parts"]["judge"])
        assert row["parts"]["seen"] > 0 and row["parts"]["judge.judgements"] == 1


def test_both_roles_work_on_both_slots_and_every_decision_is_told(judged):
    """Each rollout begins with a decision; slots are the policy's or the judge's, both in all."""
    for row in rows(judged, "judged"):
        assert row["decisions"]
        assert all(sum(decision["slots"].values()) == 2 for decision in row["decisions"])
    timeline = json.loads((judged / "runs" / "judged" / "timeline.json").read_text())
    events = timeline["traceEvents"] if isinstance(timeline, dict) else timeline
    sampled = {event["cat"] for event in events if event.get("name") == "sample"}
    assert sampled >= {"policy", "judge"}
