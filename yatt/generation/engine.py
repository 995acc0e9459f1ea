"""The seam between one generator and the engines it can drive: plain, blocking calls, made from one thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from yatt.generation.kind import EngineShape
from yatt.types import Finish, Media, SamplingParams, WeightManifest


class Sampled(NamedTuple):
    """The tokens that one step drew for a request, their logprobs, and how the request ended (None: it goes on)."""

    id: str
    tokens: list[int]
    logprobs: list[float]
    finish: Finish | None


class Read(NamedTuple):
    """The answer to `classify`: the logit of the head's only label at the last token."""

    id: str
    logit: float


class Image(NamedTuple):
    """An image of a request, and its patches [P, D] uint8, not normalised. Its digest names it: the tower reads images
    of the same digest once."""

    media: Media
    patches: np.ndarray


class Step(NamedTuple):
    """The results of one step."""

    sampled: list[Sampled]
    read: list[Read]


class Engine(Protocol):
    """An inference engine in this process. Nothing happens in it between two calls. Not thread-safe.

    It is built with keywords: `model`, `config` (of which it uses `engine_args` and `sleep`), `context_length`,
    `dtype`, `device`, `seed`, `setting` (where its user wrote `config`, for messages) and `classifies`.

    An engine of a model with a vision tower normalises patches itself. Where an image lies is in its `media`: tokens
    of the request that look like an image's and lie elsewhere were sampled, and are text.
    """

    shape: EngineShape

    def add(
        self,
        id: str,
        tokens: Sequence[int],
        params: SamplingParams,
        seed: int,
        stop_token_ids: Sequence[int],
        images: Sequence[Image] = (),
    ) -> None:
        """Queue a request for a response. The same tokens, images, settings and seed give the same response, whatever
        else runs, up to round-off. Logprobs are those of the distribution a token is drawn from: temperature, top-k and
        top-p applied; of a greedy token the model's own. Stop strings are not the engine's business."""
        ...

    def classify(self, id: str, tokens: Sequence[int]) -> None:
        """Queue a text for the head of a classifier to read."""
        ...

    def step(self) -> Step:
        """Sample a token for each running request, and read what waits to be classified. Raises BackendError where
        the engine gives a request up."""
        ...

    def abort(self, ids: Sequence[str]) -> None:
        """Forget these requests; no later step names them."""
        ...

    def check(self, manifest: WeightManifest) -> None:
        """Raise BackendError where a name, shape or byte is not as it should be."""
        ...

    def load(self, manifest: WeightManifest) -> None:
        """Write checked weights into the model and forget what the old ones computed, of images too; requests go on,
        their prefix recomputed. A sleeping engine takes back the memory of its weights for it, and no other."""
        ...

    def sleep(self) -> int:
        """Free the KV cache (on CUDA the weights too, kept in host memory) where that has not been done; returns the
        bytes freed. Requests keep their tokens."""
        ...

    def wake(self) -> None:
        """Take everything back, weights before the KV cache."""
        ...

    def close(self) -> None:
        """Free everything and end what the engine has started."""
        ...
