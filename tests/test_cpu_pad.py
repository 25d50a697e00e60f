"""The compiled CPU kernels of pad and relu: the portable bits and contexts, chunks, threads, half types, layouts."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels, specs
from cnnlayers.backends import threads
from cnnlayers.kernels.cpu import jit as cpu

from .implementations import numpy_dtype

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

MODES = ["constant", "edge", "reflect", "symmetric", "wrap"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
ZEROS_OF_BOTH_SIGNS = (0.0, -0.0)


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Every bit pattern of the dtype may come."""
    if name == "bool":
        return rng.random(shape) < 0.5
    dtype = numpy_dtype(name)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


def gradient(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Numbers whose sums depend on their order, zeros of both signs, infinities."""
    if name in INTEGERS:
        return any_bits(rng, shape, name)
    dy = rng.standard_normal(shape)
    for value in (*ZEROS_OF_BOTH_SIGNS, np.inf):
        dy[rng.random(shape) < 0.1] = value
    return dy.astype(numpy_dtype(name))


def laid_out(x: np.ndarray, style: int) -> np.ndarray:
    """The same values: as they are, in reverse order, with gaps, in Fortran's order, or read-only."""
    if style == 1:
        return x[::-1].copy()[::-1]
    if style == 2:
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if style == 3:
        return np.asfortranarray(x)
    x = x.copy()
    x.flags.writeable = style != 4
    return x


def modes(call: Any) -> tuple[Any, Any]:
    """What the portable code gives, and the kernel."""
    found = []
    for mode in ("off", "require"):
        with kernels.mode(mode), np.errstate(invalid="ignore"):  # infinities of two signs may meet
            found.append(call())
    return found[0], found[1]


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert type(a) is type(b) is np.ndarray
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


# ------------------------------------------------------------------------------------------------------------------ pad
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_pads_of_every_kind_have_the_portable_bits(mode: str, data_format: str) -> None:
    rng = np.random.default_rng(MODES.index(mode))
    made = 0
    while made < 120:
        lengths = rng.integers(1, 7, rng.integers(1, 4)).tolist()
        padding = [tuple(pair) for pair in rng.integers(-3, 5, (len(lengths), 2)).tolist()]
        samples, channels = rng.integers(1, 4, 2).tolist()
        shape = (samples, channels, *lengths) if data_format == "channels_first" else (samples, *lengths, channels)
        try:
            specs.pad_spec(shape, padding, mode, data_format)
        except ValueError:  # wider than a period, or more cropped than there is
            continue
        made += 1
        name = str(rng.choice([*FLOATS, *INTEGERS, "bool"]))
        x = laid_out(any_bits(rng, shape, name), made % 5)
        before = x.tobytes()
        ours, theirs = modes(lambda x=x, p=padding: F.pad_forward(x, p, mode, data_format=data_format))
        same(ours[0], theirs[0])
        assert x.tobytes() == before
        if name != "bool":
            dy = laid_out(gradient(rng, ours[0].shape, name), made % 5)
            before = dy.tobytes()
            same(*modes(lambda dy=dy, ctx=theirs[1]: F.pad_backward(dy, ctx)))
            assert dy.tobytes() == before


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_the_bits_of_a_large_pad_do_not_depend_on_the_threads(
    mode: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((3, 11, 80, 83)).astype(dtype)  # some chunks
    with kernels.mode("off"):
        y, ctx = F.pad_forward(x, ((3, 2), (1, 4)), mode)
        expected = y.tobytes(), F.pad_backward(y, ctx).tobytes()
    for number in (1, 2, 5):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        with kernels.mode("require"):
            y, ctx = F.pad_forward(x, ((3, 2), (1, 4)), mode)
            assert (y.tobytes(), F.pad_backward(y, ctx).tobytes()) == expected


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", -0.0), ("float64", np.nan), ("float16", 65504), ("uint64", 2**64 - 1), ("int8", -128), ("bool", True)],
)
def test_a_fill_value_comes_through_in_its_own_bits(dtype: str, value: Any) -> None:
    x = np.zeros((2, 3, 0, 4), dtype)  # an axis without cells: y is the fill value alone
    for shape in (x, np.ones((2, 3, 5, 4), dtype)):
        same(*modes(lambda shape=shape: F.pad(shape, ((1, 2), (-1, 3)), value=value)))


@pytest.mark.parametrize("mode", MODES)
def test_pads_of_nothing(mode: str) -> None:
    for shape in ((0, 3, 4, 5), (2, 0, 4, 5)):
        ours, theirs = modes(lambda shape=shape: F.pad_forward(np.zeros(shape, "float32"), ((1, 2), (-1, 0)), mode))
        same(ours[0], theirs[0])
        same(*modes(lambda y=ours[0], ctx=ours[1]: F.pad_backward(y, ctx)))
    ours, theirs = modes(lambda: F.pad_forward(np.zeros((2, 3, 4), "float32"), ((-2, -2),), mode))
    same(ours[0], theirs[0])
    same(*modes(lambda: F.pad_backward(ours[0], ours[1])))  # every cell was cropped: zeros


# ----------------------------------------------------------------------------------------------------------------- relu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (3, 4, 5, 6), (0, 4), (3, 90_001)])
def test_relu_has_the_portable_values(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    for style in range(5 if shape else 1):
        x = np.array(gradient(rng, shape, dtype) if shape else -1.5, numpy_dtype(dtype))
        if x.size > 10:
            x.reshape(-1)[[1, 3, 4, -1]] = np.array([np.nan, -np.nan, -np.inf, np.nan]).astype(x.dtype)
        x = laid_out(x, style) if shape else x
        before = x.tobytes()
        y, inferred = modes(lambda x=x: F.relu(x))
        np.testing.assert_array_equal(inferred.astype("float64"), y.astype("float64"))
        assert not np.signbit(inferred[inferred == 0].astype("float64")).any()
        ours, theirs = modes(lambda x=x: F.relu_forward(x))
        same(theirs[0], inferred)
        same(theirs[1].arrays["passes"], ours[1].arrays["passes"])
        for ctx in (ours[1], theirs[1]):  # either one's context serves either backward
            dy = any_bits(rng, shape, dtype)
            same(*modes(lambda dy=dy, ctx=ctx: F.relu_backward(dy, ctx)))
        assert x.tobytes() == before


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu_of_every_kind_of_number(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    small = 2.0**-24 if dtype == "float16" else 2.0**-126
    x = np.array([small, 1, np.inf, np.nan, -small, -1, -np.inf, -np.nan, 0, -0.0] * 9).astype(kind)  # and vector tails
    with kernels.mode("require"):
        y, ctx = F.relu_forward(x)
    passed = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 0] * 9, bool)
    same(ctx.arrays["passes"], np.packbits(passed, bitorder="little"))
    bits = f"u{kind.itemsize}"
    same(y.view(bits), np.where(passed, x.view(bits), 0).astype(bits))


# ----------------------------------------------------------------------------------------------------------------- both
def test_many_threads_may_call_at_once(rng: np.random.Generator) -> None:
    xs = [rng.standard_normal((2, 8, 96, 97)).astype("float32") for _ in range(6)]

    def call(x: np.ndarray) -> tuple[bytes, bytes]:
        y, ctx = F.pad_forward(x, 2, "reflect")
        return F.pad_backward(y, ctx).tobytes(), F.relu(y).tobytes()

    expected = [call(x) for x in xs]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        found[i] = all(call(xs[i]) == expected[i] for _ in range(10))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == dict.fromkeys(range(len(xs)), True)
