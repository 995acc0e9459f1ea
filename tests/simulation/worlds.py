"""Small worlds for the tests: seconds of virtual time, milliseconds of real time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from yatt.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    Config,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)
from yatt.simulation.costs import (
    ControllerCosts,
    Costs,
    EngineCosts,
    Lengths,
    ScorerCosts,
    TrainerCosts,
    Workload,
)

COSTS = Costs(
    source="test",
    engine=EngineCosts(
        step=0.1,
        per_request=0.01,
        per_kv_token=1e-5,
        prefill=1e-3,
        kv_tokens=120,
        max_running=8,
        sleep=0.5,
        wake=0.5,
        load=1.0,
    ),
    trainer=TrainerCosts(
        per_token=1e-3,
        per_token_squared=1e-6,
        per_micro_batch=0.01,
        per_update=0.1,
        offload=0.3,
        onload=0.3,
        export=0.5,
    ),
    scorer=ScorerCosts(seconds=0.5),
    controller=ControllerCosts(link_bandwidth=1e6),
    workload=Workload(prompt_tokens=16, responses=(Lengths(median=12, p99=60),), equal_groups=0.3, image_bytes=1000),
)


def costs(**workload: Any) -> Costs:
    return replace(COSTS, workload=replace(COSTS.workload, **workload))


def settings(
    *, batch: int = 4, train: dict[str, Any] | None = None, timeout: float = 2.0, every: int = 1, **rollout: Any
) -> Config:
    """`rollout` are settings of that section, `timeout` the reward's, `every` the checkpoint's."""
    return Config(
        model=ModelConfig(path="none"),
        rollout=RolloutConfig(**({"n": 3, "max_tokens": 64, "filter": "all_equal"} | rollout)),
        reward=RewardConfig(timeout=timeout),
        train=TrainConfig(steps=1, batch_size=batch, tokens_per_micro_batch=256, **(train or {})),
        checkpoint=CheckpointConfig(every=every),
        cluster=ClusterConfig(step_timeout=1e6),
    )
