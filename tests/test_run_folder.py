"""A run's folder: an earlier run in it is not lost, and one process at a time trains there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnlayers import backends, checkpoint, progress, run_folder, train

pytest.importorskip("sklearn")


class Stopping(progress.Lines):
    """Shows nothing; stops a run as Ctrl-C would after so many epochs."""

    def __init__(self, after: int = 1000) -> None:
        self.after = after

    def end(self, record: dict) -> None:
        if record["epoch"] == self.after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run = train.start({"batch_size": 512}, out)
    run.train(2, Stopping())
    run.test()
    (out / train.CURVES).write_text("curves")
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_finished_run_is_not_replaced(copy: Path) -> None:
    before = content(copy)
    with pytest.raises(
        FileExistsError, match=r"copy holds a finished run \(2 epochs, test accuracy .* %\): --overwrite"
    ):
        train.start({}, copy)
    assert content(copy) == before


def test_an_unfinished_run_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train.start({"batch_size": 512}, tmp_path).train(7, Stopping(1))
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"an unfinished run \(1 epoch\): --resume continues it, --overwrite"):
        train.start({}, tmp_path)
    assert content(tmp_path) == before
    run = train.resume({}, tmp_path)
    assert (len(run.records), run.planned) == (1, 7)  # so that --resume alone goes on to the same end


@pytest.mark.parametrize("kept", [[train.MODEL], [train.LAST], [train.HISTORY], [train.LAST, train.HISTORY]])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_left_of_a_run_is_not_replaced(copy: Path, kept: list[str], damaged: bool) -> None:
    for path in copy.iterdir():
        if path.name not in kept:
            path.unlink()
        elif damaged:
            path.write_bytes(path.read_bytes()[:40])
    before = content(copy)
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        train.start({}, copy)
    assert content(copy) == before


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / train.CURVES).write_text("mine")
    train.start({"batch_size": 512}, tmp_path).train(1, Stopping())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_keeps_the_old_run_until_the_new_one_has_an_epoch(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(copy)
    run = train.start({"seed": 3, "batch_size": 512}, copy, overwrite=True)
    monkeypatch.setattr(run, "_step", lambda *arrays: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.train(1, Stopping())
    assert content(copy) == before
    monkeypatch.undo()
    run.train(1, Stopping())
    assert sorted(content(copy)) == [train.HISTORY, train.LAST, train.MODEL]  # no curves of another run
    assert all(found != before[name] for name, found in content(copy).items())


def test_overwriting_never_mixes_two_runs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = checkpoint.replace_file

    def interrupted(path: Path, data: bytes) -> None:
        if Path(path).name == train.LAST:
            raise KeyboardInterrupt
        replace(path, data)

    run = train.start({"seed": 3, "batch_size": 512}, copy, overwrite=True)
    monkeypatch.setattr(checkpoint, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train(1, Stopping())
    assert sorted(content(copy)) == [train.MODEL]  # not the new model beside the old run's state


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the folder .*file/deeper cannot be written"):
        run_folder.make(tmp_path / "file" / "deeper")

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied", "a name of its own")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"the folder .*new cannot be written \(Permission denied\).*--out"):
        train.start({}, tmp_path / "new")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with run_folder.locked(tmp_path):
        with pytest.raises(BlockingIOError, match="another process is training in"), run_folder.locked(tmp_path):
            pass
        line = [sys.executable, "-m", "cnnlayers", "train", "--epochs", "1", "--out", str(tmp_path)]
        ran = subprocess.run(line, env=os.environ, capture_output=True, text=True, timeout=120)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "another process is training in" in ran.stderr
        assert not list(tmp_path.iterdir())
    with run_folder.locked(tmp_path):  # the lock ends with its block
        pass
