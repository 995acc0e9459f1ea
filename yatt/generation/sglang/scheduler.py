"""SGLang's scheduler, stepped by its caller. Everything that is touched of SGLang's inside is in this file, and the
version is pinned: these names move.

There is no tokenizer, server or socket: messages wait in an inbox and are taken in once before each step, by every
tensor-parallel rank alike, since a rank that took one more or one less would wait for the others for good.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.managers import io_struct, mm_schedule
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.utils import TypeBasedDispatcher

from yatt.generation.kind import folder_of
from yatt.generation.memory import device_bytes, free_pages
from yatt.generation.sglang.environment import model_files
from yatt.generation.sglang.sampler import SeededSampler
from yatt.models.facts import ModelFacts
from yatt.types import WeightManifest
from yatt.weights import read

NOWHERE = "ipc:///dev/null"
VISION = "yatt.generation.sglang.vision"
"""Imported only for a model that sees."""
SLEEPING = ("kv_cache", "weights")
"""The parts that an engine on CUDA gives back, by the names of SGLang's memory saver."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadWeights:
    """Have every rank write its part of checked weights into the model. The engine must be paused."""

    manifest: WeightManifest


@dataclasses.dataclass(frozen=True, slots=True)
class FreeMemory:
    """Have every rank give back what sleeping frees. The engine must be paused."""


