"""The global order: every position drawn exactly once, whatever the number of controllers and of draws."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.data.loader import Loader, check_rows, share_of_rows
from yatt.data.rows import BadRow
from yatt.errors import CheckpointError, DataError


class Numbers:
    """Rows 0..size-1; those in `bad` cannot be encoded, those in `torn` cannot be read."""

    def __init__(self, size, torn=()):
        self.size, self.torn = size, set(torn)

    def __len__(self):
        return self.size

    def row(self, index):
        if index in self.torn:
            raise BadRow("torn")
        return {"n": index}

    def origin(self, index):
        return f"numbers:{index + 1}"

    def folder(self, index):
        return ""


def encode(row, uid, index):
    assert row["n"] == index
    return uid, index


def loaders(source, count, *, state=None, seed=7, shuffle=True, bad_rows="fail", encode=encode):
    made = [
        Loader(source, encode, seed=seed, shuffle=shuffle, index=i, count=count, bad_rows=bad_rows)
        for i in range(count)
    ]
    for loader in made:
        if state is not None:
            loader.restore(json.loads(json.dumps(state)))
    return made


def run_step(team, draws):
    """Each controller draws its number; returns what came, and checks that all end with the same cursor."""
    came = []
    for loader in team:
        loader.begin_step()
    for loader, number in zip(team, draws, strict=True):
        came += [loader.draw() for _ in range(number)]
        assert loader.drawn() == number
    for loader in team:
        loader.end_step(draws)
    assert all(loader.state() == team[0].state() for loader in team)
    return came


steps = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=12)


@settings(max_examples=200)
@given(rows=st.integers(1, 9), plan=steps, shuffle=st.booleans())
def test_every_position_is_drawn_once_and_none_is_lost(rows, plan, shuffle):
    source, state, drawn = Numbers(rows), None, []
    for draws in plan:  # another number of controllers at every step, each time restored from JSON
        team = loaders(source, len(draws), state=state, shuffle=shuffle)
        drawn += run_step(team, draws)
        state = team[0].state()
    positions = [uid for uid, _ in drawn]
    assert len(set(positions)) == len(positions)
    assert set(positions) | set(state["holes"]) == set(range(state["next"]))
    assert not set(positions) & set(state["holes"])
    # Draw what is left of the last epoch alone: then each row was seen equally often.
    team = loaders(source, 1, state=state, shuffle=shuffle)
    left = len(state["holes"]) + -state["next"] % rows
    drawn += run_step(team, [left])
    assert team[0].state()["holes"] == []
    epochs = team[0].state()["next"] // rows
    assert Counter(index for _, index in drawn) == ({row: epochs for row in range(rows)} if epochs else {})
    assert team[0].epoch == epochs


@settings(max_examples=100)
@given(plan=steps)
def test_a_position_means_the_same_row_for_any_number_of_controllers(plan):
    alone = dict(run_step(loaders(Numbers(5), 1), [400]))
    state = None
    for draws in plan:
        team = loaders(Numbers(5), len(draws), state=state)
        assert all(alone[uid] == index for uid, index in run_step(team, draws))
        state = team[0].state()


@settings(max_examples=100)
@given(
    before=st.lists(st.integers(0, 5), min_size=2, max_size=2),
    after=st.lists(st.integers(0, 5), min_size=2, max_size=2),
)
def test_a_restored_loader_goes_on_as_if_it_had_not_stopped(before, after):
    going = loaders(Numbers(7), 2)
    run_step(going, before)
    stopped = loaders(Numbers(7), 2, state=going[0].state())
    assert run_step(going, after) == run_step(stopped, after)
    assert going[0].state() == stopped[0].state()


def test_cursor_by_hand():
    # Two controllers, in order. Pending 0 1 2 3 4 ...: controller 0 holds 0, 2, 4, controller 1 holds 1, 3, 5.
    team = loaders(Numbers(100), 2, shuffle=False)
    assert run_step(team, [3, 1]) == [(0, 0), (2, 2), (4, 4), (1, 1)]
    # 4 was the last position drawn and 3 was not drawn: it is a hole, and 5 comes next.
    assert (team[0].state()["next"], team[0].state()["holes"]) == (5, [3])
    assert team[0].epoch == 0.04
    # Pending 3 5 6 7: controller 0 holds 3, 6, controller 1 holds 5, 7. Nobody takes 3.
    assert run_step(team, [0, 2]) == [(5, 5), (7, 7)]
    assert (team[0].state()["next"], team[0].state()["holes"]) == (8, [3, 6])
    # Equal draws leave no hole.
    assert run_step(team, [2, 2]) == [(3, 3), (8, 8), (6, 6), (9, 9)]
    assert (team[0].state()["next"], team[0].state()["holes"]) == (10, [])


def test_a_step_begun_again_offers_the_same():
    (loader,) = loaders(Numbers(10), 1)
    loader.begin_step()
    first = [loader.draw() for _ in range(3)]
    loader.begin_step()
    assert [loader.draw() for _ in range(3)] == first


def test_epochs_are_shuffled_apart_and_by_the_seed():
    def order(seed):
        return [index for _, index in run_step(loaders(Numbers(50), 1, seed=seed), [100])]

    assert sorted(order(1)[:50]) == sorted(order(1)[50:]) == list(range(50))
    assert order(1)[:50] != order(1)[50:]
    assert order(1) == order(1) != order(2)


def test_end_step_refuses_counts_that_are_not_its_own():
    (loader,) = loaders(Numbers(3), 1)
    loader.draw()
    with pytest.raises(ValueError, match="does not fit controller 0"):
        loader.end_step([2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 4}, "the dataset's rows=3 but the checkpoint was made with 4"),
        ({"seed": 8}, "run.seed=7 but the checkpoint was made with 8"),
        ({"shuffle": False}, "data.shuffle=True but the checkpoint was made with False"),
    ],
)
def test_a_cursor_of_another_order_is_refused(change, said):
    (loader,) = loaders(Numbers(3), 1)
    with pytest.raises(CheckpointError, match=said):
        loader.restore({**loader.state(), **change})


def test_a_bad_row_ends_the_run_or_is_counted_and_replaced(caplog):
    with pytest.raises(DataError, match=r"1 bad row\(s\): numbers:2: torn"):
        run_step(loaders(Numbers(4, torn={1}), 1, shuffle=False), [2])
    (loader,) = loaders(Numbers(4, torn={1}), 1, shuffle=False, bad_rows="skip")
    assert [loader.draw() for _ in range(4)] == [(0, 0), (2, 2), (3, 3), (4, 0)]
    assert (loader.drawn(), loader.bad.count, loader.bad.reasons) == (5, 1, ["numbers:2: torn"])
    assert caplog.messages == ["skipped bad row 1: numbers:2: torn"]
    loader.end_step([5])
    assert loader.state()["next"] == 5


def test_skipping_everything_is_an_error_not_an_endless_loop():
    (loader,) = loaders(Numbers(3, torn={0, 1, 2}), 1, bad_rows="skip")
    with pytest.raises(DataError, match=r"3 bad row\(s\)"):
        loader.draw()


def test_rows_are_checked_before_anything_starts():
    source = Numbers(20, torn=range(0, 20, 2))
    with pytest.raises(DataError) as caught:
        check_rows(source, encode, "fail")
    assert str(caught.value) == (
        "10 bad row(s) of 20 looked at: numbers:1: torn (also numbers:3, numbers:5, numbers:7, numbers:9 and 5 more). "
        "Mend them or set data.bad_rows=skip"
    )
    assert caught.value.exit_status == 2
    assert check_rows(source, encode, "skip").count == 10
    assert check_rows(source, encode, "skip", limit=5).count == 3
    with pytest.raises(DataError, match="no usable row among the first 2"):
        check_rows(Numbers(2, torn={0, 1}), encode, "skip")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_rows_are_shared_out_once(count, caplog):
    shares = [share_of_rows(Numbers(7), encode, i, count, "fail") for i in range(count)]
    assert sorted(row for share in shares for row in share) == [(i, i) for i in range(7)]
    assert all(index % count == i for i, share in enumerate(shares) for _, index in share)
    assert share_of_rows(Numbers(4, torn={2}), encode, 0, 2, "skip") == [(0, 0)]
    assert caplog.messages == ["skipped 1 bad evaluation row(s): numbers:3: torn"]
