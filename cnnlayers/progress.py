"""How a run is shown: a header, a bar on a terminal, one line an epoch. `rich` is imported only for the bar.

Everything fits the terminal's columns: what has no room is shortened, then left out. Where the output is no terminal,
COLUMNS says how many there are, or else they are 80.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

TITLE = 10  # columns of a header's titles
SHORTEST_BAR = 10  # columns


def columns() -> int:
    """How many columns the output has."""
    return shutil.get_terminal_size().columns


def header(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Titles and texts as lines that fit; a word that is longer than a line stays whole."""
    for title, text in rows:
        yield from textwrap.wrap(
            f"{title:<{TITLE}}{text}", columns(), subsequent_indent=" " * TITLE,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def line(record: dict[str, Any], epochs: int) -> str:
    """One epoch's figures, in the longest form that fits."""
    epoch = f"{record['epoch']:{len(str(epochs))}}/{epochs}"
    loss, speed = record["train_loss"], record["images_per_second"]
    train, validation = record["train_accuracy"], record["validation_accuracy"]
    figures = f"epoch {epoch}  loss {loss:.4f}  accuracy {train:6.1%}  validation {validation:6.1%}"
    forms = (
        f"{figures}  {speed:,.0f} images/s",
        figures,
        f"{epoch}  loss {loss:.4f}  train {train:6.1%}  val {validation:6.1%}",
        f"{epoch}  {loss:.4f} {train:6.1%} {validation:6.1%}",
    )
    return next((form for form in forms if len(form) <= columns()), forms[-1])


def duration(seconds: float) -> str:
    """A time to wait, rounded up: 0:07, 12:30 or 1:02:30."""
    minutes, rest = divmod(int(-(-seconds // 1)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TimeLeft:
    """How long the epochs left will take: as long as the last epoch; within the first, at its speed so far."""

    def __init__(self, epochs: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.epochs, self.clock = epochs, clock
        self.epoch, self.began, self.last = 0, 0.0, 0.0

    def begin(self, epoch: int) -> None:
        """An epoch starts. The time since the one before began includes its validation and saving."""
        now = self.clock()
        if self.epoch:
            self.last = now - self.began
        self.epoch, self.began = epoch, now

    def seconds(self, share: float) -> float:
        """The time left when this share of the epoch, more than 0, has been trained."""
        whole = self.last or (self.clock() - self.began) / share
        return whole * (self.epochs - self.epoch + 1 - share)


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
    """A bar that fills once an epoch, below the lines of the epochs before, with the time left of the whole run."""

    def __init__(self, epochs: int, stream: TextIO, progress: Any) -> None:
        super().__init__(epochs, stream)
        self.progress, self.pictures, self.left = progress, 1, TimeLeft(epochs)
        self.task = progress.add_task("", total=None, figures="")

    def begin(self, epoch: int, pictures: int) -> None:
        self.left.begin(epoch)
        self.pictures = pictures
        self.progress.reset(self.task, total=pictures, description=f"epoch {epoch}/{self.epochs}")

    def advance(self, seen: int, loss: float, accuracy: float, speed: float) -> None:
        left = duration(self.left.seconds(seen / self.pictures))
        forms = (
            f"loss {loss:.4f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s  {left} left",
            f"loss {loss:.4f}  accuracy {accuracy:.1%}  {left} left",
            f"loss {loss:.4f}  {left} left",
            f"{left} left",
        )
        room = self.progress.console.width - len(f"epoch {self.epochs}/{self.epochs}") - 2 - SHORTEST_BAR
        text = next((form for form in forms if len(form) <= room), "")
        self.progress.update(self.task, completed=seen, figures=text)

    def end(self, record: dict[str, Any]) -> None:
        self.progress.console.print(line(record, self.epochs), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(epochs: int, stream: TextIO | None = None) -> Iterator[Lines]:
    """What shows a run of so many epochs on `stream` (standard output): a bar on a terminal, else lines."""
    stream = stream or sys.stdout or io.StringIO()  # None: standard output is closed
    if not stream.isatty():
        yield Lines(epochs, stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    parts = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(None, table_column=Column(ratio=1)),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*parts, console=Console(file=stream), transient=True, expand=True) as progress:
        yield Bar(epochs, stream, progress)
