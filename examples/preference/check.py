"""How many held-out sums does a model get right? Greedily, and sampled at temperature 1, by plain `generate`.

python examples/preference/check.py runs/chain-sft/model runs/preference-dpo/model runs/preference-kto/model
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chain"))
import pairs

MODELS = ("runs/chain-sft/model", "runs/preference-dpo/model", "runs/preference-kto/model")
HELD_OUT = pairs.sums.WORK / "eval.jsonl"
MODES = {"greedy": {"samples": 1, "temperature": 0.0}, "sampled": {"samples": 4, "temperature": 1.0}}
NAMES = {"right": "reward", "worked": "worked"}


def check(folder: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Shares of right and of worked responses, greedy and sampled."""
    prompts, found = [row["prompt"] for row in rows], {}
    for mode, how in MODES.items():
        drawn = zip(rows, pairs.draw(folder, prompts, seed=0, **how), strict=True)
        scores = [pairs.reward.addition("", text, row["answer"], {}) for row, texts in drawn for text in texts]
        found |= {f"{name}, {mode}": sum(s[key] for s in scores) / len(scores) for name, key in NAMES.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, default=[Path(m) for m in MODELS if Path(m).is_dir()])
    parser.add_argument("--data", type=Path, default=HELD_OUT)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    found = {str(folder): check(folder, rows) for folder in options.models}
    table = Table(title=f"{len(rows)} held-out sums", title_justify="left")
    for name in ("", *found):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for measure in next(iter(found.values()), {}):
        table.add_row(measure, *(f"{numbers[measure]:.1%}" for numbers in found.values()))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
