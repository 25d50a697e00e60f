"""The picture of a run: curves.png. Matplotlib is imported only here, when drawing, without its global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from cnnlayers import backends
from cnnlayers.data import Dataset
from cnnlayers.evaluation import Tested

TRAIN, VALIDATION, RIGHT, WRONG, FAINT = "#4878a8", "#d1702b", "#2e7d32", "#c62828", "#9aa0a6"
COLUMNS, ROWS = 10, 2
WIDEST, LONGEST_NAME = 18, 10  # letters in a line above a picture, and in a class's name there


@dataclass(frozen=True)
class Example:
    """A test picture with what the model says: `image` is (H, W) or (H, W, 3) from 0 to 1; classes by name."""

    image: Any
    truth: str
    guess: str
    probability: float


def example(dataset: Dataset, tested: Tested, i: int) -> Example:
    """The i-th test picture, in its own colours."""
    normalised = backends.to_numpy(dataset.x[int(dataset.test[i])])
    mean, std = (numpy.reshape(v, (-1, 1, 1)) for v in (dataset.mean, dataset.std))
    image = numpy.clip(normalised * std + mean, 0, 1).transpose(1, 2, 0)
    guess = int(tested.probabilities[i].argmax())
    return Example(
        image[:, :, 0] if image.shape[2] == 1 else image,
        dataset.classes[int(tested.labels[i])],
        dataset.classes[guess],
        float(tested.probabilities[i, guess]),
    )


def curves(title: str, epochs: Sequence[dict[str, Any]], best: int, examples: Sequence[Example], caption: str) -> bytes:
    """A PNG: loss and accuracy against epoch, the best epoch marked, and below them examples with the model's guesses.

    Raises ImportError, with the command that mends it, where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(f"matplotlib does not import ({error}): pip install 'cnnlayers[train]'") from error
    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches: nothing touches the edge
    figure = Figure(figsize=(12, 7.8), dpi=110, layout=margins)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    upper, lower = parts
    upper.suptitle(title, fontsize=14, fontweight="bold", parse_math=False)
    left, right = upper.subplots(1, 2)
    _panel(left, epochs, "loss", 1.0, best)
    _panel(right, epochs, "accuracy", 100.0, best)
    left.set(title="Loss (logarithmic)", ylabel="cross-entropy", yscale="log")
    right.set(title="Accuracy", ylabel="pictures classified rightly, %")
    lower.suptitle(caption, fontsize=11)
    for axes, example in zip(lower.subplots(ROWS, COLUMNS).flat, examples, strict=False):
        _picture(axes, example)
    for axes in lower.axes:
        axes.set_axis_off()
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter of a class's name that the font lacks is drawn as a box
        figure.savefig(png, format="png")
    return png.getvalue()


def _panel(axes: Any, epochs: Sequence[dict[str, Any]], what: str, scale: float, best: int) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [record["epoch"] for record in epochs]
    mark = "o" if len(epochs) <= 40 else None
    for split, colour in (("train", TRAIN), ("validation", VALIDATION)):
        values = [scale * record[f"{split}_{what}"] for record in epochs]
        text = "training (augmented)" if split == "train" else split
        axes.plot(numbers, values, color=colour, marker=mark, markersize=3, linewidth=1.8, label=text)
    axes.axvline(best, color=FAINT, linewidth=1, linestyle="--", zorder=0, label=f"best epoch: {best}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _picture(axes: Any, example: Example) -> None:
    right = example.guess == example.truth
    axes.imshow(example.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(label(example), fontsize=8.5, color=RIGHT if right else WRONG, pad=3, parse_math=False)


def label(example: Example) -> str:
    """What stands above an example: the true class, what it was read as, and the probability where it has room."""
    truth, guess = (
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in (example.truth, example.guess)
    )
    text = guess if example.guess == example.truth else f"read as {guess}"
    share = f" ({100 * example.probability:.0f} %)"
    text += share if len(text + share) <= WIDEST else ""
    return text if example.guess == example.truth else f"true {truth},\n{text}"
