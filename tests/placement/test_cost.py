"""Bytes of each role on a slot, worked out by hand for a model of 1,312 weights."""

import pytest

from yatt.config.load import load_config
from yatt.models.facts import ModelFacts
from yatt.placement.cost import Need, mistakes, needs, served

# A layer: attention 2 * 8 * 4 * (2 + 1) = 192, MLP 3 * 8 * 16 = 384. Two of them, and 2 * 10 * 8 = 160 of embeddings.
SMALL = ModelFacts(
    hidden_size=8,
    intermediate_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    vocab_size=10,
    max_positions=64,
    embedding_rows=10,
    head_dim=4,
    tied=False,
)
MODELS = {"policy": SMALL, "j": SMALL}
JUDGE = "reward.models.j={path: x, parser: number, template: '{response}'}"
REMOTE = "reward.models.r={url: 'http://x', model: m, parser: number, template: '{response}'}"
BASE = ["model.path=x", "train.steps=1", "train.batch_size=8", "train.tokens_per_micro_batch=100"]


def config(*words):
    return load_config(None, [*BASE, JUDGE, *words])


def table(*words, kind="cuda", capacity=80e9, slots=4):
    return needs(config(*words), MODELS, train_slots=slots, kind=kind, capacity=capacity)


def test_parameters_by_hand():
    assert SMALL.parameters == 2 * 576 + 160 == 1312


def test_who_has_engines():
    assert list(served(config(REMOTE))) == ["policy", "j"]
    assert served(config("algorithm.name=sft")) == {}


def test_engines_on_a_gpu_take_their_share_and_nothing_asleep():
    args = "reward.models.j.engine_args={gpu_memory_utilization: 0.25}"
    assert table(args)["policy"] == Need(40e9, 0) and table(args)["j"] == Need(20e9, 0)
    assert table("rollout.sleep=false")["policy"] == Need(40e9, 40e9)


def test_engines_on_a_cpu_take_weights_and_cache_and_keep_their_weights():
    args = [
        "rollout.engine_args={kv_cache_memory_bytes: 1000}",
        "reward.models.j.engine_args={tensor_parallel_size: 2}",
    ]
    found = table(*args, kind="cpu")
    assert found["policy"] == Need(2 * 1312 + 1000, 2 * 1312)  # bfloat16
    assert found["j"] == Need(1312 + 2**28, 1312)  # half of the weights on each slot
    assert table("model.dtype=float32", kind="cpu")["j"] == Need(4 * 1312 + 2**28, 4 * 1312)


def test_trainer_of_a_bfloat16_model():
    # 4 slots as 2 ranks of tp 2: 656 weights each, 2 bytes; 4 of gradients; 12 of AdamW's, shared by 2 ranks.
    # Logits: 100 tokens x 10 entries / tp 2, 2 bytes, and as much for their gradient.
    kept, states, logits = 656 * 2, 656 * (4 + 12 / 2), 100 * 10 / 2 * 4
    assert table("train.tp=2")["trainer"] == Need(kept + states + logits, 0)
    assert table("train.tp=2", kind="cpu")["trainer"] == Need(kept + states + logits, kept + states)
    reference = table("train.tp=2", "algorithm.kl.coefficient=0.1", kind="cpu")["trainer"]
    assert reference == Need(2 * kept + states + logits, 2 * kept + states)


def test_models_beside_the_policy():
    # A critic learns as the policy does; a reference and a teacher are weights alone.
    kept, states, logits = 656 * 2, 656 * (4 + 12 / 2), 100 * 10 / 2 * 4
    ppo = ["train.tp=2", "algorithm.name=ppo", "algorithm.kl.coefficient=0.1"]
    assert table(*ppo)["trainer"] == Need(3 * kept + 2 * states + logits, 0)
    assert table(*ppo, "train.offload=true")["trainer"] == Need(kept + states + logits, 0)
    assert table(*ppo, "train.offload=true", kind="cpu")["trainer"].asleep == 3 * kept + 2 * states
    assert table("train.tp=2", "algorithm.name=distillation", kind="cpu")["trainer"].asleep == 2 * kept + states


