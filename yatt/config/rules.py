"""Rules between settings, and between settings and what they point at. Checked before anything starts; torch-free."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from yatt.config import folders
from yatt.config.algorithm_rules import algorithm_mistakes, beside_mistakes
from yatt.config.case import Case
from yatt.config.engines import engine_mistakes, size_mistakes
from yatt.config.facts import local_gpus, tokenizer_size
from yatt.config.hub import revision_mistakes
from yatt.config.image_tokens import image_tokens
from yatt.config.judges import judge_mistakes
from yatt.config.lora_rules import lora_mistakes
from yatt.config.machine_rules import devices, memory, serving
from yatt.config.models import any_family, facts_beside, models_beside, policy_facts
from yatt.config.paths import file_of
from yatt.config.placement import placement_mistakes
from yatt.config.schema import Config, DataConfig, TrainConfig, truncates
from yatt.config.secrets import secrets
from yatt.config.trackers import check_trackers
from yatt.config.vision_rules import vision_mistakes
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.models.table import family_of
from yatt.placement import cost
from yatt.placement.plan import POLICY


def check(config: Config) -> list[str]:
    """Check a run's settings; returns warnings to show. Raises ConfigError with one line per broken rule."""
    mistakes: list[str] = []
    model = None
    try:
        model = policy_facts(config)
    except ConfigError as error:
        mistakes.append(str(error))
    cluster, gpus = config.cluster, local_gpus()
    unset = None if cluster.address else gpus if gpus and cluster.device != "cpu" else 1
    case = Case(config=config, model=model, gpus=gpus, slots=cluster.slots or unset)
    for rule in (*PLANNED, _model, vision_mistakes, _attention, _data, _reward, serving, devices, _trackers):
        mistakes += rule(case)
    mistakes = mistakes or list(memory(case))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return list(_warnings(case))


def check_plan(config: Config, devices: Sequence[int]) -> ModelFacts:
    """Check what can be simulated on each number of devices: the settings and the model's config.json, without weights,
    tokenizer, data, reward or GPUs. Raises ConfigError with one line per broken rule."""
    if not config.algorithm.recipe.reinforces:
        raise ConfigError(f"algorithm.name={config.algorithm.name} has no rollout to plan; use a config of grpo or ppo")
    model = policy_facts(config, weights=False)
    cases = [Case(config=config, model=model, gpus=0, slots=slots, slots_name="--devices") for slots in devices]
    mistakes = folders.mistakes(config.model.path, "model.path", weights=False, any_family=any_family(config))
    mistakes += [mistake for case in cases for rule in PLANNED for mistake in rule(case)]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return model


def _model(case: Case) -> Iterator[str]:
    config, model = case.config, case.model
    if model is None:
        return
    path, vocabulary = config.model.path, model.vocab_size
    yield from revision_mistakes(config)
    try:
        tokens = tokenizer_size(path)
        if tokens > vocabulary:
            yield (
                f"model.path={path}: its tokenizer has {tokens} tokens but vocab_size={vocabulary}; "
                "resize the model's embeddings or use its own tokenizer"
            )
        yield from folders.mistakes(path, "model.path", any_family=any_family(config))
    except ConfigError as error:
        yield str(error)
    yield from beside_mistakes(config, model)
    for setting, other in models_beside(config).items():
        with suppress(ConfigError):  # said already
            yield from _division(config.train, facts_beside(config, setting, other), f" of {setting}={other}")
    if config.model.context_length > model.max_positions:
        yield (
            f"model.context_length={config.model.context_length} is over the model's "
            f"max_position_embeddings={model.max_positions}; use at most {model.max_positions}"
        )


def _layout(case: Case) -> Iterator[str]:
    train = case.config.train
    if train.backend == "fsdp":
        for setting, value in (("tp", train.tp), ("pp", train.pp)):
            if value > 1:
                yield (
                    f"train.{setting}={value} needs train.backend=megatron: fsdp cuts weights over all ranks, and "
                    f"neither layers nor their insides; set train.{setting}=1"
                )
    if case.model is not None:
        yield from _division(train, case.model)
        yield from size_mistakes(case.config, {POLICY: case.model})
    size = train.tp * train.pp
    apart = case.config.placement.mode == "disaggregated"
    if case.slots is not None and case.slots % size and not apart:
        yield (
            f"{case.slots_name}={case.slots} is not a multiple of train.tp={train.tp} x train.pp={train.pp}; "
            f"use {_either(_multiples(case.slots, size))}{' slots' if case.slots_name == 'cluster.slots' else ''}"
        )
    engine = 0
    with suppress(ConfigError):  # a rule of its own says it
        engine = cost.shape_of(case.config, POLICY).tensor_parallel
    if case.slots is not None and engine and case.slots % engine and not apart:
        yield (
            f"{case.slots_name}={case.slots} is not a multiple of {cost.size_setting(case.config, POLICY)}={engine}; "
            f"use {_either(_multiples(case.slots, engine))}"
        )
    if train.sequence_parallel and train.tp == 1:
        yield "train.sequence_parallel=true needs train.tp > 1, not train.tp=1; set it to false"


