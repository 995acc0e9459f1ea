"""Which algorithms there are: what rows each learns from, what it is made of, and which settings it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["prompts", "demonstrations", "pairs", "labels"]
"""A kind of data row: a prompt to respond to, a response to imitate, a better and a worse one, a labelled one."""

_LOSS = {
    "ppo": {"clip_low", "clip_high", "dual_clip"},
    "gspo": {"clip_low", "clip_high"},
    "cispo": {"clip_low", "clip_high"},
    "sapo": {"tau_positive", "tau_negative"},
    "gpg": set[str](),
}
_ADVANTAGE = {
    "grpo": {"normalize_std"},
    "gae": {"gamma", "gae_lambda"},
    "reinforce_plus_plus": {"gamma"},
    "reinforce_plus_plus_baseline": {"gamma"},
}
TOKEN_ADVANTAGES = ("gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "distillation")
"""Advantages that ranks work out per token; the others are one number per trajectory, from its siblings' rewards."""
LONE = (*TOKEN_ADVANTAGES[:2], "distillation", "remax")
"""Those that need no siblings: a group of one will do."""
REWARDED_TOKENS = TOKEN_ADVANTAGES[:3]
"""Those with a reward for every token, from which a KL can be taken off."""
_REINFORCED = {
    *("advantage", "loss", "aggregate", "whiten", "entropy", "kl", "correction"),
    *("overlong", "overlong_buffer", "length_penalty", "reward_clip", "reward_normalize"),
}
_IDLE = {
    "gdpo": {"reward_clip", "reward_normalize"},  # each reward is brought to deviation 1 by itself
    "distillation": {"reward_clip", "reward_normalize", "length_penalty", "overlong_buffer"},
}
"""Settings that say nothing to an advantage."""
_PREFERRED = {"beta", "precompute_reference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One algorithm. `advantage` and `loss` are names of the tables of `yatt.algorithm`; offline algorithms have no
    advantage. `has` are the settings of the section `algorithm` that it has, `defaults` those where it differs from
    the schema; `rollout` defaults of that section. `critic`, `teacher`: models it needs beside the policy."""

    rows: Rows = "prompts"
    advantage: str = ""
    loss: str
    has: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)
    critic: bool = False
    teacher: bool = False

    @property
    def reinforces(self) -> bool:
        """Whether responses are drawn and rewarded."""
        return self.rows == "prompts"

    @property
    def compares(self) -> bool:
        """Whether the loss compares the policy with a reference, whatever the settings."""
        return "precompute_reference" in self.has


def _reinforced(advantage: str, loss: str, *, rollout: Mapping[str, Any] | None = None, **defaults: Any) -> Recipe:
    return Recipe(
        advantage=advantage,
        loss=loss,
        has=frozenset((_REINFORCED | _LOSS[loss] | _ADVANTAGE.get(advantage, set())) - _IDLE.get(advantage, set())),
        defaults=defaults,
        rollout=rollout or {},
        critic=advantage == "gae",
        teacher=advantage == "distillation",
    )


def _offline(rows: Rows, loss: str, *has: str, **defaults: Any) -> Recipe:
    return Recipe(rows=rows, loss=loss, has=frozenset(has), defaults=defaults)


RECIPES: dict[str, Recipe] = {
    "grpo": _reinforced("grpo", "ppo"),
    "dr_grpo": _reinforced("grpo", "ppo", normalize_std=False, aggregate="fixed_length"),
    "dapo": _reinforced("grpo", "ppo", clip_high=0.28, rollout={"filter": "all_equal"}),
    "gspo": _reinforced("grpo", "gspo", clip_low=3e-4, clip_high=4e-4, aggregate="sequence_mean"),
    "cispo": _reinforced("grpo", "cispo", clip_low=1.0, clip_high=0.28),
    "sapo": _reinforced("grpo", "sapo", aggregate="sequence_mean"),
    "gpg": _reinforced("grpo", "gpg", normalize_std=False, rollout={"filter": "all_equal"}),
    "gdpo": _reinforced("gdpo", "ppo", whiten="sequences"),
    "rloo": _reinforced("rloo", "ppo"),
    "opo": _reinforced("opo", "ppo"),
    "remax": _reinforced("remax", "ppo"),
    "reinforce_plus_plus": _reinforced("reinforce_plus_plus", "ppo", whiten="tokens"),
    "reinforce_plus_plus_baseline": _reinforced("reinforce_plus_plus_baseline", "ppo", whiten="tokens"),
    "ppo": _reinforced("gae", "ppo", whiten="tokens"),
    "distillation": _reinforced("distillation", "ppo"),
    "sft": _offline("demonstrations", "likelihood", "aggregate"),
    "reward_model": _offline("pairs", "bradley_terry"),
    "dpo": _offline("pairs", "dpo", *_PREFERRED),
    "cdpo": _offline("pairs", "dpo", *_PREFERRED, "label_smoothing", label_smoothing=0.1),
    "ipo": _offline("pairs", "ipo", *_PREFERRED, "average_logprobs"),
    "kto": _offline("labels", "kto", *_PREFERRED, "desirable_weight", "undesirable_weight"),
}


def own_defaults(section: Literal["defaults", "rollout"], name: Any, given: Any) -> Any:
    """A section as it was given, with the defaults of algorithm `name` where it says nothing."""
    recipe = RECIPES.get(name) if isinstance(name, str) else None
    return {**getattr(recipe, section), **given} if recipe and isinstance(given, Mapping) else given
