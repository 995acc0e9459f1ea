"""Whether a trainer's checkpoint is whole and of this model; read without torch, so that a driver can ask early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yatt.errors import CheckpointError
from yatt.models.fields import obeyed
from yatt.models.table import LANGUAGES
from yatt.models.vision import SIZES

DESCRIPTION = "trainer.json"


def identity(hf: Any, dtype: str) -> dict[str, Any]:
    """The fields in which a checkpoint and a model must agree. `hf` is the language model's config, with the tower's
    `vision_config` where there is one."""
    family = LANGUAGES[hf.model_type]
    described = {name: getattr(hf, name, None) for name in obeyed(family)} | {"dtype": dtype}
    if family.tower is not None:
        names = (*SIZES, *family.tower.obeys)
        described["vision_config"] = {name: getattr(hf.vision_config, name, None) for name in names}
    return described


def verify(path: str, described: dict[str, Any]) -> None:
    """Raises CheckpointError unless `path` holds a complete checkpoint of this model."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {path}: no such folder; resume=auto takes the last complete one")
    try:
        written = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is half-written: {DESCRIPTION} cannot be read ({error}); use an earlier checkpoint"
        ) from error
    for name, size in written["files"].items():
        actual = (folder / name).stat().st_size if (folder / name).exists() else 0
        if actual != size:
            raise CheckpointError(
                f"checkpoint {path} is half-written: {name} has {actual} bytes, not {size}; use an earlier checkpoint"
            )
    for name, value in described.items():
        if written["model"].get(name) != value:
            raise CheckpointError(
                f"checkpoint {path} is of another model: {name}={written['model'].get(name)!r} there, {value!r} in "
                f"model.path; point model.path at the model it was trained from"
            )
