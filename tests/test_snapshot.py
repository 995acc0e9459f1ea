"""Tensors that are written while their owner changes them."""

from __future__ import annotations

import threading

import pytest
import torch

from yatt.training import snapshot
from yatt.training.snapshot import Snapshot

SIZES = (5, 1, 0, 12)
"""Pieces of 4 numbers: 2 + 1 + 1 (empty) + 3."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 16)


def tensors():
    return [torch.arange(size, dtype=torch.float32) + 10 * size for size in SIZES]


def bytes_of(all_of_them):
    return b"".join(tensor.numpy().tobytes() for tensor in all_of_them)


def test_all_bytes_come_in_order():
    given = tensors()
    assert b"".join(Snapshot(given).taken()) == bytes_of(given)


@pytest.mark.parametrize("limit", [None, 0, 16, 40])
@pytest.mark.parametrize("before", range(8))
def test_what_is_written_is_what_was_there_at_first(limit, before):
    """The owner secures the tensors and changes them once the writer has written so many pieces."""
    given = tensors()
    wanted, taking = bytes_of(given), Snapshot(given, limit)
    written, reached, go_on = bytearray(), threading.Event(), threading.Event()

    def write():
        for number, data in enumerate(taking.taken()):
            if number == before:
                reached.set()
                go_on.wait(10)
            written.extend(data)
        reached.set()

    def change():
        taking.secure()
        for tensor in given:
            tensor.fill_(-1)

    writer, owner = threading.Thread(target=write), threading.Thread(target=change)
    writer.start()
    assert reached.wait(10)
    owner.start()
    if before == 0:
        owner.join(0.05)
        assert owner.is_alive(), "the piece at work is read from where it lies"
    copies = taking._copied_bytes
    go_on.set()
    writer.join(10)
    owner.join(10)
    assert not owner.is_alive() and bytes(written) == wanted and all((tensor == -1).all() for tensor in given)
    assert limit is None or copies <= limit
    assert taking._copied_bytes == 0


def test_a_writer_that_fails_lets_the_owner_go():
    given = tensors()
    taking = Snapshot(given, 0)
    for _ in taking.taken():
        break  # a full disk
    taking.forget()
    taking.secure()
    assert not taking._copies
