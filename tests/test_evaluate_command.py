"""What `yatt eval` evaluates on, and the tables it prints."""

import io
import re

import pytest
import yaml
from rich.console import Console

from yatt.config.load import load_config
from yatt.errors import ConfigError
from yatt.faces.evaluate import settings, show
from yatt.reports import EvaluationReport, SourceReport

WORDS = ["model.path=m", "train.steps=1", "train.batch_size=2"]


def printed(report, *words):
    """The rows of all tables, cells stripped."""
    console = Console(file=io.StringIO(), width=120)
    show(
        report,
        "runs/a/checkpoints/step-4",
        load_config(None, [*WORDS, "evaluate.path=held-out.jsonl", *words]),
        console,
    )
    text = console.file.getvalue()
    return text, [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if "│" in line]


def test_accuracies_are_printed_with_their_intervals_and_by_source():
    web = SourceReport(
        prompts=1200, accuracy_greedy=0.5, accuracy_sampled=0.25,
        intervals={"accuracy_greedy": (0.25, 0.75), "accuracy_sampled": (0.0, 0.5)},
    )  # fmt: skip
    report = EvaluationReport(
        prompts=1300, accuracy_greedy=0.5, accuracy_sampled=0.25, pass_at_k={1: 0.25, 2: 0.375, 4: 0.5},
        parts_greedy={"worked": 1.0}, failures=3, response_tokens_mean=12.5,
        intervals={"accuracy_greedy": (0.25, 0.75), "accuracy_sampled": (0.125, 0.375), "pass@4": (0.25, 0.75)},
        sources={"web": web, "book": SourceReport(prompts=100, accuracy_greedy=None, accuracy_sampled=None)},
    )  # fmt: skip
    text, rows = printed(report, "evaluate.by=where")
    assert "step-4 on held-out.jsonl, 1,300 prompts" in text and "by where" in text
    assert rows == [
        ["accuracy, greedy", "0.500", "0.250 to 0.750"],
        ["accuracy, mean@4", "0.250", "0.125 to 0.375"],
        ["pass@2", "0.375", ""],
        ["pass@4", "0.500", "0.250 to 0.750"],
        ["worked, greedy", "1.000", ""],
        ["response tokens, mean", "12.500", ""],
        ["failed rewards (excluded)", "3", ""],
        ["web", "1,200", "0.500", "0.250 to 0.750", "0.250", "0.000 to 0.500"],
        ["book", "100", "", "", "", ""],
    ]


def test_what_learnt_from_rows_has_its_loss_and_how_it_orders_pairs():
    report = EvaluationReport(
        prompts=40, accuracy_greedy=None, accuracy_sampled=None, loss=0.5, pair_accuracy=0.75,
        intervals={"pair_accuracy": (0.598, 0.858)},
    )  # fmt: skip
    text, rows = printed(report, "algorithm.name=dpo")
    assert "40 rows" in text
    assert rows == [["loss", "0.500", ""], ["pairs in the right order", "0.750", "0.598 to 0.858"]]


def test_held_out_rows_are_the_runs_own_or_those_named(tmp_path):
    checkpoint = tmp_path / "step-4"
    checkpoint.mkdir()
    (checkpoint / "complete.json").write_text("{}")  # its paths start where the command is given

    def run(algorithm, **evaluate):
        config = {"model": {"path": "m"}, "train": {"steps": 1, "batch_size": 2}, "data": {"path": "train.jsonl"}}
        config |= {"algorithm": {"name": algorithm}, "evaluate": evaluate, "resume": "auto"}
        (checkpoint / "config.yaml").write_text(yaml.safe_dump(config))

    run("grpo", path="held-out.jsonl")
    found = settings(checkpoint, [], 7)
    assert (found.evaluate.path, found.evaluate.samples, found.resume) == ("held-out.jsonl", 7, "never")
    run("dpo", path="held-out.jsonl")
    found = settings(checkpoint, [], 7)
    assert (found.evaluate.path, found.evaluate.samples) == ("held-out.jsonl", 1)  # nothing is sampled
    assert settings(checkpoint, ["data.path=other.jsonl"], 7).evaluate.path == "other.jsonl"
    run("dpo")
    assert settings(checkpoint, ["data.path=other.jsonl"], 7).evaluate.path == "other.jsonl"
    with pytest.raises(
        ConfigError, match=r"step-4: its run has no held-out rows; give data.path=FILE, or evaluate.size"
    ):
        settings(checkpoint, [], 7)


@pytest.mark.parametrize(
    ("algorithm", "word", "said"),
    [
        ("grpo", "data.size=20", "data.size says nothing to an evaluation of this run; give evaluate.size instead"),
        ("grpo", "evaluate.samples=8", "evaluate.samples says nothing to an evaluation of this run; give --samples "),
        (
            "grpo",
            "evaluate={samples: 8}",
            "evaluate.samples says nothing to an evaluation of this run; give --samples ",
        ),
        (
            "grpo",
            "rollout.temperature=0.5",
            "rollout.temperature says nothing to an evaluation of this run; give evalua",
        ),
        ("grpo", "train.batch_size=4", "train.batch_size says nothing to an evaluation of this run; leave it out"),
        (
            "grpo",
            "algorithm.kl.coefficient=0.1",
            "algorithm.kl.coefficient says nothing to an evaluation of this run; ",
        ),
        ("dpo", "rollout.max_tokens=7", "rollout.max_tokens says nothing to an evaluation of this run; leave it out"),
        ("dpo", "algorithm.name=ipo", "algorithm.name says nothing to an evaluation of this run; leave it out"),
        ("grpo", "run.name=other", "run.name says nothing to an evaluation of this run; leave it out"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(tmp_path, algorithm, word, said):
    config = {"model": {"path": "m"}, "train": {"steps": 1, "batch_size": 2}, "algorithm": {"name": algorithm}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"evaluate": {"path": "held-out.jsonl"}}))
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, [word, "cluster.slots=1", "evaluate.size=3", "data.prompt_key=question"], 4)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_settings_that_are_looked_at_are_taken(tmp_path):
    config = {"model": {"path": "m"}, "train": {"steps": 1, "batch_size": 2}, "evaluate": {"path": "held-out.jsonl"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["rollout.max_tokens=7", "reward.models.j={path: j}", "reward={timeout: 3}", "evaluate={by: where}"]
    found = settings(tmp_path, [*words, "rollout.engine_args.max_num_seqs=4", "cluster={slots: 2}"], 4)
    assert (found.rollout.max_tokens, found.reward.timeout, found.evaluate.by, found.cluster.slots) == (
        7,
        3,
        "where",
        2,
    )
    config["algorithm"] = {"name": "dpo"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert settings(tmp_path, ["algorithm.beta=0.5", "train.tp=2"], 4).algorithm.beta == 0.5
