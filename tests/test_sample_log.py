"""What `samples/` tells of a step: a whole group, why groups were dropped, what is trained of rows; and its look."""

import json
import re

import numpy as np

from yatt.cluster.samplelog import SIBLINGS, SampleLog
from yatt.faces.trajectories import conversation, first_and_last, whole_group
from yatt.types import Group, Pair, Prompt, Sample, SampleKey, Score, Trajectory

WORDS = ["<s>", "one", "plus", "two", "is", "three", "</s>"]


def decode(tokens):
    return " ".join(WORDS[token] for token in tokens)


def group(uid, rewards):
    tokens = np.arange(3, dtype=np.int32)
    prompt = Prompt(uid=uid, text="ask", tokens=tokens[:2])
    drawn = [
        Trajectory(
            prompt=prompt, sibling=k, tokens=tokens, loss_mask=tokens > 1, rollout_logprobs=np.zeros(3, np.float32),
            spans=(), finish="stop", text=f"said {k}",
            score=Score(status="failed" if reward is None else "ok", value=reward),
        )
        for k, reward in enumerate(rewards)
    ]  # fmt: skip
    scored = [t for t in drawn if t.score.value is not None]
    return Group(prompt=prompt, trajectories=tuple(scored), failures=tuple(t for t in drawn if t not in scored))


def sample(mask, uid=0):
    mask = np.array(mask, dtype=bool)
    return Sample(
        key=SampleKey(uid, 0), tokens=np.arange(len(mask), dtype=np.int32), loss_mask=mask, advantage=1.0,
        rollout_logprobs=np.zeros(len(mask), np.float32),
    )  # fmt: skip


def written(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_first_group_is_whole_and_dropped_ones_say_why(tmp_path):
    log = SampleLog(tmp_path, 0, 2)
    kept = [group(0, [float(k) for k in range(12)]), group(1, [0.0, 1.0]), group(2, [0.0, 1.0])]
    dropped = [group(3, [0.5] * 4), group(4, [None, 1.0, None])]
    log.groups(5, kept, dropped)
    rows = written(tmp_path, "step-5.c0.jsonl")
    assert [(row["uid"], row["sibling"]) for row in rows] == [
        *((0, k) for k in range(SIBLINGS)),
        (1, 0),
        (3, 0),
        (4, 0),
    ]
    assert [row.get("dropped") for row in rows[-2:]] == ["all 4 rewards are 0.5", "2 of 3 rewards failed"]
    page = whole_group(tmp_path)
    assert [int(k) for k in re.findall(r"step 5, sibling (\d+)", page)] == list(range(SIBLINGS))
    assert "dropped: all 4 rewards are 0.5" in first_and_last(tmp_path, "step")


def test_where_all_groups_were_dropped_there_is_something_to_read(tmp_path):
    SampleLog(tmp_path, 0, 2).groups(1, [], [group(3, [0.0] * 4)])
    assert [row["uid"] for row in written(tmp_path, "step-1.c0.jsonl")] == [3] and whole_group(tmp_path) == ""


def test_rows_are_shown_with_what_is_trained_of_them(tmp_path):
    log = SampleLog(tmp_path, 0, 2)
    log.decode = decode
    for step in range(1, 10):
        log.learned(step, [sample([1, 0, 0, 1, 1, 0, 1]), sample([0, 1], uid=1), sample([0, 1], uid=2)])
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"step-{n}.c0.jsonl" for n in (1, 2, 4, 8)]
    first, second = written(tmp_path, "step-8.c0.jsonl")
    # the first token has no prediction; then two that are given, two trained, one given, one trained
    pieces = [["<s> one plus", False], ["two is", True], ["three", False], ["</s>", True]]
    assert first["segments"] == pieces and first["response_tokens"] == 3 and second["segments"][1] == ["one", True]
    shown = conversation(first, "step 8", ())
    assert "<pre>&lt;s&gt; one plus<mark>two is</mark>three<mark>&lt;/s&gt;</mark></pre>" in shown
    assert "reward" not in shown and "3 tokens" in shown


def test_a_pair_has_both_sides(tmp_path):
    pair = Pair(first=sample([0, 1, 1]), second=sample([0, 0, 1]))
    log = SampleLog(tmp_path, 0, 1)
    log.decode = decode
    log.learned(1, [pair])
    (row,) = written(tmp_path, "step-1.c0.jsonl")
    assert row["chosen"] == [["<s>", False], ["one plus", True]] and row["rejected"] == [
        ["<s> one", False],
        ["plus", True],
    ]
    shown = conversation(row, "step 1", ())
    assert shown.index("chosen; marked") < shown.index("rejected; marked")


def test_a_conversation_shows_calls_masks_times_and_limits():
    said = [
        {"role": "system", "content": "s" * 5000},
        {"role": "user", "content": "6 x 7?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "times", "arguments": {"a": "<b>"}}}],
        },
        {"role": "tool", "name": "times", "content": "42"},
        {"role": "assistant", "content": "</script>42"},
    ]
    turns = [
        {"start": 9, "stop": 20, "calls": 1, "failed": 1, "seconds": 0.25, "waited": 0.0, "reward": -1e299},
        {"start": 25, "stop": 28, "calls": 0, "failed": 0, "seconds": 0.5, "waited": 2.0, "reward": None},
    ]
    record = {
        "step": 1, "uid": 0, "sibling": 0, "prompt": "p", "response": "r", "reward": 1e299, "parts": {"x": 1e299},
        "status": "ok", "messages": said, "turns": turns, "forks": 2, "truncated": "turns", "response_tokens": 14,
    }  # fmt: skip
    shown = conversation(record, "step 1", ())
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", shown)).replace("1.00e", "1e")
    for words in (
        "assistant · trained · tokens 9 to 20 · 0.25 s · 1 of 1 calls failed · reward -1e299",
        "assistant · trained · tokens 25 to 28 · 0.5 s · after 2 s outside the engine",
        "tool times · given, not trained",
        "2 turns · 0.75 s in the engine · 2 s outside · forked 2 times",
        "ended by the limit on turns",
        "times({&#34;a&#34;: &#34;&lt;b&gt;&#34;})",
    ):
        assert words in text
    assert set(re.findall("<b>(.*?)</b>", shown)) == {"system", "user", "assistant", "tool times"}
    assert "</script>" not in shown and shown.count('class="turn trained"') == 2
    assert len(shown) < 6000 and not re.search(r"\d{10}", shown)