@dataclasses.dataclass(frozen=True, slots=True)
class TakeMemory:
    """Have every rank take these parts back, where it has given them away."""

    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The answer of all ranks together to one of the messages above."""

    amount: int = 0
    error: str = ""


class Outbox:
    """Where the scheduler of rank 0 sends its outputs."""

    socket = None

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        self.sent.append(output)


class InboxReceiver(SchedulerRequestReceiver):
    """Takes the messages of rank 0 out of its inbox; the base class brings them to the other ranks."""

    def _pull_raw_reqs(self) -> list[Any] | None:
        if get_parallel().tp_rank != 0:
            return None
        taken = list(self.recv_from_tokenizer)
        self.recv_from_tokenizer.clear()
        return taken


class SteppedScheduler(Scheduler):
    """A scheduler that does nothing between two calls of `advance`."""

    # SGLang's own.
    request_receiver: Any
    running_batch: Any
    last_batch: Any

    def init_ipc_channels(self, port_args: PortArgs) -> None:
        if get_parallel().tp_rank != 0:
            super().init_ipc_channels(port_args)
            return
        self.outbox = Outbox()
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=self.outbox,
            send_to_detokenizer=self.outbox,
            send_metrics_from_scheduler=None,
        )
        self.load_snapshot_writer = None
        self.recv_from_tokenizer = None

    def init_request_receiver(self) -> None:
        super().init_request_receiver()
        self.inbox: list[Any] = []
        kept = {f.name: getattr(self.request_receiver, f.name) for f in dataclasses.fields(self.request_receiver)}
        self.request_receiver = InboxReceiver(**kept | {"recv_from_tokenizer": self.inbox})

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [(LoadWeights, self._load_weights), (FreeMemory, self._free_memory), (TakeMemory, self._take_memory)]
        )
        self._given: set[str] = set()

    @property
    def paused(self) -> bool:
        return bool(self._engine_paused)

    @torch.inference_mode()
    def take_in(self) -> list[Any]:
        """Act on the messages of the inbox; returns what was sent since the last call."""
        self.ingest_requests()
        return self._taken_out()

    @torch.inference_mode()
    def advance(self) -> list[Any]:
        """Take messages in and, unless they paused the engine, run one batch; returns what was sent."""
        self.ingest_requests()
        if not self.paused:
            plan = self.get_next_batch_to_run(running_batch=self.running_batch, last_batch=self.last_batch)
            self.running_batch = plan.running_batch
            batch = self.cur_batch_for_debug = plan.batch_to_run
            if batch:
                self.process_batch_result(batch, self.run_batch(batch))
            else:
                self._sched_idled = True
                self.on_idle()
            self.last_batch = batch
        return self._taken_out()

    def _taken_out(self) -> list[Any]:
        if get_parallel().tp_rank != 0:
            return []
        sent, self.outbox.sent = self.outbox.sent, []
        return sent

    # What our own messages do, on each rank.

    def _load_weights(self, message: LoadWeights) -> Done:
        return self._together(lambda: self._write(read(message.manifest, verified=True)))

    def _write(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        runner = self.tp_worker.model_runner
        runner.weight_updater.begin_weight_update()
        runner.model.load_weights(tensors)
        runner.weight_updater.end_weight_update(run_post_load=False)
        self._forget()
        return 0

    def _free_memory(self, message: FreeMemory) -> Done:
        return self._together(self._free_cuda if self.device == "cuda" else self._free_cache)

    def _free_cache(self) -> int:
        self._forget()
        pool = self.token_to_kv_pool_allocator.get_kvcache()
        return free_pages([*pool.k_buffer, *pool.v_buffer])

    def _free_cuda(self) -> int:
        before, parts = device_bytes(), [part for part in SLEEPING if part not in self._given]
        if not parts:
            return 0
        self.weight_updater.release_memory_occupation(io_struct.ReleaseMemoryOccupationReqInput(tags=parts))
        self._given |= set(parts)
        return before - device_bytes()

    def _take_memory(self, message: TakeMemory) -> Done:
        return self._together(lambda: self._take(message.parts))

    def _take(self, parts: tuple[str, ...]) -> int:
        taken = [part for part in parts if part in self._given]
        for part in taken:
            self.weight_updater.resume_memory_occupation(io_struct.ResumeMemoryOccupationReqInput(tags=[part]))
            self._given.discard(part)
        return len(taken)

    def _forget(self) -> None:
        if not self.flush_cache():
            raise RuntimeError("the cache is in use and cannot be emptied")
        if mm_schedule.embedding_cache is not None:  # what the tower made of images
            mm_schedule.embedding_cache.clear()

    def _together(self, action: Any) -> Done:
        """Run `action` on this rank; the sum of all ranks' amounts, and whether one of them failed. Waits for the
        other ranks, so that a failure on one is known on rank 0."""
        amount, error = 0, ""
        try:
            amount = action()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        both = torch.tensor([amount, bool(error)], dtype=torch.int64)
        torch.distributed.all_reduce(both, group=get_parallel().tp_group.cpu_group)
        total, failed = both.tolist()
        return Done(total, error or ("another rank failed; see its log" if failed else ""))


def _register(architecture: str) -> None:
    """Import the one model that is served, where SGLang was told to leave its models alone."""
    folder = folder_of("sglang")
    assert folder is not None
    if architecture not in ModelRegistry.models and (module := model_files(folder / "srt/models").get(architecture)):
        ModelRegistry.models[architecture] = getattr(importlib.import_module(module), architecture)


def build(arguments: ServerArgs, facts: ModelFacts, rank: int) -> SteppedScheduler:
    """The scheduler of one tensor-parallel rank, its model loaded. Waits for the other ranks."""
    logging.getLogger("sglang").setLevel(logging.ERROR)
    _register(facts.architecture)
    arguments.resolve_once()
    arguments.check_server_args()
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank, gpu_id=rank))
    ports = PortArgs(
        tokenizer_ipc_name=NOWHERE,
        scheduler_input_ipc_name=NOWHERE,
        detokenizer_ipc_name=NOWHERE,
        nccl_port=1,  # the ranks meet in a file
        rpc_ipc_name=NOWHERE,
        metrics_ipc_name=NOWHERE,
        tokenizer_worker_ipc_name=None,
        decoupled_spec_ipc_config=None,
    )
    scheduler = SteppedScheduler(arguments, ports)
    scheduler.model_config.hf_eos_token_id = set()  # a request says itself where it stops
    runner = scheduler.tp_worker.model_runner
    runner.sampler = SeededSampler()
    bias = getattr(getattr(runner.model, "score", None), "bias", None)
    if bias is not None:  # transformers' heads have none: it was drawn at random, and stays
        torch.nn.init.zeros_(bias)
    if facts.vision is not None:
        importlib.import_module(VISION).see(runner.model, arguments.model_path)
    return scheduler
