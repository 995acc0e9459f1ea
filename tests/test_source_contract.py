"""Rows of every kind keep the contract of a source, as do simulated ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.simulation.worlds import costs, settings
from tests.source_contract import Case, SourceContract
from tests.tiny_models import tiny_tokenizer
from yatt.config.load import load_config
from yatt.data.encoders import row_encoder
from yatt.data.loader import Loader
from yatt.data.source import open_source
from yatt.protocols import Source
from yatt.simulation.loop import run
from yatt.simulation.world import World

ROWS = 7
KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"answer": "4"},
    "sft": {"response": "four"},
    "dpo": {"chosen": "four", "rejected": "five"},
}


class TestRows(SourceContract):
    @pytest.fixture(params=[(kind, shuffle) for kind in (*KINDS, "kto") for shuffle in (True, False)], ids=str)
    def case(self, request, tmp_path):
        algorithm, shuffle = request.param
        rows = [{"prompt": f"{i}+{i}=", **KINDS.get(algorithm, {})} for i in range(ROWS)]
        if algorithm == "kto":
            rows = [row | {"response": f"is {i}", "label": i % 2 == 0} for i, row in enumerate(rows)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [f"algorithm.name={algorithm}", f"data.path={path}", "data.chat_template=never", "model.path=m"]
        config = load_config(
            None, [*words, "train.steps=1", "train.batch_size=2", "model.context_length=64", "rollout.max_tokens=8"]
        )
        opened = open_source(config.data, seed=3)
        encode = row_encoder(config, tiny_tokenizer(), opened)

        def sources(count: int) -> list[Source[Any]]:
            place = {"seed": 3, "shuffle": shuffle, "count": count, "bad_rows": "fail"}
            return [Loader(opened, encode, index=index, **place) for index in range(count)]

        return Case(sources, ROWS)


def simulated(count: int) -> Sequence[Source[Any]]:
    world = World(settings(), costs(image_bytes=0), devices=2, controllers=count)
    return [controller.desk.source for controller in world.controllers]


CASES = [name for name in dir(SourceContract) if name.startswith("test_")]


@pytest.mark.parametrize("case", CASES)
def test_simulated_rows_keep_the_contract(case):
    async def main() -> None:
        getattr(SourceContract(), case)(Case(simulated, None))

    run(main())
