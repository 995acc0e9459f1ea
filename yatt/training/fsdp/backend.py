"""FSDP2 over transformers' own modules as a trainer's backend."""

from __future__ import annotations

import torch.distributed as dist

from yatt.config.schema import Config, OptimizerConfig
from yatt.errors import ConfigError
from yatt.training.checkpoint import fill
from yatt.training.export import write_folder
from yatt.training.fsdp.model import DTYPES, local, open_model, read_hf_config
from yatt.training.fsdp.names import exported
from yatt.training.fsdp.network import LearningNetwork, Network
from yatt.training.fsdp.optimizer import MODEL, box
from yatt.training.identity import transformers_identity, verify
from yatt.training.layout import Layout
from yatt.training.meeting import reserve_port
from yatt.training.model import Head
from yatt.training.rank import TrainerRank
from yatt.training.update import open_objective
from yatt.training.world import join_world, leave_world


class FsdpBackend:
    """Implements `yatt.training.model.Backend`."""

    def join(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
        if config.train.tp * config.train.pp > 1:
            raise ConfigError(
                f"train.tp={config.train.tp} x train.pp={config.train.pp}: train.backend=fsdp cuts weights over all "
                "ranks, not layers or their insides; set both to 1, or train.backend=megatron"
            )
        device = join_world(config, rank=rank, world_size=world_size, address=address, port=port)
        alone = [dist.new_group([other]) for other in range(world_size)][rank]
        assert dist.group.WORLD is not None
        return Layout(rank, device, tp=alone, pp=alone, dp=dist.group.WORLD)

    def leave(self) -> None:
        leave_world()

    def frozen(self, config: Config, layout: Layout, path: str, setting: str) -> Network:
        return Network(config, layout, path, setting)

    def learner(
        self,
        config: Config,
        layout: Layout,
        path: str,
        setting: str,
        head: Head,
        *,
        settings: OptimizerConfig,
        planned: int,
    ) -> LearningNetwork:
        return LearningNetwork(config, layout, path, setting, head, settings=settings, planned=planned)


def open_rank(config: Config, *, rank: int, world_size: int, address: str, port: int) -> TrainerRank:
    """A rank that trains with FSDP2; nothing is read or joined before its `start`."""
    return TrainerRank(FsdpBackend(), config, rank=rank, world_size=world_size, address=address, port=port)


def export_checkpoint(config: Config, checkpoint_path: str, out: str) -> None:
    """Write the policy of a trainer's checkpoint as a Hugging Face folder, in this process alone.

    Raises CheckpointError for a checkpoint that is missing, broken or of another model than `model.path`."""
    hf = read_hf_config(config.model.path, "model.path")
    verify(checkpoint_path, transformers_identity(hf, config.model.dtype))
    with reserve_port() as keeper:
        layout = FsdpBackend().join(config, rank=0, world_size=1, address="127.0.0.1", port=keeper.getsockname()[1])
    try:
        head = open_objective(config, layout).head
        opened = open_model(config, layout, config.model.path, "model.path", head, learns=True)
        weights = opened.module.named_parameters()
        fill(checkpoint_path, [box(f"{MODEL}.{opened.name(name)}", weight, local(weight)) for name, weight in weights])
        write_folder(exported(opened, DTYPES[config.model.dtype]), config, out, writer=True, head=head)
    finally:
        leave_world()
