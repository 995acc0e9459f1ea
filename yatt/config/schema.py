"""Every setting there is, with its default. Torch-free. `load` builds a Config, `rules` checks it.

Sections name what they configure; a setting has one name. Where a path starts, `yatt.config.paths` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from yatt.config.algorithms import RECIPES, Recipe, own_defaults
from yatt.config.rollout import EngineName as EngineName
from yatt.config.rollout import EnvironmentConfig as EnvironmentConfig
from yatt.config.rollout import JudgeConfig as JudgeConfig
from yatt.config.rollout import RewardConfig as RewardConfig
from yatt.config.rollout import RewardFunctionConfig as RewardFunctionConfig
from yatt.config.rollout import RolloutConfig as RolloutConfig
from yatt.config.rollout import truncates as truncates
from yatt.config.section import Name as Name
from yatt.config.section import Section as Section


class RunConfig(Section):
    name: Name = Field("run", description="Name of the run; its folder is DIR/NAME.")
    dir: str = Field("runs", description="Where run folders are made; runs/ where yatt is run, when unset.")
    seed: int = Field(0, ge=0, description="Seed of everything random: data order, sampling, initialisation.")


class ModelConfig(Section):
    path: str = Field(..., description="Hugging Face folder of the policy, or its name on the Hub: ORG/NAME.")
    revision: str | None = Field(
        None, description="Branch, tag or commit of a name on the Hub; the newest when unset; a run keeps the commit."
    )
    reference: str | None = Field(
        None, description="Folder of the reference model, or its name on the Hub; the policy's own start when unset."
    )
    teacher: str | None = Field(
        None, description="Folder of the model to learn from (distillation), or its name on the Hub."
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Type of weights and activations.")
    context_length: int = Field(2048, ge=8, description="Most tokens of prompt and response together.")


class TaskConfig(Section):
    """One reasoning-gym task."""

    name: str = Field(..., description="Task name, as reasoning-gym spells it.")
    weight: float = Field(1.0, gt=0, description="Share among the tasks.")
    config: dict[str, Any] = Field(default_factory=dict, description="The task's own settings, passed through.")


class DataConfig(Section):
    path: str | list[str] | None = Field(
        None, description="JSONL, JSON, CSV, TSV or Parquet file(s), or a `datasets` folder."
    )
    tasks: list[TaskConfig] = Field(default_factory=list, description="reasoning-gym tasks, instead of a path.")
    size: int = Field(1000, ge=1, description="Number of procedural rows, for tasks.")
    prompt_key: str = Field("prompt", description="Column of the prompt, text or chat messages; `a.b` is b within a.")
    response_key: str = Field("response", description="Column of the demonstration (sft).")
    chosen_key: str = Field("chosen", description="Column of the better response, or the talk that ends with it.")
    rejected_key: str = Field("rejected", description="Column of the worse response, or the talk that ends with it.")
    margin_key: str | None = Field(None, description="Column of how much better the chosen one is (reward_model).")
    label_key: str = Field("label", description="Column that says whether a response is desirable (kto).")
    answer_key: str = Field("answer", description="Column of the reference answer; may be absent from the data.")
    answer_after: str | None = Field(None, min_length=1, description="Mark the answer stands behind, such as '####'.")
    system_key: str | None = Field("system", description="Column of a row's own system message; null leaves it out.")
    media_key: str | None = Field(
        None, description="Column of a row's images: paths, base64 text or bytes; images or image when unset."
    )
    max_pixels: int | None = Field(
        None, ge=1, description="Larger images are made smaller; the model's limit if lower."
    )
    fetch_images: bool = Field(False, description="Fetch images that rows name by an http or https address.")
    metadata_keys: list[str] | None = Field(None, description="Columns handed to the reward; all others when unset.")
    system_prompt: str | None = Field(None, description="System message put before every chat prompt.")
    chat_template: Literal["auto", "never"] = Field("auto", description="Whether text prompts go through the template.")
    template_arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the chat template, such as {enable_thinking: false}."
    )
    shuffle: bool = Field(True, description="Shuffle rows anew each epoch.")
    bad_rows: Literal["fail", "skip"] = Field("fail", description="What a row that cannot be used does.")
    max_prompt_tokens: int | None = Field(None, ge=1, description="Longest prompt; by default what the context leaves.")


class KlConfig(Section):
    coefficient: float = Field(0.0, ge=0, description="Weight of the KL to the reference; 0 loads none.")
    kind: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of the KL.")
    place: Literal["loss", "reward"] = Field("loss", description="Whether the KL is a loss or taken off the reward.")
    target: float | None = Field(None, gt=0, description="KL that the coefficient is adapted to; fixed when unset.")
    horizon: float = Field(10_000.0, gt=0, description="Responses over which the coefficient is adapted.")


class CorrectionConfig(Section):
    """The correction for the gap between the sampler's probabilities and the trainer's."""

    level: Literal["none", "token", "sequence", "geometric"] = Field(
        "none", description="Which ratio of the two counts: a token's, the product, or the geometric mean."
    )
    mode: Literal["truncate", "mask", "icepop", "reject"] = Field(
        "truncate",
        description="Beyond the bounds: cut the weight; drop the token (mask, icepop); or drop it and weigh no other.",
    )
    low: float = Field(0.0, ge=0, description="Lower bound of the ratio.")
    high: float = Field(2.0, gt=0, description="Upper bound of the ratio.")


class AlgorithmConfig(Section):
    """Settings of an algorithm. One that an algorithm does not have stays at its default; some algorithms have other
    defaults, see `yatt.config.algorithms`."""

    name: Literal[
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "cispo",
        "sapo",
        "gpg",
        "gdpo",
        "rloo",
        "opo",
        "remax",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "ppo",
        "distillation",
        "sft",
        "reward_model",
        "dpo",
        "cdpo",
        "ipo",
        "kto",
    ] = Field("grpo", description="What is trained, and how.")
    advantage: str | None = Field(None, description="FILE.py:NAME, a function in place of the algorithm's own.")
    loss: str | None = Field(None, description="FILE.py:NAME, a function in place of the algorithm's own.")
    normalize_std: bool = Field(True, description="Divide group advantages by their standard deviation.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of later rewards.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="1: returns less values; 0: one step ahead.")
    whiten: Literal["none", "tokens", "sequences"] = Field(
        "none", description="Bring a step's advantages to mean 0 and deviation 1, over tokens or over sequences."
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="Ratios below 1 - clip_low are clipped.")
    clip_high: float = Field(0.2, gt=0, description="Ratios above 1 + clip_high are clipped.")
    dual_clip: float | None = Field(None, gt=1, description="Bound on the loss of negative advantages.")
    tau_positive: float = Field(1.0, gt=0, description="Temperature of the soft gate where the advantage is over 0.")
    tau_negative: float = Field(1.05, gt=0, description="Temperature of the soft gate elsewhere.")
    aggregate: Literal["token_mean", "sequence_mean", "sequence_sum", "fixed_length"] = Field(
        "token_mean", description="How token losses become one number."
    )
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    kl: KlConfig = Field(default_factory=KlConfig)
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig)
    overlong: Literal["keep", "mask", "penalty"] = Field("keep", description="What a truncated response does.")
    overlong_buffer: int = Field(0, ge=0, description="Tokens before the limit over which the penalty grows to 1.")
    length_penalty: float = Field(0.0, ge=0, description="Taken off the reward of a response of the full length.")
    reward_clip: float | None = Field(None, gt=0, description="Rewards are clipped to +- this.")
    reward_normalize: bool = Field(False, description="Bring rewards to mean 0, deviation 1 by those of earlier steps.")
    beta: float = Field(0.1, gt=0, description="How strongly preferences are held to the reference.")
    average_logprobs: bool = Field(False, description="Divide a response's log ratio by its trained tokens (ipo).")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Chance that a preference is the wrong way round.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of desirable responses.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of undesirable responses.")
    precompute_reference: bool = Field(False, description="Reference logprobs of all rows before the first step.")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        name = given.get("name", "grpo") if isinstance(given, Mapping) else None
        return own_defaults("defaults", name, given)

    @property
    def recipe(self) -> Recipe:
        """The parts of the algorithm."""
        return RECIPES[self.name]

    @property
    def loads(self) -> tuple[str, ...]:
        """Which models are on the ranks beside the policy."""
        recipe = self.recipe
        reference = recipe.compares or (recipe.reinforces and self.kl.coefficient > 0)
        asked = {"reference": reference, "teacher": recipe.teacher, "critic": recipe.critic}
        return tuple(name for name, wanted in asked.items() if wanted)


class OptimizerConfig(Section):
    learning_rate: float = Field(1e-6, gt=0, description="AdamW's largest rate.")
    min_learning_rate: float = Field(0.0, ge=0, description="Where the schedule ends.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Optimizer updates of linear warm-up.")
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="AdamW's two decay rates of the moments.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay.")
    vision_rate: float = Field(1.0, gt=0, description="Factor of a trained vision tower's learning rate.")
    clip_grad: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")


class CriticConfig(Section):
    """The critic of PPO: a value for every token, from a model of its own on the policy's ranks."""

    path: str | None = Field(None, description="Hugging Face folder it starts from; the policy's when unset.")
    learning_rate: float | None = Field(None, gt=0, description="Largest rate; the policy's when unset.")
    value_clip: float | None = Field(0.2, gt=0, description="How far a value may move in a step before its loss stops.")
    warmup_steps: int = Field(0, ge=0, description="First steps in which only the critic learns.")


