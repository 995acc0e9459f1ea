"""The command line. What a command needs is imported once its settings are known to be good."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from yatt import __version__
from yatt.cluster import forks
from yatt.cluster.backends import Backends
from yatt.cluster.forks import kinds_of
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.errors import ConfigError, YattError
from yatt.faces.start import ready
from yatt.generation.table import ENGINES

HELP = (
    "An open RLHF trainer: many equal controllers; Megatron-Core trains, "
    f"{' or '.join(kind.title for kind in ENGINES.values())} generates, Ray spans machines."
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file's.")]


def _command(module: str, name: str) -> Callable[..., Any]:
    """The function behind a command; its heavy libraries are imported now and not before."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"yatt.faces.{module}"), name)
    return function


def _checked(config: Config) -> Config:
    for warning in check(config):
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    return config


@app.command()
def train(config: Annotated[str, typer.Argument(help="A YAML file of settings.")], overrides: Overrides = None) -> None:
    """Train: SFT, a reward model, DPO, PPO, GRPO ...; the config's `algorithm` says which."""
    settings = _checked(load_config(config, overrides or []))
    ready(settings, Path(config), overrides or [])
    forks.begin(kinds_of(settings, Backends(), train=True, generate=settings.algorithm.recipe.reinforces))
    raise typer.Exit(_command("train", "train")(settings))


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
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
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapters alone (train.lora), in peft's format; else merged.")
    ] = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    raise typer.Exit(_command("export", "export")(source, out, adapter=adapter))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html of a run anew."""
    typer.echo(_command("report", "write_report")(run))


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option(help="Also start Ray.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is installed, which engines work here, and what mends what is missing."""
    raise typer.Exit(_command("doctor", "run")(deep=deep, as_json=json))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    model: Annotated[str, typer.Option(help="Hugging Face folder of the policy.")],
) -> None:
    """Make a folder with a config, a reward and data to start from."""
    _command("init", "init")(folder, model=model)


@app.command()
def plan(
    config: Annotated[str | None, typer.Argument(help="A YAML file of settings.")] = None,
    overrides: Overrides = None,
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
    if (config is None) == (calibrate is None):
        raise ConfigError("yatt plan takes either a config to simulate or --calibrate RUN; give one of them")
    if out is not None and calibrate is None:
        raise ConfigError(f"--out={out} is for --calibrate RUN; leave it out")
    if calibrate is not None:
        raise typer.Exit(_command("plan", "calibrate_run")(calibrate, out))
    settings = load_config(str(config), overrides or [])
    numbers = {"devices": devices, "controllers": controllers, "steps": steps, "seed": seed}
    raise typer.Exit(_command("plan", "plan")(settings, **numbers, as_json=json, html=html))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"yatt {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: an error the user can mend is printed in a line or two, with its exit status."""
    try:
        app()
    except YattError as error:
        for line in str(error).splitlines():
            print(f"yatt: {line}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        print(f"yatt: {error}; the run folder, its disk or the network refused", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
