"""The filter of groups that a run asks for."""

from __future__ import annotations

from yatt.algorithm.filter import FILTERS, Filter, band
from yatt.config.schema import RolloutConfig
from yatt.user_functions import find, guarded


def load_filter(config: RolloutConfig) -> Filter:
    """`rollout.filter` by name, or the user's function: a group's rewards (a list of floats) -> whether it is dropped.
    Raises ConfigError where that cannot be found, BackendError when it fails on a group."""
    if config.filter == "band" and config.reward_band is not None:
        return band(*config.reward_band)
    if config.filter in FILTERS:
        return FILTERS[config.filter]
    function = find("rollout.filter", config.filter, dict.fromkeys((*FILTERS, "band"), ""))
    return guarded("rollout.filter", config.filter, lambda rewards: bool(function(rewards)))
