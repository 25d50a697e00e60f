"""Layers on disk: `save` and `load`, in the safetensors format under PyTorch's key names.

A save appears whole or not at all. It is written to a new file in the same folder, forced to the disk, and only then
renamed to its path, which replaces an older file in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

import numpy
import safetensors
import safetensors.numpy

from cnnlayers import backends
from cnnlayers.layers import Layer

# The dtypes of the safetensors format that become NumPy's as they are; BF16 becomes float32, which holds its values.
DTYPES = {
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "C64": "<c8"},
    **{"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
}


def save(layer: Layer, path: str | os.PathLike[str]) -> None:
    """Write a layer's `state_dict` to a safetensors file.

    Parameters
    ----------
    layer : Layer
    path : str or path
        An older file there stays as it is until the new one has been written.

    Raises
    ------
    OSError
        The file cannot be written.
    TypeError
        What is no layer or no path.

    Examples
    --------
    >>> import os, tempfile
    >>> import cnnlayers
    >>> from cnnlayers.layers import Linear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     cnnlayers.save(Linear(4, 2, rng=0), path)
    ...     cnnlayers.load(Linear(4, 2), path)
    Linear(4, 2, bias=True)

    References
    ----------
    https://github.com/huggingface/safetensors
    """
    save_arrays(_checked(layer).state_dict(), path)


def _checked(layer: Any) -> Layer:
    if not isinstance(layer, Layer):
        other = "; an optimizer's state_dict() is arrays by name, for numpy.savez" * hasattr(layer, "state_dict")
        raise TypeError(f"layer must be a layer of cnnlayers.layers, got {type(layer).__name__}{other}")
    return layer


def _path(path: str | os.PathLike[str]) -> str:
    """`path` as a str. An int would be taken for a file descriptor, which reading closes."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {path!r} of type {type(path).__name__}")
    return os.fsdecode(path)


def save_arrays(
    arrays: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays, and texts beside them, as `save` does.

    The same arrays and no more than one text give the same bytes: safetensors keeps no order among several.
    """
    # safetensors writes memory as it lies, and claims C order for it.
    host = {name: numpy.asarray(backends.to_numpy(a), order="C") for name, a in arrays.items()}
    replace_file(path, safetensors.numpy.save(host, None if metadata is None else dict(metadata)))


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at any moment, even in a crash, `path` holds all that it held before or all of `data`."""
    target = os.path.realpath(_path(path))  # a link stays one
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder} to save {name} in")
    if os.path.isdir(target):
        raise IsADirectoryError(f"{target} is a folder: give the name of a file to save in")
    unfinished = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Force a rename to the disk, where a folder can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(layer: Layer, path: str | os.PathLike[str]) -> Layer:
    """Read a file that `save` (or PyTorch's safetensors) wrote into a layer.

    Parameters
    ----------
    layer : Layer
    path : str or path
        Its arrays may have any real dtype but the 8-bit floats and smaller; they are cast to the layer's.

    Returns
    -------
    layer : Layer
        The one that was given.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, or its arrays do not fit: the message names the file, and the layer is as it was.
    """
    _checked(layer)
    state, _ = load_arrays(path)
    try:
        layer.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return layer


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a safetensors file, as NumPy's (BF16 as float32), and the texts beside them. Raises as `load`."""
    path = _path(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
        stored: dict[str, Any] = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path} to load") from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    unknown = {name: a["dtype"] for name, a in stored.items() if a["dtype"] not in (*DTYPES, "BF16")}
    if unknown:
        name, dtype = next(iter(unknown.items()))
        raise ValueError(
            f"{path} stores {name!r} as {dtype} ({len(unknown)} of {len(stored)} arrays are of such types),"
            f" which NumPy does not have: save it as F16, BF16, F32 or F64"
        )
    return {name: _decoded(a) for name, a in stored.items()}, dict(header.get("__metadata__", {}))


def _decoded(stored: Mapping[str, Any]) -> numpy.ndarray:
    """A stored array as NumPy's. A bfloat16 is the upper half of a float32, whose lower half is 0."""
    bfloat16 = stored["dtype"] == "BF16"
    flat = numpy.frombuffer(stored["data"], "<u2" if bfloat16 else DTYPES[stored["dtype"]])
    if bfloat16:
        flat = (flat.astype(numpy.uint32) << 16).view(numpy.float32)
    shape: tuple[int, ...] = tuple(stored["shape"])
    return flat.reshape(shape)
