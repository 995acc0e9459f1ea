"""YATT from Python: the same commands, with objects in place of files. Imports nothing heavy.

What is computed runs in a process of its own (`yatt.faces.waiting`), as the command line would start it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from yatt.config.load import leaves, load_config, merged
from yatt.config.load import save_config as write_config
from yatt.config.paths import absolute
from yatt.config.schema import Config
from yatt.config.yaml_core import inline
from yatt.errors import ConfigError
from yatt.faces import waiting
from yatt.faces.choose import Choice
from yatt.faces.given import copy, kept, waiting_room
from yatt.faces.keywords import nested
from yatt.faces.plot import Plot, plot
from yatt.faces.rundir import RunDirectory

Settings: TypeAlias = Config | str | os.PathLike[str] | Mapping[str, Any] | None
"""What a call may begin with: a config, the file of one, or nested settings."""


def configure(config: Settings = None, **settings: Any) -> Config:
    """The config of a call: `settings` over those of `config`. Without a `config`, what is not given is chosen, and
    printed, as for a command without one.

    `model`, `data`, `reward`, `algorithm`, `environment` and `evaluate` take a mapping, or one value; other sections
    a mapping. Dotted names go through `**{"rollout.top_p": 0.9}`, and some settings have short names, such as `steps`.
    Where a setting names a function, a function or class will do; where it names rows, a list of them. Raises
    ConfigError."""
    values = nested(settings, waiting_room)
    if isinstance(config, Config):
        return load_config(None, [], merged(absolute(config.model_dump()), values)) if values else config
    if isinstance(config, Mapping):
        return configure(**{**config, **{name: value for name, value in settings.items() if value is not None}})
    if config is not None:
        return load_config(os.fspath(config), [], values)
    choice = Choice()
    chosen = load_config(None, [], values, choice)
    for line in choice.lines():
        print(line)
    return chosen


def train(
    config: Settings = None,
    *,
    model: Any = None,
    data: Any = None,
    reward: Any = None,
    algorithm: Any = None,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Train, as `yatt train` does, and return the run; arguments as of `configure`. With `overwrite` a run that the
    folder holds is removed first. Waits for the end of the run.

    An interrupt stops as Ctrl-C at a terminal: after the step under way, which is saved; a second one at once. Raises
    the YattError that the run ended with, and KeyboardInterrupt after an interrupt."""
    config = configure(config, model=model, data=data, reward=reward, algorithm=algorithm, **settings)
    folder = Path(config.run.dir).absolute() / config.run.name
    waiting.run(["train", _file(config), *(["--overwrite"] if overwrite else [])])
    return Run(folder)


def evaluate(
    source: Run | str | os.PathLike[str],
    *,
    data: Any = None,
    samples: int = 4,
    checkpoint: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a run's newest checkpoint is worth, or `checkpoint`, or a model that is not trained yet: the folder of one;
    as `yatt eval --json` says it. `data` are the held-out rows, other settings as of `configure`. Waits for it."""
    folder = source.path if isinstance(source, Run) else Path(source)
    values = nested({"data": data, **settings}, waiting_room)
    words = ["eval", str(folder), *_words(values), f"--samples={samples}", "--json"]
    words += [f"--checkpoint={os.fspath(checkpoint)}"] if checkpoint is not None else []
    report: dict[str, Any] = json.loads(waiting.run(words, answer=True))
    return report


def plan(
    config: Settings = None,
    *,
    devices: int | Sequence[int] | None = None,
    controllers: int | None = None,
    simulated_steps: int = 10,
    html: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a config would do on so many devices, by simulation, as `yatt plan --json` says it. With several numbers
    of devices, `plans` has one for each. Arguments as of `configure`; `html` is a page to write."""
    counts = [devices] if isinstance(devices, int) else devices
    asked = {
        "devices": None if counts is None else ",".join(map(str, counts)),
        "controllers": controllers,
        "steps": simulated_steps,
        "html": None if html is None else os.fspath(html),
    }
    words = ["plan", _file(configure(config, **settings)), "--json"]
    words += [f"--{option}={value}" for option, value in asked.items() if value is not None]
    told: dict[str, Any] = json.loads(waiting.run(words, answer=True))
    return told


def save_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write every setting as YAML that `yatt train` and `configure` read; what it was given as objects and rows goes
    into a folder of its name beside."""
    mine, moves = kept(config, Path(path).absolute().with_suffix(".given"))
    copy(moves)
    write_config(mine, Path(path))


class Run:
    """A run's folder, finished or not; what it holds is read when it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ConfigError where there is no run."""
        self.path = Path(path)
        self._folder = RunDirectory(self.path)
        if not self._folder.config.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml; give runs/NAME")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in a folder. Raises ConfigError where there is none."""
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Config:
        """Every setting of the run: `train(run.config, name="another")` does the same again."""
        return load_config(str(self._folder.config), [])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row for each step, as in metrics.jsonl; `pandas.DataFrame(run.metrics)` is a table of them."""
        return self._folder.read_metrics()

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest step first."""
        return self._folder.checkpoints()

    def samples(self, step: int | None = None, *, held_out: bool = False) -> list[dict[str, Any]]:
        """Trajectories that were kept for reading, oldest step first: of all steps or of one; or, with `held_out`, of
        the evaluations."""
        return self._folder.read_samples("eval" if held_out else "step", step)

    def evaluate(self, data: Any = None, **settings: Any) -> dict[str, Any]:
        """As `yatt.evaluate`, of this run."""
        return evaluate(self, data=data, **settings)

    def export(self, out: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None) -> Path:
        """Write the newest checkpoint's policy, or that of `checkpoint`, as a Hugging Face folder; returns it."""
        waiting.run(["export", os.fspath(checkpoint or self.path), os.fspath(out)])
        return Path(out)

    def resume(self, **settings: Any) -> Run:
        """Go on where the newest good checkpoint is; `settings` are taken as they are given now."""
        home = {"run.dir": str(self.path.absolute().parent), "run.name": self.name}
        return train(self.config, **{**home, **settings, "resume": "auto"})

    def plot(self, *columns: str) -> Plot:
        """Curves of columns of the metrics; of rewards and accuracies, or losses, where none is named. A notebook shows
        them, `save` writes a page. Raises ConfigError for a column that no row has."""
        return plot(self.name, self.metrics, columns)

    def __repr__(self) -> str:
        rows = self.metrics
        return f"Run({str(self.path)!r}, step {rows[-1]['step'] if rows else 0} of {self.config.train.steps})"


def _file(config: Config) -> str:
    """A file of the config, for a process to read."""
    file = waiting_room() / "config.yaml"
    write_config(config, file)
    return str(file)


def _words(values: Mapping[str, Any]) -> list[str]:
    """Nested settings as words of the command line."""
    return [f"{setting}={inline(value)}" for setting, value in leaves(values)]
