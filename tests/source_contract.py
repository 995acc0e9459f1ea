"""What every `Source` must do: one suite, run for rows of each kind and for simulated ones.

A subclass gives the fixture `case`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from yatt.protocols import Source


@dataclass(frozen=True, slots=True)
class Case:
    """`sources` makes those of all controllers, so many, before the first step. `rows` is None where they never end."""

    sources: Callable[[int], Sequence[Source[Any]]]
    rows: int | None


def uid_of(row: Any) -> int:
    return int(row.key.uid if hasattr(row, "key") else row.uid)


def content(value: Any) -> Any:
    """All that is in a row but the position it was drawn at."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if is_dataclass(value):
        return [content(getattr(value, f.name)) for f in fields(value) if f.name not in ("uid", "key")]
    return [content(one) for one in value] if isinstance(value, tuple) else value


def step(team: Sequence[Source[Any]], draws: Sequence[int], returned: Sequence[int] = ()) -> list[Any]:
    """A step in which each draws so many, and those of positions `returned` are given back by who drew them."""
    for source in team:
        source.begin_step()
    drawn = [[source.draw() for _ in range(number)] for source, number in zip(team, draws, strict=True)]
    for source, mine in zip(team, drawn, strict=True):
        for uid in {uid_of(row) for row in mine} & set(returned):
            source.give_back(uid)
    close(team)
    return [row for mine in drawn for row in mine]


def close(team: Sequence[Source[Any]]) -> None:
    drawn, returned = [source.drawn() for source in team], [uid for source in team for uid in source.returned()]
    for source in team:
        source.end_step(drawn, returned)


def resumed(case: Case, count: int, state: dict[str, Any]) -> Sequence[Source[Any]]:
    """As many that go on from a state that has been written and read."""
    team = case.sources(count)
    for source in team:
        source.restore(json.loads(json.dumps(state)))
    return team


class SourceContract:
    def test_every_position_is_drawn_once_by_whatever_number_of_controllers(self, case):
        state, seen = case.sources(1)[0].state(), []
        for draws in ([3], [2, 0], [1, 2, 1], [0, 3], [9]):
            team = resumed(case, len(draws), state)
            seen += [uid_of(row) for row in step(team, draws)]
            assert all(source.state() == team[0].state() for source in team), "they differ on where they are"
            state = team[0].state()
        assert sorted(seen) == list(range(len(seen)))

    def test_the_shares_of_a_step_are_apart(self, case):
        team = case.sources(3)
        for source in team:
            source.begin_step()
        first = [uid_of(source.draw()) for source in team]
        second = [uid_of(source.draw()) for source in reversed(team)]
        assert sorted(first + second) == list(range(6))
        assert [source.drawn() for source in team] == [2, 2, 2]

    def test_nothing_moves_before_the_step_is_closed(self, case):
        (source,) = case.sources(1)
        step([source], [2])
        state, epoch = source.state(), source.epoch
        source.begin_step()
        drawn = [content(source.draw()) for _ in range(3)]
        assert (source.state(), source.epoch, source.drawn()) == (state, epoch, 3)
        source.begin_step()
        assert source.drawn() == 0
        assert [content(source.draw()) for _ in range(3)] == drawn, "an unfinished step is begun again"
        close([source])
        assert source.state() != state and source.epoch > epoch and source.drawn() == 0

    def test_what_is_given_back_is_offered_first_in_the_next_step(self, case):
        team = case.sources(2)
        for source in team:
            source.begin_step()
        mine, others = ([uid_of(source.draw()) for _ in range(3)] for source in team)
        team[0].give_back(mine[1])
        team[1].give_back(others[0])
        assert [source.returned() for source in team] == [[mine[1]], [others[0]]]
        assert uid_of(team[0].draw()) not in (*mine, *others), "not in this step"
        close(team)
        assert [source.returned() for source in team] == [[], []]
        again = [uid_of(row) for row in step(team, [1, 1])]
        assert again == sorted((mine[1], others[0]))

    def test_a_row_is_the_same_whenever_it_is_read(self, case):
        team = case.sources(2)
        rows = step(team, [3, 3])
        for row in rows:
            for source in (*team, *resumed(case, 1, team[0].state())):
                again = source.again(uid_of(row))
                assert (uid_of(again), content(again)) == (uid_of(row), content(row))
        (other,) = case.sources(1)
        in_order = sorted(step([other], [6]), key=uid_of)
        assert [content(row) for row in in_order] == [content(row) for row in sorted(rows, key=uid_of)]

    def test_epochs_are_counted_and_each_has_every_row(self, case):
        (source,) = case.sources(1)
        assert source.epoch == 0.0 and source.bad_rows == 0
        rows = case.rows or 5
        first, second = step([source], [rows]), step([source], [rows])
        assert source.bad_rows == 0
        if case.rows is None:
            assert source.epoch > 0
            return
        assert source.epoch == 2.0
        assert len(Counter(json.dumps(content(row)) for row in first)) == rows
        assert sorted(json.dumps(content(row)) for row in first) == sorted(json.dumps(content(row)) for row in second)
