"""Make what the judge starts from: a tiny untrained model with its own tokenizer, and sums to learn judging from.

    python examples/genrm/judge.py --seed 0 --out examples/genrm/work

The judge reads a response and then its question, and derives the sum column by column, comparing as it goes. The same
seed makes the same files. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "quickstart"))
import prepare as sums  # noqa: E402 (the quickstart's: the same sums, characters and shape of model)

WORK = HERE / "work"
RIGHT, WRONG = "<correct>", "<wrong>"
LESSONS = 30_000
HELD_OUT = 1_000
WORKED_SHARE, CARELESS_SHARE, MISPRINTED_SHARE = 0.4, 0.8, 0.1
SLIPS = {"near": 0.37, "digit": 0.25, "carry": 0.20, "swap": 0.05, "length": 0.07, "malformed": 0.06}
"""How wrong responses are wrong, with the share of each among them."""


def asked(question: str, response: str) -> str:
    """What the judge reads, as the template of dynamic.yaml puts it. The question comes last: so its digits, and those
    of the answer before it, always stand equally far from the judgement."""
    return f"{response}?{question}"


def judgement(a: int, b: int, answer: str) -> str:
    """What the judge is to write of `answer`: each column's sum beside the digit that the answer has there, `/` between
    them where they differ, then the verdict. The last column is compared with all digits that are left.

    >>> judgement(583, 767, "1350")
    '<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13 13</think><correct>'
    """
    shown = (answer[-1:], answer[-2:-1], answer[:-2])
    columns = []
    for place, (column, digits) in enumerate(zip(sums.work(a, b).split(","), shown, strict=True)):
        total = column.rpartition("=")[2]
        expected = total if place == 2 else total[-1]
        columns.append(f"{column}{' ' if digits == expected else '/'}{digits}")
    verdict = RIGHT if answer == str(a + b) else WRONG
    return f"<think>{','.join(columns)}</think>{verdict}"


def slip(draw: random.Random, a: int, b: int, kind: str) -> str:
    """A wrong answer to a + b, of a kind of SLIPS; one a little off where the sum has none of that kind."""
    digits = str(a + b)
    at = draw.randrange(len(digits))
    match kind:
        case "digit":
            answer = digits[:at] + draw.choice("0123456789") + digits[at + 1 :]
        case "carry":
            answer = str(a + b + draw.choice((-1, 1)) * draw.choice((10, 100, 110, 1000)))
        case "swap":
            answer = digits[: at - 1] + digits[at] + digits[at - 1] + digits[at + 1 :] if at else digits
        case "length":
            answer = digits[:at] + draw.choice(("", digits[at] + draw.choice("0123456789"))) + digits[at + 1 :]
        case _:
            answer = digits
    while answer == digits or not answer.isdigit():
        answer = str(a + b + draw.randint(-60, 60))
    return answer


def malformed(draw: random.Random, response: str, answer: str) -> str:
    """A response without one answer at its end: cut off, without a tag, or with something after the answer."""
    end = f"<answer>{answer}</answer>"
    return draw.choice(
        (
            response.removesuffix(f"{answer[draw.randrange(len(answer)) :]}</answer>"),
            response.replace(end, answer),
            response.replace(end, "<answer></answer>"),
            response + draw.choice("0123456789,=+"),
            response + end,
        )
    )


def careless(draw: random.Random, a: int, b: int) -> tuple[str, str]:
    """Work with a slip in one column, in its sum, in a digit copied or in the carry, and the answer that follows."""
    slipping, kind = draw.randrange(3), draw.choice(("sum", "copy", "carry"))
    columns, answer, carry = [], "", 0
    for place in range(3):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        if place == slipping:
            x = draw.randrange(10) if kind == "copy" else x
            carry = 1 - carry if kind == "carry" else carry
            total = max(0, x + y + carry + (draw.choice((-2, -1, 1, 2)) if kind == "sum" else 0))
        columns.append(f"{x}+{y}+{carry}={total}")
        answer = f"{total if place == 2 else total % 10}{answer}"
        carry = total // 10
    return ",".join(columns), answer


def misprint(draw: random.Random, work: str) -> str:
    """The same work with one digit drawn anew."""
    at = draw.choice([i for i, character in enumerate(work) if character.isdigit()])
    return work[:at] + draw.choice("0123456789") + work[at + 1 :]


def lesson(draw: random.Random, a: int, b: int) -> dict[str, Any]:
    """A question, a response as the policy might write it, what the judge is to write of it, and whether it is right.
    About half of all are right. Only the answer counts, but wrong work often leads to it: the judge must not copy."""
    right, worked = draw.random() < 0.5, draw.random() < WORKED_SHARE
    work, answer, kind = sums.work(a, b), str(a + b), "right"
    if not right and worked and draw.random() < CARELESS_SHARE:
        work, answer = careless(draw, a, b)
    elif not right:
        kind = draw.choices(list(SLIPS), list(SLIPS.values()))[0]
        answer = slip(draw, a, b, kind)
    elif draw.random() < MISPRINTED_SHARE:
        work = misprint(draw, work)
    response, written = f"<think>{work}</think>" * worked + f"<answer>{answer}</answer>", judgement(a, b, answer)
    if kind == "malformed":
        response, written = malformed(draw, response, answer), WRONG
    return {"prompt": asked(sums.prompt(a, b), response), "response": written, "right": written.endswith(RIGHT)}


def lessons(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows to learn from and held-out rows, by file name. No two share a pair of numbers, nor do the policy's."""
    used = sums.EVAL_PROMPTS + sums.TRAIN_PROMPTS + sums.DEMONSTRATIONS
    drawn = sums.pairs(seed, used + HELD_OUT + LESSONS)[used:]
    draw = random.Random(seed)
    rows = [lesson(draw, a, b) for a, b in drawn]
    return {"judge_eval.jsonl": rows[:HELD_OUT], "judge.jsonl": rows[HELD_OUT:]}


def tokenizer() -> PreTrainedTokenizerFast:
    """The quickstart's, with the two verdicts: 66 tokens in all."""
    words = sums.tokenizer()
    words.add_tokens([AddedToken(verdict, special=False, normalized=False) for verdict in (RIGHT, WRONG)])
    return words


def prepare(seed: int, out: Path = WORK) -> bool:
    """Write everything under `out`; False when it was there already, made by these files from the same seed."""
    stamp = out / "stamp.json"
    recipe = hashlib.sha256(Path(__file__).read_bytes() + Path(sums.__file__).read_bytes()).hexdigest()
    identity = json.dumps({"seed": seed, "recipe": recipe}) + "\n"
    if stamp.exists() and stamp.read_text() == identity:
        return False
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = tokenizer()
    words.save_pretrained(out / "model")
    sums.model(seed, words).save_pretrained(out / "model")
    for name, lines in lessons(seed).items():
        sums.write_jsonl(out / name, lines)
    stamp.write_text(identity)  # last: a half-written folder has no stamp
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WORK)
    options = parser.parse_args()
    made = prepare(options.seed, options.out)
    print(f"{'made' if made else 'already there'}: {options.out}")


if __name__ == "__main__":
    main()