def _attention(case: Case) -> Iterator[str]:
    """Whether the kernel that is asked for can do what the model needs."""
    config, kernel = case.config, case.config.train.attention
    if kernel in ("auto", "buckets"):
        return
    if config.cluster.address is None and (config.cluster.device == "cpu" or not case.gpus):
        yield f"train.attention={kernel} is a kernel for GPUs; use auto"
    if kernel != "varlen":
        return
    if config.model.dtype == "float32":
        yield "train.attention=varlen takes model.dtype=bfloat16, not float32; use auto"
    family = family_of(case.model.architecture) if case.model is not None else None
    if family is not None and "attn_logit_softcapping" in family.obeys:
        yield f"train.attention=varlen cannot bound scores, as a {family.name} does; use auto"


def _division(train: TrainConfig, model: ModelFacts, of: str = "") -> Iterator[str]:
    counts = {
        "attention heads": model.heads,
        "key/value heads": model.kv_heads,
        "MLP columns": model.intermediate_size,
    }
    fits = _divisors(math.gcd(*counts.values()))
    broken = [f"{count} {what}" for what, count in counts.items() if count % train.tp]
    if broken:
        yield f"train.tp={train.tp} does not divide {' and '.join(broken)}{of}; use {_either(fits)}"
    if model.layers % train.pp:
        yield f"train.pp={train.pp} does not divide {model.layers} layers{of}; use {_either(_divisors(model.layers))}"
    elif model.vision is not None and model.layers // train.pp < model.vision.deepstack:
        able = [n for n in _divisors(model.layers) if model.layers // n >= model.vision.deepstack]
        yield (
            f"train.pp={train.pp} leaves the first stage {model.layers // train.pp} layers{of}, and features of its "
            f"vision tower go into the first {model.vision.deepstack}; use {_either(able)}"
        )


def _lengths(case: Case) -> Iterator[str]:
    config = case.config
    context, longest, prompt = config.model.context_length, config.rollout.max_tokens, config.data.max_prompt_tokens
    sequences = 2 if config.algorithm.recipe.rows in ("pairs", "labels") else 1
    if config.train.tokens_per_micro_batch < sequences * context:
        sample = "one sample" if sequences == 1 else "the two sequences of a sample, each"
        yield (
            f"train.tokens_per_micro_batch={config.train.tokens_per_micro_batch} cannot hold {sample} of "
            f"model.context_length={context} tokens; use at least {sequences * context}"
        )
    if case.offline:
        if prompt is not None and prompt >= context:
            yield f"data.max_prompt_tokens={prompt} leaves no response in model.context_length={context}; lower it"
        return
    if longest >= context:
        yield f"rollout.max_tokens={longest} leaves no room for a prompt in model.context_length={context}; lower it"
    elif prompt is not None and prompt + longest > context:
        yield (
            f"data.max_prompt_tokens={prompt} and rollout.max_tokens={longest} are together over "
            f"model.context_length={context}; lower data.max_prompt_tokens to {context - longest}"
        )
    algorithm, buffer = config.algorithm, config.algorithm.overlong_buffer
    if algorithm.overlong == "penalty" and "overlong_buffer" in algorithm.recipe.has and not 0 < buffer <= longest:
        yield (
            f"algorithm.overlong_buffer={buffer} must be from 1 to rollout.max_tokens={longest} "
            f"for algorithm.overlong=penalty; use {max(1, longest // 4)}"
        )
    if algorithm.overlong != "penalty" and buffer:
        yield f"algorithm.overlong_buffer={buffer} is only for algorithm.overlong=penalty; set it to 0"


def _batch(case: Case) -> Iterator[str]:
    config, train = case.config, case.config.train
    batch, updates, controllers = train.batch_size, train.updates_per_step, config.cluster.controllers or 1
    if batch < controllers:
        yield f"train.batch_size={batch} is under cluster.controllers={controllers}; use at least {controllers}"
    ranks = max(1, (case.train_slots or 1) // (train.tp * train.pp))
    if case.offline and batch % (ranks * updates):
        yield (
            f"train.batch_size={batch} is not divisible by {ranks} data-parallel rank(s) x "
            f"train.updates_per_step={updates}; use {_either(_multiples(batch, ranks * updates))}"
        )
    if not case.offline and batch % updates:
        yield (
            f"train.batch_size={batch} is not divisible by train.updates_per_step={updates}; "
            f"use {_either(_multiples(batch, updates))}"
        )
    samples = batch * config.rollout.n
    if not case.offline and samples < ranks * updates:
        yield (
            f"train.batch_size={batch} x rollout.n={config.rollout.n} makes {samples} samples, too few for {ranks} "
            f"data-parallel ranks x train.updates_per_step={updates}; use a batch of at least "
            f"{math.ceil(ranks * updates / config.rollout.n)}"
        )


def _algorithm(case: Case) -> Iterator[str]:
    yield from algorithm_mistakes(case.config)


_FILTERS = ("none", "all_equal", "band")


def _sampling(case: Case) -> Iterator[str]:
    rollout, file = case.config.rollout, file_of(case.config.rollout.filter)
    if file is not None and not os.path.isfile(file):
        yield f"rollout.filter={rollout.filter}: no such file, from {os.getcwd()}"
    elif not rollout.filter.rpartition(":")[0] and rollout.filter not in _FILTERS:
        yield f"rollout.filter={rollout.filter} is not one of {', '.join(_FILTERS)}; use FILE.py:NAME for your own"
    band = rollout.reward_band
    if (band is None) == (rollout.filter == "band"):
        yield (
            f"rollout.filter=band needs rollout.reward_band, such as [0.2, 0.8]; it is {band}"
            if band is None
            else f"rollout.reward_band={list(band)} is only for rollout.filter=band, not {rollout.filter}; unset it"
        )
    elif band is not None and band[0] > band[1]:
        yield f"rollout.reward_band={list(band)} is empty; give the lower mean reward first"
    if rollout.refill == "one" and rollout.oversample != 1:
        yield f"rollout.oversample={rollout.oversample} needs rollout.refill=estimate, not one; set it to 1"


def _optimizer(case: Case) -> Iterator[str]:
    optimizer, weights = case.config.train.optimizer, case.config.weights
    if optimizer.min_learning_rate > optimizer.learning_rate:
        yield (
            f"train.optimizer.min_learning_rate={optimizer.min_learning_rate} is over "
            f"train.optimizer.learning_rate={optimizer.learning_rate}; lower it"
        )
    for beta in optimizer.betas:
        if not 0 <= beta < 1:
            yield f"train.optimizer.betas={list(optimizer.betas)}: {beta} is not from 0 to below 1; use [0.9, 0.95]"
    if weights.dir is not None and weights.transport != "disk":
        yield f"weights.dir={weights.dir} needs weights.transport=disk, not {weights.transport}; unset it"


def _plan(case: Case) -> Iterator[str]:
    config, plan = case.config, case.config.plan
    median, p99, prompt = plan.response_median, plan.response_p99, plan.prompt_tokens
    if median is None and p99 is not None:
        yield f"plan.response_p99={p99} needs plan.response_median; set both"
    elif median is not None and p99 is not None and p99 < median:
        yield f"plan.response_p99={p99} is under plan.response_median={median}; use at least {median}"
    if prompt is not None and prompt + config.rollout.max_tokens > config.model.context_length:
        yield (
            f"plan.prompt_tokens={prompt} and rollout.max_tokens={config.rollout.max_tokens} are together over "
            f"model.context_length={config.model.context_length}; "
            f"lower plan.prompt_tokens to {max(1, config.model.context_length - config.rollout.max_tokens)}"
        )
    if plan.turns == 1 or not (plan.turns or config.environment.played or plan.calibration):
        for name in ("tool_seconds", "tool_tokens"):
            if (value := getattr(plan, name)) is not None:
                yield f"plan.{name}={value} has no meaning for a single turn; set plan.turns to 2 or more, or unset it"
    most = config.environment.max_turns
    if config.environment.played and (plan.turns or 0) > most:
        yield f"plan.turns={plan.turns} is over environment.max_turns={most}; lower it to {most}"


def _placement(case: Case) -> Iterator[str]:
    yield from placement_mistakes(case.config, case.slots, case.slots_name)


PLANNED = (
    *(lambda case: engine_mistakes(case.config), _layout, _placement, _lengths, _batch, _algorithm),
    *(_sampling, _optimizer, lora_mistakes, _plan),
)
"""Rules that need nothing but the settings and the model's sizes."""


def _data(case: Case) -> Iterator[str]:
    config = case.config
    data, evaluate = config.data, config.evaluate
    if (data.path is None) == (not data.tasks):
        yield f"data.path and data.tasks are {'both' if data.tasks else 'not'} set; set one of them"
    if data.path is not None and data.size != DataConfig().size:
        yield f"data.size={data.size} is only for data.tasks, not data.path, of which all rows are used; unset it"
    for setting, path in (("data.path", data.path), ("evaluate.path", evaluate.path)):
        for name in [path] if isinstance(path, str) else path or []:
            if not os.path.exists(name) and not glob.glob(name, recursive=True):
                yield f"{setting}={name}: no such file or folder, from {os.getcwd()}"
    if image_tokens(config.model.path) is None:
        for setting, value in (("media_key", data.media_key), ("max_pixels", data.max_pixels)):
            if value is not None:
                yield f"data.{setting}={value}: model.path={config.model.path} sees no images; unset it"
        if data.fetch_images:
            yield f"data.fetch_images=true: model.path={config.model.path} sees no images; unset it"
    if evaluate.path is None and not (data.tasks and evaluate.size):
        asked = {"every": evaluate.every, "size": evaluate.size, "by": evaluate.by}
        if told := [f"evaluate.{name}={value}" for name, value in asked.items() if value]:
            yield (
                f"{' and '.join(told)} {'has' if len(told) == 1 else 'have'} nothing to evaluate on; set "
                "evaluate.path, or evaluate=null to evaluate nothing"
            )
    if config.resume not in ("never", "auto") and not os.path.exists(config.resume):
        yield f"resume={config.resume}: no such checkpoint; use never, auto or the path of one"


def _reward(case: Case) -> Iterator[str]:
    reward, tasks = case.config.reward, case.config.data.tasks
    functions = {f"reward.functions.{name}.function": one.function for name, one in reward.functions.items()}
    if reward.function is not None:
        if functions:
            yield f"reward.function={reward.function} and reward.functions are both set; keep one of them"
        functions["reward.function"] = reward.function
    rewards = [*functions, *(f"reward.models.{name}" for name in reward.models)]
    if case.offline and rewards:
        yield f"{rewards[0]} has no meaning for {case.name}; unset it"
    environment = case.config.environment
    if environment.function is not None and environment.command is not None:
        yield f"environment.function={environment.function} and environment.command are both set; keep one of them"
    if case.offline and environment.played:
        yield f"environment={environment.function or environment.command} has no meaning for {case.name}; unset it"
    if not (case.offline or rewards or case.config.algorithm.recipe.teacher or environment.played):
        fitting = "reasoning_gym" if tasks else "FILE.py:NAME, package.module:NAME or a built-in"
        yield f"reward.function is not set; set it to {fitting}"
    if environment.function is not None:
        functions["environment.function"] = environment.function
    for setting, name in functions.items():
        file = file_of(name)
        if file is not None and not os.path.isfile(file):
            yield f"{setting}={name}: no such file, from {os.getcwd()}"
    weights = [*(one.weight for one in reward.functions.values()), *(one.weight for one in reward.models.values())]
    if weights and not any(weights) and reward.function is None and not case.config.algorithm.recipe.teacher:
        yield f"every weight of {', '.join(rewards)} is 0: no response would earn anything; give one another weight"
    for name, judge in reward.models.items():
        if name in (reward.functions if reward.function is None else ("reward",)):
            yield f"reward.models.{name} has the name of a function's reward; give it another"
        yield from judge_mistakes(name, judge)


def _trackers(case: Case) -> Iterator[str]:
    try:
        check_trackers(case.config.log.trackers)
    except ConfigError as error:
        yield str(error)


def _warnings(case: Case) -> Iterator[str]:
    config, cores = case.config, os.cpu_count() or 1
    for setting in secrets(config.model_dump(mode="json")):
        yield (
            f"{setting} looks like a secret: the run's config.yaml keeps it, readable by its owner only, and nothing "
            "else shows it; better read it from the environment where it is used (a judge's key: key_env)"
        )
    on_cpu = config.cluster.address is None and (config.cluster.device == "cpu" or not case.gpus)
    if on_cpu and case.slots is not None and case.slots > cores:
        yield f"cluster.slots={case.slots} is over this machine's {cores} cores; slots will wait for each other"
    if on_cpu and config.train.offload:
        yield "train.offload=true does nothing on a CPU: what it puts away would go into the same memory"
    train, warmup = config.train, config.train.optimizer.warmup_steps
    updates = (train.steps - config.critic.warmup_steps) * train.updates_per_step * train.epochs_per_step
    if warmup >= updates:
        yield f"train.optimizer.warmup_steps={warmup} does not end within the run's {updates} updates"
    least = train.optimizer.min_learning_rate
    if least and train.optimizer.schedule == "constant":
        yield f"train.optimizer.min_learning_rate={least} does nothing with train.optimizer.schedule=constant"
    if not case.offline and truncates(config.rollout):
        yield (
            "rollout.top_p and rollout.top_k cut tokens off that the trainer's logprobs still count, so the gap to the "
            "engine and the kl to the rollout policy are not measured; with 1 and -1 they are"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _multiples(number: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `number`, from 1 on."""
    return [multiple for multiple in (number // unit * unit, (number // unit + 1) * unit) if multiple]


def _either(numbers: list[int]) -> str:
    *head, last = map(str, numbers)
    return f"{', '.join(head)} or {last}" if head else last
