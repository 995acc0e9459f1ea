"""Models named on the Hub: which text is a name, what is fetched and pinned, what each refusal says; and publishing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hub_double import Hub
from pages import ROOT
from typer.testing import CliRunner

from yatt.cli import app
from yatt.config.hub import as_written, hub_model, models, of_cache, placed, revision_mistakes
from yatt.config.load import load_config, save_config
from yatt.config.paths import PATHS
from yatt.errors import BackendError, ConfigError
from yatt.faces.hub import check_push, fetched, push

NEEDED = ["train.steps=1", "train.batch_size=1"]
SHA = "0123456789abcdef0123456789abcdef01234567"
CACHED = f"/cache/models--Qwen--Qwen3-0.6B/snapshots/{SHA}"


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B", "a/b.c_d@v1.0", f"a/b@{SHA}", "a/b@refs/pr/1"])
def test_a_name(text):
    assert str(as_written(text)) == text


@pytest.mark.parametrize("text", ["model", "./a/b", "/a/b", "a/b/c", "../a/b", "-a/b", "a/", "~/b", "a b/c", ".a/b"])
def test_no_name(text):
    assert as_written(text) is None and hub_model(text) is None


def test_a_name_stays_in_a_file_and_a_folder_is_taken_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "at" / "models").mkdir(parents=True)
    text = "model: {path: %s}\ntrain: {steps: 1, batch_size: 1}\n"
    for path, taken in {
        "Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-0.6B@main": "Qwen/Qwen3-0.6B@main",
        "models/none": "at/models/none",  # there is such a folder: a mistake in a path
        "./Qwen/none": "at/Qwen/none",
        "Qwen/a/b": "at/Qwen/a/b",
    }.items():
        (tmp_path / "at" / "c.yaml").write_text(text % path)
        assert load_config("at/c.yaml", []).model.path == taken


def test_every_setting_of_a_model_may_name_one():
    words = [
        "model.path=a/p",
        "model.reference=a/r",
        "model.teacher=a/t",
        "critic.path=a/c",
        "reward.models.j.path=a/j",
    ]
    named = models(load_config(None, [*NEEDED, *words]))
    assert {".".join(place) for place in named} == {
        name.replace("NAME", "j") for name, form in PATHS.items() if form == "model"
    }
    assert [str(one) for one in named.values()] == [f"a/{one}" for one in "prtcj"]


def test_folders_take_the_place_of_names_and_the_commit_is_kept(tmp_path):
    config = load_config(None, [*NEEDED, "model.path=Qwen/Qwen3-0.6B", "reward.models.j.path=a/j"])
    found = placed(config, {("model", "path"): CACHED, ("reward", "models", "j", "path"): "/j"})
    assert (found.model.path, found.model.revision, found.reward.models["j"].path) == (CACHED, SHA, "/j")
    assert config.model.revision is None and not list(revision_mistakes(found))
    assert of_cache(CACHED) == hub_model(CACHED) == ("Qwen/Qwen3-0.6B", SHA)  # fetched anew where the cache is gone


def test_a_revision_of_a_folder_is_refused(tmp_path):
    for words, said in (
        ([f"model.path={tmp_path}", "model.revision=v1"], f"and model.path={tmp_path} is a folder; unset it"),
        (["model.path=a/b@v2", "model.revision=v1"], "name two revisions; keep one of them"),
        ([f"model.path={CACHED}", "model.revision=v1"], "name two revisions; keep one of them"),
    ):
        (line,) = revision_mistakes(load_config(None, [*NEEDED, *words]))
        assert line.startswith("model.revision=v1") and line.endswith(said)


def test_a_run_that_goes_on_keeps_its_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("yatt.faces.hub.fetch", lambda model, setting, *, weights: asked.append(str(model)) or CACHED)
    words = [*NEEDED, "model.path=Qwen/Qwen3-0.6B", "resume=auto"]
    fetched(load_config(None, words))
    (tmp_path / "runs" / "run").mkdir(parents=True)
    begun = load_config(None, [*NEEDED, f"model.path={CACHED}", f"model.revision={SHA}"])
    save_config(begun, tmp_path / "runs" / "run" / "config.yaml")
    for more in ([], ["resume=never"], ["model.revision=v2"], ["model.path=Qwen/Other"], ["run.name=new"]):
        fetched(load_config(None, [*words, *more]))
    kept, *others = asked[1:]
    assert (asked[0], kept) == ("Qwen/Qwen3-0.6B", f"Qwen/Qwen3-0.6B@{SHA}")
    assert others == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@v2", "Qwen/Other", "Qwen/Qwen3-0.6B"]


SCRIPT = """
import json, sys
from yatt.config.load import load_config
from yatt.errors import ConfigError
from yatt.faces.hub import fetched
for words in json.loads(sys.argv[1]):
    try:
        config = fetched(load_config(None, ["train.steps=1", "train.batch_size=1", *words]))
        print(json.dumps([config.model.path, config.model.revision]))
    except ConfigError as error:
        print(json.dumps(str(error)))
