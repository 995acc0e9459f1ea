"""Trajectories of `samples/` as the report and the live page show them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from yatt.faces.chart import number
from yatt.faces.page import render

Record = Mapping[str, Any]
PAIRS = 6
LONGEST_TEXT = 3000
LONGEST_WORD = 200
"""Characters of an answer, a detail, a name."""
MOST_MESSAGES = 40
"""Messages of a conversation that are shown; those in the middle are counted."""
LARGEST_IMAGE = 50_000
"""Characters of an image's address."""
IMAGE = re.compile(r"data:image/(jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")
FILE = re.compile(r"(step|eval)-(\d+)(?:\.c\d+)?\.jsonl")
NOTHING = Markup('<div class="talk"></div>')


def first_and_last(folder: Path, kind: str) -> Markup:
    """Responses of the first and of the last "step" or "eval", one for a prompt: the first sibling, which is an
    evaluation's greedy one. Evaluations respond to the same prompts each time; steps do not."""
    files = _files(folder, kind)
    ends = sorted({min(files), max(files)}) if files else []
    chosen = {step: _chosen(records_of(files[step])) for step in ends}
    hidden = same([record for records in chosen.values() for record in records])
    columns = [[conversation(record, f"step {step}", hidden) for record in chosen[step]] for step in ends]
    rows = list(zip_longest(*columns, fillvalue=NOTHING))
    return render("pairs.html", rows=rows) if rows else Markup()


def whole_group(folder: Path) -> Markup:
    """All siblings of one prompt, of the last step that has some; nothing where no group is whole."""
    for step, files in sorted(_files(folder, "step").items(), reverse=True)[:3]:
        groups: dict[Any, list[Record]] = {}
        for record in records_of(files):
            groups.setdefault(record["uid"], []).append(record)
        siblings = max(groups.values(), key=len, default=[])
        if len(siblings) > 1:
            shown = [conversation(record, f"step {step}, sibling {record['sibling']}", ()) for record in siblings]
            pairs = list(zip_longest(shown[::2], shown[1::2], fillvalue=NOTHING))
            return render("pairs.html", rows=pairs)
    return Markup()


def records_of(files: Sequence[Path]) -> list[Record]:
    """The records of these files; half a line, as a crash may leave one, is left out."""
    lines = (line for file in files for line in file.read_text("utf-8", errors="replace").split("\n"))
    return [record for line in lines if (record := record_of(line)) is not None]


