"""Contracts between the heart and what it drives. The heart imports these and nothing below them.

Every wait here has a deadline; past it `WaitTimeout` names those that did not come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from yatt.reports import Probed, UpdateReport
from yatt.types import (
    Answer,
    Completion,
    Media,
    Message,
    Prompt,
    Pulse,
    Request,
    SampleKey,
    Score,
    Share,
    Tools,
    Trajectory,
    WeightManifest,
)

T_co = TypeVar("T_co", covariant=True)

EVERY_NODE = "*"
"""Stands for the node of a weight manifest that every node can read."""


class Generator(Protocol):
    """An engine that draws responses from the policy, or judges them. It may serve several controllers at once."""

    def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Yield completions in the order they end, in batches of what has ended since the last one; every request is
        answered exactly once (finish "aborted" with the tokens so far, where it was aborted). What is asked of a paused
        or sleeping generator waits there."""
        ...

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        """End these requests; after it returns none of them samples another token. Unknown keys are ignored."""
        ...

    async def pause(self) -> None:
        """After it returns no token is sampled until `resume`. Running requests keep their tokens."""
        ...

    async def resume(self) -> None:
        """Go on sampling. Requests that were running go on under the weights now loaded, their prefix recomputed."""
        ...

    async def load(self, manifest: WeightManifest) -> int:
        """Take a new set of weights, whole or not at all, and forget every cached prefix. Requires a paused engine,
        asleep or not. Returns the version now served. Raises BackendError on a checksum or shape mismatch, the old
        weights kept where nothing was written yet."""
        ...

    async def sleep(self) -> int:
        """Free the KV cache, and on an accelerator the weights; returns the bytes freed. Implies `pause`; running
        requests keep their tokens."""
        ...

    async def wake(self) -> None:
        """Take back what `sleep` freed, weights first. Does not resume."""
        ...

    async def pulse(self) -> Pulse:
        """Requests and tokens now; answered while it samples."""
        ...

    async def close(self) -> None:
        """Abort what runs and free everything."""
        ...


class Scorer(Protocol):
    """Judges trajectories."""

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One score per trajectory, in order. Never raises for a judgement that fails: that is a status."""
        ...

    async def close(self) -> None:
        """Stop workers; leaves no process behind."""
        ...


class Chat(Protocol):
    """The text of a conversation as tokens."""

    def ids(self, tokens: Sequence[int]) -> np.ndarray:
        """Token ids of somebody else's, int32. Raises BadRow where there are none, or the tokenizer has one of them
        not."""
        ...

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> np.ndarray:
        """Token ids of the messages, up to where the assistant goes on, int32. Raises BadRow where the chat template
        refuses them."""
        ...

    def answer(self, tokens: np.ndarray, tools: Tools = ()) -> Answer:
        """What sampled tokens say. Calls are looked for where there are tools."""
        ...

    def suffix(
        self,
        messages: Sequence[Message],
        answer: Answer,
        sampled: np.ndarray,
        new: Sequence[Message],
        tools: Tools = (),
    ) -> np.ndarray | None:
        """Token ids, int32, that follow the `sampled` ones once `new` is said, up to where the assistant goes on; the
        answer was given to `messages`. None where the chat template writes the past anew: it begins the longer
        conversation otherwise than the shorter one, or drops a part of the answer. Raises BadRow where it refuses the
        messages."""
        ...


class Talk(Protocol):
    """One conversation with the policy, as those see it who play it."""

    prompt: Prompt
    sibling: int

    async def chat(self, messages: Sequence[Message], tools: Tools = (), max_tokens: int | None = None) -> Answer:
        """The policy's answer to all that was said."""
        ...

    async def complete(self, tokens: Sequence[int], max_tokens: int | None = None) -> Completion:
        """The policy's completion of token ids, which are all there is."""
        ...

    def reward(self, value: float) -> None:
        """What the environment gives for the last turn."""
        ...

    def failed_call(self) -> None:
        """A tool that the last turn called has raised."""
        ...


