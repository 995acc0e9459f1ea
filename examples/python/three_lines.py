"""Train a tiny model from Python in three lines; model and sums are the quickstart's, made where they are absent.

    python examples/python/three_lines.py

There is no `if __name__ == "__main__"`: nothing imports this script again.
"""

import subprocess
import sys
from pathlib import Path

import yatt

QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart"
MODEL, DATA = QUICKSTART / "work" / "model", QUICKSTART / "work" / "train.jsonl"
if not MODEL.is_dir():
    subprocess.run([sys.executable, QUICKSTART / "prepare.py"], check=True)


def reward(response: str) -> float:
    """The share of digits: an untrained model learns it in a few steps."""
    return sum(character.isdigit() for character in response) / max(1, len(response))


run = yatt.train(model=MODEL, data=DATA, reward=reward, steps=4, learning_rate=3e-3, name="three-lines", overwrite=True)
print(*(f"step {row['step']}: reward {row['reward_mean']:.3f}" for row in run.metrics), sep="\n")
print(run.samples()[-1]["response"])
