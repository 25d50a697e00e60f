"""Shapes and pads: one-sided, crops, every rank and layout, rows shorter and longer than a pack."""

from __future__ import annotations

from typing import Any

from .arrays import LAST

# options, x's shape, pads
PADS: list[tuple[dict[str, Any], tuple[int, ...], list[tuple[int, int]]]] = [
    ({}, (2, 3, 37), [(5, 9)]),
    ({}, (2, 2, 7, 9), [(3, 2), (6, 5)]),
    ({}, (1, 2, 6, 9), [(-2, 3), (4, -3)]),
    ({}, (1, 2, 5, 40), [(2, 0), (0, 0)]),
    ({}, (1, 2, 4, 5, 6), [(1, 3), (2, -1), (3, 5)]),
    (LAST, (2, 7, 9, 3), [(2, 1), (-1, 3)]),
    (LAST, (2, 4, 5, 16), [(3, 1), (1, 2)]),
    (LAST, (1, 3, 4, 5, 2), [(2, 1), (0, 0), (-1, 2)]),
]
