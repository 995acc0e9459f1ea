"""Rules of the section `placement`, and the memory of a slot of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.placement.cost import served, settings_of, size_setting
from yatt.placement.plan import Role


def train_slots(config: Config, slots: int) -> int:
    """How many of the slots hold ranks."""
    if config.placement.mode != "disaggregated":
        return slots
    size = config.train.tp * config.train.pp
    return config.placement.train_slots or max(size, slots // 2 // size * size)


def placement_mistakes(config: Config, slots: int | None, slots_name: str) -> Iterator[str]:
    """One line for each broken rule. `slots` is None where only the cluster knows; `slots_name` is how the user says
    their number."""
    placement, mode = config.placement, config.placement.mode
    if not config.algorithm.recipe.reinforces:
        if mode != "colocated":
            yield f"placement.mode={mode} has no meaning for algorithm.name={config.algorithm.name}; use colocated"
        return
    try:
        sizes = {role: shape.tensor_parallel for role, shape in served(config).items()}
    except ConfigError:  # a rule of its own says it
        return
    if placement.train_slots is not None and mode != "disaggregated":
        yield f"placement.train_slots={placement.train_slots} is only for placement.mode=disaggregated; unset it"
    if placement.split and mode != "partial":
        yield f"placement.split={_shown(placement.split)} is only for placement.mode=partial, not {mode}; unset it"
    if mode in ("partial", "weighted", "dynamic") and len(sizes) == 1:
        yield (
            f"placement.mode={mode} divides the slots between the policy and the judges that this run serves, "
            "and reward.models has none with a path; use colocated"
        )
        return
    apart = list(_apart(config, slots, slots_name)) if mode == "disaggregated" else []
    yield from apart or _blocks(config, sizes, slots, slots_name)


def _apart(config: Config, slots: int | None, slots_name: str) -> Iterator[str]:
    """Whether training slots and others are at least one each, and whole ranks."""
    size, given = config.train.tp * config.train.pp, config.placement.train_slots
    if given is not None and given % size:
        lower, upper = given // size * size, (given // size + 1) * size
        yield (
            f"placement.train_slots={given} is not a multiple of train.tp={config.train.tp} x "
            f"train.pp={config.train.pp}; use {f'{lower} or ' if lower else ''}{upper}"
        )
    elif slots is not None and slots < 2:
        yield (
            "placement.mode=disaggregated needs a slot that trains and one that draws, and "
            f"{slots_name}={slots}; use 2, or placement.mode=colocated"
        )
    elif slots is not None and train_slots(config, slots) >= slots:
        most = (slots - 1) // size * size
        yield (
            f"placement.train_slots={train_slots(config, slots)} of {slots_name}={slots} leave none to draw on; "
            + (f"use at most {most}" if most else "use more slots")
        )


def _blocks(config: Config, sizes: Mapping[Role, int], slots: int | None, slots_name: str) -> Iterator[str]:
    """Whether engines fill blocks, blocks the slots, and every role has one."""
    mode, block = config.placement.mode, max(sizes.values())
    largest = max(sizes, key=lambda role: sizes[role])
    odd = [role for role, size in sizes.items() if block % size]
    for role in odd:
        yield (
            f"{size_setting(config, role)}={sizes[role]} does not divide "
            f"{settings_of(largest)}'s {block}, so that blocks of slots cannot change hands; use "
            f"{max(n for n in range(1, sizes[role]) if block % n == 0)}"
        )
    free = None if slots is None else slots - (train_slots(config, slots) if mode == "disaggregated" else 0)
    if odd:
        return
    if free is not None and free % block:
        # Without judges the rule of the policy's own engines says it.
        if len(sizes) > 1 or free != slots:
            lower = free // block * block
            yield (
                f"engines of {block} slots ({settings_of(largest)}) do not fill the {free} slots to draw and judge on; "
                f"use {f'{lower} or ' if lower else ''}{lower + block}"
            )
    elif free is not None and mode in ("partial", "weighted", "dynamic") and free // block < len(sizes):
        yield (
            f"placement.mode={mode} needs {len(sizes) * block} slots, {block} each for {', '.join(sizes)}, and "
            f"{slots_name}={slots}; use colocated"
        )
    elif mode == "partial":
        yield from _split(config.placement.split, sizes, free, block, slots_name)


def _split(
    split: Mapping[Role, int], sizes: Mapping[Role, int], free: int | None, block: int, name: str
) -> Iterator[str]:
    """Whether a given split serves everyone and adds up."""
    at = f"placement.split={_shown(split)}"
    unknown = [role for role in split if role not in sizes]
    for role in unknown:
        close = get_close_matches(role, sizes, n=1)
        meant = f"did you mean {close[0]}?" if close else f"use {', '.join(sizes)}"
        yield f"placement.split names {role}, which this run does not serve; {meant}"
    if unknown:
        return
    fits = _shown(_even(sizes, free, block)) if free is not None else "slots of each role"
    without = [role for role in sizes if split.get(role, 0) < 1]
    part = [role for role in sizes if split.get(role, 0) % block]
    if not split:  # one that is foreseen
        return
    if without:
        yield f"{at} leaves {' and '.join(without)} with nothing; give each of {', '.join(sizes)} some, such as {fits}"
    elif part:
        yield f"{at}: {part[0]}'s slots are not a multiple of {block}, the slots of the largest engine; use {fits}"
    elif free is not None and sum(split.values()) != free:
        yield f"{at} adds up to {sum(split.values())}, not to {name}={free}; use {fits}"


def _even(sizes: Mapping[Role, int], free: int, block: int) -> dict[Role, int]:
    blocks = free // block
    return {role: block * (blocks // len(sizes) + (i < blocks % len(sizes))) for i, role in enumerate(sizes)}


def _shown(split: Mapping[Role, int]) -> str:
    return "{" + ", ".join(f"{role}: {count}" for role, count in split.items()) + "}"


def slot_memory(gpus: int, slots: int) -> float | None:
    """Bytes of a slot of this machine: its smallest GPU, or without any a slot's part of the memory. None where the
    machine does not say."""
    try:
        if not gpus:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / slots
        if shutil.which("nvidia-smi") is None:
            return None
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        return min(float(line) for line in shown.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
