"""Padding and cropping: five modes, forward and backward, against loops, NumPy and PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import specs
from cnnlayers.testing import gradcheck

from .cases.arrays import channels_last
from .implementations import Impl
from .reference import pad as reference

MODES = reference.MODES
TORCH = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
FLOATS = ["float16", "bfloat16", "float32", "float64"]

# Zero and one-sided pads, crops on either side, pads beside crops (pytorch#24504).
PAIRS = [(0, 0), (1, 0), (0, 2), (2, 1), (-1, 0), (0, -1), (-1, 2), (2, -1), (-1, -1)]


def spatial(pairs: Any) -> list[tuple[int, int]]:
    return [tuple(p) for p in pairs]


# ----------------------------------------------------------------------------------------------------- small cases
@pytest.mark.parametrize(
    ("mode", "padding", "expected"),
    [
        ("constant", ((2, 1),), [9, 9, 1, 2, 3, 9]),
        ("edge", ((2, 1),), [1, 1, 1, 2, 3, 3]),
        ("replicate", ((2, 1),), [1, 1, 1, 2, 3, 3]),
        ("reflect", ((2, 1),), [3, 2, 1, 2, 3, 2]),
        ("symmetric", ((2, 1),), [2, 1, 1, 2, 3, 3]),
        ("wrap", ((2, 1),), [2, 3, 1, 2, 3, 1]),
        ("circular", ((2, 1),), [2, 3, 1, 2, 3, 1]),
        ("wrap", ((3, 3),), [1, 2, 3, 1, 2, 3, 1, 2, 3]),
        ("symmetric", ((3, 0),), [3, 2, 1, 1, 2, 3]),
        ("constant", ((-1, 1),), [2, 3, 9]),
        ("edge", ((-1, 2),), [2, 3, 3, 3]),
        ("reflect", ((-1, 2),), [2, 3, 2, 1]),
        ("wrap", ((-1, 2),), [2, 3, 2, 3]),
        ("edge", -1, [2]),
        ("reflect", 0, [1, 2, 3]),
        ("constant", ((-3, 0),), []),
    ],
)
def test_small_cases(impl: Impl, mode: str, padding: Any, expected: list[float]) -> None:
    x = impl.array([[[1.0, 2.0, 3.0]]], "float32")
    y = F.pad(x, padding, mode, 9 if mode == "constant" else 0)
    impl.same(y, np.array([[expected]], "float32"))


@pytest.mark.parametrize(
    ("mode", "padding", "expected"),
    [
        ("constant", ((2, 1),), [4, 8, 16]),
        ("edge", ((2, 1),), [1 + 2 + 4, 8, 16 + 32]),
        ("reflect", ((2, 1),), [4, 2 + 8 + 32, 1 + 16]),
        ("symmetric", ((2, 1),), [2 + 4, 1 + 8, 16 + 32]),
        ("wrap", ((2, 1),), [4 + 32, 1 + 8, 2 + 16]),
        ("edge", ((-1, 4),), [0, 1, 2 + 4 + 8 + 16 + 32]),
        ("wrap", ((-1, 2),), [0, 1 + 4, 2 + 8]),
    ],
)
def test_small_cases_backward(impl: Impl, mode: str, padding: Any, expected: list[float]) -> None:
    y, ctx = F.pad_forward(impl.array([[[1.0, 2.0, 3.0]]], "float32"), padding, mode)
    dy = 2.0 ** np.arange(y.shape[2])
    impl.same(F.pad_backward(impl.array([[dy]], "float32"), ctx), np.array([[expected]], "float32"))


def test_every_axis_has_its_own_padding(impl: Impl) -> None:
    x = np.arange(6, dtype="float32").reshape(1, 1, 2, 3)
    impl.same(F.pad(impl.array(x), (1, 0), value=7), np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=7))
    impl.same(F.pad(impl.array(x), (0, (1, 0)), "edge"), np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)), mode="edge"))
    impl.same(F.pad(impl.array(x), 1, "wrap"), np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="wrap"))


# -------------------------------------------------------------------------------------------- against the loops
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("lengths", "pairs"),
    [
        ((5,), [(2, 3)]),
        ((5,), [(-2, 1)]),
        ((4, 5), [(0, 3), (2, 0)]),
        ((4, 5), [(3, -1), (-2, 2)]),
        ((4, 5), [(-1, -1), (0, 0)]),
        ((3, 4, 3), [(1, 0), (2, 2), (0, 2)]),
        ((3, 4, 3), [(-1, 1), (0, 3), (1, -2)]),
    ],
)
def test_against_loops(
    impl: Impl, rng: np.random.Generator, mode: str, data_format: str, lengths: Any, pairs: Any
) -> None:
    value = 1.5 if mode == "constant" else 0
    x = rng.standard_normal((2, 3, *lengths)).astype("float32")
    expected = reference.pad(x, pairs, mode, value)
    dy = rng.standard_normal(expected.shape).astype("float32")
    dx = reference.pad_backward(dy.astype("float64"), x.shape, pairs, mode)
    order = channels_last if data_format == "channels_last" else np.asarray
    x, expected, dy, dx = order(x), order(expected), order(dy), order(dx)

    arrays = impl.array(x), impl.array(dy)
    y, ctx = F.pad_forward(arrays[0], pairs, mode, value, data_format=data_format)
    impl.same(y, expected)
    impl.same(F.pad(arrays[0], pairs, mode, value, data_format=data_format), expected)
    impl.close(F.pad_backward(arrays[1], ctx), dx, rtol=1e-6, atol=1e-6, dtype="float32")
    impl.same(arrays[0], x)  # nothing writes into its arguments
    impl.same(arrays[1], dy)


def test_numpys_pad_agrees_on_every_small_pad() -> None:
    x = np.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    for mode in MODES:
        most = 2 if mode == "reflect" else 3
        for pads in itertools.product(range(most + 1), repeat=4):
            pairs = [pads[:2], pads[2:]]
            expected = np.pad(x, [(0, 0), (0, 0), *pairs], mode=mode)
            np.testing.assert_array_equal(F.pad(x, pairs, mode), expected, err_msg=f"{mode} {pairs}")
            np.testing.assert_array_equal(reference.pad(x, pairs, mode), expected)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("mode", TORCH)
def test_pytorch_agrees(mode: str, ndim: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(ndim)
    for _ in range(25):
        lengths = rng.integers(2, 6, ndim)
        pairs = [PAIRS[k] for k in rng.integers(len(PAIRS), size=ndim)]
        x = rng.standard_normal((2, 3, *lengths))
        try:
            specs.pad_spec(x.shape, pairs, mode, "channels_first")
        except ValueError:
            continue
        t = torch.tensor(x, requires_grad=True)
        flat = [n for pair in reversed(pairs) for n in pair]
        if 0 in (n + sum(pair) for n, pair in zip(lengths, pairs, strict=True)):
            continue  # without cells PyTorch refuses, or leaves the gradient uninitialised
        expected = torch.nn.functional.pad(t, flat, TORCH[mode])
        y, ctx = F.pad_forward(x, pairs, mode)
        np.testing.assert_array_equal(y, expected.detach().numpy(), err_msg=f"{mode} {lengths} {pairs}")
        dy = rng.standard_normal(y.shape)
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(F.pad_backward(dy, ctx), t.grad.numpy(), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- adjoint
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_backward_is_the_exact_adjoint(mode: str, data_format: str) -> None:
    rng = np.random.default_rng(1)
    for ndim in (1, 2, 3):
        for _ in range(20):
            lengths = tuple(rng.integers(3, 6, ndim))
            pairs = [PAIRS[k] for k in rng.integers(len(PAIRS), size=ndim)]
            shape = (2, 3, *lengths) if data_format == "channels_first" else (2, *lengths, 3)
            x = rng.integers(-8, 9, shape).astype("float64")  # small whole numbers: every sum is exact
            y, ctx = F.pad_forward(x, pairs, mode, data_format=data_format)
            dy = rng.integers(-8, 9, y.shape).astype("float64")
            assert (y * dy).sum() == (x * F.pad_backward(dy, ctx)).sum(), (mode, shape, pairs)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_gradient(mode: str, data_format: str, rng: np.random.Generator) -> None:
    for shape, pairs in [((2, 3, 4), [(1, 2)]), ((2, 4, 3, 3), [(1, 0), (-1, 2)]), ((1, 3, 3, 3, 3), [(1, 1)] * 3)]:
        pads = pairs[: len(shape) - 2]
        gradcheck(F.pad, rng.standard_normal(shape), pads, mode, data_format=data_format)


@pytest.mark.parametrize("mode", MODES[1:])
def test_backward_adds_in_the_stated_order(impl: Impl, mode: str, rng: np.random.Generator) -> None:
    # The last axis first; at a cell its own gradient, the border before, then behind, from the outermost cell inwards.
    pairs, lengths = [(2, 3), (3, 1)], (4, 5)
    dy = rng.standard_normal((1, 1, 9, 9)).astype("float32")
    dx = dy.copy()
    for axis, (length, (before, after)) in reversed(list(enumerate(zip(lengths, pairs, strict=True)))):
        lines = np.moveaxis(dx, axis + 2, 0)
        for place in (*range(before), *reversed(range(before + length, before + length + after))):
            lines[before + reference.shown(place - before, length, (before, after), mode)] += lines[place]
        dx = np.moveaxis(lines[before : before + length], 0, axis + 2)
    _, ctx = F.pad_forward(impl.array(np.zeros((1, 1, *lengths), "float32")), pairs, mode)
    impl.same(F.pad_backward(impl.array(dy), ctx), dx)


# -------------------------------------------------------------------------------------------- the tutorials' faults
def test_edge_backward_with_a_side_of_zero_and_an_argument_left_alone(impl: Impl) -> None:
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    _, ctx = F.pad_forward(impl.array(x), ((0, 2), (1, 0)), "edge")
    dy = impl.array(np.ones((1, 1, 5, 5)))
    impl.same(F.pad_backward(dy, ctx), np.array([[[[2.0, 1, 1, 1], [2, 1, 1, 1], [6, 3, 3, 3]]]]))
    impl.same(dy, np.ones((1, 1, 5, 5)))


def test_reflect_does_not_repeat_the_edge(impl: Impl) -> None:
    x = impl.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert not np.array_equal(impl.numpy(F.pad(x, 1, "reflect")), impl.numpy(F.pad(x, 1, "edge")))
    impl.same(F.pad(x, ((1, 0), (0, 1)), "reflect"), np.array([[[[3.0, 4, 3], [1, 2, 1], [3, 4, 3]]]]))


@pytest.mark.parametrize("mode", MODES)
def test_one_sided_and_zero_pads(impl: Impl, mode: str) -> None:  # pytorch#24504: circular broke where one side is 0
    x = np.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    for pairs in ([(0, 0), (0, 2)], [(2, 0), (0, 0)], [(0, 1), (1, 0)], [(0, 0), (0, 0)]):
        expected = np.pad(x, [(0, 0), (0, 0), *pairs], mode=mode)
        impl.same(F.pad(impl.array(x), pairs, mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_call_gives_the_same_bits(impl: Impl, mode: str, rng: np.random.Generator) -> None:  # pytorch#98925
    x = impl.array(rng.standard_normal((3, 4, 9, 7)), "float32")
    y, ctx = F.pad_forward(x, 3, mode)
    dy = impl.array(rng.standard_normal(tuple(y.shape)), "float32")
    first = impl.numpy(F.pad_backward(dy, ctx))
    for _ in range(3):
        impl.same(F.pad(x, 3, mode), impl.numpy(y))
        impl.same(F.pad_backward(dy, ctx), first)  # a context serves more than once
    _, again = F.pad_forward(x, 3, mode)
    impl.same(F.pad_backward(dy, again), first)


# -------------------------------------------------------------------------------------------------- dtypes and bits
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
def test_only_values_move_so_every_bit_pattern_comes_through(impl: Impl, mode: str, dtype: str) -> None:
    kind = impl.dtype(dtype)
    bits = np.random.default_rng(0).integers(0, 256, 2 * 3 * 5 * 6 * kind.itemsize, np.uint8)
    x = bits.view(kind).reshape(2, 3, 5, 6)  # NaNs with payloads among them
    x[0, 0, 0, :4] = np.array([-0.0, math.inf, -math.inf, math.nan]).astype(kind)
    x[0, 0, 1, 0] = -x[0, 0, 0, 3]
    places = np.arange(x.size).reshape(x.shape)
    pairs = [(2, 3), (-1, 4)]
    moved = reference.pad(places, pairs, mode, -1)
    expected = np.where(moved >= 0, x.reshape(-1).view(f"u{kind.itemsize}")[moved], 0).astype(f"u{kind.itemsize}")
    y = impl.numpy(F.pad(impl.array(x), pairs, mode), moved.shape, kind)
    assert y.view(f"u{kind.itemsize}").tobytes() == expected.tobytes()
    assert impl.numpy(F.pad(impl.array(x), 0, mode)).tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
@pytest.mark.parametrize("mode", MODES)
def test_integers_and_bool(impl: Impl, mode: str, dtype: str) -> None:
    info = None if dtype == "bool" else np.iinfo(dtype)
    x = np.array([[[1, 0, 1, 1]]], bool) if info is None else np.array([[[info.min, info.max, 7, 0]]], dtype)
    value = 0 if mode != "constant" else True if info is None else info.max
    impl.same(F.pad(impl.array(x), ((2, 1),), mode, value), reference.pad(x, [(2, 1)], mode, value))


def test_gradients_of_integers(impl: Impl) -> None:
    y, ctx = F.pad_forward(impl.array([[[1, 2, 3]]], "int32"), 1, "edge")
    assert tuple(y.shape) == (1, 1, 5)
    impl.same(F.pad_backward(impl.array([[[1, 2, 3, 4, 5]]], "int32"), ctx), np.array([[[3, 3, 9]]], "int32"))
    with pytest.raises(TypeError, match="dy"):
        F.pad_backward(impl.array([[[1.0] * 5]], "float32"), ctx)
    _, ctx = F.pad_forward(impl.array([[[True, False]]]), 1)
    with pytest.raises(TypeError, match="dy"):
        F.pad_backward(impl.array([[[True] * 4]]), ctx)


@pytest.mark.parametrize("dtype", FLOATS)
def test_results_have_the_dtype_of_x(impl: Impl, dtype: str) -> None:
    kind = impl.dtype(dtype)
    for mode in MODES:
        y, ctx = F.pad_forward(impl.array(np.ones((1, 2, 3), kind)), 1, mode)
        impl.numpy(y, (1, 2, 5), kind)
        impl.numpy(F.pad_backward(impl.array(np.ones((1, 2, 5), kind)), ctx), (1, 2, 3), kind)
        impl.numpy(F.pad_backward(impl.array(np.ones((1, 2, 5), "float32")), ctx), (1, 2, 3), kind)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_add_up_in_float32(impl: Impl, dtype: str) -> None:  # candle PR 3719, in a pad's backward
    kind = impl.dtype(dtype)
    _, ctx = F.pad_forward(impl.array(np.ones((1, 1, 1), kind)), ((4095, 0),), "edge")
    dx = impl.numpy(F.pad_backward(impl.array(np.ones((1, 1, 4096), kind)), ctx), (1, 1, 1), kind)
    assert float(dx[0, 0, 0]) == 4096.0  # summed in float16 it stops at 2048


# ----------------------------------------------------------------------------------------------- layouts and sizes
@pytest.mark.parametrize("mode", MODES)
def test_strides_of_any_kind(impl: Impl, mode: str, rng: np.random.Generator) -> None:  # cupy PR 9275: x.T read as x
    x = rng.standard_normal((4, 6, 2, 3))
    views = [lambda a: a[::-1, :, :, ::-1], lambda a: a[:, ::2, :, :], lambda a: a[..., :2]]
    for view in views:
        host, array = view(x), view(impl.array(x))
        y, ctx = F.pad_forward(array, ((1, 0), (0, 1)), mode)
        impl.same(y, F.pad(np.ascontiguousarray(host), ((1, 0), (0, 1)), mode))
        dy = rng.standard_normal(tuple(y.shape))
        twice = impl.array(np.repeat(dy, 2, axis=-1))[..., ::2]
        impl.same(F.pad_backward(twice, ctx), F.pad_backward(dy, F.pad_forward(host, ((1, 0), (0, 1)), mode)[1]))
    turned = np.transpose(x, (3, 2, 1, 0))
    y = F.pad(impl.xp.permute_dims(impl.array(x), (3, 2, 1, 0)), 1, mode)
    impl.same(y, F.pad(np.ascontiguousarray(turned), 1, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (0, 0, 4, 5)])
def test_empty_batches_and_zero_channels(impl: Impl, mode: str, shape: tuple[int, ...]) -> None:
    y, ctx = F.pad_forward(impl.array(np.zeros(shape, "float32")), ((1, 2), (-1, 0)), mode)
    impl.numpy(y, (*shape[:2], 7, 4), "float32")
    impl.numpy(F.pad_backward(y, ctx), shape, "float32")


def test_an_axis_without_cells_can_be_filled_with_a_constant(impl: Impl) -> None:
    y, ctx = F.pad_forward(impl.array(np.zeros((1, 1, 0, 2), "float32")), ((1, 1), (0, 0)), value=3)
    impl.same(y, np.full((1, 1, 2, 2), 3, "float32"))
    impl.numpy(F.pad_backward(y, ctx), (1, 1, 0, 2), "float32")


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_an_array_of_its_own_and_the_context_keeps_none(mode: str) -> None:
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    for padding in (0, 1, ((-1, 0), (0, -1))):
        y, ctx = F.pad_forward(x, padding, mode)
        assert not np.shares_memory(x, y)
        assert ctx.nbytes == 0
        dy = np.ones_like(y)
        assert not np.shares_memory(dy, F.pad_backward(dy, ctx))


# ----------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", math.inf),
        ("float32", -math.inf),
        ("float32", math.nan),
        ("float32", -0.0),
        ("float32", True),
        ("float32", 2**70),
        ("float32", np.float64(0.1)),
        ("float16", 65504),
        ("float64", 1e300),
        ("int64", 2**63 - 1),
        ("int64", -(2**63)),
        ("int64", np.int64(2**62 + 1)),
        ("uint64", 2**64 - 1),
        ("uint64", np.uint64(2**64 - 1)),
        ("int8", -128.0),
        ("uint8", np.float32(255)),
        ("bool", 1),
        ("bool", False),
        ("bool", np.bool_(True)),
        ("int32", True),
    ],
)
def test_a_value_that_the_dtype_holds(impl: Impl, dtype: str, value: Any) -> None:
    y = F.pad(impl.array(np.zeros((1, 1, 1), dtype)), 1, value=value)
    expected = np.zeros((1, 1, 3), dtype)
    expected[..., ::2] = value
    impl.same(y, expected)


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("float16", 70000, ValueError),
        ("float16", -1e5, ValueError),
        ("float32", 1e39, ValueError),
        ("float64", 10**400, ValueError),
        ("uint8", -1, ValueError),
        ("uint8", 256, ValueError),
        ("int8", 1.5, ValueError),
        ("int32", math.nan, ValueError),
        ("int32", math.inf, ValueError),
        ("int64", 2**63, ValueError),
        ("int64", 10**400, ValueError),
        ("uint64", 2**64, ValueError),
        ("bool", 2, ValueError),
        ("bool", 0.5, ValueError),
        ("float32", "0", TypeError),
        ("float32", None, TypeError),
        ("float32", [1.0], TypeError),
        ("float32", 1j, TypeError),
        ("int32", "0", TypeError),
    ],
)
def test_a_value_that_the_dtype_cannot_hold(impl: Impl, dtype: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="value"):
        F.pad(impl.array(np.zeros((1, 1, 1), dtype)), 1, value=value)


def test_a_value_belongs_to_the_constant_mode(impl: Impl) -> None:
    x = impl.array([[[1.0, 2.0]]])
    for mode in MODES[1:]:
        F.pad(x, 1, mode, 0)
        with pytest.raises(ValueError, match="value"):
            F.pad(x, 1, mode, 1.0)
        with pytest.raises(ValueError, match="value"):
            F.pad(x, 1, mode, math.nan)


# ----------------------------------------------------------------------------------------------------------- errors
def test_wider_than_a_period_is_an_error_that_says_so(impl: Impl) -> None:
    x = impl.array(np.zeros((1, 1, 3, 4), "float32"))
    for mode, pads in [("reflect", ((3, 0), 0)), ("wrap", (0, (0, 5))), ("symmetric", ((4, 0), 0))]:
        for op in (F.pad, F.pad_forward):
            with pytest.raises(ValueError, match=f"{mode} padding of .* period"):
                op(x, pads, mode)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((-2,), ValueError, r"padding \(-2, -2\) crops more than the axis of 3"),
        ((1, "mirror"), ValueError, "mode"),
        (("same",), TypeError, "padding"),
        ((1.0,), TypeError, "padding"),
        (((1, 1, 1),), ValueError, "padding"),
        ((True,), TypeError, "padding"),
    ],
)
def test_bad_arguments(impl: Impl, arguments: Any, error: type[Exception], said: str) -> None:
    x = impl.array(np.zeros((1, 1, 3, 4), "float32"))
    for op in (F.pad, F.pad_forward):
        with pytest.raises(error, match=said):
            op(x, *arguments)


def test_bad_arrays() -> None:
    x = np.zeros((1, 1, 3))
    for bad in ([[[1.0]]], np.zeros((1, 1, 3), "clongdouble"), np.array([[["a"]]]), np.zeros((1, 1, 3), object), None):
        with pytest.raises(TypeError, match=r"\bx\b|array"):
            F.pad(bad, 1)
    for shape in ((3,), (2, 3), (1,) * 6):
        with pytest.raises(ValueError, match="x must have"):
            F.pad(np.zeros(shape), 1)
    with pytest.raises(ValueError, match="data_format"):
        F.pad(x, 1, data_format="NCW")
    with pytest.raises(TypeError, match="positional"):
        F.pad(x, 1, "constant", 0, "channels_first")


def test_bad_gradients(impl: Impl) -> None:
    y, ctx = F.pad_forward(impl.array(np.zeros((1, 1, 3), "float32")), 1)
    with pytest.raises(ValueError, match=r"dy must have y's shape \(1, 1, 5\), got \(1, 1, 4\)"):
        F.pad_backward(impl.array(np.zeros((1, 1, 4), "float32")), ctx)
    with pytest.raises(TypeError, match="dy"):
        F.pad_backward(impl.array(np.zeros((1, 1, 5), "int32")), ctx)
    with pytest.raises(TypeError, match="dy"):
        F.pad_backward([[[0.0] * 5]], ctx)
    for other in (None, F.avg_pool_forward(y, 2)[1]):
        with pytest.raises(TypeError, match="pad_backward needs the context of pad_forward"):
            F.pad_backward(y, other)


def test_a_gradient_of_another_owner() -> None:
    strict = pytest.importorskip("array_api_strict")
    _, ctx = F.pad_forward(np.zeros((1, 1, 3), "float32"), 1)
    with pytest.raises(TypeError, match="dy must have x's owner"):
        F.pad_backward(strict.zeros((1, 1, 5), dtype=strict.float32), ctx)


def test_the_result_stays_on_the_device_of_x() -> None:
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    for mode in MODES:
        y, ctx = F.pad_forward(strict.ones((1, 1, 3), device=device), 1, mode)
        assert y.device == device
        assert F.pad_backward(y, ctx).device == device
