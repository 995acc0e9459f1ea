"""Trajectories of `samples/`, side by side: what the policy wrote at first, and what it writes now."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
PAIRS = 6
LONGEST_TEXT = 3000
LARGEST_IMAGE = 50_000
"""Characters of an image's address."""
IMAGE = re.compile(r"data:image/(jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")


def first_and_last(folder: Path, kind: str) -> str:
    """Responses of the first and of the last "step" or "eval", one for a prompt: the first sibling, which is an
    evaluation's greedy one. Evaluations respond to the same prompts each time; steps do not."""
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if match := re.match(rf"{kind}-(\d+)\b", file.name):
            files.setdefault(int(match[1]), []).append(file)
    ends = sorted({min(files), max(files)}) if files else []
    chosen = {step: _chosen(files[step]) for step in ends}
    hidden = _same([record for records in chosen.values() for record in records])
    columns = [[_shown(record, f"step {step}", hidden) for record in chosen[step]] for step in ends]
    rows = ("".join(row) for row in zip_longest(*columns, fillvalue="<div></div>"))
    return "".join(f'<article class="card pair">{row}</article>' for row in rows)


def _chosen(files: Sequence[Path]) -> list[Record]:
    records: list[Record] = []
    for line in (line for file in files for line in file.read_text(errors="replace").split("\n")):
        with contextlib.suppress(ValueError):  # a crash may leave half a line
            records.append(json.loads(line))
    records.sort(key=lambda r: (r["uid"], r["sibling"]), reverse=True)
    return list({r["uid"]: r for r in records}.values())[: -PAIRS - 1 : -1]


def _same(records: Sequence[Record]) -> set[str]:
    """Details of rewards, names with a dot, that say the same of all these responses."""
    told: dict[str, set[float]] = {}
    for record in records:
        for name, value in (record.get("parts") or {}).items():
            told.setdefault(name, set()).add(value)
    return {name for name, values in told.items() if "." in name and len(values) == 1 and len(records) > 1}


def _shown(record: Record, when: str, hidden: Container[str]) -> str:
    answer, reward, status = record.get("answer"), record.get("reward"), record.get("status", "ok")
    expected = f'<div class="meta">answer: {escape(str(answer))}</div>' if answer is not None else ""
    colour = "good" if reward is not None and reward > 0 else "bad"
    verdict = f"reward {reward:.3g}" if reward is not None else f"reward {escape(str(status))}"
    detail = f": {escape(record['detail'][:200])}" if reward is None and record.get("detail") else ""
    told = {name: value for name, value in (record.get("parts") or {}).items() if name not in hidden}
    parts = [f"{escape(name)} {value:.3g}" for name, value in told.items() if value is not None]
    cut = ["cut off"] if record.get("finish") == "length" else []
    rest = " · ".join([*parts, f"{record.get('response_tokens', '?')} tokens", *cut])
    return (
        f'<div><div class="meta">prompt</div>{_images(record.get("images"))}'
        f"<pre>{_text(record['prompt'])}</pre>{expected}"
        f'<div class="meta">{when} · <span class="{colour}">{verdict}{detail}</span> · {rest}</div>'
        f"<pre>{_text(record['response'])}</pre></div>"
    )


def _images(addresses: Any) -> str:
    """A prompt's images, as far as they are small ones within the file: a report loads nothing from elsewhere."""
    shown = addresses if isinstance(addresses, list) else []
    small = [one for one in shown if isinstance(one, str) and len(one) <= LARGEST_IMAGE and IMAGE.fullmatch(one)]
    return "".join(f'<img src="{one}" alt="image {n}"> ' for n, one in enumerate(small, start=1))


def _text(text: str) -> str:
    return escape(text[:LONGEST_TEXT] + (" …" if len(text) > LONGEST_TEXT else ""))
