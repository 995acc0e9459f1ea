"""Judges served by engines of the run, with an engine that answers by rule: what it reads, and what becomes of it."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.generator_double import DoubleGenerator
from tests.tiny_models import save_tiny, tiny_tokenizer
from yatt.config.judges import judge_context, judge_mistakes
from yatt.config.schema import JudgeConfig, RewardConfig
from yatt.errors import BackendError, ConfigError, ProcessDied
from yatt.reward.engine import EngineAsker, Engines
from yatt.reward.function import Item
from yatt.reward.judge import Failure
from yatt.reward.mixed import check_rewards, open_scorer
from yatt.types import Completion, Finish, Prompt, Request, Score, Trajectory

EOS, CORRECT, WRONG = 1, 91, 92
CONTEXT = 512


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`judge`: a model whose tokenizer has <correct> and <wrong> as special tokens 91 and 92, and a chat template;
    `classifier`: one with a head of one label."""
    folder = tmp_path_factory.mktemp("judges")
    save_tiny(folder / "judge")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<correct>", "<wrong>"]})
    assert tokenizer.convert_tokens_to_ids(["<eos>", "<correct>", "<wrong>"]) == [EOS, CORRECT, WRONG]
    tokenizer.save_pretrained(folder / "judge")
    save_tiny(folder / "classifier", "llama", labels=1)
    return folder


