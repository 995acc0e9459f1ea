"""How tests are run: a machine that stalls for a second fails none of them."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from yatt.cluster.folders import ray_folder
from yatt.cluster.forks import SHARED

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported, here and in every process
settings.register_profile("yatt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("yatt")


def pytest_configure(config: pytest.Config) -> None:
    """Whole runs share fork servers: what one imports, others need not. They end with the process that holds their
    lifeline, which is this one; xdist's workers are given its folder."""
    if SHARED in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="yatt-", dir=ray_folder())
    os.mkfifo(f"{folder}/lifeline")
    lifeline = os.open(f"{folder}/lifeline", os.O_RDWR)
    os.environ[SHARED] = folder

    def end() -> None:
        os.close(lifeline)
        del os.environ[SHARED]
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(end)


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """An actor freezes what its process holds, for good. Where it is started in this one, ranks that are closed would
    stay, and their threads with them."""
    yield
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
