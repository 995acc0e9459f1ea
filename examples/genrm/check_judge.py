"""How good is the judge? Its verdicts, written greedily, on held-out responses.

    python examples/genrm/check_judge.py                                  # runs/genrm-judge/model

Balanced accuracy is the mean of two shares: of right responses called right, and of wrong ones called wrong. A judge
that says the same of all has 50 %. Measured after `run.py --models-only --seed 2`, on 2 CPU cores, 2026-11-22: 98.8 %.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import judge
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path("runs/genrm-judge/model")
MOST_TOKENS = 48
BATCH = 250


def verdicts(folder: Path, texts: Sequence[str]) -> Iterator[bool | None]:
    """What the judge in `folder` says of each text, in order: right, wrong, or nothing (None)."""
    words = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for start in range(0, len(texts), BATCH):
        read = words(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            written = model.generate(**read, max_new_tokens=MOST_TOKENS, do_sample=False)
        for text in words.batch_decode(written[:, read["input_ids"].shape[1] :]):
            found = re.findall(f"{judge.RIGHT}|{judge.WRONG}", text)
            yield found[-1] == judge.RIGHT if found else None


def balanced_accuracy(right: Sequence[bool], said: Sequence[bool | None]) -> float:
    """The mean over right and wrong responses of the share that was called so; no verdict is a mistake."""
    shares = [
        sum(s is truth for r, s in zip(right, said, strict=True) if r is truth) / list(right).count(truth)
        for truth in (True, False)
    ]
    return sum(shares) / 2


def check(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Balanced accuracy, the share of right ones called right, of wrong ones called wrong, and of no verdict."""
    said = list(verdicts(folder, [row["prompt"] for row in rows]))
    right = [row["right"] for row in rows]
    of = {truth: [s for r, s in zip(right, said, strict=True) if r is truth] for truth in (True, False)}
    return {
        "balanced accuracy": balanced_accuracy(right, said),
        "right ones called right": of[True].count(True) / len(of[True]),
        "wrong ones called wrong": of[False].count(False) / len(of[False]),
        "no verdict": said.count(None) / len(said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=judge.WORK / "judge_eval.jsonl")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    for name, value in check(options.model, rows).items():
        print(f"{name:26}{value:7.1%}")


if __name__ == "__main__":
    main()
