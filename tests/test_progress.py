"""What is shown while a run goes on: it fits the terminal, and says how long it will take."""

from __future__ import annotations

import io
import re

import pytest

from cnnlayers import progress

RECORD = {
    "epoch": 1,
    "train_loss": 0.25,
    "train_accuracy": 0.9,
    "validation_accuracy": 0.95,
    "images_per_second": 1234,
}


class Terminal:
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with progress.shown(3, stream) as report:
        report.begin(1, 64)
        report.left.began -= 2
        report.advance(32, 0.5, 0.75, 4321.0)
        report.progress.refresh()
        report.end(RECORD)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.text)
    assert "epoch 1/3" in plain
    assert "loss 0.5000  accuracy 75.0%  4,321 images/s  0:11 left" in plain  # half an epoch in over 2 s, 2.5 to go
    assert "epoch 1/3  loss 0.2500  accuracy  90.0%  validation  95.0%  1,234 images/s" in plain


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100])
@pytest.mark.parametrize("epochs", [3, 30, 1000])
def test_everything_fits_the_columns(columns: int, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with progress.shown(epochs, stream) as report:
        report.begin(1, 64)
        report.advance(32, 0.5, 0.75, 4321.0)
        report.progress.refresh()
        if columns >= 40:
            report.end(RECORD)
    shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.text))
    assert max(map(len, shown)) <= columns
    assert any(f"epoch 1/{epochs}" in text for text in shown)
    assert columns < 40 or any(" left" in text for text in shown)
    rows = [("data", "some pictures of " + "many " * 20 + "kinds"), ("model", "three-layer")]
    lines = list(progress.header(rows))
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()) == " ".join(f"{title} {text}" for title, text in rows)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    with progress.shown(30, stream) as report:
        report.begin(1, 64)
        report.advance(32, 0.5, 0.75, 4321.0)
        report.end(RECORD)
    assert stream.getvalue() == "epoch  1/30  loss 0.2500  accuracy  90.0%  validation  95.0%  1,234 images/s\n"
    monkeypatch.setenv("COLUMNS", "60")
    assert progress.line(RECORD, 30) == "epoch  1/30  loss 0.2500  accuracy  90.0%  validation  95.0%"
    monkeypatch.setenv("COLUMNS", "50")
    assert progress.line(RECORD, 30) == " 1/30  loss 0.2500  train  90.0%  val  95.0%"


def test_the_time_left_is_that_of_the_last_epoch() -> None:
    now = 100.0
    left = progress.TimeLeft(4, lambda: now)
    left.begin(1)
    now += 30  # half an epoch, compiling included
    assert left.seconds(0.5) == 30 / 0.5 * 3.5
    now += 20
    left.begin(2)
    now += 2
    assert left.seconds(0.25) == 50 * 2.75
    now += 8
    left.begin(3)
    assert left.seconds(1.0) == 10
    left = progress.TimeLeft(20, lambda: now)
    left.begin(18)  # a resumed run
    now += 1
    assert left.seconds(0.5) == 2 * 2.5


def test_times() -> None:
    said = [progress.duration(seconds) for seconds in (0, 0.2, 59.1, 61, 3599.5, 3661)]
    assert said == ["0:00", "0:01", "1:00", "1:01", "1:00:00", "1:01:01"]
