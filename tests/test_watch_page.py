"""`yatt watch`: what it reads and serves, and to whom; the page in a real Chromium where there is one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright
from starlette.testclient import TestClient

from tests.runs import HTML, fake_run
from yatt.errors import ConfigError
from yatt.faces.compare import compared
from yatt.faces.follow import FollowedRun, Lines, held
from yatt.faces.live import LiveRun
from yatt.faces.samples import END, PAGE, Place, Query, Samples
from yatt.faces.watch import Site, watch

CHROMIUM = shutil.which("chromium")


def test_only_whole_new_lines_are_read_and_a_file_written_anew_is_read_again(tmp_path):
    path = tmp_path / "a"
    lines = Lines(path)
    assert lines.new() == ([], False)
    path.write_bytes(b"one\ntw")
    assert lines.new() == ([b"one"], False) and lines.new() == ([], False)
    with open(path, "ab") as out:
        out.write(b"o\nthree\n")
    assert lines.new() == ([b"two", b"three"], False)
    path.write_bytes(b"one\nTWO\nthree\nfour\n")  # in place, and longer than before
    assert lines.new() == ([b"one", b"TWO", b"three", b"four"], True)
    (tmp_path / "b").write_bytes(b"one\n")
    (tmp_path / "b").replace(path)  # as a resumed run drops what came after its checkpoint
    assert lines.new() == ([b"one"], True)
    path.unlink()
    assert lines.new() == ([], True) and lines.new() == ([], False)


def test_a_run_is_followed_and_only_what_changed_is_sent(tmp_path):
    run = fake_run(tmp_path / "a", steps=12)
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:-1]))
    live = LiveRun("a", run.path)
    first = live.parts(0)
    assert "11 of 12" in first["parts"]["overview"] and not live.parts(first["revision"])["parts"]
    with open(run.metrics, "a") as out:
        out.write(lines[-1])
    then = live.parts(first["revision"])
    assert "12 of 12" in then["parts"]["overview"] and {"curves", "overview"} <= set(then["parts"])
    assert not {"devices", "placement", "failures"} & set(then["parts"])  # they are as they were
    assert then["newest"] == 12
    run.rewind(5)
    after = live.parts(then["revision"])
    assert "5 of 12" in after["parts"]["overview"] and after["newest"] == 1


def test_a_run_that_a_process_holds_is_running(tmp_path):
    run = fake_run(tmp_path / "a", steps=2)
    followed = FollowedRun(run.path)
    followed.refresh()
    assert followed.state() == "finished"
    with run.lock():
        assert held(run.path / ".lock") and followed.state() == "running"
    assert not held(run.path / ".lock")


def record(step, uid, reward, **more):
    status = "failed" if reward is None else "ok"
    return {
        "step": step, "uid": uid, "sibling": 0, "prompt": f"prompt {uid}", "response": "said", "reward": reward,
        "parts": {}, "status": status, "detail": "", "finish": "stop", "response_tokens": 3, "answer": None,
    } | more  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    """Steps 1 to 9, 7 conversations each, over two files; rewards 0.0 to 0.6, the last failed in odd steps."""
    for step in range(1, 10):
        told = [record(step, 7 * step + k, None if k == 6 and step % 2 else k / 10) for k in range(7)]
        for part in (0, 1):
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told[part::2])
            (tmp_path / f"step-{step}.c{part}.jsonl").write_text(text)
    talk = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "Ärger", "arguments": {}}}]}]
    special = record(0, 0, 1.0, response='he said "Yes"\n', messages=talk, turns=[{"start": 3, "stop": 9}])
    (tmp_path / "eval-0.c0.jsonl").write_text(json.dumps(special, ensure_ascii=False) + "\nhalf a li")
    return Samples(tmp_path)


def every(samples, query):
    """The uids of all pages, and the pages' lengths."""
    uids, lengths, after = [], [], None
    while True:
        found = samples.find(query, after)
        uids += [told["uid"] for _, told in found.records]
        lengths.append(len(found.records))
        if (after := found.on) is None:
            return uids, lengths


