"""What everything costs in a simulated run: seconds, bytes and tokens.

The numbers come from a real run (`calibrate`), or are estimated from a device's data sheet and the model's shape
(`from_shape`). An estimate says what hardware could do; only a calibration says what a machine does.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.placement.cost import ADAMW, bytes_of, kv_token, settings_of, shape_of, trainer_memory
from yatt.placement.forecast import Amount, EngineSpeed
from yatt.placement.plan import POLICY, Role

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Z99 = 2.3263478740408408
"""The standard normal's 99th percentile: ln(p99 / median) = Z99 * sigma of a lognormal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts(EngineSpeed):
    """One generator: its speed, and what the rest of its life costs."""

    load: Amount  # seconds to take a new set of weights
    images: Amount = 0.0  # seconds of the vision tower for the images of a prompt, once for all its siblings
    sleep: Amount = 0.0  # seconds to free its memory
    wake: Amount = 0.0  # seconds to take it back
    kv_tokens: Count = 10**12  # tokens the KV cache holds
    max_running: Count = 256  # requests decoded at once; others wait
    parameters: Amount = 0.0  # of the model: what a weighted split goes by


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCosts:
    """One data-parallel rank (all its tensor- and pipeline-parallel devices). A micro-batch of samples of T tokens each
    takes `per_micro_batch + sum(per_token * T + per_token_squared * T^2)` seconds, all passes over it included."""

    per_token: Amount  # seconds per token of a sample
    per_token_squared: Amount  # seconds per squared token of a sample: attention
    per_update: Amount  # seconds of an optimizer update: reducing gradients, the optimizer's step
    per_micro_batch: Amount = 0.0  # seconds of a micro-batch, whatever is in it
    images: Amount = 0.0  # seconds of the vision tower in an update, for a prompt's images; once in a micro-batch
    images_seen: Amount = 0.0  # seconds of one forward pass of it
    offload: Amount = 0.0  # seconds to give the memory that only training needs back
    onload: Amount = 0.0  # seconds to take it again
    export: Amount = 0.0  # seconds to write the weights for the engines


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerCosts:
    """The reward of one trajectory; the default is assumed of a rule."""

    seconds: Amount = 1e-3  # seconds from request to score


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerCosts:
    """A controller and the network it speaks through; the defaults are assumed. A message of N bytes takes
    `link_latency + N / link_bandwidth` seconds; a controller's messages follow each other on its link."""

    per_response: Amount = 1e-3  # CPU seconds of a controller for one response, from prompt to share
    per_step: Amount = 10e-3  # seconds per step outside the phases' own work: writing samples, the report
    link_bandwidth: Positive = 3e9  # bytes/s in and out of a controller's node (25 Gb/s)
    link_latency: Amount = 1e-3  # seconds from node to node
    storage_bandwidth: Positive = 1e9  # bytes/s at which images are read
    bytes_per_token: Amount = 13.0  # of a sample: int32 token, bool mask, float32 logprob; a response's tokens twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Response lengths of a step, in tokens: lognormal, cut at `rollout.max_tokens`."""

    median: Positive
    p99: Positive

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p99 / self.median) / Z99


Trace = Annotated[tuple[Lengths, ...], Field(min_length=1)]
"""Of step 1, 2, ...; the last one holds for all later steps."""


