"""A response on its way through a simulated engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from yatt.types import Completion, Finish, Request, Span

Answers = asyncio.Queue["Completion | None"]
"""Completions that have ended; None where the engine died."""


@dataclass(slots=True, eq=False)
class Drawing:
    """A response being drawn. `own` are the prompt tokens it shares with nobody: those a re-issued request brings.
    While it runs it has `done` tokens at step `since`, one more at each later one, and ends at step `end`."""

    request: Request
    answers: Answers
    serial: int
    own: int
    target: int
    finish: Finish
    done: int = 0
    since: int = 0
    end: int = 0
    spans: list[Span] = field(default_factory=list)

    def settle(self, step: int, version: int) -> None:
        """Write down the tokens up to `step`."""
        stop = self.done + step - self.since
        if stop > self.done:
            start = self.spans.pop().start if self.spans and self.spans[-1].version == version else self.done
            self.spans.append(Span(start=start, stop=stop, version=version))
        self.done, self.since = stop, step

    def completion(self) -> Completion:
        """Every token's id is the version that sampled it, so that what arrives can be held against its spans, and its
        logprob minus that."""
        parts = [np.full(s.stop - s.start, s.version, dtype=np.int32) for s in self.spans]
        tokens = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.int32), *parts])
        return Completion(
            key=self.request.key,
            tokens=tokens,
            rollout_logprobs=-tokens.astype(np.float32),
            spans=tuple(self.spans),
            finish=self.finish,
        )
