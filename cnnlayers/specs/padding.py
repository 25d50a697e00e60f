"""Padding and cropping of the spatial axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arguments import Layout, Pair, Shape, cached, layout, pairs

PAD_MODES = {"replicate": "edge", "circular": "wrap"} | {
    m: m for m in ("constant", "edge", "reflect", "symmetric", "wrap")
}


@dataclass(frozen=True)
class Pad:
    """Padding of an array: `grow` and `crop` cells for each side of each spatial axis, both counted up from 0."""

    layout: Layout
    mode: str
    grow: tuple[Pair, ...]
    crop: tuple[Pair, ...]

    @property
    def sides(self) -> tuple[tuple[int, int, Pair, Pair], ...]:
        """Each spatial axis: its place among the array's axes, its length, its grow and its crop."""
        return tuple(zip(self.layout.spatial, self.layout.lengths, self.grow, self.crop, strict=True))

    @property
    def out_shape(self) -> Shape:
        lengths = self.layout.lengths
        return self.layout.with_spatial(
            [n + sum(g) - sum(c) for n, g, c in zip(lengths, self.grow, self.crop, strict=True)]
        )


@cached
def pad_spec(shape: Shape, padding: Any, mode: str, data_format: str) -> Pad:
    """Padding by `mode` (NumPy's names, or PyTorch's replicate and circular), negative entries cropping.

    ValueError where reflect is not smaller than its axis, wrap or symmetric larger, edge has no cell to repeat, or more
    is cropped than there is.
    """
    lay = layout(shape, data_format)
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a str, got {type(mode).__name__}")
    if mode not in PAD_MODES:
        raise ValueError(f"mode must be one of {', '.join(sorted(PAD_MODES))}, got {mode!r}")
    mode = PAD_MODES[mode]
    if isinstance(padding, str):
        raise TypeError(f"padding of pad must be numbers, got {padding!r}")
    given = pairs(padding, len(lay.spatial), "padding", None)
    for length, pair in zip(lay.lengths, given, strict=True):
        _check_pad(mode, length, pair)
    grow = tuple((max(a, 0), max(b, 0)) for a, b in given)
    crop = tuple((max(-a, 0), max(-b, 0)) for a, b in given)
    return Pad(lay, mode, grow, crop)


def _check_pad(mode: str, length: int, pair: Pair) -> None:
    widest, cropped = max(pair), -sum(min(p, 0) for p in pair)
    if cropped > length:
        raise ValueError(f"padding {pair} crops more than the axis of {length} cells has")
    if widest <= 0 or mode == "constant":
        return
    # Mirrors and edges look at the whole axis, wrap at what a crop leaves of it.
    room = length - cropped if mode == "wrap" else length
    least = {"edge": 1, "reflect": widest + 1}.get(mode, widest)
    if room < least:
        raise ValueError(
            f"{mode} padding of {pair} needs an axis of {least} cells or more, got {room}: it shows one period at most"
        )
