"""The report: self-contained, safe, right for short, long and sft runs; drawn by a real browser where there is one."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from tests.runs import HTML, fake_run, spans
from yatt.errors import ConfigError
from yatt.faces.chart import LEFT, MOST_POINTS, RIGHT, Series, line_chart, number, stacked_chart, ticks
from yatt.faces.gantt import devices, role_colours
from yatt.faces.placement import mean_split
from yatt.faces.report import write_report
from yatt.faces.timeline import mark
from yatt.reports import Decision, PhaseSpan, RolloutCounts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "circle", "path", "line"}
CURVES = {
    "Accuracy on held-out prompts", "Reward, and one standard deviation", "Parts of the reward", "Time per step",
    "Response length", "Throughput", "Loss", "Gradient norm", "Entropy", "KL divergence", "Train / rollout gap",
    "Learning rate", "Clipped tokens", "Responses cut off", "Groups not trained on", "Refills, failed rewards",
    "Idle share, mean over slots", "Responses by length",
}  # fmt: skip
PLACED = {"Slots of each role", "Details of the reward"}
OF_ROWS = {"Time per step", "Throughput", "Loss", "Gradient norm", "Learning rate"}
OF_PAIRS = {"Pairs in the right order", "Rewards of responses"}
OF_CRITICS = {
    "Critic's loss", "Variance the critic explains", "Weight of the KL in the reward", "Corrected tokens",
    "Return mean", "Correction weight",
}  # fmt: skip


class Page(HTMLParser):
    """Checks that every tag is closed in order; collects addresses, text and the charts' data."""

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.texts, self.charts, self.scripts = [], [], [], {}, 0
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [v for k, v in attributes.items() if k in ("src", "href", "xlink:href", "action", "srcset")]
        self.scripts += tag == "script"
        if "data-hover" in attributes:
            title = next(text for text in reversed(self.texts) if text in CURVES | PLACED | OF_PAIRS | OF_CRITICS)
            self.charts[title] = json.loads(attributes["data-hover"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script") and data.strip():
            self.texts.append(data)


def page_of(run):
    html = write_report(run.path).read_text()
    page = Page(html)
    assert page.addresses == [] and not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert len(html) < 1_000_000
    return html, page


def test_forty_steps_show_every_curve_with_its_numbers(tmp_path):
    run = fake_run(tmp_path / "forty", steps=40, every=10, failures=True)
    _, page = page_of(run)
    assert set(page.charts) == CURVES
    rows = [row for row in run.read_metrics() if row["step"] > 0]
    reward = page.charts["Reward, and one standard deviation"]
    assert reward["x"] == list(range(1, 41))
    assert reward["values"]["mean"] == [number(row["reward_mean"]) for row in rows]
    assert reward["px"][0] == LEFT and reward["px"][-1] == RIGHT
    accuracy = page.charts["Accuracy on held-out prompts"]
    assert accuracy["x"] == [0, 10, 20, 30, 40] and accuracy["values"]["greedy"][0] == "2.0%"
    for text in ("models/adder", "grpo", "40 of 40", "nats / token", "seconds", "step"):
        assert text in page.texts
    # 3 failures in each of steps 7, 14, 21, 28 and 35
    assert any("left out: 15 " in text for text in page.texts)
    assert "Updates skipped, their gradient not finite: 1." in page.texts


def test_what_the_policy_wrote_is_shown_as_text(tmp_path):
    html, page = page_of(fake_run(tmp_path / "a", steps=3))
    assert HTML not in html and page.scripts == 1
    assert any(HTML in text for text in page.texts)
    first, last = (next(i for i, t in enumerate(page.texts) if t.startswith(f"step {s} ")) for s in (0, 3))
    assert first < last  # before, then after, of the same prompt
    assert "reward timed_out: after 10 s" in page.texts


def test_names_from_the_user_are_escaped(tmp_path):
    run = fake_run(tmp_path / "a", steps=2)
    rows = run.read_metrics()
    rows[-1]["parts"] = {"<b>bold</b>": 0.5}
    rows[-1]["evaluation"]["parts_sampled"] = {"<i>it</i>": 0.5}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, page = page_of(run)
    assert "<b>bold" not in html and "<i>it" not in html and "<b>bold</b>" in page.texts


def test_one_step(tmp_path):
    _, page = page_of(fake_run(tmp_path / "one", steps=1))
    assert page.charts["Loss"]["x"] == [1] and page.charts["Time per step"]["x"] == [1]
    assert "1 of 1" in page.texts


@pytest.mark.slow
def test_ten_thousand_steps_stay_small_and_keep_the_peaks(tmp_path):
    run = fake_run(tmp_path / "many", steps=10_000, every=50)
    _, page = page_of(run)
    assert all(len(chart["x"]) <= MOST_POINTS for chart in page.charts.values())
    longest = max(row["longest_response"] for row in run.read_metrics())
    assert number(longest) in page.charts["Response length"]["values"]["longest"]
    assert "10,000 of 10,000" in page.texts


def test_sft_has_loss_and_no_rewards(tmp_path):
    _, page = page_of(fake_run(tmp_path / "sft", steps=30, algorithm="sft"))
    assert set(page.charts) == OF_ROWS and list(page.charts["Loss"]["values"]) == ["trained"]


def test_pairs_show_how_often_and_how_far_the_better_one_is_ahead(tmp_path):
    run = fake_run(tmp_path / "dpo", steps=40, every=10, algorithm="dpo")
    html, page = page_of(run)
    assert set(page.charts) == OF_ROWS | OF_PAIRS
    ordered = page.charts["Pairs in the right order"]["values"]
    assert list(ordered) == ["trained", "held-out"]
    # evaluated before the first step and after each tenth; trained in steps 1 to 40
    assert [i for i, share in enumerate(ordered["held-out"]) if share] == [0, 10, 20, 30, 40]
    assert [i for i, share in enumerate(ordered["trained"]) if not share] == [0]
    assert list(page.charts["Rewards of responses"]["values"]) == ["chosen", "rejected"]
    loss = page.charts["Loss"]["values"]
    assert (loss["held-out"][0], loss["trained"][0], loss["held-out"][1]) == ("0.69", "", "")
    assert html.count('class="band"') == 1
    assert "pairs in order, held-out (95 %: 85.8% to 96.8%)" in page.texts and "loss, held-out" in page.texts


def test_what_only_some_algorithms_measure_has_charts_where_it_was_measured(tmp_path):
    run = fake_run(tmp_path / "ppo", steps=40, every=10, failures=True, algorithm="ppo")
    _, page = page_of(run)
    assert set(page.charts) == CURVES | OF_CRITICS  # those without a place of their own come last, by their names
    assert list(page.charts["KL divergence"]["values"]) == ["to rollout policy", "in the reward"]
    assert list(page.charts["Clipped tokens"]["values"]) == ["policy", "values"]
    assert page.charts["Variance the critic explains"]["values"]["share"][0] == number(
        next(row for row in run.read_metrics() if row["step"] == 1)["explained_variance"]
    )


def test_accuracies_have_intervals_and_sources(tmp_path):
    run = fake_run(tmp_path / "a", steps=4, by="source")
    html, page = page_of(run)
    # done 1 / (1 + e^-5.5) = 0.9959: greedy 99.6 %, sampled 89.8 %; 6 % below to 5 % above
    assert "accuracy, greedy (95 %: 93.6% to 100.0%)" in page.texts
    assert "accuracy, sampled (95 %: 83.8% to 94.8%)" in page.texts
    assert html.count('class="band"') == 3  # with the reward's
    place = page.texts.index("Held-out accuracy by source")
    assert page.texts[place + 1 : place + 9] == [
        "source", "prompts", "greedy", "sampled, mean",
        "easy", "100", "2.4% → 100.0% (95 %: 94.0% to 100.0%)", "2.2% → 90.0% (95 %: 84.0% to 95.0%)",
    ]  # fmt: skip
    assert page.texts[place + 9] == HTML
    older = [
        {**row, "evaluation": {**row["evaluation"], "intervals": None}} if "evaluation" in row else row
        for row in run.read_metrics()
    ]  # as rows were before they had them
    for row in older:
        row.get("evaluation", {}).pop("sources", None)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in older))
    html, page = page_of(run)
    assert html.count('class="band"') == 1 and "accuracy, greedy" in page.texts
    assert "Held-out accuracy by source" not in page.texts