def test_a_reference_asked_beforehand_is_a_model_of_its_own_only_where_it_has_a_folder():
    # On one GPU: 1312 weights of 2 bytes, their gradients 4, optimizer states 12. Logits: 100 * 10 * (2 + 2).
    dpo, kept, rest = ("algorithm.name=dpo", "algorithm.precompute_reference=true"), 2 * 1312, 16 * 1312 + 4000
    assert table(*dpo, slots=1)["trainer"] == Need(kept + rest, 0)
    assert table(*dpo, "model.reference=y", slots=1)["trainer"] == Need(2 * kept + rest, 0)
    assert table(dpo[0], slots=1)["trainer"] == Need(2 * kept + rest, 0)


def test_trainer_of_a_float32_model_is_its_own_main_weights():
    kept, states, logits = 1312 * 4, 1312 * (4 + 8 / 4), 100 * 10 * 8
    assert table("model.dtype=float32")["trainer"] == Need(kept + states + logits, 0)


def said(*words, capacity, kind="cpu", slots=4):
    return list(mistakes(config(*words), MODELS, train_slots=slots, kind=kind, capacity=capacity))


NO_CACHE = [
    "rollout.engine_args={kv_cache_memory_bytes: 1000}",
    "reward.models.j.engine_args={kv_cache_memory_bytes: 500}",
]


def test_what_shares_a_slot_depends_on_the_mode():
    # Weights 2624 each; trainer asleep 2624 + 1312 * (4 + 12 / 4) = 11808, awake 4000 of logits more.
    judged, drawn, trained = 2624 + 500 + 2624 + 11808, 2624 + 1000 + 2624 + 11808, 15808 + 2624 + 2624
    for mode in ("colocated", "dynamic"):
        words = [*NO_CACHE, f"placement.mode={mode}"]
        assert said(*words, capacity=trained) == []
        assert [line.split(",")[0].split(": ")[1] for line in said(*words, capacity=trained - 1)] == ["in training"]
        assert len(said(*words, capacity=drawn - 1)) == 2 and len(said(*words, capacity=judged - 1)) == 3
    standing = [*NO_CACHE, "placement.mode=weighted"]  # one engine beside the trainer
    assert said(*standing, capacity=15808 + 2624) == []
    assert len(said(*standing, capacity=15808 + 2623)) == 1
    apart = [*NO_CACHE, "placement.mode=disaggregated"]  # the trainer has slots of its own
    assert said(*apart, capacity=15808) == [] and len(said(*apart, capacity=15807)) == 1


def test_a_plan_that_does_not_fit_is_refused_with_the_numbers():
    (line,) = said(*NO_CACHE, capacity=21055)
    assert line == (
        "placement.mode=colocated: in training, a slot needs 2.11e-05 GB "
        "(trainer 1.58e-05 GB, policy 2.62e-06 GB asleep, j 2.62e-06 GB asleep) and has 2.11e-05 GB; "
        "raise train.tp or train.pp, lower train.tokens_per_micro_batch, or use more slots"
    )


def test_weights_over_the_share_of_a_gpu():
    words = [
        "rollout.engine_args={gpu_memory_utilization: 0.9}",
        "reward.models.j.engine_args={gpu_memory_utilization: 0.2}",
    ]
    share, full = said(*words, capacity=10_000, kind="cuda")
    assert share.startswith(
        "reward.models.j.engine_args: 2.62e-06 GB of weights do not fit the 2e-06 GB that an engine"
    )
    # 1312 * (2 + 4 + 12 / 4) of the trainer and 4000 of logits.
    assert "in training, a slot needs 1.58e-05 GB (trainer 1.58e-05 GB, policy 0 GB asleep, j 0 GB asleep)" in full


@pytest.mark.parametrize("billions", [7, 72])
def test_published_sizes(billions):
    """Qwen2.5: a 7B model of 7.62e9 weights trains on 8 GPUs of 80 GB with tp 2; a 72B one of 72.7e9 does not."""
    sizes = {7: (3584, 18944, 28, 28, 4), 72: (8192, 29568, 80, 64, 8)}[billions]
    facts = ModelFacts(
        **dict(zip(("hidden_size", "intermediate_size", "layers", "heads", "kv_heads"), sizes, strict=True)),
        vocab_size=152064,
        max_positions=32768,
        embedding_rows=152064,
        head_dim=128,
        tied=False,
    )
    assert facts.parameters == pytest.approx({7: 7.62e9, 72: 72.7e9}[billions], rel=0.01)
    words = ["train.tp=2", "train.tokens_per_micro_batch=8192"]
    found = needs(config(*words), {"policy": facts, "j": facts}, train_slots=8, kind="cuda", capacity=80e9)
    assert (found["trainer"].awake < 80e9) == (billions == 7)
