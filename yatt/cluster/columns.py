"""Values of annotated types as columns, by one codec that follows the annotations: a new field needs no line here.

`pack` turns a value into nested tuples of numbers and large arrays, and `read` turns these back. A list of values of
one type becomes, for

- a number: one array, in as few bytes as hold it; a list where they are few, one number where all are equal;
- an array: lengths, and all of them end to end, which are read back as views; of bools, bits;
- a dataclass or a tuple of fixed length: a list for each field;
- `tuple[X, ...]` or `list[X]`: lengths, and one list of X;
- a union: which member each value is of, and a list for each member; likewise for a dataclass and its subclasses;
- `Media`: nothing. Its handle is given apart, to be sent beside the columns;
- anything else: the list, as it is.

What is one object in several places travels once, and is one object where it is read.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from itertools import accumulate, chain, islice, pairwise, repeat
from operator import attrgetter, itemgetter
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np

from yatt.types import Media

Columns: TypeAlias = Any
"""The form that `pack` gives: numbers, arrays, and tuples of them."""
FEW = 32
"""Up to so many numbers are a list: an array costs more to send."""


def pack(hint: Any, value: Any) -> tuple[Columns, list[Any]]:
    """The columns of a value of type `hint`, and the handles of its images, each once."""
    handles: list[Any] = []
    return codec(hint).pack([value], handles), handles


def read(hint: Any, columns: Columns, opened: Sequence[Any] = ()) -> Any:
    """The value that was packed; `opened` are the images in the order of their handles."""
    return codec(hint).read(columns, 1, iter(opened))[0]


class Codec:
    """Packs a list of values of one type, at least one, and reads `count` of them back. Handles of images are
    added to `handles`, and taken from `opened` in the same order."""

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        raise NotImplementedError

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        raise NotImplementedError


@cache
def codec(hint: Any) -> Codec:
    """The codec of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float, bool):
        return Numbers(hint)
    if hint in (None, type(None)):
        return Nothing()
    if origin is Literal:
        return Choices(inner)
    if origin in (Union, types.UnionType):
        return Members(inner)
    if hint is Media:
        return Once(Images())
    if np.ndarray in (hint, origin):
        return Once(Arrays())
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return Once(Sequences(origin, inner[0]))
    if is_dataclass(hint):
        return Members((hint,))
    if origin is tuple or hasattr(hint, "_fields"):
        return Records(hint)
    return Objects()


class Objects(Codec):
    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return values

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        return list(columns)


class Nothing(Codec):
    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return None

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        return [None] * count


class Numbers(Codec):
    """Raises TypeError for a value that its type cannot hold."""

    def __init__(self, kind: type) -> None:
        self._kind, self._dtype = kind, np.dtype(kind)

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        first = values[0]
        same = type(first) is self._kind and values.count(first) == len(values)
        if same and (first or self._kind is not float or _of_one_sign(values)):
            return first
        if len(values) <= FEW and set(map(type, values)) == {self._kind}:
            return values
        given = np.array(values)
        if given.dtype != self._dtype and not np.can_cast(given.dtype, self._dtype, "safe"):
            raise TypeError(f"{given.dtype} values where the annotation says {self._dtype}: {values[:3]}")
        return _narrow(given) if self._kind is int else given.astype(self._dtype, copy=False)

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        if isinstance(columns, np.ndarray):
            columns = columns.tolist()
        return columns if isinstance(columns, list) else [columns] * count


