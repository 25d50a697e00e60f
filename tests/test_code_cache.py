"""Compiled CPU kernels on disk: what a second process finds there, and what is never used again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnlayers
from cnnlayers.kernels.cpu import cache_directory, jit

pytestmark = pytest.mark.skipif(jit.unavailable() is not None, reason=str(jit.unavailable()))

ROOT = Path(__file__).parents[1]
# Prints what `result` is, and the names of the kernels that had to be compiled, without the kernels that these call.
REPORT = """
import json, sys
import numpy as np
from numba.core import event
compiled, running = [], []
class Listener(event.Listener):
    def on_start(self, e):
        function = e.data["dispatcher"].py_func
        if not running and function.__module__.startswith("cnnlayers"):
            compiled.append(function.__name__)
        running.append(function)
    def on_end(self, e):
        running.pop()
event.register("numba:compile", Listener())
{code}
print(json.dumps([result, compiled]))
"""
RELU = """
import cnnlayers.functional as F
result = F.relu(np.array([-1, 2], "float32")).tolist()
"""
RIGHT = [0.0, 2.0]
COMPILED = ["loop"]
X86 = platform.machine() in ("x86_64", "AMD64")


def run(folder: Path, code: str = RELU, path: Path | None = None, **variables: str) -> tuple[Any, list[str]]:
    """The result of the code in a process of its own, and the kernels that it compiled; nothing else is printed."""
    env = os.environ | {"CNNLAYERS_CACHE_DIR": str(folder), "CNNLAYERS_KERNELS": "require"} | variables
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-W", "error", "-c", REPORT.format(code=code)]
    ran = subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    result, compiled = json.loads(ran.stdout)
    return result, compiled


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that one process has stored a kernel in."""
    folder = tmp_path_factory.mktemp("stored") / "cache"
    assert run(folder, PYTHONHASHSEED="1", NUMBA_NUM_THREADS="1") == (RIGHT, COMPILED)
    return folder


@pytest.fixture
def file(stored: Path, cache: Path) -> Path:
    """That kernel's file, in this test's `cache`."""
    shutil.copytree(stored, cache)
    [file] = cache.iterdir()
    return file


# ---------------------------------------------------------------------------------------------------- a second process
def test_a_second_process_compiles_nothing_and_no_file_is_beside_the_sources(file: Path, cache: Path) -> None:
    assert run(cache, PYTHONHASHSEED="2", CNNLAYERS_NUM_THREADS="1") == (RIGHT, [])
    assert [p.name for p in cache.iterdir()] == [file.name]
    assert file.name.startswith("elementwise.loop-")
    assert file.suffix == ".nbc"
    since = file.parents[1].stat().st_ctime - 60
    assert [p for p in (ROOT / "kernels").rglob("*.nb?") if p.stat().st_mtime > since] == []


def test_stored_code_runs_without_the_part_of_numba_that_only_compiles(file: Path, cache: Path) -> None:
    code = RELU + "result.append('numba.np.linalg' in sys.modules)"
    assert run(cache, code) == ([*RIGHT, False], [])


def test_stored_code_that_calls_a_function_that_is_not_known_yet_makes_numba_load_all(file: Path, cache: Path) -> None:
    code = (
        """
from cnnlayers.kernels.cpu import code_cache
code_cache.address_of_symbol = lambda name: None
"""
        + RELU
        + "result.append('numba.np.linalg' in sys.modules)"
    )
    assert run(cache, code) == ([*RIGHT, True], [])


def test_what_an_op_writes_changes_no_key_of_kernels_that_are_imported_after_it(cache: Path) -> None:
    code = RELU + "F.softmax(np.zeros((2, 3), 'float32'))"
    assert run(cache, code) == (RIGHT, [*COMPILED, "softmax"])
    assert run(cache, code) == (RIGHT, [])


@pytest.mark.skipif(not hasattr(os, "sched_yield"), reason="no sched_yield here")
def test_the_loops_that_wait_are_compiled_once(cache: Path) -> None:
    code = """
from cnnlayers.kernels.cpu import parallel, sharing
parallel._compiled_waits()
result = [len(loop.overloads) for loop in (sharing.serve, sharing.wait_until_done)]
"""
    assert run(cache, code) == ([1, 1], ["wait_until_done", "serve"])
    assert run(cache, code) == ([1, 1], [])
    assert len(list(cache.iterdir())) == 2


def test_processes_may_compile_at_once(cache: Path, file: Path) -> None:
    empty = cache.with_name("empty")
    with ThreadPoolExecutor(3) as pool:
        assert [result for result, _ in pool.map(lambda _: run(empty), range(3))] == [RIGHT] * 3
    assert [p.name for p in empty.iterdir()] == [file.name]


