"""A judge behind a real HTTP server of this process: answers, slowness, refusals, garbage, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from doubles import World
from test_judge import trajectory

from yatt.config.schema import JudgeConfig, RewardConfig
from yatt.controller.responder import request_seed
from yatt.errors import ConfigError
from yatt.reward import remote
from yatt.reward.function import Item
from yatt.reward.judge import Failure
from yatt.reward.mixed import check_rewards, open_scorer
from yatt.reward.remote import RemoteAsker
from yatt.types import SampleKey

KEY = "sk-very-secret"
Answer = tuple[int, dict[str, str], Any]


def says(text: str | None, finish: str = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def refuses(status: int, words: str, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": {"message": words}}


@dataclass
class Endpoint:
    """`behave` is told the request's body and which request it is (0, 1, ...)."""

    url: str = ""
    behave: Callable[[dict[str, Any], int], Answer] = lambda body, number: says("correct")
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Endpoint]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                number = len(state.seen)
                state.seen.append(body)
                state.keys.append(self.headers["authorization"])
                state.times.append(time.monotonic())
                state.running += 1
                state.most = max(state.most, state.running)
            try:
                self.reply(*(state.behave(body, number) if self.path == "/v1/chat/completions" else (404, {}, "no")))
            finally:
                with state.lock:
                    state.running -= 1

        def do_GET(self):
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in ("large", "small")]
            self.reply(200, {}, {"object": "list", "data": models}) if self.path == "/v1/models" else self.reply(
                404, {}, "no"
            )

        def reply(self, status, headers, body):
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers, "content-length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):  # a client that no longer waits
            pass

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def judge_config(endpoint: Endpoint, **settings: Any) -> JudgeConfig:
    base = {
        "url": endpoint.url,
        "model": "small",
        "template": "Is {response} right?",
        "parser": "verdict:correct=1,no=0",
    }
    return JudgeConfig(**(base | settings))


async def ask(endpoint: Endpoint, count: int = 1, **settings: Any) -> list[str | Failure]:
    asker = RemoteAsker("j", judge_config(endpoint, **settings))
    await asker.start()
    try:
        return await asker.ask([f"text {i}" for i in range(count)], list(range(7, 7 + count)))
    finally:
        await asker.close()


