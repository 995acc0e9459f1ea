"""`yatt export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from yatt.config.load import load_config
from yatt.config.schema import Config
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.checkpoints import read_checkpoint
from yatt.faces.rundir import RunDirectory
from yatt.training.megatron.backend import export_checkpoint


def export(source: Path, out: Path) -> int:
    """Write `out`; returns the exit status."""
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: the folder is not empty; name a new one")
    checkpoint = find_checkpoint(source)
    export_to(checkpoint, out)
    Console().print(f"wrote {out} from {checkpoint}")
    return 0


def find_checkpoint(source: Path) -> Path:
    """`source` itself where it is a checkpoint, else the latest complete one of the run folder it names."""
    if source.name.startswith("step-") or (source / "trainer").is_dir():
        return source
    if not source.is_dir():
        raise CheckpointError(f"{source}: there is no such run folder or checkpoint")
    latest = RunDirectory(source).latest_checkpoint()
    if latest is None:
        raise CheckpointError(
            f"{source}: no complete checkpoint in {source / 'checkpoints'}; train with checkpoint.every"
        )
    return latest


def export_to(checkpoint: Path, out: Path) -> Config:
    """Write the checkpoint's policy to `out`; returns the settings it was trained with."""
    resume = read_checkpoint(checkpoint)
    config = load_config(str(checkpoint / "config.yaml"), [])
    export_checkpoint(config, resume.trainer, str(out))
    return config
