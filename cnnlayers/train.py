"""A training run: epochs in a folder that can be left at any moment and continued to the same bits.

After every epoch the folder holds the best model by validation (`model.safetensors`), all that continues the run
(`last.safetensors`: weights, running statistics, the optimiser's arrays, the settings and the epochs' figures) and
`history.json`; each file is replaced in one step. Every random number belongs to (seed, epoch), and the learning rate
to the epoch alone, so no generator's state need be kept: a continued run, to whatever number of epochs, repeats an
uninterrupted one. The test rows are looked at once, at the end, by the model on disk.

Several ranks share every batch and draw what one process would draw: their number changes nothing but the rounding.
Only the first writes files. What they send one another is distributed.py's matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

import cnnlayers
from cnnlayers import backends, checkpoint, data, evaluation, models, optim, plots, run_folder
from cnnlayers import functional as F
from cnnlayers.distributed import Ranks
from cnnlayers.evaluation import EVALUATION_BATCH, Tested, logits_of
from cnnlayers.layers import Layer
from cnnlayers.progress import Lines
from cnnlayers.run_folder import CURVES, HISTORY, LAST, MODEL, TEXT
from cnnlayers.run_settings import ARGUMENTS, DECAY, RATES, RATES_OF_OTHERS, VALIDATION_SHARE, Settings

__all__ = ["Diverged", "Run", "Settings", "Tested", "resume", "start"]

SHOWN_CLASSES = 10
SHOW_EVERY_S = 0.1
ALONE = Ranks()

Record = dict[str, Any]


class Diverged(RuntimeError):
    """The loss is no number any more."""


def _stream(seed: int, *purpose: int) -> numpy.random.Generator:
    return numpy.random.default_rng(numpy.random.SeedSequence(seed, spawn_key=purpose))


class Run:
    """A model in training and its folder; `start` and `resume` make one.

    Parameters
    ----------
    settings : Settings
    out : path
        The folder.
    ranks : distributed.Ranks
        The processes that train it together.

    Attributes
    ----------
    model : Layer
    optimizer : optim.Optimizer
    dataset : data.Dataset
    records : list of dict
        The figures of the epochs that are on disk.
    """

    def __init__(self, settings: Settings, out: Path, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.dataset = data.load(settings.data)
        rates = RATES.get(self.dataset.name, RATES_OF_OTHERS)
        self.rate = rates[settings.optimizer] if settings.lr is None else settings.lr
        where = settings.data if self.dataset.name == "digits" else str(Path(settings.data).resolve())
        self.settings, self.out = dataclasses.replace(settings, data=where, lr=self.rate), out
        self.rows, self.held = self.dataset.hold_out(VALIDATION_SHARE, settings.seed)
        self.arguments = {
            "input_shape": list(self.dataset.shape),
            "classes": len(self.dataset.classes),
            **ARGUMENTS[settings.model],
        }
        self.model = self._new_model()
        kind = {"adam": optim.Adam, "sgd": optim.SGD}[settings.optimizer]
        self.optimizer: optim.Optimizer = kind(self.model.params, self.rate)
        self.records: list[Record] = []
        self._saving: list[Record] | None = None  # the figures that `_save` writes, until all files have them
        self.planned = 0  # epochs in all, by the last call of `train`

    def _new_model(self) -> Layer:
        return models.build(self.settings.model, self.arguments, rng=_stream(self.settings.seed, 0))

    def header(self, epochs: int) -> list[tuple[str, str]]:
        """What is about to be trained, up to so many epochs: titles and texts."""
        rows = {"training": self.rows, "validation": self.held, "test": self.dataset.test}
        split = ", ".join(f"{len(rows[name]):,} {name}" for name in rows)
        b, first = backends.of(self.dataset.x), len(self.records) + 1
        channels, height, width = self.dataset.shape
        size = f"{height}×{width} pixels, {channels} channel{'s' if channels > 1 else ''}"
        names = ", ".join(self.dataset.classes[:SHOWN_CLASSES])
        more = len(self.dataset.classes) - SHOWN_CLASSES
        workers = f"{backends.num_threads()} threads" if b.name == "numpy" else str(b.device)
        several = f", {self.ranks.size} processes" if self.ranks.size > 1 else ""
        done = f"epochs {first} to {epochs}" if first < epochs else f"epoch {epochs}"
        done = done if first <= epochs else f"all {epochs} epochs are done"
        return [
            ("data", f"{self.dataset.name}: {split} pictures of {size}"),
            ("classes", f"{len(self.dataset.classes)}: {names}" + (f" and {more} more" if more > 0 else "")),
            ("model", f"{self.settings.model}, {self.parameters:,} parameters"),
            ("training", f"{self.settings.optimizer}, learning rate {self.rate:g}, batches of "
                         f"{self.settings.batch_size}, seed {self.settings.seed}, {done}"),
            ("backend", f"{b.name} on {'the CPU' if b.name == 'numpy' else 'the GPU'}, {workers}{several}"),
        ]  # fmt: skip

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(int(p.size) for p in self.model.params.values())

    # ------------------------------------------------------------------------------------------------------- training
    def train(self, epochs: int, report: Lines) -> None:
        """Train until `epochs` are done, in all; each is on disk before it is reported."""
        self.planned = epochs
        for epoch in range(len(self.records) + 1, epochs + 1):
            record = self._epoch(epoch, report)
            self._save(record)
            report.end(record)

    def _epoch(self, epoch: int, report: Lines) -> Record:
        report.begin(epoch, len(self.rows))
        self.model.train()
        self.optimizer.lr = self.rate * DECAY ** (epoch - 1)
        b = backends.of(self.dataset.x)
        loss = right = b.zeros((), b.xp.float64)  # kept on the device: reading them makes a GPU wait
        seen, own, start = 0, 0, time.perf_counter()
        shown, first, counted = start, 0, start
        rng = _stream(self.settings.seed, 1, epoch)
        for x, y in data.batches(self.dataset, self.rows, self.settings.batch_size, rng, self.ranks.part):
            whole = min(self.settings.batch_size, len(self.rows) - seen)
            of_batch, hits = self._step(x, y, whole)
            loss, right, seen, own = loss + of_batch * x.shape[0], right + hits, seen + whole, own + x.shape[0]
            now = time.perf_counter()
            if not first:  # kernels are compiled in the first step: the speed is that of the others
                first, counted = seen, now
            if own and now - shown > SHOW_EVERY_S:
                report.advance(
                    seen, float(loss) / own, float(right) / own, self._speed(seen, now - start, first, now - counted)
                )
                shown = now
        train_loss, train_accuracy = self._means(loss, right, seen)
        end = time.perf_counter()
        seconds = end - start
        held_loss, held_accuracy = self._evaluate(self.held)
        if not math.isfinite(train_loss + held_loss):
            raise Diverged(f"the loss became {train_loss} in epoch {epoch}: try a lower --lr than {self.rate:g}")
        return {
            "epoch": epoch,
            "lr": self.optimizer.lr,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": held_loss,
            "validation_accuracy": held_accuracy,
            "seconds": seconds,
            "images_per_second": self._speed(seen, seconds, first, end - counted),
        }

    @staticmethod
    def _speed(seen: int, seconds: float, first: int, seconds_after: float) -> float:
        """Pictures a second after the first step, or in it where there is no other."""
        return (seen - first) / seconds_after if seen > first else seen / seconds

    def _step(self, x: Any, y: Any, whole: int) -> tuple[Any, Any]:
        """One step on one batch, of whose `whole` pictures this rank has (x, y): their mean loss and number of right
        answers, both still on the device."""
        b = backends.of(x)
        logits = self.model(x)
        loss, dlogits = b.zeros((), logits.dtype), logits
        if x.shape[0]:  # a rank may have none, and takes part in batch norm and in the sums all the same
            loss, ctx = F.softmax_cross_entropy_forward(logits, y)
            dlogits = F.softmax_cross_entropy_backward(b.full((), x.shape[0] / whole, loss.dtype), ctx)
        self.model.backward(dlogits, needs_dx=False)
        self.optimizer.step(self.ranks.add(self.model.grads))
        return b.xp.astype(loss, b.xp.float64), _hits(b, logits, y)

    def _means(self, loss: Any, right: Any, pictures: int) -> tuple[float, float]:
        """Mean loss and accuracy, from all ranks' sums over their parts of so many pictures."""
        sums = self.ranks.allreduce([float(loss), float(right)])
        return float(sums[0]) / pictures, float(sums[1]) / pictures

    def _evaluate(self, rows: Any) -> tuple[float, float]:
        """Mean loss and accuracy on these rows, in evaluation."""
        b = backends.of(self.dataset.x)
        loss = right = b.zeros((), b.xp.float64)
        for x, y in data.batches(self.dataset, rows[self.ranks.part(len(rows))], EVALUATION_BATCH):
            logits = logits_of(self.model, x)
            loss = loss + b.xp.astype(F.softmax_cross_entropy(logits, y), b.xp.float64) * x.shape[0]
            right = right + _hits(b, logits, y)
        return self._means(loss, right, len(rows))

    # ----------------------------------------------------------------------------------------------------------- disk
    def _save(self, record: Record) -> None:
        """The finished epoch on disk. The best model goes first: if only that is written, the epoch is done again."""
        self.ranks.check(self.model)
        if not self.ranks.first:
            self.records.append(record)
            return
        if not self.records:
            run_folder.clear(self.out)
        if not self.records or _merit(record) > max(map(_merit, self.records)):
            of_data = {name: getattr(self.dataset, name) for name in ("classes", "mean", "std", "strokes")}
            card = {"model": self.settings.model, "arguments": self.arguments, "data": self.dataset.name} | of_data
            checkpoint.save_arrays(self.model.state_dict(), self.out / MODEL, {TEXT: json.dumps(card)})
        arrays = {f"model.{name}": a for name, a in self.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": a for name, a in self.optimizer.state_dict().items()}
        records = [*self.records, record]
        kept = {
            "settings": dataclasses.asdict(self.settings),
            "dataset": self.dataset.name,
            "digest": self.dataset.digest,
            "planned": self.planned,
            "epochs": records,
        }
        self._saving = records
        checkpoint.save_arrays(arrays, self.out / LAST, {TEXT: json.dumps(kept)})
        self.records = records
        self.write_history(None)
        self._saving = None

    def after_interrupt(self) -> int:
        """The number of epochs on disk after Ctrl-C. If it came while files were replaced, last.safetensors says which
        epochs there are, and history.json is written to agree with it."""
        if self._saving is not None:
            with contextlib.suppress(FileNotFoundError):  # the first epoch's was not written
                if run_folder.read_last(self.out)[1]["epochs"] == self._saving:
                    self.records = self._saving
                    self.write_history(None)
        return len(self.records)

    def continue_from(self, arrays: Mapping[str, Any], records: list[Record]) -> None:
        """Take over the arrays and figures of the last finished epoch. Raises ValueError where they do not fit."""
        parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}}
        for name, a in arrays.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = a
        try:
            self.optimizer.load_state_dict(parts["optimizer"])
            self.model.load_state_dict(parts["model"])
        except ValueError as error:
            raise ValueError(f"{self.out / LAST} does not fit this run: {error}") from error
        self.records = records

    def write_history(self, tested: Tested | None) -> None:
        """history.json: the settings, the versions, every epoch's figures, and at the end the test's."""
        b = backends.of(self.dataset.x)
        test = None
        if tested is not None:
            test = {"accuracy": tested.accuracy, "loss": tested.loss, "pictures": len(tested.labels)}
        found = {
            "settings": dataclasses.asdict(self.settings) | {"data": self.dataset.name},
            "versions": {
                "cnnlayers": cnnlayers.__version__,
                "python": platform.python_version(),
                "numpy": numpy.__version__,
                b.name: b.xp.__version__,
            },
            "backend": b.name,
            "ranks": self.ranks.size,
            "parameters": self.parameters,
            "pictures": {"train": len(self.rows), "validation": len(self.held), "test": len(self.dataset.test)},
            "best_epoch": self.best_epoch,
            "epochs": self.records,
            "test": test,
        }
        checkpoint.replace_file(self.out / HISTORY, (json.dumps(found, indent=1) + "\n").encode())

    @property
    def best_epoch(self) -> int:
        """The number of the epoch whose model is kept: the first of the highest merit."""
        return int(max(self.records, key=_merit)["epoch"])

    # ----------------------------------------------------------------------------------------------------------- test
    def test(self) -> Tested:
        """The best model, as it lies on disk, on the test rows; history.json gets its figures."""
        best = self._new_model()
        checkpoint.load(best, self.out / MODEL)
        tested = evaluation.test(best, self.dataset)
        self.write_history(tested)
        return tested

    def draw(self, tested: Tested) -> None:
        """curves.png, with the test pictures that the model found hardest. Raises ImportError without matplotlib."""
        hardest = numpy.argsort(tested.of_truth, kind="stable")[: plots.ROWS * plots.COLUMNS]
        examples = [plots.example(self.dataset, tested, int(i)) for i in hardest]
        wrong = round((1 - tested.accuracy) * len(tested.labels))
        png = plots.curves(
            f"{self.dataset.name}, {self.settings.model}: test accuracy {100 * tested.accuracy:.1f} %",
            self.records,
            self.best_epoch,
            examples,
            f"The hardest of the {len(tested.labels):,} test pictures, {wrong:,} of which were classified wrongly",
        )
        checkpoint.replace_file(self.out / CURVES, png)


