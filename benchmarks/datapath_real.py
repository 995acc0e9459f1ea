"""The data path with images that are decoded: JPEG files of 1280 x 960, engines and ranks that make the patches of
Qwen3-VL from them, and as a control one process that makes them and ships them, as is usual.

An engine double makes the patches of each distinct image once between two loads of weights, as engines keep what their
tower made; a rank double those of each image that its samples of one update have. Both count.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from benchmarks.datapath_central import Central
from benchmarks.datapath_parts import IMAGE, PROMPT, Engine, Rank, Size, look
from yatt.cluster.backends import Backends
from yatt.config.schema import Config, RolloutConfig
from yatt.reports import UpdateReport
from yatt.types import Completion, Media, Prompt, Request, Sample, SampleKey, Share, WeightManifest
from yatt.vision.images import ImageReader

HERE = "benchmarks.datapath_real"
WIDTH, HEIGHT = 1280, 960
PATCH, MERGE = 16, 2
TOKENS = WIDTH * HEIGHT // (PATCH * MERGE) ** 2
"""Tokens of an image."""
REAL = Backends(
    generator=f"{HERE}:SeeingEngine",
    trainer=f"{HERE}:SeeingRank",
    scorer="benchmarks.datapath_parts:Reward",
    tokenizer="benchmarks.datapath_parts:Tokenizer",
)
MADE: Counter[str] = Counter()
"""Images that this process has made patches of, by who wanted them; and those it has checked."""


def made(_: Any = None) -> Counter[str]:
    return MADE


def count_checks(_: Any = None) -> None:
    """Count from now on how many images a controller decodes to see whether that can be done."""
    check = ImageReader.check

    def counted(self: ImageReader, image: np.ndarray) -> None:
        MADE["check"] += 1
        check(self, image)

    ImageReader.check = counted  # type: ignore[method-assign]


def picture(seed: int) -> bytes:
    """A JPEG of some 250 kB: large shapes and some noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def lay_out_images(folder: Path, size: Size) -> int:
    """Files of `size.prompts` images, rows that name them, and the facts of a model that sees; returns their bytes."""
    config = json.loads((folder / "model" / "config.json").read_text())
    tokens = {"vision_start_token_id": IMAGE - 1, "image_token_id": IMAGE, "vision_end_token_id": IMAGE + 1}
    (folder / "model" / "config.json").write_text(json.dumps(config | {"vision_config": {}} | tokens))
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    total = 0
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as out:
        for number in range(size.prompts):
            data = picture(number)
            (folder / f"{number}.jpg").write_bytes(data)
            total += len(data)
            out.write(json.dumps({"prompt": f"<image>prompt {number}", "image": f"{number}.jpg"}) + "\n")
    return total


class SeeingEngine(Engine):
    """An engine that makes an image's patches for all siblings at once."""

    def __init__(self, config: RolloutConfig, model: str, **others: Any) -> None:
        super().__init__(config, **others)
        self._reader = ImageReader(model)
        self._patches: dict[str, np.ndarray] = {}

    def answer(self, request: Request) -> Completion:
        for image in request.media:
            if image.digest not in self._patches:
                MADE["engine"] += 1
                self._patches[image.digest] = self._reader.read(image.handle, image.patches)
        seen = tuple(replace(image, handle=self._patches[image.digest].reshape(-1)) for image in request.media)
        return super().answer(replace(request, media=seen))

    async def load(self, manifest: WeightManifest) -> int:
        self._patches.clear()
        return await super().load(manifest)


class SeeingRank(Rank):
    """A rank that makes the patches of the images it trains on, and normalises them."""

    def __init__(self, config: Config, **others: Any) -> None:
        super().__init__(config, **others)
        self._reader = ImageReader(config.model.path)

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        samples = [s for share in shares for update in share.updates for micro in update for s in micro]
        images = {image.digest: image for sample in samples for image in sample.media}
        for image in images.values():
            MADE["rank"] += 1
            look(self._reader.read(image.handle, image.patches).reshape(-1))
        total = self.total([replace(sample, media=()) for sample in samples])
        tokens = sum(sample.trained_tokens for sample in samples)
        return UpdateReport(loss=total, grad_norm=0.0, learning_rate=0.0, trained_tokens=tokens)


class Held:
    """Keeps images in this process."""

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        return tuple(images)


class FloatWorker:
    """An engine that is sent pixels, and a rank that is sent float patches."""

    def __init__(self, config: Config, index: int) -> None:
        self._engine = Engine(config.rollout)
        self._rank = Rank(config, rank=index, world_size=1)
        self._reader = ImageReader(config.model.path)

    def generate(self, requests: Sequence[Request], pixels: Sequence[np.ndarray]) -> list[Completion]:
        n = len(requests) // max(1, len(pixels))
        for image in pixels:
            MADE["engine"] += 1
            patches = self._reader.patched(Image.fromarray(image), (1, HEIGHT // PATCH, WIDTH // PATCH))
            look(self._reader.normalised(patches).reshape(-1).view(np.uint8))
        assert n * len(pixels) == len(requests)
        return [self._engine.answer(request) for request in requests]

    def hop(self, samples: Sequence[Sample], images: Sequence[np.ndarray]) -> float:
        """Logprobs, or an update: tokens, and the patches of each distinct image once."""
        for image in images:
            look(image.reshape(-1).view(np.uint8))
        return self._rank.total(samples)


class Floats(Central):
    """One process decodes every image once, sends its pixels with the prompt, and float32 patches with each of the hops
    to the ranks: old logprobs, reference logprobs, update. Each message has each distinct image once, which is kinder
    than what is usual: siblings share it."""

    worker = FloatWorker

    def __init__(self, config: Config) -> None:
        super().__init__(config, Held())
        self._reader = ImageReader(config.model.path)

    async def step(self, step: int) -> None:
        prompts = self.draw()
        pixels = {prompt.uid: self._decoded(prompt) for prompt in prompts}
        patches = {uid: self._floats(image) for uid, image in pixels.items()}
        parts = [prompts[number :: len(self.engines)] for number in range(len(self.engines))]
        calls = [
            engine.generate.remote(
                [replace(request, media=()) for prompt in part for request in self.requests(prompt)],
                [pixels[prompt.uid] for prompt in part],
            )
            for engine, part in zip(self.engines, parts, strict=True)
        ]
        by_key = {completion.key: completion for answers in ray.get(calls) for completion in answers}
        keys = [SampleKey(prompt.uid, sibling) for prompt in prompts for sibling in range(self.config.rollout.n)]
        samples = await self.judge(prompts, [by_key[key] for key in keys])
        shares = await self.exchange.balance(step, [replace(sample, media=()) for sample in samples])
        for _ in ("old logprobs", "reference logprobs", "update"):
            calls = []
            for share in shares:
                part = [s for update in share.updates for micro in update for s in micro]
                images = [patches[uid] for uid in dict.fromkeys(s.key.uid for s in part)]
                calls.append(self.ranks[share.rank].hop.remote(part, images))
            ray.get(calls)

    def _decoded(self, prompt: Prompt) -> np.ndarray:
        MADE["controller"] += 1
        with Image.open(io.BytesIO(prompt.media[0].handle.tobytes())) as opened:
            return np.asarray(opened.convert("RGB"))

    def _floats(self, pixels: np.ndarray) -> np.ndarray:
        patches = self._reader.patched(Image.fromarray(pixels), (1, HEIGHT // PATCH, WIDTH // PATCH))
        return self._reader.normalised(patches)


def expected_tokens() -> int:
    """Tokens of a prompt with its image."""
    return PROMPT - 1 + TOKENS
