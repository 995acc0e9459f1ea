"""The pages on algorithms say what is there, and the example they show works."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from yatt.algorithm.correction import LEVELS, MODES
from yatt.algorithm.kl import KINDS
from yatt.algorithm.load import load_loss
from yatt.algorithm.loss import AGGREGATES, LOSSES, policy_loss
from yatt.algorithm.samples import samples
from yatt.api import Run
from yatt.config.algorithms import RECIPES
from yatt.config.schema import AlgorithmConfig, Config, Section
from yatt.types import Group, Prompt, Score, Trajectory

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
FIELDS = ["Rows", "Formula", "Source", "Settings", "Choose it"]
# Settings that nearly every algorithm with a reward has are told of in sections of their own.
COMMON = RECIPES["grpo"].has - {"normalize_std", "clip_low", "clip_high", "dual_clip"}


def sections():
    """Heading -> text below it."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def written(value):
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_entry(name):
    entry = sections()[name]
    assert re.findall(r"^- \*\*(.+?)\*\*", entry, flags=re.MULTILINE) == FIELDS
    rows = {"prompts": "prompts", "demonstrations": "demonstrations", "pairs": "pairs", "labels": "labelled responses"}
    assert f"- **Rows** {rows[RECIPES[name].rows]}" in entry
    assert f"(#{name})" in PAGE.split("## Signs")[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_entry_has_its_settings_and_defaults(name):
    recipe, config = RECIPES[name], AlgorithmConfig(name=name)
    first = re.search(r"\*\*Settings\*\* (.*?)\.\s", sections()[name], flags=re.DOTALL)[1]
    told = dict(re.findall(r"`([\w.]+)` ([\w.]+)", first))
    common = COMMON if recipe.reinforces else frozenset()
    wanted = {setting: written(getattr(config, setting)) for setting in (recipe.has - common) | recipe.defaults.keys()}
    wanted |= {f"rollout.{setting}": written(value) for setting, value in recipe.rollout.items()}
    beside = {key for key in told if key.startswith(("critic.", "model.", "data.", "reward."))}
    assert {key: value for key, value in told.items() if key not in beside} == wanted
    assert recipe.critic == any(key.startswith("critic.") for key in beside)


def test_every_piece_is_named():
    for heading, names in {
        "Losses": set(LOSSES) | {"gpg"},
        "From tokens to one number": set(AGGREGATES),
        "KL": set(KINDS),
        "Sampler and trainer": set(LEVELS) | (set(MODES) - {"icepop"}),
        "Rewards": {"reward_normalize", "reward_clip", "overlong", "length_penalty"},
    }.items():
        missing = {name for name in names if f"`{name}`" not in sections()[heading]}
        assert not missing, f"{heading}: {missing}"


# Pages from other trainers name settings of theirs: tests/test_docs.py reads their tables.
PAGES = [page for page in (ROOT / "docs").glob("*.md") if not page.stem.startswith("from-")]


def settings_of(section, prefix=""):
    """Dotted names of all settings of a section, and of those below."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("page", [*sorted(PAGES), ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_setting_that_a_page_names_is_there(page):
    known = set(settings_of(Config)) | {f"run.{name}" for name in dir(Run)}
    # What a user names himself, or hands through to an engine, has no name in the schema.
    free = re.compile(r"(\w+\.)?(engine_args|metadata)\.|reward\.(models|functions)\.")
    spans = re.findall(r"`([^`\n]+)`", page.read_text())
    sections = "|".join(Config.model_fields)
    named = {
        match[1]
        for span in spans
        for match in re.finditer(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_]+)+)(?![\w(]|\.[a-z])", span)
        if not re.search(r"\.(py|yaml|json|jsonl|md|html|safetensors)$", match[1]) and not free.match(match[1])
    }
    assert not named - known


def test_the_page_shows_the_example_as_it_is():
    shown = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
    assert shown and shown[1] == (ROOT / "examples" / "extending" / "functions.py").read_text()


@pytest.fixture
def own(monkeypatch):
    monkeypatch.chdir(ROOT)
    return AlgorithmConfig(
        advantage="examples/extending/functions.py:median", loss="examples/extending/functions.py:spo"
    )


def test_the_examples_advantage_by_hand(own):
    def responses(uid, rewards):
        prompt = Prompt(uid=uid, text="p", tokens=np.zeros(1, np.int32))
        made = [
            Trajectory(
                prompt=prompt,
                sibling=i,
                tokens=np.zeros(3, np.int32),
                loss_mask=np.array([False, True, True]),
                rollout_logprobs=np.zeros(3, np.float32),
                spans=(),
                finish="stop",
                text="",
                score=Score(status="ok", value=reward),
            )
            for i, reward in enumerate(rewards)
        ]
        return Group(prompt=prompt, trajectories=tuple(made))

    # Medians 1 and (0 + 4) / 2.
    made = samples([responses(0, [0.0, 1.0, 9.0]), responses(1, [4.0, 0.0])], own, 8)
    assert [s.advantage for s in made] == [-1.0, 0.0, 8.0, 2.0, -2.0]


def test_the_examples_loss_by_hand(own):
    mask, cu = torch.tensor([False, True, True, True]), torch.tensor([0, 4])
    ratios = torch.tensor([1.0, 1.0, 1.25, 0.75], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    advantages = torch.tensor([9.0, 2.0, 2.0, -2.0], dtype=torch.float64)
    kind = load_loss(own)
    found = policy_loss(logprobs, torch.zeros_like(ratios), advantages, mask, cu, kind=kind, clip_high=0.25)
    # clip_high .25: 0 - 2; 2 / 16 / .5 - 2.5 = -2.25; 2 / 16 / .5 + 1.5 = 1.75. All over 3.
    assert found.loss.item() == pytest.approx((-2 - 2.25 + 1.75) / 3)
    found.loss.backward()
    # At 1 the policy gradient, -A; at 1 +- .25 nothing pulls either way.
    assert logprobs.grad.tolist() == pytest.approx([0, -2 / 3, 0, 0], abs=1e-12)
    wide = policy_loss(logprobs, torch.zeros_like(ratios), advantages, mask, cu, kind=kind, clip_high=0.2)
    assert wide.clip_fraction.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("cut", [1, 2])
def test_the_examples_loss_does_not_depend_on_packing(own, cut):
    generator = torch.Generator().manual_seed(cut)
    columns = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    mask, bounds = torch.tensor([False, True, True] * 3), [0, 3, 6, 9]
    kind = load_loss(own)

    def loss(start, stop):
        ends = torch.tensor([b - start for b in bounds if start <= b <= stop])
        logprobs, old, advantages = columns[:, start:stop]
        return policy_loss(logprobs, old, advantages, mask[start:stop], ends, kind=kind, denominator=6).loss

    parts = sum(loss(a, b) for a, b in pairwise([0, bounds[cut], 9]))
    torch.testing.assert_close(parts, loss(0, 9))
