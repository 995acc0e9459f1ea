"""The curves of a run: a chart of every quantity that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from yatt.faces.chart import Series, line_chart, stacked_chart
from yatt.faces.evaluations import SHARES, measured, points_of
from yatt.faces.gantt import OF_SPAN
from yatt.faces.metrics import first_row
from yatt.faces.page import render

Row = Mapping[str, Any]
Curve = tuple[str, str, Mapping[str, str], bool]
"""Title, unit, lines (by their name, the column), and whether the axis begins at 0."""
FROM_ZERO, ANYWHERE = True, False
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
    ("Memory", "bytes", {"bytes": "memory_bytes"}, FROM_ZERO),
)


NOTES: Mapping[str, str] = MappingProxyType(
    {
        "KL divergence": "To the rollout policy: how far the engine's log-probabilities are from the trainer's; near 0 "
        "while both have one policy. To the reference: only with algorithm.kl.coefficient over 0.",
        "Train / rollout gap": "Of one token, in the worst case; rounding, while both have one policy.",
        "Response length": "Longest, and the lengths that half and nine tenths of the responses stay under.",
        "Memory": "Of the driver and all processes it started, what they share counted once.",
        "Groups not trained on": "Dropped: by rollout.filter, or too few rewards. Wasted: aborted, or too stale.",
        "Time per step": "Of controller 0: what it waits in, one phase after another.",
    }
)


def charts(rows: Sequence[Row], *, offline: bool) -> Markup:
    """Charts of what there is: a quantity that was never measured, or is 0 throughout, has none."""
    updates = [row for row in rows if row["step"] > 0]
    phases = list(dict.fromkeys(name for row in updates for name in row["phases"]))[:6]
    layers = {name: [(row["step"], row["phases"].get(name) or 0.0) for row in updates] for name in phases}
    accuracies = [measured(rows, name, f"accuracy_{name}") for name in ("greedy", "sampled")]
    trained = Series(name="trained", points=points_of(updates, "pair_accuracy"))
    pairs = [trained, measured(rows, "held-out", "held_out_pair_accuracy")]
    drawn = [
        line_chart("Accuracy on held-out prompts", "share of responses; bands hold 95 %", accuracies, share=True),
        line_chart("Pairs in the right order", "share of pairs; bands hold 95 %", pairs, share=True),
        Markup() if offline else _reward_chart(updates),
        *_parts_charts(updates),
        stacked_chart("Time per step", "seconds", layers, OF_SPAN, NOTES["Time per step"]),
        _lengths_chart(updates),
    ]
    for title, unit, lines, zero in (*CURVES, *_others(updates)):
        series = [
            Series(name=name, points=points_of(told, key), keep="max" if key in LARGEST else "mean")
            for name, key in lines.items()
            for told in [rows if key == "held_out_loss" else updates]
            if any(row.get(key) for row in told)
        ]
        drawn.append(line_chart(title, unit, series, zero=zero, note=NOTES.get(title, ""), named=len(lines) > 1))
    return render("charts.html", charts=drawn)


def _others(rows: Sequence[Row]) -> Iterator[Curve]:
    """Numbers that only some algorithms have, and no chart shows yet."""
    shown = {"pair_accuracy", *SHARES.values(), *(key for _, _, lines, _ in CURVES for key in lines.values())}
    shown |= first_row(None, controllers=0).keys()
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    for name in names:
        if name not in shown:
            yield name.replace("_", " ").capitalize(), "mean", {"value": name}, ANYWHERE


def _reward_chart(rows: Sequence[Row]) -> Markup:
    rows = [row for row in rows if row.get("reward_mean") is not None and row.get("reward_std") is not None]
    band = [(row["reward_mean"] - row["reward_std"], row["reward_mean"] + row["reward_std"]) for row in rows]
    series = Series(name="mean", points=points_of(rows, "reward_mean"), band=band)
    return line_chart("Reward, and one standard deviation", "reward", [series])


def _parts_charts(rows: Sequence[Row]) -> Iterator[Markup]:
    """The rewards that make up the sum, and what they tell beside their value: names with a dot."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("parts") or {}))
    for title, dotted in (("Parts of the reward", False), ("Details of the reward", True)):
        series = [
            Series(name=n, points=[(r["step"], r["parts"][n]) for r in rows if r["parts"].get(n) is not None])
            for n in [name for name in names if ("." in name) == dotted][:6]
        ]
        yield line_chart(title, "mean over responses", series, zero=True)


def _lengths_chart(rows: Sequence[Row]) -> Markup:
    """The share of responses shorter than each length: in the first, the middle and the last step."""
    rows = [row for row in rows if row.get("response_lengths")]
    series = []
    for row in [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else ():
        smallest, counts = zip(*row["response_lengths"], strict=True)
        shares = [below / sum(counts) for below in accumulate(counts, initial=0)]
        points = list(zip((*smallest, row["longest_response"] + 1), shares, strict=True))
        series.append(Series(name=f"step {row['step']}", points=points))
    return line_chart("Responses by length", "share of responses shorter than", series, share=True, along="tokens")