def record_of(line: str | bytes) -> Record | None:
    """The record of a line; None where it is none."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and {"step", "uid", "sibling"} <= record.keys():
            return record
    return None


def same(records: Sequence[Record]) -> set[str]:
    """Details of rewards, names with a dot, that say the same of all these responses."""
    told: dict[str, set[float]] = {}
    for record in records:
        for name, value in (record.get("parts") or {}).items():
            told.setdefault(name, set()).add(value)
    return {name for name, values in told.items() if "." in name and len(values) == 1 and len(records) > 1}


def conversation(record: Record, when: str, hidden: Container[str]) -> Markup:
    """What was said, what is trained of it, and what it was worth. Details in `hidden` are left out."""
    answer, messages = record.get("answer"), list(_messages(record))
    verdict, colour = _verdict(record)
    told = {name: value for name, value in (record.get("parts") or {}).items() if name not in hidden}
    parts = [f"{_short(name)} {number(value)}" for name, value in told.items() if value is not None]
    cut = ["cut off"] if record.get("finish") == "length" else []
    dropped = [f"dropped: {_short(record['dropped'])}"] if record.get("dropped") else []
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    sides = [(name, _segments(record[key])) for key, name in SIDES.items() if record.get(key)]
    shown = {
        "messages": messages,
        "images": list(_images(record.get("images"))),
        "images_at": asked[0] if asked else 0,
        "sides": sides,
        "prompt": _text(record.get("prompt", "")),
        "response": _text(record.get("response", "")),
        "answer": None if answer is None else _short(answer),
        "when": when,
        "verdict": verdict,
        "colour": colour,
        "rest": " · ".join([*parts, f"{record.get('response_tokens', '?')} tokens", *cut, *dropped]),
        "turns": _turns(record),
        "rows": [
            _segments([(piece.get("text", ""), piece.get("trained")) for piece in row])
            for row in record.get("rows") or ()
        ],
    }
    return render("conversation.html", shown=shown)


SIDES = {"segments": "row", "chosen": "chosen", "rejected": "rejected"}
"""Where a record of rows has what is learned from, in pieces: [text, whether it is trained]."""


def _files(folder: Path, kind: str) -> dict[int, list[Path]]:
    """The files of "step" or "eval", by step."""
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        if (match := FILE.fullmatch(file.name)) and match[1] == kind:
            files.setdefault(int(match[2]), []).append(file)
    return files


def _chosen(records: list[Record]) -> list[Record]:
    records.sort(key=lambda r: (r["uid"], r["sibling"]), reverse=True)
    return list({r["uid"]: r for r in records}.values())[: -PAIRS - 1 : -1]


def _verdict(record: Record) -> tuple[str, str]:
    """What the reward said, and its colour."""
    reward, detail = record.get("reward"), record.get("detail")
    if reward is not None:
        return f"reward {number(reward)}", "good" if reward > 0 else "bad"
    if not record.get("status"):
        return "", ""
    return f"reward {record['status']}" + (f": {_short(detail)}" if detail else ""), "bad"


def _messages(record: Record) -> Iterator[dict[str, Any]]:
    """What was said in a conversation, message by message; the policy's with their turn's numbers."""
    messages = [m for m in record.get("messages") or () if isinstance(m, dict)]
    spoken = [place for place, m in enumerate(messages) if m.get("role") == "assistant"]
    turns: Sequence[Record] = record.get("turns") or ()
    of_turn = dict(zip(reversed(spoken), reversed(turns), strict=False))  # a fork's earlier turns are of other rows
    left = len(messages) - MOST_MESSAGES
    for place, message in enumerate(messages):
        if left > 0 and MOST_MESSAGES // 2 <= place < MOST_MESSAGES // 2 + left:
            if place == MOST_MESSAGES // 2:
                yield {"role": "…", "about": f"{left} more messages", "text": "", "calls": ["…"], "trained": False}
            continue
        content = message.get("content")
        turn = of_turn.get(place)
        about = ["trained" if turn else "given, not trained", *(_turn(turn) if turn else ())]
        yield {
            "role": _short(message.get("role", "?")) + (f" {_short(message['name'])}" if message.get("name") else ""),
            "about": " · ".join(about),
            "text": _text(content if isinstance(content, str) else "" if content is None else json.dumps(content)),
            "calls": [_call(call) for call in message.get("tool_calls") or ()],
            "trained": turn is not None,
        }


def _turn(turn: Record) -> Iterator[str]:
    yield f"tokens {turn.get('start', '?')} to {turn.get('stop', '?')}"
    if turn.get("seconds"):
        yield f"{number(turn['seconds'])} s"
    if turn.get("waited"):
        yield f"after {number(turn['waited'])} s outside the engine"
    if turn.get("failed"):
        yield f"{turn['failed']} of {turn.get('calls', 0)} calls failed"
    if turn.get("reward") is not None:
        yield f"reward {number(turn['reward'])}"


def _turns(record: Record) -> str:
    """A conversation's turns, in a line; "" of what is none."""
    turns: Sequence[Record] = record.get("turns") or ()
    if not turns:
        return ""
    seconds, waited = (sum(turn.get(key) or 0.0 for turn in turns) for key in ("seconds", "waited"))
    said = [f"{len(turns)} turns", f"{number(seconds)} s in the engine", f"{number(waited)} s outside"]
    if record.get("forks"):
        said.append(f"forked {record['forks']} times: earlier rows are not shown")
    if record.get("truncated"):
        said.append(f"ended by the limit on {_short(record['truncated'])}")
    return " · ".join(said)


def _call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else {"name": str(call)}
    arguments = function.get("arguments", {})
    return _text(f"{function.get('name', '?')}({arguments if isinstance(arguments, str) else json.dumps(arguments)})")


def _segments(parts: Any) -> list[tuple[str, bool]]:
    """Pieces of a row up to the longest text."""
    shown, room = [], LONGEST_TEXT
    for text, trained in parts:
        shown.append((text[:room] + (" …" if len(text) > room else ""), bool(trained)))
        room -= len(text)
        if room <= 0:
            break
    return shown


def _images(addresses: Any) -> Iterator[str]:
    """A prompt's images, as far as they are small ones within the file: a page loads nothing from elsewhere."""
    for one in addresses if isinstance(addresses, list) else ():
        if isinstance(one, str) and len(one) <= LARGEST_IMAGE and IMAGE.fullmatch(one):
            yield one


def _text(text: str) -> str:
    return text[:LONGEST_TEXT] + (" …" if len(text) > LONGEST_TEXT else "")


def _short(value: Any) -> str:
    text = str(value)
    return text[:LONGEST_WORD] + (" …" if len(text) > LONGEST_WORD else "")