def of_step(trace: Trace, step: int) -> Lengths:
    """The lengths of step `step`, counted from 1."""
    return trace[min(max(step, 1), len(trace)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the run has to do, apart from the settings: properties of the data and the policy."""

    prompt_tokens: Count  # tokens of a prompt, images' tokens included
    responses: Trace
    equal_groups: Amount = 0.0  # share of groups whose rewards are all equal
    image_bytes: Annotated[int, Field(ge=0)] = 0  # bytes of the images of one prompt
    turns: Count = 1  # of a conversation; `responses` are the tokens of all of them together
    outside: Lengths | None = None  # seconds between two turns, lognormal; none are spent without it
    outside_tokens: Annotated[int, Field(ge=0)] = 0  # that are said to the policy between two turns
    images: Count = 1  # of a prompt, where image_pixels is above 0
    image_pixels: Annotated[int, Field(ge=0)] = 0  # of one of its images

    def seen(self, facts: ModelFacts) -> float:
        """FLOPs of one forward pass of the vision tower over the images of a prompt, each of the size that it comes in:
        a limit of the model's processor is not looked at."""
        if facts.vision is None:
            return 0.0
        patches = round(self.image_pixels / facts.vision.patch**2)
        return 2 * self.images * (facts.vision.per_patch * patches + facts.vision.per_pair * patches**2)

    def lengths(self, step: int) -> Lengths:
        """Response lengths of step `step`, counted from 1."""
        return of_step(self.responses, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCosts:
    """A judge that the run serves. It reads its template with the question and the response filled in."""

    engine: EngineCosts
    answers: Trace  # lengths of its answers in step 1, 2, ...
    template_tokens: Count = 64  # that the template adds to the prompt and the response


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All costs of a simulated run. `source` says where they come from: `calibration of RUN`, `estimate for DEVICE`;
    `judges` are those that the run serves, by name."""

    source: str
    engine: EngineCosts
    trainer: TrainerCosts
    scorer: ScorerCosts
    controller: ControllerCosts
    workload: Workload
    judges: Mapping[str, JudgeCosts] = field(default_factory=dict)

    def of(self, role: Role) -> EngineCosts:
        """The engines of the policy, or of a judge. Raises ConfigError for a judge of which nothing is known."""
        if role == POLICY:
            return self.engine
        if role not in self.judges:
            raise ConfigError(
                f"reward.models.{role} has no costs in the {self.source}; leave plan.calibration out for an estimate"
            )
        return self.judges[role].engine

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Costs:
        """The inverse of `to_json`. Raises ConfigError naming the first value that is missing or no amount."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise ConfigError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An accelerator by its data sheet: bytes, bytes/s, and dense bfloat16 FLOP/s."""

    memory: float
    bandwidth: float
    flops: float
    host_link: float  # bytes/s to the host's memory, one way


_PCIE4, _PCIE5 = 32e9, 64e9  # bytes/s of 16 lanes, one way (PCI-SIG)

# NVIDIA's public data sheets of each product: memory, memory bandwidth, dense BF16 tensor throughput, host interface.
DEVICES: dict[str, Device] = {
    "H200": Device(memory=141e9, bandwidth=4.8e12, flops=989e12, host_link=_PCIE5),
    "H100": Device(memory=80e9, bandwidth=3.35e12, flops=989e12, host_link=_PCIE5),  # SXM
    "H100-PCIe": Device(memory=80e9, bandwidth=2.0e12, flops=756e12, host_link=_PCIE5),
    "H20": Device(memory=96e9, bandwidth=4.0e12, flops=148e12, host_link=_PCIE5),
    "A100": Device(memory=80e9, bandwidth=2.039e12, flops=312e12, host_link=_PCIE4),  # SXM, 80 GB
    "L40S": Device(memory=48e9, bandwidth=864e9, flops=362e12, host_link=_PCIE4),
}

# What an estimate takes for granted beside the data sheet.
ASSUMED: dict[str, float] = {
    "bandwidth_efficiency": 0.8,  # of the memory bandwidth, when decoding
    "decode_efficiency": 0.5,  # of the FLOP/s, in the matrices of a decode step and in prefill
    "train_efficiency": 0.4,  # of the FLOP/s, in training
    "launch": 2e-3,  # seconds of a decode step outside the device's work
    "micro_batch": 10e-3,  # seconds of a micro-batch outside it
    "host_efficiency": 0.5,  # of the link to the host: offloading, and bringing weights over
    "network": 50e9,  # bytes/s between nodes for each device: gradients (400 Gb/s)
    "activations": 4e9,  # bytes an engine keeps back for them
    "switch": 0.1,  # seconds to free a KV cache or to take it back; weights move over the host link beside it
}


def device(name: str) -> Device:
    """The data sheet of a device. Raises ConfigError with the nearest name for one that is not in the table."""
    if name in DEVICES:
        return DEVICES[name]
    near = difflib.get_close_matches(name.upper(), DEVICES, n=1, cutoff=0.3)
    known = ", ".join(DEVICES)
    raise ConfigError(f"plan.device={name} is unknown; use {f'{near[0]} (known: {known})' if near else known}")


def written(work: Workload, max_tokens: int) -> int:
    """The most tokens behind a prompt, of `max_tokens` a turn."""
    return work.turns * max_tokens + (work.turns - 1) * work.outside_tokens


def from_shape(
    facts: ModelFacts, config: Config, workload: Workload, judges: Mapping[str, ModelFacts] | None = None
) -> Costs:
    """An estimate for `plan.device`, from its data sheet, the models' shapes and `ASSUMED`. `judges` are those that the
    run serves; a quarter of their `max_tokens` is taken for the median answer.

    Raises ConfigError where no KV cache fits.
    """
    longest = workload.prompt_tokens + written(workload, config.rollout.max_tokens)
    return Costs(
        source=f"estimate for {config.plan.device}",
        engine=_engine(facts, config, POLICY, longest, workload.seen(facts)),
        trainer=_trainer(facts, config, workload.seen(facts)),
        scorer=ScorerCosts(),
        controller=ControllerCosts(),
        workload=workload,
        judges={name: _judge(name, shape, config, workload, longest) for name, shape in (judges or {}).items()},
    )


def _judge(name: str, facts: ModelFacts, config: Config, workload: Workload, longest: int) -> JudgeCosts:
    """A classifier answers with one token, and sees nothing."""
    judge = config.reward.models[name]
    most = judge.max_tokens if judge.kind == "generative" else 1
    return JudgeCosts(
        engine=_engine(
            facts, config, name, longest + most, workload.seen(facts) if judge.kind == "generative" else 0.0
        ),
        answers=(Lengths(median=max(1.0, most / 4), p99=float(most)),),
    )


def _engine(facts: ModelFacts, config: Config, role: Role, longest: int, seen: float) -> EngineCosts:
    """A decode step reads all weights and the running requests' KV cache, and multiplies by each weight once per
    request; the two are added, though hardware overlaps them in part. An engine that sleeps has its weights in the
    host's memory. `longest` is the tokens of a request that must fit, `seen` the FLOPs of a vision tower for a prompt,
    which one device of the engine does."""
    chip, size, shape = device(config.plan.device), bytes_of(config.model.dtype), shape_of(config, role)
    tp, share, names = shape.tensor_parallel, shape.device_share, shape.names
    weights, token = facts.parameters * size, kv_token(facts, config.model.dtype)
    room = share * chip.memory * tp - weights - ASSUMED["activations"] * tp
    if room < token * longest:
        raise ConfigError(
            f"plan.device={config.plan.device} has {chip.memory / 1e9:.0f} GB, of which an engine takes {share:.0%}: "
            f"no room for {weights / 1e9:.1f} GB of weights and a KV cache; raise {names.device_share} or "
            f"{names.tensor_parallel} in {settings_of(role)}.engine_args"
        )
    read = chip.bandwidth * ASSUMED["bandwidth_efficiency"] * tp
    multiply = 2 * facts.active_parameters / (chip.flops * 2 / size * ASSUMED["decode_efficiency"] * tp)
    moved = weights / tp / (chip.host_link * ASSUMED["host_efficiency"])
    return EngineCosts(
        step=ASSUMED["launch"] + weights / read,
        per_request=multiply,
        per_kv_token=token / read,
        prefill=multiply,
        images=seen / (chip.flops * 2 / size * ASSUMED["decode_efficiency"]),
        kv_tokens=min(int(room / token), shape.cache_tokens or sys.maxsize),
        max_running=shape.running,
        sleep=ASSUMED["switch"] + moved,
        wake=ASSUMED["switch"] + moved,
        load=moved,
        parameters=facts.parameters,
    )


def _trainer(facts: ModelFacts, config: Config, seen: float) -> TrainerCosts:
    """A token costs 2 FLOPs per parameter forward and 6 with its backward pass (arXiv 2001.08361); causal attention
    adds 2 * layers * width * T^2 forward over a sequence of T. There is a forward pass more for the old logprobs, one
    for a reference, a teacher and a critic each; the critic learns as much as the policy. Recomputing layers is a
    forward pass more for each update; where adapters learn, no weight has a gradient, which is one less. Models beside
    the policy are taken to be of its size, and optimizer states to be of one rank alone. float32 runs as TF32, at half
    the rate of bfloat16. Messages between tensor-parallel devices are not counted. A vision tower, of `seen` FLOPs a
    forward pass, is whole on each device that has one; a frozen one has no backward pass and nothing to recompute."""
    chip, devices = device(config.plan.device), config.train.tp * config.train.pp
    single = chip.flops * 2 / bytes_of(config.model.dtype) * ASSUMED["train_efficiency"]
    flops = single * devices
    loads, learners = config.algorithm.loads, 1 + ("critic" in config.algorithm.loads)
    update = 3 + (config.train.recompute == "full") - (config.train.lora.rank > 0)
    passes = 1 + len(loads) + update * learners * config.train.epochs_per_step  # in units of one forward pass
    looks = 1 + len(loads) + (3 if config.train.vision == "trained" else 1) * learners * config.train.epochs_per_step
    host = chip.host_link * ASSUMED["host_efficiency"]
    memory = trainer_memory(config, facts, ranks=1)
    moved = (memory.weights + memory.states) / host  # gradients are made anew
    return TrainerCosts(
        per_token=passes * 2 * facts.active_parameters / flops,
        per_token_squared=passes * 2 * facts.layers * facts.heads * facts.head_dim / flops,
        per_micro_batch=ASSUMED["micro_batch"],
        images=looks * seen / single,
        images_seen=seen / single,
        per_update=config.train.epochs_per_step
        * (2 * memory.gradients / ASSUMED["network"] + ADAMW * memory.learning / chip.bandwidth),
        offload=moved,
        onload=moved,
        export=facts.parameters / devices * bytes_of(config.model.dtype) / host,
    )
