"""Judges without a wire: templates, parsers, judgements and retries, and rewards mixed, each by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from yatt.config.schema import JudgeConfig
from yatt.errors import ConfigError
from yatt.reward.judge import Failure, JudgeScorer, combine, render
from yatt.reward.mixed import MixedScorer, mix
from yatt.reward.parsers import load_parser
from yatt.types import Media, Prompt, Score, Trajectory


def prompt(**changes: Any) -> Prompt:
    base = {"uid": 3, "text": "<user>2+2=<assistant>", "tokens": np.arange(2), "question": "2+2="}
    return Prompt(**(base | {"answer": "4"} | changes))


def trajectory(text: str, sibling: int = 0, **changes: Any) -> Trajectory:
    return Trajectory(
        prompt=prompt(**changes),
        sibling=sibling,
        tokens=np.arange(4),
        loss_mask=np.array([False, False, True, True]),
        rollout_logprobs=np.zeros(4, dtype=np.float32),
        spans=(),
        finish="stop",
        text=text,
    )


# --- templates -------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_in_once():
    template = 'Q {question} A {response} R {answer} as {"score": 1}, { response }, {}'
    # What a response writes in braces is neither filled in nor refused.
    assert render(template, prompt(), "{answer} {nobody} {0}") == (
        'Q 2+2= A {answer} {nobody} {0} R 4 as {"score": 1}, { response }, {}'
    )
    assert render(r"{response}\1", prompt(), r"\g<0>") == r"\g<0>\1"
    assert render("{question}", prompt(question=""), "") == "<user>2+2=<assistant>"
    assert render("{response}", prompt(answer=None), "x") == "x"
    with pytest.raises(ValueError, match=r"data\.answer_key"):
        render("{response} {answer}", prompt(answer=None), "x")


# --- parsers ---------------------------------------------------------------------------------------------------------

CORRECT = "verdict:correct=1,wrong=0"


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (CORRECT, "It is correct.", 1.0),
        (CORRECT, "At first it looks correct, but it is **WRONG**", 0.0),
        (CORRECT, "wrong? No: _correct_", 1.0),
        (CORRECT, "incorrect", None),
        (CORRECT, "wrongly", None),
        (CORRECT, "correct2", None),
        (CORRECT, "", None),
        (CORRECT, "<correct><wrong>", 0.0),
        ("verdict:<correct>=1,<wrong>=-1", "so<wrong>so", -1.0),
        ("verdict:partly correct=0.5,correct=1", "this is Partly Correct", 0.5),
        ("verdict:correct=1,partly correct=.5", "partly correct", 0.5),
        ("verdict:A+=1, A = 0.5", "grade: A+", 1.0),
        ("verdict:A+=1, A = 0.5", "grade: a!", 0.5),
        ("verdict:a=b=1", "is a=b", 1.0),
        ("verdict:richtig=1", "RICHTIG", 1.0),
        ("verdict:对=1,错=0", "答案: 对", 1.0),
        ("number", "First 3, then 7", 7.0),
        ("number", "Score: 8/10", 8.0),
        ("number", "8 out of 10", 8.0),
        ("number", "8 / 10.", 8.0),
        ("number", "-2.5", -2.5),
        ("number", "on a scale of 1-5", 5.0),
        ("number", "about 1,250,000.5 in all.", 1250000.5),
        ("number", "1e-3", 0.001),
        ("number", "100%", 100.0),
        ("number", "v2 3rd 1.2.3 x_7", None),
        ("number", "none", None),
        ("number:0..10", "10", 10.0),
        ("number:0..10", "7, no, 11", None),
        ("number:0..10", "-1", None),
        ("number:-1..1", "not 0.7 but -.5", -0.5),
        ("number", "1e999", "inf is no verdict, in '1e999'"),
        ("json:score", '{"score": 3}', 3.0),
        ("json:score", 'so: ```json\n{"why": "{}", "score": "4.5"}\n``` done', 4.5),
        ("json:score", '{"score": 1} then {"score": 2}', 2.0),
        ("json:score", '{"score": 1} then {"other": 2}', 1.0),
        ("json:score", '{"score": 1, "parts": {"score": 0}}', 1.0),
        ("json:score", "{ broken {{ " + '{"score": true}', 1.0),
        ("json:score", '{"score": 1} and {"score": 2', 1.0),
        ("json:score", '{"score": "high"}', None),
        ("json:score", '{"score": null}', None),
        ("json:score", '{"score": [1]}', None),
        ("json:score", "[1] score: 3", None),
        ("json:score", '{"a":' * 3000, None),
        ("json:score", '{"score": NaN}', "nan is no verdict"),
    ],
)
async def test_parsers(parser, text, value):
    score = await judged(parser, lambda *_: text, retries=0)
    if isinstance(value, float):
        assert (score.status, score.value) == ("ok", value)
    else:
        assert score.status == "failed" and score.value is None and (value or "no verdict in") in score.detail


@pytest.mark.parametrize(
    ("parser", "said"),
    [
        ("verdict", "'' gives no word a value; write verdict:correct=1,wrong=0"),
        ("verdict:correct=1,wrong", "'wrong' gives no word a value"),
        ("verdict:correct=yes", "'correct=yes' gives no word"),
        ("verdict:correct=1,Correct=0", "'Correct=0' gives no word"),
        ("verdict:correct=nan", "'correct=nan' gives no word"),
        ("number:10..0", "'10..0' is no range; write number:0..10"),
        ("number:5", "'5' is no range"),
        ("number:nan..1", "'nan..1' is no range"),
        ("json", "it names no field; write json:score"),
        ("numbr", " is not known (did you mean number?); use verdict:WORD=NUMBER"),
        ("regex:.*", " is not known; use verdict:WORD=NUMBER"),
        ("no/such.py:f", "there is no file no/such.py"),
    ],
)
def test_parsers_that_are_none(parser, said):
    with pytest.raises(ConfigError) as caught:
        load_parser(parser, "reward.models.j.parser")
    assert str(caught.value).startswith(f"reward.models.j.parser={parser}") and said in str(caught.value)


async def test_a_parser_of_the_users(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy\n"
        "def f(text):\n"
        "    if text == 'raise': raise KeyError('gone')\n"
        "    if text == 'quit': raise SystemExit(3)\n"
        "    return {'none': None, 'text': '1', 'nan': float('nan'), 'bool': True}.get(text, numpy.float32(0.5))\n"
    )
    reference = f"{tmp_path}/mine.py:f"
    assert (await judged(reference, lambda *_: "x")).value == 0.5
    assert (await judged(reference, lambda *_: "bool")).value == 1.0
    for text, said in {
        "none": "j: no verdict in 'none'",
        "text": "j: '1' is no verdict, in 'text'",
        "nan": "j: nan is no verdict, in 'nan'",
        "quit": "j: SystemExit: 3 (mine.py, line 4) in 'quit'",
        "raise": "j: KeyError: 'gone' (mine.py, line 3) in 'raise'",
    }.items():
        score = await judged(reference, lambda *_, text=text: text)
        assert (score.status, score.detail) == ("failed", said)
    with pytest.raises(ConfigError, match="has no 'g'"):
        load_parser(f"{tmp_path}/mine.py:g", "reward.models.j.parser")


# --- judgements and retries ------------------------------------------------------------------------------------------

Reply = Callable[[str, int, int], "str | Failure"]


class Scripted:
    """An asker whose answer is a function of the text, the round and the place in it."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[tuple[list[str], list[int]]] = []

    async def start(self) -> None: ...

    sees = False

    async def ask(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Media] = ()
    ) -> list[str | Failure]:
        self.asked.append((list(texts), list(seeds)))
        return [self.reply(text, len(self.asked) - 1, place) for place, text in enumerate(texts)]

    async def close(self) -> None: ...


