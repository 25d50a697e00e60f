"""A data set from a folder: one folder of pictures a class, the folder's name being the class's.

All pictures get one size: their own, if all have the same and its sides are of 8 to 64 cells, else 32×32, whatever the
proportions. They are RGB, or grey where every picture is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from cnnlayers import pictures

EXPECTED = f"a folder with one folder of pictures ({pictures.KINDS}) for each of at least two classes"
LEAST = 5  # pictures a class: at least one tests, one validates and three train
KEPT_SIDES = range(8, 65)
SIDE = 32
SHOWN = 5  # names in an error


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """The pictures of every class, both in the order of their names.

    Raises FileNotFoundError where there is no class folder, ValueError where the folder has another form; each says
    what was found and what is expected.
    """
    entries = pictures.visible(folder)
    folders = [path for path in entries if path.is_dir()]
    loose = [path for path in entries if pictures.is_picture(path)]
    if not folders:
        found = f"{len(loose):,} pictures but no folders" if loose else "no folders of pictures"
        raise FileNotFoundError(
            f"{folder} holds {found}: --data takes {EXPECTED}, or CIFAR-10's python folder (batches.meta is missing)"
        )
    found_in = {path.name: _pictures_of(path) for path in folders}
    if loose:
        raise ValueError(f"{folder} holds pictures of no class ({_names(loose)}): --data takes {EXPECTED}")
    if len(found_in) < 2:
        raise ValueError(f"{folder} holds one class only ({folders[0].name}): --data takes {EXPECTED}")
    few = [f"{name} has {len(found)}" for name, found in found_in.items() if len(found) < LEAST]
    if few:
        raise ValueError(f"{folder} has too few pictures in a class ({_listed(few)}): each needs {LEAST} or more")
    return found_in


def _pictures_of(folder: Path) -> list[Path]:
    """The pictures of one class."""
    entries = pictures.visible(folder)
    found = [path for path in entries if pictures.is_picture(path)]
    inner = [path for path in entries if path.is_dir()]
    if inner:
        raise ValueError(
            f"{folder} holds folders ({_names(inner)}), and a class's folder holds pictures only: --data takes "
            f"{EXPECTED}" + ("" if found else f"; if {inner[0].name} is a class, --data {folder}")
        )
    if not found:
        what = f"no pictures but {_names(entries)}" if entries else "no pictures"
        raise ValueError(f"{folder} holds {what}: --data takes {EXPECTED}")
    return found


def _names(paths: Sequence[Path]) -> str:
    return _listed([path.name for path in paths])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else "")


def read(folder: Path) -> tuple[Any, Any, tuple[str, ...]]:
    """Every picture (N, C, H, W) uint8, the labels (N,) int64 and the classes' names.

    Raises as `classes_in`, ImportError where Pillow is not installed, and ValueError that names the pictures that
    cannot be read.
    """
    classes = classes_in(folder)
    paths = [path for found in classes.values() for path in found]
    height, width = _common_size(paths)

    def cells(path: Path | str) -> Any:
        picture = pictures.read(path, 3)
        if picture.shape[:2] != (height, width):
            picture = pictures.resize(picture, height, width)
        return numpy.rint(picture * 255).astype(numpy.uint8)

    x = numpy.stack(pictures.each(paths, cells)).transpose(0, 3, 1, 2)
    if bool((x == x[:, :1]).all()):
        x = x[:, :1]
    y = numpy.repeat(numpy.arange(len(classes)), [len(found) for found in classes.values()])
    return numpy.ascontiguousarray(x), y.astype(numpy.int64), tuple(classes)


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The height and width that all pictures get, from the files' headers; a file without one is refused later."""
    image, sizes = pictures.image_module(), set()
    for path in paths:
        try:
            with image.open(path) as file:
                sizes.add(file.size)
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError):
            continue
    if len(sizes) == 1:
        width, height = sizes.pop()
        if width in KEPT_SIDES and height in KEPT_SIDES:
            return height, width
    return SIDE, SIDE