@pytest.mark.parametrize("lines", ["", '{"step": 0, "pha'])
def test_a_run_that_has_not_stepped_yet_has_a_page(tmp_path, lines):
    run = fake_run(tmp_path / "a", steps=1)
    run.metrics.write_text(lines)
    _, page = page_of(run)
    assert "No step has ended yet." in page.texts


def test_a_crashed_run_with_holes_has_a_page_that_says_so(tmp_path):
    run = fake_run(tmp_path / "a", steps=8)
    rows = run.read_metrics()[:6]
    rows[3] |= {"loss": None, "reward_mean": None, "groups": 0}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.samples / "step-1.c0.jsonl").write_text('{"step": 1, "ui')
    _, page = page_of(run)
    assert "The run stands at step 5 of 8." in page.texts
    assert "Steps whose loss is not finite: 1." in page.texts
    assert "Steps with no group left to learn from: 1." in page.texts
    assert page.charts["Loss"]["x"] == [1, 2, 4, 5]


def test_the_first_and_the_last_warnings_are_shown_and_why_rewards_failed(tmp_path):
    run = fake_run(tmp_path / "a", steps=14, failures=True)
    rows = [row | {"warnings": [f"<i>step {row['step']}"], "failures": ["no <b>"]} for row in run.read_metrics()]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, page = page_of(run)
    shown = [text for text in page.texts if text.startswith("<i>step")]
    assert shown == [f"<i>step {n}" for n in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14)] and "<i>step" not in html
    assert "(5 more warnings, in metrics.jsonl)" in page.texts
    assert "Rewards that failed, their responses left out: 6 (0 by running out of time); 'no <b>'." in page.texts


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_report(tmp_path)


