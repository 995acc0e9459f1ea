"""Bugs planted in the controllers' code: the simulation finds each, and says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.simulation.test_fault_seeds import seconds, world
from yatt.controller import exchange
from yatt.controller.admission import Admission
from yatt.controller.desk import Desk
from yatt.controller.exchange import Exchange
from yatt.controller.rollouter import Rollouter
from yatt.controller.router import Router
from yatt.controller.slots import Slots
from yatt.controller.step import Controller
from yatt.errors import YattError
from yatt.simulation.faults import Fault, Kind, draw_faults
from yatt.types import Completion, SampleKey

SEEDS = 60


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def findings(kinds: Sequence[Kind] = (), **options: Any) -> str:
    """What the first seed says that finds something; "" where none does."""
    for seed in range(SEEDS):
        faults: list[Fault] = draw_faults(seed, until=0.8 * CLEAN[seed % 12], kinds=kinds) if kinds else []
        try:
            wrong = world(seed, faults, **options).wrong
        except YattError as error:
            wrong = (f"{type(error).__name__}: {error}",)
        if wrong:
            return "; ".join(wrong)
    return ""


CLEAN = [seconds(seed) for seed in range(12)]  # measured before anything is planted

Plant = Callable[[pytest.MonkeyPatch], None]


def lose_groups_of_a_dead_engine(patch: pytest.MonkeyPatch) -> None:
    """What a dead engine had is given up, and its prompts are not offered again."""
    give_up = Rollouter._waste

    def bury(self: Router, call: Any, error: Exception) -> None:
        self.fleet.lose(call.engine, call.generator, error)
        call.inbox.put_nowait([unbegun(key) for key in call.pending])
        self._release(call, list(call.pending.values()))
        call.pending.clear()

    def waste(self: Rollouter, group: Any) -> None:
        given_back = self._source.give_back
        self._source.give_back = lambda uid: None
        give_up(self, group)
        self._source.give_back = given_back

    patch.setattr(Router, "_lose", bury)
    patch.setattr(Rollouter, "_waste", waste)


def forget_requests_of_a_dead_engine(patch: pytest.MonkeyPatch) -> None:
    """Nobody draws them again, and nobody is told."""

    def bury(self: Router, call: Any, error: Exception) -> None:
        self.fleet.lose(call.engine, call.generator, error)
        self._release(call, list(call.pending.values()))
        call.pending.clear()

    patch.setattr(Router, "_lose", bury)


def unbegun(key: SampleKey) -> Completion:
    none = np.zeros(0, dtype=np.int32)
    return Completion(key=key, tokens=none, rollout_logprobs=none.astype(np.float32), spans=(), finish="aborted")


def train_and_carry(patch: pytest.MonkeyPatch) -> None:
    """A group that is trained stays for the next step as well."""
    settle = Rollouter._settle

    def twice(self: Rollouter, quota: int, version: int, prompt: Any, outcome: Any) -> None:
        kept = len(self._tally.kept)
        settle(self, quota, version, prompt, outcome)
        self.carried += self._tally.kept[kept:]

    patch.setattr(Rollouter, "_settle", twice)


def send_a_sample_to_two_micro_batches(patch: pytest.MonkeyPatch) -> None:
    lay_out = exchange._lay_out

    def twice(*arguments: Any) -> Any:
        laid = lay_out(*arguments)
        filled = next((micro for updates in laid.values() for micros in updates for micro in micros if micro), [])
        filled += filled[:1]
        return laid

    patch.setattr(exchange, "_lay_out", twice)


def recover_without_publishing(patch: pytest.MonkeyPatch) -> None:
    """After a death the engines keep the weights they had, of a later step than the checkpoint's."""

    async def restore(self: Controller, state: Any, carried: Any = ()) -> None:
        self.desk.restore(state)
        await self.phases.enter("train")

    patch.setattr(Controller, "restore", restore)


def train_on_any_version(patch: pytest.MonkeyPatch) -> None:
    """Groups whose scores come in a later step, and those carried over, are not looked at for their age."""
    patch.setattr(Rollouter, "_fresh", lambda self, group, version: True)


def label_tokens_with_the_version_now_served(patch: pytest.MonkeyPatch) -> None:
    """A group that was carried over says it was sampled just now."""
    collect = Rollouter.collect

    async def relabelled(self: Rollouter, quota: int, version: int) -> Any:
        groups, counts = await collect(self, quota, version)
        for group in groups:
            for t in group.trajectories:
                for span in t.spans:
                    object.__setattr__(span, "version", version)
        return groups, counts

    patch.setattr(Rollouter, "collect", relabelled)


