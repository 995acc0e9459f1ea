"""The command line. What a command needs is imported once its settings are known to be good."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from yatt import __version__
from yatt.cluster import forks
from yatt.cluster.backends import backends_of
from yatt.cluster.forks import kinds_of
from yatt.config.hub import missing
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.errors import ConfigError, YattError
from yatt.faces.choose import Choice
from yatt.faces.start import ready
from yatt.generation.table import ENGINES

HELP = (
    "An open RLHF trainer: many equal controllers; Megatron-Core trains, "
    f"{' or '.join(kind.title for kind in ENGINES.values())} generates, Ray spans machines."
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file's.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file of settings, and settings over the file's."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that the folder holds, and begin anew.")]


def _command(module: str, name: str) -> Callable[..., Any]:
    """The function behind a command; its heavy libraries are imported now and not before."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"yatt.faces.{module}"), name)
    return function


def _present(config: Config, *, weights: bool = True) -> Config:
    """The config with models that it names on the Hub as folders."""
    return _command("hub", "fetched")(config, weights=weights) if missing(config) else config


def _checked(config: Config) -> Config:
    for warning in check(config):
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    return config


def _file_of(words: list[str] | None) -> tuple[str | None, list[str]]:
    """The config among the words, if there is one, and the others. Raises ConfigError where there is nothing."""
    match words or []:
        case []:
            raise ConfigError("give a config, or settings such as model.path=DIR data.path=FILE reward.function=NAME")
        case [first, *others] if "=" not in first or os.path.isfile(first):
            return first, others
        case settings:
            return None, settings


def _settings(path: str | None, overrides: list[str], *, weights: bool = True) -> Config:
    """The settings of a file, or those that are chosen where there is none: these are said. Models are there."""
    if path is not None:
        return _present(load_config(path, overrides), weights=weights)
    choice = Choice()
    settings = load_config(None, overrides, choose=choice)
    for line in choice.lines():
        typer.echo(line, err=True)
    return _present(settings, weights=weights)


@app.command()
def train(words: Words = None, overwrite: Overwrite = False) -> None:
    """Train: SFT, a reward model, DPO, PPO, GRPO ...; the setting `algorithm.name` says which.

    Without a CONFIG, the settings that are not given are chosen by the model, the data and this machine."""
    path, overrides = _file_of(words)
    settings = _checked(_settings(path, overrides))
    ready(settings, Path(path) if path else None, overrides, overwrite=overwrite)
    forks.begin(kinds_of(settings, backends_of(settings), train=True, generate=settings.algorithm.recipe.reinforces))
    typer.echo(f"{settings.run.dir}/{settings.run.name}: importing what it takes")
    began = psutil.Process().create_time()
    raise typer.Exit(_command("train", "train")(settings, overwrite=overwrite, began=began))


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or that of a model, as a baseline.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(help="Sampled responses per prompt; pass@k goes up to it.")] = 4,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint folder; the run's latest when unset.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure accuracy on held-out rows (data.path=...), or the loss of what learnt from rows."""
    raise typer.Exit(_command("evaluate", "evaluate")(run, overrides or [], samples, checkpoint, as_json=json))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Also publish it on the Hub.")] = None,
    public: Annotated[bool, typer.Option(help="Let everybody see what is published, not its owner alone.")] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapters alone (train.lora), in peft's format; else merged.")
    ] = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    raise typer.Exit(_command("export", "export")(source, out, push, public=public, adapter=adapter))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html of a run anew."""
    typer.echo(_command("report", "write_report")(run))


@app.command()
def watch(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run in a folder; runs/ when none is given.")] = False,
    port: Annotated[int | None, typer.Option(min=0, help="Of the page; 0: any that is free. 8420 when unset.")] = None,
    once: Annotated[bool, typer.Option(help="Serve one page and end.")] = False,
) -> None:
    """Follow runs, or look at finished ones, on a page of this machine."""
    raise typer.Exit(_command("watch", "watch")(runs or [], everything=everything, port=port, once=once))


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option(help="Also start Ray.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is installed, which engines work here, and what mends what is missing."""
    raise typer.Exit(_command("doctor", "run")(deep=deep, as_json=json))


