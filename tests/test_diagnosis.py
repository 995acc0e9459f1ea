"""What a run's own numbers say against it, by numbers of our own; no engine, no rank."""

import math
from dataclasses import replace

import pytest

from yatt.config.load import load_config
from yatt.diagnosis import Diagnosis, unscored
from yatt.reports import EvaluationReport, RolloutCounts, StepReport, UpdateReport

GOOD = RolloutCounts(
    groups=4, groups_equal=1, responses=16, scored=16, reward_sum=8.0, reward_deviations=4.0, reward_min=0.0,
    reward_max=1.0, response_tokens=160,
)  # fmt: skip
FAILED = RolloutCounts(
    groups_dropped=4, groups_unscored=4, groups_missing=4, responses=16, reward_failures=16,
    failures=("reward: KeyError: 'x'",),
)  # fmt: skip
SAME = replace(GOOD, groups_equal=4, reward_sum=16.0, reward_deviations=0.0, reward_min=1.0)
MASKED = replace(GOOD, masked=16, truncated=16)
UPDATE = UpdateReport(
    loss=0.1, grad_norm=0.5, learning_rate=1e-6, trained_tokens=160, fresh_tokens=160, fresh_gap_mean=1e-5,
    numbers={"advantage_abs": 0.8},
)  # fmt: skip
FLAT = replace(UPDATE, grad_norm=0.0, numbers={"advantage_abs": 0.0})
NOTHING = replace(UPDATE, loss=0.0, grad_norm=0.0, learning_rate=0.0, trained_tokens=0, fresh_tokens=0, numbers={})


def settings(*words):
    words = ("model.path=m", "model.dtype=float32", "train.batch_size=4", "train.steps=9", *words)
    return load_config(None, list(words))


def step(number, counts=GOOD, update=UPDATE, controllers=1):
    return StepReport(
        step=number, epoch=0.0, policy_version=number, controllers=controllers, counts=counts, update=update,
        phases={}, spans=(), seconds=1.0,
    )  # fmt: skip


def gap(number, mean, tokens=160):
    return step(number, update=replace(UPDATE, fresh_gap_mean=mean, fresh_tokens=tokens))


def look(words, *reports):
    """What is said of each step, up to the one that ends the run: (warnings, how it ends the run)."""
    watch, said = Diagnosis(settings(*words)), []
    for report in reports:
        found = watch.look(report)
        said.append((found.warnings, found.broken or found.idle))
        if said[-1][1]:
            break
    return said


# The gap of engine and trainer.


@pytest.mark.parametrize(
    ("words", "right", "wrong"),
    [
        (["model.dtype=float32"], [1.5e-7, 1e-5, 9e-4], [1.1e-3, 0.05, 3.0, math.nan, math.inf]),
        (["model.dtype=bfloat16"], [1e-5, 0.049, 0.054, 0.2], [0.26, 1.0, 3.0, math.nan]),
        # logits are divided by the temperature, and their rounding too
        (["rollout.temperature=0.5"], [1.9e-3], [2.1e-3]),
        (["rollout.temperature=2"], [4.9e-4], [5.1e-4]),
    ],
)
def test_a_first_step_whose_gap_is_more_than_rounding_ends_the_run(words, right, wrong):
    for mean in right:
        assert look(words, gap(1, mean)) == [((), None)], mean
    for mean in wrong:
        ((warnings, end),) = look(words, gap(1, mean))
        assert warnings == () and end.startswith("step 1: the engine's and the trainer's log-probabilities of 160")
        assert "model.path=m" in end and "rollout.engine_gap=warn" in end and "\n" not in end
        ((warnings, end),) = look([*words, "rollout.engine_gap=warn"], gap(1, mean))
        assert len(warnings) == 1 and end is None and "engine_gap=warn" not in warnings[0]


def test_the_alarm_names_what_was_measured_and_what_it_should_be():
    ((_, end),) = look([], gap(1, 1.834))
    assert "are 1.83 apart on average, where rounding in float32 stays under 0.001" in end
    ((_, end),) = look([], gap(1, math.nan))
    assert "are not all finite numbers" in end


