"""The messages that carry data between controllers, engines and ranks, as columns (see `columns`). Images do not travel
inside: packing gives their handles, to be sent beside the columns (see `media`); reading takes them as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from yatt.cluster.columns import Columns, pack, read
from yatt.types import Completion, Request, Share

Ended = list[tuple[int, list[Completion] | str]]
"""By stream: completions that have ended, or why the stream failed."""
Asked = list[tuple[int, list[Request]]]
"""By stream: requests. Siblings share their prompt and its images, and the parameters."""

CompletionColumns: TypeAlias = Columns
RequestColumns: TypeAlias = Columns
ShareColumns: TypeAlias = Columns


def pack_completions(ended: Ended) -> CompletionColumns:
    return pack(Ended, ended)[0]


def read_completions(columns: CompletionColumns) -> Ended:
    return list(read(Ended, columns))


def pack_requests(streams: Sequence[tuple[int, Sequence[Request]]]) -> tuple[RequestColumns, list[Any]]:
    """The columns, and the handles of the images."""
    return pack(Asked, streams)


def read_requests(columns: RequestColumns, opened: Sequence[Any]) -> Asked:
    """`opened` are the images in the order of their handles."""
    return list(read(Asked, columns, opened))


def pack_share(share: Share) -> tuple[ShareColumns, list[Any]]:
    """The columns, and the handles of the images."""
    return pack(Share, share)


def read_share(columns: ShareColumns, opened: Sequence[Any]) -> Share:
    """`opened` are the images in the order of their handles."""
    share: Share = read(Share, columns, opened)
    return share
