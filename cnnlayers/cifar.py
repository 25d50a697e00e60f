"""CIFAR-10's python folder, read without trusting it.

The files are pickles, and a pickle may call anything it names. Here it may name only what these files need: the calls
that rebuild a NumPy array, and for those it gets inert stand-ins, which keep what the file says until it has been
checked. So no code that a file brings or names is ever run, NumPy's own unpickling included.

The format (https://www.cs.toronto.edu/~kriz/cifar.html): data_batch_1 … data_batch_5 and test_batch hold a dictionary
with `data`, uint8 (N, 3072), a row being the red, green and blue planes of 32×32 cells, and `labels`, N ints;
batches.meta holds `label_names`. Python 2 wrote them, so their texts arrive as bytes.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
META_FILE = "batches.meta"
SHAPE = (3, 32, 32)
CELLS = math.prod(SHAPE)
WHERE = f"the 'python version' at https://www.cs.toronto.edu/~kriz/cifar.html unpacks to {FOLDER}"


class _Dtype:
    """Stands for numpy.dtype: keeps the code that the file names."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and flags: one byte has none of them."""


class _Array:
    """Stands for numpy.ndarray: keeps shape, dtype and bytes as the file gives them."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Any:
        """The array that the file describes. ValueError unless it is a C-ordered one of bytes."""
        _, shape, dtype, fortran, raw = self.state
        if not (isinstance(dtype, _Dtype) and dtype.code in ("u1", "|u1", "uint8", "B")):
            raise ValueError("its pictures are not uint8")
        if fortran or not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(shape):
            raise ValueError("its pictures are not the bytes of a C-ordered array")
        return numpy.frombuffer(bytes(raw), numpy.uint8).reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.state = (1, shape, dtype, order != "C", raw)
    return made


def _encode(text: Any, encoding: Any = "") -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it calls _codecs.encode for something else than bytes")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 needs")
        return ALLOWED[module, name]


def _dictionary(path: Path) -> dict[bytes, Any]:
    """The dictionary in one file, its keys as bytes. FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {WHERE}, with {META_FILE}, {TRAIN_FILES[0]} … and {TEST_FILE} in it"
        )
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} instead of a dictionary")
        return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
    except OSError:  # no leave to read, a failing disk
        raise
    except Exception as error:  # a damaged pickle raises anything at all
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception | str) -> ValueError:
    return ValueError(f"{path} is no intact file of CIFAR-10 ({error}): fetch it again, {WHERE}")


def _entry(found: dict[bytes, Any], key: str, path: Path) -> Any:
    if key.encode() not in found:
        raise damaged(path, f"it has no {key!r}")
    return found[key.encode()]


def class_names(folder: Path) -> tuple[str, ...]:
    """The label names of batches.meta. Raises as `read`."""
    path = folder / META_FILE
    names = _entry(_dictionary(path), "label_names", path)
    if not isinstance(names, list) or not names or not all(isinstance(n, str | bytes) for n in names):
        raise damaged(path, "its label_names are no list of texts")
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names)


def read(path: Path, classes: int) -> tuple[Any, Any]:
    """The pictures (N, 3, 32, 32) uint8 and labels (N,) int64 of one file.

    Raises FileNotFoundError where it is missing, ValueError where it is damaged or asks for anything but arrays, naming
    the file.
    """
    found = _dictionary(path)
    data, labels = _entry(found, "data", path), _entry(found, "labels", path)
    if not isinstance(data, _Array):
        raise damaged(path, f"its data is a {type(data).__name__} instead of an array")
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < classes for n in labels):
        raise damaged(path, f"its labels are no list of ints from 0 to {classes - 1}")
    try:
        pictures = data.array()
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error
    if pictures.shape != (len(labels), CELLS):
        raise damaged(
            path, f"its data has shape {pictures.shape}, with {len(labels)} labels and {CELLS} cells a picture"
        )
    return pictures.reshape(-1, *SHAPE), numpy.array(labels, numpy.int64)


def folder_of(path: Path) -> Path:
    """The folder with the files: `path`, or cifar-10-batches-py in it. FileNotFoundError where there is none."""
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file, not a folder: unpack it first; {WHERE}")
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: {WHERE}")
    inner = path / FOLDER
    return inner if inner.is_dir() and not (path / META_FILE).exists() else path
