"""A plan in words: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Plan = Mapping[str, Any]
COLUMNS = ("devices", "mode", "step", "rollout", "train", "idle", "tokens/s", "sent by a controller", "split")


def cells(plan: Plan, name: str) -> list[str]:
    """The row of one mode."""
    mode = plan["modes"][name]
    split = ", ".join(f"{role} {slots}" for role, slots in mode["split"].items())
    moves = f", {mode['moves']:.1f} moves" if mode["moves"] else ""
    return [
        str(plan["devices"]),
        name,
        *(f"{seconds:.2f} s" for seconds in (mode["step_s"], mode["rollout_s"], mode["phases"]["train"])),
        f"{mode['idle']:.0%}",
        f"{mode['tokens_per_s']:,.0f}",
        f"{mode['controller_bytes'] / 1e6:.1f} MB",
        split + moves,
    ]


def choices(plans: Sequence[Plan]) -> Iterator[str]:
    """The mode to choose on each number of devices, and what it gains over the first."""
    chosen = [(plan["devices"], plan["choice"], plan["modes"][plan["choice"]]["step_s"]) for plan in plans]
    first, _, longest = chosen[0]
    for devices, choice, seconds in chosen:
        than = f", {longest / seconds:.2f} times as fast as on {first}" if devices != first else ""
        yield f"choose {choice} on {devices} devices: {seconds:.2f} s a step{than}"


def remarks(head: Mapping[str, Any], plans: Sequence[Plan]) -> Iterator[str]:
    """Remarks under the table: modes left out and why, the memory of a slot, and where the costs are from."""
    for plan in plans:
        if "splits_tried" in plan:
            at = f" on {plan['devices']} devices" if len(plans) > 1 else ""
            split = ", ".join(f"{role}: {slots}" for role, slots in plan["modes"]["partial"]["split"].items())
            yield f"partial{at}: placement.split={{{split}}} is the best of {plan['splits_tried']} splits simulated"
    for why, where in _reasons(plans).items():
        yield f"left out {', '.join(where)}: {why}"
    if head["memory"]:
        roles = {role: need for role, need in head["memory"].items() if role != "slot"}
        parts = [f"{role} {n['awake'] / 1e9:.1f} ({n['asleep'] / 1e9:.1f} asleep)" for role, n in roles.items()]
        yield f"GB of a slot's {head['memory']['slot'] / 1e9:.0f}: {', '.join(parts)}"
    yield f"means of {head['steps']} simulated steps, seed {head['seed']}; costs: {head['costs']}"
    work, last = head["workload"], head["workload"]["responses"][-1]
    yield (
        f"prompts of {work['prompt_tokens']} tokens and {work['image_bytes']} bytes of images, responses of "
        f"{last['median']:.0f} tokens (p99 {last['p99']:.0f}), {work['equal_groups']:.0%} of groups of equal rewards"
    )
    if not head["calibrated"]:
        yield "An estimate says what hardware could do; `yatt plan --calibrate RUN` measures what yours does."


def _reasons(plans: Sequence[Plan]) -> dict[str, list[str]]:
    """Why modes were left out, and which."""
    reasons: dict[str, list[str]] = {}
    for plan in plans:
        for mode, why in plan["left_out"].items():
            at = f"{mode} on {plan['devices']}" if len(plans) > 1 else mode
            reasons.setdefault(why, []).append(at)
    return reasons
