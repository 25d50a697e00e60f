"""Picture files: which files are pictures, their cells, and their resizing.

Training and prediction read pictures by this file alone, so both see the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy

T = TypeVar("T")

# The suffixes by which a file in a folder counts as a picture. A file that is named itself may have any.
SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KINDS = "PNG, JPEG, GIF, BMP, TIFF, WebP or PNM"
NAMED = 3  # pictures that cannot be used and are named in one error


def visible(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names, without hidden files and macOS's copies of them."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def is_picture(path: Path) -> bool:
    """Whether a file counts as a picture, by its suffix."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def image_module() -> Any:
    """Pillow's `Image`. Raises ImportError, with the command that mends it, where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"reading pictures needs Pillow ({error}): pip install 'cnnlayers[train]'") from error
    return Image


def read(path: str | Path, colours: int) -> Any:
    """A picture's cells, (H, W, colours) float64 from 0 to 1; colours: 1 (grey) or 3 (RGB).

    Where it is transparent its ground is white, or black if it shows nothing on white. Raises ImportError where Pillow
    is not installed, FileNotFoundError or ValueError, naming the file, where it is missing or cannot be read.
    """
    image = image_module()
    from PIL import ImageOps, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    if not Path(path).stat().st_size:
        raise ValueError(f"{path} is no picture that can be read: the file is empty")
    try:
        with image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            picture = _eight_bits(upright)
            if picture.mode not in ("L", "RGB") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of the kinds that Pillow knows ({KINDS}, …)" if unknown else error
        raise ValueError(f"{path} is no picture that can be read: {reason}") from error
    mode = "L" if colours == 1 else "RGB"
    flat = _on_ground(picture, "white").convert(mode)
    if picture.mode == "RGBA" and is_blank(numpy.asarray(flat)):
        flat = _on_ground(picture, "black").convert(mode)
    return numpy.asarray(flat, numpy.float64).reshape(flat.height, flat.width, colours) / 255


def _on_ground(picture: Any, colour: str) -> Any:
    if picture.mode != "RGBA":
        return picture
    image = image_module()
    return image.alpha_composite(image.new("RGBA", picture.size, colour), picture)


def _eight_bits(picture: Any) -> Any:
    """A grey picture of 16 or 32 bits a cell, or of floats (from 0 to 1, else from 0 to 255), as one of eight bits."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    cells = numpy.nan_to_num(numpy.asarray(picture).astype(numpy.float64))
    whole = 65535 if picture.mode.startswith("I") else 1 if cells.max(initial=0) <= 1 else 255
    return image_module().fromarray(numpy.clip(cells * (255 / whole), 0, 255).astype(numpy.uint8))


def is_blank(cells: Any) -> bool:
    """Whether every cell of (H, W) or (H, W, C) has the same colour."""
    flat = cells.reshape(cells.shape[0] * cells.shape[1], -1)
    return bool((flat == flat[:1]).all())


def resize(picture: Any, height: int, width: int) -> Any:
    """(H, W, C) at another size, whatever its proportions; each new cell is the mean of the area that it covers."""
    return numpy.einsum(
        "ih,jw,hwc->ijc", _shares(picture.shape[0], height), _shares(picture.shape[1], width), picture, optimize=True
    )


def _shares(length: int, out: int) -> Any:
    """(out, length): how much of each old cell goes into each new one; rows sum to 1."""
    edges = numpy.arange(out + 1) * (length / out)
    cells = numpy.arange(length)
    overlap = numpy.minimum(edges[1:, None], cells + 1) - numpy.maximum(edges[:-1, None], cells)
    return numpy.clip(overlap, 0, None) * (out / length)


def each(paths: Iterable[Path | str], read_one: Callable[[Path | str], T]) -> list[T]:
    """`read_one` of every path. Raises one ValueError that names the pictures that cannot be used, if there are any.

    ImportError and FileNotFoundError are raised at once.
    """
    found: list[T] = []
    wrong: list[str] = []
    for path in paths:
        try:
            found.append(read_one(path))
        except ValueError as error:
            wrong.append(str(error))
    if len(wrong) > NAMED:
        wrong = [*wrong[:NAMED], f"and {len(wrong) - NAMED:,} more pictures cannot be used"]
    if wrong:
        raise ValueError("; ".join(wrong))
    return found
