"""`yatt export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from yatt.cluster.backends import load
from yatt.config import folders
from yatt.config.load import load_config
from yatt.config.models import any_family, policy_facts
from yatt.config.schema import Config
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.card import write_card
from yatt.faces.checkpoints import Resume, newest_good, read_checkpoint
from yatt.faces.hub import check_push, fetched, push
from yatt.faces.rundir import CHECKPOINTS, RunDirectory

EXPORTS = {
    "megatron": "yatt.training.megatron.backend:export_checkpoint",
    "fsdp": "yatt.training.fsdp.backend:export_checkpoint",
}
"""By `train.backend`."""


def export(source: Path, out: Path, name: str | None = None, *, public: bool = False) -> int:
    """Write `out`, and publish it as `name`; returns the exit status."""
    if name is not None:
        check_push(name)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: the folder is not empty; name a new one")
    checkpoint = find_checkpoint(source)
    config = export_to(checkpoint, out)
    write_card(out, config, checkpoint.folder.parents[1], checkpoint.step)
    Console().print(f"wrote {out} from {checkpoint.folder}", soft_wrap=True)
    if name is not None:
        Console().print(f"published {push(out, name, public=public)}", soft_wrap=True)
    return 0


def find_checkpoint(source: Path) -> Resume:
    """`source` itself where it is a checkpoint, else the newest good one of the run folder it names; says which were
    passed over."""
    if source.parent.name == CHECKPOINTS or (source / "trainer").is_dir():
        return read_checkpoint(source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: there is no such run folder or checkpoint")
    choice = newest_good(RunDirectory(source))
    for line in choice.lines:
        Console(stderr=True).print(line, soft_wrap=True)
    if choice.resume is None:
        raise CheckpointError(
            f"{source}: no complete checkpoint in {source / 'checkpoints'}; train with checkpoint.every"
        )
    return choice.resume


def export_to(checkpoint: Resume, out: Path, overrides: Sequence[str] = ()) -> Config:
    """Write the checkpoint's policy to `out`, by the settings it was trained with and `overrides`; returns them."""
    config = fetched(load_config(str(checkpoint.folder / "config.yaml"), overrides), weights=False)
    check_model(config)
    policy_facts(config, weights=False)
    folders.refuse(config.model.path, "model.path", weights=False, any_family=any_family(config))
    load(EXPORTS[config.train.backend])(config, checkpoint.trainer, str(out))
    return config


def check_model(config: Config) -> None:
    """Raises ConfigError where a run's model is not where its settings say: a checkpoint has neither its config nor its
    tokenizer. Older runs have relative paths."""
    path = config.model.path
    if not os.path.isabs(path) and not os.path.isdir(path):
        raise ConfigError(
            f"model.path={path}: no such folder, from {os.getcwd()}; this run's paths are relative to the folder it "
            "was started in"
        )
