"""Files that are good or refused: what was written, with its size and XXH3 checksum, is what is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

OWN = "xxh3"
"""In a JSON file that has its own checksum, the key of it: of the rest, as `json.dumps` writes it, keys in order."""
READ_BYTES = 4 << 20


class Damaged(Exception):
    """A file that is not what was written. The text names it, and what is wrong."""


def entry(path: Path) -> dict[str, Any]:
    """The file's size and checksum, as a list of files has them."""
    checksum = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            checksum.update(data)
        return {"bytes": file.tell(), OWN: checksum.hexdigest()}


def check_file(folder: Path, name: str, written: Any, *, deep: bool = True) -> None:
    """Raises Damaged unless the file has the size that `entry` gave when it was `written`, and, where all of it is to
    be read (`deep`), the checksum."""
    if not isinstance(written, Mapping) or not {"bytes", OWN} <= written.keys():
        raise Damaged(f"{name} is listed without size and checksum")
    try:
        size = (folder / name).stat().st_size
        if size != written["bytes"]:
            raise Damaged(f"{name} has {size} bytes, not {written['bytes']}")
        if deep and entry(folder / name)[OWN] != written[OWN]:
            raise Damaged(f"{name} has changed since it was written: its checksum is another")
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with its own checksum, whole or not at all, down to the disk."""
    aside = path.with_name(f".{path.name}")
    plain = json.loads(json.dumps(values))
    with open(aside, "w", encoding="utf-8") as out:
        json.dump({**plain, OWN: _sum(plain)}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


def read_json(folder: Path, name: str, *keys: str) -> dict[str, Any]:
    """What `write_json` wrote, which has these keys. Raises Damaged where it is something else."""
    try:
        values = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise Damaged(f"{name} is no JSON") from None
    if not isinstance(values, dict) or OWN not in values:
        raise Damaged(
            f"{name} has no checksum: it is damaged, or left by an older version, whose checkpoints are not read"
        )
    own = values.pop(OWN)
    if own != _sum(values):
        raise Damaged(f"{name} has changed since it was written: its checksum is another")
    if missing := [key for key in keys if key not in values]:
        raise Damaged(f"{name} says nothing of {', '.join(missing)}: another version wrote it")
    return values


def _sum(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())
