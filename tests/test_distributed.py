"""Several ranks: the same as one. Threads that play MPI's ranks, then mpiexec itself, where there is one."""

from __future__ import annotations

import contextvars
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnlayers import backends, checkpoint, cli, data, distributed, kernels, launcher, layers, models, predict, train
from cnnlayers import functional as F
from cnnlayers.distributed import Ranks

from . import standin_cupy

ROOT = Path(__file__).parents[1]


# ----------------------------------------------------------------------------------------------- ranks that are threads
class World:
    """Ranks that are threads; `Comm` has as much of mpi4py's communicator as the library calls."""

    def __init__(self, size: int) -> None:
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        """`work(ranks)` on every rank at once; what each gave. Raises the error of the first that failed."""
        found: list[Any] = [None] * self.size
        failed: list[BaseException | None] = [None] * self.size

        def one(rank: int) -> None:
            try:
                found[rank] = work(Ranks(Comm(self, rank)))
            except BaseException as error:  # for the test, whatever it is
                failed[rank] = error
                self.barrier.abort()

        run = [contextvars.copy_context().run for _ in range(self.size)]  # the kernels' mode lives in the context
        threads = [threading.Thread(target=run[rank], args=(one, rank)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(filter(None, failed), key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return found


class Comm:
    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.messages = world, rank, 0

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.world.size

    def allgather(self, value: Any) -> list[Any]:
        self.world.values[self.rank] = value
        self.world.barrier.wait()
        found = list(self.world.values)
        self.world.barrier.wait()
        return found

    def bcast(self, value: Any) -> Any:
        return self.allgather(value)[0]

    def Allreduce(self, own: np.ndarray, total: np.ndarray) -> None:
        assert isinstance(own, np.ndarray)
        assert own.flags.c_contiguous
        assert (own.dtype, own.shape) == (total.dtype, total.shape)
        assert own.dtype.name in ("float32", "float64")  # MPI adds no half types
        self.messages += 1
        first, *others = self.allgather(own.copy())
        total[...] = sum(others, start=first)


def net_of(move: Callable[[np.ndarray], Any]) -> layers.Layer:
    body = layers.Sequential(layers.Conv(4, 4, 3, padding=1, rng=2), layers.BatchNorm(4))
    net = layers.Sequential(
        layers.Conv(1, 4, 3, padding=1, bias=False, rng=1), layers.BatchNorm(4), layers.ReLU(), layers.Residual(body),
        layers.MaxPool(2), layers.Flatten(), layers.Linear(4 * 3 * 3, 5, rng=3),
    )  # fmt: skip
    return net.map_arrays(move)


@pytest.mark.parametrize(("size", "pictures"), [(2, 6), (2, 7), (3, 7), (3, 2), (4, 1), (5, 3)])
def test_gradients_are_the_whole_batchs(impl: Any, size: int, pictures: int, rng: np.random.Generator) -> None:
    x, labels = rng.standard_normal((pictures, 1, 6, 6)), rng.integers(0, 5, pictures)

    def wide(a: np.ndarray) -> Any:
        return impl.writable(a, "float64" if a.dtype == np.float32 else None)

    def step(net: layers.Layer, part: slice) -> Any:
        logits = net(impl.array(x[part]))
        b = backends.of(logits)
        dlogits = logits
        if logits.shape[0]:
            _, ctx = F.softmax_cross_entropy_forward(logits, impl.array(labels[part]))
            dlogits = F.softmax_cross_entropy_backward(b.full((), logits.shape[0] / pictures, logits.dtype), ctx)
        net.backward(dlogits)
        return net.grads

    alone = net_of(wide)
    expected = step(alone, slice(None))
    states = []

    def work(ranks: Ranks) -> dict[str, Any]:
        net = net_of(wide)
        ranks.join(net)
        found = ranks.add(step(net, ranks.part(pictures)))
        states.append(net.state_dict())
        return found

    with kernels.mode("off" if impl.name == "standin" else "auto"):  # the emulator runs one kernel at a time
        parts = World(size).run(work)
    for found in parts:
        assert list(found) == list(expected)
        for name, g in expected.items():
            impl.close(found[name], backends.to_numpy(g), rtol=1e-10, atol=1e-13)
    for state in states:  # the running statistics, too
        for name, a in alone.state_dict().items():
            impl.close(state[name], backends.to_numpy(a), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", ["host", "device", "nccl"])
def test_ways_of_cupy_arrays(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = {"a": np.arange(3, dtype="float32"), "b": np.ones((2, 2), "float16")}
    taken, devices = [], set()

    class Cuda(Comm):
        def Allreduce(self, own: Any, total: Any) -> None:
            self.add("host" if isinstance(own, np.ndarray) else "device", own, total)

        def add(self, kind: str, own: Any, total: Any) -> None:
            taken.append(kind)
            first, second = self.allgather(own.copy())
            total[...] = first + second

    class NCCLBackend:
        def __init__(self, devices: int, rank: int, *, use_mpi: bool) -> None:
            assert (devices, use_mpi) == (2, True)
            self.comm = comms[rank]

        def all_reduce(self, own: Any, total: Any) -> None:
            self.comm.add("nccl", own, total)

    def work(ranks: Ranks) -> Any:
        ranks.comm = ranks._machine = comms[ranks.rank]
        ranks.take_gpu()
        return ranks.add({name: b.xp.asarray(g) for name, g in grads.items()})

    world = World(2)
    comms = [Cuda(world, rank) for rank in range(2)]
    monkeypatch.setattr(distributed, "_takes_cuda", lambda: way == "device")
    with standin_cupy.installed() as cupy, backends.using("cupy") as b:
        if way == "nccl":
            module = types.ModuleType("cupyx.distributed")
            module.NCCLBackend = NCCLBackend
            monkeypatch.setitem(sys.modules, "cupyx", types.ModuleType("cupyx"))
            monkeypatch.setitem(sys.modules, "cupyx.distributed", module)
            cupy.cuda.nccl = types.SimpleNamespace(available=True)
            cupy.cuda.runtime.getDeviceCount = lambda: 2
            cupy.cuda.Device = lambda number: types.SimpleNamespace(use=lambda: devices.add(number))
        found = world.run(work)
        assert set(taken) == {way}
        assert devices == ({0, 1} if way == "nccl" else set())
        for one in found:
            for name, g in grads.items():
                assert (type(one[name]), one[name].dtype, one[name].shape) == (cupy.ndarray, g.dtype, g.shape)
                assert np.array_equal(one[name].get(), 2 * g)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 64])
def test_parts_are_even_and_whole(size: int, n: int) -> None:
    parts = [range(n)[Ranks(Comm(World(size), rank)).part(n)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_few_flat_buckets(dtype: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 4000)
    shapes = [(3, 4), (), (0, 2), (30, 7), (500,), (2, 2)]
    grads = [{f"p{i}": rng.standard_normal(s).astype(dtype) for i, s in enumerate(shapes)} for _ in range(3)]

    def work(ranks: Ranks) -> tuple[dict[str, Any], int]:
        return ranks.add(grads[ranks.rank]), ranks.comm.messages

    (first, messages), *others = World(3).run(work)
    assert 2 <= messages <= 3
    for name, g in first.items():
        wide = np.float64 if dtype == "float64" else np.float32
        assert g.dtype == dtype
        assert g.shape == grads[0][name].shape
        np.testing.assert_array_equal(g, sum(one[name].astype(wide) for one in grads).astype(dtype))
        assert all(other[name].tobytes() == g.tobytes() for other, _ in others)


def test_dtypes_do_not_mix(rng: np.random.Generator) -> None:
    grads = {"a": np.full(3, 1 + 2.0**-40), "b": np.full(2, 0.5, np.float32), "c": np.full(1, 2.0)}
    for found in World(2).run(lambda ranks: ranks.add(grads)):
        assert {name: g.dtype for name, g in found.items()} == {name: g.dtype for name, g in grads.items()}
        assert found["a"][0] == 2 + 2.0**-39


def test_join_gives_rank_0s_model(impl: Any) -> None:
    def work(ranks: Ranks) -> Any:
        net = models.ResNet(8, (1, 8, 8), 3, rng=ranks.rank).map_arrays(impl.writable)
        with pytest.raises(distributed.Apart, match="rank 1 has come to another model"):
            ranks.check(net)
        ranks.join(net)
        ranks.check(net)
        return net

    for net in World(2).run(work):
        for name, a in models.ResNet(8, (1, 8, 8), 3, rng=0).state_dict().items():
            impl.same(net.state_dict()[name], a)


def test_models_that_differ_are_refused() -> None:
    def work(ranks: Ranks) -> None:
        with pytest.raises(ValueError, match="the ranks' models differ in their arrays"):
            ranks.join(layers.Linear(3, 4 + ranks.rank))

    World(2).run(work)


def test_an_error_of_one_is_an_error_of_all() -> None:
    class Stubborn(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__("cannot be sent")

    def fail(ranks: Ranks, rank: int, error: Exception) -> None:
        with ranks.agreeing():
            if ranks.rank == rank:
                raise error

    def work(ranks: Ranks) -> None:
        fail(ranks, -1, KeyError("nobody's"))
        with pytest.raises(KeyError, match="two"):
            fail(ranks, 2, KeyError("two"))
        with pytest.raises((Stubborn, RuntimeError), match="cannot be sent"):
            fail(ranks, 1, Stubborn(1, 2))
        assert ranks.of_first(lambda: ranks.rank) == 0
        with pytest.raises(ZeroDivisionError):
            ranks.of_first(lambda: 1 / ranks.rank)

    World(3).run(work)


def test_an_interrupt_of_one_is_one_of_all() -> None:
    def work(ranks: Ranks) -> None:
        ranks.add({"p": np.ones(2)})
        ranks._interrupted = float(ranks.rank == 1)
        with pytest.raises(KeyboardInterrupt):
            ranks.add({"p": np.ones(2), "q": np.ones(1, np.float32)})

    World(3).run(work)


def test_alone_nothing_is_sent() -> None:
    ranks, net, grads = Ranks(), layers.BatchNorm(2), {"weight": np.ones(2)}
    ranks.join(net)
    ranks.check(net)
    assert net.comm is None
    assert ranks.add(grads) == grads
    assert ranks.part(5) == slice(0, 5)
    assert ranks.of_first(lambda: 3) == 3
    with pytest.raises(KeyError), ranks.agreeing(), ranks.interruptible(), ranks.ending_together():
        raise KeyError("as it is")


def test_the_job_ends_once_its_error_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher loses what it has not read when it is told to end the job."""
    pytest.importorskip("fcntl")
    source, sink = os.pipe()
    read: list[bytes] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:  # the launcher reads at last
            read.append(os.read(source, 1 << 16))

    comm = Comm(World(2), 1)
    comm.Abort = lambda code: read.append(b"ended %d" % code)  # type: ignore[attr-defined]
    monkeypatch.setattr(launcher, "time", types.SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with open(source, "rb"), open(sink, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit), Ranks(comm).ending_together():
            raise KeyError("rank 1 cannot go on")
    assert len(slept) == 3
    assert len(read) == 2
    assert read[0].startswith(b"rank 1 ends the job: KeyError\nTraceback")
    assert read[0].endswith(b"KeyError: 'rank 1 cannot go on'\n")
    assert read[1] == b"ended 1"


def test_random_numbers_of_a_ranks_own() -> None:
    drawn = World(3).run(lambda ranks: ranks.rng(5).random(4).tolist())
    assert len({tuple(d) for d in drawn}) == 3
    assert drawn == World(3).run(lambda ranks: ranks.rng(5).random(4).tolist())


def test_each_rank_gets_its_part_of_the_same_batches() -> None:
    pytest.importorskip("sklearn")
    with backends.using("numpy"):
        digits = data.load_digits()
    whole = list(data.batches(digits, digits.train[:50], 16, np.random.default_rng(3)))
    for size in (2, 5):
        ranks = [Ranks(Comm(World(size), rank)) for rank in range(size)]
        parts = [list(data.batches(digits, digits.train[:50], 16, np.random.default_rng(3), r.part)) for r in ranks]
        for i, (x, y) in enumerate(whole):
            assert np.array_equal(np.concatenate([part[i][0] for part in parts]), x)
            assert np.array_equal(np.concatenate([part[i][1] for part in parts]), y)


# ------------------------------------------------------------------------------------------------------- without an MPI
def test_without_mpi4py(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert cli.main(["train", "--distributed", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "pip install 'cnnlayers[mpi]'" in said.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert cli.main(["train", "--distributed"]) == 2
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--distributed", "--epochs", "none"])
    assert left.value.code == 2
    assert capsys.readouterr().err == ""  # rank 0 has said it


# --------------------------------------------------------------------------------------------------------- with mpiexec
def mpiexec() -> str:
    """The path of the mpiexec that belongs to mpi4py; the test is skipped where one of them is missing."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    pytest.importorskip("sklearn")
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec") or pytest.skip("mpiexec is not installed")
    if not _finds_mpi():
        pytest.skip("mpi4py finds no MPI library")
    return str(found)


@functools.cache
def _finds_mpi() -> bool:
    """Asked in another process: importing it starts MPI."""
    return subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True).returncode == 0


def start(n: int, *words: str | Path, cwd: Path = ROOT) -> subprocess.Popen:
    env = os.environ | {"CNNLAYERS_BACKEND": "numpy", "CNNLAYERS_NUM_THREADS": "1", "CNNLAYERS_KERNELS": "off"}
    line = [mpiexec(), "-n", str(n), sys.executable, "-m", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def ran(n: int, *words: str | Path, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Exit code, standard output and error of `mpiexec -n N python -m WORD…`; it must not hang."""
    process = start(n, *words, cwd=cwd)
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("mpiexec did not come to an end")
    return process.returncode, out, err


def history(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / train.HISTORY).read_text())
    return found


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


# 1,222 pictures: the last batch of 111 is a single one, and one rank of two, or two of three, have none of it.
SETTINGS = ["--epochs", "2", "--batch-size", "111"]


@pytest.fixture(scope="module", params=["three-layer", "resnet8"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model's name, and the folder of its run in one process, in float64."""
    from . import mpi_rank

    mpiexec()
    out = tmp_path_factory.mktemp("alone") / request.param
    assert mpi_rank.command("train", "--model", request.param, *SETTINGS, "--out", str(out)) == 0
    return request.param, out


@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_give_the_curve_of_one(alone: tuple[str, Path], n: int, tmp_path: Path) -> None:
    model, one = alone
    if model == "resnet8" and n == 3:
        pytest.skip("the three-layer network has been there")
    words = ["tests.mpi_rank", "command", "train", "--distributed", "--model", model, "--out", tmp_path / "out"]
    code, said, error = ran(n, *words, *SETTINGS)
    assert (code, error) == (0, "")
    lines = [line.split()[0] for line in said.splitlines()]  # rank 0 alone speaks
    assert [lines.count(word) for word in ("data", "epoch", "saved", "test")] == [1, len(history(one)["epochs"]), 1, 1]
    assert f"{n} processes" in said
    ours, theirs = history(tmp_path / "out"), history(one)
    assert (ours["ranks"], theirs["ranks"]) == (n, 1)
    for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
        curve = [record[name] for record in theirs["epochs"]]
        np.testing.assert_allclose([record[name] for record in ours["epochs"]], curve, rtol=1e-5, atol=1e-9)
    assert ours["test"]["accuracy"] == theirs["test"]["accuracy"]
    a, b = (checkpoint.load_arrays(out / train.LAST)[0] for out in (tmp_path / "out", one))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_resuming(tmp_path: Path) -> None:
    words = ["cnnlayers", "train", "--distributed", "--batch-size", "512"]
    assert ran(2, *words, "--epochs", "2", "--out", "through", cwd=tmp_path)[0] == 0
    assert ran(2, *words, "--epochs", "1", "--out", "parts", cwd=tmp_path)[0] == 0
    code, said, _ = ran(2, *words, "--epochs", "2", "--out", "parts", "--resume", cwd=tmp_path)
    assert code == 0
    assert re.search(r"^epoch 2/2", said, re.MULTILINE)
    assert "epoch 1/2" not in said
    assert (tmp_path / "parts" / train.MODEL).read_bytes() == (tmp_path / "through" / train.MODEL).read_bytes()
    refused = ran(2, *words, "--seed", "4", "--resume", "--out", "parts", cwd=tmp_path)
    assert refused[0] == 2
    assert refused[2].count("cnnlayers train: a resumed run keeps its settings") == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [("error", "ZeroDivisionError: rank 1 cannot go on"), ("oserror", "cnnlayers train: rank 1"), ("killed", "")],
)
def test_a_rank_that_dies_ends_the_job(how: str, said: str, tmp_path: Path) -> None:
    code, _, error = ran(2, "tests.mpi_rank", "dying", how, tmp_path / "out")
    assert code not in (0, None)
    assert said in error
    assert len(history(tmp_path / "out")["epochs"]) == 1


def test_ranks_without_distributed_do_not_write_one_folder(tmp_path: Path) -> None:
    code, said, error = ran(2, "cnnlayers", "train", "--epochs", "1", "--out", "out", cwd=tmp_path)
    assert (code, said) == (2, "")
    assert error.count("cnnlayers train: ") == 1
    assert "started 2 processes" in error
    assert "--distributed makes them train it together" in error
    assert not (tmp_path / "out").exists()


def test_what_one_rank_cannot_load_is_refused_by_all(tmp_path: Path) -> None:
    code, said, error = ran(2, "tests.mpi_rank", "failing_alone", tmp_path / "out")
    assert (code, said) == (2, "")
    assert error == "cnnlayers train: no such disk on this machine\n"


def test_ranks_that_drift_apart(tmp_path: Path) -> None:
    code, _, error = ran(2, "tests.mpi_rank", "drifting", tmp_path / "out")
    assert code == 1
    assert "rank 1 has come to another model than rank 0's" in error
    assert not (tmp_path / "out" / train.MODEL).exists()


def test_an_mpiexec_of_another_mpi(tmp_path: Path) -> None:
    mpiexec()
    env = os.environ | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    line = [sys.executable, "-m", "cnnlayers", "train", "--distributed"]
    found = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert re.search(r"mpiexec started 2 processes, but mpi4py sees one: it uses \w+", found.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(2, "tests.mpi_rank", "slow", out)
    try:
        deadline = time.monotonic() + 60
        while not ((out / "rank0").exists() and (out / "rank1").exists()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    done = len(history(out)["epochs"])
    assert process.returncode != 0
    assert f"interrupted: epoch {done} is in {out}, --resume continues" in error
    assert "Traceback" not in error
    assert predict.load(out).classes == tuple("0123456789")
