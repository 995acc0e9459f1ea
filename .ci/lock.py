"""Write a lock: every package that pyproject.toml and the given extras need, pinned, as pip resolves them here.

    python .ci/lock.py requirements.lock cpu dev sglang

Only names and versions are written, no hashes and no addresses: torch is one of several builds, and registries differ.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Installed by the Makefile itself, first, in the build that suits the machine.
TORCH = {"torch"}
# What plain resolution drags in on a CPU and must not be there: the first three are linked to CUDA and stop vLLM
# ("operator torchvision::nms does not exist"); triton is 1 GB that only a GPU uses.
NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "triton"}
CUDA_PREFIXES = ("nvidia-", "cuda-")
# Extras that go into the lock as they stand, without what they ask for: SGLang names another torch, kernels for CUDA
# and the parts of its server, and what it uses of the rest on a CPU is there through vLLM and transformers.
AS_THEY_STAND = {"sglang"}


def resolve(requirements: list[str]) -> dict[str, str]:
    """Name -> version of everything pip would put into an empty environment. Installs nothing."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        installs = json.loads(report.read_text())["install"]
    found = ((item["metadata"]["name"], item["metadata"]["version"]) for item in installs)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def main() -> None:
    """Resolve, leave out what must not be installed, write the lock sorted by name."""
    path, *extras = sys.argv[1:]
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    optional = project["project"]["optional-dependencies"]
    wanted += [requirement for extra in extras if extra not in AS_THEY_STAND for requirement in optional[extra]]
    packages = resolve(wanted)
    for requirement in (r for extra in extras if extra in AS_THEY_STAND for r in optional[extra]):
        name, version = requirement.split("==")
        packages[name] = version
    left_out = TORCH | (NOT_ON_CPU if "cpu" in extras else set())
    lines = [
        f"{name}=={version}"
        for name, version in sorted(packages.items())
        if name not in left_out and not ("cpu" in extras and name.startswith(CUDA_PREFIXES))
    ]
    python = ".".join(map(str, sys.version_info[:2]))
    head = f"# {', '.join(extras)}: {len(lines)} packages for Python {python} on linux, without torch. By `make lock`."
    Path(path).write_text("\n".join([head, *lines]) + "\n")
    print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    main()