def _hits(b: backends.Backend, logits: Any, y: Any) -> Any:
    return b.xp.sum(b.xp.astype(b.xp.argmax(logits, axis=1) == y, b.xp.float64))


def _merit(record: Record) -> float:
    """What the best epoch has most of: a low validation loss, finer than the accuracy on a few hundred pictures."""
    return -float(record["validation_loss"])


def start(given: Mapping[str, Any], out: Path, ranks: Ranks = ALONE, *, overwrite: bool = False) -> Run:
    """A new run with these settings, its folder made.

    Parameters
    ----------
    given : dict of str to object
        The settings that are not `Settings`' own defaults, by name.
    out : path
        The folder.
    ranks : distributed.Ranks
        The processes that train it together.
    overwrite : bool
        Whether the folder may hold a run. It stays until the first epoch of the new one is finished.

    Returns
    -------
    Run

    Raises
    ------
    FileExistsError
        The folder holds a run, and `overwrite` is not set.
    OSError
        The folder cannot be made. Else as `data.load`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from cnnlayers import train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train.start({"model": "resnet8"}, pathlib.Path(folder) / "digits")
    >>> run.parameters
    77754
    """
    with ranks.agreeing():
        if ranks.first and not overwrite:
            run_folder.check_free(out)
        run = Run(Settings(**given), out, ranks)
        if ranks.first:
            run_folder.make(out)
    ranks.join(run.model)
    return run