class Engine:
    """An engine's `generate`: the tokens, logprobs and finish that a rule gives for the text that it reads."""

    def __init__(self, rule: Callable[[str, Request], tuple[list[int], Finish]], logit: float = 0.0) -> None:
        self.rule, self.logit = rule, logit
        self.asked: list[list[Request]] = []
        self.tokenizer = tiny_tokenizer()
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["<correct>", "<wrong>"]})

    async def __call__(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        self.asked.append(list(requests))
        for request in reversed(requests):  # completions come in any order
            tokens, finish = self.rule(self.tokenizer.decode(request.tokens), request)
            yield [
                Completion(
                    key=request.key,
                    tokens=np.array(tokens, dtype=np.int32),
                    rollout_logprobs=np.zeros(len(tokens), dtype=np.float32),
                    spans=(),
                    finish=finish,
                    logit=self.logit,
                )
            ]

    def written(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def texts(self) -> list[str]:
        return [self.tokenizer.decode(request.tokens) for group in self.asked for request in group]


def says(text: str, finish: Finish = "stop") -> Engine:
    engine = Engine(lambda *_: (engine.written(text), finish))
    return engine


def config(folders: Path, kind: str = "judge", **settings: Any) -> JudgeConfig:
    base = {"path": str(folders / kind), "max_tokens": 16}
    words = {"template": "{question}{response}", "parser": "verdict:<correct>=1,<wrong>=0"}
    return JudgeConfig(**(base | (words if kind == "judge" else {"kind": "classifier", "max_tokens": 1024}) | settings))


async def asker(folders: Path, engine: Engine, index: int = 0, count: int = 1, **settings: Any) -> EngineAsker:
    opened = EngineAsker(Engines("j", config(folders, **settings), engine, index=index, count=count))
    await opened.start()
    return opened


def trajectory(text: str, sibling: int = 0, question: str = "2+2=", answer: str | None = "4") -> Trajectory:
    prompt = Prompt(uid=3, text="", tokens=np.arange(2), question=question, answer=answer)
    return Trajectory(
        prompt=prompt,
        sibling=sibling,
        tokens=np.arange(4),
        loss_mask=np.array([False, False, True, True]),
        rollout_logprobs=np.zeros(4, dtype=np.float32),
        spans=(),
        finish="stop",
        text=text,
    )


async def scored(reward: RewardConfig, engines: dict[str, Any], *trajectories: Trajectory) -> list[Score]:
    scorer = open_scorer(reward, engines)
    await scorer.start()
    try:
        return await scorer.score(trajectories)
    finally:
        await scorer.close()


# --- judges that write -----------------------------------------------------------------------------------------------


async def test_a_judge_reads_one_message_and_its_verdict_may_be_a_special_token(folders):
    engine = says("so <correct><eos>")
    judge = await asker(folders, engine, temperature=0.5)
    assert await judge.ask(["2+2=4?"] * 2, [7, 8]) == ["so <correct>"] * 2
    # The template of the tokenizer: a line for each message, then the assistant's turn.
    assert engine.texts() == ["user: 2+2=4?\nassistant: "] * 2
    ((first, second),) = engine.asked
    assert (first.seed, second.seed) == (7, 8) and first.tokens.tolist() == second.tokens.tolist()
    assert (first.params.max_tokens, first.params.temperature, first.params.stop) == (16, 0.5, ())


async def test_without_a_chat_template_a_judge_reads_the_text(folders, tmp_path):
    save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    engine = says("no")
    judge = await asker(folders, engine, path=str(tmp_path))
    assert await judge.ask(["2+2=4?"], [1]) == ["no"]
    assert engine.texts() == ["2+2=4?"]
    nothing = Failure("failed", "there is nothing to read: the template and the response are empty")
    assert await judge.ask([""], [1]) == [nothing] and len(engine.asked) == 1


async def test_only_the_end_token_is_left_out(folders):
    for written, read in {"<eos>": "", "a": "a", "<pad>a<eos>": "<pad>a", "a<eos>b<eos>": "a<eos>b"}.items():
        assert await (await asker(folders, says(written))).ask(["?"], [1]) == [read]


async def test_no_two_controllers_use_a_key_twice(folders):
    engine = says("<wrong>")
    judges = [await asker(folders, engine, index=index, count=3) for index in range(3)]
    for _ in range(2):
        for judge in judges:
            await judge.ask(["a", "a"], [1, 2])
    keys = [[(request.key.uid, request.key.sibling) for request in group] for group in engine.asked]
    assert keys == [[(uid, 0), (uid, 1)] for uid in (0, 1, 2, 3, 4, 5)]


async def test_a_question_that_does_not_fit_is_a_failure_with_numbers(folders):
    engine = says("<correct>")
    judge = await asker(folders, engine, context_length=40)
    # "user: " + text + "\nassistant: " are 6 + 21 + 12 = 39 tokens, one each; another one leaves no room for an answer.
    fits, too_long = "x" * 21, "x" * 22
    answers = await judge.ask([too_long, fits], [1, 2])
    assert answers == [Failure("failed", "40 tokens to read leave no room in its context of 40"), "<correct>"]
    ((request,),) = engine.asked
    assert (len(request.tokens), request.seed) == (39, 2)
    assert await judge.ask([too_long], [1]) == [answers[0]] and len(engine.asked) == 1
    scores = await scored(
        RewardConfig(models={"j": config(folders, context_length=40)}),
        {"j": engine},
        trajectory("y" * 18, question=""),
        trajectory("y" * 60),
    )
    assert [score.status for score in scores] == ["ok", "failed"]
    assert scores[1].detail.startswith("j: 82 tokens to read")  # 6 + len("2+2=") + 60 + 12


async def test_an_answer_cut_off_is_asked_for_again(folders):
    def rule(text: str, request: Request) -> tuple[list[int], Finish]:
        return (engine.written("<correct> or"), "length") if len(engine.asked) == 1 else ([WRONG, EOS], "stop")

    engine = Engine(rule)
    (score,) = await scored(RewardConfig(models={"j": config(folders, judgements=2)}), {"j": engine}, trajectory("5"))
    # The verdict word before the cut does not count. Two questions, both cut off, and two more.
    assert (score.value, score.parts) == (0.0, {"j": 0.0, "j.judgements": 2.0, "j.unparsed": 2.0})
    seeds = [request.seed for group in engine.asked for request in group]
    assert len(seeds) == len(set(seeds)) == 4
    (score,) = await scored(
        RewardConfig(models={"j": config(folders, retries=0)}), {"j": says("a" * 9, "length")}, trajectory("5")
    )
    assert (score.status, score.detail) == (
        "failed",
        "j: cut off after 9 tokens, before a verdict, in 'aaaaaaaaa'",
    )


async def test_what_the_engine_ended_has_no_verdict(folders):
    judge = await asker(folders, says("<correct>", "aborted"))
    assert await judge.ask(["?"], [1]) == [Failure("failed", "ended by its engine, before a verdict")]


@pytest.mark.parametrize("error", [ProcessDied("the last one is gone"), BackendError("device lost")])
async def test_engines_that_fail_end_the_step(folders, error):
    async def broken(requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        raise error
        yield []

    for kind in ("judge", "classifier"):
        with pytest.raises(type(error), match=str(error)):
            await scored(RewardConfig(models={"j": config(folders, kind)}), {"j": broken}, trajectory("4"))


async def test_judgements_depend_on_the_seed_and_not_on_who_asks(folders):
    """A double engine draws tokens from a hash of prompt and seed; 92 of 96 are letters and signs."""

    class Clock:
        def now(self) -> float:
            return time.monotonic()

        async def sleep(self, seconds: float) -> None:
            pass

    async def run(index: int) -> list[Score]:
        engine = DoubleGenerator(clock=Clock(), vocabulary=93, context_length=CONTEXT, stop_token_ids=(EOS,))
        settings = config(folders, parser="verdict:a=1,b=0", max_tokens=64, judgements=3, retries=4)
        scorer = open_scorer(RewardConfig(models={"j": settings}), {"j": engine.generate}, index=index, count=4)
        await scorer.start()
        return await scorer.score([trajectory(f"{i}", sibling=i) for i in range(6)])

    first = await run(0)
    assert first == await run(3)
    assert len({score.value for score in first}) > 1


async def test_a_parser_that_never_matches_is_said_with_three_answers(folders, caplog):
    engine = says("yes")
    with caplog.at_level(logging.WARNING):
        scores = await scored(
            RewardConfig(models={"j": config(folders, retries=0)}),
            {"j": engine},
            *(trajectory("4", sibling=i) for i in range(40)),
        )
    assert {score.status for score in scores} == {"failed"}
    (line,) = [r.getMessage() for r in caplog.records if "finds no verdict" in r.getMessage()]
    assert line.startswith("reward.models.j.parser=verdict:<correct>=1,<wrong>=0 finds no verdict in the first 32")
    assert line.count("\n    'yes'") == 3


# --- classifiers -----------------------------------------------------------------------------------------------------


async def test_a_classifier_gives_its_logit_for_the_talk(folders):
    engine = Engine(lambda text, request: ([0], "stop"), logit=-1.5)
    reward = RewardConfig(models={"rm": config(folders, "classifier", weight=2.0)})
    (first, second) = await scored(reward, {"rm": engine}, trajectory("4"), trajectory("five", question="5?"))
    # -1.5 x weight 2
    assert (first.value, first.parts) == (-3.0, {"rm": -1.5}) and second.value == -3.0
    assert engine.texts() == ["user: 2+2=\nassistant: 4\n", "user: 5?\nassistant: five\n"]
    (requests,) = engine.asked
    assert [request.params.max_tokens for request in requests] == [1, 1]


async def test_a_classifier_reads_its_template_as_it_stands(folders):
    engine = Engine(lambda text, request: ([0], "stop"), logit=0.25)
    settings = config(folders, "classifier", template="Q {question} R {response}")
    (score,) = await scored(RewardConfig(models={"rm": settings}), {"rm": engine}, trajectory("4"))
    assert score.value == 0.25 and engine.texts() == ["Q 2+2= R 4"]


@pytest.mark.parametrize(
    ("pad", "response", "read"),
    [
        (0, "4<eos><pad><pad>", "4<eos>"),
        (0, "4<pad>", "4"),
        (EOS, "4<eos>", "4"),
        (EOS, "4<eos><pad>", "4<eos><pad>"),
        (None, "4<pad>", "4<pad>"),
    ],
)
async def test_a_classifier_s_score_is_that_of_its_last_token_that_is_no_padding(
    folders, tmp_path, pad, response, read
):
    """The token at which transformers' classifiers read it; an engine reads it at the last one of all."""
    folder = shutil.copytree(folders / "classifier", tmp_path / "classifier")
    described = json.loads((folder / "config.json").read_text()) | {"pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(described))
    engine = Engine(lambda text, request: ([0], "stop"), logit=0.25)
    settings = config(tmp_path, "classifier", template="R {response}")
    await scored(RewardConfig(models={"rm": settings}), {"rm": engine}, trajectory(response))
    assert engine.texts() == [f"R {read}"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.from_numpy(engine.asked[0][0].tokens.astype(np.int64))
    whole = tiny_tokenizer()(f"R {response}", return_tensors="pt")["input_ids"]
    last = model.score(model.model(tokens[None]).last_hidden_state)[0, -1, 0]
    assert last.item() == pytest.approx(model(whole).logits.item(), abs=1e-5)


async def test_what_a_classifier_cannot_score_fails_alone(folders):
    engine = Engine(lambda text, request: ([0], "stop"), logit=1.0)
    reward = RewardConfig(models={"rm": config(folders, "classifier", context_length=40)})
    long, short = await scored(reward, {"rm": engine}, trajectory("x" * 40), trajectory("4"))
    # "user: " + "2+2=" + "\nassistant: " + 40 + "\n" = 6 + 4 + 12 + 40 + 1
    assert (long.status, long.detail) == ("failed", "rm: 63 tokens to read leave no room in its context of 40")
    assert short.value == 1.0
    engine.logit = math.nan
    (score,) = await scored(reward, {"rm": engine}, trajectory("4"))
    assert (score.status, score.detail) == ("failed", "rm: its logit is nan")
    (score,) = await scored(reward, {"rm": Engine(lambda *_: ([], "aborted"))}, trajectory("4"))
    assert score.status == "failed"


async def test_rules_and_judges_of_both_kinds_add_up(folders):
    models = {
        "j": config(folders, weight=0.5),
        "rm": config(folders, "classifier", weight=0.1),
    }
    engines = {"j": says("<correct>"), "rm": Engine(lambda *_: ([0], "stop"), logit=2.0)}
    good, bad = await scored(
        RewardConfig(function="exact_match", models=models), engines, trajectory("4"), trajectory("5")
    )
    # 1 + 0.5 x 1 + 0.1 x 2, and without the rule's 1
    assert (good.value, bad.value) == (pytest.approx(1.7), pytest.approx(0.7))


# --- before a run ----------------------------------------------------------------------------------------------------

PROBE = Item("2+2=", "", "4", {})


def test_served_judges_are_looked_at_without_an_engine(folders):
    check_rewards(RewardConfig(models={"j": config(folders), "rm": config(folders, "classifier")}), PROBE)


def refused(probe: Item = PROBE, **models: JudgeConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_rewards(RewardConfig(models=models), probe)
    (line,) = str(caught.value).splitlines()
    return line


def test_what_is_wrong_with_a_served_judge_is_said_before_a_run(folders, tmp_path):
    assert refused(j=config(folders, parser="numbr")).startswith("reward.models.j.parser=numbr is not known")
    said = "reward.models.j.template names {answer}, but the first row has none; set data.answer_key"
    assert refused(PROBE._replace(answer=None), j=config(folders, template="{response}{answer}")) == said
    assert refused(PROBE._replace(prompt="x" * 600), j=config(folders)) == (
        "reward.models.j cannot read the first row: 618 tokens to read leave no room in its context of 512"
    )
    save_tiny(tmp_path / "bare", labels=1)
    (tmp_path / "bare/chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((tmp_path / "bare/tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "bare/tokenizer_config.json").write_text(json.dumps(settings))
    bare = config(folders, "classifier", path=str(tmp_path / "bare"))
    said = f"reward.models.rm.template is not set, and reward.models.rm.path={tmp_path}/bare has no chat template"
    assert refused(rm=bare) == said
    check_rewards(RewardConfig(models={"rm": bare.model_copy(update={"template": "{response}"})}), PROBE)
    model = json.loads((tmp_path / "bare/config.json").read_text())
    (tmp_path / "bare/config.json").write_text(json.dumps(model | {"architectures": ["NobodysForCausalLM"]}))
    odd = config(folders, path=str(tmp_path / "bare"))
    (tmp_path / "bare/tokenizer.json").unlink()
    assert "its tokenizer cannot be loaded" in refused(j=odd) or "no fast tokenizer" in refused(j=odd)


REMOTE = {"url": "http://x/v1", "model": "m", "template": "{response}", "parser": "number"}


def mistakes(name: str = "j", **settings: Any) -> list[str]:
    return [line.removeprefix("reward.models.") for line in judge_mistakes(name, JudgeConfig(**settings))]


def test_rules_of_where_a_judge_is(folders):
    judge = config(folders).model_dump(exclude_defaults=True)
    assert mistakes(**judge) == mistakes(**REMOTE) == []
    words = {"template": "{response}", "parser": "number"}
    assert mistakes(**words) == ["j.path and reward.models.j.url are not set; set one of them"]
    assert mistakes(**judge, url="http://x") == ["j.path and reward.models.j.url are both set; set one of them"]
    assert mistakes(**words, url="http://x") == [
        "j.model is not set; give the judge's name at reward.models.j.url=http://x"
    ]
    for name in ("policy", "trainer", "rank"):
        assert mistakes(name, **REMOTE) == [
            f"{name}: {name} is the name of another part of a run; give the judge another"
        ]
    for setting, value in {"kind": "classifier", "context_length": 64, "engine_args": {"a": 1}}.items():
        first, *_ = mistakes(**(REMOTE | {setting: value}))
        assert first == f"j.{setting}={value} has no meaning with reward.models.j.url; unset it"
    for setting, value in {"model": "m", "key_env": "PATH", "concurrency": 3, "timeout": 1.0}.items():
        assert mistakes(**judge, **{setting: value}) == [
            f"j.{setting}={value} has no meaning with reward.models.j.path; unset it"
        ]
    assert mistakes(path=judge["path"], max_tokens=16) == [
        "j.template is not set; write what the judge is asked, with {response} where the response goes",
        "j.parser is not set; say how its answer becomes a number, such as number or verdict:yes=1,no=0",
    ]


def test_rules_of_a_judges_folder(folders, tmp_path):
    judge = config(folders).model_dump(exclude_defaults=True)
    assert judge_context("j", JudgeConfig(**judge)) == CONTEXT
    assert mistakes(**(judge | {"path": f"{tmp_path}/gone"})) == [
        f"j.path={tmp_path}/gone: no such folder; name a Hugging Face model folder"
    ]
    assert mistakes(**judge, context_length=600) == [
        "j.context_length=600 is over the model's max_position_embeddings=512; use at most 512"
    ]
    assert mistakes(**judge, context_length=16) == [
        "j.max_tokens=16 leaves no room to read in its context of 16 tokens; lower it"
    ]
    (folder := tmp_path / "half").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(folders / "judge" / name)
    assert mistakes(**(judge | {"path": str(folder)})) == [f"j.path={folder}: it has no readable tokenizer.json"]


def test_rules_of_a_classifier(folders, tmp_path):
    path = str(folders / "classifier")
    assert mistakes(path=path, kind="classifier") == []
    assert mistakes(path=path, kind="classifier", template="{response}") == []
    for setting, value in {"parser": "number", "judgements": 3, "temperature": 0.5, "max_tokens": 9}.items():
        assert mistakes(path=path, kind="classifier", **{setting: value}) == [
            f"j.{setting}={value} has no meaning with reward.models.j.kind=classifier; unset it"
        ]
    judge = config(folders).model_dump(exclude_defaults=True)
    assert mistakes(**(judge | {"path": path})) == [
        f"j.path={path}: architecture LlamaForSequenceClassification is no generative judge; set its kind to classifier"
    ]
    assert mistakes(path=str(folders / "judge"), kind="classifier") == [
        f"j.path={folders}/judge: architecture Qwen3ForCausalLM is no classifier judge; set its kind to generative"
    ]
    save_tiny(tmp_path, "llama", labels=3)
    assert mistakes(path=str(tmp_path), kind="classifier") == [
        f"j.path={tmp_path}: its head has 3 labels; a reward model has one, whose logit is the reward"
    ]
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["T5Model"]}))
    assert mistakes(path=str(tmp_path), kind="classifier") == [
        f"j.path={tmp_path}: architecture T5Model is no classifier judge; "
        "a classifier judge's name ends in ForSequenceClassification"
    ]