def scorer(asker: Scripted, parser: str = "number", name: str = "j", **settings: Any) -> JudgeScorer:
    base = {"url": "http://nowhere", "model": "m", "template": "Is {response} right?", "parser": parser}
    return JudgeScorer(name, JudgeConfig(**(base | settings)), asker)


async def judged(parser: str, reply: Reply, **settings: Any) -> Score:
    (score,) = await scorer(Scripted(reply), parser, **settings).score([trajectory("4")])
    return score


async def test_the_mean_of_judgements():
    asker = Scripted(lambda text, turn, place: str([1, 2, 6][place]))
    (score,) = await scorer(asker, judgements=3).score([trajectory("4")])
    # (1 + 2 + 6) / 3
    assert score == Score(status="ok", value=3.0, parts={"j": 3.0, "j.judgements": 3.0, "j.unparsed": 0.0})
    ((texts, seeds),) = asker.asked
    assert texts == ["Is 4 right?"] * 3 and len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


async def test_what_has_no_verdict_is_asked_again_with_another_seed():
    # Judgement 0 is parsed at once, 1 in the second round, 2 never: three rounds of 3, 2 and 1 questions.
    rounds = [["2", "hm", "well"], ["5", "hm"], ["oh"]]
    asker = Scripted(lambda text, turn, place: rounds[turn][place])
    (score,) = await scorer(asker, judgements=3, retries=2).score([trajectory("4")])
    assert [len(texts) for texts, _ in asker.asked] == [3, 2, 1]
    # (2 + 5) / 2, and 2 + 1 + 1 answers without a verdict
    assert score == Score(status="ok", value=3.5, parts={"j": 3.5, "j.judgements": 2.0, "j.unparsed": 4.0})
    seeds = [seed for _, seeds in asker.asked for seed in seeds]
    assert len(set(seeds)) == 6
    again = Scripted(lambda text, turn, place: rounds[turn][place])
    await scorer(again, judgements=3, retries=2).score([trajectory("4")])
    assert again.asked == asker.asked
    other = Scripted(lambda text, turn, place: "1")
    await scorer(other, judgements=3).score([trajectory("4", sibling=1), trajectory("4", uid=4)])
    assert not set(seeds) & {seed for _, given in other.asked for seed in given}


