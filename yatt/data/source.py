"""From the settings to rows."""

from __future__ import annotations

from yatt.config.schema import Config, DataConfig
from yatt.data.rows import FirstRows, RowSource, open_files

_TRAINING, _EVALUATION = 0, 1


def open_source(data: DataConfig, seed: int) -> RowSource:
    """The training rows. Raises DataError or ConfigError naming the setting."""
    if data.path is not None:
        return open_files(data.path, "data.path")
    return _task_rows(data, data.size, [seed, _TRAINING])


def open_evaluation(config: Config) -> RowSource | None:
    """The held-out rows: those of `evaluate.path`, or `evaluate.size` fresh ones of the tasks; None where neither."""
    evaluate = config.evaluate
    if evaluate.path is not None:
        source = open_files(evaluate.path, "evaluate.path")
        return source if evaluate.size is None else FirstRows(source, evaluate.size)
    if config.data.tasks and evaluate.size is not None:
        return _task_rows(config.data, evaluate.size, [config.run.seed, _EVALUATION])
    return None


def _task_rows(data: DataConfig, size: int, seed: list[int]) -> RowSource:
    # reasoning-gym takes over a second to import; a run on files never needs it.
    from yatt.data.tasks import TaskRows  # noqa: PLC0415

    return TaskRows(data.tasks, data, size, seed)