def test_only_tokens_of_the_very_same_weights_are_judged():
    """Stale tokens differ for a reason; with top-p or top-k nothing is comparable: the ranks then count 0 tokens."""
    stale = replace(UPDATE, rollout_gap_mean=2.0, rollout_gap_max=9.0, fresh_tokens=0, fresh_gap_mean=math.nan)
    said = look([], step(41, update=stale), step(42, update=stale), gap(43, 2.0))
    assert [end is None for _, end in said] == [True, True, False]  # the first that can be compared is judged


def test_few_tokens_are_judged_with_more_room_and_together():
    # one token may be 4 times as far off, sixteen no further than any number
    assert look(["model.dtype=bfloat16"], gap(1, 0.9, 1)) == [((), None)]
    assert look(["model.dtype=bfloat16"], gap(1, 1.1, 1))[0][1] is not None
    assert look(["model.dtype=bfloat16"], gap(1, 0.3, 16))[0][1] is not None
    # 8 tokens of 0.3 are within 0.25 * sqrt(2); with 8 more the mean stays 0.3, and 0.25 is the bound
    said = look(["model.dtype=bfloat16"], gap(1, 0.3, 8), gap(2, 0.3, 8))
    assert [end is None for _, end in said] == [True, False]
    # 8 of 0.3 and 24 of 0.02 are 0.09
    assert [end for _, end in look(["model.dtype=bfloat16"], gap(1, 0.3, 8), gap(2, 0.02, 24))] == [None, None]


def test_a_gap_that_grows_tenfold_is_said_again_and_not_at_every_step():
    gaps = [2e-4, 1.9e-3, 2.1e-3, 2.1e-3, 0.02, 0.022, 0.022, 1e-5]
    said = look([], *(gap(n, mean) for n, mean in enumerate(gaps, 1)))
    assert [len(warnings) for warnings, _ in said] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert said[2][0][0].startswith("step 3: ") and "where it was 0.0002" in said[2][0][0]
    assert all(end is None for _, end in said)
    # far below the bound, growth is rounding too: nothing is said before the bound itself
    said = look([], *(gap(n, mean) for n, mean in enumerate([1e-7, 1e-5, 9e-4, 1.1e-3], 1)))
    assert [len(warnings) for warnings, _ in said] == [0, 0, 0, 1]
    # where the first was let pass, tenfold of it
    said = look(["rollout.engine_gap=warn"], *(gap(n, mean) for n, mean in enumerate([3.0, 3.0, 29.0, 31.0], 1)))
    assert [len(warnings) for warnings, _ in said] == [1, 0, 0, 1]


def test_a_gap_that_becomes_no_number_is_said_once_until_it_is_one_again():
    gaps = [1e-5, math.nan, math.nan, 1e-5, 0.5, math.nan]
    said = look([], *(gap(n, mean) for n, mean in enumerate(gaps, 1)))
    assert [len(warnings) for warnings, _ in said] == [0, 1, 0, 0, 1, 1]


# Steps that teach nothing.


def test_each_cause_has_its_name():
    causes = {
        "trains on no token: all 16 responses were cut off (algorithm.overlong=mask)": (MASKED, NOTHING),
        "trains on no token: every response is empty": (GOOD, NOTHING),
        "learns nothing: all rewards of every group are equal (all 16 are 1)": (SAME, FLAT),
        "learns nothing: all rewards of every group are equal": (replace(GOOD, groups_equal=4), FLAT),
        "learns nothing: every advantage is 0, though rewards differ": (GOOD, FLAT),
        "has no reward: all 16 failed; the first failures: \"reward: KeyError: 'x'\"": (FAILED, NOTHING),
        "has no reward: all 16 failed, 5 of them out of time": (
            replace(FAILED, reward_timeouts=5, failures=()), NOTHING,
        ),
        "skips every update: no gradient is finite": (GOOD, replace(UPDATE, grad_norm=math.nan, skipped_updates=1)),
        "learns nothing: the learning rate is 0": (GOOD, replace(UPDATE, learning_rate=0.0)),
        "learns nothing: the gradient is 0, though advantages are not": (GOOD, replace(UPDATE, grad_norm=0.0)),
        "trains on no token: no row has one behind its prompt": (None, NOTHING),
        "learns nothing: the gradient is 0": (None, replace(FLAT, fresh_tokens=0)),
    }  # fmt: skip
    for cause, (counts, update) in causes.items():
        assert look([], step(1, counts, update)) == [((f"step 1 {cause}",), None)]
    corrected = replace(UPDATE, grad_norm=0.0, numbers={"advantage_abs": 0.8, "correction_weight": 0.0})
    assert look(["algorithm.correction.level=token"], step(1, GOOD, corrected)) == [
        (("step 1 learns nothing: algorithm.correction gives every token the weight 0",), None)
    ]