class LoraConfig(Section):
    """Low-rank adapters: only they learn, and the model they stand beside stays as it is."""

    rank: int = Field(0, ge=0, description="Rank of each adapter; 0: none, and all weights learn.")
    alpha: float = Field(32.0, gt=0, description="What adapters add is multiplied by alpha / rank.")
    targets: str | list[str] = Field(
        "all-linear", description="Linear layers that have one, such as [q_proj, v_proj]; all-linear: all but the head."
    )


class TrainConfig(Section):
    steps: int = Field(..., ge=1, description="Steps of the whole run.")
    idle_steps: int = Field(3, ge=0, description="Steps in a row that teach nothing, after which a run ends; 0: none.")
    max_recoveries: int = Field(
        3, ge=0, description="Deaths of ranks or controllers, with no new step in between, that a run goes on after."
    )
    batch_size: int = Field(..., ge=1, description="Prompts per step (sft: sequences), over all controllers.")
    updates_per_step: int = Field(1, ge=1, description="Optimizer updates a step's samples are divided into.")
    epochs_per_step: int = Field(1, ge=1, description="Passes over a step's samples.")
    tokens_per_micro_batch: int = Field(8192, ge=1, description="Most tokens of a micro-batch on one rank.")
    patches_per_micro_batch: int | None = Field(
        None, ge=1, description="Most patches of images in it; what its tokens let in when unset."
    )
    backend: Literal["megatron", "fsdp"] = Field(
        "megatron", description="Megatron-Core, or FSDP2 over transformers' own modules: any family, weights sharded."
    )
    tp: int = Field(1, ge=1, description="Tensor-parallel size.")
    pp: int = Field(1, ge=1, description="Pipeline-parallel size.")
    offload: bool = Field(False, description="Keep only the model at work on the device, the others in host memory.")
    sequence_parallel: bool = Field(False, description="Shard norms and dropouts along the sequence (tp > 1).")
    recompute: Literal["none", "full"] = Field(
        "none", description="Keep each layer's input alone and compute its inside again in the backward pass (full)."
    )
    attention: Literal["auto", "buckets", "varlen", "flex"] = Field(
        "auto", description="Kernel of attention over packed sequences; auto: the one for the device."
    )
    vision: Literal["frozen", "trained"] = Field("frozen", description="What a policy's vision tower does.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)


class ClusterConfig(Section):
    address: str | None = Field(None, description="Ray address to join; a local one is started when unset.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="What a slot is.")
    slots: int | None = Field(None, ge=1, description="Devices to use; all GPUs, or one on a CPU, when unset.")
    controllers: int | None = Field(None, ge=1, description="Number of controllers; one per node when unset.")
    threads: int | None = Field(None, ge=1, description="CPU threads per slot process; cores / slots when unset.")
    start_timeout: float = Field(600.0, gt=0, description="Seconds for engines and ranks to come up.")
    step_timeout: float = Field(3600.0, gt=0, description="Seconds any wait within a step may take.")
    silence: float = Field(120.0, gt=0, description="Seconds without a sign of life after which a process is ended.")


class PlacementConfig(Section):
    mode: Literal["colocated", "partial", "weighted", "dynamic", "disaggregated"] = Field(
        "colocated", description="How slots are divided between the policy, the judges and training."
    )
    split: dict[str, int] = Field(
        default_factory=dict,
        description="Slots of `policy` and of each judge in a rollout (partial); foreseen when unset.",
    )
    train_slots: int | None = Field(None, ge=1, description="Slots that only train (disaggregated); half when unset.")


class WeightsConfig(Section):
    transport: Literal["shm", "disk"] = Field("shm", description="How weights reach the engines.")
    dir: str | None = Field(None, description="Folder of the disk transport; RUN/weights when unset.")


class EvaluateConfig(Section):
    path: str | list[str] | None = Field(None, description="Held-out rows, read like data.path; none when unset.")
    size: int | None = Field(None, ge=1, description="Use this many rows only (for tasks: how many to make).")
    every: int = Field(0, ge=0, description="Evaluate every so many steps; 0: before the first and after the last.")
    samples: int = Field(1, ge=0, description="Sampled responses per prompt, beside the greedy one.")
    temperature: float = Field(1.0, gt=0, description="Of the sampled responses.")
    correct_at: float = Field(1.0, description="A response is correct when its reward is at least this.")
    by: str | None = Field(None, description="Column of a row's source: accuracy is told for each of its values.")


class CheckpointConfig(Section):
    every: int = Field(50, ge=0, description="Save every so many steps, and after the last; 0: only then.")
    minutes: float | None = Field(None, gt=0, description="Save also once so many minutes went by since the last save.")
    keep: int = Field(2, ge=1, description="Complete checkpoints kept.")
    remote: str | None = Field(
        None,
        description="Where each is copied to, beside training, as fsspec spells it: s3://BUCKET/FOLDER, file:///...",
    )
    export: bool = Field(False, description="Write the last policy as a Hugging Face folder, RUN/model.")


class LogConfig(Section):
    trackers: list[str] = Field(default_factory=lambda: ["tensorboard"], description="Names accelerate knows.")
    samples: int = Field(4, ge=0, description="Trajectories written per step and controller, to read.")


class PlanConfig(Section):
    """Settings of `yatt plan`; `placement.mode=partial` without a split takes its forecast from them too."""

    device: str = Field("H100", description="Accelerator of an estimate, as the table of `yatt plan` spells it.")
    calibration: str | None = Field(None, description="File of `yatt plan --calibrate`, in place of an estimate.")
    prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of a prompt, its images' included; data.max_prompt_tokens or the context's rest.",
    )
    response_median: float | None = Field(None, gt=0, description="Median response; a quarter of rollout.max_tokens.")
    response_p99: float | None = Field(None, gt=0, description="99th percentile of responses; four times the median.")
    equal_groups: float | None = Field(None, ge=0, lt=1, description="Share of groups of equal rewards; 0.")
    image_bytes: int | None = Field(None, ge=0, description="Bytes of the images of a prompt; 0.")
    images: int | None = Field(None, ge=1, description="Images of a prompt, where plan.image_pixels is above 0; 1.")
    image_pixels: int | None = Field(None, ge=0, description="Pixels of each image, which the vision tower sees; 0.")
    turns: int | None = Field(None, ge=1, description="Turns of a conversation; 2 where there is an environment.")
    tool_seconds: float | None = Field(
        None, ge=0, description="Median seconds between two turns; their 99th percentile is four times that. 1."
    )
    tool_tokens: int | None = Field(None, ge=0, description="Tokens that are said to the policy between two turns; 64.")


class Config(Section):
    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    critic: CriticConfig = Field(default_factory=CriticConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    train: TrainConfig
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    placement: PlacementConfig = Field(default_factory=PlacementConfig)
    weights: WeightsConfig = Field(default_factory=WeightsConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    plan: PlanConfig = Field(default_factory=PlanConfig)
    resume: str = Field("never", description="never, auto (the run's last complete checkpoint, if any), or a path.")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        algorithm = given.get("algorithm") if isinstance(given, Mapping) else None
        if not isinstance(algorithm, Mapping):
            return given
        return {**given, "rollout": own_defaults("rollout", algorithm.get("name", "grpo"), given.get("rollout", {}))}
