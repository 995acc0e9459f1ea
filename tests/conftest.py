"""How tests are run: a machine that stalls for a second fails none of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("yatt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("yatt")


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """An actor freezes what its process holds, for good. Where it is started in this one, ranks that are closed would
    stay, and their threads with them."""
    yield
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
