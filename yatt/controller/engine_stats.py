"""Statistics of a role's engines, from their pulses, for the placement policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from yatt.controller.speed_fit import EngineWork, SpeedFit
from yatt.controller.talks import TalkCounts
from yatt.placement.forecast import LEAST, Load
from yatt.types import Pulse

UNSEEN = 0.25
"""Share of the most tokens that a response is taken for, until some have ended."""
LONGEST = 4.0
"""The longest response in means, where it is not known."""
KEPT = 0.8
"""Share of the longest response before that a rollout's longest is taken to be at least."""


def newer(before: float, now: float) -> float:
    """A mean in which the last rollout counts most; `before` is 0 where there was none."""
    return 0.3 * before + 0.7 * now if before else now


class Asked(NamedTuple):
    """Requests that one controller has sent to a role's engines since it began, and tokens of their prompts, those of
    siblings once."""

    requests: int = 0
    prompt_tokens: float = 0.0


class PromptCounts(NamedTuple):
    """Requests of this controller, and prompt tokens that the engines have read for all controllers: since they
    started, or between two moments."""

    asked: Asked = Asked()
    read: int = 0

    def since(self, start: PromptCounts) -> PromptCounts:
        """The difference to an earlier moment."""
        requests = self.asked.requests - start.asked.requests
        return PromptCounts(
            asked=Asked(requests, self.asked.prompt_tokens - start.asked.prompt_tokens), read=self.read - start.read
        )

    @property
    def mean(self) -> float:
        """Tokens that are read for a request; 0 where none was asked."""
        return self.asked.prompt_tokens / self.asked.requests if self.asked.requests else 0.0


@dataclass(slots=True)
class PromptStats:
    """How long prompts are, and how many of this rollout's the engines have read."""

    mean: float = 0.0  # tokens read for a request, as of the last rollouts
    now: PromptCounts = field(default_factory=PromptCounts)
    start: PromptCounts = field(default_factory=PromptCounts)  # as the rollout began
    _read: dict[int, int] = field(default_factory=dict)  # tokens that each engine has read, ever

    def see(self, pulses: Mapping[int, Pulse], asked: Asked) -> None:
        for number, pulse in pulses.items():
            self._read[number] = pulse.read
        self.now = PromptCounts(asked=asked, read=sum(self._read.values()))

    def begin(self) -> None:
        """A rollout begins, and the last one is over."""
        if self.in_rollout.mean:
            self.mean = newer(self.mean, self.in_rollout.mean)
        self.start = self.now

    @property
    def in_rollout(self) -> PromptCounts:
        return self.now.since(self.start)

    @property
    def requests_read(self) -> float:
        """Requests of this rollout whose prompts have been read, over all controllers."""
        rollout = self.in_rollout
        return rollout.read / rollout.mean if rollout.mean else 0.0


@dataclass(slots=True)
class ResponseLengths:
    """How many tokens responses have; one has at most `max_tokens`."""

    max_tokens: int
    mean: float = 0.0  # as of the last rollouts; 0 where none has ended
    longest: float = 0.0  # 0 where it is not known

    def see_rollout(self, responses: int, tokens: int) -> None:
        """So many responses ended in the last rollout."""
        if responses:
            self.mean = newer(self.mean, tokens / responses)

    def see_longest(self, tokens: int) -> None:
        """The longest response of the last rollout."""
        self.longest = max(float(tokens), KEPT * self.longest)

    @property
    def expected(self) -> float:
        """Tokens of a response to come."""
        return min(self.mean or UNSEEN * self.max_tokens, self.max_tokens)

    @property
    def expected_longest(self) -> float:
        """Tokens of the longest one to come."""
        return self.longest or min(float(self.max_tokens), LONGEST * self.expected)


