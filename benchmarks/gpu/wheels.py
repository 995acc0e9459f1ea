"""What a machine without a network lacks beside torch and transformers, and how to carry it there."""

from __future__ import annotations

import importlib.metadata
import importlib.util

CARRIED = {
    "megatron-core": "megatron.core",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
    "typing-extensions": "typing_extensions",
    "pillow": "PIL",
    "xxhash": "xxhash",
}
"""Distribution -> what of it is imported. About 13 MB."""
THERE = ("torch", "transformers", "safetensors")
"""What must be there, with all that they ask for."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def command(python: str) -> str:
    """A shell command that fetches the versions that are installed here, for another Python on x86-64 Linux."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in CARRIED]
    platforms = [f"--platform {platform}" for platform in PLATFORMS]
    return " \\\n    ".join(
        [
            "python -m pip download --no-deps --only-binary=:all: --implementation cp",
            f"--python-version {python} {' '.join(platforms)}",
            f"-d wheels {' '.join(wanted)}",
        ]
    )


def missing() -> list[str]:
    """The distributions of which nothing can be imported here."""
    every = CARRIED | dict(zip(THERE, THERE, strict=True))
    return [name for name, module in every.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