def test_a_filter_that_drops_everything_says_which_rewards_it_saw():
    dropped = replace(SAME, groups=0, groups_equal=0, groups_dropped=12, groups_missing=4, refills=8, scored=48)
    words = ["rollout.filter=all_equal"]
    assert look(words, step(1, dropped, NOTHING)) == [
        (("step 1 has no group to train on: 12 were dropped by rollout.filter=all_equal (all 48 rewards are 1)",), None)
    ]


def test_the_third_idle_step_in_a_row_ends_the_run_with_the_first_failures():
    texts = [("a",), ("b", "a"), ("c", "d")]
    reports = [step(n, replace(FAILED, failures=f), NOTHING) for n, f in enumerate(texts, 1)]
    said = look([], *reports)
    assert [end is None for _, end in said] == [True, True, False]
    warning = "step 3 has no reward: all 16 failed; the first failures: 'a'; 'b'; 'c'"
    ends = "train.idle_steps=3 ends the run for it, 0 never does"
    assert said[-1] == ((warning,), f"3 steps in a row taught nothing: {warning}; {ends}")
    between = [*reports[:2], step(3), *(replace(report, step=report.step + 3) for report in reports)]
    assert [end is None for _, end in look([], *between)] == [True] * 5 + [False]
    assert [end is None for _, end in look(["train.idle_steps=1"], *reports)] == [False]
    assert all(end is None and warnings for warnings, end in look(["train.idle_steps=0"], *reports * 3))


def test_a_short_run_that_taught_nothing_at_all_does_not_end_well():
    masked = [step(n, MASKED, NOTHING) for n in (1, 2)]
    assert [end is None for _, end in look(["train.steps=2"], *masked)] == [True, False]
    assert look(["train.steps=1"], masked[0])[0][1].startswith("the run taught nothing: step 1 trains on no token")
    # what was learned before, or before it was resumed, counts
    assert [end for _, end in look(["train.steps=2"], step(1), masked[1])] == [None, None]
    assert look(["train.steps=2"], masked[1])[0][1] is None
    assert look(["train.steps=1", "train.idle_steps=0"], masked[0])[0][1] is None


def test_what_is_learned_beside_the_rewards_is_learned():
    """Equal rewards make no advantage; a KL in the loss or an entropy bonus still has a gradient."""
    pulled = replace(UPDATE, numbers={"advantage_abs": 0.0})
    for words in (["algorithm.kl.coefficient=0.1"], ["algorithm.entropy=0.01"]):
        assert look(words, step(1, SAME, pulled)) == [
            (("step 1 learns nothing from rewards: all rewards of every group are equal (all 16 are 1)",), None)
        ]
    # rounding of rewards such as 0.1 + 0.2 and 0.3 is no advantage
    noise = replace(UPDATE, grad_norm=1e-12, numbers={"advantage_abs": 1e-11})
    rounded = replace(GOOD, groups_equal=4, reward_min=0.3, reward_max=0.1 + 0.2)
    assert look([], step(1, rounded, noise))[0][0] == ("step 1 learns nothing: all rewards of every group are equal",)
    assert look([], step(1, GOOD, noise)) == [((), None)]
    # a teacher gives advantages without rewards
    assert look(["algorithm.name=distillation", "model.teacher=t"], step(1, SAME)) == [((), None)]
    agrees = step(1, replace(SAME, scored=1), replace(UPDATE, grad_norm=0.0, numbers={"advantage_abs": 0.0}))
    assert look(["algorithm.name=distillation", "model.teacher=t"], agrees)[0][0] == (
        "step 1 learns nothing: every advantage is 0, the teacher and the policy agree",
    )
    # as does a loss of the user's, whatever it is made of
    assert look(["algorithm.loss=l.py:f"], step(1, SAME, pulled))[0][1] is None
    # as do the parts of a reward whose sum is the same, and a greedy response that earns another
    assert look(["algorithm.name=gdpo"], step(1, SAME)) == look(["algorithm.name=remax"], step(1, SAME)) == [((), None)]