class Choices(Codec):
    """Of a literal type: places among its values."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._values = values

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return codec(int).pack([self._values.index(value) for value in values], handles)

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        return [self._values[place] for place in codec(int).read(columns, count, opened)]


class Images(Codec):
    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        handles += [image.handle for image in values]

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        return [Media(handle=array, nbytes=array.nbytes) for array in islice(opened, count)]


class Arrays(Codec):
    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        lengths, whole = codec(int).pack(list(map(len, values)), handles), np.concatenate(values)
        as_bits = whole.dtype == np.bool_ and whole.ndim == 1
        return lengths, len(whole) if as_bits else None, np.packbits(whole) if as_bits else whole

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        lengths, bits, whole = columns
        if bits is not None:
            whole = np.unpackbits(whole, count=bits).view(np.bool_)
        return [whole[start:stop] for start, stop in _bounds(codec(int).read(lengths, count, opened))]


class Sequences(Codec):
    def __init__(self, kind: Callable[[Sequence[Any]], Any], item: Any) -> None:
        self._kind, self._hint = kind, item

    @cached_property
    def _item(self) -> Codec:
        return codec(self._hint)

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        items = list(chain.from_iterable(values))
        lengths = codec(int).pack(list(map(len, values)), handles)
        return lengths, len(items), self._item.pack(items, handles) if items else None

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        lengths, total, packed = columns
        items = self._item.read(packed, total, opened) if total else []
        bounds = _bounds(codec(int).read(lengths, count, opened))
        return [self._kind(items[start:stop]) for start, stop in bounds]


class Records(Codec):
    """Of a dataclass, or a tuple of fixed length, named or not."""

    def __init__(self, hint: Any) -> None:
        self._hint = hint

    @cached_property
    def _fields(self) -> list[tuple[Callable[[Any], Any], Codec]]:
        """How to get each field, and its codec."""
        if get_origin(self._hint) is tuple:
            return [(itemgetter(i), codec(inner)) for i, inner in enumerate(get_args(self._hint))]
        hints = get_type_hints(self._hint)
        return [(attrgetter(name), codec(hints[name])) for name in self._names]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        if is_dataclass(self._hint):
            return tuple(field.name for field in fields(self._hint) if field.init)
        return tuple(getattr(self._hint, "_fields", ()))

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return tuple(column.pack(list(map(get, values)), handles) for get, column in self._fields)

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        parts = (c.read(column, count, opened) for (_, c), column in zip(self._fields, columns, strict=True))
        rows = zip(*parts, strict=True)
        if hasattr(self._hint, "_make"):
            return list(map(self._hint._make, rows))
        names, make = self._names, self._hint
        return [make(**dict(zip(names, row, strict=True))) for row in rows] if names else list(rows)


class Members(Codec):
    """Of a union, and of a dataclass, whose subclasses are members too."""

    def __init__(self, hints: tuple[Any, ...]) -> None:
        self._hints = {get_origin(hint) or hint: hint for hint in hints}

    def _hint(self, kind: type) -> Any:
        if kind in self._hints or is_dataclass(kind):
            return self._hints.get(kind, kind)
        return next((hint for base, hint in self._hints.items() if issubclass(kind, base)), Any)

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        kinds = list(map(type, values))
        hints = {kind: self._hint(kind) for kind in dict.fromkeys(kinds)}
        columns = []
        for kind, hint in hints.items():
            some = values if len(hints) == 1 else [v for v, k in zip(values, kinds, strict=True) if k is kind]
            columns.append((hint, len(some), _member(hint).pack(some, handles)))
        places = {kind: place for place, kind in enumerate(hints)}
        return codec(int).pack([places[kind] for kind in kinds], handles), tuple(columns)

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        members, parts = columns
        several = [_member(hint).read(packed, size, opened) for hint, size, packed in parts]
        if len(several) == 1:
            return several[0]
        streams = list(map(iter, several))
        return [next(streams[place]) for place in codec(int).read(members, count, opened)]


@cache
def _member(hint: Any) -> Codec:
    """The codec of values of just this type."""
    return Once(Records(hint)) if is_dataclass(hint) and hint is not Media else codec(hint)


class Once(Codec):
    """As `inner`, but each object once."""

    def __init__(self, inner: Codec) -> None:
        self._inner = inner

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        names = list(map(id, values))
        objects = dict(zip(names, values, strict=True))
        packed = self._inner.pack(list(objects.values()), handles)
        if len(objects) == len(values):
            return len(objects), None, packed
        places = {name: place for place, name in enumerate(objects)}
        return len(objects), codec(int).pack([places[name] for name in names], handles), packed

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        size, places, packed = columns
        objects = self._inner.read(packed, size, opened)
        return objects if places is None else [objects[place] for place in codec(int).read(places, count, opened)]


def _of_one_sign(values: list[float]) -> bool:
    """Whether no 0.0 is among values -0.0, to which it is equal, nor the other way round."""
    return len(set(map(math.copysign, repeat(1.0), values))) == 1


def _narrow(column: np.ndarray) -> np.ndarray:
    """The same integers in as few bytes as hold them."""
    low, high = int(column.min()), int(column.max())
    return column.astype(np.min_scalar_type(high if low >= 0 else min(low, -high - 1)))


def _bounds(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where parts of these lengths begin and end, end to end."""
    return pairwise(accumulate(lengths, initial=0))
