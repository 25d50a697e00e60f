"""How the chunks of a kernel are shared among threads by compiled code, without Python and its lock (the GIL).

The thread that calls *offers* the chunks in an array of integers, the *board*, and computes them one after another.
Helpers, in `serve`, look at the board and take chunks from it, too. Which thread computes a chunk makes no difference
to its result. The thread that calls returns when all chunks are taken and no helper computes one any more. Helpers that
are asleep or late are not waited for.

There is one offer at a time: a thread that finds the board in use computes its chunks alone."""

from __future__ import annotations

import functools
import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .jit import kernel
from .substitutes import new_array
from .vector_types import I8, I32, I64, call, operation

Array = Any
Kernel = Any

# Places on a board, an int64 array. Those that several threads write to are in cache lines of their own.
IN_USE = 0  # 1 while a thread has its chunks on the board
OFFERS = 8  # odd while chunks are offered: one more at the beginning of an offer, and one more at its end
HELPERS = 16  # threads that may be computing chunks of the offer
NEXT = 24  # the chunk that is taken next
FAILED = 32  # 1 if a kernel raised an exception
FUNCTION, ARGUMENTS, EDGES, NUMBER = 40, 41, 42, 43  # the offer: three addresses, and the number of chunks
AWAKE = 48  # threads in `serve`
CALLS = 63  # one more each time that helpers should leave `serve`

# Looks at the board in `serve` with nothing offered. The first ones take about 0.05 µs each and keep the processor, for
# longer than Python needs from one op to the next; the others let other programs run.
SPINS, MOST_POLLS = 8000, 8200
POLLS = 100  # looks at the board before a thread lets others run between two looks
MOST_WAITS = 500  # looks at `done`, with one system call each

sched_yield = types.ExternalFunction("sched_yield", types.int32())


def _function_type(context: Any) -> Any:
    """LLVM's type of a function of an address, start and stop, which ends as Numba's functions do."""
    return context.call_conv.get_function_type(types.int64, (types.voidptr, types.int64, types.int64))


def _read_modify_write(operator: str) -> Any:
    """The operation `(board, place, number)` that changes a number in one step, and gives what was there before."""

    def change(board: Any, place: Any, number: Any) -> Any:
        def emit(context: Any, builder: Any, board: Any, place: Any, number: Any) -> Any:
            return builder.atomic_rmw(operator, board.pointer(place, 1), number, "seq_cst")

        return types.int64(board, types.int64, types.int64), emit

    return operation(change)


exchange, fetch_add = _read_modify_write("xchg"), _read_modify_write("add")


@operation
def atomic_load(board: Any, place: Any) -> Any:
    """The number at a place, as another thread has stored it last."""

    def emit(context: Any, builder: Any, board: Any, place: Any) -> Any:
        return builder.load_atomic(board.pointer(place, 1), "seq_cst", 8)

    return types.int64(board, types.int64), emit


@operation
def chunk_function(body: Any, lengths: Any, arguments: Any) -> Any:
    """The addresses of a compiled function that computes a chunk with a kernel, and of what it reads: `lengths` and
    `arguments`, in the memory of the function that this is in. See `shared`."""
    workspaces = [types.Array(arguments[0].dtype, 1, "C")] * len(lengths)
    chunk = types.int64, types.int64
    called = body.get_call_type(cpu_target.typing_context, (*arguments.types, *chunk, *workspaces), {})

    def emit(context: Any, builder: Any, _: Any, *values: Any) -> Any:
        memory = cgutils.alloca_once_value(
            builder, context.make_tuple(builder, types.Tuple((lengths, arguments)), values)
        )
        function = ir.Function(builder.module, _function_type(context), f"{builder.function.name}.chunk")
        function.linkage = "internal"
        function.attributes.add("noinline")
        address, start, stop = function.args[2:]
        inside = ir.IRBuilder(function.append_basic_block())
        packed = inside.load(inside.bitcast(address, memory.type))
        sizes, numbers = (cgutils.unpack_tuple(inside, inside.extract_value(packed, i)) for i in range(2))
        made = [new_array(context, inside, *pair)[0] for pair in zip(workspaces, sizes, strict=True)]
        part = body.dispatcher.overloads[called.args]
        context.add_linking_libs([part.library])
        status, _ = context.call_internal_no_propagate(inside, part.fndesc, called, [*numbers, start, stop, *made])
        for array, value in zip(workspaces, made, strict=True):
            context.nrt.decref(inside, array, value)
        with cgutils.if_unlikely(inside, status.is_error):
            context.call_conv.return_status_propagate(inside, status)
        context.call_conv.return_value(inside, I64(0))
        pair = [builder.ptrtoint(pointer, I64) for pointer in (function, memory)]
        return context.make_tuple(builder, types.UniTuple(types.int64, 2), pair)

    return types.UniTuple(types.int64, 2)(body, lengths, arguments), emit


