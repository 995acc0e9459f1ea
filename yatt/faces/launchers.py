"""The files by which clusters start a run: a script for Slurm, a RayJob for KubeRay, a task for SkyPilot."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

PORT = 6379
SHARED = "/shared"
"""Where the pods of a RayJob have the volume that they share."""
RAY = "2.60.0"
TEXTS = Environment(
    undefined=StrictUndefined, keep_trailing_newline=True, comment_start_string="{##", comment_end_string="##}"
)
"""Without comments as jinja2 writes them: in a shell `${#nodes[@]}` is a length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run on a cluster: `words` follow `yatt train`, `per_node` are slots of each of `nodes`, `grace` the seconds
    before an end in which it is told to save, `hours` how long it may take at most."""

    name: str
    words: Sequence[str]
    nodes: int
    per_node: int
    cuda: bool
    cores: int
    memory: int
    gpu: str
    hours: float
    grace: int
    folder: str
    programs: str
    image: str
    volume: str

    @property
    def command(self) -> str:
        """The words of `yatt train`, as a shell takes them."""
        return " ".join(map(shlex.quote, self.words))


SLURM = """\
#!/bin/bash
#SBATCH --job-name={{ job.name }}
#SBATCH --nodes={{ job.nodes }}
#SBATCH --ntasks-per-node=1
{% if job.cuda -%}
#SBATCH --gpus-per-node={{ job.per_node }}
{% endif -%}
#SBATCH --cpus-per-task={{ job.cores }}
#SBATCH --time={{ time }}
#SBATCH --signal=B:TERM@{{ job.grace }}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={{ job.name }}-%j.log
# Written by `yatt launch`. Read it, add what your cluster asks for (#SBATCH --partition, --account), then sbatch it.
# {{ job.grace }} s before the time limit this script is told; it has the run save, and is queued again.
set -euo pipefail
cd {{ folder }}
export PATH={{ programs }}:"$PATH"

# A cluster of this job alone: who has not the token is not let in.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
port=$((20000 + SLURM_JOB_ID % 20000))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}'):$port
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \\
  ray start --head --block --node-ip-address="${address%:*}" --port="$port" --include-dashboard=false{{ resources }} &
sleep 10
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --address="$address"{{ resources }} &
done

# All nodes, or an end within ten minutes that names how many came.
python - "$address" "${#nodes[@]}" <<'PYTHON'
{{ wait }}PYTHON

yatt train {{ job.command }} cluster.address="$address" &
run=$!
told=
trap 'trap "" TERM; told=yes; kill -TERM "$run"' TERM
status=0
wait "$run" || status=$?
if [ -n "$told" ]; then # the wait was broken off: now for its end
  status=0
  wait "$run" || status=$?
fi
if [ -n "$told" ] && [ "$status" -eq 130 ]; then # stopped and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

WAIT = """\
import sys, time
import ray
address, wanted = sys.argv[1], int(sys.argv[2])
end, came = time.monotonic() + 600, 0
while came < wanted:
    if time.monotonic() > end:
        sys.exit(f"{came} of {wanted} nodes joined {address} within ten minutes")
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        came = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:
        print(f"waiting for {address}: {error}", file=sys.stderr)
    time.sleep(5)
"""

SKY_RUN = """\
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token
head=$(echo "$SKYPILOT_NODE_IPS" | head -n1)
if [ "$SKYPILOT_NODE_RANK" -ne 0 ]; then
  until ray start --address="$head:{{ port }}"{{ resources }}; do sleep 5; done
  # Until the head's run is over: its Ray ends, and this node with it.
  while ray status --address="$head:{{ port }}" >/dev/null 2>&1; do sleep 30; done
  exit 0
fi
ray start --head --node-ip-address="$head" --port={{ port }} --include-dashboard=false{{ resources }}
trap 'ray stop' EXIT
python - "$head:{{ port }}" "$SKYPILOT_NUM_NODES" <<'PYTHON'
{{ wait }}PYTHON
yatt train {{ job.command }} cluster.address="$head:{{ port }}"
"""


def slurm(job: Job) -> str:
    """A batch script: Ray on every node of the allocation, under a token, and the run beside its head."""
    hours, minutes = divmod(round(job.hours * 60), 60)
    return TEXTS.from_string(SLURM).render(
        job=job,
        time=f"{hours:02}:{minutes:02}:00",
        folder=shlex.quote(job.folder),
        programs=shlex.quote(job.programs),
        resources=_resources(job),
        wait=WAIT,
    )


