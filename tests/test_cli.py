"""The command line, as a user types it: what is printed where, the exit codes, what lies on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cnnlayers
from cnnlayers import backends, cli, functional, info, kernels, train
from cnnlayers.kernels.cpu import jit

from . import standin_cupy
from .command_line import ENVIRONMENT, RUN, command, refusal
from .conftest import hear_control_c

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


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
        ("train --data", "--data: expected one argument"),
        ("train --resume --overwrite", "--overwrite: not allowed with argument --resume"),
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
        ("CNNLAYERS_CUDNN", "must be one of auto, off; got 'nonsense'"),
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
        "" if jit.unavailable() else "cnnlayers.kernels.warmup",
    ):
        assert word in said.stdout


def test_info_lists_what_users_call_and_no_steps_inside() -> None:
    words = set(command("info").stdout.replace(",", " ").split())
    assert {"conv", "conv_transpose", "max_pool"} <= words  # of CUDA's kernels at least
    steps = {step.removesuffix("_forward").removesuffix("_backward") for step, _ in kernels.TABLE}
    assert words & steps <= set(functional.__all__)


def test_info_shows_every_extra_for_users() -> None:
    """Each with what pyproject.toml says that it brings; those of a clone's own tools are left out."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {
        extra: {re.match(r"[\w-]+", text)[0] for text in requirements if not text.startswith("mpich")}
        for extra, requirements in extras.items()
        if extra not in ("nvrtc", "test", "dev", "docs")
    }
    assert {extra: set(distributions) for extra, distributions in info.EXTRAS.items()} == wanted
    said = command("info").stdout
    for extra in wanted:
        assert re.search(rf"^(extras)? +{extra} ", said, re.MULTILINE), extra