@operation
def compute_chunk(*arguments: Any) -> Any:
    """Call a function of `chunk_function`: (function, arguments, start, stop); 1 if the kernel raised an exception."""

    def emit(context: Any, builder: Any, function: Any, address: Any, *chunk: Any) -> Any:
        pointer = builder.inttoptr(function, _function_type(context).as_pointer())
        outcome = [cgutils.alloca_once(builder, argument.pointee) for argument in pointer.type.pointee.args[:2]]
        code = builder.call(pointer, [*outcome, builder.inttoptr(address, I8.as_pointer()), *chunk])
        return builder.zext(builder.icmp_signed(">", code, code.type(0)), I64)

    return types.int64(*[types.int64] * 4), emit


@operation
def address_of(array: Any) -> Any:
    return types.int64(array), lambda context, builder, array: builder.ptrtoint(array.pointer(I64(0), 0), I64)


@operation
def number_at(address: Any, index: Any) -> Any:
    """An int64 of an array, by the array's address."""

    def emit(context: Any, builder: Any, address: Any, index: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(address, I64.as_pointer()), [index]))

    return types.int64(types.int64, types.int64), emit


@operation
def pause() -> Any:
    """Do nothing for a few cycles, in which the core can work for another thread."""

    def emit(context: Any, builder: Any) -> None:
        if platform.machine() in ("x86_64", "AMD64"):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif platform.machine() in ("aarch64", "arm64"):
            call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))  # "yield"

    return types.void(), emit


@kernel(allocates=False)
def take_chunks(board: Array) -> None:
    """Compute chunks of the offer until none is left."""
    function, arguments, edges, number = board[FUNCTION], board[ARGUMENTS], board[EDGES], board[NUMBER]
    i = fetch_add(board, NEXT, 1)
    while i < number:
        if compute_chunk(function, arguments, number_at(edges, i), number_at(edges, i + 1)) != 0:
            exchange(board, FAILED, 1)
        i = fetch_add(board, NEXT, 1)


@kernel(allocates=False)
def share_chunks(board: Array, edges: Array, function: int, arguments: int) -> Any:
    """Compute all chunks, with the threads that help; 1 if the kernel raised an exception."""
    failed = 0
    if exchange(board, IN_USE, 1) != 0:
        for i in range(len(edges) - 1):
            failed |= compute_chunk(function, arguments, edges[i], edges[i + 1])
        return failed
    board[FUNCTION], board[ARGUMENTS] = function, arguments
    board[EDGES], board[NUMBER] = address_of(edges), len(edges) - 1
    exchange(board, FAILED, 0)
    exchange(board, NEXT, 0)
    fetch_add(board, OFFERS, 1)
    take_chunks(board)
    fetch_add(board, OFFERS, 1)
    polls = 0
    while atomic_load(board, HELPERS) != 0:
        polls += 1
        if polls > POLLS:
            sched_yield()
    failed |= atomic_load(board, FAILED)
    exchange(board, IN_USE, 0)
    return failed


@kernel(allocates=False)
def serve(board: Array, calls: int) -> None:
    """Help with all that is offered, until `CALLS` is not `calls` any more, or nothing was offered for about half
    a millisecond."""
    fetch_add(board, AWAKE, 1)
    idle, done = 0, 0
    while idle < MOST_POLLS and atomic_load(board, CALLS) == calls:
        offers = atomic_load(board, OFFERS)
        if offers % 2 == 1 and offers != done:
            fetch_add(board, HELPERS, 1)  # before it looks again: who closes an offer looks in the other order
            offers = atomic_load(board, OFFERS)
            if offers % 2 == 1:
                take_chunks(board)
                done, idle = offers, 0
            fetch_add(board, HELPERS, -1)
        idle += 1
        if idle > SPINS:
            sched_yield()
        else:
            pause()
    fetch_add(board, AWAKE, -1)


@kernel(allocates=False)
def wait_until_done(done: Array) -> None:
    """Let other threads run until `done[0]` is 1, for a fifth of a millisecond at most."""
    for _ in range(MOST_WAITS):
        if atomic_load(done, 0) == 1:
            break
        sched_yield()


@functools.cache
def shared(body: Kernel) -> Kernel:
    """A kernel `(board, edges, lengths, *arguments)` that calls `body(*arguments, start, stop, *workspaces)` for each
    chunk, which is from one number of `edges` to the next, and shares the chunks with other threads. `lengths`: of the
    workspaces, flat arrays of the first argument's dtype with any content. 1 if `body` raised an exception."""

    def share(board, edges, lengths, *arguments):  # type: ignore[no-untyped-def]
        function, memory = chunk_function(body, lengths, arguments)
        return share_chunks(board, edges, function, memory)

    function = body.py_func  # whose name the code on disk gets
    share.__module__, share.__name__ = function.__module__, function.__name__
    share.__qualname__ = f"shared.{function.__qualname__}"
    vars(share)["only_calls"] = True  # compiler.py
    return kernel()(share)
