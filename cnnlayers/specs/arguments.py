"""Checks of numbers, sizes and layouts: what every spec is made from.

Each check gives the value in its one right form, or raises TypeError (a kind) or ValueError (a range, a shape) with the
argument's name, what came and what was expected.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeAlias, TypeVar, cast

Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]

# What public functions take.
Size: TypeAlias = SupportsIndex | Sequence[SupportsIndex]  # cells: for all spatial axes, or one number each
Padding: TypeAlias = Size | Sequence[tuple[int, int]] | Literal["valid", "same", "same_lower", "full"]
Sides: TypeAlias = Size | Sequence[tuple[int, int]]  # padding in numbers alone
OutputSize: TypeAlias = SupportsIndex | Sequence[SupportsIndex | None] | None
DataFormat: TypeAlias = Literal["channels_first", "channels_last"]
Ties: TypeAlias = Literal["first", "all", "split"]
PadMode: TypeAlias = Literal["constant", "edge", "reflect", "symmetric", "wrap", "replicate", "circular"]

F = TypeVar("F", bound=Callable[..., Any])

MOST_ELEMENTS = 2**59  # of up to 16 bytes: NumPy counts an array's bytes in 63 bits
LIMIT = 2**31  # an argument beyond this is a mistake, and would overflow a kernel's 32-bit arithmetic


def cached(make: F) -> F:
    """A function of arguments whose last results are kept: a small call would spend more time on its checks than on its
    cells. A result is shared, so it must not be changed. Results have a fixed size, so their number is limited and not
    their bytes.

    Numbers, strings, None and tuples of ints are looked up; anything else (a list, a NumPy number, a tuple with True,
    which equals 1) goes to the function, which may refuse it. No error is kept.
    """
    with_cache = functools.lru_cache(maxsize=1024, typed=True)(make)

    @functools.wraps(make)
    def run(*args: Any, **options: Any) -> Any:
        if options or not is_key(args, tuple(map(type, args))):
            return make(*args, **options)
        return with_cache(*args)

    return cast(F, run)


_KEY_TYPES = frozenset({int, str, bool, type(None), float, tuple})


def is_key(values: tuple[Any, ...], kinds: tuple[type, ...]) -> bool:
    """Whether these values, together with their types `kinds`, are like no others: numbers, strings, None, and tuples
    of ints or of such tuples."""
    known = _KEY_TYPES.issuperset(kinds)
    return known and (tuple not in kinds or all(_of_ints(v) for v in values if type(v) is tuple))


def _of_ints(entries: tuple[Any, ...]) -> bool:
    return all(type(v) is int or (type(v) is tuple and _of_ints(v)) for v in entries)


def is_bool(value: Any) -> bool:
    """Whether it is Python's or NumPy's True or False."""
    return type(value).__name__ in ("bool", "bool_")


def integer(value: Any, name: str, least: int | None = None) -> int:
    """`value` as an int of at least `least`. TypeError unless it is a whole-number type (bool is not)."""
    try:
        if is_bool(value):  # NumPy's was an index once
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if abs(number) >= LIMIT:
        raise ValueError(f"{name} must be below 2**31, got {number}")
    return number


def real(value: Any, name: str, *, finite: bool = True) -> float:
    """`value` as a float. TypeError unless it is a real number, ValueError for NaN or infinity unless allowed."""
    try:
        if isinstance(value, str | bytes) or is_bool(value) or (hasattr(value, "ndim") and value.ndim > 0):
            raise TypeError
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got an int beyond the floats") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}") from None
    if finite and not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def flag(value: Any, name: str) -> bool:
    """`value` as a bool. TypeError unless it is one."""
    if is_bool(value):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """`value`, which must be one of these strings. ValueError otherwise."""
    if isinstance(value, str) and value in options:
        return value
    raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}")


def entries_of(value: Any, name: str) -> tuple[Any, ...] | None:
    """The entries of a sequence, or None where `value` is one number. TypeError for a str, a set or a dict."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be an int or one per spatial axis, got {value!r}")
    if isinstance(value, Set | Mapping):
        raise TypeError(
            f"{name} must be an int or a tuple or list of them: a {type(value).__name__} has no order of axes, got"
            f" {value!r}"
        )
    if isinstance(value, Iterator):
        raise TypeError(f"{name} must be an int or a tuple or list of them: an iterator can be read once only")
    if isinstance(value, Iterable) and not (hasattr(value, "ndim") and value.ndim == 0):
        try:
            return tuple(value)
        except TypeError:  # arrays of array-api-strict are not to be iterated over
            raise TypeError(
                f"{name} must be an int or a tuple or list of them, got {type(value).__module__}."
                f"{type(value).__qualname__}"
            ) from None
    return None


