"""The benchmark's engine and rank, which also write down the images they are given, next to the run's model."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import datapath_parts
from yatt.config.schema import Config, RolloutConfig
from yatt.reports import UpdateReport
from yatt.types import Completion, Media, Request, SampleKey, Share


def note(file: Path, key: SampleKey, media: Sequence[Media]) -> None:
    for image in media:
        array = image.handle
        row = {
            "uid": key.uid,
            "bytes": image.nbytes,
            "crc": zlib.crc32(array),
            "shared": not array.flags.writeable and not array.flags.owndata,
            "at": f"{os.getpid()} {array.ctypes.data}",
        }
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


class Engine(datapath_parts.Engine):
    def __init__(self, config: RolloutConfig, model: str, **others: Any) -> None:
        super().__init__(config, **others)
        self._file = Path(model) / "engine.jsonl"

    def answer(self, request: Request) -> Completion:
        note(self._file, request.key, request.media)
        return super().answer(request)


class Rank(datapath_parts.Rank):
    def __init__(self, config: Config, **others: Any) -> None:
        super().__init__(config, **others)
        self._file = Path(config.model.path) / "rank.jsonl"

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        for sample in (s for share in shares for update in share.updates for micro in update for s in micro):
            note(self._file, sample.key, sample.media)
        return super().update(shares)
