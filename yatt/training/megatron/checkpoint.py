"""Checkpoints of a trainer: model, optimizer, schedule and RNG, readable under another layout than the writer's.

A folder is complete when it has the description written last, and every file listed in it has its size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter, _write_item
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from yatt.errors import BackendError, CheckpointError
from yatt.training.identity import DESCRIPTION, verify
from yatt.training.layout import Layout
from yatt.training.megatron.optimizer import counter
from yatt.training.megatron.optimizer_state import Pieces, Planner, state_pieces

FORMAT = 1
SHARDING = "fully_reshardable"
PROBE_BYTES = 1 << 20


class _InProcess(TorchDistSaveShardedStrategy):
    """Megatron's format, written by this thread: its own writer forks, which a process full of threads must not.
    `pieces` are written beside what Megatron knows of."""

    def __init__(self, pieces: dict[str, Pieces]) -> None:
        super().__init__("torch_dist", 1)
        self._pieces = pieces

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        tensors, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        save_shards(
            mcore_to_pyt_state_dict(tensors, False) | self._pieces,
            storage_writer=_OneByOne(checkpoint_dir),
            planner=Planner(),
        )


class _OneByOne(FileSystemWriter):
    """Writes one tensor after another: torch's own writer keeps a copy of each until it has written all."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        results: Future[list[WriteResult]] = Future()
        with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb") as stream:
            results.set_result([self._write(stream, item, planner, name) for item in plan.items])
            os.fsync(stream.fileno())
        return results

    def _write(self, stream: Any, item: WriteItem, planner: SavePlanner, name: str) -> WriteResult:
        data = planner.resolve_data(item)
        if isinstance(data, Tensor):
            data = data.detach().cpu()
            if data.untyped_storage().nbytes() != data.nbytes:
                data = data.clone()  # else all of the storage would be written
        return _write_item(self.transforms, stream, data, item, name, self.serialization_format)


def save(
    path: str,
    model: GPTModel,
    optimizer: ChainedOptimizer,
    state: dict[str, Any],
    described: dict[str, Any],
    layout: Layout,
) -> None:
    """Write a checkpoint into the folder `path`: the model, its optimizer, and `state`, which is the same on all ranks.
    Collective; waits for every rank.

    The RNG state is that of rank 0's CPU: an update draws nothing from any. Raises BackendError, on every rank, where
    it cannot be written; the folder is then incomplete and will be refused."""
    folder = Path(path)
    _together(lambda: _prepare(folder), path, layout)
    weights = model.sharded_state_dict(metadata=_format(layout))
    (part,) = optimizer.chained_optimizers
    whole = {
        **state,
        "model": weights,
        "optimizer": part.state_dict() | {"param_state_sharding_type": SHARDING},
        "rng": torch.get_rng_state(),
    }
    try:
        dist_checkpointing.save(
            whole,
            path,
            sharded_strategy=_InProcess(state_pieces(part, weights)),
            preprocess_common_before_consistancy_check=lambda common: {k: v for k, v in common.items() if k != "rng"},
        )
    except (CheckpointException, OSError, RuntimeError) as error:
        failures = getattr(error, "failures", None)
        cause = next(iter(failures.values()))[0] if failures else error
        # torch hides "no space left" behind what its archive writer says on the way out.
        free = f"its disk has {shutil.disk_usage(folder).free / 2**20:.1f} MiB free"
        why = str(cause).partition("\n")[0]
        raise BackendError(f"checkpoint {path} could not be written: {why}; {free}") from error
    _together(lambda: _describe(folder, described), path, layout)


def load(
    path: str, model: GPTModel, optimizer: ChainedOptimizer, described: dict[str, Any], layout: Layout
) -> dict[str, Any]:
    """Take over a checkpoint, written under any layout; returns all that `save` was given beside them. Collective.

    Raises CheckpointError, before anything is changed, for one that is missing, half-written or of another model."""
    verify(path, described)
    for part in optimizer.chained_optimizers:
        if not part.optimizer.state:
            part._init_optimizer_states_with_dummy_values()
    weights = model.sharded_state_dict(metadata=_format(layout))
    wanted = optimizer.sharded_state_dict(weights, is_loading=True, metadata=_format(layout))
    state = _read({"model": weights, "optimizer": wanted}, path)
    with torch.no_grad():
        model.load_state_dict(state["model"])
        for part in optimizer.chained_optimizers:
            _load_optimizer(part, state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state


def load_model(path: str, model: GPTModel, described: dict[str, Any], layout: Layout) -> None:
    """Take over the weights alone. Collective; raises as `load` does."""
    verify(path, described)
    model.load_state_dict(_read({"model": model.sharded_state_dict(metadata=_format(layout))}, path)["model"])


def _load_optimizer(part: Any, state: dict[str, Any]) -> None:
    """Restore one distributed optimizer whose inner optimizer is torch's AdamW.

    Megatron hands all parameters one `step` tensor, which AdamW would then advance once per parameter: each gets its
    own. And it looks for `step` among the sharded tensors, where it never is: it is put aside meanwhile."""
    state = dict(state)
    moments = state.pop("param_state")
    part.load_state_dict(state)
    steps = {parameter: values.pop("step") for parameter, values in part.optimizer.state.items() if "step" in values}
    part.load_parameter_state_from_fully_reshardable(moments)
    for parameter, step in steps.items():
        part.optimizer.state[parameter]["step"] = counter(parameter, float(step))


def _format(layout: Layout) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": SHARDING,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": layout.dp,
    }


def _read(state: ShardedStateDict, path: str) -> dict[str, Any]:
    try:
        read: dict[str, Any] = dist_checkpointing.load(state, path)
    except (CheckpointingException, CheckpointException, OSError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}; use an earlier checkpoint") from error
    return read


def _prepare(folder: Path) -> None:
    """Make the folder, and see that it takes more than the part rank 0 writes while the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def _describe(folder: Path, described: dict[str, Any]) -> None:
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    aside = folder / f".{DESCRIPTION}"
    aside.write_text(json.dumps({"format": FORMAT, "model": described, "files": files}, indent=2) + "\n")
    aside.replace(folder / DESCRIPTION)


def _together(action: Callable[[], None], path: str, layout: Layout) -> None:
    """Let rank 0 act while the others wait; its failure is everybody's."""
    failure: list[str | None] = [None]
    if layout.rank == 0:
        try:
            action()
        except OSError as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise BackendError(f"checkpoint {path} could not be written: {failure[0]}")