@app.command()
def settings(
    word: Annotated[str | None, typer.Argument(help="Part of a name or a description; all when unset.")] = None,
) -> None:
    """List the settings: names, defaults, what each takes and is."""
    raise typer.Exit(_command("settings", "show")(word))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    model: Annotated[str, typer.Option(help="Hugging Face folder of the policy, or its name on the Hub.")],
) -> None:
    """Make a folder with a config, a reward and data to start from."""
    _command("init", "init")(folder, model=model)


@app.command()
def plan(
    words: Words = None,
    devices: Annotated[str | None, typer.Option(help="64 or 16,64; cluster.slots when unset, else 8.")] = None,
    controllers: Annotated[
        int | None, typer.Option(help="cluster.controllers when unset, else one per 8 devices.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps to simulate.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of lengths and rewards; run.seed when unset.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Fit costs to this run's folder instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where --calibrate writes; RUN/calibration.json when unset.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also draw what ran where, to this file.")] = None,
) -> None:
    """Simulate a config on any number of devices; --calibrate RUN measures the costs first."""
    if (not words) == (calibrate is None):
        raise ConfigError("yatt plan takes either a config to simulate or --calibrate RUN; give one of them")
    if out is not None and calibrate is None:
        raise ConfigError(f"--out={out} is for --calibrate RUN; leave it out")
    if calibrate is not None:
        raise typer.Exit(_command("plan", "calibrate_run")(calibrate, out))
    settings = _settings(*_file_of(words), weights=False)
    numbers = {"devices": devices, "controllers": controllers, "steps": steps, "seed": seed}
    raise typer.Exit(_command("plan", "plan")(settings, **numbers, as_json=json, html=html))


@app.command()
def launch(
    config: Annotated[str, typer.Argument(help="A YAML file of settings, as the cluster finds it.")],
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="A batch script for Slurm.")] = False,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="A RayJob for KubeRay.")] = False,
    skypilot: Annotated[bool, typer.Option("--skypilot", help="A task for SkyPilot.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the file only.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the file.")] = Path("launch"),
    per_node: Annotated[int | None, typer.Option(min=1, help="Slots of a node; 8, or all of fewer.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores of a node; 16 for each GPU.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="GiB of a node; 128 for each GPU.")] = None,
    hours: Annotated[float, typer.Option(min=0.1, help="Longest time of the job.")] = 24.0,
    grace: Annotated[int, typer.Option(min=10, help="Seconds before an end, for a step and a save.")] = 600,
    image: Annotated[str, typer.Option(help="Container image of the pods.")] = "yatt:cuda",
    volume: Annotated[str, typer.Option(help="Claim on the volume that pods share.")] = "shared",
) -> None:
    """Start a run as a job of a cluster: Slurm, KubeRay or SkyPilot. With --dry-run, write the file to read first."""
    words = overrides or []
    kinds = [kind for kind, asked in {"slurm": slurm, "kuberay": kuberay, "skypilot": skypilot}.items() if asked]
    sizes = {"per_node": per_node, "cores": cores, "memory": memory, "hours": hours, "grace": grace}
    places = {"out": out, "image": image, "volume": volume}
    done = _command("launch", "launch")(
        load_config(config, words), [config, *words], kinds, dry_run=dry_run, **sizes, **places
    )
    raise typer.Exit(done)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"yatt {__version__}")
        raise typer.Exit


def print_error(error: Exception, text: str) -> None:
    """A line or two for the user of a terminal."""
    for line in text.splitlines():
        print(f"yatt: {line}", file=sys.stderr)


def main(tell: Callable[[Exception, str], None] = print_error) -> None:
    """Entry point: an error the user can mend is told in a line or two, with its exit status."""
    try:
        app()
    except YattError as error:
        tell(error, str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        tell(error, f"{error}; the run folder, its disk or the network refused")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
