"""Memory of each role on each slot, estimated before anything starts. What is counted is sure to be needed; what is
left out (layers' activations, CUDA contexts, libraries, the host's memory that sleeping weights go to) comes on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from yatt.config.schema import Config
from yatt.models.facts import ModelFacts
from yatt.placement.plan import POLICY, TRAINER, Role

KV_CACHE = float(256 << 20)
"""Bytes of an engine's KV cache on a CPU, where its settings say nothing."""
UTILIZATION = 0.5
"""Share of a GPU that an awake engine takes, where its settings say nothing."""
RUNNING = 256
"""Requests that an engine runs at once, where its settings say nothing."""
Kind = Literal["cpu", "cuda"]


class Need(NamedTuple):
    """Bytes on one slot."""

    awake: float
    asleep: float


def served(config: Config) -> dict[Role, Mapping[str, Any]]:
    """The roles that have engines, with the options of these: the policy, and the judges that this run serves."""
    judges = {name: judge.engine_args for name, judge in config.reward.served.items()}
    return {} if not config.algorithm.recipe.reinforces else {POLICY: config.rollout.engine_args, **judges}


def running(options: Mapping[str, Any]) -> int:
    """Requests that an engine with these options runs at once. The engine is told, since vLLM's own default is another
    one (128 where it is built as here, 256 or 1024 elsewhere), and never more than the tokens it takes in a step."""
    if "max_num_seqs" in options:
        return int(options["max_num_seqs"])
    return min(RUNNING, int(options.get("max_num_batched_tokens", RUNNING)))


def needs(
    config: Config, models: Mapping[Role, ModelFacts], *, train_slots: int, kind: Kind, capacity: float
) -> dict[Role, Need]:
    """What each role takes on each slot it lives on, awake and asleep. `capacity` is a slot's bytes.

    A GPU's engine takes its share of the device awake, and nothing asleep, where sleeping moves its weights to the
    host; on a CPU it takes weights and KV cache, and asleep its weights.
    """
    found = {}
    for role, options in served(config).items():
        weights = _weights(config, models[role], options)
        if kind == "cuda":
            awake, asleep = capacity * float(options.get("gpu_memory_utilization", UTILIZATION)), 0.0
        else:
            awake, asleep = weights + float(options.get("kv_cache_memory_bytes", KV_CACHE)), weights
        found[role] = Need(awake, asleep if config.rollout.sleep else awake)
    return found | {TRAINER: _trainer(config, models[POLICY], train_slots, kind)}


def _weights(config: Config, model: ModelFacts, options: Mapping[str, Any]) -> float:
    return model.parameters * _size(config) / int(options.get("tensor_parallel_size", 1))


def _size(config: Config) -> int:
    """Bytes of a weight."""
    return 4 if config.model.dtype == "float32" else 2


def _trainer(config: Config, model: ModelFacts, slots: int, kind: Kind) -> Need:
    """Weights of each model; of those that learn also float32 gradients, and AdamW's float32 moments, with main weights
    beside bfloat16 ones, sharded over data parallelism; logits of a micro-batch, as they are and as float32
    probabilities. Models beside the policy are taken to be of its size. With `train.offload` a GPU has one at a time.
    Asleep, all of them leave it."""
    size, train, loads = _size(config), config.train, config.algorithm.loads
    held = model.parameters / (train.tp * train.pp)
    ranks = max(1, slots // (train.tp * train.pp))
    learning = held * (size + 4 + (8 if size == 4 else 12) / ranks)
    learners, frozen = 1 + ("critic" in loads), len([name for name in loads if name != "critic"])
    if config.algorithm.precompute_reference and config.model.reference is None:
        frozen -= 1  # the policy itself is asked, before it has learnt
    if train.offload and kind == "cuda":
        learners, frozen = 1, 0
    kept = learners * learning + frozen * held * size
    logits = train.tokens_per_micro_batch * model.vocab_size / train.tp * (size + 4)
    return Need(kept + logits, 0.0 if kind == "cuda" else kept)


def mistakes(
    config: Config, models: Mapping[Role, ModelFacts], *, train_slots: int, kind: Kind, capacity: float
) -> Iterator[str]:
    """One line for each engine that a slot of `capacity` bytes has no room for, and for each phase."""
    table = needs(config, models, train_slots=train_slots, kind=kind, capacity=capacity)
    engines = [role for role in table if role != TRAINER]
    for role, options in served(config).items():
        weights = _weights(config, models[role], options)
        if kind == "cuda" and weights >= table[role].awake:
            yield (
                f"{settings_of(role)}.engine_args: {_gb(weights)} of weights do not fit the {_gb(table[role].awake)} "
                f"that an engine takes of a GPU's {_gb(capacity)}; raise tensor_parallel_size or gpu_memory_utilization"
            )
    apart = config.placement.mode == "disaggregated"
    standing = config.placement.mode in ("partial", "weighted")
    phases = [
        (
            f"while {role} is awake",
            role,
            ([] if standing else [r for r in engines if r != role]) + [TRAINER] * (not apart),
        )
        for role in engines
    ]
    # Where engines stand still, a slot has one; the one that keeps most asleep is the hardest to train beside.
    beside = [max(engines, key=lambda role: table[role].asleep)] if standing and engines else engines
    for when, awake, asleep in [*phases, ("in training", TRAINER, [] if apart else beside)]:
        total = table[awake].awake + sum(table[role].asleep for role in asleep)
        if total > capacity:
            parts = [f"{awake} {_gb(table[awake].awake)}"]
            parts += [f"{role} {_gb(table[role].asleep)} asleep" for role in asleep]
            yield (
                f"placement.mode={config.placement.mode}: {when}, a slot needs {_gb(total)} ({', '.join(parts)}) "
                f"and has {_gb(capacity)}; {_remedy(awake, kind)}"
            )


def settings_of(role: Role) -> str:
    """Where a role's engines are configured."""
    return "rollout" if role == POLICY else f"reward.models.{role}"


def _remedy(awake: Role, kind: Kind) -> str:
    if awake == TRAINER:
        return "raise train.tp or train.pp, lower train.tokens_per_micro_batch, or use more slots"
    lower = "gpu_memory_utilization" if kind == "cuda" else "kv_cache_memory_bytes"
    return f"lower {lower} in {settings_of(awake)}.engine_args, or raise train.tp or train.pp"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
