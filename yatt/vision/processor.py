"""What the image processor of a model folder does with an image, read from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yatt.config.weight_files import read_json
from yatt.errors import ConfigError

KINDS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
"""The processors of transformers that are followed."""
DEFAULTS: dict[str, Any] = {
    "image_processor_type": KINDS[0],
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Theirs, for what the files leave out."""
STEPS = {"do_resize": True, "do_convert_rgb": True, "do_rescale": True, "do_normalize": True}
"""Steps that are always taken."""


class Processor(NamedTuple):
    """A patch is `patch` pixels wide and high, and `times` frames deep. `merge` by `merge` patches are one token. An
    image has from `least` to `most` pixels once it is resized, by PIL's filter number `resample`."""

    patch: int
    times: int
    merge: int
    least: int
    most: int
    resample: int
    mean: list[float]
    std: list[float]


def read_processor(folder: str, max_pixels: int | None = None, setting: str = "model.path") -> Processor:
    """The processor of a model folder, which `setting` names, its `most` no more than `max_pixels`. Raises ConfigError
    where a file is missing or torn, or asks for what is not done here."""
    at = f"{setting}={folder}"
    given = DEFAULTS | {name: value for name, value in _given(folder, setting).items() if value is not None}
    if given["image_processor_type"] not in KINDS:
        raise ConfigError(
            f"{at}: image_processor_type={given['image_processor_type']} is not followed; use one of {', '.join(KINDS)}"
        )
    for name, value in STEPS.items():
        if given.get(name, value) != value:
            raise ConfigError(f"{at}: its image processor has {name}={given[name]}, which is not followed; remove it")
    if abs(given.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ConfigError(f"{at}: its image processor has rescale_factor={given['rescale_factor']}; only 1/255 is")
    least, most = _limits(given, at)
    if max_pixels is not None and max_pixels < least:
        raise ConfigError(
            f"data.max_pixels={max_pixels} is under the {least} pixels that the processor of {folder} makes of every "
            f"image at least; use {least} or more"
        )
    return Processor(
        patch=given["patch_size"],
        times=given["temporal_patch_size"],
        merge=given["merge_size"],
        least=least,
        most=most if max_pixels is None else min(most, max_pixels),
        resample=given["resample"],
        mean=given["image_mean"],
        std=given["image_std"],
    )


def _given(folder: str, setting: str) -> Mapping[str, Any]:
    """What the folder's files say: processor_config.json under image_processor, else preprocessor_config.json."""
    whole = Path(folder) / "processor_config.json"
    inside = read_json(whole, setting).get("image_processor") if whole.exists() else None
    return inside if isinstance(inside, Mapping) else read_json(Path(folder) / "preprocessor_config.json", setting)


def _limits(given: Mapping[str, Any], at: str) -> tuple[int, int]:
    """Least and most pixels; older files have them under names of their own."""
    size = given["size"] if isinstance(given["size"], Mapping) else {}
    least = given.get("min_pixels", size.get("shortest_edge"))
    most = given.get("max_pixels", size.get("longest_edge"))
    numbers = {"patch_size": given["patch_size"], "merge_size": given["merge_size"]}
    numbers |= {"temporal_patch_size": given["temporal_patch_size"], "shortest_edge": least, "longest_edge": most}
    wrong = [name for name, number in numbers.items() if not isinstance(number, int) or number < 1]
    if wrong:
        raise ConfigError(f"{at}: its image processor has no whole number above 0 under {', '.join(wrong)}")
    assert isinstance(least, int) and isinstance(most, int)
    return least, most
