"""The top of a run's page: what it is, the numbers it is judged by, what is wrong with it; what became of groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from yatt.config.algorithms import RECIPES
from yatt.faces.chart import number, percent
from yatt.faces.evaluations import SHARES, interval_text, points_of
from yatt.faces.page import render, table
from yatt.reports import first_failures

Row = Mapping[str, Any]
GIB = 1 << 30
FIRST_SAID, LAST_SAID = 5, 5
"""Warnings shown of those that steps had; the others are counted."""
MOST_FAILURES = 20
"""Different texts on failed rewards that are listed."""


def setting(config: Row, *names: str) -> Any:
    """A setting of a config as it was written; None where it is not there."""
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def is_offline(config: Row) -> bool:
    """Whether the run learns from rows."""
    recipe = RECIPES.get(setting(config, "algorithm", "name"))
    return recipe is not None and not recipe.reinforces


def header(name: str, config: Row, rows: Sequence[Row], sessions: Sequence[Row], state: str = "") -> Markup:
    """What is run, where, since when and how far; `state` says whether it is under way."""
    last = rows[-1] if rows else {}
    offline = is_offline(config)
    updates = [row for row in rows if row["step"] > 0]
    tokens = sum(row.get("trained_tokens" if offline else "response_tokens") or 0 for row in updates)
    facts = {
        "State": state or None,
        "Model": setting(config, "model", "path"),
        "Algorithm": setting(config, "algorithm", "name"),
        "Engine": None if offline else setting(config, "rollout", "engine"),
        "Slots": setting(config, "cluster", "slots") or "auto",
        "Controllers": last.get("controllers"),
        "Steps": f"{last.get('step', 0):,} of {setting(config, 'train', 'steps') or 0:,}",
        "Time in steps": duration(sum(row.get("seconds") or 0 for row in rows)),
        "Tokens trained" if offline else "Tokens generated": f"{tokens:,}",
        "Seed": setting(config, "run", "seed"),
        **_of_sessions(sessions),
        "Peak memory": _gib(max((row.get("memory_bytes") or 0 for row in rows), default=0)),
    }
    return render("header.html", name=name, facts=[(k, v) for k, v in facts.items() if v is not None])


def _of_sessions(sessions: Sequence[Row]) -> dict[str, str | None]:
    """When, with what and on what; of a run that was resumed, the last time it was."""
    if not sessions:
        return {}
    first, last = sessions[0], sessions[-1]
    told = {
        "Started": _when(first["began"]),
        "Resumed": f"{_when(last['began'])}, {len(sessions) - 1} times in all" if len(sessions) > 1 else None,
        "Start-up": duration(last["start_seconds"]),
        "Version": f"YATT {last['yatt']}, Python {last['python']}",
        "Machine": f"{last['machine']}, {last['cores']} cores, {_gib(last['memory_bytes'])}",
        "Devices": ", ".join(dict.fromkeys(last["devices"])) or None,
    }
    return told


def tiles(config: Row, rows: Sequence[Row]) -> Markup:
    """The numbers a run is judged by, first and last."""
    evaluations = [row["evaluation"] for row in rows if "evaluation" in row]
    last = evaluations[-1] if evaluations else {}
    parts = list(last.get("parts_sampled") or last.get("parts_greedy") or ())[:3]
    updates = [row for row in rows if row["step"] > 0]
    shown = {f"{name}{interval_text(last, key)}": (points_of(rows, key), percent) for name, key in SHARES.items()}
    shown["loss, held-out"] = (points_of(rows, "held_out_loss"), number)
    for part in parts:
        mode = "parts_sampled" if last["parts_sampled"] else "parts_greedy"
        shown[f"{part}, held-out"] = (
            [(0, e[mode][part]) for e in evaluations if e[mode].get(part) is not None],
            number,
        )
    if is_offline(config):
        shown["loss"] = (points_of(updates, "loss"), number)
    else:
        shown["reward"] = (points_of(updates, "reward_mean"), number)
        shown["response tokens"] = (points_of(updates, "response_length_mean"), number)
    values = [
        (label, show(points[0][1]) if len(points) > 1 else "", show(points[-1][1]))
        for label, (points, show) in shown.items()
        if points
    ]
    return render("tiles.html", tiles=values)


def warnings(config: Row, rows: Sequence[Row]) -> Markup:
    """What is wrong with the run as a whole, and the first and last warnings that it gave."""

    def total(name: str) -> int:
        return sum(row.get(name) or 0 for row in rows)

    updates = [row for row in rows if row["step"] > 0]
    last, planned = rows[-1]["step"] if rows else 0, setting(config, "train", "steps")
    idle = 0 if is_offline(config) else sum(row["groups"] == 0 for row in updates)
    lost = sum(row.get("loss") is None for row in updates)
    cut = updates[-1]["truncated"] if updates else 0.0
    texts = "".join(
        f"; {text!r}" for text in first_failures(text for row in rows for text in row.get("failures") or ())
    )
    remarks = {
        f"The run stands at step {last} of {planned}.": bool(planned) and last < planned,
        f"Rewards that failed, their responses left out: {total('reward_failures')} "
        f"({total('reward_timeouts')} by running out of time){texts}.": total("reward_failures"),
        f"Updates skipped, their gradient not finite: {total('skipped_updates')}.": total("skipped_updates"),
        f"Steps whose loss is not finite: {lost}.": lost,
        f"Steps with no group left to learn from: {idle}.": idle,
        f"Share of the last step's responses cut off at rollout.max_tokens: {percent(cut)}.": cut > 0.25,
        "Payload bytes passed through the driver; there should be none.": total("driver_payload_bytes"),
    }
    said = [text for row in rows for text in row.get("warnings") or ()]
    left = len(said) - FIRST_SAID - LAST_SAID
    if left > 0:
        said[FIRST_SAID:-LAST_SAID] = [f"({left:,} more warnings, in metrics.jsonl)"]
    return render("warnings.html", lines=[*(text for text, true in remarks.items() if true), *said])


def groups(config: Row, rows: Sequence[Row]) -> Markup:
    """What became of the groups of all steps, and why; nothing where responses are not drawn."""
    updates = [row for row in rows if row["step"] > 0 and row.get("responses")]
    if is_offline(config) or not updates:
        return Markup()
    rule = setting(config, "rollout", "filter") or "none"
    lines = [{"cells": cells} for cells in _fates(updates, rule) if cells[1]]
    ended = sum(int(line["cells"][1]) for line in lines) or 1
    shown = [{"cells": [name, f"{n:,}", percent(n / ended), why]} for name, n, why in (row["cells"] for row in lines)]
    return table(("groups", "", "", "why"), shown, title="All steps", wrapped=(3,))


def _fates(rows: Sequence[Row], rule: str) -> Iterator[tuple[str, int, str]]:
    def total(name: str) -> int:
        return sum(row.get(name) or 0 for row in rows)

    equal, unscored = total("groups_equal"), total("groups_unscored")
    taught = "all of them" if not equal else f"{equal:,} have equal rewards, which teach nothing by comparison"
    yield "trained", total("groups"), taught
    dropped = "all rewards equal" if rule == "all_equal" else "what the rule says"
    yield "dropped by the filter", total("groups_dropped") - unscored, f"rollout.filter={rule}: {dropped}"
    yield "dropped without enough rewards", unscored, "their rewards failed; the reasons are under Failures"
    yield "wasted", total("groups_wasted"), "aborted when the quota was full, or too stale to carry over"
    yield "missing of the quota", total("groups_missing"), "no prompt was left, or rollout.max_refills allowed no more"


def failures(rows: Sequence[Row]) -> Markup:
    """Why rewards failed: each text, in how many steps, and when first and last; the most frequent ones."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        for text in dict.fromkeys(row.get("failures") or ()):
            steps.setdefault(text, []).append(row["step"])
    most = sorted(steps.items(), key=lambda item: -len(item[1]))[:MOST_FAILURES]
    if not most:
        return Markup()
    lines = [{"cells": [len(at), f"{at[0]:,}", f"{at[-1]:,}", text]} for text, at in most]
    return table(("steps", "first", "last", "reason"), lines, wrapped=(3,))


def duration(seconds: float) -> str:
    """Seconds as one says them."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s" if minutes else f"{seconds:.1f} s"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _gib(size: float) -> str | None:
    return f"{size / GIB:.1f} GiB" if size else None