def test_devices_by_hand():
    """A step of 10 s; the engine samples for 6 s of it and sleeps for 1, the rank updates for 2."""
    on = {"slots": (0,)}
    policy, trainer = {"actor": "generator 0", "role": "policy"} | on, {"actor": "rank 0", "role": "trainer"} | on
    spans = [
        PhaseSpan(name="rollout", actor="controller 0", start=100.0, stop=107.0),
        PhaseSpan(name="train", actor="controller 0", start=107.0, stop=110.0),
        PhaseSpan(name="evaluate", actor="driver", start=110.0, stop=190.0),
        PhaseSpan(name="sample", start=90.0, stop=106.0, counts={"requests": 4}, **policy),
        PhaseSpan(name="sleep", start=107.0, stop=108.0, **policy),
        PhaseSpan(name="update", start=107.5, stop=109.5, **trainer),
    ]
    html = devices({0: [], 3: spans})
    page = Page(html)
    # policy 7 of 10 s, trainer 2 of 10; somebody in [100, 106] and [107, 109.5]: 8.5 of 10
    assert [t for t in page.texts if t.endswith("%")][:3] == ["30.0%", "80.0%", "15.0%"]
    assert "Step 3" in page.texts and "generator 0: sample\n6 s from 0 s\n4 requests" in page.texts
    bars = re.findall(r'x="([\d.]+)%" width="([\d.]+)%"[^>]*fill="var\(--c(\d)', html)
    assert bars == [
        ("0.000", "70.000", "0"), ("70.000", "30.000", "1"), ("0.000", "60.000", "0"), ("70.000", "10.000", "3"),
        ("75.000", "20.000", "1"),
    ]  # fmt: skip
    assert devices({}) == devices({3: spans[:3]}) == ""


def test_a_judged_run_shows_its_split_and_its_decisions(tmp_path):
    run = fake_run(tmp_path / "a", steps=60, judged=True)
    html, page = page_of(run)
    assert set(page.charts) == CURVES | PLACED
    # two thirds of the rollout with 3 and 1 slots, the rest with 2 and 2: 2 + 0.66 and 1 + 0.34; each fifth step 2, 2
    assert page.charts["Slots of each role"]["values"]["policy"][:6] == ["2.66"] * 4 + ["2", "2.66"]
    assert page.charts["Slots of each role"]["values"]["judge"][3:6] == ["1.34", "2", "1.34"]
    assert list(page.charts["Parts of the reward"]["values"]) == ["judge", "truth"]
    assert list(page.charts["Details of the reward"]["values"]) == ["judge.judgements", "judge.unparsed"]
    # a fifth step begins as the step before it ended: 48 steps with two changes are 96, of which 40 are listed
    assert page.texts.count("policy 2, judge 2") == 5 + 15 and "56 more, in metrics.jsonl" in page.texts
    assert html.split("Decisions</h3>")[1].count('class="why"') == 40
    for row in (rows := run.read_metrics()):
        row["decisions"] = [d | {"text": "<b>" + "x" * 10_000} for d in row["decisions"]]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, _ = page_of(run)
    assert "<b>x" not in html and len(html) < 250_000