def test_conversations_come_page_by_page_each_once_the_newest_first(samples):
    uids, lengths = every(samples, Query())
    assert sorted(uids) == [0, *range(7, 70)] and lengths == [PAGE, PAGE, PAGE, 4]
    assert [uid // 7 for uid in uids] == sorted((uid // 7 for uid in uids), reverse=True)
    assert samples.newest() == 9


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (Query(words="PROMPT 11"), 1),
        (Query(words='"yes"'), 1),
        (Query(words="ärger"), 1),
        (Query(words="said"), 64),
        (Query(words="reward"), 0),  # the name of a field is no text
        (Query(low=0.5), 9 + 4 + 1),  # 0.5 in each step, 0.6 in the even ones, and the evaluation's
        (Query(low=0.5, high=0.5), 9),
        (Query(high=0.05), 9),
        (Query(failed=True), 5),
        (Query(failed=True, low=0.0), 5),
        (Query(first=3, last=4), 14),
        (Query(kind="eval"), 1),
        (Query(kind="step"), 63),
    ],
)
def test_filters_by_words_reward_and_step(samples, query, count):
    assert len(every(samples, query)[0]) == count


def test_a_search_goes_on_where_its_time_was_up(samples, monkeypatch):
    monkeypatch.setattr("yatt.faces.samples.SECONDS", -1.0)
    found = samples.find(Query(words="prompt 8"))
    assert not found.records and found.on == Place(9, "step-9.c1.jsonl", END)
    assert every(samples, Query(words="prompt 8"))[0] == [8]


def test_a_file_written_anew_is_looked_at_anew(samples, tmp_path):
    assert len(every(samples, Query(low=0.9))[0]) == 1
    (tmp_path / "step-9.c0.jsonl").write_text(json.dumps(record(9, 70, 1.0)) + "\n")
    assert every(samples, Query(low=0.9))[0] == [70, 0]


@pytest.fixture
def site(tmp_path):
    fake_run(tmp_path / "a", steps=8, failures=True)
    fake_run(tmp_path / "b", steps=8, algorithm="ppo")
    (tmp_path / "no-run").mkdir()
    return TestClient(Site("secret", folder=tmp_path, runs=[]).app)


def test_nothing_is_told_without_the_token_or_of_what_is_no_run(site):
    for path in ("/", "/runs/a/", "/other/", "/other/runs/a/", "/secret", "/secret/runs/../../etc/"):
        assert site.get(path, follow_redirects=False).status_code in (404, 307), path
    for name in ("no-run", "c", "..", "%2e%2e", "a%2f..%2fb"):
        assert site.get(f"/secret/runs/{name}/parts").status_code == 404, name
    assert site.post("/secret/").status_code == 405


def test_pages_name_relative_addresses_only_and_may_load_nothing(site):
    for path in ("", "runs/a/", "compare?run=a&run=b"):
        told = site.get(f"/secret/{path}")
        assert told.status_code == 200 and told.headers["cache-control"] == "no-store"
        addresses = re.findall(r'(?:href|src|action)="([^"]*)"', told.text)
        assert not [a for a in addresses if a.startswith(("/", "http")) or "secret" in a] and "secret" not in told.text
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', told.text)
        assert "default-src &#39;none&#39;" in policy and "script-src &#39;sha256-" in policy
        assert told.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert HTML not in told.text and told.text.count("<script>") == 1
    assert "2 min" not in site.get("/secret/").text and 'href="runs/a/"' in site.get("/secret/").text


def test_filters_that_are_none_are_refused_in_a_line(site):
    for query, words in (("low=x", "low=x is not a number"), ("after=1", "after=1 is no place to go on from")):
        told = site.get(f"/secret/runs/a/conversations?{query}")
        assert (told.status_code, told.text) == (400, words)
    assert site.get("/secret/compare").status_code == 400
    assert site.get("/secret/runs/a/parts?since=x").json()["revision"] == 1
    assert 'class="card one"' in site.get("/secret/runs/a/conversations?failed=on").text
    assert "Steps 5 and 6" in site.get("/secret/runs/a/devices?step=5").text
    assert "Steps 1 and 2" in site.get("/secret/runs/a/devices?step=").text


