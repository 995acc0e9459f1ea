"""Memory of each role on each slot, estimated before anything starts. What is counted is sure to be needed; what is
left out (layers' activations, CUDA contexts, libraries, the host's memory that sleeping weights go to) comes on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from yatt.config.models import reference_apart
from yatt.config.schema import Config, EngineName, JudgeConfig, RolloutConfig
from yatt.errors import ConfigError
from yatt.generation.kind import Device, EngineShape, Need
from yatt.generation.table import ENGINES, number_mistakes
from yatt.models.facts import ModelFacts
from yatt.models.lora import adapter_parameters
from yatt.models.table import family_of
from yatt.placement.plan import POLICY, TRAINER, Role


def engine_of(config: Config, role: Role) -> EngineName:
    """The engine that serves a role."""
    judge = config.reward.models.get(role)
    return (judge.engine if judge is not None else None) or config.rollout.engine


def settings_for(config: Config, role: Role) -> RolloutConfig | JudgeConfig:
    """The section that has a role's `engine_args`."""
    return config.rollout if role == POLICY else config.reward.models[role]


def shape_of(config: Config, role: Role) -> EngineShape:
    """One engine of a role. Raises ConfigError where one of its numbers is none."""
    kind, engine_args = ENGINES[engine_of(config, role)], settings_for(config, role).engine_args
    if lines := list(number_mistakes(kind, engine_args, settings_of(role))):
        raise ConfigError("\n".join(lines))
    return kind.shape(engine_args)


def served(config: Config) -> dict[Role, EngineShape]:
    """The roles that have engines, with the shape of one: the policy, and the judges that this run serves."""
    roles = [POLICY, *config.reward.served] if config.algorithm.recipe.reinforces else []
    return {role: shape_of(config, role) for role in roles}


def needs(
    config: Config, models: Mapping[Role, ModelFacts], *, train_slots: int, kind: Device, capacity: float
) -> dict[Role, Need]:
    """What each role takes on each slot it lives on, awake and asleep. `capacity` is a slot's bytes.

    A GPU's engine takes its share of the device awake, and nothing asleep, where sleeping moves its weights to the
    host; on a CPU it takes weights and KV cache, and asleep its weights.
    """
    by_role = {}
    for role, shape in served(config).items():
        sizes = {"weights": _weights(config, models[role]), "token": kv_token(models[role], config.model.dtype)}
        need = shape.need(**sizes, device=kind, capacity=capacity)
        by_role[role] = need if config.rollout.sleep else Need(need.awake, need.awake)
    return by_role | {TRAINER: _trainer(config, models[POLICY], train_slots, kind)}


def kv_token(model: ModelFacts, dtype: str) -> float:
    """Bytes of a token in the KV cache, over all of an engine's devices."""
    return 2.0 * model.layers * model.kv_heads * model.head_dim * bytes_of(dtype)


def _weights(config: Config, model: ModelFacts) -> float:
    return float(model.parameters * bytes_of(config.model.dtype))


def bytes_of(dtype: str) -> int:
    """Bytes of a number."""
    return 4 if dtype == "float32" else 2


ADAMW = 12
"""Bytes of a parameter that an update goes through: AdamW's two moments and its main weight, all float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerMemory:
    """What the models of a trainer take of a slot: of the first stage's, which have a vision tower each, whole. Models
    beside the policy are taken to be of its size."""

    learning: float  # parameters that learn
    weights: float  # bytes of those and of the frozen models'
    gradients: float  # bytes, float32
    states: float  # bytes of AdamW's moments, and of main weights beside bfloat16 ones, sharded over data parallelism

    @property
    def kept(self) -> float:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.states


def trainer_memory(config: Config, model: ModelFacts, *, ranks: int, alone: bool = False) -> TrainerMemory:
    """Of the policy and of all beside it, over so many data-parallel `ranks`; `alone` is the policy without them."""
    size, train, loads = bytes_of(config.model.dtype), config.train, config.algorithm.loads
    learners, frozen = 1 + ("critic" in loads), ("teacher" in loads) + reference_apart(config)
    if alone:
        learners, frozen = 1, 0
    if train.backend == "fsdp":
        share = model.parameters / ranks
        return TrainerMemory(
            learning=learners * share,
            weights=(learners * 4 + frozen * size) * share,
            gradients=learners * 4 * share,
            states=learners * (ADAMW - 4) * share,
        )
    language, tower = model.language_parameters / (train.tp * train.pp), model.parameters - model.language_parameters
    adapters = 0.0
    if train.lora.rank and (family := family_of(model.architecture)) is not None:
        adapters = adapter_parameters(model, family, train.lora.targets, train.lora.rank) / (train.tp * train.pp)
    learning = learners * (adapters or language + tower * (train.vision == "trained"))
    beside = ADAMW - 4 if size == 4 else ADAMW  # float32 weights are their own main weights
    return TrainerMemory(
        learning=learning,
        weights=((learners + frozen) * (language + tower) + learners * adapters) * size,
        gradients=learning * 4,
        states=learning * beside / ranks,
    )


def _trainer(config: Config, model: ModelFacts, slots: int, kind: Device) -> Need:
    """What its models take; logits of a micro-batch and their gradient. With `train.offload` a GPU has one model at a
    time. Asleep, all of them leave it."""
    train, size = config.train, bytes_of(config.model.dtype)
    ranks = max(1, slots // (train.tp * train.pp))
    kept = trainer_memory(config, model, ranks=ranks, alone=train.offload and kind == "cuda").kept
    logits = train.tokens_per_micro_batch * model.vocab_size / train.tp * 2 * size
    return Need(kept + logits, 0.0 if kind == "cuda" else kept)


def mistakes(
    config: Config, models: Mapping[Role, ModelFacts], *, train_slots: int, kind: Device, capacity: float
) -> Iterator[str]:
    """One line for each engine that a slot of `capacity` bytes has no room for, and for each phase."""
    table = needs(config, models, train_slots=train_slots, kind=kind, capacity=capacity)
    engines = [role for role in table if role != TRAINER]
    for role, shape in served(config).items():
        weights = _weights(config, models[role]) / shape.tensor_parallel
        if kind == "cuda" and weights >= table[role].awake:
            yield (
                f"{settings_of(role)}.engine_args: {_gb(weights)} of weights do not fit the {_gb(table[role].awake)} "
                f"that an engine takes of a GPU's {_gb(capacity)}; raise {shape.names.tensor_parallel} or "
                f"{shape.names.device_share}"
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
                f"and has {_gb(capacity)}; {_remedy(config, awake, kind)}"
            )


def settings_of(role: Role) -> str:
    """Where a role's engines are configured."""
    return "rollout" if role == POLICY else f"reward.models.{role}"


def size_setting(config: Config, role: Role) -> str:
    """What says how many slots an engine of a role lies on."""
    return f"{settings_of(role)}.engine_args.{shape_of(config, role).names.tensor_parallel}"


def _remedy(config: Config, awake: Role, kind: Device) -> str:
    if awake == TRAINER and config.train.backend == "fsdp":
        return "lower train.tokens_per_micro_batch, or use more slots"
    if awake == TRAINER:
        return "raise train.tp or train.pp, lower train.tokens_per_micro_batch, or use more slots"
    names = shape_of(config, awake).names
    wider = "use more slots" if config.train.backend == "fsdp" else "raise train.tp or train.pp"
    lower = names.device_share if kind == "cuda" else names.cache
    return f"lower {lower} in {settings_of(awake)}.engine_args, or {wider}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
