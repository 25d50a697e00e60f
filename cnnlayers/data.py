"""Labelled pictures, ready for training: the data sets, their splits and batches.

Pictures are float32 (N, C, H, W) on the selected backend, normalised by the mean and deviation of the training part's
channels; labels are int64. A split is a set of rows, never a copy. The test rows are fixed; which training rows are
held out for validation is the seed's choice. All randomness is drawn on the host, so it is the same on CPU and GPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from cnnlayers import augmentation, backends, cifar, picture_folder

__all__ = ["Dataset", "augment", "batches", "load", "load_cifar10", "load_digits", "load_folder"]

Array = Any
Rows = Any  # a NumPy array of int64 row numbers

TEST_SHARE = 0.2  # of the digits, which come unsplit
TEST_SEED = 0  # never --seed: the test rows must be the same in every run


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, normalised, and which of them train and which test.

    Parameters
    ----------
    name : str
        "digits", "cifar10" or a folder's name.
    x : array
        (N, C, H, W) float32, normalised.
    y : array
        (N,) int64, the labels.
    classes : tuple of str
        Their names.
    train, test : numpy.ndarray
        The rows of x that train and those that test, int64.
    mean, std : tuple of float
        Of the training part's channels, for pixels from 0 to 1.
    crop : int
        The cells that augmentation pads by before it crops at random.
    flip : bool
        Whether augmentation mirrors.
    blank : float
        What augmentation pads with, a normalised value.
    strokes : bool
        Whether these are light strokes on a dark ground that fill their pictures' height; augmentation distorts such.
    digest : int
        A checksum of a folder's pictures and labels, by which a resumed run finds that they changed; 0 for other sets.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import data
    >>> x, y, rows = np.zeros((20, 1, 4, 4), np.float32), np.arange(20) % 2, np.arange(20)
    >>> pictures = data.Dataset("noughts", x, y, ("a", "b"), rows[:16], rows[16:], (0.0,), (1.0,), 0, False)
    >>> pictures.shape
    (1, 4, 4)
    >>> rest, held = pictures.hold_out(0.25, seed=0)
    >>> len(rest), len(held)
    (12, 4)
    """

    name: str
    x: Array
    y: Array
    classes: tuple[str, ...]
    train: Rows
    test: Rows
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    flip: bool
    blank: float = 0.0
    strokes: bool = False
    digest: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """One picture's (C, H, W)."""
        return tuple(self.x.shape[1:])

    def hold_out(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """Split the training rows in two, class by class.

        Parameters
        ----------
        share : float
            Of every class, between 0 and 1: what the second part gets.
        seed : int
            Chooses the rows.

        Returns
        -------
        rest, held : numpy.ndarray
            Ascending row numbers, int64: those to train on, and those to validate with.

        Raises
        ------
        ValueError
            A share outside (0, 1), or a part that would be empty.
        """
        if not 0.0 < share < 1.0:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        labels = backends.to_numpy(self.y)[self.train]
        rest, held = stratified(labels, share, numpy.random.default_rng(seed))
        if not len(rest) or not len(held):
            raise ValueError(f"{len(labels)} training pictures are too few to hold out {share:.0%} of each class")
        return self.train[rest], self.train[held]


def stratified(labels: Array, share: float, rng: numpy.random.Generator) -> tuple[Rows, Rows]:
    """Row numbers in two ascending parts: the second holds `share` of every class, rounded, at random."""
    chosen = []
    for label in numpy.unique(labels):
        rows = rng.permutation(numpy.flatnonzero(labels == label))
        chosen.append(rows[: round(share * len(rows))])
    held = numpy.sort(numpy.concatenate(chosen)) if chosen else numpy.zeros(0, numpy.int64)
    return numpy.setdiff1d(numpy.arange(len(labels)), held, assume_unique=True), held


def _normalise(x: Array, train: Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Normalise `x` in place, channel by channel; the means and deviations of the training rows."""
    means, stds = [], []
    for channel in range(x.shape[1]):
        cells = x[train, channel]
        mean, std = float(cells.mean(dtype=numpy.float64)), float(cells.std(dtype=numpy.float64))
        std = std or 1.0  # a channel that is the same everywhere
        x[:, channel] -= numpy.float32(mean)
        x[:, channel] /= numpy.float32(std)
        means.append(mean)
        stds.append(std)
    return tuple(means), tuple(stds)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8 cells of grey; a fixed fifth of each class is for testing.

    Returns
    -------
    Dataset
        x: (1797, 1, 8, 8).

    Raises
    ------
    ImportError
        scikit-learn is not installed; the message has the command that mends it.

    References
    ----------
    sklearn.datasets.load_digits
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"the digits come with scikit-learn, which does not import ({error}): pip install 'cnnlayers[train]'"
        ) from error
    found = datasets.load_digits()
    x = (found.images[:, None] / 16).astype(numpy.float32)
    y = found.target.astype(numpy.int64)
    train, test = stratified(y, TEST_SHARE, numpy.random.default_rng(TEST_SEED))
    mean, std = _normalise(x, train)
    return Dataset(
        name="digits",
        x=backends.asarray(x),
        y=backends.asarray(y),
        classes=tuple(str(name) for name in found.target_names),
        train=train,
        test=test,
        mean=mean,
        std=std,
        crop=0,
        flip=False,
        blank=-mean[0] / std[0],
        strokes=True,
    )


def load_cifar10(path: str | Path) -> Dataset:
    """CIFAR-10 from its python folder.

    Parameters
    ----------
    path : str or path
        The folder cifar-10-batches-py, or its parent folder.

    Returns
    -------
    Dataset
        x: (60000, 3, 32, 32).

    Raises
    ------
    FileNotFoundError
        A missing folder or file.
    ValueError
        A damaged file, by its name.

    References
    ----------
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    folder = cifar.folder_of(Path(path))
    classes = cifar.class_names(folder)
    parts = [cifar.read(folder / name, len(classes)) for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE)]
    x = numpy.concatenate([pictures for pictures, _ in parts]).astype(numpy.float32)
    x /= 255
    y = numpy.concatenate([labels for _, labels in parts])
    tested = len(parts[-1][1])
    for count, text in ((len(y) - tested, "training"), (tested, "test")):
        if count == 0:
            raise ValueError(f"{folder} holds no {text} pictures: fetch it again, {cifar.WHERE}")
    rows = numpy.arange(len(y))
    train, test = rows[: len(y) - tested], rows[len(y) - tested :]
    mean, std = _normalise(x, train)
    x, y = backends.asarray(x), backends.asarray(y)
    return Dataset("cifar10", x, y, classes, train, test, mean, std, crop=4, flip=True)


def load_folder(path: str | Path) -> Dataset:
    """A folder with one folder of pictures a class; a fixed fifth of each class is for testing.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Dataset
        x: (N, C, H, W), C 1 or 3.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `picture_folder.read` says.
    """
    folder = Path(path)
    cells, labels, classes = picture_folder.read(folder)
    train, test = stratified(labels, TEST_SHARE, numpy.random.default_rng(TEST_SEED))
    digest = zlib.crc32(cells, zlib.crc32(labels))
    x = cells.astype(numpy.float32)
    x /= 255
    mean, std = _normalise(x, train)
    crop = min(x.shape[2:]) // 8
    x, y = backends.asarray(x), backends.asarray(labels)
    return Dataset(name_of(str(path)), x, y, classes, train, test, mean, std, crop, flip=False, digest=digest)


def _is_cifar10(folder: Path) -> bool:
    names = (cifar.FOLDER, cifar.META_FILE, *cifar.TRAIN_FILES, cifar.TEST_FILE)
    return folder.is_file() or any((folder / name).exists() for name in names)


def name_of(data: str) -> str:
    """The name of the set that `load` would load: for a folder of pictures the folder's own."""
    if data == "digits":
        return data
    path = Path(data)
    if _is_cifar10(path):
        return "cifar10"
    name = path.resolve().name or "pictures"
    return f"{name}-pictures" if name in ("digits", "cifar10") else name


def load(data: str) -> Dataset:
    """Load a data set by what the command line's `--data` takes.

    Parameters
    ----------
    data : str
        "digits", or the folder of CIFAR-10 or of pictures.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `load_digits`, `load_cifar10` and `load_folder`.
    """
    if data == "digits":
        return load_digits()
    path = Path(data)
    if not data or not path.exists():
        raise FileNotFoundError(
            f"--data must be 'digits', CIFAR-10's folder or a folder of pictures, and there is no folder {data!r}: "
            f"{cifar.WHERE}; pictures are {picture_folder.EXPECTED}"
        )
    return load_cifar10(path) if _is_cifar10(path) else load_folder(path)


def augment(
    dataset: Dataset, x: Array, rng: numpy.random.Generator, whole: int | None = None, part: slice = slice(None)
) -> Array:
    """Change pictures at random: strokes by `augmentation.distort`, others by `augmentation.crop_and_flip`.

    Parameters
    ----------
    dataset : Dataset
        Says how its pictures may be changed.
    x : array
        (N, C, H, W), of this set.
    rng : numpy.random.Generator
    whole : int or None
        The size of the batch that x is a part of; None: x is all of it. The whole batch is drawn for, so each picture
        changes as it would there.
    part : slice
        Which part of the batch x is.

    Returns
    -------
    array
        x's shape and dtype.
    """
    if dataset.strokes:
        return augmentation.distort(x, rng, dataset.blank, whole, part)
    return augmentation.crop_and_flip(x, rng, dataset.crop, dataset.flip, dataset.blank, whole, part)


def _whole(n: int) -> slice:
    return slice(n)


def batches(
    dataset: Dataset,
    rows: Rows,
    size: int,
    rng: numpy.random.Generator | None = None,
    part: Callable[[int], slice] = _whole,
) -> Iterator[tuple[Array, Array]]:
    """`(x, y)` for each batch of these rows, the last one as small as it comes.

    Parameters
    ----------
    dataset : Dataset
    rows : numpy.ndarray
        Row numbers, int64.
    size : int
        Pictures in a batch.
    rng : numpy.random.Generator or None
        With one, the rows are shuffled and the pictures augmented: an epoch of training. Without, neither: an
        evaluation.
    part : callable
        part(n): the slice that is wanted of a batch of n pictures, the same pictures as in the whole one; it may be
        empty.

    Yields
    ------
    x : array
        (size, C, H, W) float32.
    y : array
        (size,) int64.

    Raises
    ------
    ValueError
        A size below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnlayers import data
    >>> x, y, rows = np.zeros((5, 1, 4, 4), np.float32), np.zeros(5, np.int64), np.arange(5)
    >>> pictures = data.Dataset("noughts", x, y, ("a",), rows, rows[:0], (0.0,), (1.0,), 0, False)
    >>> [len(labels) for _, labels in data.batches(pictures, pictures.train, 2)]
    [2, 2, 1]
    """
    if size < 1:
        raise ValueError(f"a batch needs at least one picture, got size {size}")
    b = backends.of(dataset.x)
    order = rows if rng is None else rng.permutation(rows)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        mine = part(len(batch))
        index = b.array(batch[mine], b.xp.int64)
        x, y = b.xp.take(dataset.x, index, axis=0), b.xp.take(dataset.y, index, axis=0)
        yield (x if rng is None else augment(dataset, x, rng, len(batch), mine)), y
