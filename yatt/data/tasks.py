"""Procedural tasks of reasoning-gym as rows: question, answer, and what the task's own verifier needs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import reasoning_gym
from reasoning_gym.factory import DATASETS

from yatt.config.schema import DataConfig, TaskConfig
from yatt.data.rows import Row
from yatt.errors import ConfigError


class TaskRows:
    """`size` rows, each of a task drawn by weight. The same tasks, size and seed give the same rows.

    The column `reasoning_gym` holds what the task's own verifier needs: `task`, its name, and `entry`, the row as
    reasoning-gym made it.
    """

    def __init__(self, tasks: Sequence[TaskConfig], data: DataConfig, size: int, seed: Sequence[int]) -> None:
        weights = np.array([task.weight for task in tasks])
        rng = np.random.default_rng(list(seed))
        self._names = [task.name for task in tasks]
        # A task's row i is made from its seed + i: seeds far apart keep tasks, and training and evaluation, apart.
        seeds = [int(s) for s in rng.integers(0, 2**31, size=len(tasks))]
        self._tasks = [_create(task, size, seed) for task, seed in zip(tasks, seeds, strict=True)]
        self._choice = rng.choice(len(tasks), size=size, p=weights / weights.sum())
        self._prompt_key, self._answer_key = data.prompt_key, data.answer_key

    def __len__(self) -> int:
        return len(self._choice)

    def row(self, index: int) -> Row:
        task = int(self._choice[index])
        entry = self._tasks[task][index]
        return {
            self._prompt_key: entry["question"],
            self._answer_key: entry["answer"],
            "reasoning_gym": {"task": self._names[task], "entry": entry},
        }

    def origin(self, index: int) -> str:
        return f"{self._names[int(self._choice[index])]}:{index + 1}"

    def folder(self, index: int) -> str:
        return ""


def _create(task: TaskConfig, size: int, seed: int) -> reasoning_gym.dataset.ProceduralDataset:
    if task.name not in DATASETS:
        near = difflib.get_close_matches(task.name, DATASETS, n=1, cutoff=0.0)
        raise ConfigError(f"data.tasks: {task.name!r} is no reasoning-gym task; did you mean {near[0]!r}?")
    try:
        return reasoning_gym.create_dataset(task.name, **{**task.config, "size": size, "seed": seed})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"data.tasks: the config of {task.name!r} is refused: {error}; got {task.config}") from None