def test_mean_splits_by_hand():
    """A rollout of 10 s from 100 on: [100, 104] with 3 and 1, [104, 110] with 1 and 3."""
    first = {"at": 100.0, "slots": {"policy": 3, "judge": 1}}
    row = {"decisions": [first, {"at": 104.0, "slots": {"policy": 1, "judge": 3}}], "phases": {"rollout": 10.0}}
    assert mean_split(row) == pytest.approx({"policy": 1.8, "judge": 2.2})  # 0.4 * 3 + 0.6 * 1, 0.4 * 1 + 0.6 * 3
    assert mean_split({"decisions": [first], "phases": {}}) == {"policy": 3, "judge": 1}


def test_lengths_by_hand(tmp_path):
    """Step 1: 1 response of 4 tokens and 3 of 8 or 9; 0 of 4 are shorter than 4, 1 than 8, 4 than 10."""
    run = fake_run(tmp_path / "a", steps=2)
    first, second = (row for row in run.read_metrics() if row["step"])
    first |= {"response_lengths": [[4, 1], [8, 3]], "longest_response": 9}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in (first, second | {"response_lengths": []})))
    chart = page_of(run)[1].charts["Responses by length"]
    assert chart["along"] == "tokens" and chart["x"] == [4, 8, 10]
    assert chart["values"] == {"step 1": ["0.0%", "25.0%", "100.0%"]}


def test_idle_shares_are_over_the_slots_where_a_role_lives():
    """Of 10 s the judge works 5 on slot 1, the only one it lives on; the policy 8 on slot 0 and 2 on slot 1."""
    spans = [
        PhaseSpan(name="rollout", actor="controller 0", start=0.0, stop=10.0),
        PhaseSpan(name="sample", actor="generator 0", role="policy", slots=(0,), start=0.0, stop=8.0),
        PhaseSpan(name="sample", actor="generator 1", role="policy", slots=(1,), start=0.0, stop=2.0),
        PhaseSpan(name="sample", actor="judge 1", role="judge", slots=(1,), start=3.0, stop=8.0),
        mark(Decision(at=2.0, text="slot 1 judges", slots={"policy": 1, "judge": 1})),
    ]
    html = devices({1: spans})
    page = Page(html)
    # rows: all slots, slot 0, slot 1; columns: policy, judge, whole slot (8 of 10 s, then 2 + 5 of 10)
    shares = [t for t in page.texts if re.fullmatch(r"[\d.]+%", t) and "." in t]
    assert shares == ["50.0%", "50.0%", "25.0%", "20.0%", "20.0%", "80.0%", "50.0%", "30.0%"]
    assert "slot 0 judge" not in page.texts and "slot 1 judge" in page.texts
    assert "driver: slot 1 judges\nat 2 s\n1 policy\n1 judge" in page.texts
    assert re.findall(r'<circle[^>]* cx="([\d.]+)%"', html) == ["20.000"]
    # another card stands in the grid of the table and the curve, not beneath it
    assert devices({1: spans}, Markup("<p>more</p>")) == str(html).removesuffix("</div>") + "<p>more</p></div>"


def test_many_slots_are_drawn_in_part_and_counted_in_full():
    counts, phases = RolloutCounts(responses=40, response_tokens=400), dict.fromkeys(("rollout", "train", "sync"), 1.0)
    html = devices({step: spans(10.0 * step, phases, counts, slots=20) for step in range(9)})
    page = Page(html)
    assert "16 of 20 slots are drawn; means are over all." in page.texts
    assert "Steps 0 and 1" in page.texts and "Steps 7 and 8" in page.texts
    assert "slot 15 policy" in page.texts and "slot 16 policy" not in page.texts


def test_line_heights_by_hand():
    svg = line_chart("t", "u", [Series(name="a", points=[(0, 0.25), (4, 0.5)])], share=True)
    assert 'd="M46.0,143.0L386.0,104.0"' in svg
    assert line_chart("t", "u", [Series(name="a", points=[])]) == ""


def test_stacked_layers_stand_on_each_other():
    svg = stacked_chart("t", "s", {"a": [(1, 1.0), (2, 1.0)], "b": [(1, 1.0), (2, 1.0)]})
    lower, upper = re.findall(r'fill="var\(--c\d\)" d="M[\d.]+,([\d.]+)V([\d.]+)', svg)
    assert lower[0] == "182.0" and lower[1] == upper[0] and float(upper[1]) < float(upper[0])