def integers(value: Any, name: str, least: int | None = None) -> Shape:
    """One int, or a sequence of them, as a tuple."""
    entries = entries_of(value, name)
    return tuple(integer(v, name, least) for v in ((value,) if entries is None else entries))


def sizes(value: Any, ndim: int, name: str, least: int = 1) -> Shape:
    """One int for all spatial axes, or one per axis, as a tuple of `ndim` ints of at least `least`."""
    entries = entries_of(value, name)
    if entries is None:
        return (integer(value, name, least),) * ndim
    if len(entries) != ndim:
        raise ValueError(f"{name} needs one entry per spatial axis ({ndim}), got {len(entries)}: {value!r}")
    return tuple(integer(v, name, least) for v in entries)


def pairs(value: Any, ndim: int, name: str, least: int | None = 0) -> tuple[Pair, ...]:
    """An int, one per axis, or a (before, after) pair per axis, as `ndim` pairs."""
    entries = entries_of(value, name)
    if entries is None:
        number = integer(value, name, least)
        return ((number, number),) * ndim
    if len(entries) != ndim:
        raise ValueError(
            f"{name} needs an int, or an int or a (before, after) pair per spatial axis ({ndim}), got {value!r}"
        )
    found = []
    for entry in entries:
        pair = entries_of(entry, name) or (entry, entry)
        if len(pair) != 2:
            raise ValueError(f"{name}: an axis has two sides, (before, after), got {entry!r} in {value!r}")
        found.append((integer(pair[0], name, least), integer(pair[1], name, least)))
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """Where `x`'s axes are. `shape`: all of x's; `channel`: its channel axis; `spatial`: its spatial axes."""

    shape: Shape
    channel: int
    spatial: Shape

    @property
    def lengths(self) -> Shape:
        return tuple(self.shape[a] for a in self.spatial)

    @property
    def channels(self) -> int:
        return self.shape[self.channel]

    def with_spatial(self, lengths: Sequence[int], channels: int | None = None) -> Shape:
        """x's shape with other spatial lengths (and channels). ValueError where no array could have that shape."""
        out = list(self.shape)
        for axis, length in zip(self.spatial, lengths, strict=True):
            out[axis] = length
        if channels is not None:
            out[self.channel] = channels
        # A symbol of torch.export is left out: comparing it would restrict the sizes that the export is good for.
        if math.prod(max(n, 1) for n in out if type(n) is int) >= MOST_ELEMENTS:
            raise ValueError(
                f"the result for x of shape {self.shape} would have shape {tuple(out)}, more than the 2**59 elements"
                " that fit into an array: look at kernel_size, stride, padding, dilation and output_size"
            )
        return tuple(out)

    def at(self, *slices: Any) -> tuple[Any, ...]:
        """An index that takes these slices of the spatial axes and everything of the others."""
        index: list[Any] = [slice(None)] * len(self.shape)
        for axis, part in zip(self.spatial, slices, strict=True):
            index[axis] = part
        return tuple(index)


def check_format(data_format: Any) -> DataFormat:
    """The name of an order of axes. TypeError or ValueError for anything else."""
    if not isinstance(data_format, str):
        raise TypeError(f"data_format must be a str, got {type(data_format).__name__}")
    if data_format not in ("channels_first", "channels_last"):
        raise ValueError(f"data_format must be 'channels_first' or 'channels_last', got {data_format!r}")
    return cast(DataFormat, data_format)


@cached
def layout(shape: Shape, data_format: str, *, least: int = 1) -> Layout:
    """The layout of an array with `least` to three spatial axes. ValueError for another rank or format."""
    check_format(data_format)
    ndim = len(shape)
    if not least + 2 <= ndim <= 5:
        raise ValueError(
            f"x must have batch, channels and {least} to 3 spatial axes ({least + 2} to 5 in all), got shape {shape}"
        )
    if data_format == "channels_first":
        return Layout(tuple(shape), 1, tuple(range(2, ndim)))
    return Layout(tuple(shape), ndim - 1, tuple(range(1, ndim - 1)))


def trailing(shape: Shape, normalized_shape: Any) -> Shape:
    """`normalized_shape` (an int or a sequence) as a tuple, which must be x's last axes."""
    found = integers(normalized_shape, "normalized_shape", 0)
    if not found:
        raise ValueError("normalized_shape must name at least one axis, got none")
    if tuple(shape[-len(found) :]) != found or len(found) > len(shape):
        raise ValueError(f"normalized_shape {found} must be the last axes of x, whose shape is {tuple(shape)}")
    return found


def grouped(channels: int, groups: Any, name: str = "num_groups") -> int:
    """`groups` as an int that divides the number of channels."""
    number = integer(groups, name, 1)
    if channels % number:
        raise ValueError(f"{name} must divide the number of channels: {channels} % {number} = {channels % number}")
    return number
