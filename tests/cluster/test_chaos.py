"""The benchmark that kills hits where it says, and tells what came of it. Real runs are in `tests/test_faults.py`."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest

from benchmarks import chaos, chaos_hooks


def test_the_points_at_which_phases_begin_are_there():
    for module, owner, method in chaos_hooks.POINTS:
        assert callable(getattr(getattr(importlib.import_module(module), owner), method))
    assert set(chaos_hooks.POINTS.values()) == set(chaos.PHASES)


def test_the_first_to_come_to_the_phase_that_is_asked_for_waits_and_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAOS", str(tmp_path))
    come = chaos_hooks.held(lambda phase: phase, "train")
    assert come("nothing is armed") and not (tmp_path / "reached").exists()
    (tmp_path / "armed").write_text("sync")
    assert come("another is armed") and not (tmp_path / "reached").exists()
    (tmp_path / "armed").write_text("train")
    done: list[str] = []
    first = threading.Thread(target=lambda: done.append(come("first")))
    first.start()
    while not (tmp_path / "reached").exists():
        pass
    assert come("second") and done == []
    (tmp_path / "go").touch()
    first.join(60)
    assert done == ["first"]


@pytest.mark.parametrize("same", [True, False])
def test_a_row_says_when_a_fault_was_noticed_and_mended_and_what_was_done_again(tmp_path, monkeypatch, same):
    class Run:
        folder = tmp_path
        said = tmp_path / "said"

        def __init__(self, place: Any, name: str) -> None:
            steps = [1, 2, 3, 4, 5, 5, 6] if name == "rank-sync-kill" else []
            self.said.write_text("".join(f"step {step}/6  reward 1\n" for step in steps))

        def disturb(self, *cell: str) -> float:
            assert cell == ("rank", "sync", "kill")
            return 1000.0

        def end(self) -> int:
            return 0

        def model(self) -> bytes:
            return b"same" if same else b"other"

        def rows(self) -> list[dict[str, Any]]:
            told = [
                {"at": 1000.5, "process": "run", "kind": "died", "text": "rank 0 died"},
                {
                    "at": 1008.0,
                    "process": "run",
                    "kind": "back",
                    "text": "going on from the end of step 4, after 7.5 s",
                },
            ]
            return [{"step": 4, "incidents": []}, {"step": 5, "incidents": told}]

    monkeypatch.setattr(chaos, "Run", Run)
    row = chaos.cell(tmp_path, "rank:sync:kill", b"same")
    assert (row["noticed"], row["mended"], row["steps_again"]) == (0.5, 8.0, 1)
    assert row["equal"] is same and row["said"] == ([] if same else ["rank 0 died"])