# --------------------------------------------------------------------------------------------------------- broken files
DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "without its checksum": lambda data: data[32:],
    "a changed byte": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "garbage": lambda data: b"garbage" * 1000,
    "longer": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_missing(file: Path, damage: str) -> None:
    from cnnlayers.kernels.cpu import code_cache

    whole = file.read_bytes()
    assert code_cache._read(file) == whole[32:]
    file.write_bytes(DAMAGES[damage](whole))
    assert code_cache._read(file) is None


def test_a_damaged_file_is_replaced(file: Path, cache: Path) -> None:
    file.write_bytes(DAMAGES["cut short"](file.read_bytes()))
    assert run(cache) == (RIGHT, COMPILED)
    assert [p.name for p in cache.iterdir()] == [file.name]
    assert run(cache) == (RIGHT, [])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_process_killed_while_it_writes_harms_no_other(cache: Path) -> None:
    code = (
        """
import os, signal
from cnnlayers.kernels.cpu import code_cache
def replace(*_):
    os.kill(os.getpid(), signal.SIGKILL)
code_cache.os.replace = replace
"""
        + RELU
    )
    env = os.environ | {"CNNLAYERS_CACHE_DIR": str(cache), "CNNLAYERS_KERNELS": "require"}
    killed = subprocess.run([sys.executable, "-c", REPORT.format(code=code)], env=env, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [p.suffix for p in cache.iterdir()] == [".tmp"]
    assert run(cache) == (RIGHT, COMPILED)
    assert {p.suffix for p in cache.iterdir()} == {".tmp", ".nbc"}


def test_a_directory_in_the_place_of_a_file_is_no_error(cache: Path, file: Path) -> None:
    file.unlink()
    file.mkdir()
    assert run(cache) == (RIGHT, COMPILED)


# ------------------------------------------------------------------------------------------------------------- the key
HELPER = """
from .jit import kernel
{imports}
FACTOR = {factor}
@kernel()
def scaled(x):
    return {scaled}
"""
USER = """
from . import toy_helper
from .jit import kernel
scaled = toy_helper.scaled
@kernel()
def use(x):
    return scaled(x) + 1
"""
USE = """
from cnnlayers.kernels.cpu import toy_user
result = toy_user.use(10.0)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the library, and in it a kernel that calls one of another file."""
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cnnlayers", folder / "cnnlayers", ignore=ignore)
    for name in ("backends", "kernels"):
        shutil.copytree(ROOT / name, folder / "cnnlayers" / name, ignore=ignore)
    (folder / "cnnlayers/kernels/cpu/toy_user.py").write_text(USER)
    return folder


def helper(package: Path, factor: Any = 2, scaled: str = "x * FACTOR", imports: str = "") -> None:
    text = HELPER.format(factor=factor, scaled=scaled, imports=imports)
    (package / "cnnlayers/kernels/cpu/toy_helper.py").write_text(text)
    # Python compares sizes and times of sources in seconds: a change within one would not be noticed.
    shutil.rmtree(package / "cnnlayers/kernels/cpu/__pycache__", ignore_errors=True)


def test_what_changes_in_another_file_is_compiled_anew(package: Path, cache: Path) -> None:
    helper(package)
    assert run(cache, USE, package) == (21.0, ["use"])
    helper(package, scaled="x * FACTOR * 2")
    assert run(cache, USE, package) == (41.0, ["use"])
    third = package / "cnnlayers/toy_constants.py"  # of a third file, and one that the environment decides
    third.write_text("import os\nMORE = 100 + int(os.environ['TOY'])\n")
    helper(package, imports="from cnnlayers.toy_constants import MORE", scaled="x * FACTOR + MORE")
    assert run(cache, USE, package, TOY="1") == (122.0, ["use"])
    assert run(cache, USE, package, TOY="2") == (123.0, ["use"])
    third.write_text("import os\nMORE = 2000 + int(os.environ['TOY'])\n")
    assert run(cache, USE, package, TOY="1") == (2022.0, ["use"])
    # The first version again, whose code is still there. What kernels do not import does not matter.
    helper(package)
    for name in ("functional/pad.py", "kernels/cpu/pad.py", "kernels/cpu/parallel.py", "backends/threads.py"):
        file = package / "cnnlayers" / name
        file.write_text(file.read_text() + "\n# changed\n")
    assert run(cache, USE, package) == (21.0, [])


def test_kernels_of_one_source_that_two_processes_have_compiled_are_not_mixed_up(package: Path, cache: Path) -> None:
    """Their machine code has symbols, which a process that loads both must not find twice."""
    lines = "\n".join(f"        if x > {i}: x = math.sin(x * factor)" for i in range(40))  # too long to be inlined
    (package / "cnnlayers/kernels/cpu/toy_user.py").write_text(f"""
import math
from .jit import kernel
def make(factor):
    @kernel()
    def inner(x):
{lines}
        return x * 0.001 + factor
    @kernel()
    def outer(x):
        return inner(x) + inner(x + 1.0)
    return outer
""")
    code = """
from cnnlayers.kernels.cpu import toy_user
result = [round(toy_user.make(factor)(0.5)) for factor in FACTORS]
"""
    for factor in (1.0, 2.0):
        both = run(cache, code.replace("FACTORS", f"[{factor}]"), package)
        assert both == ([2 * factor], ["outer"])  # inner is compiled in it
    assert run(cache, code.replace("FACTORS", "[1.0, 2.0]"), package) == ([2, 4], [])


def test_a_file_that_changes_while_a_process_runs_is_not_taken_for_its_code(package: Path, cache: Path) -> None:
    helper(package)
    change = f"""
import pathlib
from cnnlayers.kernels.cpu import toy_user
file = pathlib.Path({str(package)!r}) / "cnnlayers/kernels/cpu/toy_helper.py"
file.write_text(file.read_text().replace("FACTOR = 2", "FACTOR = 3"))
"""
    assert run(cache, change + USE, package)[0] == 21.0  # the code that it had imported
    assert run(cache, USE, package, PYTHONDONTWRITEBYTECODE="1") == (31.0, ["use"])


@pytest.mark.parametrize(
    "variables",
    [
        {"NUMBA_BOUNDSCHECK": "1"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx,+fma,+f16c" if X86 else ""},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_settings_that_change_the_code_are_in_the_key(file: Path, cache: Path, variables: dict[str, str]) -> None:
    assert run(cache, **variables) == (RIGHT, COMPILED)
    assert len(list(cache.iterdir())) == 2


def test_versions_settings_and_the_processor_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite
    import numba

    from cnnlayers.kernels.cpu import code_cache, elementwise

    class Codegen:
        cpu = "one"

        def magic_tuple(self) -> tuple[str, ...]:
            return ("triple", self.cpu, "features")

    codegen, signature = Codegen(), (numba.float64,)
    key = lambda: code_cache._key(elementwise.MASKED["integers"].py_func, signature, codegen)  # noqa: E731
    first = key()
    assert key() == first
    codegen.cpu = "another"
    assert key() != first
    codegen.cpu = "one"
    for package in (cnnlayers, numba, llvmlite, np):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(package, "__version__", "0")
            code_cache._versions.cache_clear()
            assert key() != first
        code_cache._versions.cache_clear()
    for name in code_cache.SETTINGS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numba.config, name, "another", raising=False)
            assert key() != first, name
    signature = (numba.float32,)
    assert key() != first


def test_variables_of_an_enclosing_function_are_in_the_key_or_refused() -> None:
    from cnnlayers.kernels.cpu import code_cache

    def made(value: Any) -> Any:
        @jit.kernel()
        def use(x: Any) -> Any:
            return value(x) if callable(value) else value

        return use

    def key(value: Any) -> str:
        return code_cache._key(made(value).py_func, (), CODEGEN)

    numbers = [1, 2, 1.0, True, None, "a", (1, 2), (1, (2,)), np.float32(1), np.dtype("f4"), np.arange(3)]
    keys = [key(value) for value in numbers]
    assert len(set(keys)) == len(numbers)
    assert [key(value) for value in numbers] == keys
    assert key(made(1)) != key(made(2))
    assert key(made(1)) == key(made(1))
    for value in (object(), [1], {}, (1, object()), len):
        with pytest.raises(TypeError, match=f"use uses value, a {type(value).__name__}"):
            made(value)


class CODEGEN:
    @staticmethod
    def magic_tuple() -> tuple[str, ...]:
        return ("triple", "cpu", "features")


# ---------------------------------------------------------------------------------------------------- nothing is stored
def test_without_a_directory_each_process_compiles_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    code = RELU + "from cnnlayers.kernels.cpu import code_cache\nresult.append(code_cache.unavailable())\n"
    result, compiled = run(tmp_path, code, CNNLAYERS_CACHE_DIR=str(folder))
    assert (result[:2], compiled[:1]) == (RIGHT, COMPILED)
    assert str(folder) in result[2]
    assert "CNNLAYERS_CACHE_DIR" in result[2]


def test_a_read_only_directory_is_read(file: Path, cache: Path) -> None:
    cache.chmod(0o500)
    os.utime(file, (0, 0))
    try:
        assert run(cache) == (RIGHT, [])
    finally:
        cache.chmod(0o700)


@pytest.mark.parametrize(
    "change",
    [
        "",
        "del numba.core.caching.NullCache",
        "numba.core.compiler.CompileResult._reduce = None",
        "del numba.core.compiler.CompileResult._rebuild",
    ],
)
def test_a_numba_with_other_internals_compiles_without_a_cache(cache: Path, change: str) -> None:
    code = f"""
import importlib, numba.core.codegen, numba.core.decorators, numba.core.ccallback
{change}
{RELU}
try:
    reason = importlib.import_module("cnnlayers.kernels.cpu.code_cache").unavailable()
except ImportError as error:
    reason = str(error)
result = [result, reason]
"""
    (result, reason), compiled = run(cache, code)
    assert (result, compiled[0]) == (RIGHT, COMPILED[0])
    if not change:
        assert reason is None
        assert run(cache, code)[0] == [RIGHT, None]  # what is stored already is no obstacle
    elif "NullCache" in change:
        assert "cannot import name 'NullCache'" in reason
    else:
        assert "the internals of Numba" in reason


def test_without_numbas_compiler_the_portable_code_runs(cache: Path) -> None:
    assert run(cache, NUMBA_DISABLE_JIT="1", CNNLAYERS_KERNELS="auto") == (RIGHT, [])
    assert not cache.exists()


# ------------------------------------------------------------------------------------------------------------ directory
def test_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CNNLAYERS_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    directory = cache_directory.directory
    assert directory() == tmp_path / ".cache" / "cnnlayers"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as its specification says
    assert directory() == tmp_path / ".cache" / "cnnlayers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert directory() == tmp_path / "xdg" / "cnnlayers"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert directory() == tmp_path / "Library" / "Caches" / "cnnlayers"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert directory() == tmp_path / "AppData" / "Local" / "cnnlayers"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert directory() == tmp_path / "numba" / "cnnlayers"
    monkeypatch.setenv("CNNLAYERS_CACHE_DIR", str(tmp_path / "own"))
    assert directory() == tmp_path / "own"
    monkeypatch.setenv("CNNLAYERS_CACHE_DIR", "here")
    monkeypatch.chdir(tmp_path)
    assert directory() == tmp_path / "here"


def test_no_home_is_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CNNLAYERS_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert cache_directory.directory() is None
    from cnnlayers.kernels.cpu import code_cache

    assert "no home directory" in str(code_cache.unavailable())


def test_the_least_recently_used_kernels_are_deleted(tmp_path: Path) -> None:
    from cnnlayers.kernels.cpu import code_cache

    now = time.time()
    for i, name in enumerate(["old.nbc", "older.nbc", "oldest.nbc"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now, now - (i + 2) * code_cache.DAY))
    for name, age in {"new.tmp": 0.0, "old.tmp": 2 * code_cache.DAY}.items():
        (tmp_path / name).write_bytes(b"unfinished")
        os.utime(tmp_path / name, (now, now - age))
    (tmp_path / "somebody's file").write_text("")
    data = b"x" * 68  # 100 bytes with its checksum
    code_cache._write(tmp_path / "new.nbc", data)
    assert code_cache._read(tmp_path / "older.nbc") is None  # not what a kernel's file looks like
    code_cache.tidy(tmp_path, limit=250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.nbc", "new.tmp", "old.nbc", "somebody's file"]
    os.utime(tmp_path / "new.nbc", (now, now - 9 * code_cache.DAY))
    assert code_cache._read(tmp_path / "new.nbc") == data  # which is a use
    code_cache.tidy(tmp_path, limit=150)
    assert sorted(p.name for p in tmp_path.glob("*.nbc")) == ["new.nbc"]


def test_every_kernel_of_the_library_has_its_cache() -> None:
    import importlib
    import pkgutil

    from cnnlayers.kernels import cpu
    from cnnlayers.kernels.cpu import avg_pool_loops, code_cache, max_pool_loops

    found = [
        max_pool_loops.make_forward(4, 2, False, True, False, True),
        max_pool_loops.make_forward_by_tap("channels", False),
        avg_pool_loops.make_sums("evens", 2, False),
    ]
    for info in pkgutil.iter_modules(cpu.__path__):
        module = importlib.import_module(f"{cpu.__name__}.{info.name}")
        found += [value for value in vars(module).values() if hasattr(value, "py_func")]
    assert len(found) > 60
    assert {type(kernel._cache) for kernel in found} == {code_cache.CodeCache}
