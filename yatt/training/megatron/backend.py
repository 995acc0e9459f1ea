"""Megatron-Core as a trainer's backend."""

from __future__ import annotations

from yatt.config.schema import Config, OptimizerConfig
from yatt.config.weight_files import stored
from yatt.training.export import write_adapters, write_folder
from yatt.training.identity import identity, verify
from yatt.training.layout import Layout
from yatt.training.meeting import reserve_port
from yatt.training.megatron import checkpoint, model, parallel
from yatt.training.megatron.convert import Converter, Reader
from yatt.training.megatron.lora import Adapters
from yatt.training.megatron.network import LearningNetwork, Network
from yatt.training.model import Head
from yatt.training.rank import TrainerRank
from yatt.training.update import open_objective


class MegatronBackend:
    """Implements `yatt.training.model.Backend`."""

    def join(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
        return parallel.start(config, rank=rank, world_size=world_size, address=address, port=port)

    def leave(self) -> None:
        parallel.stop()

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
    """A rank that trains with Megatron-Core; nothing is read or joined before its `start`."""
    return TrainerRank(MegatronBackend(), config, rank=rank, world_size=world_size, address=address, port=port)


def export_checkpoint(config: Config, checkpoint_path: str, out: str, adapters: bool = False) -> None:
    """Write the policy of a trainer's checkpoint as a Hugging Face folder, in this process alone; with `adapters`,
    those alone, as a folder of peft's.

    Raises CheckpointError for a checkpoint that is missing, broken or of another model than `model.path`."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"tp": 1, "pp": 1})})
    hf, lora = model.read_hf_config(config.model.path), config.train.lora
    described = identity(hf, config.model.dtype, lora)
    verify(checkpoint_path, described)
    with reserve_port() as keeper:
        port = keeper.getsockname()[1]
        layout = parallel.start(config, rank=0, world_size=1, address="127.0.0.1", port=port)
    try:
        head = open_objective(config, layout).head
        policy = model.build(hf, model.transformer_config(hf, config), layout, head)
        names = stored(config.model.path)
        converter = Converter(hf, policy, layout, head, names=names)
        if not lora.rank:
            checkpoint.load_model(checkpoint_path, checkpoint.places_of_model(policy, layout), described)
            write_folder(converter.export(), config, out, writer=True, head=head)
            return
        converter.load(Reader(config.model.path, "model.path"))
        learnt = Adapters(lora, converter, config.run.seed)
        checkpoint.load_model(checkpoint_path, learnt.places(), described)
        if adapters:
            write_adapters(learnt.tensors(), config, out, head=head)
            return
        write_folder(converter.export(learnt.merged), config, out, writer=True, head=head)
    finally:
        parallel.stop()
