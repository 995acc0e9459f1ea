"""Make what the chain learns from: the quickstart's sums, and preferences between answers that a policy gave to them.

    python examples/chain/pairs.py --seed 0

Right and wrong answers are both drawn from the policy of sft.yaml, so that nothing tells them apart but what they say.
Where runs/chain-sft/model is not there yet, a policy of this file's own is taught first, by the same settings: then the
three commands of the chain can follow. The same seed makes the same files. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "quickstart"))
import prepare as sums  # noqa: E402 (the quickstart's: the same sums, characters and model)
import reward  # noqa: E402
import run as quickstart  # noqa: E402

WORK = HERE / "work"
POLICY = Path("runs/chain-sft/model")
RESPONSES = 8
TEMPERATURE = 1.3  # hotter than a policy answers in training: so it errs with its work shown, too
MOST_TOKENS = 40
BATCH = 200  # prompts
HELD_OUT = 400
"""Prompts whose pairs and labels nobody learns from."""
PAIRS = 2
LABELLED = 3
"""Of one prompt: at most so many pairs, and so many labelled responses."""


def draw(folder: Path, prompts: Sequence[str], *, samples: int, temperature: float, seed: int) -> Iterator[list[str]]:
    """What the model in `folder` answers to each prompt, so many times; at temperature 0, greedily."""
    words = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    sampling = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    how = (sampling if temperature else dict(do_sample=False)) | dict(num_return_sequences=samples)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), BATCH):
            some = list(prompts[start : start + BATCH])
            read = words(some, return_tensors="pt", padding=True, return_token_type_ids=False)
            written = model.generate(**read, max_new_tokens=MOST_TOKENS, **how)[:, read["input_ids"].shape[1] :]
            texts = words.batch_decode(written, skip_special_tokens=True)
            yield from (texts[i : i + samples] for i in range(0, len(texts), samples))


def judged(row: Mapping[str, str], responses: Sequence[str]) -> list[dict[str, Any]]:
    """Each response to the row's prompt, once: whether it is right, and whether it shows its work."""
    found = []
    for text in dict.fromkeys(responses):
        score = reward.addition(row["prompt"], text, row["answer"], {})
        found.append({"response": text, "right": score["reward"] == 1.0, "worked": score["worked"] == 1.0})
    return [answer for answer in found if answer["response"]]


def pairs(prompt: str, answers: Sequence[Mapping[str, Any]], choice: random.Random) -> list[dict[str, Any]]:
    """A right answer beside a wrong one, PAIRS times where there are so many. Those that are `alike`, both with their
    work or both bare, come first: the others would teach no more than to prefer one style."""
    both = [
        {"prompt": prompt, "chosen": r["response"], "rejected": w["response"], "alike": r["worked"] == w["worked"]}
        for r in answers
        for w in answers
        if r["right"] and not w["right"]
    ]
    choice.shuffle(both)
    return sorted(both, key=lambda pair: not pair["alike"])[:PAIRS]


def labels(prompt: str, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first few answers as they come, each with whether it is right."""
    return [{"prompt": prompt, "response": a["response"], "label": a["right"]} for a in answers[:LABELLED]]


def rows(questions: Sequence[Mapping[str, str]], drawn: Iterator[list[str]], seed: int) -> dict[str, list[Any]]:
    """Every file's rows, by file name. The first HELD_OUT prompts are in none of the files that are learnt from."""
    choice = random.Random(seed)
    names = ("pairs.jsonl", "labels.jsonl", "pairs_eval.jsonl", "labels_eval.jsonl")
    files: dict[str, list[Any]] = {name: [] for name in names}
    for number, (row, responses) in enumerate(zip(questions, drawn, strict=True)):
        answers, held_out = judged(row, responses), "_eval" if number < HELD_OUT else ""
        files[f"pairs{held_out}.jsonl"] += pairs(row["prompt"], answers, choice)
        files[f"labels{held_out}.jsonl"] += labels(row["prompt"], answers)
    return files


def prepare(seed: int, policy: Path | None = None, asked: Path = sums.WORK, out: Path = WORK) -> bool:
    """Write everything under `out` from what `policy` answers to the prompts in the folder `asked`, or one taught for
    it; False when it was there already, made by these files from the same seed."""
    stamp = out / "stamp.json"
    sources = (Path(__file__), Path(sums.__file__), Path(reward.__file__), HERE / "sft.yaml")
    recipe = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    identity = json.dumps({"seed": seed, "recipe": recipe}) + "\n"
    if stamp.exists() and stamp.read_text() == identity:
        return False
    out.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    questions = [json.loads(line) for line in (asked / "train.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in questions]
    drawn = draw(policy or teach(seed), prompts, samples=RESPONSES, temperature=TEMPERATURE, seed=seed)
    for name, lines in rows(questions, drawn, seed).items():
        sums.write_jsonl(out / name, lines)
    stamp.write_text(identity)  # last: a half-written folder has no stamp
    return True


def teach(seed: int) -> Path:
    """The folder of a policy of sft.yaml: the chain's where that has been trained, else one of this file's own."""
    if POLICY.is_dir():
        return POLICY
    own = WORK / "sft"
    shutil.rmtree(own, ignore_errors=True)
    settings = (f"run.dir={quickstart.relative(WORK)}", "run.name=sft", f"run.seed={seed}")
    quickstart.yatt("train", quickstart.relative(HERE / "sft.yaml"), *settings)
    return own / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(quickstart.ROOT)  # runs/ is there
    made = sums.prepare(options.seed)
    made = prepare(options.seed) or made
    print(f"{'made' if made else 'already there'}: {quickstart.relative(WORK)}")


if __name__ == "__main__":
    main()