def skypilot(job: Job) -> str:
    """A task: the working directory is copied to each node, Ray started beside SkyPilot's own."""
    run = TEXTS.from_string(SKY_RUN).render(job=job, port=PORT, resources=_resources(job), wait=WAIT)
    accelerators = {"accelerators": f"{job.gpu}:{job.per_node}"} if job.cuda else {}
    task = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": {**accelerators, "cpus": f"{job.cores}+", "memory": f"{job.memory}+"},
        "workdir": ".",
        "envs": {"RAY_AUTH_TOKEN": None},
        "setup": "make install\n",
        "run": run,
    }
    return (
        "# Written by `yatt launch`. RAY_AUTH_TOKEN is given with it: sky launch FILE --env RAY_AUTH_TOKEN\n"
        "# The working directory is a checkout of YATT with the config in it; data and runs belong on a bucket.\n"
        + _yaml(task)
    )


def kuberay(job: Job) -> str:
    """A RayJob: a head and workers of one image with a volume they share; a pod that must go has the run save first."""
    grace = {"terminationGracePeriodSeconds": job.grace}
    # Before a pod is told to end: the run, which Ray started, is.
    stop = "pid=$(pgrep -of 'yatt train') && kill -TERM $pid && while kill -0 $pid 2>/dev/null; do sleep 1; done; true"
    head = _pod(job, "head") | grace
    head["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["bash", "-c", stop]}}}
    head["containers"][0]["env"] += [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(job.grace)}]
    cluster: dict[str, Any] = {
        "rayVersion": RAY,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": _start(job), "template": {"spec": head}},
    }
    if job.nodes > 1:
        workers = {
            "groupName": "workers",
            "rayStartParams": _start(job),
            "template": {"spec": _pod(job, "worker") | grace},
        }
        count = job.nodes - 1
        cluster["workerGroupSpecs"] = [{"replicas": count, "minReplicas": count, "maxReplicas": count, **workers}]
    resource = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": _dns(job.name)},
        "spec": {
            "entrypoint": f"yatt train {job.command} cluster.address=auto",
            "activeDeadlineSeconds": round(job.hours * 3600),
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": cluster,
        },
    }
    return (
        "# Written by `yatt launch`, for KubeRay 1.5.1 or newer. Read it, then kubectl apply -f it.\n"
        f"# {job.volume} is a claim on a volume that all pods mount; paths of the run start at its root.\n"
        + _yaml(resource)
    )


def _resources(job: Job) -> str:
    """Options of `ray start`: the devices of a node."""
    return f" --num-gpus={job.per_node} --num-cpus={job.cores}" if job.cuda else f" --num-gpus=0 --num-cpus={job.cores}"


def _start(job: Job) -> dict[str, str]:
    return {"num-cpus": str(job.cores), "num-gpus": str(job.per_node if job.cuda else 0)}


def _pod(job: Job, name: str) -> dict[str, Any]:
    """The pod of a node. Weights and Ray's objects go through /dev/shm, which is half of its memory."""
    limits = {"cpu": str(job.cores), "memory": f"{job.memory}Gi"}
    limits |= {"nvidia.com/gpu": str(job.per_node)} if job.cuda else {}
    return {
        "containers": [
            {
                "name": f"ray-{name}",
                "image": job.image,
                "workingDir": SHARED,
                "env": [{"name": "HF_HOME", "value": f"{SHARED}/.cache/huggingface"}],
                "resources": {"limits": limits, "requests": dict(limits)},
                "volumeMounts": [
                    {"name": "shared", "mountPath": SHARED},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.volume}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{job.memory // 2}Gi"}},
        ],
    }


class _Readable(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=10_000))


def _dns(name: str) -> str:
    """A name as Kubernetes takes one: small letters, digits and hyphens, at most 47 with what KubeRay adds."""
    text = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower())
    return text[:47].strip("-") or "run"


FILES: Mapping[str, tuple[str, Callable[[Job], str], tuple[str, ...]]] = {
    "slurm": ("sbatch", slurm, ("sbatch",)),
    "kuberay": ("kuberay.yaml", kuberay, ("kubectl", "apply", "-f")),
    "skypilot": ("sky.yaml", skypilot, ("sky", "launch", "--env", "RAY_AUTH_TOKEN")),
}
"""Of each kind of cluster: how its file ends, what writes it, and what takes it."""
