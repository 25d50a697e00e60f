"""How a run is shown: a bar on a terminal, one line an epoch elsewhere. `rich` is imported only for the bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def line(record: dict[str, Any], epochs: int) -> str:
    """One epoch's figures."""
    width = len(str(epochs))
    return (
        f"epoch {record['epoch']:{width}}/{epochs}"
        f"  loss {record['train_loss']:.4f}  accuracy {record['train_accuracy']:6.1%}"
        f"  validation {record['validation_accuracy']:6.1%}  {record['images_per_second']:,.0f} images/s"
    )


class Lines:
    """Plain text: nothing within an epoch, a line after it."""

    def __init__(self, epochs: int, stream: TextIO) -> None:
        self.epochs, self.stream = epochs, stream

    def begin(self, epoch: int, pictures: int) -> None:
        """An epoch of so many pictures starts."""

    def advance(self, seen: int, loss: float, accuracy: float, speed: float) -> None:
        """So many of its pictures were seen, with these means so far, at `speed` pictures a second."""

    def end(self, record: dict[str, Any]) -> None:
        """The epoch is over and on disk."""
        print(line(record, self.epochs), file=self.stream, flush=True)


class Bar(Lines):
    """A bar that fills once an epoch, below the lines of the epochs before."""

    def __init__(self, epochs: int, stream: TextIO, progress: Any) -> None:
        super().__init__(epochs, stream)
        self.progress = progress
        self.task = progress.add_task("", total=None, figures="")

    def begin(self, epoch: int, pictures: int) -> None:
        self.progress.reset(self.task, total=pictures, description=f"epoch {epoch}/{self.epochs}", figures="")

    def advance(self, seen: int, loss: float, accuracy: float, speed: float) -> None:
        said = f"loss {loss:.4f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s"
        self.progress.update(self.task, completed=seen, figures=said)

    def end(self, record: dict[str, Any]) -> None:
        self.progress.console.print(line(record, self.epochs), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(epochs: int, stream: TextIO | None = None) -> Iterator[Lines]:
    """What shows a run of so many epochs on `stream` (standard output): a bar on a terminal, else lines."""
    stream = stream or sys.stdout
    if not stream.isatty():
        yield Lines(epochs, stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield Bar(epochs, stream, progress)
