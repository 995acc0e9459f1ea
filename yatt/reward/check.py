"""Reward functions looked at before anything starts: a process imports them, and says what is wrong in one line."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from yatt.config.schema import RewardConfig
from yatt.errors import ConfigError
from yatt.reward import wire
from yatt.reward.function import FunctionSpec, absolute

IMPORT_SECONDS = 60.0


def function_specs(config: RewardConfig) -> tuple[FunctionSpec, ...]:
    """The configured functions; the only one of `reward.function` has the key "reward"."""
    if config.function is not None and config.functions:
        raise ConfigError("reward.function and reward.functions are both set; keep one of them")
    if config.function is not None:
        return (FunctionSpec(key="reward", setting="reward.function", reference=absolute(config.function)),)
    if not config.functions:
        raise ConfigError("reward.function is not set; name FILE.py:NAME, package.module:NAME or a built-in reward")
    return tuple(
        FunctionSpec(
            key=key,
            setting=f"reward.functions.{key}.function",
            reference=absolute(one.function),
            weight=one.weight,
            arguments=one.arguments,
        )
        for key, one in config.functions.items()
    )


def check_reward(config: RewardConfig, timeout: float = IMPORT_SECONDS) -> None:
    """Import every configured function in a process of its own. Raises ConfigError; waits at most `timeout` s."""
    _check(function_specs(config), timeout)


def check_reference(
    reference: str, arguments: Mapping[str, Any] | None = None, timeout: float = IMPORT_SECONDS
) -> None:
    """The same for one reference, called with these arguments."""
    spec = FunctionSpec(
        key="reward", setting="reward.function", reference=absolute(reference), arguments=arguments or {}
    )
    _check((spec,), timeout)


def _check(specs: Sequence[FunctionSpec], timeout: float) -> None:
    process, connection = wire.spawn(specs)
    names = ", ".join(map(str, specs))
    try:
        connection.settimeout(timeout)
        answer = wire.read(connection.makefile("rb"))
    except TimeoutError as error:
        raise ConfigError(f"{names} does not import within {timeout:g} s") from error
    finally:
        connection.close()
        ended = wire.end(process)
    if answer is None:
        raise ConfigError(f"{names} ended its process while it was imported ({ended})")
    status, detail = pickle.loads(answer)
    if status == "broken":
        raise ConfigError(detail)
