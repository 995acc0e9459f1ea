"""Conversations from end to end: a scripted policy, the recorder, and environments in processes of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles import ScriptedScorer, Ticks
from tests.environments.templates import tokenizer
from yatt.algorithm.samples import samples
from yatt.cluster.samplelog import SampleLog
from yatt.config.schema import AlgorithmConfig, EnvironmentConfig
from yatt.controller.carry_over import carried_group, restored_group
from yatt.controller.conversation import Limits
from yatt.controller.player import ConversationSetup, Player
from yatt.controller.talks import Talks
from yatt.controller.tally import Tally, as_group, count
from yatt.data.turns import ResponseText
from yatt.environments.chat import Chat
from yatt.environments.hosted import BEGINNING, HostedEnvironment, check_environment
from yatt.environments.messages import read_request
from yatt.errors import BackendError, ConfigError
from yatt.types import Completion, Prompt, Request, SamplingParams, Span, Trajectory

WORLDS = Path(__file__).with_name("worlds.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "agent" / "calculator"
MADE = tokenizer("qwen2.5")
CHAT = Chat(MADE)
END = MADE.convert_tokens_to_ids("<|im_end|>")
LOOP = asyncio.new_event_loop()
STAGE: dict[tuple[str, str], HostedEnvironment] = {}
"""Environments that have been started, by world and settings."""
ROW = [{"role": "user", "content": "3 + 4 ?"}]
ASK = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


@pytest.fixture(scope="module", autouse=True)
def stage() -> Iterator[None]:
    yield
    LOOP.run_until_complete(asyncio.wait_for(_close(), 60))
    LOOP.close()


async def _close() -> None:
    for environment in STAGE.values():
        await environment.close()


class Policy:
    """Answers the n-th request of a sibling by the n-th text; every token under the version of its number."""

    def __init__(self, texts: Callable[[int, int], str | None]) -> None:
        self.texts = texts
        self.talks = Talks()
        self.requests: list[Request] = []

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        (request,) = requests
        self.requests.append(request)
        text = self.texts(request.key.sibling, request.key.turn)
        if text is None:  # it never ends
            await asyncio.sleep(3600)
        ids = [*MADE(text, add_special_tokens=False)["input_ids"], END]
        cut = len(ids) > request.params.max_tokens
        tokens = np.array(ids[: request.params.max_tokens], dtype=np.int32)
        yield [
            Completion(
                key=request.key,
                tokens=tokens,
                rollout_logprobs=-np.arange(1, len(tokens) + 1, dtype=np.float32) - request.key.turn,
                spans=(Span(start=0, stop=len(tokens), version=request.key.turn),),
                finish="length" if cut else "stop",
            )
        ]


def prompt(uid: int = 7, answer: str = "7") -> Prompt:
    return Prompt(uid=uid, text="3 + 4 ?", tokens=CHAT.opening(ROW), answer=answer, messages=tuple(ROW))


def play(
    world: str,
    texts: Callable[[int, int], str | None],
    *,
    siblings: int = 1,
    judge: Callable[[Trajectory], float] | None = None,
    abort: bool = False,
    limits: Limits | None = None,
    max_tokens: int = 400,
    **settings: Any,
) -> tuple[list[Trajectory], Policy]:
    """The trajectories of one prompt."""
    policy = Policy(texts)
    key = world, repr(settings)
    if key not in STAGE:
        STAGE[key] = HostedEnvironment(EnvironmentConfig(**{"function": f"{WORLDS}:{world}", **settings}))
        LOOP.run_until_complete(STAGE[key].start())
    setup = ConversationSetup(
        environment=STAGE[key],
        chat=CHAT,
        limits=limits or Limits(turns=6, tokens=None, context=4000),
        retries=settings.get("retries", 1),
        judged=judge is not None,
    )

    async def run() -> list[Trajectory]:
        scorer = ScriptedScorer(judge or (lambda t: 0.0))
        player = Player(policy, scorer, lambda ids: "", 3, "rollout", setup=setup, clock=Ticks())  # type: ignore[arg-type]
        params = [SamplingParams(max_tokens=max_tokens)] * siblings
        responding = asyncio.ensure_future(player.respond(prompt(), params))
        if abort:
            while len(policy.requests) < siblings:
                await asyncio.sleep(0.01)
            await player.abort([prompt()], siblings)
        return await responding

    return LOOP.run_until_complete(run()), policy


def said(trajectory: Trajectory) -> list[str]:
    """What was sampled, turn by turn, of all rows."""
    return [
        str(MADE.decode(row.tokens[turn.start : turn.stop].tolist())) for row in trajectory.rows for turn in row.turns
    ]


def calls(sibling: int, turn: int) -> str:
    return [ASK % ("add", '{"a": 3, "b": 4}'), "It is 7."][turn]


def test_tools_are_called_and_what_they_say_is_not_trained() -> None:
    (trajectory,), policy = play("Sums", calls)
    assert trajectory.score is not None and (trajectory.score.status, trajectory.score.value) == ("ok", 1.0)
    assert said(trajectory) == [calls(0, 0) + "<|im_end|>", "It is 7.<|im_end|>"]
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    assert trajectory.messages[2]["content"] == "7"
    turns = trajectory.turns
    sampled = np.zeros(len(trajectory.tokens), dtype=bool)
    for turn in turns:
        sampled[turn.start : turn.stop] = True
    assert np.array_equal(trajectory.loss_mask, sampled) and trajectory.response_tokens == sampled.sum()
    assert np.array_equal(trajectory.rollout_logprobs != 0, sampled)
    # The second request reads the first one's tokens, those sampled, and what the tool said: nothing else.
    first, second = policy.requests
    assert np.array_equal(second.tokens, trajectory.tokens[: turns[1].start])
    assert np.array_equal(first.tokens, second.tokens[: turns[0].start])
    assert '"name": "add"' in str(MADE.decode(first.tokens.tolist())) and first.seed != second.seed
    assert [(turn.calls, turn.failed) for turn in turns] == [(1, 0), (0, 0)]


def test_a_conversation_becomes_a_sample_whose_fresh_tokens_are_of_the_version_now() -> None:
    (trajectory,), _ = play("Sums", calls)
    group = as_group(trajectory.prompt, [trajectory])
    (sample,) = samples([group, group], AlgorithmConfig(name="gpg"), 400, version=1)[:1]
    assert sample.fresh == trajectory.turns[1].start and sample.trained_tokens == trajectory.response_tokens
    again = restored_group(carried_group(group), prompt())
    (same,) = samples([again, again], AlgorithmConfig(name="gpg"), 400, version=1)[:1]
    assert np.array_equal(same.tokens, sample.tokens) and np.array_equal(same.loss_mask, sample.loss_mask)
    assert np.array_equal(same.rollout_logprobs, sample.rollout_logprobs) and same.fresh == sample.fresh
    assert again.trajectories[0].messages == trajectory.messages


def test_samples_have_what_the_policy_read_and_what_it_said_piece_by_piece(tmp_path: Path) -> None:
    (trajectory,), _ = play("two", lambda sibling, turn: ["one", "three", "x"][turn])
    (talk,), _ = play("Sums", calls)
    log = SampleLog(tmp_path, 0, 2)
    log.decode = ResponseText(MADE).whole
    log.groups(1, [as_group(one.prompt, [one]) for one in (trajectory, talk)])
    apart, together = map(json.loads, (tmp_path / "step-1.c0.jsonl").read_text().splitlines())
    for line, one in ((apart, trajectory), (together, talk)):
        assert [len(row) for row in line["rows"]] == [2 * len(row.turns) for row in one.rows]
        for pieces, row in zip(line["rows"], one.rows, strict=True):
            assert "".join(piece["text"] for piece in pieces) == MADE.decode(row.tokens.tolist())
            assert sum(piece["tokens"] for piece in pieces if piece["trained"]) == row.loss_mask.sum()
    assert [p["text"] for p in together["rows"][0] if p["trained"]] == said(talk)
    assert [(turn["calls"], turn["seconds"] > 0, turn["waited"] > 0) for turn in together["turns"]] == [
        (1, True, True),
        (0, True, True),
    ]
    assert [m["role"] for m in together["messages"]] == ["user", "assistant", "tool", "assistant"]


def test_mistakes_of_the_policy_are_told_to_it_and_counted() -> None:
    wrong = [
        ASK % ("subtract", "{}"),
        ASK % ("add", '{"a": 3}'),
        ASK % ("add", '{"a": 3, "b": "4"}'),
        ASK % ("divide", '{"a": 3, "b": 0}'),
        "<tool_call>add 3 and 4</tool_call>",
        "so what",
    ]
    (trajectory,), _ = play("Sums", lambda sibling, turn: wrong[turn])
    told = [m["content"] for m in trajectory.messages if m["role"] == "tool"]
    assert [text.startswith("error: ") for text in told] == [True] * 5
    assert "there are add, crash, divide, hang" in told[0] and "lacks the argument b" in told[1]
    assert "must be integer" in told[2] and "ZeroDivisionError" in told[3] and "no JSON object" in told[4]
    counts = count(Tally(finished=[as_group(trajectory.prompt, [trajectory])]), 1, 0)
    assert (counts.conversations, counts.turns, counts.tool_calls, counts.tool_failures) == (1, 6, 5, 5)
    assert trajectory.score is not None and trajectory.score.value == 0.0


@pytest.mark.parametrize(
    ("tool", "status", "detail", "timeout"),
    [("crash", "failed", "process died", 60.0), ("hang", "timed_out", "3 s", 3.0)],
)
def test_a_tool_that_kills_or_hangs_is_a_status_and_the_next_conversation_goes_on(
    tool: str, status: str, detail: str, timeout: float
) -> None:
    def texts(sibling: int, turn: int) -> str:
        return ASK % (tool, "{}") if sibling == 0 else calls(sibling, turn)

    both, policy = play("Sums", texts, siblings=2, timeout=timeout, retries=1)
    assert both[0].score is not None and both[0].score.status == status and detail in both[0].score.detail
    assert sum(request.key.sibling == 0 for request in policy.requests) == 2  # it was played anew once
    assert both[1].score is not None and both[1].score.value == 1.0


def test_an_environment_that_raises_or_says_no_text_fails() -> None:
    (raised,), _ = play("Raises", lambda sibling, turn: "hm", retries=0)
    (number,), _ = play("Numbers", lambda sibling, turn: "hm", retries=0)
    assert raised.score is not None and "the sandbox is gone" in raised.score.detail
    assert number.score is not None and "reset returned 3; it returns text, messages, or None" in number.score.detail
    assert raised.score.status == number.score.status == "failed"


def test_rewards_of_turns_stand_at_their_turns_and_add_up() -> None:
    (trajectory,), _ = play("Echo", lambda sibling, turn: f"word {turn}")
    assert trajectory.score is not None and trajectory.score.value == 1.5
    assert [turn.reward for turn in trajectory.turns] == [0.5] * 3
    assert [m["content"] for m in trajectory.messages] == [
        *("say 3 + 4 ?", "word 0", "you said word 0", "word 1", "you said word 1", "word 2")
    ]
    (sample,) = samples([as_group(trajectory.prompt, [trajectory])], AlgorithmConfig(name="ppo"), 400)
    assert sample.turn_rewards == tuple((turn.stop - 1, 0.5) for turn in trajectory.turns) and sample.reward == 1.5


def test_the_rewards_of_the_run_judge_beside_the_environment() -> None:
    (trajectory,), _ = play(
        "Sums", calls, judge=lambda t: 10.0 if t.text == "It is 7." else 0.0, arguments={"bonus": 0.5}
    )
    assert trajectory.score is not None and trajectory.score.value == 11.5
    assert trajectory.score.parts["environment"] == 1.5


def test_a_function_has_a_session_and_what_does_not_go_on_is_another_row() -> None:
    (trajectory,), policy = play("two", lambda sibling, turn: ["one", "three", "x"][turn])
    assert trajectory.score is not None and trajectory.score.value == 3.0
    assert trajectory.score.parts == {"second": 5.0, "ids": 2.0}
    assert len(trajectory.rows) == 3 and trajectory.forks == 0
    assert said(trajectory) == ["one<|im_end|>", "three<|im_end|>", "x<|im_end|>"]
    assert policy.requests[2].tokens.tolist() == [5, 6, 7]
    every = samples([as_group(trajectory.prompt, [trajectory])], AlgorithmConfig(name="gpg"), 400)
    assert [sample.key.turn for sample in every] == [0, 1, 2] and len({sample.reward for sample in every}) == 1


def test_an_agent_over_http_records_what_a_class_does() -> None:
    (over_http,), _ = play("agent", calls, function=f"{WORLDS.with_name('agents.py')}:agent")
    assert over_http.score is not None and (over_http.score.status, over_http.score.value) == ("ok", 1.0)
    assert said(over_http) == [calls(0, 0) + "<|im_end|>", "It is 7.<|im_end|>"]
    assert len(over_http.rows) == 1 and [m["role"] for m in over_http.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    (row,) = over_http.rows
    assert row.loss_mask.sum() == over_http.response_tokens


def test_the_three_ways_record_the_same() -> None:
    def texts(sibling: int, turn: int) -> str:
        return [ASK % ("calculate", '{"expression": "3 + 4"}'), "7"][turn]

    ways = [EXAMPLE.with_suffix(".py:Products"), f"{WORLDS}:products", EXAMPLE.with_suffix(".py:agent")]
    played = [play("", texts, function=str(way), max_tokens=100)[0][0] for way in ways]
    for one in played:
        assert one.score == played[0].score and one.score is not None and one.score.parts == {"asked": 1.0}
        assert one.score.value == 1.0 and len(one.rows) == 1 and len(one.turns) == 2
        assert np.array_equal(one.tokens, played[0].tokens) and np.array_equal(one.loss_mask, played[0].loss_mask)
        assert np.array_equal(one.rollout_logprobs, played[0].rollout_logprobs) and one.spans == played[0].spans
        assert [(turn.start, turn.stop, turn.calls) for turn in one.turns] == [
            (turn.start, turn.stop, turn.calls) for turn in played[0].turns
        ]


PROGRAM = """
import json, os, sys, urllib.request
row = json.load(sys.stdin)
body = json.dumps({"messages": row["messages"]}).encode()
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
print("I heard", said)
print(json.dumps({"reward": float(row["answer"] in said), "length": len(said)}))
"""


def test_a_program_is_an_agent(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path}/agent.py"
    (trajectory,), _ = play("", lambda sibling, turn: "7, I think", command=command, function=None)
    assert trajectory.score is not None and trajectory.score.value == 1.0 and trajectory.score.parts == {"length": 10.0}
    (failed,), _ = play("", lambda sibling, turn: "7", command="exit 3", function=None, retries=0)
    assert failed.score is not None and "the agent ended with status 3" in failed.score.detail


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "messages must be a list"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "n=2 is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is no text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call without a name"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens=0 must be"),
        (
            {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": "9"},
            "max_completion_tokens='9' must",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": {"function": {}}}]}, "tool_calls that are no list"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "3"}}]}]},
            "arguments",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "tools": {"add": {}}}, "tools must be a list"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": ["add"]}, r"tools\[0\] is not of the form"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [{"role": "tool", "content": "\ufdd0"}]}, "which is no character"),
        ({"messages": ["hello"]}, r"messages\[0\] has no role"),
    ],
)
def test_requests_that_mean_nothing_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_request(asked)


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        (Limits(turns=3, tokens=None, context=1000), "turns", 3),
        (Limits(turns=99, tokens=20, context=1000), "tokens", 4),
        (Limits(turns=99, tokens=None, context=90), "context", 3),
    ],
)
def test_limits_end_a_conversation_that_would_never_end(limits: Limits, reason: str, turns: int) -> None:
    (trajectory,), _ = play("endless", lambda sibling, turn: "more", judge=lambda t: 1.0, limits=limits)
    assert (trajectory.truncated, trajectory.finish, len(trajectory.turns)) == (reason, "length", turns)
    assert len(trajectory.tokens) <= limits.context
    assert limits.tokens is None or trajectory.response_tokens <= limits.tokens
    assert trajectory.score is not None and trajectory.score.value == 1.0
    assert count(Tally(finished=[as_group(trajectory.prompt, [trajectory])]), 1, 0).ended_by == {reason: 1}


def test_what_a_function_asks_wrongly_is_told_to_it_and_ends_nothing_else() -> None:
    (trajectory,), _ = play("mistaken", lambda sibling, turn: "hm")
    assert trajectory.score is not None and (trajectory.score.status, trajectory.score.value) == ("ok", 7.0)
    assert len(trajectory.rows) == 1 and len(trajectory.turns) == 1


@pytest.mark.parametrize("world", ["stubborn", "generous"])
def test_what_goes_on_where_nothing_is_answered_any_more_comes_to_its_end(world: str) -> None:
    limits = Limits(turns=2, tokens=None, context=1000)
    (trajectory,), _ = play(world, lambda sibling, turn: "hm", limits=limits, timeout=1.0, retries=0)
    assert trajectory.score is not None and trajectory.score.status == "timed_out"
    assert "between two turns the environment took over 1 s" in trajectory.score.detail


@pytest.mark.parametrize(("world", "detail"), [("early", "before the policy had one"), ("NoNumber", "must be finite")])
def test_a_reward_that_is_none_fails_the_conversation(world: str, detail: str) -> None:
    (trajectory,), _ = play(world, lambda sibling, turn: "hm", retries=0)
    assert trajectory.score is not None and trajectory.score.status == "failed" and detail in trajectory.score.detail


def test_conversations_begin_some_at_a_time_so_that_none_waits_for_the_others_beginning() -> None:
    """The reward is how many had begun in the worker, and asked nothing yet, as one more did."""
    many, _ = play("crowd", lambda sibling, turn: "hm", siblings=BEGINNING + 18)
    rewards = [t.score.value for t in many if t.score is not None and t.score.value is not None]
    assert len(rewards) == BEGINNING + 18 and max(rewards) == BEGINNING


def test_aborted_conversations_have_no_score() -> None:
    both, _ = play("Sums", lambda sibling, turn: None, siblings=2, abort=True)
    assert [(t.finish, t.score) for t in both] == [("aborted", None)] * 2


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ("Untyped", "argument a of tool tool has no type; annotate it"),
        ("Undocumented", "tool tool has no docstring, by which the policy knows it"),
        ("Nothing", "has neither tools, its public methods, nor `step`"),
        ("plain", "is neither a class, nor an async function of `session`, nor"),
        ("Nowhere", "has no 'Nowhere'"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused(world: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment\.function=.*{message}"):
        check_environment(EnvironmentConfig(function=f"{WORLDS}:{world}"), True)


def test_tools_need_a_template_that_tells_the_model_of_them() -> None:
    with pytest.raises(ConfigError, match="has tools, and the tokenizer's chat template tells the model of none"):
        check_environment(EnvironmentConfig(function=f"{WORLDS}:Sums"), Chat(tokenizer("chatml")).knows_tools)
    check_environment(EnvironmentConfig(function=f"{WORLDS}:Echo"), False)


def test_an_argument_that_the_environment_does_not_take_is_a_failure_that_names_it() -> None:
    (trajectory,), _ = play("Sums", calls, arguments={"bonsu": 1}, retries=0)
    assert trajectory.score is not None and "bonsu" in trajectory.score.detail
    with pytest.raises(BackendError, match="takes no argument 'gretting'"):
        play("two", calls, arguments={"gretting": "x"})