def forget_the_ranks(patch: pytest.MonkeyPatch) -> None:
    """The ranks are not given their memory back, and everyone waits for them for ever."""
    change = Slots.change

    async def forgetting(self: Slots, awake: Any, *, sampling: bool, ranks: bool) -> None:
        self._ranks_awake |= not sampling
        await change(self, awake, sampling=sampling, ranks=ranks)

    patch.setattr(Slots, "change", forgetting)


def never_tell_of_room(patch: pytest.MonkeyPatch) -> None:
    """Groups that wait for room at the engines wait for ever."""

    def silent(self: Admission, engine: int, requests: int) -> None:
        self.running[engine] -= requests

    patch.setattr(Admission, "came_back", silent)


def forget_the_remainder(patch: pytest.MonkeyPatch) -> None:
    """Five prompts over two controllers: two and two."""
    made = Desk.__init__

    def short(self: Desk[Any], **parts: Any) -> None:
        made(self, **parts)
        self.quota = parts["batch_size"] // parts["peers"].count

    patch.setattr(Desk, "__init__", short)


def collect_one_too_few(patch: pytest.MonkeyPatch) -> None:
    collect = Rollouter.collect
    patch.setattr(Rollouter, "collect", lambda self, quota, version: collect(self, quota - 1, version))


def collect_one_too_many(patch: pytest.MonkeyPatch) -> None:
    collect = Rollouter.collect
    patch.setattr(Rollouter, "collect", lambda self, quota, version: collect(self, quota + 1, version))


def save_without_what_is_carried(patch: pytest.MonkeyPatch) -> None:
    state = Controller.state

    async def forgetful(self: Controller) -> Any:
        return (await state(self))[0], []

    patch.setattr(Controller, "state", forgetful)


def save_without_what_was_given_back(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Desk[Any], tag: str) -> None:
        pass

    patch.setattr(Desk, "close_source", nothing)


def leave_samples_out(patch: pytest.MonkeyPatch) -> None:
    """The last sample of each controller is not sent."""
    balance = Exchange.balance
    patch.setattr(Exchange, "balance", lambda self, step, samples: balance(self, step, samples[:-1]))


ENGINE: dict[str, Any] = {"kinds": ("engine dies",)}
DEATHS: dict[str, Any] = {"kinds": ("controller dies", "rank dies")}
CARRY: dict[str, Any] = {"oversample": 3.0, "max_staleness": 1}

# The bug, the runs it is looked for in, and what is said of it.
PLANTED: list[tuple[Plant, dict[str, Any], str]] = [
    (lose_groups_of_a_dead_engine, ENGINE, "was lost"),
    (forget_requests_of_a_dead_engine, ENGINE, "WaitTimeout|Stuck"),
    (train_and_carry, CARRY, "was trained in 2 steps"),
    (send_a_sample_to_two_micro_batches, {}, "was accepted 1 times, trained 2 times"),
    (leave_samples_out, {}, "was accepted 1 times, trained 0 times"),
    (recover_without_publishing, DEATHS | {"every": 2}, "has tokens of versions"),
    (train_on_any_version, {"oversample": 3.0}, "has tokens of versions"),
    (label_tokens_with_the_version_now_served, CARRY, "says .* was sampled under"),
    (forget_the_ranks, {}, "Stuck|WaitTimeout"),
    (never_tell_of_room, {"engine_args": {"tensor_parallel_size": 4, "max_num_seqs": 1}}, "WaitTimeout|Stuck"),
    (forget_the_remainder, {"batch": 5}, "trained 4 of 5 groups"),
    (collect_one_too_few, {}, "trained 2 of 4 groups"),
    (collect_one_too_many, {}, "trained 6 of 4 groups"),
    (save_without_what_is_carried, CARRY | DEATHS, "was lost"),
    (save_without_what_was_given_back, {"oversample": 3.0} | DEATHS, "was lost"),
]


@pytest.mark.parametrize(("plant", "where", "said"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(
    plant: Plant, where: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=said):
        found = findings(**where)
        assert not found, found


@pytest.mark.slow
@pytest.mark.parametrize("where", [where for _, where, _ in PLANTED[::2]], ids=str)
def test_nothing_is_found_where_nothing_is_planted(where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.test_mutations.SEEDS", 6)
    assert findings(**where) == ""
