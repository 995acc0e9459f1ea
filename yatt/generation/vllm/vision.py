"""Images for vLLM: ready patches in a request, and a model that is built without transformers' processor, of which only
the size of the largest image would be asked.

Imported in each process of an engine of a model that sees, and by others never."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.models.registry import ModelRegistry
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.multimodal.registry import MultiModalRegistry

from yatt.generation.engine import Image
from yatt.generation.standins import install
from yatt.generation.vllm.worker import WorkerExtension
from yatt.vision.images import ImageReader

__all__ = ["OPTIONS", "WorkerExtension", "features", "prepare"]

OPTIONS: dict[str, Any] = dict(
    mm_device_do_normalize=True,  # patches come as they are, uint8
    mm_processor_cache_gb=0,  # and need no cache of vLLM's own
    skip_mm_profiling=True,  # which would need the processor
    skip_tokenizer_init=False,  # what vLLM builds around a processor insists on one
    worker_extension_cls=f"{__name__}.WorkerExtension",
)
"""Arguments of an engine of a model that sees."""

# vLLM's model files import it; its wheels stop an engine on a CPU, and nothing of it is called here.
install(("torchvision",))


class Limits:
    """What vLLM asks of a processor: which media a prompt may have, and the tokens of the largest."""

    ctx: Any  # vLLM's

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, *unused: Any, **ignored: Any) -> dict[str, int]:
        return {"image": ImageReader(self.ctx.model_config.model).most_tokens}


_model_class = MultiModalRegistry._get_model_cls


def _limited(self: MultiModalRegistry, model_config: Any) -> Any:
    model: Any = _model_class(self, model_config)
    factory = model._processor_factory
    if not issubclass(factory.info, Limits):
        limits = type("LimitedInfo", (Limits, factory.info), {})
        model._processor_factory = dataclasses.replace(factory, info=limits)
    return model


MultiModalRegistry._get_model_cls = _limited  # type: ignore[method-assign]


def prepare(architecture: str) -> None:
    """Have vLLM know the architecture's class: it would look at it in a process without our stand-in."""
    registered: Any = ModelRegistry.models[architecture]
    ModelRegistry.register_model(architecture, registered.load_model_cls())


def features(images: Sequence[Image]) -> list[MultiModalFeatureSpec]:
    """What vLLM is told of a request's images. The tower reads each `identifier` once, while it is remembered."""
    return [_feature(image) for image in images]


def _feature(image: Image) -> MultiModalFeatureSpec:
    media, patches = image
    item = MultiModalKwargsItem(
        pixel_values=MultiModalFieldElem(
            data=torch.from_numpy(patches), field=MultiModalFlatField(slices=[slice(0, len(patches))], dim=0)
        ),
        image_grid_thw=MultiModalFieldElem(
            data=torch.tensor(media.patches), field=MultiModalBatchedField(keep_on_cpu=True)
        ),
    )
    return MultiModalFeatureSpec(
        data=item,
        modality="image",
        identifier=media.digest,
        mm_position=PlaceholderRange(offset=media.start, length=media.tokens),
        mm_hash=media.digest,
    )
