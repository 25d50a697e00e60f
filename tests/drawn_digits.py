"""Thirty digits drawn by hand as strokes, three ways a class, and a pen that renders them: test data, never trained on.

The habits are ones that the training set has few of: a 7 without a bar, a 1 that is one stroke or has a foot, an open
4, a 9 with a straight leg, a 2 with a loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Stroke = str  # "x,y x,y …" of 100 × 100, down the page; a leading "~" means a smooth curve through the points

GLYPHS: tuple[tuple[str, tuple[Stroke, ...]], ...] = (
    ("0", ("~50,4 30,14 22,45 28,80 50,96 70,82 78,50 72,16 50,4",)),
    ("0", ("~58,2 34,22 26,60 38,94 58,92 72,60 74,24 56,3 46,8",)),
    ("0", ("~52,6 22,20 14,50 24,84 52,94 80,82 88,48 78,16 50,5",)),
    ("1", ("52,4 50,96",)),
    ("1", ("34,24 54,4 54,96",)),
    ("1", ("36,22 54,5 53,94", "32,95 74,94")),
    ("2", ("~24,24 36,6 60,5 74,22 66,46 42,72 22,94", "22,94 80,94")),
    ("2", ("~26,20 46,4 70,14 68,40 44,70 24,88 30,96 44,88 60,90 82,94",)),
    ("2", ("~28,18 52,4 70,20 60,48 26,92", "26,92 50,90 76,95")),
    ("3", ("~26,12 50,4 70,18 64,40 44,47", "~44,47 70,54 76,76 56,95 24,88")),
    ("3", ("26,6 72,6 46,40", "~46,40 72,52 74,78 52,96 24,86")),
    ("3", ("~28,16 48,5 66,14 66,34 42,46 68,58 70,82 46,96 26,86",)),
    ("4", ("34,4 22,58 80,56", "62,34 60,97")),
    ("4", ("62,4 18,66 84,66", "62,4 62,97")),
    ("4", ("~28,6 26,34 32,50 62,50", "66,6 64,96")),
    ("5", ("74,6 34,6 30,42", "~30,42 56,38 74,56 70,82 46,96 24,86")),
    ("5", ("34,8 30,46", "~30,46 52,38 72,52 72,78 52,94 26,90", "34,7 76,5")),
    ("5", ("~74,5 44,8 32,14 32,40 48,46 66,58 66,82 46,95 24,90",)),
    ("6", ("~66,4 40,26 26,60 32,88 52,96 70,84 66,62 48,54 30,68",)),
    ("6", ("~56,3 34,34 26,72 40,95 64,90 72,70 56,56 34,66",)),
    ("6", ("~50,4 34,30 28,64 36,92 56,96 68,82 62,64 46,62 32,76",)),
    ("7", ("20,7 78,7 42,96",)),
    ("7", ("24,18 26,6 76,8", "~76,8 56,44 46,96")),
    ("7", ("20,8 78,6 40,96", "32,50 70,48")),
    ("8", ("~52,48 30,32 34,10 54,4 70,16 66,36 42,54 28,76 38,94 58,95 72,80 66,60 50,48",)),
    ("8", ("~68,14 46,4 30,18 40,40 64,58 70,82 48,96 30,82 38,58 62,38 70,16",)),
    ("8", ("~50,46 32,34 34,10 52,4 68,14 66,36 50,46", "~50,46 28,62 30,88 52,96 72,86 70,60 50,46")),
    ("9", ("~70,24 56,5 34,12 28,36 44,50 64,42 70,22", "70,22 66,97")),
    ("9", ("~68,26 50,5 30,20 32,44 52,50 68,30 70,60 58,90 34,95",)),
    ("9", ("~72,14 48,6 32,24 40,46 60,42 72,16", "~72,16 68,52 48,96")),
)


@dataclass(frozen=True)
class Pen:
    """How a digit is drawn: the paper's sides, the digit's height and its pen's width as shares of them, the place of
    the digit's middle, its slant in degrees, and the colours of ground and ink from 0 to 255."""

    size: int = 100
    height: float = 0.7
    width: float = 0.09
    middle: tuple[float, float] = (0.5, 0.5)
    slant: float = 0.0
    ground: int = 250
    ink: int = 20


PENS = (
    Pen(size=28, height=0.72, width=0.1, ground=0, ink=255),
    Pen(size=64, height=0.6, width=0.06, middle=(0.4, 0.55)),
    Pen(size=100, height=0.8, width=0.14, ground=235, ink=60),
    Pen(size=128, height=0.4, width=0.1, middle=(0.7, 0.3), slant=-8),
    Pen(size=200, height=0.75, width=0.04, slant=8),
    Pen(size=150, height=0.5, width=0.2, ground=10, ink=230),
    Pen(size=300, height=0.8, width=0.015, ground=255, ink=130),
)


def _points(stroke: Stroke) -> np.ndarray:
    """A stroke's corners, or close points of a Catmull-Rom curve through them; (n, 2)."""
    through = np.array([[float(n) for n in point.split(",")] for point in stroke.lstrip("~").split()])
    if not stroke.startswith("~"):
        return through
    p = np.concatenate([2 * through[:1] - through[1:2], through, 2 * through[-1:] - through[-2:-1]])
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    return np.concatenate([*pieces, through[-1:]])


def draw(strokes: tuple[Stroke, ...], pen: Pen) -> np.ndarray:
    """The drawing, (size, size) uint8: every cell within half the pen's width of a stroke has the ink's colour."""
    rows, columns = np.indices((pen.size, pen.size)) + 0.5
    turn = np.deg2rad(pen.slant)
    scale = pen.height * pen.size
    distance = np.full((pen.size, pen.size), np.inf)
    for stroke in strokes:
        x, y = ((_points(stroke) - 50) / 100).T
        across = pen.middle[0] * pen.size + scale * (x * np.cos(turn) - y * np.sin(turn))
        down = pen.middle[1] * pen.size + scale * (x * np.sin(turn) + y * np.cos(turn))
        for x0, y0, x1, y1 in zip(across[:-1], down[:-1], across[1:], down[1:], strict=True):
            length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
            along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length, 0, 1)
            distance = np.minimum(distance, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    covered = np.clip(pen.width * scale / 2 - distance + 0.5, 0, 1)
    return np.rint(pen.ground + covered * (pen.ink - pen.ground)).astype(np.uint8)


def drawings() -> list[tuple[str, np.ndarray]]:
    """Every digit with every pen, 210 in all: (class, drawing)."""
    return [(label, draw(strokes, pen)) for label, strokes in GLYPHS for pen in PENS]
