"""Checks of the installation and the machine, each with the line that mends it.

Every probe of a library runs in a process of its own with a deadline: a broken package cannot kill or hang the doctor.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yatt.cluster.folders import SOCKET, ray_environment, ray_folder
from yatt.config.facts import local_gpus
from yatt.config.trackers import TRACKERS
from yatt.errors import ConfigError
from yatt.faces.command import command
from yatt.generation.kind import Device, EngineKind
from yatt.generation.table import ENGINES

GIB = 1 << 30
MARK = "@doctor "
LIMIT = 180.0
PIP = f"{sys.executable} -m pip"
# Linked to CUDA in the registries' default builds; beside a CPU torch they stop the engines.
HARMFUL = ("torchvision", "torchaudio", "torchcodec")
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "absent": "dim"}

Status = Literal["ok", "warning", "problem", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table. A "problem" means that no run is possible here; a warning and an absence do not."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A library: the package it comes in, and the code that shows it working, which may `say` more than its version."""

    name: str
    package: str
    code: str
    required: bool = True
    limit: float = LIMIT
    advice: str = ""
    engine: EngineKind | None = None


TORCH = """
import torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
say(f"{torch.__version__}, {build} build; devices: {', '.join(names) or 'CPU'}")
"""
MEGATRON = """
import yatt.training.megatron, torch, megatron.core
from megatron.core.models.gpt import GPTModel
say(megatron.core.__version__ + ("" if torch.cuda.is_available() else ", on the CPU over gloo"))
"""
RAY = """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
ray.shutdown()
say("yes")
"""
PROBES = (
    Probe("PyTorch", "torch", TORCH),
    *(Probe(kind.title, kind.packages["cpu"], kind.probe, engine=kind) for kind in ENGINES.values()),
    Probe("Megatron-Core", "megatron-core", MEGATRON),
    Probe("Ray", "ray", "import ray"),
    Probe("transformers", "transformers", "from transformers import AutoModelForCausalLM, AutoTokenizer"),
    Probe("datasets", "datasets", "import datasets, pyarrow.parquet", required=False),
    Probe("math-verify", "math-verify", "import math_verify", required=False),
    Probe("reasoning-gym", "reasoning-gym", "import reasoning_gym", required=False),
)
RAY_STARTS = Probe("Ray starts", "ray", RAY)


