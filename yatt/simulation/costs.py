"""What everything costs in a simulated run: seconds, bytes and tokens.

The numbers come from a real run (`calibrate`), or are estimated from a device's data sheet and the model's shape
(`from_shape`). An estimate says what hardware could do; only a calibration says what a machine does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from yatt.config.facts import ModelFacts
from yatt.errors import ConfigError

Z99 = 2.3263478740408408
"""The standard normal's 99th percentile: ln(p99 / median) = Z99 * sigma of a lognormal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """One generator. A decode step that gives one token to each of R running requests, whose prefixes hold K tokens
    together, takes `step + per_request * R + per_kv_token * K` seconds."""

    step: float  # seconds of a decode step, whatever runs: reading the weights, launching
    per_request: float  # seconds per running request in a decode step
    per_kv_token: float  # seconds per token of KV cache read in a decode step
    prefill: float  # seconds per prompt token computed; siblings share their prompt's
    kv_tokens: int  # tokens the KV cache holds
    max_running: int  # requests decoded at once; others wait
    sleep: float  # seconds to free the KV cache
    wake: float  # seconds to take it back
    load: float  # seconds to take a new set of weights


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCosts:
    """One data-parallel rank (all its tensor- and pipeline-parallel devices). A micro-batch of samples of T tokens each
    takes `per_micro_batch + sum(per_token * T + per_token_squared * T^2)` seconds, all passes over it included."""

    per_token: float  # seconds per token of a sample
    per_token_squared: float  # seconds per squared token of a sample: attention
    per_micro_batch: float  # seconds of a micro-batch, whatever is in it
    per_update: float  # seconds of an optimizer update: reducing gradients, the optimizer's step
    offload: float  # seconds to give the memory that only training needs back
    onload: float  # seconds to take it again
    export: float  # seconds to write the weights for the engines


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerCosts:
    """The reward of one trajectory."""

    seconds: float  # seconds from request to score


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerCosts:
    """A controller and the network it speaks through. A message of N bytes takes `link_latency + N / link_bandwidth`
    seconds; a controller's messages follow each other on its link."""

    per_response: float  # CPU seconds of a controller for one response, from prompt to share
    per_step: float  # seconds per step outside the phases' own work: collectives, writing samples
    link_bandwidth: float  # bytes/s in and out of a controller's node
    link_latency: float  # seconds from node to node
    storage_bandwidth: float  # bytes/s at which images are read
    bytes_per_token: float  # bytes of one token of a sample on its way to a rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Response lengths of a step, in tokens: lognormal, cut at `rollout.max_tokens`."""

    median: float
    p99: float

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p99 / self.median) / Z99


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the run has to do, apart from the settings: properties of the data and the policy."""

    prompt_tokens: int  # tokens of a prompt, images' tokens included
    responses: tuple[Lengths, ...]  # of step 1, 2, ...; the last one holds for all later steps
    equal_groups: float = 0.0  # share of groups whose rewards are all equal
    image_bytes: int = 0  # bytes of the images of one prompt

    def lengths(self, step: int) -> Lengths:
        """Response lengths of step `step`, counted from 1."""
        return self.responses[min(max(step, 1), len(self.responses)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All costs of a simulated run. `source` says where they come from: `calibration of RUN`, `estimate for DEVICE`."""

    source: str
    engine: EngineCosts
    trainer: TrainerCosts
    scorer: ScorerCosts
    controller: ControllerCosts
    workload: Workload

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Costs:
        """The inverse of `to_json`. Raises ConfigError naming what is missing, unknown or no number."""
        parts = {name: _read(kind, values.get(name), name) for name, kind in _PARTS.items()}
        return cls(source=str(values.get("source", "a file")), **parts)


_PARTS: dict[str, type] = {
    "engine": EngineCosts,
    "trainer": TrainerCosts,
    "scorer": ScorerCosts,
    "controller": ControllerCosts,
    "workload": Workload,
}


def _read(kind: type, values: Any, name: str) -> Any:
    """One of the parts, every number checked."""
    known = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping) or set(values) != set(known):
        raise ConfigError(f"{name} must hold exactly {', '.join(known)}")
    given = dict(values)
    if kind is Workload:
        listed = given.pop("responses")
        if not isinstance(listed, (list, tuple)) or not listed:
            raise ConfigError(f"{name}.responses must list the lengths of at least one step")
        responses = tuple(_read(Lengths, one, f"{name}.responses") for one in listed)
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"{name}.{key}={value!r} must be a number of at least 0")
    return kind(**given, **({"responses": responses} if kind is Workload else {}))


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
    "H800": Device(memory=80e9, bandwidth=3.35e12, flops=989e12, host_link=_PCIE5),
    "H20": Device(memory=96e9, bandwidth=4.0e12, flops=148e12, host_link=_PCIE5),
    "A100": Device(memory=80e9, bandwidth=2.039e12, flops=312e12, host_link=_PCIE4),  # SXM, 80 GB
    "A100-40GB": Device(memory=40e9, bandwidth=1.555e12, flops=312e12, host_link=_PCIE4),
    "A800": Device(memory=80e9, bandwidth=2.039e12, flops=312e12, host_link=_PCIE4),
    "L40S": Device(memory=48e9, bandwidth=864e9, flops=362e12, host_link=_PCIE4),
    "A10": Device(memory=24e9, bandwidth=600e9, flops=125e12, host_link=_PCIE4),
}