def resume(given: Mapping[str, Any], out: Path, ranks: Ranks = ALONE) -> Run:
    """The run in a folder, at its last finished epoch.

    Parameters
    ----------
    given : dict of str to object
        Settings by name; those that are not given are the run's own.
    out : path
        The folder.
    ranks : distributed.Ranks
        The processes that train it together; their number may be another than before.

    Returns
    -------
    Run

    Raises
    ------
    FileNotFoundError
        There is no run.
    ValueError
        A damaged run, a setting that differs from its own, pictures that are not those it began with.
    """
    arrays, kept = ranks.of_first(lambda: run_folder.read_last(out))
    with ranks.agreeing():
        try:
            own = Settings(**kept["settings"])
        except TypeError as error:
            raise ValueError(
                f"{out / LAST} is no run that can be resumed ({error}): start one without --resume"
            ) from error
        changed = [
            f"{name} {value} (it was {getattr(own, name)})"
            for name, value in given.items()
            if name != "data" and value != getattr(own, name)
        ]
        run = Run(dataclasses.replace(own, **given), out, ranks)
        if run.dataset.name != kept["dataset"]:
            changed.append(f"data {run.dataset.name} (it was {kept['dataset']})")
        if changed:
            raise ValueError(f"a resumed run keeps its settings, but was given {', '.join(changed)}")
        if run.dataset.digest != kept["digest"]:
            raise ValueError(f"the pictures in {run.settings.data} changed since the run in {out} began: start another")
        run.continue_from(arrays, kept["epochs"])
        run.planned = kept["planned"]
        if ranks.first:
            run_folder.make(out)
    ranks.join(run.model)
    return run
