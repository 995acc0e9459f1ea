"""Small worlds for the tests: seconds of virtual time, milliseconds of real time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from yatt.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    JudgeConfig,
    ModelConfig,
    PlacementConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)
from yatt.simulation.costs import (
    ControllerCosts,
    Costs,
    EngineCosts,
    JudgeCosts,
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


# Judges on the same slots: 4 answers at once, each of a template of 8 tokens, a response and its prompt.
JUDGED = replace(
    COSTS,
    judges={
        "judge": JudgeCosts(
            engine=replace(COSTS.engine, per_request=0.02, kv_tokens=600, max_running=4, parameters=2.0),
            answers=(Lengths(median=20, p99=40),),
            template_tokens=8,
        )
    },
)


def settings(
    *,
    batch: int = 4,
    train: dict[str, Any] | None = None,
    timeout: float = 2.0,
    every: int = 1,
    mode: str = "colocated",
    split: dict[str, int] | None = None,
    judge: dict[str, Any] | None = None,
    algorithm: str = "grpo",
    **rollout: Any,
) -> Config:
    """`rollout` are settings of that section, `timeout` the reward's, `every` the checkpoint's, `mode` and `split` the
    placement's; `judge` are those of a judge that the run serves."""
    judges = {} if judge is None else {"judge": JudgeConfig(**({"path": "none", "max_tokens": 50} | judge))}
    return Config(
        model=ModelConfig(path="none"),
        algorithm=AlgorithmConfig.model_validate({"name": algorithm}),
        rollout=RolloutConfig(**({"n": 3, "max_tokens": 64, "filter": "all_equal"} | rollout)),
        reward=RewardConfig(timeout=timeout, models=judges),
        train=TrainConfig(
            **({"steps": 1, "batch_size": batch, "tokens_per_micro_batch": 256, "max_recoveries": 9} | (train or {}))
        ),
        checkpoint=CheckpointConfig(every=every),
        cluster=ClusterConfig(step_timeout=1e6),
        placement=PlacementConfig(mode=mode, split=split or {}),
    )
