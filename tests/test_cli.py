"""The command line, as a user types it: what is printed where, the exit codes, what lies on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cnnlayers
from cnnlayers import backends, cli, info, predict, progress, train
from cnnlayers.kernels.cpu import jit

from . import standin_cupy
from .conftest import hear_control_c

ENVIRONMENT = os.environ | {"CNNLAYERS_BACKEND": "numpy", "PYTHONWARNINGS": "error::RuntimeWarning"}


def command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`python -m cnnlayers` with these words, in a process of its own."""
    line = [sys.executable, "-m", "cnnlayers", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120)


def refusal(capsys: pytest.CaptureFixture, *words: str | Path) -> str:
    """The one line on standard error with which a command line is refused."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder above a run of six epochs in the default place, and what the run printed."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    above = tmp_path_factory.mktemp("work")
    return above, command("train", "--epochs", "6", "--seed", "1", cwd=above)


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "arguments are required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("info now", "unrecognized arguments: now"),
        ("train --epochs 0", "--epochs: must be a whole number of at least 1, got '0'"),
        ("train --epochs many", "got 'many'"),
        ("train --epochs", "--epochs: expected one argument"),
        ("train --epoch 3", "unrecognized arguments: --epoch"),
        ("train --batch-size -4", "must be a whole number of at least 1, got '-4'"),
        ("train --lr 0", "must be a number above 0, got '0'"),
        ("train --lr nan", "got 'nan'"),
        ("train --lr inf", "got 'inf'"),
        ("train --seed 1.5", "must be a whole number of at least 0, got '1.5'"),
        ("train --model resnet9", "invalid choice: 'resnet9'"),
        ("train --optimizer adagrad", "invalid choice: 'adagrad'"),
        ("train --backend torch", "invalid choice: 'torch'"),
        ("train --distribute", "unrecognized arguments: --distribute"),
        ("train --data mnist", "there is no folder 'mnist'"),
        ("train --data .", "batches.meta is missing"),
        ("train --resume --out nowhere", "no run to resume in nowhere"),
        ("predict model", "arguments are required: IMAGE"),
        ("predict nowhere seven.png", "no file nowhere to load"),
        ("predict . seven.png", "model.safetensors to load"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    words: str, said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *words.split())


def test_a_backend_that_cannot_be_used(capsys: pytest.CaptureFixture) -> None:
    if backends.available()["cupy"] is None:
        pytest.skip("CuPy can be used here")
    assert re.search("backend 'cupy' cannot be used: .+", refusal(capsys, "train", "--backend", "cupy"))


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("CNNLAYERS_BACKEND", "must be one of auto, numpy, cupy; got 'nonsense'"),
        ("CNNLAYERS_NUM_THREADS", "must be a positive whole number, got 'nonsense'"),
        ("CNNLAYERS_KERNELS", "must be one of auto, off, require; got 'nonsense'"),
        ("CNNLAYERS_WINOGRAD", "must be one of auto, off; got 'nonsense'"),
    ],
)
def test_a_mistake_in_the_environment(tmp_path: Path, variable: str, said: str) -> None:
    ran = command("train", cwd=tmp_path, **{variable: "nonsense"})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"cnnlayers train: {variable} {said}\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "out").touch()
    assert "out is a file: a run needs a folder" in refusal(capsys, "train", "--out", tmp_path / "out")


def test_without_scikit_learn(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install 'cnnlayers[train]'" in refusal(capsys, "train", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------- info, version
def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"cnnlayers {cnnlayers.__version__}\n"


def test_info() -> None:
    said = command("info")
    assert (said.returncode, said.stderr) == (0, "")
    for word in (
        "cnnlayers",
        "python",
        "backends",
        "numpy",
        "cupy",
        "devices",
        "threads",
        "blas",
        "kernels",
        "mode auto",
        "extras",
        "" if jit.unavailable() else "compiled code is stored in ",
    ):
        assert word in said.stdout


def test_info_says_what_is_wrong_and_goes_on() -> None:
    wrong = {"NUM_THREADS": "few", "KERNELS": "maybe", "WINOGRAD": "perhaps"}
    said = command("info", CNNLAYERS_BACKEND="torch", **{f"CNNLAYERS_{name}": value for name, value in wrong.items()})
    assert (said.returncode, said.stderr) == (0, "")
    assert "CNNLAYERS_BACKEND must be one of auto, numpy, cupy; got 'torch'" in said.stdout
    assert "CNNLAYERS_NUM_THREADS must be a positive whole number, got 'few'" in said.stdout
    assert "CNNLAYERS_KERNELS must be one of auto, off, require; got 'maybe'" in said.stdout
    assert "CNNLAYERS_WINOGRAD must be one of auto, off; got 'perhaps'" in said.stdout
    assert "extras" in said.stdout


def test_info_with_a_gpu(capsys: pytest.CaptureFixture) -> None:
    with standin_cupy.installed() as cupy:
        cupy.cuda.runtime.getDeviceProperties = lambda number: {
            "name": b"Some GPU", "totalGlobalMem": 8 << 30, "major": 9, "minor": 0
        }  # fmt: skip
        assert cli.main(["info"]) == 0
        assert "gpu 0: Some GPU, 8 GiB, compute capability 9.0" in capsys.readouterr().out
        del cupy.cuda.runtime.getDeviceProperties
        assert cli.main(["info"]) == 0
        assert "gpu: it does not say what it is" in capsys.readouterr().out


def test_info_imports_nothing_heavy() -> None:
    code = "import sys; from cnnlayers import cli; cli.main(['info']); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    loaded = set(said.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint({"sklearn", "matplotlib", "numba", "cupy", "torch", "rich", "scipy"})


def test_info_says_what_a_missing_numba_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('made for another NumPy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = "\n".join(info.lines())
    assert "numpy   none, Numba cannot be imported (made for another NumPy): pip install" in said
    assert "Array code serves until then" in said
    assert "about four times as long" in said
    assert "compiled code" not in said


@pytest.mark.skipif(bool(jit.unavailable()), reason=str(jit.unavailable()))
def test_info_says_why_compiled_code_is_not_stored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = command("info", CNNLAYERS_CACHE_DIR=str(tmp_path / "file"))
    assert re.search(r"compiled code is not stored: .*file: .*; CNNLAYERS_CACHE_DIR can name another", said.stdout)


# --------------------------------------------------------------------------------------------------------------- train
def test_a_run(trained: tuple[Path, subprocess.CompletedProcess]) -> None:
    above, said = trained
    assert (said.returncode, said.stderr) == (0, "")
    *epochs, saved, last = said.stdout.splitlines()
    assert len(epochs) == 6
    assert re.fullmatch(
        r"epoch 1/6  loss \d\.\d{4}  accuracy +[\d.]+%  validation +[\d.]+%  [\d,]+ images/s", epochs[0]
    )
    out = Path("runs/digits-three-layer")
    assert saved == f"saved in {out}"
    assert sorted(p.name for p in (above / out).iterdir()) == [train.CURVES, train.HISTORY, train.LAST, train.MODEL]
    accuracy = json.loads((above / out / train.HISTORY).read_text())["test"]["accuracy"]
    assert accuracy > 0.93
    assert last == f"test accuracy {100 * accuracy:.1f} %"


def test_resuming(trained: tuple[Path, subprocess.CompletedProcess], capsys: pytest.CaptureFixture) -> None:
    above, first = trained
    out = above / "runs" / "digits-three-layer"
    assert cli.main(["train", "--resume", "--epochs", "6", "--lr", "0.003", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert "has done 6 epochs already, more than --epochs 5" in refusal(
        capsys, "train", "--resume", "--epochs", "5", "--out", out
    )
    assert "seed 2 (it was 1)" in refusal(capsys, "train", "--resume", "--seed", "2", "--out", out)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    words = ["train", "--epochs", "400", "--seed", "3", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnlayers", *words],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_control_c,
    )  # fmt: skip
    assert process.stdout is not None
    assert "epoch   1/400" in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(json.loads((tmp_path / "out" / train.HISTORY).read_text())["epochs"])
    assert done >= 1
    assert error == f"interrupted: epoch {done} is in out, --resume continues\n"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "--epochs", str(done + 1), "--out", "out"]) == 0
    assert capsys.readouterr().out.startswith(f"epoch {done + 1}/{done + 1}  ")


def test_a_loss_that_is_no_number(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with np.errstate(all="ignore"):
        assert cli.main(["train", "--optimizer", "sgd", "--lr", "1e30", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"cnnlayers train: the loss became .*try a lower --lr than 1e\+30\n", said)


def test_without_matplotlib_the_run_is_kept(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["train", "--epochs", "1", "--out", str(tmp_path), "--batch-size", "256"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("test accuracy ")
    assert "no curves.png" in said.err
    assert "pip install 'cnnlayers[train]'" in said.err
    assert not (tmp_path / train.CURVES).exists()


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
    record = {
        "epoch": 1,
        "train_loss": 0.25,
        "train_accuracy": 0.9,
        "validation_accuracy": 0.95,
        "images_per_second": 1234,
    }
    with progress.shown(3, stream) as report:
        report.begin(1, 64)
        report.advance(32, 0.5, 0.75, 4321.0)
        report.progress.refresh()
        report.end(record)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.text)
    assert "epoch 1/3" in plain
    assert "loss 0.5000  accuracy 75.0%  4,321 images/s" in plain
    assert "epoch 1/3  loss 0.2500  accuracy  90.0%  validation  95.0%  1,234 images/s" in plain


# ------------------------------------------------------------------------------------------------------------- predict
SEVEN = [(6, 6), (34, 6), (18, 42)]  # a stroke through these points, (across, down), of 40 × 48


def draw(path: Path, ground: object, ink: object, scale: int = 6, mode: str = "L", margin: int = 0) -> Path:
    """A picture file with a seven."""
    image = pytest.importorskip("PIL.Image")
    from PIL import ImageDraw

    picture = image.new(mode, (40 * scale + 2 * margin, 48 * scale + margin), ground)
    points = [(margin + x * scale, y * scale) for x, y in SEVEN]
    ImageDraw.Draw(picture).line(points, fill=ink, width=6 * scale, joint="curve")
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pencil.png", {"ground": 230, "ink": 60}),
        ("board.png", {"ground": 10, "ink": 250}),
        ("small.png", {"ground": 255, "ink": 0, "scale": 1}),
        ("wide.jpg", {"ground": 255, "ink": 0, "margin": 300}),
        ("colour.png", {"ground": (250, 240, 200), "ink": (20, 20, 120), "mode": "RGB"}),
        ("clear.png", {"ground": (0, 0, 0, 0), "ink": (0, 0, 0, 255), "mode": "RGBA"}),
        ("deep.png", {"ground": 60000, "ink": 1000, "mode": "I;16"}),
    ],
)
def test_a_drawn_seven(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, name: str, options: dict
) -> None:
    model = predict.load(trained[0] / "runs" / "digits-three-layer")
    ((best, probability), *rest) = predict.predict(model, [draw(tmp_path / name, **options)])[0]
    assert best == "7"
    assert sum((p for _, p in rest), probability) == pytest.approx(1)
    assert [p for _, p in rest] == sorted((p for _, p in rest), reverse=True)


def test_predict_prints_a_line_a_picture(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pictures = [draw(tmp_path / "seven.png", 255, 0), draw(tmp_path / "other.png", 0, 255)]
    for model in ("runs/digits-three-layer", "runs/digits-three-layer/model.safetensors"):
        assert cli.main(["predict", *map(str, (trained[0] / model, *pictures))]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [[str(path), "7"] for path in pictures]
        assert all(re.fullmatch(r"\S+\.png( +\d +[\d.]+%){3}", line) for line in lines)


def test_pictures_that_cannot_be_read(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained[0] / "runs" / "digits-three-layer"
    whole = draw(tmp_path / "seven.png", 255, 0)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    assert "there is no picture nowhere.png" in refusal(capsys, "predict", run, whole, "nowhere.png")
    for name in ("half.png", "text.png"):
        assert f"{name} is no picture that can be read" in refusal(capsys, "predict", run, whole, tmp_path / name)
    assert "there is no picture" in refusal(capsys, "predict", run, tmp_path)


def test_models_that_cannot_be_read(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained[0] / "runs" / "digits-three-layer"
    seven = draw(tmp_path / "seven.png", 255, 0)
    assert "is no model that `cnnlayers train` wrote" in refusal(capsys, "predict", run / train.LAST, seven)
    assert "is no whole safetensors file" in refusal(capsys, "predict", run / train.HISTORY, seven)


def test_a_test_digit_survives_the_way_through_a_picture(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path
) -> None:
    from sklearn.datasets import load_digits

    image = pytest.importorskip("PIL.Image")
    model = predict.load(trained[0] / "runs" / "digits-three-layer")
    digits = load_digits()
    paths = []
    for i in range(0, 300, 3):
        cells = np.kron(np.rint(digits.images[i] * 255 / 16), np.ones((12, 12))).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        image.fromarray(255 - cells if i % 2 else cells).save(paths[-1])
    right = [
        answer[0][0] == str(digits.target[i])
        for answer, i in zip(predict.predict(model, paths), range(0, 300, 3), strict=True)
    ]
    assert np.mean(right) >= 0.93


def test_resizing_takes_the_mean_of_areas() -> None:
    picture = np.arange(12.0).reshape(3, 4, 1)
    np.testing.assert_allclose(predict.resize(picture, 3, 2)[:, :, 0], [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]])
    np.testing.assert_allclose(predict.resize(picture, 2, 1)[:, :, 0], [[(1.5 * 2 + 5.5) / 3], [(5.5 + 9.5 * 2) / 3]])
    np.testing.assert_allclose(predict.resize(np.ones((5, 7, 3)), 8, 8), np.ones((8, 8, 3)))


def test_strokes_are_framed() -> None:
    paper = np.full((30, 50, 1), 0.9)
    paper[5:25, 10:15] = 0.2  # an upright stroke, 20 × 5
    for picture in (paper, 1 - paper):
        framed = predict.frame_strokes(picture, 8, 8, 0.25)[:, :, 0]
        np.testing.assert_allclose(framed, np.tile([0, 0, 0, 1, 1, 0, 0, 0], (8, 1)), atol=0.21)
        assert framed[:, :2].max() == 0
    faint = np.full((80, 80, 1), 0.9)
    faint[5:75, 40:43] = 0.3  # too thin to give a full cell
    assert predict.frame_strokes(faint, 8, 8, 0.1).mean() == pytest.approx(0.1, rel=0.01)
    assert not predict.frame_strokes(np.full((9, 9, 1), 0.7), 8, 8, 0.3).any()
