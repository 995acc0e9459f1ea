"""The images of a row: found in its column and in its messages, read, and put in their places among the tokens.

Within a text an image's place is `MARK`, until the chat template or `ImagePlaces.written` makes tokens of it. From then
on it is an offset: an image is never looked for by the id of its tokens, which a policy may sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerFast

from yatt.config.columns import ABSENT, find_column
from yatt.config.image_tokens import ImageTokens
from yatt.config.schema import DataConfig
from yatt.data.columns import column_names, media_column
from yatt.data.fetch import fetch
from yatt.data.media import Fetch, holds_image, is_remote, listed_media, read_image
from yatt.data.turns import MARK
from yatt.errors import BadRow
from yatt.protocols import MediaStore
from yatt.types import Media
from yatt.vision.images import ImageReader

TAG = "<image>"
"""An image's place in the text of a row."""
LOOKED = 100
"""Without a store so many images are decoded: the headers of the others are read."""
REMOTE_LOOKED = 8
"""Without a store so many images are fetched; others take one token, and nobody sees them."""
KNOWN = 1 << 16
"""Images that an encoder remembers to have decoded."""
_TEXTS = (None, "text", "input_text", "output_text")
_KINDS = ("image", "image_url", "input_image")
_INNER = ("image", "image_url", "source")
"""Where a part may have its image; else it is one itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image of a row as it stands there, and where."""

    value: Any
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The images of a row's column of this name; None for a row without one. `alone`: it holds one, and no list."""

    name: str | None
    images: Sequence[Found] = ()
    alone: bool = False


class ImagePlaces:
    """The images of the rows of one source, for a model that sees.

    Images are checked as they are read: their header, and that they can be decoded. They go into `store`; without one
    they are only looked at."""

    def __init__(
        self,
        data: DataConfig,
        tokens: ImageTokens,
        reader: ImageReader,
        tokenizer: PreTrainedTokenizerFast,
        *,
        folder: Callable[[int], str] = lambda index: "",
        store: MediaStore | None = None,
    ) -> None:
        """`folder` says where the paths of a row start."""
        self._data, self._tokens, self._reader = data, tokens, reader
        self._folder, self._store = folder, store
        self._written = "".join(tokenizer.convert_ids_to_tokens(list(tokens)))
        self._token = str(tokenizer.convert_ids_to_tokens(tokens.image))
        self._fetch: Fetch | None = fetch if data.fetch_images else None
        self._decoded: dict[str, None] = {}
        self._looked = self._fetched = 0

    def marked(self, prompt: Any, row: Mapping[str, Any], *, templated: bool) -> tuple[Any, list[Found]]:
        """A prompt with `MARK` in the place of each image, its messages' contents as text; and the images in the order
        of their places. Raises BadRow where there are not as many places as images."""
        column = self._column(row)
        finder = _Finder(column.images)
        if isinstance(prompt, str):
            prompt = finder.text(prompt if templated else prompt.replace(self._written, TAG))
        elif isinstance(prompt, list):
            prompt = [finder.message(message, number) for number, message in enumerate(prompt, start=1)]
        if column.alone and not finder.places:
            prompt = _before(prompt)
            finder.places, finder.images = 1, [*column.images, *finder.images]
        if finder.places != len(column.images):
            images = f"{len(column.images)} image{'s' * (len(column.images) != 1)}"
            told = "there is no column of images" if column.name is None else f"column {column.name!r} holds {images}"
            places = f"{finder.places} place{'s' * (finder.places != 1)}"
            raise BadRow(f"the prompt has {places} for images, and {told}; write one {TAG} where each image belongs")
        return prompt, finder.images

    def _column(self, row: Mapping[str, Any]) -> Column:
        key = media_column(row, self._data.media_key, sees=True)
        value = None if key is None else find_column(row, key, ABSENT)
        if value is ABSENT:
            raise BadRow(f"no column {key!r} (it has {column_names(row)}); see data.media_key")
        if value is None:
            return Column(name=key)
        images = listed_media(value)
        if isinstance(value, list | tuple) or len(images) != 1:
            named = [Found(value=one, where=f"column {key!r}, image {n}") for n, one in enumerate(images, start=1)]
            return Column(name=key, images=named)
        return Column(name=key, images=[Found(value=images[0], where=f"column {key!r}")], alone=True)

    def written(self, text: str) -> str:
        """A text that goes through no template, with the tokens of an image in each place."""
        return text.replace(MARK, self._written)

    def unseen(self, text: str) -> str:
        """A text of somebody else's that shows no image: what would be an image's token in it is a mere word."""
        return text.replace(self._token, TAG)

    def read(self, images: Sequence[Found], index: int) -> list[Media]:
        """What the images of row `index` are, their bytes in place of a handle. Raises BadRow."""
        return [self._read(image, index) for image in images]

    def _read(self, image: Found, index: int) -> Media:
        if self._store is None and self._fetch is not None and is_remote(image.value):
            self._fetched += 1
            if self._fetched > REMOTE_LOOKED:
                return Media(handle=None, nbytes=0, tokens=1)
        data = read_image(image.value, image.where, self._folder(index), self._fetch)
        digest = xxhash.xxh3_128_hexdigest(data.data)
        try:
            pixels = self._reader.pixels(data)
            (media,) = self.measured([Media(handle=data, nbytes=data.nbytes, digest=digest, pixels=pixels)])
            self._decode(data, digest)
        except BadRow as error:
            raise BadRow(f"{image.where}: {error}") from None
        return media

    def measured(self, images: Sequence[Media]) -> list[Media]:
        """The images with the patches and tokens that this model has of them. Raises BadRow for one that it cannot
        read."""
        sizes = [self._reader.fitting(image.pixels) for image in images]
        return [
            replace(image, patches=size, tokens=self._reader.tokens(size))
            for image, size in zip(images, sizes, strict=True)
        ]

    def _decode(self, data: np.ndarray, digest: str) -> None:
        """Whether it can be done, once per image: whoever makes its patches would fail otherwise, in the middle of a
        step."""
        if digest in self._decoded or (self._store is None and self._looked >= LOOKED):
            return
        self._looked += 1
        self._reader.check(data)
        if len(self._decoded) >= KNOWN:
            self._decoded.clear()
        self._decoded[digest] = None

    def place(
        self, images: Sequence[Media], tokens: np.ndarray, *columns: np.ndarray
    ) -> tuple[tuple[Media, ...], list[np.ndarray]]:
        """Give every image as many tokens as it takes: `tokens` [T] begin with a prompt's, where each has one so far.
        Returns the images in their places, and tokens and `columns` [T] so lengthened."""
        repeats = np.ones(len(tokens), dtype=np.int64)
        (places,) = np.nonzero(tokens == self._tokens.image)
        places = places[: len(images)]
        repeats[places] = [image.tokens for image in images]
        starts = np.cumsum(repeats) - repeats
        placed = tuple(replace(one, start=int(start)) for one, start in zip(images, starts[places], strict=True))
        return placed, [np.repeat(column, repeats) for column in (tokens, *columns)]

    def check_places(self, tokens: np.ndarray, images: int) -> None:
        """Raises BadRow where the tokens of a prompt have not one for each image: a text that names the token itself is
        no image, and a template may leave images out."""
        places = int(np.count_nonzero(tokens == self._tokens.image))
        if places > images:
            raise BadRow(f"the prompt's text holds {self._token!r}, which stands for an image; write {TAG} for one")
        if places < images:
            raise BadRow(
                f"the chat template writes {places} of the prompt's {images} images; use one that takes parts of the "
                'form {"type": "image"}'
            )

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        """The images, in the store."""
        return () if self._store is None or not images else self._store.hold(images)