def test_info_in_a_folder_that_has_another_cnnlayers(tmp_path: Path) -> None:
    """As `cnnlayers info` is typed in a clone after `pip install .`: the clone's folder is not the whole package."""
    (tmp_path / "elsewhere").mkdir()
    start = tmp_path / "elsewhere" / "start.py"
    start.write_text("from cnnlayers.cli import main\nmain(['info'])\n")
    (tmp_path / "cnnlayers").mkdir()
    (tmp_path / "cnnlayers" / "__init__.py").write_text("raise ImportError('the folder of a clone')\n")
    said = subprocess.run([sys.executable, start], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "kernels   mode" in said.stdout
    assert "the folder of a clone" not in said.stdout


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
    assert "about six times as long" in said
    assert max(map(len, said.splitlines()[6:])) <= 150  # the first rows name CuPy's packages
    assert "compiled code" not in said


@pytest.mark.skipif(bool(jit.unavailable()), reason=str(jit.unavailable()))
def test_info_asks_one_process_about_all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = subprocess.run
    monkeypatch.setattr(info.subprocess, "run", lambda *args, **options: asked.append(args) or run(*args, **options))
    assert "compiled code is stored" in "\n".join(info.lines())
    assert len(asked) == 1


def test_info_goes_on_where_a_kernels_import_ends_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "numpy   none, which could not be found out: its import ends Python" in "\n".join(info.lines())


@pytest.mark.skipif(bool(jit.unavailable()), reason=str(jit.unavailable()))
def test_info_says_why_compiled_code_is_not_stored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = command("info", CNNLAYERS_CACHE_DIR=str(tmp_path / "file"))
    assert re.search(r"compiled code is not stored: .*file: .*; CNNLAYERS_CACHE_DIR can name another", said.stdout)


# --------------------------------------------------------------------------------------------------------------- train
def test_a_run(trained: tuple[Path, subprocess.CompletedProcess]) -> None:
    above, said = trained
    assert (said.returncode, said.stderr) == (0, "")
    *header, saved, following, last = said.stdout.splitlines()
    header, epochs = header[:-6], header[-6:]
    text = " ".join(" ".join(header).split())
    assert re.match(
        r"data digits: 1,222 training, 216 validation, 359 test pictures of 8×8 pixels, 1 channel classes 10: 0,", text
    )
    assert "model three-layer, 134,282 parameters" in text
    assert "training adam, learning rate 0.003, batches of 64, seed 1, epochs 1 to 6" in text
    assert re.search(r"backend numpy on the CPU, \d+ threads$", text)
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert re.fullmatch(
        r"epoch 1/6  loss \d\.\d{4}  accuracy +[\d.]+%  validation +[\d.]+%  [\d,]+ images/s", epochs[0]
    )
    out = RUN
    assert saved == f"saved in {out}"
    assert following == f"next: cnnlayers predict {out} PICTURE"
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


def test_a_run_is_not_overwritten_unless_asked(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(trained[0] / RUN, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for words in ((), ("--epochs", "1"), ("--model", "resnet8", "--seed", "4")):
        said = refusal(capsys, "train", *words, "--out", out)
        assert re.search(
            r"copy holds a finished run \(6 epochs, test accuracy [\d.]+ %\): --overwrite replaces it", said
        )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert cli.main(["train", "--overwrite", "--epochs", "1", "--batch-size", "512", "--out", str(out)]) == 0
    assert len(json.loads((out / train.HISTORY).read_text())["epochs"]) == 1
    assert (out / train.MODEL).read_bytes() != before[train.MODEL]


@pytest.mark.parametrize(
    "variables", ["PMI_SIZE PMI_RANK", "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS SLURM_PROCID"]
)
def test_ranks_of_a_launcher_do_not_write_one_folder(
    variables: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    size, rank = variables.split()
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv(rank, "0")
    out = tmp_path / "out"
    said = refusal(capsys, "train", "--epochs", "1", "--out", out)
    assert "started 2 processes" in said
    assert "--distributed makes them train it together" in said
    assert size in said
    monkeypatch.setenv(rank, "1")
    assert cli.main(["train", "--epochs", "1", "--out", str(out)]) == 2
    assert capsys.readouterr().err == ""  # rank 0 has said it
    assert not out.exists()
    monkeypatch.setenv(size, "1")
    assert cli.main(["train", "--epochs", "1", "--batch-size", "512", "--out", str(out)]) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs head")
def test_whoever_stops_reading_ends_the_run_quietly(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    line = f"{sys.executable} -m cnnlayers train --epochs 400 --batch-size 512 --out out | head -n 8"
    ran = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.count("\n") == 8
    done = json.loads((tmp_path / "out" / train.HISTORY).read_text())
    assert 1 <= len(done["epochs"]) < 400
    assert done["test"] is None
    assert "--resume continues it" in command("train", "--out", "out", cwd=tmp_path).stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("words", ["--help", "info", "train --help"])
def test_a_reader_that_is_gone_at_once(words: str) -> None:
    line = f"{sys.executable} -m cnnlayers {words} | true"
    ran = subprocess.run(line, shell=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written() -> None:
    line = f"{sys.executable} -m cnnlayers info > /dev/full"
    ran = subprocess.run(line, shell=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert re.fullmatch(r"cnnlayers: .*No space left.*\n", ran.stderr)


def test_what_the_output_cannot_write_is_shown_by_its_numbers(
    trained: tuple[Path, subprocess.CompletedProcess],
) -> None:
    ran = command("train", "--epochs", "6", "--resume", cwd=trained[0], PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "8\\xd78 pixels" in " ".join(ran.stdout.split())


def test_make_help_shows_every_text_whole() -> None:
    make = shutil.which("make") or pytest.skip("make is not installed")
    said = subprocess.run([make, "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    texts = re.findall(r"^([a-z-]+):[^#\n]*## *(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(texts) > 8
    for target, text in texts:
        assert re.search(rf"^make {target} +{re.escape(text)}$", said, re.MULTILINE)


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
    for printed in process.stdout:
        if "epoch   1/400" in printed:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(json.loads((tmp_path / "out" / train.HISTORY).read_text())["epochs"])
    assert done >= 1
    assert error == f"interrupted: epoch {done} is in out, --resume continues\n"
    monkeypatch.chdir(tmp_path)
    assert f"out holds an unfinished run ({done} epoch" in refusal(capsys, "train", "--out", "out")
    assert cli.main(["train", "--resume", "--epochs", str(done + 1), "--out", "out"]) == 0
    assert f"\nepoch {done + 1}/{done + 1}  " in capsys.readouterr().out


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
