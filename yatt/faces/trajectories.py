"""Trajectories of `samples/`, side by side: what the policy wrote at first, and what it writes now."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
PAIRS = 4
LONGEST_TEXT = 3000
MOST_RECORDS = 2000
_NAME = re.compile(r"^(step|eval)-(\d+)(?:\.c\d+)?\.jsonl$")


def held_out_pairs(folder: Path) -> str:
    """The first and last evaluation's responses to the same prompts; the greedy ones where there are any."""
    ends = _first_and_last(folder, "eval")
    if len(ends) < 2:
        return ""
    (first, before), (last, after) = ends
    mode = "greedy" if any(r.get("mode") == "greedy" for r in before) else "sampled"
    late = {r["prompt"]: r for r in reversed(after) if r.get("mode") == mode}
    early = {r["prompt"]: r for r in reversed(before) if r.get("mode") == mode and r["prompt"] in late}
    shown = sorted(early.values(), key=lambda r: (r["uid"], r["sibling"]))[:PAIRS]
    return "".join(
        f'<article class="card pair"><div class="prompt">{_prompt(r)}</div>'
        f"{_response(r, f'step {first}')}{_response(late[r['prompt']], f'step {last}')}</article>"
        for r in shown
    )


def rollout_pairs(folder: Path) -> str:
    """A few trajectories of the first and of the last step: other prompts, each with its own."""
    ends = _first_and_last(folder, "step")
    columns = [
        [f"<div>{_prompt(r)}{_response(r, f'step {step}')}</div>" for r in _one_per_prompt(records)[:PAIRS]]
        for step, records in ends
    ]
    blank = ["<div></div>"] * PAIRS
    rows = zip(*((column + blank)[:PAIRS] for column in columns), strict=True)
    pairs = ("".join(row) for row in rows)
    return "".join(f'<article class="card pair">{pair}</article>' for pair in pairs if "<pre>" in pair)


def _first_and_last(folder: Path, kind: str) -> list[tuple[int, list[Record]]]:
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if (match := _NAME.match(file.name)) and match[1] == kind:
            files.setdefault(int(match[2]), []).append(file)
    steps = sorted({min(files), max(files)}) if files else []
    return [(step, _read(files[step])) for step in steps]


def _read(files: Sequence[Path]) -> list[Record]:
    records = []
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:MOST_RECORDS]:
            with contextlib.suppress(ValueError):  # a crash may leave half a line
                records.append(json.loads(line))
    return records


def _one_per_prompt(records: Sequence[Record]) -> list[Record]:
    return list({r["uid"]: r for r in reversed(records)}.values())[::-1]


def _prompt(record: Record) -> str:
    answer = record.get("answer")
    expected = f'<div class="meta">answer: {escape(str(answer))}</div>' if answer is not None else ""
    return f'<div class="meta">prompt</div><pre>{_text(record["prompt"])}</pre>{expected}'


def _response(record: Record, when: str) -> str:
    reward, status = record.get("reward"), record.get("status", "ok")
    colour = "good" if reward is not None and reward > 0 else "bad"
    verdict = f"reward {reward:.3g}" if reward is not None else f"reward {escape(str(status))}"
    detail = f": {escape(record['detail'][:200])}" if reward is None and record.get("detail") else ""
    parts = [f"{escape(k)} {v:.3g}" for k, v in (record.get("parts") or {}).items() if v is not None]
    cut = ["cut off"] if record.get("finish") == "length" else []
    rest = " · ".join([*parts, f"{record.get('response_tokens', '?')} tokens", *cut])
    return (
        f'<div><div class="meta">{when} · <span class="{colour}">{verdict}{detail}</span> · {rest}</div>'
        f"<pre>{_text(record['response'])}</pre></div>"
    )


def _text(text: str) -> str:
    more = len(text) - LONGEST_TEXT
    return escape(text[:LONGEST_TEXT]) + (f" … ({more:,} more characters)" if more > 0 else "")