def run(*, deep: bool = False, as_json: bool = False) -> int:
    """Print a table (or one JSON object) of findings; 0 when a run is possible here, else 1. `deep` also starts Ray.

    Waits at most three minutes for each probe; a few run at a time.
    """
    console = Console()
    with nullcontext() if as_json else console.status("Importing what is installed; this takes a while"):
        findings = examine((*PROBES, RAY_STARTS) if deep else PROBES)
    possible = not any(finding.status == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"possible": possible, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(console, findings, possible)
    return 0 if possible else 1


def examine(probes: tuple[Probe, ...] = PROBES) -> list[Finding]:
    """All findings, in the order they are shown."""
    gpu = local_gpus() > 0
    cuda = gpu and "+cpu" not in (_version("torch") or "")
    with ThreadPoolExecutor(max_workers=max(2, (os.cpu_count() or 2) // 2)) as pool:
        libraries = list(pool.map(lambda probe: probe_library(probe, cuda), probes))
    libraries = _one_engine_is_enough(probes, libraries)
    machine = (_harmful(), _trackers(), _gpu(gpu, cuda), _memory(), _shared_memory(), _temporary(), _files())
    return [_python(), *libraries, *machine]


def probe_library(probe: Probe, cuda: bool) -> Finding:
    """Run one probe in a process of its own, killed with its children at its deadline."""
    bad: Status = "problem" if probe.required else "warning"
    device: Device = "cuda" if cuda else "cpu"
    package = probe.package if probe.engine is None else probe.engine.packages[device]
    # Without its dependencies, as from the lock: an engine's would bring in what breaks it.
    install, version = f"{PIP} install --no-deps {_pin(package)}", _version(package)
    if version is None:
        missing: Status = "problem" if probe.required else "absent"
        detail = f"{package} is not installed"
        return Finding(name=probe.name, status=missing, detail=detail, remedy=probe.advice or install)
    own = {} if probe.engine is None else probe.engine.environment(device)
    environ = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
    with suppress(ConfigError):  # a line of its own says it
        environ |= ray_environment()
    started = [sys.executable, "-c", f"def say(text):\n    print({MARK!r} + text, flush=True)\n{probe.code}"]
    child = subprocess.Popen(
        started, env=environ, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate(timeout=probe.limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        detail = f"no answer within {probe.limit:g} s"
        return Finding(name=probe.name, status=bad, detail=detail, remedy="run it again on an idle machine")
    if child.returncode == 0:
        said = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
        return Finding(name=probe.name, status="ok", detail=said[-1] if said else version)
    lines = [line.strip() for line in err.splitlines() if line.strip()] or [f"ended with status {child.returncode}"]
    remedy = install.replace("install", "install --force-reinstall", 1)
    return Finding(name=probe.name, status=bad, detail=f"does not work: {lines[-1]}", remedy=remedy)


# --- the machine -----------------------------------------------------------------------------------------------------


def _one_engine_is_enough(probes: Sequence[Probe], findings: Sequence[Finding]) -> list[Finding]:
    """The findings of probes; where one engine works, another's problem is a warning."""
    engines = [probe.engine is not None for probe in probes]
    works = any(finding.status == "ok" for finding, engine in zip(findings, engines, strict=True) if engine)
    return [
        replace(finding, status="warning") if works and engine and finding.status == "problem" else finding
        for finding, engine in zip(findings, engines, strict=True)
    ]


def _judged(name: str, good: bool, detail: str, remedy: str, otherwise: Status = "warning") -> Finding:
    return Finding(name=name, status="ok" if good else otherwise, detail=detail, remedy="" if good else remedy)


def _python() -> Finding:
    cores = f"{len(psutil.Process().cpu_affinity())} of {os.cpu_count()} cores"
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores}"
    remedy = "install Python 3.11 and run `make clean install PYTHON=python3.11`"
    return _judged("Python", sys.version_info >= (3, 11), detail, remedy, "problem")


def _harmful() -> Finding:
    torch, versions = _version("torch") or "", {name: _version(name) for name in HARMFUL}
    bad = [name for name, version in versions.items() if version and "+cpu" in torch and "+cpu" not in version]
    detail = f"{', '.join(bad)}: linked to CUDA beside torch {torch}; engines fail on them" if bad else "none"
    return _judged("Harmful packages", not bad, detail, f"{PIP} uninstall -y {' '.join(bad)}", "problem")


def _trackers() -> Finding:
    usable = [name for name, packages in TRACKERS.items() if any(map(importlib.util.find_spec, packages))]
    remedy = f"{PIP} install {_pin('tensorboard')}, or set log.trackers=[]"
    return _judged("Trackers", bool(usable), ", ".join(usable) or "none", remedy)


def _gpu(gpu: bool, cuda: bool) -> Finding:
    detail = "none seen; runs use the CPU" if not gpu else "seen" if cuda else "seen, but torch is the CPU build"
    return _judged("GPU", cuda or not gpu, detail, "make clean install TORCH=cuda")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    return _judged(
        "Memory", memory.available >= 8 * GIB, detail, "the quickstart takes up to 8 GiB: end other programs"
    )


def _shared_memory() -> Finding:
    usage = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    detail = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free" if usage else "there is none"
    remedy = "mount -o remount,size=50% /dev/shm (in a container: --shm-size=16g), or set weights.transport=disk"
    return _judged("/dev/shm", usage is not None and usage.free >= 2 * GIB, detail, remedy)


def _temporary() -> Finding:
    """Where Ray's sockets go: their paths must not be long."""
    try:
        folder, temporary = ray_folder(), tempfile.gettempdir()
    except ConfigError as error:
        detail, _, remedy = str(error).rpartition("; ")
        return Finding(name="Temporary folder", status="problem", detail=detail, remedy=remedy)
    given = os.environ.get("TMPDIR")
    detail = (
        temporary
        if folder == temporary
        else f"{temporary}; {folder} for Ray, whose sockets have paths of at most {SOCKET} bytes"
    )
    good = given is None or os.path.realpath(given) == os.path.realpath(temporary)
    remedy = f"TMPDIR={given} cannot be written to: set it to a folder that can"
    return _judged("Temporary folder", good, detail, remedy)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    return _judged("Open files", soft >= 4096, f"limit {soft}", f"ulimit -n {enough}, before Ray starts")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _show(console: Console, findings: list[Finding], possible: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "state", "what was found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.status]
        table.add_row(finding.name, f"[{colour}]{finding.status}[/]", escape(finding.detail))
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(f"[{COLOURS[finding.status]}]{finding.name}[/]: {escape(finding.remedy)}", soft_wrap=True)
    verdict = "[green]A run is possible here.[/]" if possible else "[red]No run is possible here yet.[/]"
    console.print(verdict if possible else f"{verdict} The lines above mend it; `make clean install` makes .venv anew.")
    console.print(f"Next: {escape(next_command(findings))}", soft_wrap=True)


def next_command(findings: Sequence[Finding]) -> str:
    """What to type now: what mends the first problem; else the quickstart, where this is a checkout, or a config."""
    mends = next((finding.remedy for finding in findings if finding.status == "problem"), None)
    if mends is not None:
        return mends
    if Path("Makefile").is_file() and Path("examples/quickstart/run.py").is_file():
        return "make quickstart"
    model = next((file.parent for file in sorted(Path().glob("*/config.json"))), "FOLDER")
    return command("init", "my-run", "--model", model)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pin(package: str) -> str:
    """The package as this version of YATT asks for it."""
    try:
        lines = importlib.metadata.requires("yatt") or []
    except importlib.metadata.PackageNotFoundError:
        return package
    matches = (re.match(rf"{re.escape(package)}==[\w.+]+", line) for line in lines)
    return next((match[0] for match in matches if match), package)
