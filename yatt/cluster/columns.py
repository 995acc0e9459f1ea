"""Values of annotated types as columns, by one codec that follows the annotations: a new field needs no line here.

`pack` turns a value into nested tuples of numbers and large arrays, and `read` turns these back. A list of values of
one type becomes, for

- a number: one array, in as few bytes as hold it; a list where they are few, one number where all are equal;
- an array: lengths, and all of them end to end, which are read back as views; of bools, bits;
- a dataclass or a tuple of fixed length: a list for each field;
- `tuple[X, ...]` or `list[X]`: lengths, and one list of X;
- a union: which member each value is of, and a list for each member; likewise for a dataclass and its subclasses;
- `Media`: a list for each field but its handle, which is given apart, to be sent beside the columns;
- anything else: the list, as it is.

What is one object in several places travels once, and is one object where it is read.
"""

from __future__ import annotations

import inspect
import math
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, cached_property, partial
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
        same = type(first) is self._kind and first == values[-1] and values.count(first) == len(values)
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
        self._places = {value: place for place, value in enumerate(values)}

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return codec(int).pack(list(map(self._places.__getitem__, values)), handles)

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        return [self._values[place] for place in codec(int).read(columns, count, opened)]


class Images(Codec):
    """Images travel beside the columns; what is said of them, in the columns."""

    _said = ("nbytes", "digest", "pixels", "patches", "start", "tokens")

    @cached_property
    def _fields(self) -> dict[str, Codec]:
        hints = get_type_hints(Media)
        return {name: codec(hints[name]) for name in self._said}

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        handles += [image.handle for image in values]
        return [c.pack([getattr(v, name) for v in values], handles) for name, c in self._fields.items()]

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        arrays = list(islice(opened, count))
        parts = [c.read(one, count, opened) for c, one in zip(self._fields.values(), columns, strict=True)]
        rows = zip(*parts, strict=True)
        return [
            Media(handle=array, **dict(zip(self._said, row, strict=True)))
            for array, row in zip(arrays, rows, strict=True)
        ]


class Arrays(Codec):
    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        lengths = codec(int).pack(list(map(len, values)), handles)
        whole = np.concatenate(values) if len(values) > 1 else values[0]
        as_bits = whole.dtype == np.bool_ and whole.ndim == 1
        return lengths, len(whole) if as_bits else None, np.packbits(whole) if as_bits else whole

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        lengths, bits, whole = columns
        if bits is not None:
            whole = np.unpackbits(whole, count=bits).view(np.bool_)
        if count == 1:
            return [whole]
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
        if count == 1:
            return [self._kind(items)]
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

    @cached_property
    def _make(self) -> Maker:
        hint, names = self._hint, self._names
        if not is_dataclass(hint):
            return partial(_tupled, tuple if get_origin(hint) is tuple else hint)
        setters = _setters(hint, names)
        return partial(_called, hint, names) if setters is None else partial(_filled, hint, setters)

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        return tuple([column.pack(list(map(get, values)), handles) for get, column in self._fields])

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        parts = [c.read(column, count, opened) for (_, c), column in zip(self._fields, columns, strict=True)]
        return self._make(parts, count)


Maker: TypeAlias = Callable[[list[list[Any]], int], list[Any]]
"""Makes so many values of the columns of their fields."""


def _tupled(kind: Any, columns: list[list[Any]], count: int) -> list[Any]:
    return list(map(tuple.__new__, repeat(kind, count), zip(*columns, strict=True)))


def _called(kind: Any, names: tuple[str, ...], columns: list[list[Any]], count: int) -> list[Any]:
    rows = zip(*columns, strict=True) if names else repeat((), count)
    return [kind(**dict(zip(names, row, strict=True))) for row in rows]


def _filled(kind: Any, setters: list[Callable[..., None]], columns: list[list[Any]], count: int) -> list[Any]:
    """A field of all values at a time, in less than half the time of as many calls of `__init__`. That has been called
    where they were packed."""
    values = list(map(object.__new__, repeat(kind, count)))
    for setter, column in zip(setters, columns, strict=True):
        deque(map(setter, values, column), maxlen=0)
    return values


def _setters(hint: Any, names: tuple[str, ...]) -> list[Callable[..., None]] | None:
    """Setters of the fields of a dataclass that is nothing but its slots; None for one that does more when made."""
    slots = [vars(base).get(name) for name in names for base in hint.__mro__ if name in vars(base)]
    generated = "__dataclass_params__" in vars(hint) and hint.__dataclass_params__.init
    plain = generated and not hasattr(hint, "__post_init__") and len(fields(hint)) == len(names) == len(slots)
    if not plain or hint.__new__ is not object.__new__:
        return None
    return [slot.__set__ for slot in slots] if all(map(inspect.ismemberdescriptor, slots)) else None


class Members(Codec):
    """Of a union, and of a dataclass, whose subclasses are members too."""

    def __init__(self, hints: tuple[Any, ...]) -> None:
        self._hints = {get_origin(hint) or hint: hint for hint in hints}
        self._known: dict[type, Any] = {}

    def _hint(self, kind: type) -> Any:
        if kind not in self._known:
            own = self._hints.get(kind, kind) if kind in self._hints or is_dataclass(kind) else None
            bases = (hint for base, hint in self._hints.items() if issubclass(kind, base))
            self._known[kind] = own or next(bases, Any)
        return self._known[kind]

    def pack(self, values: list[Any], handles: list[Any]) -> Columns:
        kinds = list(map(type, values))
        hints = {kind: self._hint(kind) for kind in dict.fromkeys(kinds)}
        if len(hints) == 1:
            (hint,) = hints.values()
            return None, hint, _member(hint).pack(values, handles)
        columns = []
        for kind, hint in hints.items():
            some = [v for v, k in zip(values, kinds, strict=True) if k is kind]
            columns.append((hint, len(some), _member(hint).pack(some, handles)))
        places = {kind: place for place, kind in enumerate(hints)}
        return codec(int).pack(list(map(places.__getitem__, kinds)), handles), tuple(columns), None

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        members, parts, packed = columns
        if members is None:
            return _member(parts).read(packed, count, opened)
        streams = [iter(_member(hint).read(packed, size, opened)) for hint, size, packed in parts]
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
        size = len(set(names))
        if size == len(values):
            return None, size, self._inner.pack(values, handles)
        objects = dict(zip(names, values, strict=True))
        packed = self._inner.pack(list(objects.values()), handles)
        if size == 1:
            return 0, size, packed
        places = {name: place for place, name in enumerate(objects)}
        return codec(int).pack(list(map(places.__getitem__, names)), handles), size, packed

    def read(self, columns: Columns, count: int, opened: Iterator[Any]) -> list[Any]:
        places, size, packed = columns
        objects = self._inner.read(packed, size, opened)
        if places is None:
            return objects
        return list(map(objects.__getitem__, codec(int).read(places, count, opened)))


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
