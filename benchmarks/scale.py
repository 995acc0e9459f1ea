"""How the controllers scale, on the simulated cluster: 1 to 64 over 16 to 1,024 devices, with and without images.

The real controllers, router, exchange and balance run over engines, ranks and links that only spend time: devices and
model of `examples/plan/paper.yaml`, 2 prompts of 8 responses per device and step, each with no image, one of 1 MiB, or
8 of them. A controller spends CPU time per response it handles, and its node's link carries what it sends. `step_s` and
`rollout_s` are per step, `controller_bytes` what the busiest controller sends and receives.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.common import main, significant
from yatt.config.load import load_config
from yatt.config.rules import check_plan
from yatt.faces.plan import costs_for
from yatt.simulation.simulate import simulate

DEVICES, CONTROLLERS, IMAGES = (16, 64, 256, 1024), (1, 4, 16, 64), (0, 1 << 20, 8 << 20)
PROMPTS_PER_DEVICE = 2


def case(devices: int, controllers: int, image: int, steps: int) -> dict[str, Any]:
    settings = [
        f"cluster.slots={devices}",
        f"cluster.controllers={controllers}",
        f"train.batch_size={PROMPTS_PER_DEVICE * devices}",
        f"plan.image_bytes={image}",
        "plan.equal_groups=0",
        "rollout.filter=none",
    ]
    config = load_config("examples/plan/paper.yaml", settings)
    costs = costs_for(config, check_plan(config, [devices]))
    report = simulate(config, costs, devices=devices, controllers=controllers, steps=steps, seed=0)
    moved = [max(s + r for s, r in zip(step.sent, step.received, strict=True)) for step in report.steps]
    return {
        "devices": devices,
        "controllers": controllers,
        "image_bytes": image,
        "step_s": significant(mean(step.seconds for step in report.steps)),
        "rollout_s": significant(mean(max(step.rollouts) for step in report.steps)),
        "controller_bytes": round(mean(moved)),
        "idle": significant(mean(step.idle for step in report.steps)),
    }


def measure(quick: bool) -> dict[str, Any]:
    devices, controllers, steps = ((16,), (1, 4), 1) if quick else (DEVICES, CONTROLLERS, 3)
    return {
        "steps": steps,
        "results": [case(d, c, i, steps) for i in IMAGES for d in devices for c in controllers if c <= d],
    }


if __name__ == "__main__":
    main("scale", measure)
