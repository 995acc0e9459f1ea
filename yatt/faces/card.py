"""The card of an exported model: what it is, the command and the settings it comes from, and its curves as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yatt import __version__
from yatt.config import yaml_core
from yatt.config.hub import of_cache
from yatt.config.paths import absolute
from yatt.config.schema import Config
from yatt.config.secrets import masked
from yatt.faces.chart import decimals, percent
from yatt.faces.command import command
from yatt.faces.rundir import RunDirectory

CARD = "README.md"
ROWS = 10
"""Steps that the table shows, the first and the last among them."""
COLUMNS = {
    "reward": "reward_mean",
    "accuracy, greedy": "accuracy_greedy",
    "accuracy, sampled": "accuracy_sampled",
    "pairs in order": "pair_accuracy",
    "pairs in order, held-out": "held_out_pair_accuracy",
    "loss": "loss",
    "loss, held-out": "held_out_loss",
    "response tokens": "response_length_mean",
    "KL": "kl",
}
SHARES = ("accuracy_greedy", "accuracy_sampled", "pair_accuracy", "held_out_pair_accuracy")


def record_command(run: RunDirectory) -> None:
    """Add the command line that this process was started with to the run's folder, its secrets masked; nothing where a
    program of the user's has started the run."""
    if Path(sys.argv[0]).name not in ("yatt", "__main__.py") or sys.argv[1:2] != ["train"]:
        return
    with open(run.commands, "a", encoding="utf-8") as out:
        out.write(command(*map(_told, sys.argv[1:])) + "\n")


def _told(word: str) -> str:
    """A word of a command line with `***` in place of a secret."""
    key, equals, text = word.partition("=")
    if not equals:
        return word
    try:
        value = yaml_core.read(text)
    except ValueError:
        value = text
    *sections, last = key.split(".")
    nested: Any = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    hidden = masked(nested)
    if hidden == nested:
        return word
    for part in key.split("."):
        hidden = hidden[part]
    return f"{key}={yaml_core.inline(hidden)}"


def write_card(folder: Path, config: Config, run: Path, step: int) -> None:
    """Write the card of the model in `folder`, which is the run's after `step`."""
    directory = RunDirectory(run)
    rows = [row for row in directory.read_metrics() if row["step"] <= step]
    commands = directory.commands.read_text(encoding="utf-8").splitlines() if directory.commands.is_file() else []
    settings = yaml_core.write(masked(absolute(config.model_dump(mode="json"))))
    start = of_cache(config.model.path)
    head = {"library_name": "transformers", "tags": ["yatt", config.algorithm.name]}
    head |= {"base_model": start.name} if start else {}
    origin = f"[{start.name}]({start.name}), at commit {start.revision}" if start else f"`{config.model.path}`"
    command_line = commands or ["yatt train config.yaml    # the settings below"]
    parts = [
        f"---\n{yaml_core.write(head)}---",
        f"# {config.run.name}",
        f"{origin}, trained by `{config.algorithm.name}` with YATT {__version__}: step {step} of {config.train.steps}, "
        f"seed {config.run.seed}.",
        "## Command\n\n" + "\n".join(f"    {line}" for line in command_line),
        "## Curves\n\n" + (table(rows) or "No step is on record."),
        f"## Settings\n\n<details><summary>config.yaml</summary>\n\n```yaml\n{settings}```\n\n</details>",
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of what the steps measured, thinned; evaluations are kept where there is room. Nothing without rows."""
    columns = {name: key for name, key in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    if not columns:
        return ""
    lines = [f"| step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in thinned(rows):
        shown = [_shown(key, row.get(key)) for key in columns.values()]
        lines.append(f"| {row['step']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def thinned(rows: Sequence[Mapping[str, Any]], most: int = ROWS) -> list[Mapping[str, Any]]:
    """At most so many rows, evenly spread, of those with an evaluation if they are enough for a curve."""
    measured = [row for row in rows if row.get("evaluation")]
    told = measured if len(measured) > 2 or len(rows) <= len(measured) else list(rows)
    if len(told) <= most:
        return list(told)
    return [told[round(i * (len(told) - 1) / (most - 1))] for i in range(most)]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    return percent(value) if key in SHARES else f"{value:.1f}" if key == "response_length_mean" else decimals(value)
