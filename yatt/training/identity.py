"""Whether a trainer's checkpoint is whole and of this model; read without torch, so that a driver can ask early.

`yatt.training.shard_files` says which files there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yatt.checksums import OWN, Damaged, check_file, read_json
from yatt.config.schema import LoraConfig
from yatt.errors import CheckpointError
from yatt.models.fields import COMMON, obeyed
from yatt.models.table import LANGUAGES
from yatt.models.vision import SIZES

DESCRIPTION = "trainer.json"
SHARD = ".safetensors"
SHARED = (
    *("hidden_act", "hidden_activation", "layer_norm_eps", "layer_types", "sliding_window", "partial_rotary_factor"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "num_experts_per_tok"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
)
"""Fields beside `COMMON` that several families have."""


def identity(hf: Any, dtype: str, lora: LoraConfig | None = None) -> dict[str, Any]:
    """The fields in which a checkpoint and a model must agree. `hf` is the language model's config, with the tower's
    `vision_config` where there is one. With `lora` it learns by adapters, which are what its checkpoint has."""
    family = LANGUAGES[hf.model_type]
    described = {name: getattr(hf, name, None) for name in obeyed(family)} | {"dtype": dtype}
    described["lora"] = lora.model_dump(mode="json") if lora is not None and lora.rank else None
    if family.tower is not None:
        names = (*SIZES, *family.tower.obeys)
        described["vision_config"] = {name: getattr(hf.vision_config, name, None) for name in names}
    return described


def transformers_identity(hf: Any, dtype: str) -> dict[str, Any]:
    """As `identity`, of a model of any family that transformers trains as it is: what its forward pass depends on, as
    far as families share it. Tensors of other shapes are refused as they are read."""
    return {name: getattr(hf, name, None) for name in (*COMMON, *SHARED)} | {"dtype": dtype, "backend": "fsdp"}


def verify(path: str, described: dict[str, Any]) -> dict[str, Any]:
    """The state that all ranks shared. Raises CheckpointError unless `path` holds a checkpoint of this model, of which
    no file is missing or short; what is in the shards is checked as they are read."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {path}: no such folder; resume=auto takes the newest good one")
    try:
        written = read_json(folder, DESCRIPTION, "model", "state")
        check_shards(folder, deep=False)
    except Damaged as error:
        raise broken(path, error) from None
    ours, theirs = (str(one.get("backend", "megatron")) for one in (described, written["model"]))
    if ours != theirs:
        raise CheckpointError(
            f"checkpoint {path} was written by train.backend={theirs}; go on with it, not with {ours}"
        )
    for name, value in described.items():
        before = written["model"].get(name)
        if name == "lora" and before != value:
            raise CheckpointError(
                f"checkpoint {path} was made with train.lora={before or 'none'}, not {value or 'none'}; go on with that"
            )
        if before != value:
            raise CheckpointError(
                f"checkpoint {path} is of another model: {name}={before!r} there, {value!r} in "
                f"model.path; point model.path at the model it was trained from"
            )
    return dict(written["state"])


def broken(path: str, error: Damaged) -> CheckpointError:
    """What to say of a checkpoint with such a file."""
    return CheckpointError(f"checkpoint {path} is broken: {error}; use an earlier checkpoint")


def shard_names(number: int) -> tuple[str, str]:
    """A shard's file and its description."""
    return f"shard-{number}{SHARD}", f"shard-{number}.json"


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """The descriptions of all shards. Raises Damaged where one is missing."""
    count = read_json(folder, DESCRIPTION, "shards")["shards"]
    return [read_json(folder, shard_names(number)[1], "bytes", "checksum", "tensors") for number in range(count)]


def check_shard(folder: Path, number: int, written: Mapping[str, Any], *, deep: bool = True) -> None:
    """Raises Damaged where a shard has another size, or, if all of it is read (`deep`), another checksum."""
    stated = {"bytes": written["bytes"], OWN: written["checksum"]}
    check_file(folder, shard_names(number)[0], stated, deep=deep)


def check_shards(folder: Path, *, deep: bool) -> None:
    """Raises Damaged as `read_shards` and `check_shard`."""
    for number, written in enumerate(read_shards(folder)):
        check_shard(folder, number, written, deep=deep)
