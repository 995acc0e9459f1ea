"""Images on real Ray under the real crew: held once each, seen right by engine and rank, gone with the step."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.internal_api import node_stats

from benchmarks.datapath_parts import BACKENDS, Size, lay_out, settings
from yatt.cluster.crew import ClusterCrew
from yatt.cluster.session import ray_session

pytestmark = pytest.mark.slow

SIZE = Size(prompts=6, responses=3, tokens=16, image_bytes=200_000, controllers=2)
SEEING = replace(BACKENDS, generator="tests.seeing_backends:Engine", trainer="tests.seeing_backends:Rank")


def store() -> Any:
    (node,) = ray.nodes()
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats


def noted(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def two_steps(folder: Path) -> tuple[list[int], list[int]]:
    """Bytes put into the store by each step, and bytes left in it shortly after."""
    created, left = [], []
    crew = ClusterCrew(settings(folder, SIZE), folder, lambda name, state: None, SEEING)
    try:
        await crew.start(model=str(folder / "model"), train=True, generate=True)
        for step in (1, 2):
            before = store().cumulative_created_bytes
            report = await crew.step(step)
            assert report.counts.media_bytes == 6 * 200_000
            created.append(store().cumulative_created_bytes - before)
            deadline = time.monotonic() + 60
            while store().object_store_bytes_used and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            left.append(store().object_store_bytes_used)
        assert crew.payload == 0
    finally:
        await crew.close()
    return created, left


@pytest.mark.timeout(180)
def test_an_image_is_held_once_seen_by_engine_and_rank_and_gone_with_the_step(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lay_out(tmp_path, SIZE)
    config = settings(tmp_path, SIZE)
    with ray_session(config.cluster):
        created, left = asyncio.run(two_steps(tmp_path))
    # Six images of 200 kB a step; besides them a few small shares.
    assert all(6 * 200_000 <= size < 6 * 200_000 + 100_000 for size in created), created
    assert left == [0, 0]

    engine, rank = noted(tmp_path / "model" / "engine.jsonl"), noted(tmp_path / "model" / "rank.jsonl")
    files = Counter(zlib.crc32(file.read_bytes()) for file in tmp_path.glob("*.image"))
    for seen in (engine, rank):
        # Two steps see every row twice, each time by three siblings.
        assert Counter(row["crc"] for row in seen) == {crc: 6 for crc in files}
        assert all(row["shared"] and row["bytes"] == 200_000 for row in seen)
        for uid in range(12):
            assert len({(row["at"], row["crc"]) for row in seen if row["uid"] == uid}) <= 2, "one place per process"
    assert {row["uid"]: row["crc"] for row in engine} == {row["uid"]: row["crc"] for row in rank}
