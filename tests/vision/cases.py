"""Samples with images, and transformers' model on them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from tests import megatron_cases
from tests.vision.models import IMAGE, VISION_END, VISION_START, png
from yatt.types import Media, Sample, SampleKey
from yatt.vision.images import ImageReader

PICTURES = {"square": png(1, 24, 24), "wide": png(2, 40, 16), "large": png(3, 64, 48), "odd": png(4, 19, 50)}
SHOWN: tuple[tuple[str, ...], ...] = (
    ("square",),
    ("square",),
    (),
    ("wide", "odd"),
    ("large",),
    ("square", "square", "wide"),
    (),
    ("odd",),
)
"""The pictures of each sample: siblings share theirs, one shows the same twice, some have none."""


def shown(reader: ImageReader, names: Sequence[str], words: Sequence[int]) -> tuple[np.ndarray, tuple[Media, ...]]:
    """A prompt with a picture behind each of its first words, and these pictures."""
    tokens, media = list(words), list[Media]()
    for k, name in reversed(list(enumerate(names))):
        size = reader.size(PICTURES[name])
        tokens[k + 1 : k + 1] = [VISION_START, *[IMAGE] * reader.tokens(size), VISION_END]
    at = 0
    for name in names:
        size = reader.size(PICTURES[name])
        start = tokens.index(VISION_START, at) + 1
        at = start + reader.tokens(size)
        image = Media(
            handle=PICTURES[name],
            nbytes=len(PICTURES[name]),
            digest=name,
            patches=size,
            start=start,
            tokens=reader.tokens(size),
        )
        media.append(image)
    return np.array(tokens, np.int32), tuple(media)


def make_samples(folder: str, seed: int) -> list[Sample]:
    """Eight, of which every third response has the token of an image among its own."""
    random, reader, samples = np.random.default_rng(seed), ImageReader(folder), list[Sample]()
    for uid, names in enumerate(SHOWN):
        prompt, media = shown(reader, names, random.integers(3, 90, len(names) + 3).tolist())
        response = random.integers(3, 90, int(random.integers(5, 20))).astype(np.int32)
        if uid % 3 == 0:
            response[2:4] = IMAGE, VISION_START
        tokens = np.concatenate([prompt, response])
        samples.append(
            Sample(
                key=SampleKey(uid, 0),
                tokens=tokens,
                loss_mask=np.arange(len(tokens)) >= len(prompt),
                rollout_logprobs=np.zeros(len(tokens), dtype=np.float32),
                advantage=float(random.normal()),
                media=media,
            )
        )
    return samples


class Seeing(megatron_cases.Reference):
    """Transformers and AdamW, one sequence after another. Images are those of its own processor; they go in by their
    place, as a response may have their token too."""

    def __init__(self, folder: str, *, frozen: bool = False, vision_rate: float = 1.0) -> None:
        self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        super().__init__(folder)
        self.model.model.visual.requires_grad_(not frozen)
        self._vision_rate = vision_rate
        if vision_rate != 1.0:
            tower = {id(p) for p in self.model.model.visual.parameters()}
            groups = [
                {**group, "params": [p for p in group["params"] if (id(p) in tower) is inside], "tower": inside}
                for group in self.optimizer.param_groups
                for inside in (False, True)
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
            self.optimizer.register_step_pre_hook(self._slow)

    def _slow(self, optimizer: Any, *unused: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= self._vision_rate if group["tower"] else 1.0

    def open(self, folder: str) -> Any:
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def pixels(self, sample: Sample) -> dict[str, torch.Tensor]:
        """What transformers' processor makes of its images."""
        pictures = [torch_image(image.handle) for image in sample.media]
        return dict(self._processor(images=pictures, return_tensors="pt"))

    def logprobs(self, sample: Sample) -> torch.Tensor:
        tokens, inner = torch.from_numpy(sample.tokens.astype(np.int64)), self.model.model
        kinds = torch.zeros(len(tokens), dtype=torch.int)
        embedded, more = self.model.get_input_embeddings()(tokens), dict[str, Any]()
        grids = None
        if sample.media:
            given = self.pixels(sample)
            grids = given["image_grid_thw"]
            seen = inner.visual(given["pixel_values"], grid_thw=grids, return_dict=True)
            for image in sample.media:
                kinds[image.start : image.start + image.tokens] = 1
            embedded = embedded.index_copy(0, kinds.nonzero()[:, 0], seen.pooler_output)
            if deepstack := getattr(seen, "deepstack_features", None):
                more = {"visual_pos_masks": (kinds == 1)[None], "deepstack_visual_embeds": deepstack}
        positions, _ = inner.get_rope_index(tokens[None], kinds[None], image_grid_thw=grids)
        hidden = inner.language_model(inputs_embeds=embedded[None], position_ids=positions, **more).last_hidden_state
        logits = self.model.lm_head(hidden)[0] / self.temperature
        chosen = torch.log_softmax(logits[:-1], -1).gather(1, tokens[1:, None])[:, 0]
        return torch.cat([torch.zeros(1), chosen])

    def weights(self) -> dict[str, np.ndarray]:
        """Under the names that transformers saves."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return {name: value.numpy() for name, value in load_file(Path(folder) / "model.safetensors").items()}


def torch_image(encoded: np.ndarray) -> Any:
    return Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")
