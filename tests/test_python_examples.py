"""YATT from Python, for real: the notebook, which makes its rows and its reward, and the same run by the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from real_runs import QUICKSTART, ROOT, rows, yatt
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

REWARD = """
DIGITS = set("0123456789")
def reward(response, answer):
    share = sum(character in DIGITS for character in response) / max(1, len(response))
    return {"reward": share, "right": float(response.strip() == answer)}
"""
MEASURED = ("time", "seconds", "phases", "tokens_per_s", "overhead", "memory")
"""Parts of names of columns that depend on the clock."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, with the quickstart's model where the notebook looks for it."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples" / "python", folder / "python")
    work = folder / "quickstart" / "work"
    subprocess.run([sys.executable, QUICKSTART / "prepare.py", "--out", work], check=True, timeout=600)
    return folder / "python"


@pytest.fixture(scope="module")
def notebook(place: Path) -> nbformat.NotebookNode:
    """The notebook, executed by a kernel of its own: under a running event loop."""
    book = nbformat.read(place / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(place)}}).execute()
    return book


def outputs(book: nbformat.NotebookNode) -> list[Any]:
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_shows_what_it_says(notebook: nbformat.NotebookNode) -> None:
    shown = outputs(notebook)
    assert all(output.output_type != "error" for output in shown)
    texts = ["".join(output.get("text") or output.data.get("text/plain", "")) for output in shown]
    whole = "\n".join(texts)
    assert "Run('" in whole and "step 4 of 4" in whole
    assert "unknown setting learning_rte; did you mean learning_rate, which is train.optimizer" in whole
    assert any("text/html" in output.get("data", {}) for output in shown)
    assert len(whole) < 20_000 and "Plot(count=2)" in texts  # no page of a plot as text


def test_the_command_does_the_same_bit_for_bit(notebook: nbformat.NotebookNode, place: Path) -> None:
    """The same rows, reward and seed from files, without a config: every number that is no time, and the weights to
    the last bit."""
    given = place / "runs" / "notebook" / "given"
    shutil.copy(given / "data.path.given.jsonl", place / "train.jsonl")
    (place / "reward.py").write_text(REWARD)
    words = ["model.path=../quickstart/work/model", "data.path=train.jsonl", "reward.function=reward.py:reward"]
    words += ["train.steps=4", "train.optimizer.learning_rate=3e-3", "rollout.max_tokens=16", "run.name=command"]
    said = yatt(place, "train", *words)
    assert "chosen, by the model, the data and this machine" in said.stderr
    for mine, theirs in zip(rows(place, "notebook"), rows(place, "command"), strict=True):
        assert steady(mine) == steady(theirs)
    files = [weights(place / "runs" / name) for name in ("notebook", "command")]
    assert files[0].keys() == files[1].keys() != set()
    assert all(files[0][name].tobytes() == files[1][name].tobytes() for name in files[0])


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock says. Means and deviations are summed up as responses end, so that the order of equal steps
    may show in their last digits."""
    return {name: _digits(value) for name, value in row.items() if not any(part in name for part in MEASURED)}


def _digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _digits(inner) for name, inner in value.items()}
    return float(f"{value:.12g}") if isinstance(value, float) else value


def weights(run: Path) -> dict[str, Any]:
    """All tensors of the last checkpoint, by file."""
    folder = run / "checkpoints" / "step-4" / "trainer"
    return {f"{file.name} {name}": t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_the_folder_goes_on_without_the_notebook(notebook: nbformat.NotebookNode, place: Path) -> None:
    """Another process, which knows nothing of the kernel, has the reward and the rows from the run's folder."""
    config = place / "runs" / "notebook" / "config.yaml"
    source = (config.parent / "given" / "reward.function.given.py").read_text()
    assert "closes over: DIGITS" in source and "def reward(response: str, answer: str)" in source
    yatt(place, "train", str(config), "resume=auto", "train.steps=5")
    last = rows(place, "notebook")[-1]
    assert last["step"] == 5 and set(last["parts"]) == {"reward", "right"}
