"""Jobs for clusters: what is written is valid, what it asks for follows from the config, and Slurm's script works.

The schemas are of the fields that are used, after Kubernetes' and KubeRay's API references (ray.io/v1, RayJob) and
SkyPilot's YAML reference.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time

import jsonschema
import pytest
import yaml
from pages import ROOT
from typer.testing import CliRunner

from yatt.cli import app
from yatt.errors import ConfigError

CONFIG = "model: {path: m}\nrun: {name: Big_run.1}\ntrain: {steps: 10, batch_size: 64}\ncluster: {slots: 16}\n"
WORDS = ["train.optimizer.learning_rate=1e-5", "rollout.stop=['it''s', \"a $b\"]"]
COUNT = {"type": "integer", "minimum": 0}


def strict(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(properties)}


def each(items):
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
AMOUNTS = {
    "type": "object",
    "required": ["cpu", "memory"],
    "additionalProperties": False,
    "properties": {
        "cpu": {"type": "string", "pattern": r"^\d+$"},
        "memory": {"type": "string", "pattern": r"^\d+Gi$"},
        "nvidia.com/gpu": {"type": "string", "pattern": r"^\d+$"},
    },
}
CONTAINER = strict(
    name={"enum": ["ray-head", "ray-worker"]},
    image=TEXT,
    workingDir={"const": "/shared"},
    resources=strict(limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=each(strict(name=TEXT, mountPath={"type": "string", "pattern": "^/"})),
    lifecycle=strict(preStop=strict(exec=strict(command=each(TEXT)))),
    env=each(strict(name={"type": "string", "pattern": "^[A-Z_]+$"}, value={"type": "string"})),
)
CONTAINER["required"] = ["name", "image", "workingDir", "resources", "volumeMounts"]
VOLUME = strict(
    name=TEXT,
    persistentVolumeClaim=strict(claimName=TEXT),
    emptyDir=strict(medium={"const": "Memory"}, sizeLimit={"type": "string", "pattern": r"^\d+Gi$"}),
) | {"required": ["name"]}
POD = strict(containers=each(CONTAINER), volumes=each(VOLUME), terminationGracePeriodSeconds=COUNT)
START = {"type": "object", "additionalProperties": {"type": "string"}}  # KubeRay takes texts alone
GROUP = strict(
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=START,
    template=strict(spec=POD),
)
RAY_CLUSTER = strict(
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=strict(mode={"const": "token"}),
    headGroupSpec=strict(rayStartParams=START, template=strict(spec=POD)),
    workerGroupSpecs=each(GROUP),
) | {"required": ["rayVersion", "authOptions", "headGroupSpec"]}
RAY_JOB = strict(
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=strict(name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
    spec=strict(
        entrypoint=TEXT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"const": True},
        rayClusterSpec=RAY_CLUSTER,
    ),
)
SKY = strict(
    name=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    resources=strict(
        accelerators={"type": "string", "pattern": r"^[A-Z0-9-]+:\d+$"},
        cpus={"type": "string", "pattern": r"^\d+\+$"},
        memory={"type": "string", "pattern": r"^\d+\+$"},
    )
    | {"required": ["cpus", "memory"]},
    workdir={"const": "."},
    envs={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    setup=TEXT,
    run=TEXT,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(*words):
    done = CliRunner().invoke(app, ["launch", "c.yaml", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def written(place, ending, *words):
    status, _ = launch("--dry-run", *words)
    assert status == 0
    return (place / "launch" / f"Big_run.1.{ending}").read_text()


def checked_shell(text, file):
    file.write_text(text)
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", file], check=True)


def directives(script):
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", script, re.M))


def test_a_script_for_slurm(place):
    script = written(place, "sbatch", *WORDS, "--slurm", "--hours", "1.5", "--grace", "300")
    checked_shell(script, place / "x.sh")
    said = directives(script)
    assert said["nodes"] == "2" and said["gpus-per-node"] == "8" and said["cpus-per-task"] == "128"
    assert (said["time"], said["signal"], said["requeue"]) == ("01:30:00", "B:TERM@300", "")
    assert "ray start --head --block" in script and "--num-gpus=8 --num-cpus=128" in script
    assert "RAY_AUTH_MODE=token" in script and "resume=auto" in script


def test_slots_of_cores(place):
    script = written(place, "sbatch", "cluster.device=cpu", "cluster.slots=2", "--slurm")
    assert "gpus-per-node" not in directives(script) and "--num-gpus=0 --num-cpus=8" in script
    job = yaml.safe_load(written(place, "kuberay.yaml", "cluster.device=cpu", "--kuberay"))
    assert "nvidia.com/gpu" not in str(job)
    jsonschema.validate(job, RAY_JOB)
    task = yaml.safe_load(written(place, "sky.yaml", "cluster.device=cpu", "--skypilot"))
    assert "accelerators" not in task["resources"]


def test_a_job_for_kuberay(place):
    job = yaml.safe_load(written(place, "kuberay.yaml", *WORDS, "--kuberay", "--per-node", "4", "--volume", "mine"))
    jsonschema.validate(job, RAY_JOB)
    spec = job["spec"]["rayClusterSpec"]
    assert job["metadata"]["name"] == "big-run-1" and spec["workerGroupSpecs"][0]["replicas"] == 3
    pods = [spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"][0]["template"]["spec"]]
    for pod in pods:
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "mine"
        assert pod["terminationGracePeriodSeconds"] == 600
    checked_shell(pods[0]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2], place / "stop.sh")
    assert spec["rayVersion"] == re.search(r"^ray==(.*)$", (ROOT / "requirements.lock").read_text(), re.M)[1]
    one = yaml.safe_load(written(place, "kuberay.yaml", "--kuberay", "cluster.slots=4"))
    assert "workerGroupSpecs" not in one["spec"]["rayClusterSpec"]


def test_a_task_for_skypilot(place):
    task = yaml.safe_load(written(place, "sky.yaml", *WORDS, "plan.device=H200", "--skypilot"))
    jsonschema.validate(task, SKY)
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H200:8")
    checked_shell(task["run"], place / "run.sh")


def test_words_reach_the_command_as_they_are(place):
    """A shell that reads the line has the words that were given."""
    for ending, kind in (("sbatch", "slurm"), ("kuberay.yaml", "kuberay"), ("sky.yaml", "skypilot")):
        text = written(place, ending, *WORDS, f"--{kind}")
        text = yaml.safe_load(text)["spec"]["entrypoint"] if kind == "kuberay" else text
        (line,) = re.findall(r"yatt train .*(?= cluster\.address)", text)
        said = subprocess.run(["bash", "-c", f'printf "%s\\n" {line}'], capture_output=True, text=True, check=True)
        assert said.stdout.splitlines() == ["yatt", "train", "c.yaml", *WORDS, "resume=auto"]


def test_a_resume_that_is_given_stays(place):
    assert "resume=auto" not in written(place, "sbatch", "--slurm", "resume=never")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "yatt launch takes one of --slurm, --kuberay, --skypilot; give one of them"),
        (["--dry-run", "--slurm", "--kuberay"], "takes one of"),
        (["--slurm", "cluster.slots=null"], "cluster.slots is not set; say how many devices"),
        (["--slurm", "cluster.slots=12"], "--per-node=8 does not divide cluster.slots=12; use 6, or other slots"),
        (["--slurm", "cluster.address=auto"], "cluster.address=auto: the job starts a cluster of its own; unset it"),
        (["--slurm", "train.tp=3"], "cluster.slots=16 is not a multiple of train.tp x train.pp=3"),
        (["--slurm", "cluster.slot=8"], "unknown setting cluster.slot; did you mean cluster.slots?"),
        (["--slurm"], "--slurm: there is no sbatch here; add --dry-run"),
        (["--skypilot"], "--skypilot: there is no sky here; add --dry-run"),
    ],
)
def test_what_is_refused_writes_nothing(place, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=re.escape(said)):
        launch(*words)
    assert not (place / "launch").exists()


def stand_ins(folder, **programs):
    """Programs of these names on the PATH, each a script that first notes how it was called."""
    for name, body in programs.items():
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
        (folder / name).chmod(0o755)
    return folder / "calls"


def test_it_is_submitted_where_that_can_be(place, monkeypatch):
    (place / "bin").mkdir()
    calls = stand_ins(place / "bin", sbatch="exit 3", sky="test ${#RAY_AUTH_TOKEN} -eq 64")
    monkeypatch.setenv("PATH", f"{place}/bin:/usr/bin:/bin")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert launch("--slurm")[0] == 3
    assert launch("--skypilot")[0] == 0
    assert calls.read_text().splitlines() == [
        "sbatch launch/Big_run.1.sbatch",
        "sky launch --env RAY_AUTH_TOKEN launch/Big_run.1.sky.yaml",
    ]


TRAIN = """
echo "token $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> FOLDER/calls
trap 'echo saved >> FOLDER/calls; sleep 0.3; exit 130' TERM
touch FOLDER/up
for _ in $(seq 100); do sleep 0.1; done
exit 7
"""


@pytest.mark.parametrize("told", [True, False])
def test_the_script_of_slurm_starts_ray_and_is_queued_again_once_it_has_saved(place, told):
    script = written(place, "sbatch", *WORDS, "--slurm")
    folder = place / "bin"
    folder.mkdir()
    train = TRAIN if told else "exit 7"
    calls = stand_ins(
        folder,
        scontrol='[ "$1" = show ] && printf "node1\\nnode2\\n"; exit 0',
        srun='while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        hostname="echo 10.0.0.1 10.0.0.2",
        ray="exec sleep 60",
        python='if [ "$1" = -c ]; then printf "%064d" 0; else cat > /dev/null; fi',
        sleep='[ "$1" = 10 ] || exec /bin/sleep "$@"',
        yatt=train.replace("FOLDER", str(folder)),
    )
    # The stand-ins come before what the script puts on the PATH.
    script = re.sub(r"^export PATH=.*$", f"export PATH={folder}:/usr/bin:/bin", script, flags=re.M)
    (place / "job.sh").write_text(script)
    env = os.environ | {"SLURM_JOB_ID": "20017", "SLURM_JOB_NODELIST": "node[1-2]"}
    job = subprocess.Popen(["bash", place / "job.sh"], env=env, cwd=place)
    try:
        deadline = time.monotonic() + 60
        while told and not (folder / "up").exists():
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        if told:
            job.send_signal(signal.SIGTERM)
        status = job.wait(timeout=60)
    finally:
        job.kill()
    said = calls.read_text().splitlines()
    assert status == (130 if told else 7)
    assert "ray start --head --block --node-ip-address=10.0.0.1 --port=20017 " in "\n".join(said)
    assert [line for line in said if line.startswith("ray start --block --address=10.0.0.1:20017 ")]
    assert f"yatt train c.yaml {' '.join(WORDS)} resume=auto cluster.address=10.0.0.1:20017" in said
    assert ("scontrol requeue 20017" in said) == told and ("saved" in said) == told
    assert not told or "token token 64" in said


def test_the_image_is_built_from_the_lock():
    """Parsed only: nothing here builds it."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= {
        *("FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "STOPSIGNAL", "ENTRYPOINT", "CMD")
    }
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert sorted(copied) == sorted(let_in) and all((ROOT / name).exists() for name in copied)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert all(name in targets for name in re.findall(r"\bmake ([a-z]\w+) TORCH", text))
    for line in lines:
        if line.startswith("RUN"):
            subprocess.run(["bash", "-n", "-c", line.removeprefix("RUN ")], check=True)
