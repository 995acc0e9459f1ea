"""Effects of a setting that differs from the checkpoint's on the run that goes on from it.

A setting is *taken*: it is what happens from the next step on, as if it had been set by hand while the run stood still
(`train.steps` and the schedule of the learning rate too, whose place is counted in steps). Those in the table stand in
what a checkpoint holds, so that another value would be said and not done: they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yatt.config.paths import absolute
from yatt.config.schema import Config

FIXED: dict[str, str] = {
    "run.seed": "the order of the rows comes from it",
    "data.shuffle": "the order of the rows comes from it",
    "data.tasks": "the rows come from it",
    "data.size": "the rows come from it",
    "train.backend": "each trainer writes checkpoints of its own",
    "model.dtype": "its weights are of that type",
    "train.vision": "its optimizer is of what was trained",
    "train.lora.rank": "its adapters are of that rank",
    "train.lora.alpha": "its adapters were trained with it",
    "train.lora.targets": "it has adapters of those layers",
    "critic.warmup_steps": "the schedule of the policy's learning rate began after it",
}
"""By setting, why it stays as it was. What cannot be told by a setting's value is compared by its content: models and
rows (`yatt.faces.contents`)."""

FROZEN = ("model.reference", "model.teacher")
"""Models that are read anew whenever a run starts, and of which a checkpoint holds nothing."""


def resume_mistakes(now: Config, then: Config) -> Iterator[str]:
    """One line for each setting of `now` that the checkpoint, made under `then`, does not go along with."""
    old, new = then.algorithm, now.algorithm
    parts = {
        "learns from other rows": (old.recipe.rows, new.recipe.rows),
        "has another critic": (old.recipe.critic, new.recipe.critic),
    }
    for what, (before, after) in parts.items():
        if before != after:
            yield (
                f"algorithm.name={new.name} {what} than {old.name}, which made the checkpoint; go on with {old.name}, "
                "or start a new run from what `yatt export` makes of it"
            )
            return
    for setting, why in FIXED.items():
        before, after = (_value(config, setting) for config in (then, now))
        idle = setting == "data.size" and not now.data.tasks
        if before != after and not idle:
            yield (
                f"{setting}={_shown(after)} but the checkpoint was made with {_shown(before)}: {why}; go on with "
                f"{_shown(before)}, or start a new run"
            )


def _value(config: Config, setting: str) -> Any:
    value: Any = config
    for part in setting.split("."):
        value = getattr(value, part)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_shown(one) for one in value) + "]"
    name = getattr(value, "name", None)
    return f"{{name: {name}, ...}}" if isinstance(name, str) else str(value)


def draws_otherwise(now: Config, then: Config) -> bool:
    """Whether groups that the checkpoint carries over were drawn or rewarded as no group of `now` would be."""
    before, after = (absolute(config.model_dump(mode="json")) for config in (then, now))
    drawn = [(values["data"], values["rollout"], values["reward"]) for values in (before, after)]
    return drawn[0] != drawn[1] or then.model.context_length != now.model.context_length


def content_mistakes(
    now: Config, then: Config, contents: Mapping[str, str], recorded: Mapping[str, str]
) -> Iterator[str]:
    """One line for each setting whose folder or rows are other ones than those recorded with the checkpoint. A frozen
    model that another folder is named for is taken as it is; the same folder must hold the same."""
    for setting, content in contents.items():
        if recorded.get(setting, content) == content:
            continue
        before, after = _value(then, setting), _value(now, setting)
        if setting in FROZEN and before != after:
            continue
        other = "have changed since" if before == after else f"are not those of {before}, with which"
        yield (
            f"{setting}={after}: its contents {other} the checkpoint was made ({recorded[setting]}, now {content}); go "
            "on with what it was made with, or start a new run"
        )
