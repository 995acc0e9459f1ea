"""Images for SGLang: ready patches in a request, and the call that has the tower read them. Imported only for a model
that sees."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput

from yatt.generation.engine import Image
from yatt.vision.images import ImageReader
from yatt.vision.rotary import positions

NO_TOKEN = -1
"""Stands for the id of an image's tokens: they are found by their place, but SGLang wants to be told of one."""


def inputs(images: Sequence[Image], length: int, merge: int) -> MultimodalProcessorOutput:
    """What SGLang is told of the images of a request of `length` tokens. Each request has items of its own, which are
    emptied as it ends; the patches are shared."""
    places = positions(length, [image.media for image in images], merge)
    return MultimodalProcessorOutput(
        mm_items=[_item(image) for image in images],
        im_token_id=NO_TOKEN,
        mrope_positions=torch.from_numpy(places),
        mrope_position_delta=torch.tensor([[int(places.max()) + 1 - length]]),
    )


def _item(image: Image) -> MultimodalDataItem:
    media, patches = image
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=torch.from_numpy(patches),
        offsets=[(media.start, media.start + media.tokens - 1)],
        model_specific_data={"image_grid_thw": torch.tensor([media.patches])},
    )
    # Numbers beyond the vocabulary stand in the prompt for the image's tokens: cached prefixes are told apart by them.
    item.set_identity(blake2b(media.digest.encode(), digest_size=32).digest())
    return item


def see(model: Any, folder: str) -> None:
    """Have the model's tower read uint8 patches. SGLang's own call takes them normalised, and patches of another size
    than 14 for the tower's output."""
    reader = ImageReader(folder)
    mean, std = torch.from_numpy(reader.mean), torch.from_numpy(reader.std)

    def read(items: Sequence[MultimodalDataItem]) -> torch.Tensor:
        """Embeddings of the tokens of all these images, one after another."""
        device = next(model.visual.parameters()).device
        patches = torch.cat([item.feature for item in items]).to(device)
        channels = patches.view(len(patches), len(mean), -1).float() / 255
        normal = (channels - mean.to(device)[:, None]) / std.to(device)[:, None]
        grid = torch.cat([item.image_grid_thw for item in items])
        embeddings: torch.Tensor = model.visual(normal.flatten(1).to(model.visual.dtype), grid_thw=grid)
        return embeddings

    model.get_image_feature = read
