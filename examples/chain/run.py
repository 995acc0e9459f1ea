"""The quickstart's sums through the whole chain: SFT, preferences, a reward model, PPO with a critic.

python examples/chain/run.py --seed 0 --controllers 2

The reward model learns from pairs alone, and PPO from the reward model alone. Whether answers are right is only
recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pairs
import prepare  # the quickstart's, as `run` is: `pairs` puts its folder first
import run as quickstart
import torch
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from yatt.faces.rundir import RunDirectory

SFT, REWARD, PPO = RunDirectory("runs/chain-sft"), RunDirectory("runs/chain-reward"), RunDirectory("runs/chain")
SHOWN = 10
MEASURES = (("right", "truth", ".1%"), ("worked", "worked", ".1%"), ("learned reward", "preference", "+.2f"))
"""What is shown of an evaluation: its name, the part of the reward, and how it is written."""
console = quickstart.console


def models(seed: int) -> list[tuple[str, float]]:
    """Policy, preferences and reward model, where they are not there yet from this seed; how long each took."""
    started = time.monotonic()
    prepare.prepare(seed)
    how = "SFT on the quickstart's demonstrations"
    quickstart.teach(SFT, pairs.HERE / "sft.yaml", prepare.WORK, seed, "1/4 Policy", how)
    taught = time.monotonic()
    how = "made" if pairs.prepare(seed, SFT.path / "model") else "already there"
    console.print(f"[bold]2/4 Preferences:[/] {how}, {quickstart.relative(pairs.WORK)}")
    preferred = time.monotonic()
    how = "which of two of the policy's answers is right?"
    quickstart.teach(REWARD, pairs.HERE / "reward_model.yaml", pairs.WORK, seed, "3/4 Reward model", how)
    show_pairs(REWARD.path / "model", pairs.WORK / "pairs_eval.jsonl")
    return [
        ("policy (sft)", taught - started),
        ("preferences", preferred - taught),
        ("reward model", time.monotonic() - preferred),
    ]


def show_pairs(folder: Path, held_out: Path) -> None:
    """How many held-out pairs the reward model puts in the right order, by how they differ."""
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    chosen, rejected = (scores(folder, [row["prompt"] + row[side] for row in rows]) for side in ("chosen", "rejected"))
    right = [c > r for c, r in zip(chosen, rejected, strict=True)]
    for name, alike in (("of one style", True), ("of two styles", False)):
        some = [ahead for ahead, row in zip(right, rows, strict=True) if row["alike"] is alike]
        console.print(f"    {len(some)} held-out pairs {name}: {mean(some):.1%} in the right order")


def scores(folder: Path, texts: Sequence[str]) -> list[float]:
    """What the reward model in `folder` gives each text, with its end token, as transformers reads it."""
    words = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ended = [text + words.eos_token for text in texts]
    with torch.inference_mode():
        return (
            model(**words(ended, return_tensors="pt", padding=True, return_token_type_ids=False)).logits[:, 0].tolist()
        )


def reinforce(seed: int, controllers: int) -> None:
    """PPO under the reward model, anew each time."""
    console.print("[bold]4/4 PPO:[/] the reward model's score is the reward; the truth is only recorded")
    shutil.rmtree(PPO.path, ignore_errors=True)
    settings = (f"run.seed={seed}", f"cluster.controllers={controllers}")
    quickstart.yatt("train", quickstart.relative(pairs.HERE / "ppo.yaml"), *settings)


def show_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    """The learned reward beside the truth, over the steps; each line is the mean of its steps."""
    steps = [row for row in rows if row["responses"]]
    table = Table(title="Responses drawn in training", title_justify="left")
    for name in ("steps", "learned reward", "right", "worked", "explained by the critic"):
        table.add_column(name, justify="right")
    size = max(1, -(-len(steps) // SHOWN))
    for start in range(0, len(steps), size):
        some = steps[start : start + size]
        score, *shares = (mean([row["parts"][part] for row in some]) for part in ("preference", "truth", "worked"))
        explained = mean([row["explained_variance"] for row in some])
        cells = (f"{score:+.2f}", *(f"{share:.1%}" for share in shares), f"{max(0.0, explained):.0%}")
        table.add_row(f"{some[0]['step']}-{some[-1]['step']}", *cells)
    console.print(table)


def show_evaluations(rows: Sequence[Mapping[str, Any]]) -> None:
    """Held-out sums before and after PPO."""
    quickstart.show_parts(PPO, rows, MEASURES, "before PPO")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--models-only", action="store_true", help="stop before PPO")
    options = parser.parse_args()
    os.chdir(quickstart.ROOT)  # runs/ is there
    stages = models(options.seed)
    if options.models_only:
        return
    started = time.monotonic()
    reinforce(options.seed, options.controllers)
    rows = PPO.read_metrics()
    show_steps(rows)
    show_evaluations(rows)
    quickstart.show_stages([*stages, ("ppo", time.monotonic() - started)])
    console.print(f"Report      {PPO.report}")


if __name__ == "__main__":
    main()
