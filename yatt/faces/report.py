"""report.html: a run, finished or not, as one page that needs no network; made from the run's folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from yatt.config import yaml_core
from yatt.config.algorithms import RECIPES
from yatt.config.secrets import masked
from yatt.errors import ConfigError
from yatt.faces.chart import Series, line_chart, number, percent, stacked_chart
from yatt.faces.evaluations import SHARES, by_source, interval_text, measured, points_of
from yatt.faces.gantt import OF_SPAN, devices
from yatt.faces.incidents import incidents_section
from yatt.faces.metrics import first_row
from yatt.faces.page import PAGE, SCRIPT, STYLE
from yatt.faces.placement import placement_section
from yatt.faces.rundir import RunDirectory, replace_text
from yatt.faces.trajectories import first_and_last
from yatt.reports import first_failures

Row = Mapping[str, Any]
Curve = tuple[str, str, dict[str, str], bool]
"""Title, unit, lines (by their name, the column), and whether the axis begins at 0."""
FROM_ZERO, ANYWHERE = True, False
FIRST_SAID, LAST_SAID = 5, 5
"""Warnings shown of those that steps had; the others are counted."""
LARGEST = ("longest_response", "rollout_gap_max")
SIDES = {side: f"{side}_reward" for side in ("chosen", "rejected", "desirable", "undesirable")}
KL = {"to rollout policy": "kl", "to reference": "kl_ref", "in the reward": "kl_reward"}
LENGTHS = {"median": "response_length_p50", "90 %": "response_length_p90", "longest": "longest_response"}
CURVES: tuple[Curve, ...] = (
    ("Response length", "tokens", LENGTHS, FROM_ZERO),
    ("Throughput", "tokens / s", {"tokens / s": "tokens_per_s"}, FROM_ZERO),
    ("Loss", "loss", {"trained": "loss", "held-out": "held_out_loss"}, ANYWHERE),
    ("Rewards of responses", "mean over rows", SIDES, ANYWHERE),
    ("Critic's loss", "squared error", {"loss": "critic_loss"}, FROM_ZERO),
    ("Variance the critic explains", "share", {"share": "explained_variance"}, ANYWHERE),
    ("Gradient norm", "L2 norm", {"norm": "grad_norm"}, FROM_ZERO),
    ("Entropy", "nats / token", {"entropy": "entropy"}, FROM_ZERO),
    ("KL divergence", "nats / token", KL, ANYWHERE),
    ("Weight of the KL in the reward", "coefficient", {"coefficient": "kl_coefficient"}, FROM_ZERO),
    ("Advantages", "mean size", {"size": "advantage_abs"}, FROM_ZERO),
    ("Train / rollout gap", "largest difference of logprobs", {"largest": "rollout_gap_max"}, FROM_ZERO),
    ("Learning rate", "per update", {"rate": "learning_rate"}, FROM_ZERO),
    ("Clipped tokens", "share", {"policy": "clip_fraction", "values": "value_clip_fraction"}, FROM_ZERO),
    ("Corrected tokens", "share", {"share": "corrected"}, FROM_ZERO),
    ("Responses cut off", "share", {"share": "truncated"}, FROM_ZERO),
    (
        "Groups not trained on",
        "groups",
        {"dropped": "groups_dropped", "wasted": "groups_wasted", "missing": "groups_missing"},
        FROM_ZERO,
    ),
    ("Refills, failed rewards", "count", {"refills": "refills", "failed rewards": "reward_failures"}, FROM_ZERO),
    ("Images", "bytes per step", {"bytes": "media_bytes"}, FROM_ZERO),
)


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html anew and return its path. Raises ConfigError where `run_dir` holds no run."""
    run = RunDirectory(run_dir)
    if not run.config.exists() and not run.metrics.exists():
        raise ConfigError(
            f"{run_dir} is not a run folder: it has neither config.yaml nor metrics.jsonl; give runs/NAME"
        )
    text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config = yaml_core.read(text) or {}
    if (shown := masked(config)) != config:
        text = yaml_core.write(shown)
    rows = sorted(run.read_metrics(), key=lambda row: row["step"])
    name = _get(config, "run", "name") or run.path.resolve().name
    sections = [
        _header(name, config, rows),
        _tiles(config, rows),
        _warnings(config, rows),
        _section("Curves", f'<div class="charts">{_charts(config, rows)}</div>' if rows else "No step has ended yet."),
        _section("Held-out accuracy by source", by_source(rows)),
        _section("Deaths and recoveries", incidents_section(rows)),
        _section("Placement", placement_section(rows)),
        _section("Devices", devices(run.read_spans())),
        _section("Held-out responses, before and after", first_and_last(run.samples, "eval")),
        _section("Rollouts, first and last", first_and_last(run.samples, "step")),
        _section(
            "Settings", f'<details class="card"><summary>config.yaml</summary><pre>{escape(text)}</pre></details>'
        ),
    ]
    page = PAGE.format(title=escape(f"{name} · YATT"), style=STYLE, script=SCRIPT, body="".join(sections))
    replace_text(run.report, page)
    return run.report


