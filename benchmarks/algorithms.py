"""Families of algorithms on the quickstart's sums, from the same start: how many held-out sums are right at the end.

    python -m benchmarks.algorithms [--seeds 0,1,2] [--algorithms grpo,ppo] [--json]

Of each seed: a policy (sft), preferences and a reward model, made first; then each algorithm from that policy. All are
measured alike, by plain `generate` on the exported model. What is done is kept under runs/bench-algorithms, so that a
rerun goes on where this one stopped; a run whose settings or inputs changed is made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import main, significant

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "preference"))
import check

ROOT = Path("runs/bench-algorithms")
SEEDS = "0,1,2"
SFT, REWARD = "sft", "reward_model"
GRPO = "examples/quickstart/grpo.yaml"
ALGORITHMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo": (GRPO, ()),
    "rloo": (GRPO, ("algorithm.name=rloo",)),
    "reinforce_plus_plus": (GRPO, ("algorithm.name=reinforce_plus_plus",)),
    "gspo": (
        GRPO,
        ("algorithm.name=gspo", "algorithm.clip_low=0.02", "algorithm.clip_high=0.03", "train.updates_per_step=2"),
    ),
    "ppo": ("examples/chain/ppo.yaml", ()),
    "dpo": ("examples/preference/dpo.yaml", ()),
    "kto": ("examples/preference/kto.yaml", ()),
}
"""The settings of each, and what differs from them. Its model and data are the seed's own."""


class Bench(NamedTuple):
    """One seed's folder."""

    seed: int
    folder: Path
    quick: bool

    def prepare(self) -> dict[str, Any]:
        """What all algorithms start from; returns what the policy and the reward model are worth."""
        check.pairs.sums.prepare(self.seed, self.folder / "work")
        sft = self.run(SFT, "examples/chain/sft.yaml")
        if check.pairs.prepare(self.seed, self.folder / SFT / "model", self.folder / "work", self.folder / "pairs"):
            say(f"seed {self.seed}: pairs")
        return {SFT: sft, REWARD: self.run(REWARD, "examples/chain/reward_model.yaml")}

    def run(self, name: str, settings: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """What came of the run `name`. It is made now where nothing is kept, or something made otherwise."""
        quick = self.quick and name in ALGORITHMS  # what they start from must have learnt something
        label = f"{name}-quick" if quick else name
        kept, run = self.folder / f"{label}.json", self.folder / label
        paths = self._paths(name)
        words = [*overrides, *(f"{setting}={path}" for setting, path in paths.items())]
        words += ["evaluate.path=null"] if "evaluate.path" not in paths else []
        words += ["train.steps=4"] * quick
        read = [path / "model.safetensors" if path.is_dir() else path for path in paths.values()]
        made_from = hashlib.sha256(b"".join(map(Path.read_bytes, [Path(settings), *read])) + " ".join(words).encode())
        if kept.exists() and (result := json.loads(kept.read_text())).pop("made_from") == made_from.hexdigest():
            return result
        say(f"seed {self.seed}: {label} ...")
        shutil.rmtree(run, ignore_errors=True)
        started = time.monotonic()
        own = [f"run.seed={self.seed}", f"run.dir={self.folder}", f"run.name={label}", "checkpoint.export=true"]
        command = [sys.executable, "-m", "yatt", "train", settings, *words, *own]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} of seed {self.seed} ended with status {done.returncode}: {done.stderr[-800:]}")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        result = {"steps": last["step"], "seconds": significant(time.monotonic() - started)}
        result |= {"pair_accuracy": last["evaluation"]["pair_accuracy"]} if name == REWARD else self._accuracy(run)
        kept.write_text(json.dumps(result | {"made_from": made_from.hexdigest()}) + "\n")
        say(f"seed {self.seed}: {label} " + ", ".join(f"{key} {value}" for key, value in result.items()))
        return result

    def _paths(self, name: str) -> dict[str, Path]:
        """What the run reads, by setting."""
        work, pairs, policy = self.folder / "work", self.folder / "pairs", self.folder / SFT / "model"
        match name:
            case "sft":
                return {"model.path": work / "model", "data.path": work / "demonstrations.jsonl"}
            case "reward_model" | "dpo" | "kto":
                rows = "labels" if name == "kto" else "pairs"
                held_out = {"evaluate.path": pairs / f"{rows}_eval.jsonl"}
                return {"model.path": policy, "data.path": pairs / f"{rows}.jsonl"} | held_out
            case "ppo":
                reward = self.folder / REWARD / "model"
                scored = {"critic.path": reward, "reward.models.preference.path": reward}
                return {"model.path": policy, "data.path": work / "train.jsonl"} | scored
            case _:
                return {"model.path": policy, "data.path": work / "train.jsonl"}

    def _accuracy(self, run: Path) -> dict[str, float]:
        """Shares of held-out sums that the run's model gets right."""
        rows = [json.loads(line) for line in (self.folder / "work" / "eval.jsonl").read_text().splitlines()]
        found = check.check(run / "model", rows[:8] if self.quick else rows)
        return {mode: round(found[f"right, {mode}"], 4) for mode in check.MODES}


def say(text: str) -> None:
    """To the terminal; the result alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(quick: bool, seeds: str | None, algorithms: str | None) -> dict[str, Any]:
    names = (algorithms or ",".join(ALGORITHMS)).split(",")
    if unknown := set(names) - ALGORITHMS.keys():
        sys.exit(f"no algorithm {', '.join(sorted(unknown))} here; there are {', '.join(ALGORITHMS)}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (SFT, REWARD, *names)}
    numbers = [int(seed) for seed in (seeds or ("0" if quick else SEEDS)).split(",")]
    for seed in numbers:
        bench = Bench(seed, ROOT / f"seed-{seed}", quick)
        bench.folder.mkdir(parents=True, exist_ok=True)
        for name, result in bench.prepare().items():
            found[name].append(result)
        for name in names:
            found[name].append(bench.run(name, *ALGORITHMS[name]))
    pair_accuracy = [result["pair_accuracy"] for result in found.pop(REWARD)]
    about = {"prompts": 200, "seeds": numbers, "reward_model_pair_accuracy": list(map(significant, pair_accuracy))}
    return about | {"results": [row(name, results) for name, results in found.items()]}


def row(name: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One algorithm's line: each seed's accuracy, the median and the least."""
    greedy, sampled = ([result[mode] for result in results] for mode in check.MODES)
    return {
        "algorithm": name,
        "steps": results[0]["steps"],
        "greedy": greedy,
        "greedy_median": statistics.median(greedy),
        "greedy_least": min(greedy),
        "sampled": sampled,
        "sampled_median": statistics.median(sampled),
        "seconds": [result["seconds"] for result in results],
    }


if __name__ == "__main__":
    main("algorithms", measure, flags={"seeds": str, "algorithms": str})
