"""Checks of a layer's options when it is made, as far as they can be checked without an x."""

from __future__ import annotations

from typing import Any

from cnnlayers.specs.arguments import check_format as check_format
from cnnlayers.specs.arguments import choice, entries_of, integer, pairs, sizes

PADDING_NAMES = ("valid", "same", "same_lower", "full")


def check_window(ndim: int | None = None, *, named: bool = True, **options: Any) -> None:
    """Sizes of a window: an int each, or one per spatial axis, of which there are `ndim`, or one to three. None is
    nothing to check; `named`: whether padding may be a name. ValueError or TypeError for what no x could have."""
    lengths: dict[str, int] = {}
    for name, value in options.items():
        if named and name == "padding" and isinstance(value, str):
            choice(value, "padding", PADDING_NAMES)
        elif value is not None:
            entries = entries_of(value, name)
            number = 1 if entries is None else len(entries)
            if name == "padding":
                pairs(value, number, name)
            else:
                sizes(value, number, name, 0 if name == "output_padding" else 1)
            if entries is not None:
                lengths[name] = number
    for name, number in lengths.items():
        expected = next(iter(lengths.values())) if ndim is None else ndim
        if number != expected or not 1 <= number <= 3:
            axes = f"{expected}" if 1 <= expected <= 3 else "one to three"
            raise ValueError(f"{name} needs an int, or one entry per spatial axis ({axes}), got {options[name]!r}")


def check_pad(padding: Any) -> None:
    """The padding of a pad layer, in which negative entries crop: also PyTorch's flat form, two entries an axis."""
    entries = entries_of(padding, "padding")
    if entries is not None and len(entries) not in (1, 2, 3, 4, 6):
        raise ValueError(f"padding needs an int, or an int or a pair per spatial axis (one to three), got {padding!r}")
    pairs(padding, 1 if entries is None else len(entries), "padding", None)


def check_output_size(output_size: Any) -> None:
    """The size of an adaptive pool's result: an int, or one per spatial axis; None keeps an axis, or all."""
    entries = entries_of(output_size, "output_size") if output_size is not None else ()
    if entries is not None and len(entries) > 3:
        raise ValueError(f"output_size needs one entry per spatial axis (one to three), got {output_size!r}")
    for entry in (output_size,) if entries is None else entries:
        if entry is not None:
            integer(entry, "output_size", 1)
