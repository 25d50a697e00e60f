"""Data-parallel training over MPI: every rank computes its part of a batch, and all make the same step.

    ranks = distributed.Ranks(MPI.COMM_WORLD)  # of mpi4py; Ranks() is this process alone
    ranks.join(net)  # rank 0's weights everywhere; batch norm over all ranks
    mine = ranks.part(len(batch))  # may be empty
    ...  # backward from the loss's gradient times len(batch[mine]) / len(batch)
    optimizer.step(ranks.add(net.grads))  # the gradient of the whole batch's mean

Rules: all ranks call the same methods in the same order. Weights are equal to the last bit, because all start from rank
0's and add the same sums; `check` makes sure. A rank that fails must not leave the others waiting: what can fail before
training goes through `agreeing` or `of_first`, which raise on every rank alike, and `abort` ends the job after that.

CuPy arrays are added by NCCL, where CuPy has it and `take_gpu` found a GPU for every rank; else by an MPI that says it
takes CUDA memory; else through the host. The tests run these three ways on stand-ins: no GPU has run them yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

import numpy

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.functional.arrays import Array, accumulator_dtype
from cnnlayers.launcher import launched_rank, launched_size, size_variable, wait_for_reader
from cnnlayers.layers import BatchNorm, Layer

__all__ = ["Apart", "MPIUnavailable", "Ranks", "launched_rank", "launched_size", "size_variable", "world"]

T = TypeVar("T")

INSTALL = "pip install 'cnnlayers[mpi]'"
BUCKET_BYTES = 1 << 22  # gradients travel in flat buckets of about this size: few messages, each soon ready


class MPIUnavailable(RuntimeError):
    """There is no MPI to work with; the message says why and what mends it."""


class Apart(RuntimeError):
    """The ranks' models are not the same any more."""


