"""The exchange: every sample goes once, to the rank that trains it, and every rank knows whose shares to wait for."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from yatt import balance
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.types import Denominator, Pair, Sample, SampleKey


def sample(uid, length, sibling=0):
    """The second half of its tokens is trained."""
    mask = np.zeros(length, dtype=bool)
    mask[length // 2 :] = True
    return Sample(key=SampleKey(uid, sibling), tokens=np.full(length, uid, dtype=np.int32), loss_mask=mask)


async def exchange(held, *, nodes=None, **settings):
    """The shares of each controller; `held` are the samples of each."""
    hub = Hub(len(held), timeout=5)
    settings = dict(ranks=4, updates=1, budget=64, quadratic=0.0) | settings
    return await asyncio.gather(
        *(
            Exchange(HubPeers(i, len(held), hub), node=nodes[i] if nodes else f"node {i}", **settings).balance(
                5, samples
            )
            for i, samples in enumerate(held)
        )
    )


def keys(share):
    return [[[tuple(s.key[:2]) for s in micro] for micro in update] for update in share.updates]


def whole(shares, rank):
    """[update][micro-batch] -> keys, of all senders to one rank."""
    sent = [keys(share) for mine in shares for share in mine if share.rank == rank]
    return [
        [sorted(chain.from_iterable(parts)) for parts in zip(*update, strict=True)]
        for update in zip(*sent, strict=True)
    ]


@pytest.mark.parametrize("stages", [1, 2])
async def test_each_sample_is_sent_once_whoever_holds_it(stages):
    everything = [sample(uid, 3 + (uid * 7 + sibling) % 9, sibling) for uid in range(20) for sibling in range(2)]
    results = []
    for count in (1, 2, 3):
        shares = await exchange([everything[i::count] for i in range(count)], updates=2, budget=24, stages=stages)
        flat = [share for mine in shares for share in mine]
        sent = Counter(s.key for share in flat for update in share.updates for micro in update for s in micro)
        assert sent == Counter(s.key for s in everything)
        for i, mine in enumerate(shares):
            assert all(share.controller == i and share.step == 5 for share in mine)
            ranks = [share.rank for share in mine]
            assert ranks == sorted(set(ranks))
        for rank in range(4):
            senders = tuple(share.controller for share in flat if share.rank == rank)
            assert senders and all(share.senders == senders for share in flat if share.rank == rank)
        assert len({tuple(len(update) for update in share.updates) for share in flat}) == 1
        # 20 prompts x 2 siblings over two updates of consecutive samples: uids 0 to 9 first.
        trained = [sum(s.trained_tokens for s in everything if s.key.uid // 10 == update) for update in range(2)]
        assert all(s.denominators == tuple(Denominator(tokens=t, sequences=20) for t in trained) for s in flat)
        results.append([whole(shares, rank) for rank in range(4)])
    assert results[0] == results[1] == results[2]


async def test_a_rank_for_which_nobody_has_samples_hears_of_controller_0():
    # 6 tokens to rank 0, 4 to rank 1; trained are 3 and 2.
    first, second, third = await exchange([[], [sample(8, 6)], [sample(3, 4)]])
    assert [(s.rank, s.senders, keys(s)) for s in first] == [(2, (0,), [[[]]]), (3, (0,), [[[]]])]
    assert [(s.rank, s.senders, keys(s)) for s in second] == [(0, (1,), [[[(8, 0)]]])]
    assert [(s.rank, s.senders, keys(s)) for s in third] == [(1, (2,), [[[(3, 0)]]])]
    assert {s.denominators for s in first + second + third} == {(Denominator(tokens=5, sequences=2),)}


async def test_senders_are_those_with_samples_for_the_rank():
    # 9 | 8, then 3 to the 8 (11), then 2 to the 9 (11): rank 0 gets 9 and 2, rank 1 gets 8 and 3.
    first, second, third = await exchange([[sample(0, 9), sample(1, 2)], [sample(2, 8)], [sample(3, 3)]], ranks=2)
    assert [(s.rank, s.senders, keys(s)) for s in first] == [(0, (0,), [[[(0, 0), (1, 0)]]])]
    assert [(s.rank, s.senders, keys(s)) for s in second] == [(1, (1, 2), [[[(2, 0)]]])]
    assert [(s.rank, s.senders, keys(s)) for s in third] == [(1, (1, 2), [[[(3, 0)]]])]


async def test_a_step_without_samples_reaches_every_rank():
    first, second = await exchange([[], []], updates=2)
    assert [(s.rank, s.senders, s.updates) for s in first] == [(rank, (0,), ((), ())) for rank in range(4)]
    assert first[0].denominators == (Denominator(tokens=0, sequences=0),) * 2
    assert second == []


async def test_samples_without_trained_tokens_are_no_sequences():
    silent = Sample(key=SampleKey(1, 0), tokens=np.ones(4, dtype=np.int32), loss_mask=np.array([True] + [False] * 3))
    (mine,) = await exchange([[silent, sample(2, 6)]], ranks=1)
    assert mine[0].denominators == (Denominator(tokens=3, sequences=1),)


async def test_each_row_of_a_conversation_is_a_sequence():
    rows = [replace(sample(1, 6), key=SampleKey(1, 0, turn)) for turn in (0, 2, 3)]
    (mine,) = await exchange([[*rows, sample(2, 6)]], ranks=1)
    assert mine[0].denominators == (Denominator(tokens=12, sequences=4),)


async def test_samples_stay_on_their_node():
    # Alone, the longer sample would go to rank 0 and the other to rank 1.
    held = [[sample(0, 9)], [sample(1, 8)]]
    shares = await exchange(held, nodes=["a", "b"], ranks=2, rank_nodes=["b", "a"])
    assert [[s.rank for s in mine] for mine in shares] == [[1], [0]]
    shares = await exchange(held, nodes=["a", "b"], ranks=2, rank_nodes=["a", "a"])
    assert [[s.rank for s in mine] for mine in shares] == [[0], [1]]


async def test_everyone_asks_for_the_same_assignment():
    asked = []

    def assign(lengths, **settings):
        lists = [settings.pop(name).tolist() for name in ("seconds", "holders")]
        images = settings.pop("images")
        asked.append((lengths.tolist(), *lists, images.patches.tolist(), images.costs.tolist(), settings))
        return balance.assign(lengths, **settings)

    await exchange([[sample(4, 9), sample(0, 7)], [sample(2, 8)]], nodes=["a", "b"], ranks=2, assign=assign)
    rest = dict(ranks=2, updates=1, budget=64, quadratic=0.0, stages=1, rank_nodes=None)
    assert asked == [([7, 8, 9], [0, 0, 0], ["a", "b", "a"], [0, 0, 0], [0, 0, 0], rest)] * 2


def pair(uid, first, second):
    """Two sequences, of which all but the first token is trained."""
    one, other = (
        Sample(key=SampleKey(uid, 0), tokens=np.full(n, uid, dtype=np.int32), loss_mask=np.arange(n) > 0)
        for n in (first, second)
    )
    return Pair(first=one, second=other)


async def test_a_pair_costs_what_its_sequences_cost_and_counts_once():
    # Tokens + tokens^2: 6 + 36 = 42 of the single; 2 (3 + 9) = 24 of each pair, and 6 + 36 were they one sequence. The
    # single goes first, alone, while both pairs (48) go to the other rank; were all 42 alike, rank 0 would have two.
    held = [[pair(0, 3, 3), sample(1, 6), pair(2, 3, 3)]]
    (shares,) = await exchange(held, ranks=2, quadratic=1.0)
    assert [keys(s) for s in shares] == [[[[(1, 0)]]], [[[(0, 0), (2, 0)]]]]
    # Trained: 3 of the single, 2 x 2 of each pair.
    assert {s.denominators for s in shares} == {(Denominator(tokens=11, sequences=3),)}


async def test_what_is_evaluated_is_not_divided_into_updates():
    hub = Hub(1, timeout=5)
    one = Exchange(HubPeers(0, 1, hub), ranks=1, updates=3, budget=8, quadratic=0.0)
    (share,) = await one.balance(5, [sample(uid, 4) for uid in range(4)], work="evaluate")
    assert keys(share) == [[[(0, 0), (2, 0)], [(1, 0), (3, 0)]]]
    assert share.denominators == (Denominator(tokens=8, sequences=4),)