def test_constant_and_negative_values_have_axes():
    for values in ([0.0, 0.0], [-1.0, -1.0], [-2e-9, 3e-9], [1e9, 1e9]):
        for zero in (False, True):
            points = list(enumerate(values))
            assert "nan" not in line_chart("t", "u", [Series(name="a", points=points)], zero=zero)


def labels_of(svg):
    """What stands at the axis of y, from below."""
    return re.findall(r'<text x="40"[^>]*>([^<]*)', svg)


@pytest.mark.parametrize("values", [[1e299, -1e299], [1e308, -1e308], [0.0, 1.7e308], [5e-324, 0.0], [1e299, 1e299]])
@pytest.mark.parametrize("zero", [False, True])
def test_values_of_any_size_are_drawn_and_short(values, zero):
    svg = line_chart("t", "u", [Series(name="a", points=list(enumerate(values * 200)))], zero=zero)
    svg += stacked_chart("t", "u", {"a": list(enumerate(map(abs, values)))})
    assert not re.search(r"nan|inf|\d{13}", svg) and svg.count("<svg") == 2


def test_a_report_of_huge_rewards_has_no_long_numbers(tmp_path):
    run = fake_run(tmp_path / "a", steps=3)
    huge = {"reward_mean": 1e299, "reward_std": 1e306, "loss": -1e299, "parts": {"correct": 1e299}, "grad_norm": 1e300}
    rows = [row | huge for row in run.read_metrics()]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in run.samples.glob("*"):
        file.write_text(file.read_text().replace('"reward": 1.0', '"reward": 1e+299'))
    html, page = page_of(run)
    assert not re.search(r"\d{16}", html) and "reward 1.00e299" in page.texts


def test_the_report_may_run_its_own_script_and_load_nothing(tmp_path):
    html, _ = page_of(fake_run(tmp_path / "a", steps=1))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in unescape(policy) and "default-src 'none'" in unescape(policy)


def test_it_is_told_when_and_where_a_run_began_and_what_became_of_its_groups(tmp_path):
    run = fake_run(tmp_path / "a", steps=4, failures=True)
    about = {"yatt": "0.1.0", "python": "3.11.7", "machine": "Linux x86_64", "cores": 2, "memory_bytes": 24 << 30}
    for began, seconds, first in ((1_790_000_000.0, 21.5, 1), (1_790_003_600.0, 75.0, 3)):
        run.append_session(about | {"began": began, "start_seconds": seconds, "first_step": first, "devices": ["cpu"]})
    counts = {"groups": 10, "groups_equal": 1, "groups_dropped": 5, "groups_unscored": 2, "groups_wasted": 3}
    rows = [row | (counts | {"memory_bytes": row["step"] << 30} if row["step"] else {}) for row in run.read_metrics()]
    rows[-1]["failures"] = ["KeyError: <b>"]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, _ = page_of(run)
    facts = dict(zip(re.findall("<dt>(.*?)</dt>", html), re.findall("<dd>(.*?)</dd>", html), strict=True))
    assert facts["Started"].startswith("2026-09-2") and facts["Resumed"].endswith(", 1 times in all")
    assert facts["Start-up"] == "1 min 15 s" and facts["Version"] == "YATT 0.1.0, Python 3.11.7"
    assert facts["Machine"] == "Linux x86_64, 2 cores, 24.0 GiB" and facts["Peak memory"] == "4.0 GiB"
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>.*?</tr>", html, re.S)]
    # of 4 steps: 40 trained, 12 dropped by the filter, 8 for want of rewards, 12 wasted; 72 in all
    assert [row[:3] for row in cells if row and row[0].split()[0] in ("trained", "dropped", "wasted")] == [
        ["trained", "40", "55.6%"], ["dropped by the filter", "12", "16.7%"],
        ["dropped without enough rewards", "8", "11.1%"], ["wasted", "12", "16.7%"],
    ]  # fmt: skip
    assert ["1", "4", "4", "KeyError: &lt;b&gt;"] in cells and "4 have equal rewards" in html


