"""What engines say of their work and their speed, as the placement policy wants to know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from yatt.placement.forecast import LEAST, Load, Speed
from yatt.types import Pulse

FORGET = 0.98
"""Weight of what was known of an engine's speed when another look comes in."""
WORST = 1e6
"""Condition number of the fit beyond which terms are not told apart."""
TERMS = 4
CHOICES = [terms for size in range(1, TERMS + 1) for terms in combinations(range(TERMS), size)]
UNSEEN = 0.25
"""Share of the limit that a response is taken for, until some have ended."""
LONGEST = 4.0
"""The longest response in means, where it is not known."""


class Fit:
    """Seconds of an engine, fitted to what it did in them: so many for a decode step, for a token sampled, for a prompt
    token read, and for a token of the KV cache in a decode step, all at least 0. Least squares over the looks, old ones
    fading."""

    def __init__(self) -> None:
        self._products = np.zeros((TERMS, TERMS))
        self._sums = np.zeros(TERMS)
        self.looks = 0

    def see(self, rows: Sequence[Sequence[float]]) -> None:
        """One look: of each engine steps, tokens sampled, read and cached, and seconds. [engines, TERMS + 1]"""
        did, seconds = np.split(np.array(rows, dtype=np.float64), [TERMS], axis=1)
        self._products = FORGET * self._products + did.T @ did
        self._sums = FORGET * self._sums + did.T @ seconds[:, 0]
        self.looks += 1

    def costs(self) -> np.ndarray:
        """[TERMS] seconds. Of the sets of terms with positive costs, the one that explains most; where terms cannot be
        told apart, the fewest of them."""
        best, explained = np.zeros(TERMS), 0.0
        scale = np.sqrt(np.maximum(np.diag(self._products), 1e-30))
        for chosen in map(list, CHOICES):
            part = (self._products / np.outer(scale, scale))[np.ix_(chosen, chosen)]
            if np.linalg.cond(part) > WORST:
                continue
            found = np.linalg.solve(part, (self._sums / scale)[chosen])
            gain = float(found @ (self._sums / scale)[chosen])
            if found.min() > 0 and gain > explained * (1 + 1e-6):
                best, explained = np.zeros(TERMS), gain
                best[chosen] = found / scale[chosen]
        return best

    def speed(self, capacity: int, engines: int) -> Speed:
        step, token, read, cached = self.costs().tolist()
        known = {"step": max(step, 1e-9), "per_request": token, "prefill": read, "per_cached": cached}
        return Speed(**known, capacity=capacity, engines=engines)


@dataclass(slots=True)
class Gauge:
    """What the pulses of a role's engines say. `per_response` requests come to it for each response of the policy;
    one samples at most `limit` tokens."""

    per_response: float
    limit: int
    capacity: int
    engines: int  # in a block
    requests: int = 0
    ended: int = 0  # in this rollout
    tokens: int = 0
    length: float = 0.0  # mean tokens of a response, as of the last rollouts
    longest: float = 0.0  # tokens of the longest, where it is known
    came: int = 0  # requests of this rollout
    since: dict[int, int] = field(default_factory=dict)  # steps of an engine when a request last came, or waited there
    drawn: int = 0  # tokens of the longest response under way, at least
    reads: dict[int, int] = field(default_factory=dict)  # tokens an engine has read, ever
    reads_before: int = 0  # all of them, as the rollout began
    prompt: float = 0.0  # mean tokens read for a request, as of the last rollouts
    context: float = 0.0  # mean tokens of a running request in the KV cache, as of the last look
    asked: tuple[int, float] = (0, 0.0)  # requests of one controller, and tokens of their prompts
    asked_before: tuple[int, float] = (0, 0.0)  # as the rollout began
    before: dict[int, Pulse] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)

    def see(self, pulses: Mapping[int, Pulse]) -> None:
        """Take one look at all engines of the role in."""
        self.requests = sum(pulse.running for pulse in pulses.values())
        rows, sampled, cached = [], 0, 0
        for number, pulse in pulses.items():
            before = self.before.get(number, pulse)
            self.reads[number] = pulse.read
            if pulse.running > self.capacity or number not in self.since:
                self.since[number] = pulse.steps
            steps, tokens = pulse.steps - before.steps, pulse.tokens - before.tokens
            if steps > 0:
                self.ended += pulse.ended - before.ended
                self.tokens += tokens
                held = pulse.cached - before.cached
                rows.append((steps, tokens, pulse.read - before.read, held, pulse.seconds - before.seconds))
                sampled, cached = sampled + tokens, cached + held
            if steps or number not in self.before:  # an engine that only reads is looked at once it has sampled
                self.before[number] = pulse
        if self.requests + self.ended > self.came:
            self.came = self.requests + self.ended
            self.since = {number: pulse.steps for number, pulse in pulses.items()}
        self.drawn = max([0, *(p.steps - self.since[n] for n, p in pulses.items() if p.running)])
        if rows:
            self.fit.see(rows)
            self.context = cached / sampled if sampled else 0.0

    def begin(self) -> None:
        """A rollout begins: what was seen in the last one, as it is over, says how long responses and prompts are."""
        if self.ended:
            self.length = newer(self.length, self.tokens / self.ended)
        self.ended = self.tokens = self.came = self.drawn = 0
        if self._prompt_so_far:
            self.prompt = newer(self.prompt, self._prompt_so_far)
        self.asked_before, self.reads_before = self.asked, sum(self.reads.values())

    @property
    def _prompt_so_far(self) -> float:
        """Mean tokens read for a request of this rollout; 0 before the first."""
        count, tokens = (now - before for now, before in zip(self.asked, self.asked_before, strict=True))
        return tokens / count if count else 0.0

    def load(self, coming: float, prompt: float, fit: Fit) -> Load:
        """The role's work now; `prompt` tokens are read for a request where none has been seen, `fit` says how fast
        that goes. What a request has still to sample is taken to be a whole response in the mean, as it would be if
        lengths had no memory."""
        length = min(self.length or UNSEEN * self.limit, self.limit)
        longest = self.longest or min(float(self.limit), LONGEST * length)
        mean = self._prompt_so_far
        prefix = self.prompt or mean or prompt
        read = (sum(self.reads.values()) - self.reads_before) / mean if mean else 0.0
        return Load(
            requests=self.requests,
            coming=coming,
            tokens=length,
            length=length,
            longest=max(longest - self.drawn, LEAST * longest),
            gone=min(self.drawn, (1 - LEAST) * longest),
            prefix=prefix,
            drawn=max(self.context - prefix, 0.0) if self.context else length / 2,
            unread=min(max(0.0, self.requests + self.ended - read), self.requests),
            speed=fit.speed(self.capacity, self.engines),
        )


def newer(before: float, now: float) -> float:
    """A mean in which the last rollout counts most; `before` is 0 where there was none."""
    return 0.3 * before + 0.7 * now if before else now
