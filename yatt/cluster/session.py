"""Ray for the length of a run: joined or started, its slots found, its actors placed and in the end removed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from yatt.cluster import forks
from yatt.cluster.folders import ray_environment
from yatt.cluster.kinds import Kind, Slot, threads_of
from yatt.config.schema import ClusterConfig
from yatt.errors import ConfigError
from yatt.weights import SHARED_MEMORY
from yatt.weights.flat import remove_stale


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster at `config.address`, or start one on this machine and stop it at the end."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it Ray hides the GPUs of actors that asked for none; slots are given out here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Else it frees a hundred objects at a time, or those of a second: ours are few and large.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
    if config.address is None:
        os.environ.update(ray_environment())
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # has been read already; its processes read LOOPBACK
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray's own paragraph on a process that died; ours is one line.
    ray._private.worker._worker_logs_enabled = False
    with _deaf_to_hangups():
        _init(config.address)
    try:
        yield
    finally:
        ray.shutdown()
        forks.end()
        remove_stale(SHARED_MEMORY)  # what a killed rank of this machine left


def _init(address: str | None) -> None:
    """Join Ray or start it. On a machine under load Ray gives up its own processes after 30 seconds: then once more."""
    for tries_left in reversed(range(3 if address is None else 1)):
        try:
            ray.init(
                address=address or "local",
                # Settings of a cluster's own: one that is joined refuses them.
                num_cpus=0 if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                configure_logging=False,
                namespace="yatt",
            )
            return
        except Exception as error:  # Ray's time-out is of no class of its own
            ray.shutdown()
            if not (tries_left and "timed out" in str(error)):
                raise ConfigError(
                    f"cluster.address={address or 'this machine'}: Ray does not start there "
                    f"({str(error).splitlines()[0]}); run `yatt doctor`"
                ) from error


@contextmanager
def _deaf_to_hangups() -> Iterator[None]:
    """What is started meanwhile does not end with the terminal: the driver saves first, and then ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def find_slots(config: ClusterConfig) -> list[Slot]:
    """The slots of the run, node by node. Raises ConfigError when the cluster has fewer devices than asked for."""
    nodes = [n for n in ray.nodes() if n["Alive"]]
    gpus = {n["NodeID"]: int(n["Resources"].get("GPU", 0)) for n in nodes}
    device: Literal["cpu", "cuda"] = "cpu" if config.device == "cpu" or not any(gpus.values()) else "cuda"
    if config.device == "cuda" and device == "cpu":
        raise ConfigError("cluster.device=cuda: no node of the Ray cluster has a GPU; use cpu or auto")
    if device == "cuda":
        places = [(n["NodeID"], i) for n in nodes for i in range(gpus[n["NodeID"]])]
        wanted = config.slots or len(places)
        if wanted > len(places):
            raise ConfigError(f"cluster.slots={wanted}: the cluster has {len(places)} GPUs; use at most {len(places)}")
        places = places[:wanted]
    else:
        wanted = config.slots or len(nodes)
        places = sorted((nodes[i % len(nodes)]["NodeID"], i // len(nodes)) for i in range(wanted))
    on_node = {node: sum(1 for n, _ in places if n == node) for node, _ in places}
    return [
        Slot(
            index=index,
            node=node,
            device=device,
            device_index=device_index,
            threads=threads_of(config, on_node[node]),
        )
        for index, (node, device_index) in enumerate(places)
    ]


def place(actor: type, node: str, kind: Kind, *arguments: Any, **keywords: Any) -> Any:
    """Start an actor on a node, in a fresh process of its kind: forked, where a fork server is ready."""
    runtime_env: dict[str, Any] = {"env_vars": kind.environment}
    if (python := forks.python(kind)) is not None:
        runtime_env["py_executable"] = python
    return (
        ray.remote(actor)
        .options(
            num_cpus=0,
            max_concurrency=100_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env=runtime_env,
        )
        .remote(*arguments, **keywords)
    )
