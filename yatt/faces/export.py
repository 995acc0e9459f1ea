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
from yatt.faces.contents import of_folder
from yatt.faces.hub import check_push, fetched, push
from yatt.faces.rundir import CHECKPOINTS, RunDirectory

EXPORTS = {
    "megatron": "yatt.training.megatron.backend:export_checkpoint",
    "fsdp": "yatt.training.fsdp.backend:export_checkpoint",
}
"""By `train.backend`."""


def export(source: Path, out: Path, name: str | None = None, *, public: bool = False, adapter: bool = False) -> int:
    """Write `out`, the model or, with `adapter`, its adapters, and publish it as `name`; returns the exit status."""
    if name is not None:
        check_push(name)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: the folder is not empty; name a new one")
    checkpoint = find_checkpoint(source)
    config = export_to(checkpoint, out, adapter=adapter)
    if not adapter:
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


def export_to(checkpoint: Resume, out: Path, overrides: Sequence[str] = (), *, adapter: bool = False) -> Config:
    """Write the checkpoint's policy to `out`, or with `adapter` its adapters in peft's format, by the settings it was
    trained with and `overrides`; returns them."""
    config = fetched(load_config(str(checkpoint.folder / "config.yaml"), overrides), weights=False)
    check_model(config)
    policy_facts(config, weights=False)
    folders.refuse(config.model.path, "model.path", weights=False, any_family=any_family(config))
    if adapter and not config.train.lora.rank:
        raise ConfigError(
            f"{checkpoint.folder}: it was trained with train.lora.rank=0 and has no adapter; leave --adapter out"
        )
    if config.train.lora.rank:
        _check_base(checkpoint, config)
    load(EXPORTS[config.train.backend])(config, checkpoint.trainer, str(out), **({"adapters": True} if adapter else {}))
    return config


def _check_base(checkpoint: Resume, config: Config) -> None:
    """Raises ConfigError where the model that adapters were trained beside has changed."""
    now, then = of_folder(Path(config.model.path)), checkpoint.contents.get("model.path")
    if now != then:
        raise ConfigError(
            f"model.path={config.model.path}: its contents have changed since the adapters of {checkpoint.folder} were "
            f"trained ({then}, now {now}); put back what they were trained beside"
        )


def check_model(config: Config) -> None:
    """Raises ConfigError where a run's model is not where its settings say: a checkpoint has neither its config nor its
    tokenizer. Older runs have relative paths."""
    path = config.model.path
    if not os.path.isabs(path) and not os.path.isdir(path):
        raise ConfigError(
            f"model.path={path}: no such folder, from {os.getcwd()}; this run's paths are relative to the folder it "
            "was started in"
        )
