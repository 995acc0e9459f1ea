"""Requests that leave an engine before their response is whole: moved to another engine, or aborted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from yatt.types import Completion, Request, SampleKey


class Migration:
    """Says what becomes of a request that its engine gives back unfinished. One that is being moved goes on elsewhere
    after the tokens so far, each with its logprob and version; one that was aborted is handed to its caller as it is.
    """

    def __init__(self) -> None:
        self._moving: set[SampleKey] = set()
        self._aborted: set[SampleKey] = set()
        self._so_far: dict[SampleKey, Completion] = {}  # of requests that have moved

    def move(self, keys: Collection[SampleKey]) -> None:
        """These requests are to go on at another engine."""
        self._moving |= set(keys)

    def abort(self, keys: Collection[SampleKey]) -> None:
        """These requests are to go on nowhere, even where they are being moved."""
        self._moving.difference_update(keys)
        self._aborted.update(keys)

    def forget(self, keys: Collection[SampleKey]) -> None:
        """Their caller has all it wants of these requests."""
        for key in keys:
            self._so_far.pop(key, None)
            self._moving.discard(key)
            self._aborted.discard(key)

    @property
    def ending(self) -> set[SampleKey]:
        """Requests that are to end where they run."""
        return self._moving | self._aborted

    def came_back(self, request: Request, completion: Completion) -> tuple[Completion, Request | None]:
        """The whole response so far, and the request for its rest, where it goes on at another engine."""
        whole = joined(self._so_far.pop(request.key, None), completion)
        moving = request.key in self._moving
        self._moving.discard(request.key)
        if completion.finish != "aborted" or not moving:
            return whole, None
        self._so_far[request.key] = whole
        return whole, continued(request, completion)

    def sort_out(self, requests: Sequence[Request]) -> tuple[list[Request], list[Completion]]:
        """Of requests that no engine has: those to send to one, and the responses so far of those aborted."""
        wanted = [request for request in requests if request.key not in self._aborted]
        aborted = [request for request in requests if request.key in self._aborted]
        return wanted, [joined(self._so_far.pop(request.key, None), empty(request)) for request in aborted]


def continued(request: Request, done: Completion) -> Request:
    """The rest of a request that was ended after `done`'s tokens."""
    if not len(done.tokens):
        return request
    return replace(
        request,
        tokens=np.concatenate([request.tokens, done.tokens]).astype(np.int32),
        params=replace(request.params, max_tokens=request.params.max_tokens - len(done.tokens)),
        seed=(request.seed + len(done.tokens)) & 0x7FFFFFFF,
    )


def joined(begun: Completion | None, rest: Completion) -> Completion:
    """One completion of what was drawn before and after a move."""
    if begun is None:
        return rest
    shift = len(begun.tokens)
    moved = tuple(replace(span, start=span.start + shift, stop=span.stop + shift) for span in rest.spans)
    return replace(
        rest,
        tokens=np.concatenate([begun.tokens, rest.tokens]),
        rollout_logprobs=np.concatenate([begun.rollout_logprobs, rest.rollout_logprobs]),
        spans=begun.spans + moved,
    )


def empty(request: Request) -> Completion:
    """The response to a request that was aborted before it had a token."""
    return Completion(
        key=request.key,
        tokens=np.zeros(0, dtype=np.int32),
        rollout_logprobs=np.zeros(0, dtype=np.float32),
        spans=(),
        finish="aborted",
    )
