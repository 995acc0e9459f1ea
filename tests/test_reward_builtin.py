"""Built-in rewards on worked examples, called directly and through a worker."""

from decimal import Decimal

import pytest
import reasoning_gym as gym
from test_reward import trajectory

from yatt.config.schema import RewardConfig
from yatt.reward.exact_match import exact_match
from yatt.reward.math_verify import math_verify
from yatt.reward.notation import last_number
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
        ("25", "2\u2075", {}, 0),
        ("2\u2075", "25", {}, 0),
        ("x\u00b9\u2070", "x^10", {}, 1),
        ("H\u2082O", "H2O", {}, 0),
        ("2\u00bd", "21/2", {}, 0),
        ("2 \u00bd", "2 1/2", {}, 1),
        ("\u22125", "-5", {}, 1),
        ("\uff13\uff14", "34", {}, 1),
        ("<answer>1 <answer>2</answer>", "2", {"extract": "tag"}, 1),
    ],
)
def test_exact_match(response, answer, settings, wanted):
    assert exact_match(response, answer, **settings) == wanted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.00001", "0.00001"),
        ("1e-05", "0.00001"),
        ("1E+22", "1e22"),
        ("1.5e3", "1500"),
        (".5", "0.5"),
        ("is $.50", "0.5"),
        ("-.5", "-0.5"),
        ("wait...5", "5"),
        ("\u22125", "-5"),
        ("\uff0d5", "-5"),
        ("x=-5", "-5"),
        ("10-5", "5"),
        ("f(2)-5", "5"),
        ("-$1,234.50", "-1234.5"),
        ("$-5", "-5"),
        ("50%", "50"),
        ("It is 7.", "7"),
        ("12. 13.", "13"),
        ("1,00,000", "100000"),
        ("1\u202f000\u202f000", "1000000"),
        ("1{,}000", "1000"),
        ("1,\\!000", "1000"),
        ("10^2", "100"),
        ("2**10", "1024"),
        ("2\u2075", "32"),
        ("10\u207b\u00b2", "0.01"),
        ("1.5 \\times 10^{3}", "1500"),
        ("1/2", "0.5"),
        ("3 1/2", "3.5"),
        ("-1/2", "-0.5"),
        ("\u00bd", "0.5"),
        ("on 11/28/2026", "2026"),
        ("2^999999999", "999999999"),
    ],
)
def test_the_last_number_by_its_value(text, value):
    assert last_number(text) == Decimal(value)
    assert exact_match(text, value, "number") == exact_match(value, text, "number") == 1.0
    assert exact_match(f"{Decimal(value) + 1}", text, "number") == 0.0


def test_no_number():
    assert last_number("five") is None and last_number("1e" + "9" * 30) is None


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (r"5\sqrt{3}", [r"\boxed{5\sqrt3}", r"5\sqrt{3}", r"<answer>\sqrt{75}</answer>"], [r"\boxed{5}", "5"]),
        (r"3\pi", [r"\boxed{3\pi}", r"\boxed{3pi}"], [r"\boxed{3}"]),
        ("3pi", [r"\boxed{3\pi}"], [r"\boxed{3}"]),
        (r"2^{6}", [r"\boxed{64}", r"\boxed{2^6}", "64"], [r"\boxed{2}", r"\boxed{26}", r"\boxed{6}"]),
        ("2\u2076", [r"\boxed{64}"], [r"\boxed{26}"]),
        (r"4 - 7i", [r"\boxed{4-7i}"], [r"\boxed{7}", r"\boxed{4+7i}"]),
        (r"y = 3x - 1", [r"\boxed{y=3x-1}"], [r"\boxed{1}", r"\boxed{-1}", r"\boxed{y=3x+1}"]),
        (r"\left( 5, \frac{\pi}{3} \right)", [r"\boxed{(5,\frac{\pi}{3})}"], [r"\boxed{5}", r"\boxed{(5,3)}"]),
        (r"[2, 7)", [r"\boxed{[2,7)}"], [r"\boxed{[2,7]}", r"\boxed{7}"]),
        (r"\{1, 4\}", [r"\boxed{\{4,1\}}"], [r"\boxed{4}"]),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", [r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"], [r"\boxed{2}"]),
        (r"7\frac{1}{2}", [r"\boxed{7.5}", r"\boxed{7 1/2}", "7.5"], [r"\boxed{7}", r"\boxed{3.5}"]),
        ("7 1/2", [r"\boxed{\frac{15}{2}}", "7 1/2"], [r"\boxed{0.5}"]),
        (r"15\%", [r"\boxed{15\%}", r"\boxed{0.15}"], [r"\boxed{1.5}"]),
        ("2.5e-4", [r"\boxed{0.00025}", "0.00025"], [r"\boxed{2.5}", r"\boxed{4}"]),
        ("\u22128", [r"\boxed{-8}", "\u22128"], [r"\boxed{8}"]),
        ("12,000 dollars", [r"\boxed{12000}", "12000"], [r"\boxed{12}"]),
        (r"6\text{ cm}", [r"\boxed{6}", r"\boxed{6\text{ cm}}"], [r"\boxed{60}"]),
        ("#### 18", ["it makes 18", r"\boxed{18}"], ["it makes 17"]),
        ("18.0", ["It is 18 dollars"], ["It is 180 dollars"]),
        (r"\boxed{9}", [r"\boxed{9}", "9"], [r"\boxed{8}"]),
        (r"$\frac{2}{3}$", [r"\boxed{\frac46}"], [r"\boxed{2}"]),
        (r"\(11\)", ["11"], ["1"]),
        ("Margaret", [r"\boxed{\text{Margaret}}", r"\boxed{margaret}", "Margaret."], [r"\boxed{Margaretta}", "7"]),
        (r"\text{listen}", [r"\boxed{listen}"], [r"\boxed{silent}", r"\boxed{\text{silent}}"]),
        (r"\text{(B)}", [r"\boxed{B}", r"\boxed{(B)}", "B"], [r"\boxed{A}"]),
        ("no solution", [r"\boxed{\text{No solution}}"], [r"\boxed{0}", r"\boxed{solution}"]),
        ("5", [r"\boxed{\boxed{5}}"], [r"5, so \boxed{}", r"\boxed{4} or \boxed{ }", r"\boxed{5", ""]),
    ],
)  # fmt: skip
def test_the_whole_answer_is_compared(answer, right, wrong):
    assert [math_verify(text, answer) for text in right] == [1.0] * len(right)
    assert [math_verify(text, answer) for text in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize("answer", [r"\frac{1}{0}", "{", "?!", "  ", ""])
@pytest.mark.parametrize("response", ["1", r"\boxed{{}", "?!"])
def test_an_answer_that_cannot_be_read_fails_whatever_the_response(response, answer):
    with pytest.raises(ValueError, match=r"cannot be read as mathematics|has no answer"):
        math_verify(response, answer)


@pytest.mark.slow
async def test_a_comparison_without_end_is_timed_out_and_never_zero():
    """Python is inside one multiplication of whole numbers then: nothing but a kill ends it."""
    scorer = FunctionScorer(RewardConfig(function="math_verify", timeout=3))
    await scorer.start()
    scores = await scorer.score([trajectory(r"\boxed{1}", "1"), trajectory(r"\boxed{9^{9^{10}}}", "1")])
    await scorer.close()
    assert [(s.status, s.value) for s in scores] == [("ok", 1.0), ("timed_out", None)]


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
    for call in (exact_match, math_verify):
        with pytest.raises(ValueError, match=r"data.answer_key"):
            call("", " ")
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
