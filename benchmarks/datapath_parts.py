"""What the data path is measured with: rows on disk, and engines, ranks, a reward and a tokenizer that take no time.

An engine makes T tokens and logprobs per request and looks at its image; a rank adds up its samples and looks at
theirs. All three sides of the benchmark are given the same work.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from yatt.cluster.backends import Backends
from yatt.config.schema import Config, RewardConfig, RolloutConfig
from yatt.reports import UpdateReport
from yatt.types import Completion, Pulse, Request, Sample, SampleKey, Score, Share, Span, Trajectory, WeightManifest

PROMPT = 64
"""Tokens of a prompt."""
IMAGE = 90
"""The token of an image. Those of a response are counted up from a number of three digits."""
SEEN = "<seen>"
PAGE = 4096
HERE = "benchmarks.datapath_parts"
BACKENDS = Backends(
    generator=f"{HERE}:Engine", trainer=f"{HERE}:Rank", scorer=f"{HERE}:Reward", tokenizer=f"{HERE}:Tokenizer"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a step is. `tokens` are those of a response; there are as many ranks as engines: `workers`."""

    prompts: int
    responses: int = 8
    tokens: int = 512
    image_bytes: int = 0
    controllers: int = 4
    workers: int = 2
    image: Literal["random", "real"] = "random"
    """Bytes that nobody decodes, `image_bytes` of them for each prompt; or JPEG files (`datapath_real`)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def lay_out(folder: Path, size: Size) -> None:
    """A model folder of hardly any weights, and rows with an image each, where there are images."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 96, "max_position_embeddings": 1 << 20}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]} | sizes))
    rows = np.zeros((96, 64), dtype=np.float32)
    save_file({"model.embed_tokens.weight": rows, "lm_head.weight": rows}, folder / "model" / "model.safetensors")
    random = np.random.default_rng(0)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as out:
        for number in range(size.prompts):
            row = {"prompt": f"prompt {number}"}
            if size.image_bytes:
                row["image"] = str(folder / f"{number}.image")
                random.integers(0, 256, size.image_bytes, dtype=np.uint8).tofile(row["image"])
            out.write(json.dumps(row) + "\n")


def settings(folder: Path, size: Size) -> Config:
    """The run's settings: every row is drawn in every step, and groups stay whole on one engine."""
    real = size.image == "real"
    length = PROMPT + size.tokens + 2048 * real
    return Config.model_validate(
        {
            "run": {"name": "run", "dir": str(folder)},
            "model": {"path": str(folder / "model"), "context_length": length},
            "data": {"path": str(folder / "rows.jsonl"), "media_key": "image" if size.image_bytes or real else None},
            "rollout": {
                "n": size.responses,
                "max_tokens": size.tokens,
                "sleep": False,
                "engine_args": {"max_num_seqs": size.prompts * size.responses},
            },
            "reward": {"function": "exact_match"},
            "train": {"steps": 1000, "batch_size": size.prompts, "tokens_per_micro_batch": max(16384, length)},
            "cluster": {"slots": size.workers, "controllers": size.controllers, "device": "cpu", "threads": 1},
            "log": {"trackers": [], "samples": 0},
        }
    )


def look(image: np.ndarray) -> int:
    """Touch every page."""
    return int(image[::PAGE].sum())


class Engine:
    """A generator that answers at once."""

    def __init__(self, config: RolloutConfig, **_: Any) -> None:
        self._tokens = config.max_tokens
        self._version = 0

    async def start(self) -> None: ...

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        yield [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Completion:
        seen = sum(look(image.handle) for image in request.media)
        first = (request.seed + seen) % 1000
        tokens = np.arange(first, first + self._tokens, dtype=np.int32)
        return Completion(
            key=request.key,
            tokens=tokens,
            rollout_logprobs=np.full(self._tokens, -0.5, dtype=np.float32),
            spans=(Span(start=0, stop=self._tokens, version=self._version),),
            finish="length",
        )

    async def abort(self, keys: Sequence[SampleKey]) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def load(self, manifest: WeightManifest) -> int:
        self._version = manifest.version
        return self._version

    async def sleep(self) -> int:
        return 0

    async def wake(self) -> None: ...

    async def pulse(self) -> Pulse:
        return Pulse(running=0, tokens=0)

    async def close(self) -> None: ...


class Rank:
    """A trainer rank that adds up what it is given: the loss is the sum of all it saw."""

    def __init__(self, config: Config, *, rank: int, world_size: int, **_: Any) -> None:
        self.dp_rank, self.dp_size = rank, world_size

    def start(self) -> None: ...

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        samples = [s for share in shares for update in share.updates for micro in update for s in micro]
        tokens = sum(s.trained_tokens for s in samples)
        return UpdateReport(loss=float(self.total(samples)), grad_norm=0.0, learning_rate=0.0, trained_tokens=tokens)

    @staticmethod
    def total(samples: Sequence[Sample]) -> float:
        total = 0.0
        for s in samples:
            total += int(s.tokens.sum()) + float(s.rollout_logprobs.sum()) + int(s.loss_mask.sum()) + s.advantage
            total += sum(look(image.handle) for image in s.media)
        return total

    def export(self) -> Iterator[Any]:
        return iter(())

    def probe(self) -> None: ...

    def offload(self) -> None: ...

    def onload(self) -> None: ...

    def close(self) -> None: ...


class Reward:
    """Judges by the last token."""

    def __init__(self, config: RewardConfig, engines: Any = None, **_: Any) -> None: ...

    async def start(self) -> None: ...

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        return [Score(status="ok", value=float(t.tokens[-1] % 7)) for t in trajectories]

    async def close(self) -> None: ...


class Tokenizer:
    """Every text has PROMPT tokens, one of them an image's where it says so, and all tokens have no text."""

    chat_template = None
    eos_token_id = 1
    pad_token_id = 0
    name_or_path = ""

    def __init__(self, path: str) -> None: ...

    def __call__(self, text: str, **options: bool) -> dict[str, Any]:
        tokens = np.arange(PROMPT, dtype=np.int32)
        tokens[1 : 1 + text.count(SEEN)] = IMAGE
        return {"input_ids": tokens, "special_tokens_mask": np.zeros(PROMPT, dtype=np.int8)}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return SEEN if ids == IMAGE else [SEEN] * (IMAGE in ids) + [""]

    def decode(self, tokens: Sequence[int], **options: bool) -> str:
        return ""