async def test_what_is_sent_and_what_comes_back(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.behave = lambda body, number: says(body["messages"][0]["content"].upper())
    answers = await ask(endpoint, 3, key_env="JUDGE_KEY", temperature=0.5, max_tokens=9)
    assert answers == ["TEXT 0", "TEXT 1", "TEXT 2"]
    first = min(endpoint.seen, key=lambda body: body["seed"])
    assert first == {
        "model": "small", "messages": [{"role": "user", "content": "text 0"}],
        "temperature": 0.5, "max_tokens": 9, "seed": 7,
    }  # fmt: skip
    assert endpoint.keys == [f"Bearer {KEY}"] * 3


async def test_at_most_so_many_at_once(endpoint):
    def slowly(body, number):
        time.sleep(0.05)
        return says("ok")

    endpoint.behave = slowly
    assert await ask(endpoint, 9, concurrency=3) == ["ok"] * 9
    assert endpoint.most == 3


async def test_a_slow_endpoint_times_out_and_leaves_the_others_alone(endpoint):
    over = threading.Event()

    def behave(body, number):
        if body["seed"] == 8:
            over.wait(60)
        return says("ok")

    endpoint.behave = behave
    answers = await ask(endpoint, 3, timeout=2.0)
    over.set()
    assert answers == ["ok", Failure("timed_out", "no answer within 2 s"), "ok"]


@pytest.mark.parametrize("asked", ["1", "date"])
async def test_it_waits_as_long_as_it_is_asked_to(endpoint, asked):
    def behave(body, number):
        # A date has whole seconds: two from now is more than one away.
        when = asked if asked == "1" else formatdate(time.time() + 2, usegmt=True)
        return says("ok") if number else refuses(429, "slow down", Retry_After=when)

    endpoint.behave = behave
    assert await ask(endpoint) == ["ok"]
    assert len(endpoint.times) == 2 and endpoint.times[1] - endpoint.times[0] >= 0.95


async def test_it_does_not_wait_for_what_comes_too_late(endpoint):
    endpoint.behave = lambda body, number: refuses(429, "slow down", Retry_After="30")
    (answer,) = await ask(endpoint, timeout=20.0)
    assert answer == Failure("failed", "answers 429: slow down") and len(endpoint.seen) == 1


def never_soon_enough(monkeypatch):
    """A pause of ours is longer than the time that `ask` gives."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 1000.0)


async def test_errors_that_pass_are_tried_again(endpoint, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.05)
    endpoint.behave = lambda body, number: says("ok") if number >= 2 else refuses(500 + number, "hiccup")
    assert await ask(endpoint) == ["ok"]
    assert len(endpoint.seen) == 3

    def behave(body, number):
        if number == 5:  # the next pause would pass the deadline
            never_soon_enough(monkeypatch)
        return refuses(500, "out of order")

    endpoint.behave = behave
    assert await ask(endpoint) == [Failure("failed", "answers 500: out of order")]
    assert len(endpoint.seen) == 6


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {}, "{not json"), "answers no JSON: "),
        ((200, {"content-type": "text/html"}, "<html>hello"), "answers no chat completion, but "),
        ((200, {}, {"choices": []}), "answers no chat completion, but "),
        ((200, {}, {}), "answers no chat completion, but "),
        (refuses(400, "seed is not supported"), "answers 400: seed is not supported"),
        (refuses(401, f"no such key {KEY}"), "answers 401: no such key ***"),
        ((418, {"content-type": "text/plain"}, "tea"), "answers 418: "),
    ],
)
async def test_what_does_not_pass_is_a_failure_at_once(endpoint, monkeypatch, answer, said):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint.behave = lambda body, number: answer
    (failure,) = await ask(endpoint, key_env="JUDGE_KEY")
    assert failure.status == "failed" and failure.detail.startswith(said) and not failure.unparsed
    assert len(endpoint.seen) == 1 and KEY not in failure.detail


async def test_an_answer_cut_off_has_no_verdict(endpoint):
    """Its last word so far is none; asked again, the judge may come to an end."""
    endpoint.behave = lambda body, number: says("It would be correct if", "length") if number == 0 else says("no")
    scorer = open_scorer(RewardConfig(models={"j": judge_config(endpoint)}))
    await scorer.start()
    (score,) = await scorer.score([trajectory("4")])
    await scorer.close()
    assert (score.status, score.value) == ("ok", 0.0)
    assert score.parts == {"j": 0.0, "j.judgements": 1.0, "j.unparsed": 1.0}
    endpoint.behave = lambda body, number: says(None)
    assert await ask(endpoint) == [""]


async def test_nobody_listens(monkeypatch):
    never_soon_enough(monkeypatch)
    (failure,) = await ask(Endpoint(url="http://127.0.0.1:9/v1"))
    assert failure.status == "failed" and failure.detail.startswith("cannot be reached: ")


async def test_a_rule_and_two_judges_through_the_wire(endpoint, tmp_path):
    """.5 * {1, 0} + .25 * 8 for the judges, and 1 * exact_match for the rule."""

    def behave(body, number):
        text = body["messages"][0]["content"]
        return says("8/10") if text.startswith("Rate") else says("correct" if " 4 " in text else "no")

    endpoint.behave = behave
    models = {
        "right": judge_config(endpoint, weight=0.5),
        "style": judge_config(endpoint, weight=0.25, template="Rate {response}", parser="number:0..10", judgements=2),
    }
    scorer = open_scorer(RewardConfig(function="exact_match", models=models))
    await scorer.start()
    good, bad = await scorer.score([trajectory("4"), trajectory("5")])
    await scorer.close()
    assert (good.value, bad.value) == (1 + 0.5 + 2, 0 + 0 + 2)
    assert good.parts["reward"] == 1.0 and good.parts["style"] == 8.0 and good.parts["style.judgements"] == 2.0


async def test_a_step_of_controllers_judged_over_the_wire(endpoint, monkeypatch):
    """Two controllers, 6 groups of 4. The judge says the first token of the response, and nothing for a 6."""

    def behave(body, number):
        first = int(body["messages"][0]["content"].strip("[]").split(",")[0])
        return says("no idea" if first == 6 else f"I say {first}")

    endpoint.behave = behave
    models = {"j": judge_config(endpoint, template="{response}", parser="number", retries=1)}
    scorers = [open_scorer(RewardConfig(models=models)) for _ in range(2)]
    for scorer in scorers:
        await scorer.start()
    waiting = iter(scorers)
    monkeypatch.setattr("doubles.ScriptedScorer", lambda judge: next(waiting))
    world = World(2, lambda trajectory: None)
    reports = await world.step(1)
    for scorer in scorers:
        await scorer.close()
    firsts = [request_seed(11, SampleKey(uid, sibling), "rollout") % 7 for uid in range(6) for sibling in range(4)]
    counts, lost = reports[0].counts, firsts.count(6)
    assert lost > 0 and (counts.reward_failures, counts.scored, counts.groups) == (lost, 24 - lost, 6)
    assert counts.reward_sum == sum(firsts) - 6 * lost == counts.part_sums["j"]
    assert len(endpoint.seen) == 24 + lost  # what had no verdict was asked for once more
    assert len(world.trained(1)) == 24 - lost


# --- before a run ----------------------------------------------------------------------------------------------------

PROBE = Item("2+2=", "", "4", {})


def refused(endpoint: Endpoint, probe: Item = PROBE, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_rewards(RewardConfig(models={"j": judge_config(endpoint, **settings)}), probe)
    (line,) = str(caught.value).splitlines()
    return line.replace(endpoint.url, "URL")


def test_the_probe_is_one_cheap_call(endpoint):
    endpoint.behave = lambda body, number: says("Yes", "length")
    check_rewards(RewardConfig(models={"j": judge_config(endpoint, parser="number")}), PROBE)
    (body,) = endpoint.seen
    assert body["max_tokens"] == 1


def test_what_the_probe_refuses(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(remote, "PROBE_SECONDS", 2.0)
    never_soon_enough(monkeypatch)
    endpoint.behave = lambda body, number: refuses(401, f"no such key: {KEY}")
    said = "URL refuses the key: answers 401: no such key: "
    assert refused(endpoint, key_env="JUDGE_KEY") == f"reward.models.j.key_env=JUDGE_KEY: {said}***"
    assert refused(endpoint) == f"reward.models.j.key_env=null: {said}{KEY}"  # it was not our key
    endpoint.behave = lambda body, number: refuses(404, "no model medium")
    assert refused(endpoint, model="medium") == (
        "reward.models.j.model=medium: answers 404: no model medium; it has large, small"
    )
    line = refused(endpoint, url=endpoint.url.removesuffix("/v1"))
    assert line.endswith("is right: most end in /v1")
    endpoint.behave = lambda body, number: refuses(400, "no seeds here")
    assert refused(endpoint) == "reward.models.j.url=URL: answers 400: no seeds here"
    endpoint.behave = lambda body, number: refuses(503, "starting")
    assert refused(endpoint) == "reward.models.j.url=URL: answers 503: starting"
    endpoint.behave = lambda body, number: (200, {}, "<html>")
    assert refused(endpoint).startswith("reward.models.j.url=URL: answers no JSON: ")
    over = threading.Event()
    endpoint.behave = lambda body, number: (over.wait(60), says("late"))[1]
    assert refused(endpoint) == "reward.models.j.url=URL gives no answer within 2 s"
    over.set()
    assert refused(endpoint, url="http://127.0.0.1:9/v1").startswith(
        "reward.models.j.url=http://127.0.0.1:9/v1: cannot be reached: "
    )


def test_what_is_wrong_is_found_before_anyone_is_asked(endpoint):
    said = refused(endpoint, parser="verdct:correct=1")
    assert said.startswith("reward.models.j.parser=verdct:correct=1 is not known (did you mean verdict?); use verdict:")
    said = refused(endpoint, PROBE._replace(answer=None), template="{response} {answer}")
    assert said == "reward.models.j.template names {answer}, but the first row has none; set data.answer_key"
    assert refused(endpoint, key_env="NO_SUCH_VARIABLE").startswith("reward.models.j.key_env=NO_SUCH_VARIABLE: ")
    assert endpoint.seen == []


async def test_a_controller_without_the_key_does_not_start(endpoint):
    scorer = open_scorer(RewardConfig(function="exact_match", models={"j": judge_config(endpoint, key_env="NO_SUCH")}))
    with pytest.raises(ConfigError, match=r"reward.models.j.key_env=NO_SUCH: no such variable"):
        await scorer.start()
    await scorer.close()


async def test_judgements_under_way_can_be_cancelled(endpoint):
    endpoint.behave = lambda body, number: (time.sleep(1), says("late"))[1]
    asker = RemoteAsker("j", judge_config(endpoint, concurrency=1))
    await asker.start()
    task = asyncio.create_task(asker.ask(["a", "b"], [1, 2]))
    while not endpoint.seen:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    endpoint.behave = lambda body, number: says("ok")
    assert await asyncio.wait_for(asker.ask(["c"], [3]), 5) == ["ok"]
    await asker.close()


def test_the_client_is_quiet_and_rules_do_without_it(caplog):
    assert logging.getLogger("httpx2").level == logging.WARNING
    code = "import sys, yatt.reward.mixed; print('openai' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == "False"
