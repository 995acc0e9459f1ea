"""One conversation, several things asked at once: each is in a row, whole, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tests.doubles import Ticks
from tests.environments.templates import tokenizer
from yatt.controller.conversation import Conversation, Limits
from yatt.environments.chat import Chat
from yatt.errors import BadRow, ConversationEnded
from yatt.types import Completion, Prompt, Request, SamplingParams, Span, Trajectory

MADE = tokenizer("qwen2.5")
CHAT = Chat(MADE)
END = MADE.convert_tokens_to_ids("<|im_end|>")
HELLO = {"role": "user", "content": "hello"}


class Slow:
    """Answers each request by its number, once it is let go."""

    def __init__(self, length: int = 3) -> None:
        self.requests: list[Request] = []
        self.gates: list[asyncio.Event] = []
        self._length = length

    async def __call__(self, request: Request) -> Completion:
        self.requests.append(request)
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()
        ids = [*MADE(f"{request.key.turn}" * (self._length - 1), add_special_tokens=False)["input_ids"], END]
        return Completion(
            key=request.key,
            tokens=np.array(ids[: request.params.max_tokens], dtype=np.int32),
            rollout_logprobs=np.full(min(len(ids), request.params.max_tokens), -1, dtype=np.float32),
            spans=(Span(start=0, stop=min(len(ids), request.params.max_tokens), version=0),),
            finish="stop",
        )

    async def come(self, count: int) -> None:
        """Returns once so many requests are there."""
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(self.requests) == count


def talk(ask: Callable[[Request], Awaitable[Completion]], max_tokens: int = 9, **limits: Any) -> Conversation:
    return Conversation(
        prompt=Prompt(uid=1, text="hello", tokens=CHAT.opening([HELLO]), messages=(HELLO,)),
        sibling=0,
        params=SamplingParams(max_tokens=max_tokens),
        limits=Limits(**{"turns": 9, "tokens": None, "context": 500, **limits}),
        ask=ask,
        home=lambda key: 0,
        chat=CHAT,
        seed_of=lambda key: key.turn,
        clock=Ticks(),
    )


def check(trajectory: Trajectory, turns: list[int]) -> None:
    """Its rows have so many turns, and each of them is trained as it was sampled, and nothing else."""
    assert [len(row.turns) for row in trajectory.rows] == turns
    for row in trajectory.rows:
        mask = np.zeros(len(row.tokens), dtype=bool)
        for turn in row.turns:
            mask[turn.start : turn.stop] = True
            assert len(set(row.tokens[turn.start : turn.stop - 1].tolist())) == 1 and row.tokens[turn.stop - 1] == END
        assert np.array_equal(row.loss_mask, mask) and np.array_equal(row.rollout_logprobs != 0, mask)


def test_what_is_asked_of_a_row_that_is_taken_begins_another() -> None:
    async def run() -> None:
        policy = Slow()
        conversation = talk(policy)
        first = asyncio.ensure_future(conversation.chat([HELLO]))
        await policy.come(1)
        policy.gates[0].set()
        said = [HELLO, (await first).message]
        longer = [*said, {"role": "user", "content": "and"}]
        # The same twice, and one that goes on from an answer that has not been given yet.
        ahead = [*longer, {"role": "assistant", "content": "?"}, {"role": "user", "content": "then"}]
        asked = [asyncio.ensure_future(conversation.chat(messages)) for messages in (longer, longer, ahead)]
        await policy.come(4)
        for gate in policy.gates:
            gate.set()
        await asyncio.gather(*asked)
        goes_on, *others = policy.requests[1:]
        assert np.array_equal(goes_on.tokens[: len(policy.requests[0].tokens)], policy.requests[0].tokens)
        assert [
            np.array_equal(one.tokens, CHAT.opening(m)) for one, m in zip(others, (longer, ahead), strict=True)
        ] == [
            True,
            True,
        ]
        trajectory = conversation.trajectory()
        check(trajectory, [2, 1, 1])
        assert trajectory.forks == 0 and len({request.key for request in policy.requests}) == 4
        # One of the rows goes on where it stands.
        last = asyncio.ensure_future(conversation.chat([*longer, asked[1].result().message, HELLO]))
        await policy.come(5)
        policy.gates[4].set()
        await last
        check(conversation.trajectory(), [2, 1, 2])

    asyncio.run(run())


def test_completions_at_once_do_not_share_a_row_and_messages_do_not_go_on_from_them() -> None:
    async def run() -> None:
        policy = Slow()
        conversation = talk(policy)
        first = asyncio.ensure_future(conversation.complete([5, 6]))
        await policy.come(1)
        policy.gates[0].set()
        longer = [5, 6, *(await first).tokens.tolist(), 7]
        asked = [asyncio.ensure_future(conversation.complete(ids)) for ids in (longer, [*longer, 8])]
        await policy.come(3)
        for gate in policy.gates:
            gate.set()
        await asyncio.gather(*asked)
        assert [len(row.turns) for row in conversation.trajectory().rows] == [2, 1]
        message = CHAT.answer((await first).tokens).message
        chat = asyncio.ensure_future(conversation.chat([message, HELLO]))
        await policy.come(4)
        policy.gates[3].set()
        await chat
        assert [len(row.turns) for row in conversation.trajectory().rows] == [2, 1, 1]
        for wrong in ([], [-1], [len(MADE)], [True], [1.0]):
            with pytest.raises(BadRow, match="give ids of its tokens"):
                await conversation.complete(wrong)  # type: ignore[arg-type]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "reason"), [({"turns": 1}, "turns"), ({"tokens": 3}, "tokens"), ({"context": 40}, "context")]
)
def test_a_turn_that_a_limit_refuses_leaves_nothing_behind(limits: dict[str, int], reason: str) -> None:
    async def run() -> None:
        policy = Slow()
        conversation = talk(policy, **limits)
        first = asyncio.ensure_future(conversation.chat([HELLO]))
        await policy.come(1)
        policy.gates[0].set()
        said = [HELLO, (await first).message]
        before = conversation.trajectory()
        for _ in range(2):
            with pytest.raises(ConversationEnded, match=reason):
                await conversation.chat([*said, {"role": "user", "content": "x" * 60}])
        after = conversation.trajectory()
        assert after.truncated == reason and after.messages == before.messages == tuple(said)
        assert np.array_equal(after.tokens, before.tokens) and len(conversation._rows[0].tokens) == len(before.tokens)
        check(after, [1])
        if reason == "context":  # a shorter word still fits
            more = asyncio.ensure_future(conversation.chat([HELLO]))
            await policy.come(2)
            policy.gates[1].set()
            await more
            check(conversation.trajectory(), [1, 1])
            assert conversation.trajectory().truncated == ""

    asyncio.run(run())


def test_a_turn_that_is_cancelled_leaves_its_row_as_it_was() -> None:
    async def run() -> None:
        policy = Slow()
        conversation = talk(policy)
        first = asyncio.ensure_future(conversation.chat([HELLO]))
        await policy.come(1)
        policy.gates[0].set()
        longer = [HELLO, (await first).message, HELLO]
        for count in (2, 3):
            again = asyncio.ensure_future(conversation.chat(longer))
            await policy.come(count)
            if count == 2:
                again.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await again
        policy.gates[2].set()
        await again
        assert np.array_equal(policy.requests[1].tokens, policy.requests[2].tokens)
        check(conversation.trajectory(), [2])

    asyncio.run(run())


def test_turns_at_once_stay_within_the_limit_on_tokens_together() -> None:
    async def run() -> None:
        policy = Slow(length=4)
        conversation = talk(policy, tokens=12)
        words = [[{"role": "user", "content": word}] for word in ("one", "two", "three", "four")]
        asked = [asyncio.ensure_future(conversation.chat(messages)) for messages in words]
        await policy.come(2)  # 9 and 3 are promised
        assert [request.params.max_tokens for request in policy.requests] == [9, 3]
        policy.gates[0].set()
        await policy.come(3)  # 4 were drawn, 3 are promised: 5 are left
        assert policy.requests[2].params.max_tokens == 5
        policy.gates[1].set()
        policy.gates[2].set()
        await policy.come(4)
        assert policy.requests[3].params.max_tokens == 1
        policy.gates[3].set()
        await asyncio.gather(*asked)
        assert conversation.trajectory().response_tokens == 12
        with pytest.raises(ConversationEnded, match="tokens"):
            await conversation.chat([HELLO])

    asyncio.run(run())
