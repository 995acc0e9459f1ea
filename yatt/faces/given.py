"""What a call from Python was given as objects and rows: in a folder of the process, and then in that of the run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from yatt.config.paths import OBJECT, ROWS, Form, mapped
from yatt.config.schema import Config
from yatt.packed_objects import source_of


@cache
def _of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="yatt-given-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def waiting_room() -> Path:
    """A new folder for what one setting is given; it goes with this process."""
    return Path(tempfile.mkdtemp(dir=_of_this_process()))


def kept(config: Config, folder: Path) -> tuple[Config, dict[Path, Path]]:
    """The config with everything given in `folder`, and the files to copy there for it: from -> to. Touches nothing."""
    moves: dict[Path, Path] = {}

    def change(path: str, form: Form, setting: str) -> str:
        file = Path(path)
        if not path.endswith((OBJECT, ROWS)) or file.absolute().parent == folder.absolute():
            return path
        moves[file] = folder / file.name
        return str(moves[file])

    values = mapped(config.model_dump(), change)
    return (Config.model_validate(values) if moves else config), moves


def copy(moves: dict[Path, Path]) -> None:
    """Copy files, and the sources beside them."""
    for file, place in moves.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        if (source := source_of(file)).is_file():
            shutil.copyfile(source, source_of(place))