# What an estimate takes for granted beside the data sheet. All of it is stated by `yatt plan`.
ASSUMED: dict[str, float] = {
    "bandwidth_efficiency": 0.8,  # of the memory bandwidth, when decoding
    "decode_efficiency": 0.5,  # of the FLOP/s, in the matrices of a decode step and in prefill
    "train_efficiency": 0.4,  # of the FLOP/s, in training
    "launch": 2e-3,  # seconds of a decode step outside the device's work
    "micro_batch": 10e-3,  # seconds of a micro-batch outside it
    "host_efficiency": 0.5,  # of the link to the host: offloading, and bringing weights over
    "network": 50e9,  # bytes/s between nodes for each device: gradients (400 Gb/s)
    "activations": 4e9,  # bytes an engine keeps back for them
    "scorer": 1e-3,  # seconds of a rule
    "per_response": 1e-3,  # CPU seconds of a controller
    "per_step": 10e-3,
    "controller_bandwidth": 3e9,  # bytes/s of a controller's link (25 Gb/s)
    "controller_latency": 1e-3,
    "storage": 1e9,  # bytes/s
}
BYTES_PER_TOKEN = 13  # of a trajectory: int32 token, bool mask, float32 logprob; and the response's tokens once more


def device(name: str) -> Device:
    """The data sheet of a device. Raises ConfigError with the nearest name for one that is not in the table."""
    if name in DEVICES:
        return DEVICES[name]
    near = difflib.get_close_matches(name.upper(), DEVICES, n=1, cutoff=0.3)
    raise ConfigError(
        f"plan.device={name} is not in the table; use {near[0] if near else 'one of'} (known: {', '.join(DEVICES)})"
    )


def from_shape(
    facts: ModelFacts,
    name: str,
    workload: Workload,
    *,
    dtype: str = "bfloat16",
    tp: int = 1,
    pp: int = 1,
    engine_tp: int = 1,
    reference: bool = False,
    memory_share: float = 0.5,
    max_running: int = 256,
) -> Costs:
    """An estimate for device `name`, from its data sheet, the model's shape and `ASSUMED`.

    A decode step reads all weights and the running requests' KV cache, and multiplies by each weight once per request;
    the two are added, though hardware overlaps them in part. A token costs 2 FLOPs per parameter forward and 6 with its
    backward pass (arXiv 2001.08361); causal attention adds 2 * layers * width * T^2 over a sequence of T. Training has
    a forward pass more for the old logprobs, and one for a `reference`. `tp`, `pp` are the trainer's, `engine_tp` the
    engine's; pipeline bubbles are not counted. An engine takes `memory_share` of its devices.

    Raises ConfigError where no KV cache fits.
    """
    chip, size = device(name), 4 if dtype == "float32" else 2
    flops = chip.flops * 2 / size  # float32 runs as TF32, at half the rate
    weights, parameters = facts.parameters * size, facts.parameters
    attention = 2 * facts.layers * facts.heads * facts.head_dim
    kv_token = 2 * facts.layers * facts.kv_heads * facts.head_dim * size
    room = memory_share * chip.memory * engine_tp - weights - ASSUMED["activations"] * engine_tp
    if room < kv_token * (workload.prompt_tokens + 1):
        raise ConfigError(
            f"plan.device={name} has {chip.memory / 1e9:.0f} GB, of which an engine takes {memory_share:.0%}: no room "
            f"for {weights / 1e9:.1f} GB of weights and a KV cache; raise gpu_memory_utilization or "
            "tensor_parallel_size in rollout.engine_args"
        )
    read = chip.bandwidth * ASSUMED["bandwidth_efficiency"] * engine_tp
    multiply = flops * ASSUMED["decode_efficiency"] * engine_tp
    train = flops * ASSUMED["train_efficiency"] * tp * pp
    host = chip.host_link * ASSUMED["host_efficiency"]
    passes = 4 + reference  # in units of one forward pass: old logprobs 1, update 3
    state = 12 * parameters / (tp * pp)  # AdamW in float32: weights and two moments
    return Costs(
        source=f"estimate for {name}",
        engine=EngineCosts(
            step=ASSUMED["launch"] + weights / read,
            per_request=2 * parameters / multiply,
            per_kv_token=kv_token / read,
            prefill=2 * parameters / multiply,
            kv_tokens=int(room / kv_token),
            max_running=max_running,
            sleep=0.1,
            wake=0.1,
            load=weights / engine_tp / host,
        ),
        trainer=TrainerCosts(
            per_token=passes * 2 * parameters / train,
            per_token_squared=passes * attention / train,
            per_micro_batch=ASSUMED["micro_batch"],
            per_update=2 * 4 * parameters / (tp * pp) / ASSUMED["network"] + state / chip.bandwidth,
            offload=state / host,
            onload=state / host,
            export=weights / (tp * pp) / host,
        ),
        scorer=ScorerCosts(seconds=ASSUMED["scorer"]),
        controller=ControllerCosts(
            per_response=ASSUMED["per_response"],
            per_step=ASSUMED["per_step"],
            link_bandwidth=ASSUMED["controller_bandwidth"],
            link_latency=ASSUMED["controller_latency"],
            storage_bandwidth=ASSUMED["storage"],
            bytes_per_token=BYTES_PER_TOKEN,
        ),
        workload=workload,
    )
