"""An update of TRL's GRPOTrainer, where TRL is installed: its own loss, backward and optimizer, on given samples."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch

from yatt.types import Sample

INSTALLED = importlib.util.find_spec("trl") is not None


class Trl:
    """A step of its trainer's loop, without what it generates, scores and logs."""

    def __init__(self, folder: str, sequences: int, **settings: Any) -> None:
        trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
        self._pad = importlib.import_module("trl.trainer.utils").pad
        arguments = trl.GRPOConfig(
            output_dir=os.path.join(folder, "trl"),
            per_device_train_batch_size=sequences,
            generation_batch_size=sequences,
            num_generations=2,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            loss_type="dapo",
            beta=0.0,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            max_steps=1000,
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
        questions = datasets.Dataset.from_dict({"prompt": ["1 + 1 ="] * sequences})
        self.trainer = trl.GRPOTrainer(folder, reward_funcs=_nothing, args=arguments, train_dataset=questions)
        self.trainer.create_optimizer_and_scheduler(1000)
        self.trainer.accelerator.gradient_accumulation_steps = 1
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer._prepare_inputs = self._inputs
        self.optimizer = self.trainer.accelerator.prepare(self.trainer.optimizer)

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, completions on the right, as its own generation leaves them."""
        columns: dict[str, torch.Tensor] = {}
        for name, trained, side in (("prompt", False, "left"), ("completion", True, "right")):
            parts = [torch.from_numpy(s.tokens[s.loss_mask == trained]).long() for s in samples]
            ones = [torch.ones_like(part) for part in parts]
            columns[f"{name}_ids"] = self._pad(parts, padding_value=0, padding_side=side)
            columns[f"{name}_mask"] = self._pad(ones, padding_value=0, padding_side=side)
        advantages = torch.tensor([s.advantage for s in samples])
        return columns | {"advantages": advantages, "num_items_in_batch": columns["completion_mask"].sum()}

    def update(self, samples: Sequence[Sample]) -> float:
        """One update; the norm of its gradient."""
        trainer = self.trainer
        trainer.training_step(trainer.model, samples, None)
        norm = float(trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm))
        self.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        return norm


def _nothing(**columns: Any) -> list[float]:
    return [0.0]
