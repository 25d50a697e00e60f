"""Checks of a layer's options when it is made, as far as they can be checked without an x."""

from __future__ import annotations

from typing import Any, get_args

from cnnlayers.specs.arguments import DataFormat, choice, entries_of, integer, real

PADDING_NAMES = ("valid", "same", "same_lower", "full")
LEAST = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0, "output_padding": 0}


def check_window(ndim: int | None = None, *, named: bool = True, **options: Any) -> None:
    """Sizes of a window: an int each, or one per spatial axis, of which there are `ndim`, or one to three. None is
    nothing to check; `named`: whether padding may be a name. ValueError or TypeError for what no x could have."""
    lengths: dict[str, int] = {}
    for name, value in options.items():
        if value is None or (name == "padding" and named and isinstance(value, str)):
            if value is not None:
                choice(value, "padding", PADDING_NAMES)
            continue
        entries = entries_of(value, name)
        if entries is None:
            integer(value, name, LEAST[name])
            continue
        lengths[name] = len(entries)
        for entry in entries:
            pair = entries_of(entry, name) if name == "padding" else None
            if pair is not None and len(pair) != 2:
                raise ValueError(f"padding: an axis has two sides, (before, after), got {entry!r} in {value!r}")
            for number in (entry,) if pair is None else pair:
                integer(number, name, LEAST[name])
    for name, number in lengths.items():
        expected = next(iter(lengths.values())) if ndim is None else ndim
        if number != expected or not 1 <= number <= 3:
            axes = f"{expected}" if 1 <= expected <= 3 else "one to three"
            raise ValueError(f"{name} needs an int, or one entry per spatial axis ({axes}), got {options[name]!r}")


def check_pad(padding: Any) -> None:
    """The padding of a pad layer, in which negative entries crop: also PyTorch's flat form, two entries an axis."""
    entries = entries_of(padding, "padding")
    if entries is None:
        integer(padding, "padding")
        return
    if len(entries) not in (1, 2, 3, 4, 6):
        raise ValueError(f"padding needs an int, or an int or a pair per spatial axis (one to three), got {padding!r}")
    for entry in entries:
        pair = entries_of(entry, "padding")
        if pair is not None and len(pair) != 2:
            raise ValueError(f"padding: an axis has two sides, (before, after), got {entry!r} in {padding!r}")
        for number in (entry,) if pair is None else pair:
            integer(number, "padding")


def check_output_size(output_size: Any) -> None:
    """The size of an adaptive pool's result: an int, or one per spatial axis; None keeps an axis, or all."""
    entries = entries_of(output_size, "output_size") if output_size is not None else ()
    if entries is not None and len(entries) > 3:
        raise ValueError(f"output_size needs one entry per spatial axis (one to three), got {output_size!r}")
    for entry in (output_size,) if entries is None else entries:
        if entry is not None:
            integer(entry, "output_size", 1)


def check_format(data_format: Any) -> DataFormat:
    if not isinstance(data_format, str):
        raise TypeError(f"data_format must be a str, got {type(data_format).__name__}")
    choice(data_format, "data_format", get_args(DataFormat))
    return "channels_first" if data_format == "channels_first" else "channels_last"


def check_eps(eps: Any) -> float:
    number = real(eps, "eps")
    if number < 0:
        raise ValueError(f"eps must be at least 0, got {eps!r}")
    return number
