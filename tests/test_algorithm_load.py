"""Estimators and losses of a user's own, and what is said where they are wrong."""

import re

import numpy as np
import pytest
import torch

from yatt.algorithm.advantage import ESTIMATORS, Outcomes
from yatt.algorithm.load import load_estimator, load_loss, load_token_estimator
from yatt.algorithm.loss import LOSSES, policy_loss
from yatt.algorithm.samples import samples
from yatt.algorithm.token_advantage import TOKEN_ESTIMATORS, TokenOutcomes
from yatt.config.algorithms import RECIPES, TOKEN_ADVANTAGES
from yatt.config.schema import AlgorithmConfig
from yatt.errors import BackendError, ConfigError
from yatt.types import Group, Prompt, Score, Trajectory

MINE = """
import torch

def halves(outcomes, config): return outcomes.rewards / 2
def short(outcomes, config): return outcomes.rewards[:1]
def a_list(outcomes, config): return outcomes.rewards.tolist()
def failing(outcomes, config): return 1 / 0

def to_go(outcomes, config): return outcomes.token_rewards * config.gamma, None
def with_targets(outcomes, config): return outcomes.token_rewards, outcomes.values
def one_only(outcomes, config): return outcomes.token_rewards

def squares(tokens, settings): return tokens.log_ratio.square(), tokens.log_ratio > settings.clip_high
def no_bounds(tokens, settings): return tokens.log_ratio.square()
a_number = 3
"""


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)


def config(name="grpo", **settings):
    return AlgorithmConfig(name=name, **settings)


OUTCOMES = Outcomes(rewards=torch.tensor([1.0, 3.0]), groups=torch.tensor([0, 0]), lengths=torch.tensor([2, 2]))
MASK, CU = torch.tensor([False, True, True]), torch.tensor([0, 3])
TOLD = TokenOutcomes(
    token_rewards=torch.tensor([0.0, 1.0, 2.0]),
    loss_mask=MASK,
    cu_seqlens=CU,
    old_logprobs=torch.zeros(3),
    values=torch.tensor([0.0, 5.0, 6.0]),
)


def test_every_recipe_finds_its_own():
    for name, recipe in RECIPES.items():
        if recipe.reinforces:
            assert load_loss(config(name)) is LOSSES[recipe.loss]
            if recipe.advantage in TOKEN_ADVANTAGES:
                assert load_token_estimator(config(name)) is TOKEN_ESTIMATORS[recipe.advantage]
            else:
                assert load_estimator(config(name)) is ESTIMATORS[recipe.advantage]
    assert set(ESTIMATORS) & set(TOKEN_ESTIMATORS) == set()


def test_an_estimator_of_ones_own():
    own = config(advantage="mine.py:halves")
    assert load_estimator(own)(OUTCOMES, own).tolist() == [0.5, 1.5]
    prompt = Prompt(uid=0, text="p", tokens=np.zeros(1, np.int32))
    trajectory = Trajectory(
        prompt=prompt,
        sibling=0,
        tokens=np.zeros(3, np.int32),
        loss_mask=np.array([False, True, True]),
        rollout_logprobs=np.zeros(3, np.float32),
        spans=(),
        finish="stop",
        text="",
        score=Score(status="ok", value=5.0),
    )
    assert samples([Group(prompt=prompt, trajectories=(trajectory,))], own, 8)[0].advantage == 2.5


def test_a_token_estimator_of_ones_own():
    own = config("reinforce_plus_plus", advantage="mine.py:to_go", gamma=0.5)
    advantages, targets = load_token_estimator(own)(TOLD, own)
    assert advantages.tolist() == [0, 0.5, 1.0] and targets is None
    own = config("ppo", advantage="mine.py:with_targets")
    assert load_token_estimator(own)(TOLD, own)[1].tolist() == [0, 5, 6]


def test_a_loss_of_ones_own():
    loss = load_loss(config(loss="mine.py:squares"))
    found = policy_loss(torch.tensor([0.0, -1.0, -3.0]), torch.full((3,), -3.0), torch.ones(3), MASK, CU, kind=loss)
    # (2^2 + 0^2) / 2, and one of two ratios over the bound.
    assert found.loss.item() == 2.0 and found.clip_fraction.item() == 0.5


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("grpo", "algorithm.advantage=grpo is not built in; use FILE.py:NAME"),
        ("mein.py:halves", "algorithm.advantage=mein.py:halves: there is no file mein.py"),
        ("mine.py:halve", "algorithm.advantage=mine.py:halve: mine.py has no 'halve' (did you mean 'halves'?)"),
        ("mine.py:a_number", "algorithm.advantage=mine.py:a_number is a int, not a function; name a function"),
        ("no_such_package.x:f", "algorithm.advantage=no_such_package.x:f does not import: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_found(reference, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        load_estimator(config(advantage=reference))


@pytest.mark.parametrize(
    ("load", "name", "reference", "told", "said"),
    [
        (load_estimator, "grpo", "failing", OUTCOMES, "ZeroDivisionError: division by zero (mine.py, line 7)"),
        (load_estimator, "grpo", "short", OUTCOMES, "its advantages are [1]; return a tensor of shape [2]"),
        (load_estimator, "grpo", "a_list", OUTCOMES, "its advantages are list; return a tensor of shape [2]"),
        (load_token_estimator, "ppo", "to_go", TOLD, "its targets are NoneType; return a tensor of shape [3]"),
        (load_token_estimator, "ppo", "one_only", TOLD, "too many values to unpack"),
    ],
)
def test_what_an_estimator_does_wrong(load, name, reference, told, said):
    own = config(name, advantage=f"mine.py:{reference}")
    with pytest.raises(BackendError, match=rf"^algorithm.advantage=mine.py:{reference} failed: .*{re.escape(said)}"):
        load(own)(told, own)


def test_what_a_loss_does_wrong():
    loss = load_loss(config(loss="mine.py:no_bounds"))
    with pytest.raises(BackendError, match=r"^algorithm.loss=mine.py:no_bounds failed: ValueError: too many values"):
        policy_loss(torch.zeros(3), torch.zeros(3), torch.ones(3), MASK, CU, kind=loss)


def test_a_file_that_breaks_is_read_again():
    with open("broken.py", "w") as file:
        file.write("1 / 0")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"does not import: ZeroDivisionError: division by zero \(broken.py, line 1"
        ):
            load_loss(config(loss="broken.py:f"))
