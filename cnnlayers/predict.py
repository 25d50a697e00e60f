"""A trained model on one's own pictures.

A picture is brought to what the model was trained on: grey or RGB, the input's size by area averaging, normalised. For
a model of strokes (the digits: light on dark, filling the height) the strokes are also framed, made light, and as thick
as those that it was trained on, whatever they were drawn with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from cnnlayers import backends, checkpoint, models, pictures
from cnnlayers.evaluation import EVALUATION_BATCH, logits_of, softmax
from cnnlayers.layers import Layer
from cnnlayers.pictures import resize
from cnnlayers.run_folder import LAST, MODEL, TEXT

INK = 0.2  # of the darkest stroke: above it a cell belongs to a stroke
FAINTEST = 0.05  # a stroke's difference from the ground, of the range from black to white
GRID, MARGIN = 32, 8  # cells of the strokes' longer side, and around them, where the pen's width is changed
# The narrowest and widest stroke, in cells of GRID: by `_pen_width` half of the training pictures have 5.5 to 7.
PENS = (6.5, 8.0)


@dataclass(frozen=True)
class Trained:
    """A model with what its training set tells of its input and its classes."""

    model: Layer
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    strokes: bool


def load(path: str | Path) -> Trained:
    """The model in a file that `cnnlayers train` wrote, or in its folder.

    Raises FileNotFoundError where there is none, ValueError for a file that is damaged or no model of `train`'s.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL
    arrays, texts = checkpoint.load_arrays(path)
    try:
        card: Mapping[str, Any] = json.loads(texts[TEXT])
        if "settings" in card:
            raise ValueError(f"it is a run's {LAST}, for --resume: give {MODEL} beside it, or the run's folder")
        arguments = card["arguments"]
        model = models.build(card["model"], arguments)
        model.load_state_dict(arrays)
        channels, height, width = (int(n) for n in arguments["input_shape"])
        mean, std = (tuple(float(n) for n in card[key]) for key in ("mean", "std"))
        classes = tuple(str(name) for name in card["classes"])
        return Trained(model, (channels, height, width), classes, mean, std, bool(card["strokes"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no model that `cnnlayers train` wrote ({reason})") from error


def frame_strokes(picture: Any, height: int, width: int) -> Any:
    """Grey (H, W, 1) strokes on any even ground, as light ones on black that fill the height, in the middle.

    The border shows the ground. Strokes of every pen get about the width of those in the training pictures. Raises
    ValueError where the picture is blank.
    """
    ground = float(numpy.median(numpy.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])))
    lighter, darker = (picture - ground)[:, :, 0], (ground - picture)[:, :, 0]
    ink = lighter if lighter.max() > darker.max() else darker
    if float(ink.max()) < FAINTEST:
        raise ValueError("is blank: it has no strokes that differ from its border")
    ink = _cropped(numpy.clip(ink / float(ink.max()), 0, 1))
    scale = GRID / max(ink.shape)
    ink = resize(ink[:, :, None], *(max(1, round(length * scale)) for length in ink.shape))[:, :, 0]
    usual = float(numpy.median(ink[ink > ink.max() / 4]))  # less than 1 where the pen is thinner than a cell
    ink = numpy.pad(numpy.clip(ink / usual, 0, 1), MARGIN)
    pen = _pen_width(ink > 0.5)
    grow = (min(max(pen, PENS[0]), PENS[1]) - pen) / 2
    drawn = _cropped(_grown(ink, grow) if grow > 0 else 1 - _grown(1 - ink, -grow))
    # The frame has the input's proportions, the strokes' height (more for a wide drawing), and their middle.
    down, across = drawn.shape
    tall = max(down, -(-across * height // width))
    wide = max(-(-tall * width // height), across)
    framed = numpy.zeros((tall, wide, 1))
    above, before = (tall - down) // 2, (wide - across) // 2
    framed[above : above + down, before : before + across, 0] = drawn
    return resize(framed, height, width)


def _cropped(ink: Any) -> Any:
    """The smallest rectangle with every cell above INK."""
    rows, columns = (numpy.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _pen_width(stroke: Any) -> float:
    """About how many cells wide the strokes of a small (H, W) mask are.

    In a long stroke the mean distance to the edge, half a cell before the next cell outside, is a quarter of the width.
    """
    (rows, columns), (other_rows, other_columns) = numpy.nonzero(stroke), numpy.nonzero(~stroke)
    squares = numpy.subtract.outer(rows, other_rows) ** 2 + numpy.subtract.outer(columns, other_columns) ** 2
    return 4 * float(numpy.sqrt(squares.min(axis=1)).mean()) - 2


def _grown(ink: Any, reach: float) -> Any:
    """`ink` (H, W) from 0 to 1, spread by so many cells in every direction: the largest value within reach.

    A cell just out of reach counts in part, so that a small reach changes little, and none nothing.
    """
    cells = min(math.ceil(reach), MARGIN)
    padded, largest = numpy.pad(ink, cells), ink
    for down in range(-cells, cells + 1):
        for across in range(-cells, cells + 1):
            share = min(max(reach + 1 - math.hypot(down, across), 0.0), 1.0)
            if share:
                rows, columns = (
                    slice(cells + by, cells + by + n) for by, n in zip((down, across), ink.shape, strict=True)
                )
                largest = numpy.maximum(largest, share * padded[rows, columns])
    return largest


def cells_of(trained: Trained, picture: Any) -> Any:
    """The model's input (C, H, W) float32 from a picture's cells (H, W, C). Raises ValueError where it is blank."""
    _, height, width = trained.shape
    if pictures.is_blank(picture):
        raise ValueError("is blank: every cell has the same colour")
    cells = frame_strokes(picture, height, width) if trained.strokes else resize(picture, height, width)
    normalised = (cells - numpy.asarray(trained.mean)) / numpy.asarray(trained.std)
    return numpy.ascontiguousarray(normalised.transpose(2, 0, 1), numpy.float32)


def prepare(trained: Trained, path: str | Path) -> Any:
    """`cells_of` a file's picture. Raises as `pictures.read`, and ValueError, naming the file, where it is blank."""
    picture = pictures.read(path, trained.shape[0])
    try:
        return cells_of(trained, picture)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def pictures_of(paths: Sequence[str | Path]) -> list[str | Path]:
    """The paths, with the pictures in it for a folder, in the order of their names.

    Raises FileNotFoundError for a path that does not exist, ValueError for a folder without pictures.
    """
    found: list[str | Path] = []
    for path in paths:
        folder = Path(path)
        if not folder.is_dir():
            found.append(path)
            continue
        inside = [one for one in pictures.visible(folder) if pictures.is_picture(one)]
        if not inside:
            deeper = "; pictures in its folders are not looked for" if any(map(Path.is_dir, folder.iterdir())) else ""
            raise ValueError(f"{path} holds no pictures ({pictures.KINDS}){deeper}")
        found += inside
    return found


def predict(trained: Trained, paths: Sequence[str | Path]) -> list[list[tuple[str, float]]]:
    """For each picture its classes with their probabilities, the likeliest first.

    Raises as `pictures.read`, and ValueError for blank pictures; it names the pictures that cannot be used.
    """
    inputs = pictures.each(paths, lambda path: prepare(trained, path))
    answers = []
    for start in range(0, len(inputs), EVALUATION_BATCH):
        x = backends.asarray(numpy.stack(inputs[start : start + EVALUATION_BATCH]))
        for row in softmax(backends.to_numpy(logits_of(trained.model, x))):
            likeliest = numpy.argsort(-row, kind="stable")
            answers.append([(trained.classes[i], float(row[i])) for i in likeliest])
    return answers
