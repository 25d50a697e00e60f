"""Training: it learns, it repeats, it can be left at any moment, and it looks at the test rows once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnlayers import backends, checkpoint, data, evaluation, models, optim, plots, progress, train
from cnnlayers import functional as F

from . import standin_cupy

pytest.importorskip("sklearn")


class Quiet(progress.Lines):
    """Shows nothing; stops a run, as Ctrl-C would, after `stop` batches have been reported or epochs ended."""

    def __init__(self, stop: str = "", at: int = 0) -> None:
        self.stop, self.left = stop, at

    def _count(self, what: str) -> None:
        if what == self.stop:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def advance(self, *figures: float) -> None:
        self._count("batch")

    def end(self, record: dict) -> None:
        self._count("epoch")


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


@pytest.fixture(autouse=True)
def every_batch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SHOW_EVERY_S", -1.0)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "through"
    run = train.start({"seed": 5}, out)
    run.train(2, Quiet())
    run.test()
    return out


def timeless(out: Path) -> dict:
    """history.json without what a clock says."""
    found = json.loads((out / train.HISTORY).read_text())
    for record in found["epochs"]:
        assert record.pop("seconds") > 0
        assert record.pop("images_per_second") > 0
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / train.MODEL).read_bytes() == (other / train.MODEL).read_bytes()
    assert timeless(one) == timeless(other)
    a, b = (checkpoint.load_arrays(out / train.LAST)[0] for out in (one, other))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a.keys() | b.keys())


def test_it_learns(two_epochs: Path) -> None:
    found = timeless(two_epochs)
    first, second = found["epochs"]
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert second["train_loss"] < first["train_loss"]
    assert second["validation_accuracy"] > 0.85
    assert found["test"]["accuracy"] > 0.85
    assert found["test"]["pictures"] == found["pictures"]["test"] == 359
    assert sum(found["pictures"].values()) == 1797
    assert found["settings"] == {"data": "digits", "model": "three-layer", "optimizer": "adam", "lr": 3e-3,
                                 "batch_size": 64, "seed": 5}  # fmt: skip
    assert found["versions"]["numpy"] == np.__version__


def test_a_seed_repeats_a_run(two_epochs: Path, tmp_path: Path) -> None:
    run = train.start({"seed": 5}, tmp_path)
    run.train(2, Quiet())
    run.test()
    assert_same_run(two_epochs, tmp_path)
    other = train.start({"seed": 6}, tmp_path / "other")
    other.train(1, Quiet())
    assert (tmp_path / "other" / train.MODEL).read_bytes() != (two_epochs / train.MODEL).read_bytes()


@pytest.mark.parametrize(("stop", "at"), [("epoch", 0), ("batch", 25), ("batch", 37)])
def test_interrupted_and_resumed(two_epochs: Path, tmp_path: Path, stop: str, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train.start({"seed": 5}, tmp_path).train(2, Quiet(stop, at))
    assert [record["epoch"] for record in timeless(tmp_path)["epochs"]] == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [train.HISTORY, train.LAST, train.MODEL]
    run = train.resume({}, tmp_path)
    assert len(run.records) == 1
    run.train(2, Quiet())
    run.test()
    assert_same_run(two_epochs, tmp_path)


@pytest.mark.parametrize("failing", [train.MODEL, train.LAST, train.HISTORY])
def test_interrupted_while_saving(
    two_epochs: Path, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.start({"seed": 5}, tmp_path)
    run.train(1, Quiet())
    replace = checkpoint.replace_file

    def interrupted(path: Path, content: bytes) -> None:
        if Path(path).name == failing:
            raise KeyboardInterrupt
        replace(path, content)

    monkeypatch.setattr(checkpoint, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train(2, Quiet())
    assert len(run.records) == (2 if failing == train.HISTORY else 1)
    monkeypatch.undo()
    assert run.after_interrupt() == len(timeless(tmp_path)["epochs"]) == (2 if failing == train.HISTORY else 1)
    again = train.resume({}, tmp_path)
    again.train(2, Quiet())
    again.test()
    assert_same_run(two_epochs, tmp_path)


@pytest.mark.parametrize("epochs", [1, 2])
def test_interrupted_as_soon_as_the_last_file_is_replaced(
    tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is on disk, although neither the run nor history.json has it."""
    run = train.start({"seed": 5}, tmp_path)
    run.train(epochs - 1, Quiet())
    replace = checkpoint.replace_file

    def interrupted(path: Path, content: bytes) -> None:
        replace(path, content)
        if Path(path).name == train.LAST:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train(epochs, Quiet())
    assert len(run.records) == epochs - 1
    monkeypatch.undo()
    assert run.after_interrupt() == len(timeless(tmp_path)["epochs"]) == epochs
    assert len(train.resume({}, tmp_path).records) == epochs


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_more_epochs_than_were_planned(tmp_path: Path, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "batch_size": 256}
    through = train.start(settings, tmp_path / "through")
    through.train(3, Quiet())
    first = train.start(settings, tmp_path / "parts")
    first.train(1, Quiet())
    first.test()
    second = train.resume({}, tmp_path / "parts")
    second.train(3, Quiet())
    assert_same_run(tmp_path / "through", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(two_epochs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_epochs, tmp_path / "copy")
    run = train.resume({}, tmp_path / "copy")
    run.train(2, Quiet())
    run.test()
    assert_same_run(two_epochs, tmp_path / "copy")


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([(0.5, 0.6), (0.4, 0.8), (0.6, 0.9), (0.3, 0.7), (0.3, 0.8)])  # loss, accuracy
    monkeypatch.setattr(train.Run, "_evaluate", lambda self, rows: next(figures))
    run = train.start({"batch_size": 512}, tmp_path)
    weights = []
    for epochs in range(1, 6):
        run.train(epochs, Quiet())
        weights.append(run.model.state_dict()["0.weight"].copy())
    assert run.best_epoch == 4
    kept, _ = checkpoint.load_arrays(tmp_path / train.MODEL)
    assert np.array_equal(kept["0.weight"], weights[3])


def test_the_test_rows_are_looked_at_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    batches = data.batches

    def watched(dataset: data.Dataset, rows: np.ndarray, *args: object):
        looked.append("test" if set(rows.tolist()) & set(dataset.test.tolist()) else "other")
        return batches(dataset, rows, *args)

    monkeypatch.setattr(data, "batches", watched)
    run = train.start({"batch_size": 512}, tmp_path)
    run.train(2, Quiet())
    run.test()
    assert looked == ["other"] * 4 + ["test"]


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    run = train.start({"lr": 1e30, "optimizer": "sgd"}, tmp_path)
    with np.errstate(all="ignore"), pytest.raises(train.Diverged, match=r"loss became .* in epoch 1: try a lower --lr"):
        run.train(1, Quiet())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_resumed(two_epochs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*start one without --resume"):
        train.resume({}, tmp_path)
    with pytest.raises(ValueError, match=r"keeps its settings, but was given seed 6 \(it was 5\)"):
        train.resume({"seed": 6, "batch_size": 64}, two_epochs)
    whole = (two_epochs / train.LAST).read_bytes()
    for damaged, said in ((whole[: len(whole) // 2], "no whole safetensors file"), (b"", "no whole safetensors file")):
        (tmp_path / train.LAST).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{train.LAST} is {said}"):
            train.resume({}, tmp_path)
    shutil.copy(two_epochs / train.MODEL, tmp_path / train.LAST)
    with pytest.raises(ValueError, match="is no run that can be resumed"):
        train.resume({}, tmp_path)


def test_an_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="out is a file: a run needs a folder"):
        train.start({}, tmp_path / "out")


def test_curves(two_epochs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    shutil.copytree(two_epochs, tmp_path / "copy")
    run = train.resume({}, tmp_path / "copy")
    run.draw(run.test())
    with Image.open(tmp_path / "copy" / train.CURVES) as picture:
        picture.load()
        assert picture.width >= 1000
        assert picture.height >= 600
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_an_example_says_what_is_true_and_what_was_read(tmp_path: Path) -> None:
    def label(truth: str, guess: str) -> str:
        return plots.label(plots.Example(None, truth, guess, 0.873))

    assert label("3", "9") == "true 3,\nread as 9 (87 %)"
    assert label("3", "3") == "3 (87 %)"
    assert label("truck", "automobile") == "true truck,\nread as automobile"
    assert label("a very long name", "bird") == "true a very lo…,\nread as bird"


@pytest.mark.parametrize("names", ["0 1 2 3 4 5 6 7 8 9", "cat dog a$b$ $ 日本語 über deer frog horse automobile"])
def test_nothing_in_the_curves_touches_the_edge(
    two_epochs: Path, tmp_path: Path, names: str, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    shutil.copytree(two_epochs, tmp_path / "copy")
    run = train.resume({}, tmp_path / "copy")
    object.__setattr__(run.dataset, "classes", tuple(names.split()))
    run.draw(run.test())
    with Image.open(tmp_path / "copy" / train.CURVES) as picture:
        cells = np.asarray(picture.convert("L"))
    for edge in (cells[:8], cells[-8:], cells[:, :8], cells[:, -8:]):
        assert edge.min() == 255
    assert not recwarn.list


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(evaluation.softmax(np.array([[1e4, 1e4, -1e4]], np.float32)), [[0.5, 0.5, 0.0]])


def test_a_run_on_cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    load = data.load_digits

    def a_few() -> data.Dataset:  # the emulator takes long for all of them
        digits = load()
        return dataclasses.replace(digits, train=digits.train[::5], test=digits.test[::5])

    monkeypatch.setattr(data, "load_digits", a_few)
    with standin_cupy.installed(), backends.using("cupy"):
        train.start({"batch_size": 128}, tmp_path / "cupy").train(1, Quiet())
        run = train.resume({}, tmp_path / "cupy")
        run.train(2, Quiet())
        run.draw(run.test())
    plain = train.start({"batch_size": 128}, tmp_path / "numpy")
    plain.train(2, Quiet())
    one, other = timeless(tmp_path / "cupy"), timeless(tmp_path / "numpy")
    assert (one["backend"], one["versions"]["cupy"]) == ("cupy", "14.2.0+standin")
    assert one["epochs"][1]["train_loss"] == pytest.approx(other["epochs"][1]["train_loss"], rel=1e-3)


def test_a_step_on_every_array_kind(impl) -> None:
    """What an epoch does, on this kind's arrays from beginning to end, beside NumPy's."""
    digits = data.load_digits()

    def learn(dataset: data.Dataset, move) -> tuple[np.ndarray, float]:
        net = models.ThreeLayerConvNet((1, 8, 8), 10, 4, 3, 8, batch_norm=True, rng=0).map_arrays(move)
        optimizer = optim.Adam(net.params, 3e-3)
        for x, y in data.batches(dataset, dataset.train[:48], 16, np.random.default_rng(0)):
            b = backends.of(x, y)
            loss, ctx = F.softmax_cross_entropy_forward(net(x), y)
            net.backward(F.softmax_cross_entropy_backward(b.full((), 1.0, loss.dtype), ctx))
            optimizer.step(net.grads)
        return net.state_dict()["7.weight"], loss

    weight, loss = learn(digits, np.array)
    moved = dataclasses.replace(digits, x=impl.array(digits.x), y=impl.array(digits.y))
    found, again = learn(moved, lambda a: impl.writable(backends.to_numpy(a)))
    impl.close(found, weight, rtol=1e-4, atol=1e-6)
    impl.close(again, loss, rtol=1e-4)
