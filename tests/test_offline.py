"""Controllers that learn from rows, on doubles: what is trained and evaluated does not depend on how many there are."""

import asyncio

import numpy as np
import pytest
from doubles import RecordingTrainer, Ticks

from yatt.config.schema import Config, ModelConfig, TrainConfig
from yatt.controller.assembly import Parts, offline_controller
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.reference_rows import PrecomputedReference
from yatt.data.loader import Loader, good_rows
from yatt.types import Pair, Sample, SampleKey

pytestmark = pytest.mark.slow


class Rows:
    """Rows by number. Row i is a sequence of 2 + i mod 5 tokens i, and with `pairs` one more of 2 + i mod 3."""

    def __init__(self, rows, pairs):
        self.rows, self.pairs = rows, pairs

    def __len__(self):
        return self.rows

    def row(self, index):
        return {}

    def origin(self, index):
        return f"row {index}"

    def encode(self, row, uid, index):
        first, second = (
            Sample(key=SampleKey(uid, 0), tokens=np.full(n, index, dtype=np.int32), loss_mask=np.arange(n) > 0)
            for n in (2 + index % 5, 2 + index % 3)
        )
        return Pair(first=first, second=second) if self.pairs else first


async def run(controllers, pairs, held_out=7, precomputed=False):
    """Two steps on two ranks, an evaluation before and after; the trainer, and what each controller was told. With
    `precomputed`, the reference is asked beforehand."""
    hub, trainer, source = Hub(controllers, timeout=5), RecordingTrainer(2), Rows(20, pairs)
    config = Config(model=ModelConfig(path="none"), train=TrainConfig(steps=9, batch_size=4, updates_per_step=2))

    async def one(index):
        peers = HubPeers(index, controllers, hub, None if index else hub)
        place = {"index": index, "count": controllers}
        exchange = Exchange(peers, ranks=2, updates=2, budget=11, quadratic=0.01)
        parts = Parts(config=config, peers=peers, trainer=trainer, exchange=exchange, clock=Ticks())
        mine = [source.encode({}, row, row) for row in range(index, held_out, controllers)]
        reference, encode = None, source.encode
        if precomputed:
            rows = good_rows(source, encode, **place)
            reference = PrecomputedReference(peers=peers, exchange=exchange, trainer=trainer, rows=rows, held_out=mine)
            encode = reference.added_to(encode)
        loader = Loader(source, encode, seed=3, shuffle=True, **place, bad_rows="fail")
        controller = offline_controller(parts, loader, mine, reference)
        seen = 0
        while rows := await controller.prepare():
            seen += rows
        assert seen == (20 + held_out if precomputed else 0)
        before = await controller.evaluate(0)
        reports = [await controller.step(step) for step in (1, 2)]
        return before, await controller.evaluate(2), reports

    return trainer, await asyncio.gather(*(one(index) for index in range(controllers)))


def keys(updates):
    return [[[[s.key[:2] for s in micro] for micro in rank] for rank in update] for update in updates]


@pytest.mark.parametrize("pairs", [False, True])
async def test_rows_are_trained_and_evaluated_alike_by_any_number_of_controllers(pairs):
    results = [await run(controllers, pairs) for controllers in (1, 2, 3)]
    for trainer, told in results:
        assert trainer.steps.keys() == {1, 2} and trainer.evaluated.keys() == {0, 2}
        assert [len(trainer.steps[step]) for step in (1, 2)] == [2, 2]
        assert all(told[0][:2] == other[:2] for other in told)
        assert [report.update.loss for report in told[0][2]] == [1.0, 2.0]
        assert keys(trainer.steps[2]) == keys(results[0][0].steps[2])
        assert keys(trainer.evaluated[2]) == keys(results[0][0].evaluated[2])
        assert told[0][:2] == results[0][1][0][:2]
    (update,) = results[0][0].evaluated[2]  # one, where a step has two
    assert sorted(s.key.uid for rank in update for micro in rank for s in micro) == list(range(7))
    assert all(sum(len(one.tokens) for s in micro for one in s.sequences) <= 11 for rank in update for micro in rank)
    assert len(update[0]) > 1, "the held-out rows take several micro-batches"
    report = results[0][1][0][1]
    if not pairs:
        # Rows 0 to 6 have 2 3 4 5 6 2 3 tokens, all but one trained: 18. Their sum is 3 + 8 + 15 + 24 + 10 + 18 = 78.
        assert (report.prompts, report.loss) == (7, 78 / 18)
        assert report.pair_accuracy is None and report.intervals == {}
    else:
        # Second sequences of 2 3 4 2 3 4 2 tokens: the first is longer in rows 3, 4 and 6. Trained are 25 + 20 - 14,
        # and the sum is 1 x 6 + 2 x 8 + 3 x 7 + 4 x 9 + 5 x 6 + 6 x 5 = 139.
        assert (report.prompts, report.pair_accuracy, report.loss) == (7, 3 / 7, 139 / 31)
        # Wilson, z = 1.96: (3/7 + 0.2744 +- 1.96 sqrt(0.03499 + 0.01960)) / 1.5488.
        assert report.intervals["pair_accuracy"] == pytest.approx((0.158, 0.750), abs=1e-3)


@pytest.mark.parametrize("controllers", [1, 2, 3])
async def test_what_the_reference_says_travels_with_every_row(controllers, monkeypatch):
    """Row i has 2 + i mod 5 and 2 + i mod 3 tokens, which is what the double's reference says of it."""
    monkeypatch.setattr("yatt.controller.reference_rows.CHUNK", 3)
    (plain, _), (trainer, _) = await run(1, True), await run(controllers, True, precomputed=True)
    assert keys(trainer.steps[2]) == keys(plain.steps[2]) and keys(trainer.evaluated[2]) == keys(plain.evaluated[2])
    for updates in (*trainer.steps.values(), *trainer.evaluated.values()):
        samples = [s for update in updates for rank in update for micro in rank for s in micro]
        assert samples and all(
            [s.first.reference, s.second.reference] == [2 + int(s.first.tokens[0]) % n for n in (5, 3)] for s in samples
        )


async def test_ranks_without_held_out_rows_still_take_part():
    trainer, told = await run(2, True, held_out=1)
    assert keys(trainer.evaluated[2]) == [[[[(0, 0)]], [[]]]]
    assert told[0][0] == told[1][0] and told[0][0].prompts == 1