def test_runs_side_by_side_share_charts_and_show_how_their_settings_differ(tmp_path):
    told = {}
    for name, algorithm in (("a", "grpo"), ("b", "ppo")):
        followed = FollowedRun(fake_run(tmp_path / name, steps=4, algorithm=algorithm).path)
        told[name] = followed.refresh()
    html = compared(told)
    reward = html.split("<h3>Reward</h3>")[1].split("</figure>")[0]
    assert [re.sub("<.*?>", "", item) for item in re.findall("<li>.*?</li>", reward)] == ["a", "b"]
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>.*?</tr>", html, re.S)]
    assert sorted(row for row in cells if row) == [["algorithm.name", "grpo", "ppo"], ["run.name", "a", "b"]]


def test_what_cannot_be_served_is_refused(tmp_path):
    run = fake_run(tmp_path / "a", steps=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port={port} cannot be served: Address already in use; use --port=0"):
            watch([run.path], everything=False, port=port, once=True)
    for runs, everything, words in (
        ([], False, "takes runs to follow"), ([tmp_path / "none"], False, "is not a run folder"),
        ([tmp_path / "none"], True, "--all takes one folder"), ([tmp_path, tmp_path], True, "--all takes one folder"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            watch(runs, everything=everything, port=0, once=True)
    with pytest.raises(ConfigError, match="beyond 65535"):
        watch([run.path], everything=False, port=70_000, once=True)


def test_once_serves_one_page_and_ends(tmp_path):
    run = fake_run(tmp_path / "a", steps=2)
    command = [sys.executable, "-m", "yatt", "watch", str(run.path), "--port", "0", "--once"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        tunnel = process.stdout.readline()
        port = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/[\w-]{20,}/runs/a/", address)[1]
        assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel
        page = urllib.request.urlopen(address, timeout=60).read().decode()
        assert "data-once" in page and "2 of 2" in page
        assert process.wait(60) == 0


@contextmanager
def served(site):
    """The site's address on a real port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(site.app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/{site.token}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium not found: what the page does by itself was not tried")
def test_the_page_follows_a_run_in_a_real_browser(tmp_path):
    run = fake_run(tmp_path / "a", steps=30, every=10)
    fake_run(tmp_path / "b", steps=8)
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:-1]))
    site, problems = Site("secret", folder=tmp_path, runs=[]), []
    with served(site) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address + "runs/a/")
        assert "29 of 30" in page.inner_text("#overview")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        with open(run.metrics, "a") as out:
            out.write(lines[-1])
        page.wait_for_selector("#overview >> text=30 of 30")

        figure = page.locator("#curves figure", has_text="Gradient norm")
        figure.locator("svg").hover(position={"x": 330, "y": 90})
        assert figure.locator("output").inner_text().startswith("step 30\nnorm")

        page.fill("[name=words]", "document.title")
        page.press("[name=words]", "Enter")
        expect(page.locator(".one")).to_have_count(10)  # two controllers; steps 1, 30, evaluations 0, 1, 30
        assert HTML.strip() in page.inner_text("#conversations .one >> nth=0") and page.title() == "a · YATT"
        page.fill("[name=words]", "")
        page.check("[name=failed]")
        expect(page.locator(".one .bad")).to_have_count(4)  # two controllers, two steps

        page.fill("#choose [name=step]", "7")
        page.press("#choose [name=step]", "Enter")
        page.wait_for_selector("#devices >> text=Steps 7 and 8")

        page.click("text=All runs")
        for box in page.locator("[name=run]").all():
            box.check()
        page.click("button")
        page.wait_for_selector("h3:text-is('Reward')")
        assert page.locator("figure", has_text="Reward").first.locator("li").all_inner_texts() == ["a", "b"]
        browser.close()
    assert problems == []
