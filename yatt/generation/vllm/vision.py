"""Images for vLLM: ready patches in a request, and a model that is built without transformers' processor, of which only
the size of the largest image would be asked. Imported only for a model that sees."""

from __future__ import annotations

import dataclasses
import math
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

from yatt.generation.engine import Image
from yatt.generation.standins import install
from yatt.vision.images import ImageReader

OPTIONS: dict[str, Any] = dict(
    mm_device_do_normalize=True,  # patches come as they are, uint8
    mm_processor_cache_gb=0,  # and need no cache of vLLM's own
    skip_mm_profiling=True,  # which would need the processor
    skip_tokenizer_init=False,  # what it has in place of the processor insists on one
)
"""Arguments of an engine of a model that sees."""


def prepare(folder: str, architecture: str) -> None:
    """Have this process, and those it starts, build the model with the limits of the folder's image processor.

    vLLM's model files import torchvision, whose wheels stop an engine on a CPU and of which nothing is called here.
    The class is imported here, since vLLM would look at it in a process without our stand-in."""
    install(("torchvision",))
    most = ImageReader(folder).most_tokens
    registered: Any = ModelRegistry.models[architecture]
    model: Any = registered.load_model_cls()
    factory = model._processor_factory

    class Limits(factory.info):  # type: ignore[misc]
        """What vLLM asks of a processor: which media a prompt may have, and the tokens of the largest."""

        def get_supported_mm_limits(self) -> dict[str, int | None]:
            return {"image": None}

        def get_mm_max_tokens_per_item(self, *unused: Any, **ignored: Any) -> dict[str, int]:
            return {"image": most}

    model._processor_factory = dataclasses.replace(factory, info=Limits)
    ModelRegistry.register_model(architecture, model)


def features(images: Sequence[Image]) -> list[MultiModalFeatureSpec] | None:
    """What vLLM is told of a request's images. The tower reads each `identifier` once, while it is remembered."""
    return [_feature(image) for image in images] or None


def _feature(image: Image) -> MultiModalFeatureSpec:
    media, patches = image
    assert len(patches) == math.prod(media.patches)
    whole = MultiModalFlatField(slices=[slice(0, len(patches))], dim=0)
    item = MultiModalKwargsItem(
        pixel_values=MultiModalFieldElem(data=torch.from_numpy(patches), field=whole),
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
