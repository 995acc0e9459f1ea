"""Real vLLM engines on a tiny model of each family; `test_families.py` runs it in its own process."""

from __future__ import annotations

import pytest

from tests.generator_suite import gap, make
from tests.tiny_models import save_tiny, tiny_model

TIED = {"mistral": False, "olmo2": False, "phi3": False, "glm4": False, "gemma2": True, "gemma3_text": True}


@pytest.mark.parametrize("name", list(TIED))
async def test_logprobs_are_those_of_transformers(tmp_path, name):
    """Over 8 responses of 40 tokens, which are longer than a window of 16 or 20."""
    model = tiny_model(name, tie=TIED[name], seed=0)
    model.set_attn_implementation("eager")  # SDPA passes over a Gemma-2's bound of scores
    model.model.do_not_compile = True  # vLLM builds OLMo-2 on this very class, and changes how it is called
    generator = make(save_tiny(tmp_path / name, name, tie=TIED[name], seed=0))
    await generator.start()
    try:
        assert await gap(generator, model) <= 1e-4
    finally:
        await generator.close()
