"""A trained model on one's own pictures.

A picture is brought to what the model was trained on: grey or RGB, the input's size by area averaging, normalised. A
model of strokes (the digits: light on dark, filling the height) also gets the strokes framed and made light, whatever
they were drawn on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from cnnlayers import backends, checkpoint, models
from cnnlayers.layers import Layer
from cnnlayers.train import MODEL, TEXT, logits_of, softmax

INK = 0.2  # of the full range between ground and stroke: above it a cell belongs to a stroke


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
        arguments = card["arguments"]
        model = models.build(card["model"], arguments)
        model.load_state_dict(arrays)
        channels, height, width = (int(n) for n in arguments["input_shape"])
        mean, std = (tuple(float(n) for n in card[key]) for key in ("mean", "std"))
        classes = tuple(str(name) for name in card["classes"])
        return Trained(model, (channels, height, width), classes, mean, std, bool(card["strokes"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no model that `cnnlayers train` wrote ({type(error).__name__}: {error})"
        ) from error


def read_picture(path: str | Path, colours: int) -> Any:
    """A picture's cells from 0 to 1, (H, W, colours) float64; where it is transparent, its ground is white.

    Raises ImportError where Pillow is not installed, FileNotFoundError or ValueError, naming the file, where it is
    missing or no picture.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"reading pictures needs Pillow ({error}): pip install 'cnnlayers[train]'") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            whole = (_eight_bits(upright) if upright.mode.startswith("I") else upright).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    ground = Image.new("RGBA", whole.size, "white")
    flat = Image.alpha_composite(ground, whole).convert("L" if colours == 1 else "RGB")
    return numpy.asarray(flat, numpy.float64).reshape(flat.height, flat.width, colours) / 255


def _eight_bits(deep: Any) -> Any:
    """A grey picture of 16 bits a cell as one of eight."""
    from PIL import Image

    return Image.fromarray((numpy.clip(numpy.asarray(deep), 0, 65535) // 256).astype(numpy.uint8))


def resize(picture: Any, height: int, width: int) -> Any:
    """(H, W, C) at another size; each new cell is the mean of the area that it covers."""
    return numpy.einsum(
        "ih,jw,hwc->ijc", _shares(picture.shape[0], height), _shares(picture.shape[1], width), picture, optimize=True
    )


def _shares(length: int, out: int) -> Any:
    """(out, length): how much of each old cell goes into each new one; rows sum to 1."""
    edges = numpy.arange(out + 1) * (length / out)
    cells = numpy.arange(length)
    overlap = numpy.minimum(edges[1:, None], cells + 1) - numpy.maximum(edges[:-1, None], cells)
    return numpy.clip(overlap, 0, None) * (out / length)


def frame_strokes(picture: Any, height: int, width: int, mean: float) -> Any:
    """Grey (H, W, 1) strokes on any even ground, as light ones on black that fill the height, in the middle.

    The border shows the ground. Thin strokes, which fade in averaging, are brightened until the cells' mean is `mean`.
    A picture without strokes is black.
    """
    ground = float(numpy.median(numpy.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])))
    ink = picture - ground if ground < 0.5 else ground - picture
    ink = numpy.clip(ink / max(float(ink.max()), 1 / 255), 0, 1)
    down, across = (numpy.flatnonzero((ink > INK).any(axis=axes)) for axes in ((1, 2), (0, 2)))
    if not len(down):
        return numpy.zeros((height, width, 1))
    top, bottom, left, right = int(down[0]), int(down[-1]) + 1, int(across[0]), int(across[-1]) + 1
    # The frame has the input's proportions, the strokes' height (more for a wide drawing), and their middle.
    tall = max(bottom - top, -(-(right - left) * height // width))
    wide = max(-(-tall * width // height), right - left)
    framed = numpy.zeros((tall, wide, 1))
    above, before = (tall - (bottom - top)) // 2, (wide - (right - left)) // 2
    framed[above : above + bottom - top, before : before + right - left] = ink[top:bottom, left:right]
    small = resize(framed, height, width)
    for _ in range(8):  # what is clipped is made up for in the next round
        small = numpy.clip(small * max(1.0, mean / float(small.mean())), 0, 1)
    return small


def prepare(trained: Trained, path: str | Path) -> Any:
    """The model's input (C, H, W) float32 from a picture's file. Raises as `read_picture`."""
    channels, height, width = trained.shape
    picture = read_picture(path, channels)
    if trained.strokes:
        cells = frame_strokes(picture, height, width, trained.mean[0])
    else:
        cells = resize(picture, height, width)
    normalised = (cells - numpy.asarray(trained.mean)) / numpy.asarray(trained.std)
    return numpy.ascontiguousarray(normalised.transpose(2, 0, 1), numpy.float32)


def predict(trained: Trained, paths: Sequence[str | Path]) -> list[list[tuple[str, float]]]:
    """For each picture its classes with their probabilities, the likeliest first. Raises as `read_picture`."""
    x = numpy.stack([prepare(trained, path) for path in paths])
    probabilities = softmax(backends.to_numpy(logits_of(trained.model, backends.asarray(x))))
    return [[(trained.classes[i], float(row[i])) for i in numpy.argsort(-row, kind="stable")] for row in probabilities]
