"""`yatt launch`: a config as a job of a cluster. The files are written to be read; what takes them is called last."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.faces.launchers import FILES, Job

PER_NODE = 8
CORES = {True: 16, False: 4}
"""Cores for each slot: beside a GPU, and where the slot is of cores itself."""
MEMORY = {True: 128, False: 16}
"""GiB for each slot."""


def launch(
    config: Config,
    words: Sequence[str],
    kinds: Sequence[str],
    *,
    dry_run: bool,
    out: Path,
    per_node: int | None,
    cores: int | None,
    memory: int | None,
    hours: float,
    grace: int,
    image: str,
    volume: str,
) -> int:
    """Write the job's file into `out` and, unless `dry_run`, submit it; returns the exit status. `words` are those of
    `yatt train`. Raises ConfigError for a job that cannot be, before anything is written."""
    if len(kinds) != 1:
        raise ConfigError(f"yatt launch takes one of {', '.join(f'--{kind}' for kind in FILES)}; give one of them")
    (kind,) = kinds
    ending, write, submit = FILES[kind]
    nodes, each = divided(config, per_node)
    if not dry_run and shutil.which(submit[0]) is None:
        raise ConfigError(
            f"--{kind}: there is no {submit[0]} here; add --dry-run, which writes the file, and take it to where one is"
        )
    cuda = config.cluster.device != "cpu"
    job = Job(
        name=config.run.name,
        words=[*words, *([] if any(word.startswith("resume=") for word in words) else ["resume=auto"])],
        nodes=nodes,
        per_node=each,
        cuda=cuda,
        cores=cores or CORES[cuda] * each,
        memory=memory or MEMORY[cuda] * each,
        gpu=config.plan.device,
        hours=hours,
        grace=grace,
        folder=os.getcwd(),
        programs=str(Path(sys.executable).parent),
        image=image,
        volume=volume,
    )
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{config.run.name}.{ending}"
    file.write_text(write(job), encoding="utf-8")
    gpus = f"{each} GPUs ({job.gpu})" if cuda else f"{each} slots of cores"
    console = Console()
    console.print(f"wrote {file}: {nodes} node(s) of {gpus}, {job.cores} cores, {job.memory} GiB", soft_wrap=True)
    if dry_run:
        console.print(f"submit it with   {' '.join(submit)} {file}", soft_wrap=True)
        return 0
    return subprocess.run([*submit, str(file)], env=os.environ | _token(), check=False).returncode


def divided(config: Config, per_node: int | None) -> tuple[int, int]:
    """Nodes, and slots of each. Raises ConfigError where the slots do not come out even, or a cluster is there."""
    cluster = config.cluster
    if cluster.address is not None:
        raise ConfigError(f"cluster.address={cluster.address}: the job starts a cluster of its own; unset it")
    if cluster.slots is None:
        raise ConfigError("cluster.slots is not set; say how many devices the job takes, such as cluster.slots=8")
    each = per_node or min(PER_NODE, cluster.slots)
    if cluster.slots % each:
        fits = [n for n in range(1, each + 1) if cluster.slots % n == 0]
        raise ConfigError(
            f"--per-node={each} does not divide cluster.slots={cluster.slots}; use {fits[-1]}, or other slots"
        )
    size = config.train.tp * config.train.pp
    if cluster.slots % size:
        raise ConfigError(f"cluster.slots={cluster.slots} is not a multiple of train.tp x train.pp={size}; use one")
    return cluster.slots // each, each


def _token() -> dict[str, str]:
    """A token for the job's Ray, unless there is one."""
    return {} if "RAY_AUTH_TOKEN" in os.environ else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