def test_ppo_learns_nothing_from_one_reward_and_while_the_critic_warms_up_only_that_learns():
    ppo = ["algorithm.name=ppo", "critic.warmup_steps=2"]
    critic = {"advantage_abs": 0.8, "critic_grad_norm": 0.3, "critic_learning_rate": 1e-5}
    warming = replace(NOTHING, numbers=critic)
    assert look(ppo, step(1, GOOD, warming), step(2, GOOD, warming)) == [((), None)] * 2
    assert look(ppo, step(3, GOOD, warming))[0][0] == ("step 3 trains on no token: every response is empty",)
    stuck = replace(warming, numbers=critic | {"critic_grad_norm": 0.0})
    assert "the gradient is 0" in look(ppo, step(1, GOOD, stuck))[0][0][0]
    assert look(ppo, step(1, MASKED, replace(NOTHING, numbers={"critic_grad_norm": 0.0})))[0][0] == (
        "step 1 trains on no token: all 16 responses were cut off (algorithm.overlong=mask)",
    )
    # one reward for everything: advantages are the critic's error, and teach the policy nothing
    one = [step(n, SAME, replace(UPDATE, numbers=critic)) for n in (3, 4, 5)]
    assert [end is None for _, end in look(ppo, *one)] == [True, True, False]
    for more in ("algorithm.kl.coefficient=0.1", "algorithm.length_penalty=0.5"):
        assert look([*ppo, more], *one) == [((), None)] * 3


def test_groups_kept_from_earlier_steps_teach_whatever_failed_in_this_one():
    one = replace(SAME, groups_carried=2)  # whose rewards are others
    assert look(["algorithm.name=ppo"], step(4, one), step(5, SAME))[0][0] == ()
    carried = replace(FAILED, groups=2, groups_carried=2, groups_missing=2)
    ((warnings, end),) = look([], step(4, carried))
    assert end is None and warnings[0] == "step 4 trains on 2 of 4 groups: 4 were dropped for rewards that failed"


def test_why_groups_are_missing_is_the_true_cause():
    few = replace(GOOD, groups=1, groups_missing=3)
    words = ["rollout.filter=all_equal"]

    def said(counts, *words):
        return look(words, step(1, counts))[0][0][0]

    failed = replace(few, groups_dropped=11, groups_unscored=11, refills=8)
    assert said(failed) == "step 1 trains on 1 of 4 groups: 11 were dropped for rewards that failed"
    filtered = replace(few, groups_dropped=11, refills=8)
    allows = "rollout.max_refills=2 allows no more prompts"
    by = "dropped by rollout.filter=all_equal"
    assert said(filtered, *words) == f"step 1 trains on 1 of 4 groups: 11 were {by} and {allows}"
    both = replace(filtered, groups_unscored=4)
    assert said(both, *words) == (
        f"step 1 trains on 1 of 4 groups: 4 were dropped for rewards that failed and 7 were {by} and {allows}"
    )
    assert said(replace(filtered, refills=3), *words) == f"step 1 trains on 1 of 4 groups: 11 were {by}"
    assert said(few) == "step 1 trains on 1 of 4 groups: no prompt is left"


def test_why_rewards_fail_is_said_once_in_a_run():
    some = replace(GOOD, reward_failures=3, scored=13, failures=("reward: ValueError: no sevens",))
    said = look([], step(1), step(2, some), step(3, some))
    assert [warnings for warnings, _ in said] == [
        (), ("step 2: 3 of 16 rewards failed; the first failures: 'reward: ValueError: no sevens'",), (),
    ]  # fmt: skip


def test_an_evaluation_in_which_every_reward_failed_is_said():
    right = EvaluationReport(prompts=2, accuracy_greedy=0.5, accuracy_sampled=None, failures=3)
    assert (
        unscored(0, None) is unscored(0, right) is unscored(0, replace(right, accuracy_greedy=None, failures=0)) is None
    )
    assert unscored(4, replace(right, accuracy_greedy=None)) == (
        "step 4: nothing could be evaluated, all 3 rewards of held-out responses failed"
    )