def _header(name: str, config: Row, rows: Sequence[Row]) -> str:
    last = rows[-1] if rows else {}
    offline = _is_offline(config)
    updates = [row for row in rows if row["step"] > 0]
    tokens = sum(row.get("trained_tokens" if offline else "response_tokens") or 0 for row in updates)
    facts = {
        "Model": _get(config, "model", "path"),
        "Algorithm": _get(config, "algorithm", "name"),
        "Engine": None if offline else _get(config, "rollout", "engine"),
        "Slots": _get(config, "cluster", "slots") or "auto",
        "Controllers": last.get("controllers"),
        "Steps": f"{last.get('step', 0):,} of {_get(config, 'train', 'steps') or 0:,}",
        "Time in steps": _duration(sum(row.get("seconds") or 0 for row in rows)),
        "Tokens trained" if offline else "Tokens generated": f"{tokens:,}",
        "Seed": _get(config, "run", "seed"),
    }
    items = [f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v is not None]
    title = '<div class="meta">YATT run report</div>'
    return f"<header>{title}<h1>{escape(name)}</h1><dl>{''.join(items)}</dl></header>"


def _tiles(config: Row, rows: Sequence[Row]) -> str:
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
    if _is_offline(config):
        shown["loss"] = (points_of(updates, "loss"), number)
    else:
        shown["reward"] = (points_of(updates, "reward_mean"), number)
        shown["response tokens"] = (points_of(updates, "response_length_mean"), number)
    tiles = []
    for label, (points, show) in shown.items():
        if points:
            first, now = show(points[0][1]), show(points[-1][1])
            values = f"<s>{first} →</s> {now}" if len(points) > 1 else now
            tiles.append(f'<div class="card tile"><b>{values}</b><span>{escape(label)}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _warnings(config: Row, rows: Sequence[Row]) -> str:
    def total(name: str) -> int:
        return sum(row.get(name) or 0 for row in rows)

    updates = [row for row in rows if row["step"] > 0]
    last, planned = rows[-1]["step"] if rows else 0, _get(config, "train", "steps")
    idle = 0 if _is_offline(config) else sum(row["groups"] == 0 for row in updates)
    lost = sum(row.get("loss") is None for row in updates)
    cut = updates[-1]["truncated"] if updates else 0.0
    texts = "".join(
        f"; {text!r}" for text in first_failures(text for row in rows for text in row.get("failures") or ())
    )
    remarks = {
        f"The run stands at step {last} of {planned}.": bool(planned) and last < planned,
        f"Rewards that failed, their responses left out: {total('reward_failures')} "
        f"({total('reward_timeouts')} by running out of time){escape(texts)}.": total("reward_failures"),
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
    items = [f"<li>{text}</li>" for text, true in remarks.items() if true] + [
        f"<li>{escape(text)}</li>" for text in said
    ]
    return f'<ul class="warn">{"".join(items)}</ul>' if items else ""


def _charts(config: Row, rows: Sequence[Row]) -> str:
    """Charts of what there is: a quantity that was never measured, or is 0 throughout, has none."""
    updates = [row for row in rows if row["step"] > 0]
    phases = list(dict.fromkeys(name for row in updates for name in row["phases"]))[:6]
    layers = {name: [(row["step"], row["phases"].get(name) or 0.0) for row in updates] for name in phases}
    accuracies = [measured(rows, name, f"accuracy_{name}") for name in ("greedy", "sampled")]
    trained = Series(name="trained", points=points_of(updates, "pair_accuracy"))
    pairs = [trained, measured(rows, "held-out", "held_out_pair_accuracy")]
    charts = [
        line_chart("Accuracy on held-out prompts", "share of responses; bands hold 95 %", accuracies, share=True),
        line_chart("Pairs in the right order", "share of pairs; bands hold 95 %", pairs, share=True),
        "" if _is_offline(config) else _reward_chart(updates),
        *_parts_charts(updates),
        stacked_chart("Time per step", "seconds", layers, OF_SPAN),
        _lengths_chart(updates),
    ]
    for title, unit, lines, zero in (*CURVES, *_others(updates)):
        series = [
            Series(name=name, points=points_of(told, key), keep="max" if key in LARGEST else "mean")
            for name, key in lines.items()
            for told in [rows if key == "held_out_loss" else updates]
            if any(row.get(key) for row in told)
        ]
        charts.append(line_chart(title, unit, series, zero=zero))
    return "".join(charts)


def _others(rows: Sequence[Row]) -> Iterator[Curve]:
    """Numbers that only some algorithms have, and no chart shows yet."""
    shown = {"pair_accuracy", *SHARES.values(), *(key for _, _, lines, _ in CURVES for key in lines.values())}
    shown |= first_row(None, controllers=0).keys()
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    for name in names:
        if name not in shown:
            yield name.replace("_", " ").capitalize(), "mean", {"value": name}, ANYWHERE


def _reward_chart(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if row.get("reward_mean") is not None and row.get("reward_std") is not None]
    band = [(row["reward_mean"] - row["reward_std"], row["reward_mean"] + row["reward_std"]) for row in rows]
    series = Series(name="mean", points=points_of(rows, "reward_mean"), band=band)
    return line_chart("Reward, and one standard deviation", "reward", [series])


def _parts_charts(rows: Sequence[Row]) -> Iterator[str]:
    """The rewards that make up the sum, and what they tell beside their value: names with a dot."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("parts") or {}))
    for title, dotted in (("Parts of the reward", False), ("Details of the reward", True)):
        series = [
            Series(name=n, points=[(r["step"], r["parts"][n]) for r in rows if r["parts"].get(n) is not None])
            for n in [name for name in names if ("." in name) == dotted][:6]
        ]
        yield line_chart(title, "mean over responses", series, zero=True)


def _lengths_chart(rows: Sequence[Row]) -> str:
    """The share of responses shorter than each length: in the first, the middle and the last step."""
    rows = [row for row in rows if row.get("response_lengths")]
    series = []
    for row in [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else ():
        smallest, counts = zip(*row["response_lengths"], strict=True)
        shares = [below / sum(counts) for below in accumulate(counts, initial=0)]
        points = list(zip((*smallest, row["longest_response"] + 1), shares, strict=True))
        series.append(Series(name=f"step {row['step']}", points=points))
    return line_chart("Responses by length", "share of responses shorter than", series, share=True, along="tokens")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _get(config: Row, *names: str) -> Any:
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_offline(config: Row) -> bool:
    recipe = RECIPES.get(_get(config, "algorithm", "name"))
    return recipe is not None and not recipe.reinforces


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s" if minutes else f"{seconds:.1f} s"
