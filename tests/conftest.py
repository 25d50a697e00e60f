"""The matrix every op is tested over (tests/implementations.py), and what of it runs.

What a machine lacks shows as a counted skip with its reason. Every test runs unless options say otherwise:

--sample      runs some of a test's cases where implementations run many, n where it is marked `sample(n)`, and none
              that is marked `whole` (`make test`)
--not-passed  leaves out what has passed since the option was last absent (.ci/run)
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, kernels
from cnnlayers.backends import threads

from . import kernel_calls, simt, standin_cupy
from .implementations import ALL, WITH_KERNELS, Impl, running

# New arrays (weights, data) are NumPy's, also on a GPU machine: what runs on CuPy asks for it.
os.environ["CNNLAYERS_BACKEND"] = "numpy"

# Whole files that are about a package, which the bare Python of a GPU machine may lack.
NEEDS = {
    "test_backends.py": "array_api_strict",
    "test_blas.py": "threadpoolctl",
    "test_checkpoint.py": "safetensors",
    "test_distributed.py": "safetensors",
    "test_resnet.py": "safetensors",
    "test_cli.py": "safetensors",
    "test_predict.py": "safetensors",
    "test_run_folder.py": "safetensors",
    "test_threads.py": "threadpoolctl",
    "test_train.py": "safetensors",
}
LACKING = {file: needed for file, needed in NEEDS.items() if importlib.util.find_spec(needed) is None}
collect_ignore = list(LACKING)


# Whole files whose tests look at what is installed: that they have passed before says nothing once a package was added.
LOOKING = {"test_bench.py", "test_bench_run.py", "test_cli.py", "test_imports.py"}
# How many cases of one test --sample runs on an implementation: few where kernels have to be compiled first.
SAMPLE = {"cpu": 10, "standin": 3, "readonly": 12, "strict": 12}
PASSED = "cnnlayers/passed"  # in pytest's cache: the tests that have passed


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cnnlayers")
    group.addoption("--sample", action="store_true", help="leave out most cases of large grids")
    group.addoption("--not-passed", action="store_true", help="leave out the tests that have passed already")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sample(n): --sample runs n of its cases on each implementation but numpy")
    config.addinivalue_line("markers", "whole: a case that --sample leaves out")
    config.addinivalue_line("markers", "smoke: on a GPU, what is asked first (make gpu-smoke)")
    config.addinivalue_line("markers", "sanitize: few calls, for compute-sanitizer (make gpu-sanitize)")


def _beyond_the_sample(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """What --sample leaves out. Those cases of a test stay whose names have the smallest checksums: the choice does not
    depend on other tests, and follows no period of a grid."""
    sample = SAMPLE | ({"gpu": 1} if backends.available()["cupy"] else {})  # one is enough to say that there is no GPU
    cases: dict[tuple[str, str, int], list[pytest.Item]] = {}
    for item in items:
        mark, params = item.get_closest_marker("sample"), item.callspec.params if hasattr(item, "callspec") else {}
        implementation = str(next((params[name] for name in ("impl", "kernel", "cupy") if name in params), ""))
        number = mark.args[0] if mark else sample.get(implementation)
        if item.get_closest_marker("whole"):
            yield item
        elif number and implementation in ("", *sample):
            cases.setdefault((item.nodeid.partition("[")[0], implementation, number), []).append(item)
    for (*_, number), same in cases.items():
        yield from sorted(same, key=lambda item: zlib.crc32(item.nodeid.encode()))[number:]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {item.nodeid for item in _beyond_the_sample(items)} if config.getoption("sample") else set()
    if config.getoption("not_passed"):
        passed = set(config.cache.get(PASSED, []))
        left_out |= {item.nodeid for item in items if item.nodeid in passed and item.path.name not in LOOKING}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [f"not collected: {file}, because {needed} is not installed" for file, needed in LACKING.items()]
    if config.getoption("sample"):
        most = ", ".join(f"{number} on {implementation}" for implementation, number in SAMPLE.items())
        lines.append(f"a sample: of each test at most {most} (make test-all runs every case)")
    return lines


@pytest.fixture(params=ALL)
def impl(request: pytest.FixtureRequest) -> Iterator[Impl]:
    with running(request.param) as implementation:
        yield implementation


@pytest.fixture(params=WITH_KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Impl]:
    """Each implementation that has kernels; an op that has one there must use it."""
    if request.param == "standin" and simt.unavailable():
        pytest.skip(str(simt.unavailable()))
    with running(request.param) as implementation, kernels.mode("require"):
        yield implementation


def end_helpers(pool: Any) -> None:
    """End the threads of a pool."""
    for _ in pool.threads:
        pool.runs.put(None)
    pool.call_back()
    for thread in pool.threads:
        thread.join()


@pytest.fixture(autouse=True)
def own_plans() -> None:
    """A test that changes a kernel's constants meets no plan that was made with others."""
    backends.PLANS.clear()


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four threads on any machine, in a pool of the test's own."""
    monkeypatch.setattr(threads, "num_threads", lambda: 4)
    monkeypatch.setattr(threads._state, "pool", threads._Pool())
    yield
    end_helpers(threads._state.pool)


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The stand-in for CuPy, whose kernels run on the emulator; an op that has a kernel must use it."""
    with standin_cupy.installed() as module, kernels.mode("require"):
        yield module


@pytest.fixture
def emulator(cupy: Any) -> Impl:
    """The stand-in as an implementation."""
    return Impl("standin", cupy)


@pytest.fixture
def wide_offsets() -> Iterator[None]:
    """64-bit offsets in CUDA kernels, as if arrays had over 2**31 elements."""
    with kernel_calls.far():
        yield


@pytest.fixture
def two_blocks() -> Iterator[None]:
    """CUDA kernels are launched with two blocks, whose threads take many elements each."""
    with kernel_calls.in_launchers("grid_size", lambda *args: 2):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder above a run of six epochs in the default place, and what the run printed."""
    pytest.importorskip("safetensors")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from .command_line import command

    above = tmp_path_factory.mktemp("work")
    return above, command("train", "--epochs", "6", "--seed", "1", cwd=above)


def hear_control_c() -> None:
    """For a child process, as its preexec_fn: what a shell begins in the background ignores SIGINT, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was skipped by reason and number: thousands of lines of it would hide the rest. Note what has passed."""
    cache = getattr(config, "cache", None)  # none with -p no:cacheprovider
    if cache is not None:
        before = cache.get(PASSED, []) if config.getoption("not_passed") else []
        passed = (report.nodeid for report in terminalreporter.stats.get("passed", []) if report.when == "call")
        cache.set(PASSED, sorted({*before, *passed}))
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, number in reasons.most_common():
        terminalreporter.line(f"{number} skipped: {reason.removeprefix('Skipped: ')}")
