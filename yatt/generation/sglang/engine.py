"""SGLang behind the calls of `yatt.generation.engine.Engine`. A process has one such engine in its life: SGLang keeps
its settings and groups of ranks in globals."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Sequence
from typing import Any

import yatt.generation.sglang.standins

# isort: split
import torch
from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from sglang.srt.managers import io_struct
from sglang.srt.sampling.sampling_params import SamplingParams as SglangParams
from sglang.srt.server_args import ServerArgs

import yatt.generation.sglang.attention  # noqa: F401  (takes the place of SGLang's)
from yatt.config.facts import tensor_shapes
from yatt.config.schema import RolloutConfig
from yatt.errors import BackendError, ConfigError
from yatt.generation.engine import Image, Read, Sampled, Step
from yatt.generation.facts import served_facts
from yatt.generation.kind import Device
from yatt.generation.sglang.arguments import arguments, shape
from yatt.generation.sglang.ranks import end_ranks, start_ranks
from yatt.generation.sglang.scheduler import Done, FreeMemory, LoadWeights, TakeMemory, build
from yatt.generation.table import check_options
from yatt.models.facts import ModelFacts
from yatt.placement.cost import kv_token
from yatt.types import Finish, SamplingParams, WeightManifest
from yatt.weights import check_names, verify

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}
MARGIN = 8
"""SGLang takes no prompt within 6 tokens of its context length and ends responses 2 before it: it is told of a longer
one, and a response is ended by its number of tokens."""
MEETING = "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"
"""The variable that says where ranks find each other."""
CORES = "SGLANG_CPU_OMP_THREADS_BIND"
"""The variable that gives each rank its cores."""
VISION = "yatt.generation.sglang.vision"
"""Imported only for a model that sees."""
ONLY_LIKELIEST = 1e-9
"""A top-p that leaves one token. SGLang cannot tell top-k 1 from temperature 0, whose logprobs are others."""


class SglangEngine:
    """Implements `yatt.generation.engine.Engine` with SGLang's scheduler; of several tensor-parallel ranks this process
    is the first, and the others are processes of its own."""

    def __init__(
        self,
        *,
        model: str,
        config: RolloutConfig,
        context_length: int,
        dtype: str,
        device: Device,
        seed: int,
        setting: str = "rollout",
        classifies: bool = False,
    ) -> None:
        check_options("sglang", config.engine_args, setting)
        self.shape = shape(config.engine_args)
        chosen = arguments(config.engine_args, device) | dict(
            model_path=model,
            dtype=dtype,
            device=device,
            context_length=context_length + MARGIN,
            random_seed=seed % (1 << 31),
            is_embedding=classifies,
            skip_tokenizer_init=True,
            disable_overlap_schedule=True,
            sampling_backend="pytorch",  # replaced by ours
            enable_memory_saver=config.sleep and device == "cuda",
            enable_weights_cpu_backup=config.sleep and device == "cuda",
        )
        facts = served_facts(model, setting, classifies=classifies)
        if device == "cpu":
            chosen["max_total_tokens"] = self._cache_tokens(facts, dtype, context_length, setting)
        self._context_length = context_length
        self._sleeps = config.sleep
        self._asleep = False  # nothing is left to free
        self._held = False  # paused by a sleep, until it wakes
        self._resumes = False  # paused, and to go on with the next step
        self._live: set[str] = set()
        self._shapes = tensor_shapes(model)
        self._tied = facts.tied
        self._vision: Any = None if facts.vision is None else importlib.import_module(VISION)
        self._merge = 1 if facts.vision is None else facts.vision.merge
        self._meeting = tempfile.mkdtemp(prefix="yatt-ranks-")
        os.environ[MEETING] = f"file://{self._meeting}/store"
        if device == "cpu":  # else there may be no more ranks than NUMA nodes; without its kernels nothing is bound
            os.environ[CORES] = "|".join([f"0-{(os.cpu_count() or 1) - 1}"] * self.shape.tensor_parallel)
        settings = ServerArgs(**chosen)
        self._ranks = start_ranks(settings, facts, self.shape.tensor_parallel)
        self._scheduler = build(settings, facts, rank=0)

    def _cache_tokens(self, facts: ModelFacts, dtype: str, context_length: int, setting: str) -> int:
        """Tokens of the KV cache on a CPU: as given, or what the default bytes hold. Raises ConfigError where the
        longest response would not fit."""
        given = self.shape.cache_tokens
        default = int(self.shape.cache_bytes * self.shape.tensor_parallel / kv_token(facts, dtype))
        tokens = default if given is None else given
        if tokens < context_length + MARGIN:
            raise ConfigError(
                f"{setting}.engine_args.max_total_tokens={tokens} holds less than one response of {context_length} "
                f"tokens; use at least {context_length + MARGIN}"
            )
        return tokens

    def add(
        self,
        id: str,
        tokens: Sequence[int],
        params: SamplingParams,
        seed: int,
        stop_token_ids: Sequence[int],
        images: Sequence[Image] = (),
    ) -> None:
        only = params.top_k == 1 and params.temperature > 0
        sampling = SglangParams(
            max_new_tokens=min(params.max_tokens, self._context_length - len(tokens)),
            temperature=params.temperature,
            top_p=ONLY_LIKELIEST if only else params.top_p,
            top_k=params.top_k if params.top_k > 0 and not only else -1,
            stop_token_ids=set(stop_token_ids),  # `ignore_eos` would switch these off too
            sampling_seed=seed % (1 << 63),
        )
        sampling.normalize(None)
        request = io_struct.TokenizedGenerateReqInput(
            rid=self._named(id),
            input_text=None,
            input_ids=array("q", tokens),
            input_embeds=None,
            mm_inputs=self._vision.inputs(images, len(tokens), self._merge) if images else None,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=True,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
        )
        self._scheduler.inbox.append(request)

    def classify(self, id: str, tokens: Sequence[int]) -> None:
        sampling = SglangParams(max_new_tokens=0)
        sampling.normalize(None)
        request = io_struct.TokenizedEmbeddingReqInput(
            rid=self._named(id),
            input_text="",
            input_ids=array("q", tokens),
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling,
        )
        self._scheduler.inbox.append(request)

    def _named(self, id: str) -> str:
        """An id that no other one begins with: SGLang takes "1" for "12" too, where it is asked to abort it."""
        self._live.add(id)
        return f"{id}."

    def step(self) -> Step:
        if self._resumes:  # not before: a rank that is told goes on at once, with a step of its own
            self._scheduler.inbox.append(io_struct.ContinueGenerationReqInput())
            self._resumes = False
        step = Step([], [])
        for message in self._scheduler.advance():
            for number, rid in enumerate(message.rids if hasattr(message, "rids") else ()):
                if (id := rid.removesuffix(".")) in self._live:  # else aborted: SGLang draws one token more for it
                    self._note(step, id, message, number)
        return step

    def _note(self, step: Step, id: str, message: Any, number: int) -> None:
        reason = message.finished_reasons[number]
        if reason is not None:
            self._live.discard(id)
            if reason["type"] not in FINISHES:
                raise BackendError(f"SGLang ended a request with {reason}")
        if isinstance(message, io_struct.BatchEmbeddingOutput):
            step.read.append(Read(id, float(torch.as_tensor(message.embeddings[number]).flatten()[0])))
            return
        tokens, logprobs = list(message.output_ids[number]), list(message.output_token_logprobs_val[number])
        step.sampled.append(Sampled(id, tokens, logprobs, None if reason is None else FINISHES[reason["type"]]))

    def abort(self, ids: Sequence[str]) -> None:
        for id in self._live.intersection(ids):
            self._scheduler.inbox.append(io_struct.AbortReq(rid=f"{id}."))
        self._live.difference_update(ids)

    def check(self, manifest: WeightManifest) -> None:
        check_names(manifest, self._shapes, self._tied)
        verify(manifest)

    def load(self, manifest: WeightManifest) -> None:
        self._pause()
        if self._ask(TakeMemory(("weights",))):
            self._asleep = False
        self._ask(LoadWeights(manifest))
        self._resumes = not self._held

    def sleep(self) -> int:
        if not self._sleeps or self._asleep:
            return 0
        self._asleep = self._held = True
        self._pause()
        return self._ask(FreeMemory())

    def wake(self) -> None:
        if self._held:
            self._ask(TakeMemory(("weights", "kv_cache")))
            self._asleep = self._held = False
            self._resumes = True

    def close(self) -> None:
        end_ranks(self._ranks)
        destroy_model_parallel()
        destroy_distributed_environment()
        shutil.rmtree(self._meeting, ignore_errors=True)

    def _pause(self) -> None:
        """Queue running requests again with their tokens; every rank then only listens."""
        self._resumes = False
        if not self._scheduler.paused:
            self._scheduler.inbox.append(io_struct.PauseGenerationReqInput(mode="retract"))
            self._scheduler.take_in()

    def _ask(self, message: LoadWeights | FreeMemory | TakeMemory) -> int:
        """Have all ranks of a paused engine do something; what it amounts to."""
        self._scheduler.inbox.append(message)
        (done,) = [answer for answer in self._scheduler.take_in() if isinstance(answer, Done)]
        if done.error:
            raise BackendError(f"SGLang: {done.error}")
        return done.amount
