"""The families that are trained."""

from __future__ import annotations

from yatt.models.family import Family
from yatt.models.gemma2 import GEMMA2
from yatt.models.gemma3 import GEMMA3
from yatt.models.generic import scoring_architectures
from yatt.models.glm4 import GLM4
from yatt.models.llama import LLAMA
from yatt.models.mistral import MISTRAL
from yatt.models.olmo2 import OLMO2
from yatt.models.phi3 import PHI3
from yatt.models.qwen2 import QWEN2
from yatt.models.qwen2_5_vl import QWEN2_5_VL
from yatt.models.qwen3 import QWEN3
from yatt.models.qwen3_vl import QWEN3_VL

_ALL = (LLAMA, QWEN2, QWEN3, MISTRAL, OLMO2, PHI3, GLM4, GEMMA2, GEMMA3, QWEN2_5_VL, QWEN3_VL)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
"""model_type of a folder -> family."""
LANGUAGES: dict[str, Family] = {family.language_type or family.model_type: family for family in _ALL}
"""model_type of the language model -> family."""
ARCHITECTURES = tuple(family.causal for family in _ALL)
"""The architectures that can be trained."""
CLASSIFIERS = tuple(family.scoring for family in _ALL if family.scoring)
"""The architectures that can be trained to score: with one label."""


def scoring_of(model_type: str) -> str:
    """The architecture that scores; empty where transformers has none."""
    family = FAMILIES.get(model_type)
    return scoring_architectures().get(model_type, "") if family is None else family.scoring


def family_of(architecture: str) -> Family | None:
    """The family of an architecture that is trained; None for others."""
    return next((family for family in _ALL if architecture in (family.causal, family.scoring)), None)
