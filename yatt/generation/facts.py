"""What an engine knows of the model it serves before it loads it."""

from __future__ import annotations

from yatt.config.facts import model_facts
from yatt.models.facts import ModelFacts


def served_facts(folder: str, setting: str, *, classifies: bool) -> ModelFacts:
    """Sizes of the policy, or of a judge, which may be of a family that is not trained."""
    return model_facts(folder, setting, weights=False, judge="classifier" if classifies else "generative")
