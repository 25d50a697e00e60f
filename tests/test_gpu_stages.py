"""The stages for a machine with a GPU: what runs there runs here, with made-up tests and on the stand-in for CuPy."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from cnnlayers import kernels
from cnnlayers.bench import cases, measure
from cnnlayers.bench.clock import Timing

from . import gpu_bench, gpu_stages, simt

MADE_UP = """
import os, time, pytest

@pytest.mark.parametrize("n", range(6))
def test_good(n): pass

def test_bad(): assert False, "as it should"

def test_endless(): time.sleep(600)

def test_crash(): os._exit(3)

@pytest.mark.skip(reason="no")
def test_skipped(): pass

@pytest.fixture
def broken(): raise OSError("no")

def test_broken_setup(broken): pass
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    path = tmp_path / "test_made_up.py"
    path.write_text(MADE_UP)
    return path


@pytest.mark.parametrize("processes", [1, 3])
def test_every_test_runs_once_and_what_hangs_or_crashes_hinders_no_other(made_up: Path, processes: int) -> None:
    found = gpu_stages.run_tests(
        [str(made_up)], made_up.parent, name="some", seconds=120, test_seconds=3, processes=processes
    )
    assert (found.passed, found.skipped, found.unfinished) == (6, 1, False)
    assert sorted(test.rpartition("::")[2] for test in found.faults) == [
        "test_bad",
        "test_broken_setup",
        "test_crash",
        "test_endless",
    ]
    assert not found.good
    logs = "".join(path.read_text() for path in made_up.parent.glob("some-*.log"))
    assert "Timeout (0:00:03)!" in logs  # with the place where it hung
    assert "in test_endless" in logs


def test_tests_end_when_time_is_up(made_up: Path) -> None:
    started = time.monotonic()
    found = gpu_stages.run_tests(
        [str(made_up), "-k", "endless"], made_up.parent, name="some", seconds=6, test_seconds=600, processes=1
    )
    assert time.monotonic() - started < 60
    assert found.unfinished
    assert not found.good
    assert str(found) == "0 passed, 0 skipped, 0 failed, not all were run"


def test_tests_that_cannot_be_collected_are_no_success(tmp_path: Path) -> None:
    path = tmp_path / "test_wrong.py"
    path.write_text("import no_such_module_anywhere\n")
    found = gpu_stages.run_tests([str(path)], tmp_path, name="some", seconds=60, processes=1)
    assert not found.good


def test_steps_go_on_after_one_that_fails_and_the_summary_is_kept(tmp_path: Path) -> None:
    def python(name: str, code: str, seconds: float = 60) -> gpu_stages.Step:
        return gpu_stages.command(name, [sys.executable, "-c", code], seconds)

    def breaks(out: Path) -> tuple[bool, str]:
        raise OSError("no disk")

    steps = [
        python("good", "print('well')"),
        python("bad", "raise SystemExit(2)"),
        python("slow", "import time; time.sleep(600)", 1),
        gpu_stages.Step("breaks", breaks),
        python("last", "print('still here')"),
    ]
    done = gpu_stages.run(steps, tmp_path / "out")
    assert [d.good for d in done] == [True, False, False, False, True]
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [d["said"] for d in kept] == ["well", "", "\nended after 1 s", "OSError: no disk", "still here"]
    assert (tmp_path / "out" / "slow.log").read_text().endswith("ended after 1 s\n")


def test_the_report_goes_from_what_tells_most_to_what_takes_longest(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_stages.shutil, "which", lambda name: f"/somewhere/{name}")
    names = [step.name for step in gpu_stages.report("gpu", tmp_path, 2.5)]
    assert names == [
        *("device", "smoke", "same-bits", "bench-main", "tests"),
        *("sanitize-memcheck", "sanitize-racecheck"),
    ]
    monkeypatch.setattr(gpu_stages.shutil, "which", lambda name: None)
    [missing] = gpu_stages.sanitize("gpu")
    assert missing.work(tmp_path) == (False, "compute-sanitizer is not installed: nothing was checked")


@pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))
def test_the_smoke_stage_and_the_sanitizers_tests_find_their_tests(tmp_path: Path) -> None:
    """On the stand-in: CuPy's contract alone, whose kernels are few."""
    chosen = [*gpu_stages.chosen("standin", "(packed or launchers)"), "-m", "smoke"]
    found = gpu_stages.run_tests(chosen, tmp_path, name="smoke", seconds=300, processes=1)
    assert found.good, found
    assert found.passed == 2


def test_the_device_is_described(tmp_path: Path) -> None:
    assert gpu_bench.main(["--kind", "standin", "--device", "--out", str(tmp_path)]) == 0
    said = json.loads((tmp_path / "device.json").read_text())
    assert said["attributes"]["MultiProcessorCount"] == 4
    assert said["device"].startswith("Stand-in")


# ------------------------------------------------------------------------------------------------------------ benchmark
def test_a_reports_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Array code on a small shape."""
    monkeypatch.setattr(cases, "GPU_MAIN", cases.GPU_MAIN[:1])
    with kernels.mode("off"):
        assert gpu_bench.main(["--kind", "standin", "--quick", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"gpu.md", "gpu.json", "predicted.md"}
    assert (tmp_path / "predicted.md").read_text().count("max_pool 3×3 s2 p1 f16, 2×64×28²") == 3


def test_the_main_cases_hold_every_op_in_two_dtypes() -> None:
    assert {c.op for c in cases.GPU_MAIN} == {c.op for c in cases.GPU if c.op not in cases.NETWORKS}
    assert [c.dtype for c in cases.GPU_MAIN[:4]] == ["float16", "float32"] * 2
    assert cases.chosen("gpu", ["relu"], main=True) == [c for c in cases.GPU_MAIN if c.op == "relu"]


def test_predicted_shares_stand_beside_measured_ones(tmp_path: Path) -> None:
    case = next(c for c in cases.GPU_MAIN if c.op == "relu")
    row = measure.Row(case, "forward", least_bytes=4e6, bandwidth=4e12)
    row.times[measure.OURS] = Timing(2e-6, 2e-6, 2e-6, 5)
    path = tmp_path / "predicted.json"
    found = {"case": case.name, "part": "forward", "dtype": case.dtype, "bound": 0.95, "guess": 0.8}
    path.write_text(json.dumps({"rows": [found]}))
    table = gpu_bench.beside_predictions([row], gpu_bench.predictions(path))
    assert table[2:] == [f"| {case.name} | forward | float16 | 0.95 | 0.80 | 0.50 | 0.62 |"]
    without = gpu_bench.beside_predictions([row], gpu_bench.predictions(tmp_path / "none.json"))
    assert without[2:] == [f"| {case.name} | forward | float16 | – | – | 0.50 | – |"]
    assert gpu_bench.beside_predictions([measure.Row(case, "forward")], {})[2:] == []