def test_ticks_of_tiny_values_and_of_whole_numbers_by_hand():
    # A quarter of 1.2e-13 is 3e-14: every 5e-14. A quarter of 8.4 is 2.1: every 2.5, and of whole numbers every 3.
    assert ticks(0.0, 1.2e-13) == [0.0, 5e-14, 1e-13]
    assert ticks(0.0, 8.4) == [0.0, 2.5, 5.0, 7.5] and ticks(0.0, 8.4, whole=True) == [0.0, 3.0, 6.0]
    tiny, whole, half = (
        line_chart("t", "u", [Series(name="a", points=list(enumerate(values)))], zero=True)
        for values in ([0.0, 1.1e-13], [0.0, 8.0, 3.0], [0.0, 8.0, 3.5])
    )
    assert labels_of(tiny) == ["0", "5e-14", "1e-13"]
    assert labels_of(whole) == ["0", "3", "6"] and labels_of(half) == ["0", "2.5", "5", "7.5"]


def test_a_line_that_covers_others_is_dashed():
    """Of five points: b has all of a's, c four of them and so four of b's, d two."""
    a, c, d = [0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 0, 0, 0]
    series = [Series(name=name, points=list(enumerate(ys))) for name, ys in zip("abcd", (a, a, c, d), strict=True)]
    lines = re.findall(r'class="line" stroke="([^"]*)"( stroke-dasharray="[^"]*")?', line_chart("t", "u", series))
    # a dash for every 12 pixels: 6 long over one line, 3 over two; d shares 3 of 5 with c
    assert lines == [
        ("var(--c0)", ""), ("var(--c1)", ' stroke-dasharray="6 6"'), ("var(--c2)", ' stroke-dasharray="3 9"'),
        ("var(--c3)", ' stroke-dasharray="6 6"'),
    ]  # fmt: skip


def test_a_role_has_one_colour_in_every_drawing(tmp_path):
    html, _ = page_of(fake_run(tmp_path / "a", steps=4, judged=True))
    swatches = {name: set(re.findall(rf'<i style="background:([^"]*)"></i>{name}<', html)) for name in (
        "policy", "sampling", "judge", "judging", "trainer", "training", "train", "whole slot"
    )}  # fmt: skip
    assert all(len(colours) == 1 for name, colours in swatches.items() if name != "judge"), swatches
    assert swatches["policy"] == swatches["sampling"] and swatches["trainer"] == swatches["training"]
    assert swatches["train"] == swatches["training"]
    figure = {
        title: html[html.index(f"<h3>{title}") :].split("</figure>")[0] for title in ("Idle share, mean", "Slots")
    }
    for drawing in figure.values():
        assert f'background:{next(iter(swatches["judging"]))}"></i>judge<' in drawing
    two = role_colours(["policy", "good", "trainer", "safe"])
    assert len({two[role] for role in ("policy", "trainer", "good", "safe", "whole slot")}) == 5


def test_evaluations_have_a_name_among_what_is_drawn():
    loop = {"start": 0.0, "stop": 4.0, "name": "rollout", "actor": "controller 0"}
    work = PhaseSpan(name="sample", actor="generator 0", role="policy", slots=(0,), start=0.0, stop=4.0)
    later = PhaseSpan(name="rollout", actor="controller 0", start=6.0, stop=9.0)
    evaluation = PhaseSpan(name="evaluate", actor="driver", start=4.0, stop=6.0)
    page = Page(devices({1: [PhaseSpan(**loop), work, evaluation], 2: [later]}))
    assert "evaluation" in page.texts and "other" not in page.texts
    # what it moves before the first step is told with that step, but is not in it: the slot works for 4 s of 4
    move = PhaseSpan(name="move", actor="controller 0", start=-1.0, stop=-0.5)
    page = Page(devices({1: [move, PhaseSpan(**loop), work]}))
    assert [text for text in page.texts if text.endswith(".0%")][:2] == ["0.0%", "0.0%"]


def test_details_that_say_the_same_of_every_response_are_left_out(tmp_path):
    run = fake_run(tmp_path / "a", steps=2)
    for file in run.samples.glob("*.jsonl"):
        records = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
        for record in records:
            record["parts"] = {"worked": 0.0, "judge.asked": 1.0, "judge.unparsed": float(file.stem == "eval-2.c1")}
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    told = [text for text in page_of(run)[1].texts if "worked 0" in text]
    # of 6 prompts each: held-out ones before and after, rollouts of the first step and of the last
    assert len(told) == 24 and not any("judge.asked" in text for text in told)
    # said of the 12 held-out responses, as some differ; of none of the rollouts, where all are the same
    assert sum("judge.unparsed" in text for text in told) == 12


