"""What dynamic sampling costs: refills, and who waits for whom, on the simulated cluster with the real controllers.

64 H20 of the published data sheet and a 7B policy (`examples/plan/paper.yaml`), 40 % of groups dropped, 8 controllers.
In lock-step all controllers draw a wave, wait for each other, drop, and draw the next wave for what is missing; rewards
stream in either case. Locally each controller refills as soon as a group is dropped. `one` draws a prompt per missing
group, `estimate` as many as the acceptance rate says, `oversample` that many times more of them.

`rollout_s` is the slowest controller's rollout, `step_s` the whole step, per step; `wasted` are response tokens of
groups that were good or unfinished and not trained, over all response tokens; `dropped` those of groups that the filter
dropped. The first step, in which the acceptance rate is learnt, is left out.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.common import main, significant
from yatt.config.load import load_config
from yatt.config.rules import check_plan
from yatt.config.schema import Config
from yatt.controller.rollouter import Rollouter
from yatt.controller.tally import Tally, count
from yatt.faces.plan import costs_for
from yatt.protocols import Peers
from yatt.reports import RolloutCounts
from yatt.simulation.costs import Costs
from yatt.simulation.loop import VirtualClock, run
from yatt.simulation.simulate import Bookkeeper, StepFigures, few_collections
from yatt.simulation.world import World
from yatt.supervisor import Supervisor
from yatt.types import Group

DEVICES, CONTROLLERS = 64, 8
BASE = ["plan.equal_groups=0.4", "plan.image_bytes=0", "rollout.max_refills=4"]
# name -> lock-step, settings
SIDES: dict[str, tuple[bool, list[str]]] = {
    "no refills": (False, ["rollout.refill=one", "rollout.max_refills=0"]),
    "lock-step, one": (True, ["rollout.refill=one"]),
    "lock-step, estimate": (True, ["rollout.refill=estimate"]),
    "local, one": (False, ["rollout.refill=one"]),
    "local, estimate": (False, ["rollout.refill=estimate"]),
    "local, oversample 1.25": (False, ["rollout.refill=estimate", "rollout.oversample=1.25"]),
}


class Lockstep(Rollouter):
    """The control: nobody refills before everybody's wave has ended."""

    peers: Peers
    waves = 0

    async def collect(self, quota: int, version: int) -> tuple[list[Group], RolloutCounts]:
        tally = self._tally
        while True:
            self._draw(quota)
            drawn = len(tally.open)
            while tally.open:
                self._settle(quota, version, *await self._ended.get())
            self.waves += 1
            missing = quota - len(tally.kept) if drawn else 0
            if not any(await self.peers.all_gather(f"wave/{self.waves}", missing)):
                break
        self._discard_stale(version + 1)
        self._tally = Tally()
        return sorted(tally.kept, key=lambda group: group.prompt.uid), count(tally, quota, 0)


async def play(config: Config, costs: Costs, lockstep: bool) -> list[StepFigures]:
    """The steps of a simulated run but the first."""
    world = World(config, costs, devices=DEVICES, controllers=CONTROLLERS)
    for controller in world.controllers if lockstep else ():
        controller.rollouter.__class__ = Lockstep
        controller.rollouter.peers = controller.desk.peers  # type: ignore[attr-defined]
    journal = Bookkeeper(world)
    await Supervisor(config, world, journal, VirtualClock()).run(1)
    return [journal.steps[step] for step in sorted(journal.steps)[1:]]


def side(name: str, seeds: int, steps: int, batch: int) -> dict[str, Any]:
    lockstep, settings = SIDES[name]
    figures: list[StepFigures] = []
    for seed in range(seeds):
        run_settings = [f"run.seed={seed}", f"train.steps={steps + 1}", f"train.batch_size={batch}"]
        config = load_config("examples/plan/paper.yaml", [*BASE, *settings, *run_settings])
        costs = costs_for(config, check_plan(config, [DEVICES]))
        with few_collections():
            figures += run(play(config, costs, lockstep))
    counts = [f.counts for f in figures]
    tokens = sum(c.response_tokens + c.tokens_wasted for c in counts)
    return {
        "side": name,
        "rollout_s": significant(mean(max(f.rollouts) for f in figures)),
        "step_s": significant(mean(f.seconds for f in figures)),
        "groups": significant(mean(c.groups for c in counts)),
        "wasted": significant(sum(c.tokens_wasted for c in counts) / tokens),
        "rollout_s_per_group": significant(sum(max(f.rollouts) for f in figures) / sum(c.groups for c in counts)),
        "idle": significant(mean(f.idle for f in figures)),
    }


def measure(quick: bool) -> dict[str, Any]:
    seeds, steps, batch = (1, 1, 64) if quick else (3, 4, 256)
    results = [side(name, seeds, steps, batch) for name in SIDES]
    of = {row["side"]: row["rollout_s"] for row in results}
    return {
        "devices": DEVICES,
        "controllers": CONTROLLERS,
        "seeds": seeds,
        "steps": steps,
        "prompts": batch,
        "local_over_lockstep": significant(of["local, estimate"] / of["lock-step, estimate"]),
        "local_over_lockstep_one": significant(of["local, one"] / of["lock-step, one"]),
        "results": results,
    }


if __name__ == "__main__":
    main("sampling", measure)