async def test_no_verdict_is_never_a_zero():
    asker = Scripted(lambda text, turn, place: f"hm {'!' * 300} {chr(65 + turn)}")
    (score,) = await scorer(asker, retries=2).score([trajectory("4")])
    assert len(asker.asked) == 3
    assert (score.status, score.value, score.parts) == ("failed", None, {})
    assert score.detail.startswith("j: no verdict in ...'!!!") and score.detail.endswith("! C'")


async def test_failures_are_not_asked_again():
    late, broken = Failure("timed_out", "no answer within 1 s"), Failure("failed", "answers 500")
    asker = Scripted(lambda text, turn, place: late)
    (score,) = await scorer(asker, judgements=2).score([trajectory("4")])
    assert score == Score(status="timed_out", detail="j: no answer within 1 s") and len(asker.asked) == 1
    assert (await judged("number", lambda _text, _turn, place: [late, broken][place], judgements=2)).status == "failed"
    # One of three is lost: the mean is that of the others, (4 + 5) / 2.
    score = await judged("number", lambda _text, _turn, place: ["4", late, "5"][place], judgements=3)
    assert score == Score(status="ok", value=4.5, parts={"j": 4.5, "j.judgements": 2.0, "j.unparsed": 0.0})
    score = await judged("number", lambda _text, _turn, place: [late, "hm"][place], judgements=2, retries=0)
    assert score == Score(status="failed", detail="j: no verdict in 'hm'")


def test_combine_by_hand():
    assert combine("j", [0.1] * 10, 0).value == 0.1
    assert combine("j", [0.0], 2).parts == {"j": 0.0, "j.judgements": 1.0, "j.unparsed": 2.0}


async def test_a_row_without_the_answer_the_template_names():
    asker = Scripted(lambda *_: "1")
    judge = scorer(asker, template="{response} {answer}")
    bad, good = await judge.score([trajectory("a", answer=None), trajectory("b")])
    assert bad.status == "failed" and bad.detail.endswith("see data.answer_key")
    assert good.value == 1.0 and asker.asked[0][0] == ["b 4"]


async def test_a_parser_that_never_matches_is_said_once(caplog):
    judge = scorer(Scripted(lambda text, *_: f"about {text}"), CORRECT, retries=1)
    with caplog.at_level(logging.WARNING):
        await judge.score([trajectory(str(i)) for i in range(15)])  # 15 * 2 answers
        assert caplog.messages == []
        await judge.score([trajectory(str(i)) for i in range(30)])
    (said,) = caplog.messages
    first, *raw = said.splitlines()
    assert first == f"reward.models.j.parser={CORRECT} finds no verdict in the first 32 answers:"
    assert len(raw) == 3 and raw[0] == "    'about Is 0 right?'"


async def test_a_parser_that_matches_sometimes_is_not_suspected(caplog):
    judge = scorer(Scripted(lambda text, *_: "wrong" if "right" in text and " 7 " in text else "hm"), CORRECT)
    with caplog.at_level(logging.WARNING):
        await judge.score([trajectory(str(i)) for i in (7, *range(40))])
    assert caplog.messages == []


# --- several scorers -------------------------------------------------------------------------------------------------


def ok(value: float, **parts: float) -> Score:
    return Score(status="ok", value=value, parts=parts)


def test_the_weighted_sum():
    # 1 * 1 + .5 * 8 - 2 * .25
    assert mix([1.0, 0.5, -2.0], [ok(1.0, rule=1.0), ok(8.0, style=8.0), ok(0.25, long=0.25)]) == ok(
        4.5, rule=1.0, style=8.0, long=0.25
    )
    assert mix([2.0], [ok(0.0)]) == ok(0.0)


def test_the_worst_status_counts():
    failed, late = Score(status="failed", detail="a: broke"), Score(status="timed_out", detail="b: slow")
    both = mix([1, 1, 1], [ok(1.0, rule=1.0), late, failed])
    assert both == Score(status="failed", parts={"rule": 1.0}, detail="b: slow; a: broke")
    assert mix([1, 1], [ok(1.0), late]).status == "timed_out"


async def test_the_first_failures_are_said(caplog):
    mixed = MixedScorer([(1.0, scorer(Scripted(lambda text, *_: text), retries=0))])
    with caplog.at_level(logging.WARNING):
        scores = await mixed.score([trajectory(text) for text in "ab1cdef"])
    assert [score.status for score in scores].count("failed") == 6
    assert caplog.messages == [f"a reward failed: j: no verdict in 'Is {text} right?'" for text in "abc"]


async def test_all_are_asked_at_the_same_time():
    """Each waits for the other to begin."""
    events = []

    class Waiting(Scripted):
        async def ask(self, texts, seeds, images=()):
            events.append(self)
            while len(events) < 2:
                await asyncio.sleep(0.001)
            return await super().ask(texts, seeds, images)

    judges = [scorer(Waiting(lambda *_, value=value: value), name=name) for name, value in (("a", "1"), ("b", "3"))]
    mixed = MixedScorer([(1.0, judges[0]), (0.5, judges[1])])
    await mixed.start()
    assert [s.value for s in await mixed.score([trajectory("4")])] == [2.5]
    assert await mixed.score([]) == []
    await mixed.close()
