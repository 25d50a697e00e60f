"""A run's folder: its files, what an earlier run left in it, and the lock of the process that trains in it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnlayers import checkpoint

MODEL, LAST, HISTORY, CURVES = "model.safetensors", "last.safetensors", "history.json", "curves.png"
TEXT = "cnnlayers"  # the one text beside the arrays of both files: JSON


def check_free(out: Path) -> None:
    """Raise FileExistsError, saying what is there and the ways out, where the folder holds a run."""
    if not any((out / name).exists() for name in (MODEL, LAST, HISTORY)):
        return
    history = _history(out)
    done = len(history.get("epochs", ()))
    epochs = f"{done} epoch{'s' * (done != 1)}"
    if history.get("test"):
        found = f"a finished run ({epochs}, test accuracy {100 * history['test']['accuracy']:.1f} %)"
        ways = "--overwrite replaces it, --resume --epochs N trains it further"
    elif (out / LAST).exists():
        found, ways = f"an unfinished run ({epochs})", "--resume continues it, --overwrite replaces it"
    else:
        found, ways = "files of an earlier run", "--overwrite replaces them"
    raise FileExistsError(f"{out} holds {found}: {ways}, --out DIR writes elsewhere")


def _history(out: Path) -> dict[str, Any]:
    """history.json, or an empty dictionary where it is missing or damaged."""
    try:
        found = json.loads((out / HISTORY).read_text(encoding="utf-8"))
        if isinstance(found["epochs"], list) and (not found["test"] or float(found["test"]["accuracy"]) >= 0):
            return dict(found)
    except (OSError, KeyError, TypeError, ValueError):
        pass
    return {}


def make(out: Path) -> None:
    """Make the folder, unless it is there, and try to write in it. Raises OSError that names the folder."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: a run needs a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise type(error)(f"the folder {out} cannot be written ({error.strerror}): choose another by --out") from error


def clear(out: Path) -> None:
    """Remove what an earlier run wrote, but for its model, which the new run's replaces in one step."""
    for name in (HISTORY, CURVES, LAST):
        (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from training in the folder. Raises BlockingIOError where one does.

    The operating system ends the lock with the process, however that ends. Where it has none for folders (Windows, some
    network file systems) nothing is locked.
    """
    try:
        import fcntl

        folder = os.open(out, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is training in {out}: wait for it, or choose another folder by --out"
            ) from None
        except OSError:
            pass  # no locks on this file system
        yield
    finally:
        os.close(folder)


def read_last(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """last.safetensors: the arrays, and what `Run` wrote beside them: settings, dataset, epochs, planned, digest.

    Raises FileNotFoundError where there is none, ValueError for a damaged one.
    """
    path = out / LAST
    if not path.is_file():
        raise FileNotFoundError(f"there is no run to resume in {out} (no {LAST}): start one without --resume")
    arrays, texts = checkpoint.load_arrays(path)
    try:
        kept = json.loads(texts[TEXT])
        return arrays, {
            "settings": dict(kept["settings"]),
            "dataset": str(kept["dataset"]),
            "epochs": list(kept["epochs"]),
            "planned": int(kept.get("planned", 0)),
            "digest": int(kept.get("digest", 0)),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no run that can be resumed ({error!r}): start one without --resume") from error