"""


def asked(cases, home, endpoint, **env_of):
    """What `fetched` makes of each case, in a process whose cache is `home`."""
    env = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    env |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"} | env_of
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_models_are_fetched_pinned_and_kept(tmp_path):
    hub = Hub()
    first = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}
    old = hub.add("org/tiny", "v1", first | {"config.json": b"[]"})
    new = hub.add("org/tiny", "main", first | {"original/consolidated.pth": b"x", "consolidated.safetensors": b"x"})
    hub.add("org/closed", "main", first)
    hub.gated.add("org/closed")
    cases = [
        ["model.path=org/tiny"],
        ["model.path=org/tiny", "model.revision=v1"],
        ["model.path=org/tiny@v1"],
        ["model.path=org/tiny", "model.revision=v9"],
        ["model.path=org/none"],
        ["model.path=org/closed"],
        ["model.path=a..b/c"],
    ]
    with hub.served() as endpoint:
        (newest, tagged, written, unknown, none, closed, no_name), said = asked(cases, tmp_path, endpoint)
        before = len(hub.asked)
        gone = f"{tmp_path}/other/models--org--tiny/snapshots/{old}"
        (again, elsewhere), _ = asked([["model.path=org/tiny@" + new], [f"model.path={gone}"]], tmp_path, endpoint)
        assert not [path for path in hub.asked[before:] if "resolve" in path], "what is cached is not fetched again"
    assert newest[1] == new and newest[0].endswith(f"/models--org--tiny/snapshots/{new}")
    assert sorted(os.listdir(newest[0])) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert tagged == written == elsewhere and tagged[1] == old and again == newest
    assert f"model.path=org/tiny: {new}, in {newest[0]}" in said
    assert unknown == "model.revision=v9: org/tiny has no such branch, tag or commit; leave it out for the newest"
    assert none.startswith("model.path=org/none: no such folder, and the Hub has no such model") and "hf auth" in none
    assert closed == (
        f"model.path=org/closed: the Hub gives it to those who agreed at {endpoint}/org/closed; then `hf auth login`"
    )
    assert no_name.startswith("model.path=a..b/c: no such folder, and no name on the Hub: ")
    # Without the Hub: what is in the cache is there.
    cases = [["model.path=org/tiny"], ["model.path=org/other"]]
    (cached, unreachable), _ = asked(cases, tmp_path, endpoint)
    assert cached == newest
    assert unreachable.startswith("model.path=org/other: no such folder, and the Hub cannot be reached (")
    by_hand = "`hf download org/other --local-dir other` where there is a network and name the folder"
    assert unreachable.endswith(by_hand)
    (cached, offline), _ = asked(cases, tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert cached == newest
    assert offline == (
        f"model.path=org/other: no such folder, and HF_HUB_OFFLINE keeps the Hub out; unset it, or {by_hand}"
    )


class Api:
    """Takes what is published; fails with `error` where there is one."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append((name, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.error:
            raise self.error
        self.calls.append((repo_id, folder_path))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_a_folder_is_published_for_its_owner_unless_public(tmp_path):
    api = Api()
    assert push(tmp_path, "me/m", api=api) == "https://hub/me/m/commit/1"
    assert api.calls == [("me/m", True, True), ("me/m", str(tmp_path))]
    push(tmp_path, "me/m", public=True, api=api)
    assert api.calls[2] == ("me/m", False, True)


def test_what_is_not_taken_says_how_to_go_on(tmp_path):
    refused = OSError("401 Client Error: Unauthorized\nmore")
    refused.response = SimpleNamespace(status_code=401)
    with pytest.raises(BackendError) as caught:
        push(tmp_path, "me/m", api=Api(refused))
    assert str(caught.value) == (
        "--push=me/m: the Hub did not take it (401 Client Error: Unauthorized); `hf auth login`, then "
        f"`hf upload me/m {tmp_path}`"
    )
    with pytest.raises(BackendError, match=r"did not take it \(timed out\); `hf upload"):
        push(tmp_path, "me/m", api=Api(TimeoutError("timed out")))


def test_a_name_is_checked_before_anything_is_written(monkeypatch):
    for name in ("m", "a/b/c", "me/m@v1", "/a/b"):
        with pytest.raises(ConfigError, match=f"--push={name} is no name on the Hub; write ORG/NAME"):
            check_push(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE keeps the Hub out; unset it"):
        check_push("me/m")


@pytest.mark.parametrize(
    "words",
    [["plan", "c.yaml"], ["train", "c.yaml"], ["init", "new", "--model", "org/none"]],
    ids=lambda words: words[0],
)
def test_every_command_says_in_one_line_what_to_do_without_a_network(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "c.yaml").write_text("model: {path: org/none}\ntrain: {steps: 1, batch_size: 1}\n")
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError) and len(str(done.exception).splitlines()) == 1
    setting = "--model" if words[0] == "init" else "model.path"
    assert str(done.exception).startswith(f"{setting}=org/none: no such folder, and HF_HUB_OFFLINE keeps the Hub out;")
    assert "`hf download org/none --local-dir none`" in str(done.exception) and not (tmp_path / "new").exists()