class _Finder:
    """Goes through the prompt of a row, from image to image."""

    def __init__(self, column: Sequence[Found]) -> None:
        self._column = column
        self.places = 0
        """So many places are for images of the column."""
        self.images: list[Found] = []

    def text(self, text: str) -> str:
        for _ in range(text.count(TAG)):
            self._take()
        return _plain(text).replace(TAG, MARK)

    def message(self, message: Any, number: int) -> Any:
        """A message whose content is text. The assistant's has no places: it shows no images."""
        content = message.get("content") if isinstance(message, dict) else None
        silent = isinstance(message, dict) and message.get("role") == "assistant"
        if isinstance(content, str):
            return message if silent else {**message, "content": self.text(content)}
        if not isinstance(content, list):
            return message
        text = "".join(self._part(part, number) for part in content)
        if silent and MARK in text:
            raise BadRow(f"message {number} is the assistant's and has an image; no model here draws one")
        return {**message, "content": text}

    def _part(self, part: Any, number: int) -> str:
        if isinstance(part, str):
            return _plain(part)
        kind = part.get("type") if isinstance(part, dict) else part
        if isinstance(part, dict) and kind in _TEXTS and isinstance(part.get("text"), str):
            return _plain(part["text"])
        if not isinstance(part, dict) or kind not in (*_KINDS, None):
            raise BadRow(f"message {number} has a part of type {kind!r:.40}; parts are text or image")
        source = next((part[name] for name in _INNER if part.get(name) is not None), part)
        if holds_image(source):
            self.images.append(Found(value=source, where=f"message {number}"))
        elif kind is None:
            raise BadRow(f"message {number} has a part without 'type' and 'text'")
        else:
            self._take()
        return MARK

    def _take(self) -> None:
        self.images += self._column[self.places : self.places + 1]
        self.places += 1


def _plain(text: str) -> str:
    if MARK in text:
        raise BadRow(f"the prompt holds {MARK!r}, which is no character; remove it")
    return text


def _before(prompt: Any) -> Any:
    """The prompt with a place for an image before its first words that are not the system's."""
    if isinstance(prompt, str):
        return MARK + prompt
    if not isinstance(prompt, list):
        return prompt
    first = next((n for n, one in enumerate(prompt) if isinstance(one, dict) and one.get("role") == "user"), None)
    if first is None:
        return prompt
    opened = {**prompt[first], "content": f"{MARK}{prompt[first].get('content') or ''}"}
    return [*prompt[:first], opened, *prompt[first + 1 :]]