class Environment(Protocol):
    """What the policy talks to."""

    async def play(self, talk: Talk) -> Score | None:
        """Play one conversation to its end; its score, or None where others judge it. A failure is a status. Cancelled,
        it forgets the conversation."""
        ...

    async def close(self) -> None:
        """Stop workers; leaves no process behind."""
        ...


class MediaStore(Protocol):
    """Where a controller's images lie until the step is over: once each, on its own node."""

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        """Take the images of one prompt in, whose handles are their bytes, [N] uint8. Returns them with handles of the
        store's; they are freed when nobody names one of them any more."""
        ...


class Trainer(Protocol):
    """The ranks, seen from one controller. Calls are collective over controllers where it says so."""

    async def update(self, shares: Sequence[Share]) -> UpdateReport | None:
        """Collective. Each share goes to its `rank`, which runs every optimizer update of the step once all its
        senders' shares have come. Returns the step's report, the same for every controller; None to a controller that
        sent no shares."""
        ...

    async def evaluate(self, shares: Sequence[Share]) -> UpdateReport | None:
        """Collective, and sent as in `update`: the loss and the numbers of these samples under the weights as they
        are, which stay so. For algorithms that learn from rows."""
        ...

    async def reference(self, shares: Sequence[Share]) -> Mapping[int, tuple[float, float]]:
        """Collective, and sent as in `update`, before the first one: by uid, what the reference says of both sequences
        of a sample; of these samples, and perhaps of others'."""
        ...

    async def export(self, version: int) -> Mapping[str, WeightManifest]:
        """Leader only. Write the policy's weights under Hugging Face names; by node name, or EVERY_NODE."""
        ...

    async def probe(self) -> Probed | None:
        """Leader only. What the policy, as it is, makes of tokens that are the same in every run of it; None where
        there are no ranks, or ranks without weights."""
        ...

    async def offload(self) -> None:
        """Leader only. Give the memory that only training needs back to the slot."""
        ...

    async def onload(self) -> None:
        """Leader only. Take that memory again."""
        ...


class Peers(Protocol):
    """The other controllers. Values are small: counts, lengths, flags."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    async def all_gather(self, tag: str, value: Any) -> list[Any]:
        """Collective: everyone's value, in controller order."""
        ...

    def announce(self, value: Any) -> None:
        """Leader only: replace the news that everyone hears."""
        ...

    async def hear(self, seen: int) -> tuple[int, Any]:
        """Waits for other news than number `seen` (0: none yet), some seconds at most; the number and the news."""
        ...


class Source(Protocol[T_co]):
    """The global order of rows, seen from one controller: prompts to respond to, or samples to train on as they are."""

    def begin_step(self) -> None:
        """Fix the step's pending order: left-over positions first, then fresh ones."""
        ...

    def draw(self) -> T_co | None:
        """The next of this controller's share of the pending order; None when there is no data."""
        ...

    def drawn(self) -> int:
        """How many this controller has drawn in this step."""
        ...

    def give_back(self, uid: int) -> None:
        """Offer this position again from the next step on: it was drawn, and nothing came of it."""
        ...

    def returned(self) -> list[int]:
        """Positions this controller has given back in this step."""
        ...

    def again(self, uid: int) -> T_co:
        """The row at a position that was drawn before."""
        ...

    def end_step(self, drawn: Sequence[int], returned: Sequence[int] = ()) -> None:
        """Close the step with every controller's number of draws, and all positions given back: the cursor now has
        exactly the others behind it."""
        ...

    def state(self) -> dict[str, Any]:
        """The cursor, in global terms: resumable with another number of controllers."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...

    @property
    def epoch(self) -> float: ...

    @property
    def bad_rows(self) -> int:
        """Unusable rows this controller has passed over since the start of the process."""
        ...


class Clock(Protocol):
    """Wall or virtual time, in seconds."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...