HARNESS = """<body><iframe id=f style="width:WIDTHpx;height:900px" src="PAGE"></iframe><script>
f.onload = () => {
  const w = f.contentWindow, d = w.document, svgs = [...d.querySelectorAll('svg[data-hover]')], svg = svgs[0];
  const lanes = [...d.querySelectorAll('.gantt')].map(figure => ({
    kinds: [...figure.querySelectorAll('ul li')].map(li => li.textContent),
    labels: [...figure.querySelectorAll('ol li')].map(li => li.textContent),
    bars: [...figure.querySelectorAll('rect:not(.idle)')].length,
    moves: [...figure.querySelectorAll('circle')].length,
    label: parseFloat(w.getComputedStyle(figure.querySelector('text')).fontSize)}));
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new w.PointerEvent('pointermove', {bubbles: true, clientX: box.right - 14, clientY: box.top + 50}));
  const inside = svgs.every(s => { const r = s.getBoundingClientRect(); return r.width > 200 && r.height > 90; });
  document.body.textContent = JSON.stringify({
    title: d.title, lanes, charts: svgs.length, inside, overflow: d.documentElement.scrollWidth - w.innerWidth,
    hover: svg.nextElementSibling.textContent, shown: svg.nextElementSibling.style.display,
    sizes: svgs.map(s => parseFloat(w.getComputedStyle(s.querySelector('text')).fontSize)
      * s.getBoundingClientRect().width / 400),
    tiles: [...d.querySelectorAll('.tile b')].map(b => b.scrollWidth - b.clientWidth),
    fetched: w.performance.getEntriesByType('resource').length,
    background: w.getComputedStyle(d.body).backgroundColor});
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium not found: the page was checked as text only")
@pytest.mark.parametrize(("width", "dark", "judged"), [(390, False, True), (700, True, False), (1280, False, True)])
def test_a_real_browser_draws_it(tmp_path, width, dark, judged):
    run = fake_run(tmp_path / "a", steps=40, every=10, failures=True, judged=judged)
    *rows, last = run.read_metrics()
    last["evaluation"]["parts_sampled"] |= {"truth": 0.907, "judge": 0.991}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in (*rows, last)))
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.replace("WIDTH", str(width)).replace("PAGE", write_report(run.path).as_uri()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([CHROMIUM, *options, harness.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(unescape(re.search(r"<body>(.*?)</body>", done.stdout, re.S)[1]))
    assert found["title"] == "a · YATT" and found["fetched"] == 0
    assert found["charts"] == len(CURVES | PLACED if judged else CURVES)
    assert found["inside"] and found["overflow"] <= 0
    assert min(found["sizes"]) >= 8.5 and max(found["sizes"]) <= 14  # pixels of an axis label; titles have 14
    assert found["tiles"] == [0] * 7  # pixels by which a value is wider than its card
    lanes = {"kinds": ["sampling", "training", "weights", "sleep, wake", "other"], "moves": 0, "label": 11}
    lanes["labels"] = ["loop", "slot 0 policy", "slot 0 trainer", "slot 1 policy", "slot 1 trainer"]
    # in each of two steps 5 phases of controller 0, and on each of two slots 4 spans of the engine and 3 of the rank
    lanes["bars"] = 2 * (5 + 2 * 7)
    if judged:
        lanes["kinds"][4:] = ["judging", "other", "decision"]
        homes = {0: ["policy", "trainer"], 1: ["policy", "trainer"], 2: ["policy", "judge", "trainer"]}
        homes[3] = homes[2]
        lanes["labels"] = ["loop", *(f"slot {slot} {role}" for slot, roles in homes.items() for role in roles)]
        # of 5 spans on each of 4 slots; the policy's samples on 3, and sleep, wake, sample where a judge takes over
        lanes["bars"] = 2 * (5 + 4 * 5 + 3 + 2 * 3)
    # steps 1, 2 and 39 begin with a decision and make one; step 40 begins with one
    assert found["lanes"] == [lanes | {"moves": moves} for moves in ((4, 3) if judged else (0, 0))]
    assert found["shown"] == "block" and found["hover"] == "step 40\ngreedy  99.6%\nsampled  89.8%"
    assert found["background"] == ("rgb(18, 21, 26)" if dark else "rgb(246, 247, 249)")
