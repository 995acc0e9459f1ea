"""A judge that sees: where the prompt's images stand in what it reads, as its own tower sees them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.test_judge_engine import says
from tests.tiny_models import save_tiny
from tests.vision.models import IMAGE, VISION_END, VISION_START, save_seeing, seeing_tokenizer
from tests.vision.seeing_contract import Picture, picture
from yatt.config.judges import judge_mistakes
from yatt.config.schema import JudgeConfig
from yatt.errors import ConfigError
from yatt.reward.engine import EngineAsker, Engines
from yatt.reward.judge import JudgeScorer
from yatt.types import Media, Prompt, Request, Score, Trajectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Of a judge that makes at most 4 tokens of an image, and 2 at least."""
    return save_seeing(tmp_path_factory.mktemp("judge"), "qwen3_vl", max_tokens=4)


def shown(one: Picture) -> Media:
    """A picture as the policy has it: in another place, and with as many patches as its own tower sees."""
    return replace(one.at(17), pixels=(one.height, one.width), tokens=99, patches=(1, 20, 20))


def trajectory(question: str, response: str, images: Sequence[Picture]) -> Trajectory:
    prompt = Prompt(uid=3, text="", tokens=np.arange(2), question=question, media=tuple(map(shown, images)))
    none = np.zeros(0)
    return Trajectory(
        prompt=prompt,
        sibling=0,
        tokens=none,
        loss_mask=none,
        rollout_logprobs=none,
        spans=(),
        finish="stop",
        text=response,
    )


async def judged(folder: str, template: str, given: Trajectory, **settings) -> tuple[Score, list[Request]]:
    """The score, and what the engine was asked."""
    config = JudgeConfig(path=folder, template=template, parser="number", max_tokens=16, **settings)
    engine = says("1")
    scorer = JudgeScorer("j", config, EngineAsker(Engines("j", config, engine)))
    await scorer.start()
    (score,) = await scorer.score([given])
    return score, [request for group in engine.asked for request in group]


def read(request: Request) -> str:
    """What it is asked, its images as the letters of `images` in their order."""
    tokens = request.tokens.tolist()
    for letter, media in reversed(list(zip("abc", request.media, strict=False))):
        start, stop = media.start, media.start + media.tokens
        assert tokens[start - 1 : stop + 1] == [VISION_START, *[IMAGE] * media.tokens, VISION_END]
        tokens[start - 1 : stop + 1] = seeing_tokenizer().convert_tokens_to_ids([letter])
    return seeing_tokenizer().decode(tokens)


@pytest.mark.parametrize(
    ("template", "question", "expected"),
    [
        ("{question} said: {response}", "is <image> like <image>?", "is a like b? said: yes"),
        ("{question} said: {response}", "alike?", "abalike? said: yes"),  # nothing says where
        ("how good is {response}?", "is <image> like <image>?", "abhow good is yes?"),
    ],
)
async def test_images_stand_where_they_stand_in_the_question(folder, template, question, expected):
    score, (request, other) = await judged(
        folder, template, trajectory(question, "yes", [picture(1, 16, 8), picture(2)]), judgements=2
    )
    assert score.value == 1.0
    assert read(request) == f"user: {expected}assistant: "
    assert np.array_equal(request.tokens, other.tokens) and request.media == other.media
    first, second = request.media
    assert (first.patches, first.tokens) == ((1, 2, 4), 2)
    # 24 x 16 pixels are 6 tokens, of which this judge takes 4 at most. Each side shrinks by sqrt(384 / 256) = 1.22, to
    # 19.6 and 13.1 pixels, and to whole tokens of 8.
    assert (second.patches, second.tokens) == ((1, 2, 4), 2)
    assert np.array_equal(second.handle, picture(2).file)


async def test_what_a_response_says_of_images_shows_none(folder):
    """Its own tokens, marks and tags of images are words."""
    said = "<image> \ufdd0 <|image_pad|>"
    _, (request,) = await judged(folder, "{question}{response}", trajectory("<image>=", said, [picture(1, 16, 8)]))
    assert len(request.media) == 1 and np.count_nonzero(request.tokens == IMAGE) == 2
    assert read(request).startswith("user: a=<image>")


async def test_images_count_as_what_it_reads(folder):
    """Of a context of 30 tokens, 4 images of 2 tokens, with a mark before and after each, leave too little."""
    many = trajectory("<image>" * 4, "", [picture(1, 16, 8)] * 4)
    score, asked = await judged(folder, "{question}{response}", many, context_length=30)
    assert asked == [] and "leave no room in its context of 30" in score.detail


async def test_a_judge_that_sees_none_reads_a_word_for_an_image(tmp_path):
    given = trajectory("is <image> red?", "yes \ufdd0", [picture(1)])
    score, (request,) = await judged(save_tiny(tmp_path), "{question} {response}", given)
    assert score.value == 1.0 and request.media == ()
    assert "is <image> red? yes" in seeing_tokenizer().decode(request.tokens)


def test_a_folder_that_sees_may_judge(folder, tmp_path):
    judge = JudgeConfig(path=folder, template="{response}", parser="number", max_tokens=16)
    assert list(judge_mistakes("j", judge)) == []
    blind = shutil.copytree(folder, tmp_path / "blind")
    (blind / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=rf"reward\.models\.j\.path={blind}.*preprocessor_config\.json"):
        Engines("j", judge.model_copy(update={"path": str(blind)}), says("1")).open()