@dataclass(slots=True)
class RolloutProgress:
    """Work of a role's engines in this rollout. An engine runs `capacity` requests at once."""

    capacity: int
    requests: int = 0  # at the engines now, those that wait there included
    ended: int = 0
    tokens: int = 0  # sampled
    cached: float = 0.0  # mean tokens of a running request in the KV cache, as of the last look
    oldest: int = 0  # tokens that the longest response under way has, at least
    _came: int = 0  # requests that have been seen
    _since: dict[int, int] = field(default_factory=dict)  # steps of an engine when a request last came, or waited there
    _before: dict[int, Pulse] = field(default_factory=dict)  # by engine: its last pulse but those in which it only read

    def see(self, pulses: Mapping[int, Pulse]) -> list[EngineWork]:
        """Take one look at all engines in; returns the work since the last look of those that have sampled."""
        self.requests = sum(pulse.running for pulse in pulses.values())
        work: list[EngineWork] = []
        for number, pulse in pulses.items():
            if pulse.running > self.capacity or number not in self._since:
                self._since[number] = pulse.steps
            before = self._before.get(number, pulse)
            steps = pulse.steps - before.steps
            if steps > 0:  # fewer steps than before: the engine was started anew
                self.ended += pulse.ended - before.ended
                work.append(
                    EngineWork(
                        steps=steps,
                        tokens=pulse.tokens - before.tokens,
                        read=pulse.read - before.read,
                        cached=pulse.cached - before.cached,
                        seconds=pulse.seconds - before.seconds,
                    )
                )
            if steps or number not in self._before:
                self._before[number] = pulse
        sampled = sum(one.tokens for one in work)
        self.tokens += sampled
        if work:
            self.cached = sum(one.cached for one in work) / sampled if sampled else 0.0
        self._see_ages(pulses)
        return work

    def begin(self) -> None:
        """A rollout begins."""
        self.ended = self.tokens = self.oldest = self._came = 0

    def _see_ages(self, pulses: Mapping[int, Pulse]) -> None:
        """A request has a token of every step since it came, and none has come to an engine since the last one did."""
        if self.requests + self.ended > self._came:
            self._came = self.requests + self.ended
            self._since = {number: pulse.steps for number, pulse in pulses.items()}
        ages = [pulse.steps - self._since[number] for number, pulse in pulses.items() if pulse.running]
        self.oldest = max([0, *ages])


class EngineStats:
    """Statistics of a role's engines. They are sent `per_response` requests for each response of the policy, each of at
    most `max_tokens`. An engine runs `capacity` requests at once; a block holds `engines` of them."""

    def __init__(self, *, per_response: float, max_tokens: int, capacity: int, engines: int) -> None:
        self.per_response = per_response
        self.progress = RolloutProgress(capacity)
        self.lengths = ResponseLengths(max_tokens)
        self.prompts = PromptStats()
        self.speed = SpeedFit()
        self._engines = engines
        self._talks: TalkCounts | None = None
        self._ended_before = 0  # conversations, as the rollout began

    @property
    def requests(self) -> int:
        """Requests under way; of conversations, those whose environment has the word included. This controller may have
        none any more, and others still some at the engines."""
        return max(self.progress.requests, self._talks.under_way if self._talks else 0)

    @property
    def ended(self) -> int:
        """Requests that have ended in this rollout; of conversations, whole ones."""
        return self.progress.ended if self._talks is None else self._talks.ended - self._ended_before

    def see(self, pulses: Mapping[int, Pulse], asked: Asked, talks: TalkCounts | None = None) -> None:
        """Take one look at all engines of the role in, and what this controller has asked of them. `talks` are the
        conversations that its requests are turns of: then a response is a whole one of them."""
        self._talks = talks
        if work := self.progress.see(pulses):
            self.speed.see(work)
        self.prompts.see(pulses, asked)

    def begin(self) -> None:
        """A rollout begins: the last one, which is over, says how long responses and prompts are."""
        self.lengths.see_rollout(self.ended, self.progress.tokens)
        self._ended_before = self._talks.ended if self._talks else 0
        self.progress.begin()
        self.prompts.begin()

    def coming(self, responses: float) -> float:
        """Requests still to come in a rollout of so many responses of the policy; below 0 where more came."""
        return responses * self.per_response - self.ended - self.requests

    def load(self, coming: float, prompt: float, speed: SpeedFit) -> Load:
        """The role's work now, at this speed. `prompt` tokens are read for a request where none has been seen. A
        running request is taken to have a whole response still to sample in the mean, as if lengths had no memory."""
        progress, prompts = self.progress, self.prompts
        length, longest = self.lengths.expected, self.lengths.expected_longest
        prefix = prompts.mean or prompts.in_rollout.mean or prompt
        unread = max(0.0, progress.requests + progress.ended - prompts.requests_read)
        oldest, outside = progress.oldest, 0.0
        if self._talks is not None:
            oldest, outside = self._talks.sampled, self._talks.outside
            unread = 0.0  # turns come one after another, and most of what they read is there
        return Load(
            requests=self.requests,
            coming=coming,
            tokens=length,
            length=length,
            longest=max(longest - oldest, LEAST * longest),
            gone=min(oldest, (1 - LEAST) * longest),
            prefix=prefix,
            drawn=max(progress.cached - prefix, 0.0) if progress.cached else length / 2,
            unread=min(unread, progress.requests),
            outside=outside,
            speed=speed.speed(progress.capacity, self._engines),
        )
