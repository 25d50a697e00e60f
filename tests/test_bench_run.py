"""`cnnlayers bench` as a user types it: refusals, what is printed and written, Ctrl-C, and a GPU's way through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from cnnlayers import backends, cli, kernels
from cnnlayers import functional as F
from cnnlayers.bench import cases, clock, keras_networks, machine, peers, plots, report, run
from cnnlayers.bench.contest import Contestant
from cnnlayers.bench.measure import OURS
from cnnlayers.bench.problem import Problem

from . import standin_cupy
from .conftest import hear_control_c

QUICK = ["bench", "--device", "cpu", "--quick"]


@pytest.fixture(autouse=True)
def on_numpy() -> Iterator[None]:
    """The command selects a backend for the process: put it back."""
    yield
    backends.use("numpy")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlayers.bench.clock.HostClock.settle", 0.0)


def bench(*words: str | Path) -> int:
    try:
        return cli.main([*QUICK, *map(str, words)])
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ops", "pool"], "there is no case named 'pool'; there are max_pool, avg_pool"),
        (["--ops"], "--ops: expected at least one argument"),
        (["--peers", "tensorflow"], "there is no peer 'tensorflow'; there are none, pytorch"),
        (["--peers", "cupy"], "peer 'cupy' cannot be used: it runs on the gpu alone"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--minutes", "0"], "must be a number above 0, got '0'"),
        (["--out", "file"], "file is a file: results need a folder"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert bench(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_absent_peer_asked_for(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "absence", lambda name, device: "jax is not installed: pip install jax")
    assert bench("--peers", "jax", "--out", tmp_path) == 2
    assert "peer 'jax' cannot be used: jax is not installed: pip install jax" in capsys.readouterr().err


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    if backends.available()["cupy"] is None:
        pytest.skip("CuPy can be used here")
    assert cli.main(["bench", "--device", "gpu"]) == 2
    assert "backend 'cupy' cannot be used" in capsys.readouterr().err


def test_a_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert bench("--ops", "pad,relu", "--peers", "numpy", "--out", tmp_path / "new" / "folder") == 0
    printed = capsys.readouterr()
    assert printed.err == "" or "no pictures" in printed.err
    out = printed.out.splitlines()
    assert any(line.startswith("numpy: our array code without kernels") for line in out)
    rows = [line for line in out if line.startswith(("pad ", "relu"))]
    assert rows[0].split()[:4] == ["pad", "reflect", "1,", "2×64×28²"]
    assert all(line.endswith(" ok") for line in rows)
    assert all(len(line) <= 100 for line in rows)
    assert any(line.startswith("numpy: ") and "times its speed, over" in line for line in out)
    record = json.loads((tmp_path / "new" / "folder" / "cpu.json").read_text())
    assert len(record["rows"]) == len(rows)
    assert record["complete"] is True
    assert record["threads"] == backends.num_threads()
    assert record["versions"]["numpy"] == np.__version__
    assert record["copy_bytes_a_second"] > 0
    first = record["rows"][0]
    assert set(first["times"]) == {OURS, "numpy"}
    assert 0 < first["times"][OURS]["p20"] <= first["times"][OURS]["median"] <= first["times"][OURS]["p80"]
    text = (tmp_path / "new" / "folder" / "cpu.md").read_text()
    assert sum(line.startswith(("| pad", "| relu")) for line in text.splitlines()) == len(rows)
    assert not list(tmp_path.glob("**/.*"))


def test_alone(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert bench("--ops", "relu", "--peers", "none", "--out", tmp_path) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("relu") and "forward" in line)
    assert line.split()[-1] == "same"
    assert (tmp_path / "cpu.json").exists()


def test_without_keras_its_networks_are_left_out_and_the_reason_is_said(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_networks, "absence", lambda: "Keras is not installed: pip install it")
    found, absent = keras_networks.usable(cases.chosen("cpu"), asked=False)
    assert len(found) == len(cases.CPU) - 3
    assert absent == {"Keras's networks": "Keras is not installed: pip install it"}
    planned = run.plan("cpu", out=tmp_path, asked=["none"])
    assert not {case.op for case in planned.cases} & set(cases.KERAS)
    assert planned.absent == absent
    assert bench("--ops", "keras_resnet50", "--out", tmp_path) == 2
    assert "keras_vgg16 cannot be measured: Keras is not installed" in capsys.readouterr().err


def test_a_step_of_the_network_agrees_with_pytorchs(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert bench("--ops", *cases.NETWORKS, "--peers", "pytorch", "--out", tmp_path) == 0
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert len(rows) == len(cases.STEPS)
    assert all(row["errors"]["pytorch"] <= row["tolerance"] and row["same_bits"] for row in rows)
    assert max(row["tolerance"] for row in rows if row["op"] != "resnet8_step") < 1e-4


def test_a_wrong_result_is_code_1(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaky(Contestant):
        name = "numpy"

        def call(self, problem: Problem, part: str) -> Any:
            x = problem.inputs[0]
            return lambda i: [np.where(x > 0, x, np.float32(0.01) * x)]

    monkeypatch.setitem(peers.PEERS, "numpy", replace(peers.PEERS["numpy"], make=Leaky))
    assert bench("--ops", "relu", "--peers", "numpy", "--out", tmp_path) == 1
    printed = capsys.readouterr()
    assert "WRONG" in printed.out
    assert "our result is not numpy's" in printed.err
    assert "our result is not" in (tmp_path / "cpu.md").read_text()


def test_a_case_that_breaks_does_not_end_the_run(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(F, "pad_forward", broken)
    assert bench("--ops", "pad", "relu", "--peers", "none", "--out", tmp_path) == 1
    printed = capsys.readouterr()
    assert "pad reflect 1, 2×64×28², float32: RuntimeError: no memory" in printed.err
    assert "relu, 2×64×28²" in printed.out


def test_time_that_is_up(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert bench("--ops", "relu", "pad", "--peers", "none", "--out", tmp_path, "--minutes", "1e-9") == 0
    assert "time was up: " in capsys.readouterr().out
    assert json.loads((tmp_path / "cpu.json").read_text()) | {"rows": [], "complete": False} == json.loads(
        (tmp_path / "cpu.json").read_text()
    )


def test_without_matplotlib(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench("--ops", "relu", "--peers", "none", "--out", tmp_path) == 0
    assert "pip install 'cnnlayers[train]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.md"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_keeps_what_is_measured(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cnnlayers", *QUICK, "--ops", "pad", "batch_norm", "--peers", "numpy"]
    process = subprocess.Popen(
        [*words, "--out", "out"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"CNNLAYERS_BACKEND": "numpy", "CNNLAYERS_KERNELS": "off"}, preexec_fn=hear_control_c,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("pad reflect"):
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    record = json.loads((tmp_path / "out" / "cpu.json").read_text())
    assert error.splitlines()[-1] == f"interrupted: the {len(record['rows'])} rows measured so far are in out"
    assert record["complete"] is False
    assert record["rows"]


def test_the_way_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but speed, streams and graphs: on the stand-in, with its array code."""
    monkeypatch.setitem(run.REPEATS, "gpu", 2)
    monkeypatch.setattr(clock, "MOST", 1)
    monkeypatch.setattr(clock.EventClock, "flush", lambda self: None)
    lines: list[str] = []
    with standin_cupy.installed(), kernels.mode("off"):
        planned = run.plan("gpu", ["max_pool", "layer_norm"], ["cupy"], tmp_path, quick=True)
        planned.cases = [case for case in planned.cases if case.dtype != "bfloat16" and case.group == "main"]
        outcome = run.run(planned, lines.append, lambda done, of, name: None)
        written = run.keep(planned, outcome)
    assert outcome.troubles == []
    assert {row.case.dtype for row in outcome.rows} == {"float32", "float16"}
    assert {row.part for row in outcome.rows} == {"inference", "forward", "backward"}
    assert all(row.repeated == 2 and row.same_bits for row in outcome.rows)
    assert all(row.times[OURS].host is not None for row in outcome.rows)
    assert any(line.startswith("Stand-in, compute capability 9.0, driver ") for line in lines)
    assert {path.name for path in written} >= {"gpu.md", "gpu.json"}


def test_where_results_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.results() == machine.ROOT / "bench" / "results" or not machine.checkout()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.results() == Path("runs") / "bench"
    assert machine.commit() is None


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with run.shown(3) as (say, step):
        step(1, 3, "pad reflect")
        say("[1/3] " + "wide " * 40)
    out = capsys.readouterr().out
    assert "[1/3] " + "wide " * 39 in out
    assert "1/3" in out


def test_what_a_run_is_told_with() -> None:
    facts = machine.facts(backends.use("numpy"), ["cnnlayers", "bench"])
    assert facts["command"] == "cnnlayers bench"
    assert facts["device"] == facts["processor"] != ""
    assert {"date", "commit", "cores", "threads", "system", "kernels", "environment"} <= set(facts)
    assert json.loads(report.as_json([], facts, [], True))["versions"]["cnnlayers"]


def test_pictures_are_written_beside_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "pictures", lambda rows, facts: {"": b"all", "-ratios": b"one"})
    assert bench("--ops", "relu", "--peers", "none", "--out", tmp_path) == 0
    assert (tmp_path / "cpu.png").read_bytes() == b"all"
    assert (tmp_path / "cpu-ratios.png").read_bytes() == b"one"
