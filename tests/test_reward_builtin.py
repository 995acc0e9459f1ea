"""Built-in rewards on worked examples, called directly and through a worker."""

import pytest
import reasoning_gym as gym
from test_reward import trajectory

from yatt.config.schema import RewardConfig
from yatt.reward.exact_match import exact_match
from yatt.reward.math_verify import math_verify
from yatt.reward.pool import FunctionScorer
from yatt.reward.reasoning_gym import reasoning_gym


@pytest.mark.parametrize(
    ("response", "answer", "settings", "wanted"),
    [
        ("  Paris\n", "paris", {}, 1),
        ("Paris", "paris", {"ignore_case": False}, 0),
        ("It is Paris", "paris", {}, 0),
        ("New  York", "New\u00a0York", {}, 1),
        ("<think>12</think><answer> 13 </answer>", "13", {"extract": "tag"}, 1),
        ("<answer>12</answer> no, <answer>13</answer>", "12", {"extract": "tag"}, 0),
        ("13", "13", {"extract": "tag"}, 0),
        ("12 + 1 makes 1,013.50", "1013.5", {"extract": "number"}, 1),
        ("it is -7.", "#### -7", {"extract": "number"}, 1),
        ("no idea", "7", {"extract": "number"}, 0),
    ],
)
def test_exact_match(response, answer, settings, wanted):
    assert exact_match(response, answer, **settings) == wanted


@pytest.mark.parametrize(
    ("response", "answer", "wanted"),
    [
        ("The answer is \\boxed{\\frac{2}{4}}", "0.5", 1),
        ("so $x = \\frac{1}{2}$", "\\frac{1}{2}", 1),
        ("1350", "1350", 1),
        ("1351", "1350", 0),
        ("$(x+1)^2$", "x^2+2x+1", 1),
        ("I do not know", "3", 0),
        ("<think>5</think><answer>6</answer>", "6", 1),
    ],
)
def test_math_verify(response, answer, wanted):
    assert math_verify(response, answer) == wanted


def test_a_row_without_an_answer_is_a_failure_and_not_a_zero():
    for call in (exact_match, math_verify):
        with pytest.raises(ValueError, match=r"data.answer_key"):
            call("1", None)
    with pytest.raises(ValueError, match="holds no number"):
        exact_match("1", "one", extract="number")
    with pytest.raises(ValueError, match="cannot be read as mathematics"):
        math_verify("1", "")
    with pytest.raises(ValueError, match="not from a reasoning-gym task"):
        reasoning_gym("1", {})


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting", "word_sorting"])
def test_a_tasks_own_answer_scores_one(task):
    for entry in gym.create_dataset(task, size=3, seed=1):
        metadata = {"reasoning_gym": {"task": task, "entry": entry}}
        assert reasoning_gym(entry["answer"], metadata) == 1.0
        assert reasoning_gym(f"<think>hm</think><answer>{entry['answer']}</answer>.", metadata) == 1.0
        assert reasoning_gym("<answer>wrong</answer>", metadata) < 0.5


async def test_built_ins_through_a_worker():
    entry = gym.create_dataset("chain_sum", size=1, seed=1)[0]
    functions = {
        "math": {"function": "math_verify"},
        "exact": {"function": "exact_match", "arguments": {"extract": "tag"}, "weight": 0.5},
        "gym": {"function": "reasoning_gym", "weight": 0.25},
    }
    scorer = FunctionScorer(RewardConfig(functions=functions, timeout=30))
    await scorer.start()
    told = {"reasoning_gym": {"task": "chain_sum", "entry": entry}}
    right = trajectory(f"<answer>{entry['answer']}</answer>", entry["answer"], told)
    scores = await scorer.score([right, trajectory("<answer>x</answer>", "1", {})])
    await scorer.close()
    assert scores[0].status == "ok" and scores[0].value == 1.75
    assert scores[0].parts == {"math": 1.0, "exact": 1.0, "gym": 1.0}
    assert scores[1].status == "failed" and scores[1].detail.startswith("gym: ValueError")
