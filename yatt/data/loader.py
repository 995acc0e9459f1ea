"""The global order of rows, and each controller's share of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from yatt.data.rows import BadRows, Row, RowSource
from yatt.errors import BadRow, CheckpointError, DataError, YattError
from yatt.text import one_line
from yatt.user_functions import describe

T = TypeVar("T")
Encode = Callable[[Row, int, int], T]
"""(row, uid, row number) -> what a controller wants of it; raises BadRow."""

CHECKED = 1000
log = logging.getLogger(__name__)


def encode_row(source: RowSource, encode: Encode[T], row: int, uid: int) -> T:
    """Row `row`, encoded. Raises BadRow for whatever goes wrong with one row: reading and encoding it rest on libraries
    that raise what they like. Settings that are wrong for every row stay ConfigErrors."""
    try:
        return encode(source.row(row), uid, row)
    except (YattError, MemoryError):
        raise
    except Exception as error:
        raise BadRow(one_line(describe(error))) from error


class Loader(Generic[T]):
    """Rows in a global order without end: position p is place p mod N of epoch p div N, shuffled anew each epoch.

    The cursor is the first position never offered (`next`) and the earlier ones that nobody drew (`holes`). A step's
    pending order is the holes, then next, next + 1, ...; controller c of C draws elements c, c + C, c + 2C, ... of it.
    Closing the step with everyone's number of draws gives everyone the same new cursor, so every position is drawn
    exactly once however many controllers there are from step to step. A position given back is a hole again.
    """

    def __init__(
        self,
        source: RowSource,
        encode: Encode[T],
        *,
        seed: int,
        shuffle: bool,
        index: int,
        count: int,
        bad_rows: Literal["fail", "skip"],
    ) -> None:
        if not 0 <= index < count:
            raise ValueError(f"index={index} is not one of {count} controllers")
        self._source, self._encode, self._rows = source, encode, len(source)
        self._seed, self._shuffle, self._bad_rows = seed, shuffle, bad_rows
        self._index, self._count = index, count
        self._next, self._holes = 0, []  # type: int, list[int]
        self._drawn = 0
        self._returned: list[int] = []
        self._order = lru_cache(maxsize=2)(self._permutation)
        self.bad = BadRows()

    def begin_step(self) -> None:
        """Draw from the cursor on. What was drawn since the last `end_step` is offered again."""
        self._drawn = 0

    def draw(self) -> T | None:
        """The next row of this controller's share; None only where there are no rows.

        A row that cannot be used raises DataError, or with `bad_rows` "skip" is counted, logged and held for drawn,
        and the next is tried; N of them one after another raise too.
        """
        for _ in range(self._rows):
            position = self._pending(self._index + self._drawn * self._count)
            self._drawn += 1
            row = self._row(position)
            try:
                return encode_row(self._source, self._encode, row, position)
            except BadRow as error:
                self.bad.add(self._source.origin(row), error)
                if self._bad_rows == "fail":
                    raise self.bad.failure() from None
                log.warning("skipped bad row %d: %s: %s", self.bad.count, self._source.origin(row), error)
        if self._rows:
            raise self.bad.failure()
        return None

    def drawn(self) -> int:
        """Positions this controller has drawn in this step, bad rows included."""
        return self._drawn

    def give_back(self, uid: int) -> None:
        self._returned.append(uid)

    def returned(self) -> list[int]:
        """Positions this controller gave back since the last `end_step`."""
        return list(self._returned)

    def again(self, uid: int) -> T:
        """The row at position `uid`, encoded anew. Raises BadRow where it can no longer be used."""
        return encode_row(self._source, self._encode, self._row(uid), uid)

    def end_step(self, drawn: Sequence[int], returned: Sequence[int] = ()) -> None:
        """Move the cursor past what all controllers drew, but for what they gave back; `drawn[c]` is controller c's
        count."""
        if len(drawn) != self._count or drawn[self._index] != self._drawn:
            raise ValueError(
                f"drawn={list(drawn)} does not fit controller {self._index} of {self._count}: {self._drawn}"
            )
        taken = {c + k * self._count for c, draws in enumerate(drawn) for k in range(draws)}
        offered = max(taken, default=-1) + 1
        fresh = max(0, offered - len(self._holes))
        left = [self._pending(e) for e in range(len(self._holes) + fresh) if e not in taken]
        self._next, self._holes, self._drawn = self._next + fresh, sorted({*left, *returned}), 0
        self._returned = []

    def state(self) -> dict[str, Any]:
        """The cursor as of the last `end_step`, in global terms: any number of controllers can go on from it."""
        order = {"rows": self._rows, "seed": self._seed, "shuffle": self._shuffle}
        return {"next": self._next, "holes": list(self._holes), **order}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a cursor. Raises CheckpointError where it speaks of another order of rows."""
        for key, now in (("rows", self._rows), ("seed", self._seed), ("shuffle", self._shuffle)):
            if state[key] != now:
                setting = {"rows": "the dataset's rows", "seed": "run.seed", "shuffle": "data.shuffle"}[key]
                raise CheckpointError(
                    f"{setting}={now} but the checkpoint was made with {state[key]}: the order of prompts would "
                    f"change; go on with {state[key]}, or start a new run"
                )
        self._next, self._holes, self._drawn = int(state["next"]), [int(p) for p in state["holes"]], 0
        self._returned = []

    @property
    def epoch(self) -> float:
        """Passes over the data so far, as of the last `end_step`."""
        return (self._next - len(self._holes)) / self._rows if self._rows else 0.0

    @property
    def bad_rows(self) -> int:
        """Rows passed over since this loader was made."""
        return self.bad.count

    def _pending(self, element: int) -> int:
        holes = len(self._holes)
        return self._holes[element] if element < holes else self._next + element - holes

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self._rows)
        return int(self._order(epoch)[place]) if self._shuffle else place

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._rows)


def check_rows(
    source: RowSource, encode: Encode[Any], bad_rows: Literal["fail", "skip"], limit: int = CHECKED
) -> BadRows:
    """Try the first `limit` rows before anything starts; returns the bad ones, which the caller shows.

    Raises DataError naming the first few and their number where `bad_rows` is "fail", or where no row is good.
    """
    seen = min(limit, len(source))
    good, bad = _encode_all(source, encode, range(seen))
    if bad.count and bad_rows == "fail":
        raise bad.failure(seen)
    if not good:
        raise DataError(f"no usable row among the first {seen}: {'; '.join(bad.reasons)}")
    return bad


def share_of_rows(
    source: RowSource, encode: Encode[T], index: int, count: int, bad_rows: Literal["fail", "skip"]
) -> list[T]:
    """Every `count`-th row from row `index` on, once and in order."""
    good, bad = _encode_all(source, encode, range(index, len(source), count))
    if bad.count and bad_rows == "fail":
        raise bad.failure()
    if bad.count:
        log.warning("skipped %d bad evaluation row(s): %s", bad.count, "; ".join(bad.reasons))
    return good


def good_rows(source: RowSource, encode: Encode[T], index: int, count: int) -> Iterator[T]:
    """As `share_of_rows`, one after another as they are asked for. Bad ones are passed over: the loader that draws them
    says so."""
    for row in range(index, len(source), count):
        with suppress(BadRow):
            yield encode_row(source, encode, row, row)


def _encode_all(source: RowSource, encode: Encode[T], rows: Iterable[int]) -> tuple[list[T], BadRows]:
    good, bad = [], BadRows()
    for row in rows:
        try:
            good.append(encode_row(source, encode, row, row))
        except BadRow as error:
            bad.add(source.origin(row), error)
    return good, bad