def world() -> Ranks:
    """All ranks that mpiexec started: starts MPI.

    Returns
    -------
    Ranks

    Raises
    ------
    MPIUnavailable
        mpi4py or its MPI is missing, or mpiexec is another MPI's than mpi4py's, so that each process believes itself
        alone. The message has the command that mends it.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, a libmpi is not
        raise MPIUnavailable(f"several processes need mpi4py and an MPI ({error}): {INSTALL}") from error
    started = launched_size()
    if MPI.COMM_WORLD.Get_size() == 1 != started:
        library = MPI.Get_library_version().strip("\0 \n").partition("\n")[0]
        raise MPIUnavailable(
            f"mpiexec started {started} processes, but mpi4py sees one: it uses {library}, and mpiexec must be of that"
            f" MPI ({INSTALL} brings a pair)"
        )
    return Ranks(MPI.COMM_WORLD)


def _takes_cuda() -> bool:
    """Whether the MPI that mpi4py has loaded says that it takes CUDA memory (MPICH's and Open MPI's extension)."""
    loaded = sys.modules.get("mpi4py.MPI")
    try:
        return loaded is not None and bool(ctypes.CDLL(loaded.__file__).MPIX_Query_cuda_support())
    except (AttributeError, OSError):
        return False


class Ranks:
    """The processes of an mpi4py communicator; without one, this process alone, for which everything is free.

    It has an `allreduce`, and so can be given to batch norm as `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None

    Attributes
    ----------
    rank, size : int
        This process's number, and how many there are.
    first : bool
        Whether this is rank 0, which alone writes and prints.

    Examples
    --------
    >>> from cnnlayers import distributed
    >>> ranks = distributed.Ranks()
    >>> ranks.size, ranks.part(8)
    (1, slice(0, 8, None))

    References
    ----------
    https://mpi4py.readthedocs.io
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self.rank, self.size = (0, 1) if comm is None else (int(comm.Get_rank()), int(comm.Get_size()))
        self.first = self.rank == 0
        self._interrupted = 0.0
        self._cuda: bool | None = None
        self._machine: Any = None
        self._nccl: Any = None

    # ------------------------------------------------------------------------------------------------------------ parts
    def part(self, n: int) -> slice:
        """This rank's part of n things: as even as can be, in the ranks' order; empty where there are too few."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def rng(self, seed: int) -> numpy.random.Generator:
        """A generator of this rank's own, for what must differ between ranks: `Dropout(rng=ranks.rng(seed))`."""
        return numpy.random.default_rng(numpy.random.SeedSequence(seed, spawn_key=(self.rank,)))

    # ------------------------------------------------------------------------------------------------------------- sums
    def allreduce(self, values: Any) -> Any:
        """The sum over all ranks.

        Parameters
        ----------
        values : array_like
            Numbers on the host, of the same shape on every rank.

        Returns
        -------
        numpy.ndarray
            float64, a new array.
        """
        own = numpy.array(values, dtype=numpy.float64, order="C")
        if self.size == 1:
            return own
        total = numpy.empty_like(own)
        self.comm.Allreduce(own, total)
        return total

    @backends.quiet
    def add(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Every gradient's sum over all ranks.

        Parameters
        ----------
        grads : dict of str to array
            The same names, shapes and dtypes on every rank.

        Returns
        -------
        dict of str to array
            In the gradients' dtypes; half types are added in float32.

        Raises
        ------
        KeyboardInterrupt
            On all ranks, where one was interrupted in an `interruptible` block.
        """
        if self.size == 1:
            return dict(grads)
        found: dict[str, Array] = {}
        buckets = _buckets(grads)
        for names in buckets:
            found |= self._add_bucket({name: grads[name] for name in names}, last=names is buckets[-1])
        return {name: found[name] for name in grads}

    def _add_bucket(self, grads: Mapping[str, Array], last: bool) -> dict[str, Array]:
        first = next(iter(grads.values()))
        b = backends.of(first)
        wide = accumulator_dtype(b, first.dtype)
        parts = [b.xp.astype(b.xp.reshape(g, (-1,)), wide) for g in grads.values()]
        # With the last bucket travels whether a rank was interrupted, so that all stop at the same step.
        flat = self._sum(b, b.xp.concat([*parts, b.full((1,), self._interrupted if last else 0.0, wide)]))
        if last and float(flat[-1]) > 0:
            raise KeyboardInterrupt
        found, start = {}, 0
        for name, g in grads.items():
            found[name] = b.xp.astype(b.xp.reshape(flat[start : start + g.size], tuple(g.shape)), g.dtype)
            start += g.size
        return found

    def _sum(self, b: Backend, flat: Array) -> Array:
        """A flat array's sum over all ranks."""
        total = b.empty(tuple(flat.shape), flat.dtype)
        if b.name == "cupy" and self._nccl is not None:
            self._nccl.all_reduce(flat, total)  # on the current stream
        elif b.xp is numpy:
            self.comm.Allreduce(flat, total)
        elif b.name == "cupy" and self._direct():
            b.xp.cuda.get_current_stream().synchronize()  # MPI knows nothing of streams
            self.comm.Allreduce(flat, total)
        else:
            own = numpy.ascontiguousarray(backends.to_numpy(flat))
            host = numpy.empty_like(own)
            self.comm.Allreduce(own, host)
            total = b.array(host, flat.dtype)
        return total

    def _direct(self) -> bool:
        if self._cuda is None:
            self._cuda = _takes_cuda()
        return self._cuda

    # ----------------------------------------------------------------------------------------------------------- models
    def join(self, model: Layer) -> None:
        """Give the model rank 0's parameters and statistics, on all ranks, and let its batch norms span them.

        Parameters
        ----------
        model : Layer

        Raises
        ------
        ValueError
            On every rank, where the ranks' models differ in names, shapes or dtypes.
        """
        if self.size == 1:
            return
        state = model.state_dict()
        shapes = {name: (tuple(a.shape), str(a.dtype)) for name, a in state.items()}
        if any(other != shapes for other in self.comm.allgather(shapes)):
            raise ValueError("the ranks' models differ in their arrays: every rank must make the same model")
        held = {name: backends.to_numpy(a) for name, a in state.items()} if self.first else None
        for name, value in self.comm.bcast(held).items():
            b = backends.of(state[name])
            state[name][...] = b.array(value, state[name].dtype)
        for _, layer in model.walk():
            if isinstance(layer, BatchNorm):
                layer.comm = self

    def check(self, model: Layer) -> None:
        """Check that the model is the same on every rank to the last bit.

        Parameters
        ----------
        model : Layer

        Raises
        ------
        Apart
            On every rank, where it is not.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for a in model.state_dict().values():
            digest.update(numpy.ascontiguousarray(backends.to_numpy(a)).tobytes())
        others = self.comm.allgather(digest.hexdigest())
        apart = [str(rank) for rank, other in enumerate(others) if other != others[0]]
        if apart:
            raise Apart(f"rank {', '.join(apart)} has come to another model than rank 0's: the run is spoilt")

    # ----------------------------------------------------------------------------------------------------------- errors
    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block without communication that succeeds on all ranks, or raises on all the first failing rank's error."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # whatever it is, the others must hear of it
            error = caught
        if self.size == 1:
            found = [error]
        else:
            found = self.comm.allgather(_portable(error))
            found[self.rank] = error  # with its traceback
        for one in found:
            if one is not None:
                raise one

    def of_first(self, function: Callable[[], T]) -> T:
        """What the function gives, or raises, on rank 0: called there alone, told to all."""
        value: T | None = None
        with self.agreeing():
            if self.first:
                value = function()
        told: Any = value if self.size == 1 else self.comm.bcast(value)
        return cast(T, told)

    @contextlib.contextmanager
    def ending_together(self, *alike: type[Exception]) -> Iterator[None]:
        """A block whose exception is printed and ends the processes of all ranks, which would wait for this for ever.

        alike: errors that all ranks raise in the same place, and that are left to the caller.
        """
        try:
            yield
        except alike:
            raise
        except BaseException as error:
            if self.size == 1 or isinstance(error, SystemExit):
                raise
            told = traceback.format_exc() if isinstance(error, Exception) else ""
            print(f"rank {self.rank} ends the job: {type(error).__name__}\n{told}", end="", file=sys.stderr)
            self.abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def abort(self, code: int) -> NoReturn:
        """End the process of every rank with this exit code, whatever it is doing; what was printed comes out first."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            if self.size > 1:
                wait_for_reader(stream)
        if self.size > 1:
            self.comm.Abort(code)
        raise SystemExit(code)

    def interruptible(self) -> contextlib.AbstractContextManager[Any]:
        """Ctrl-C inside the block raises KeyboardInterrupt at the next `add`, on all ranks at the same one.

        Raised where it comes it would leave the others waiting. A second Ctrl-C makes mpiexec end the job at once.
        """
        if self.size == 1:
            return contextlib.nullcontext()

        def note(number: int, frame: Any) -> None:
            self._interrupted = 1.0

        def prepare() -> Callable[[], Any]:
            before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # None: a handler in C
            return lambda: signal.signal(signal.SIGINT, before)

        return backends.Block(lambda: signal.signal(signal.SIGINT, note), prepare)

    # ---------------------------------------------------------------------------------------------------------- machine
    def share_cores(self) -> None:
        """Take this rank's share of the cores that it and other ranks may use: `CNNLAYERS_NUM_THREADS`, unless it is
        set. To be called before the first op.
        """
        if self.size > 1:
            mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
            sharing = sum(bool(mine & other) for other in self._here().allgather(mine))  # a launcher may bind ranks
            os.environ.setdefault("CNNLAYERS_NUM_THREADS", str(max(1, len(mine) // sharing)))

    def take_gpu(self) -> None:
        """Make another GPU the current one for each rank of a machine, as far as they go, and where they go far enough
        have NCCL add the gradients. CuPy must be selected, and the ranks must be all of MPI's: NCCL starts by those.
        """
        if self.size == 1:
            return
        cuda, here = backends.current().xp.cuda, self._here()
        there = cuda.runtime.getDeviceCount()
        cuda.Device(here.Get_rank() % there).use()
        try:
            from cupyx.distributed import NCCLBackend

            usable = here.Get_size() <= there and bool(cuda.nccl.available)
        except (ImportError, AttributeError):  # CuPy without NCCL
            usable = False
        if all(self.comm.allgather(usable)):
            self._nccl = NCCLBackend(self.size, self.rank, use_mpi=True)

    def _here(self) -> Any:
        """The communicator of this machine's ranks."""
        if self._machine is None:
            from mpi4py import MPI

            self._machine = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        return self._machine


def _buckets(grads: Mapping[str, Array]) -> list[list[str]]:
    """The names in their order, in groups of one backend and dtype and of about BUCKET_BYTES."""
    found: list[list[str]] = []
    kind, size = None, 0
    for name, g in grads.items():
        b = backends.of(g)
        bytes_ = int(g.size) * 8
        if kind != (b, g.dtype) or size + bytes_ > BUCKET_BYTES:
            found.append([])
            kind, size = (b, g.dtype), 0
        found[-1].append(name)
        size += bytes_
    return found


def _portable(error: Exception | None) -> Exception | None:
    """An error that can be sent to another rank: itself, or its text where it cannot be taken apart and made again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own __init__ may refuse in any way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
