"""Max pooling against loops and PyTorch: values, indices, gradients, ties, NaN, windows without cells, what is kept."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.testing import gradcheck

from .cases.arrays import FORMATS, line, ordered
from .cases.max_pool import TIES, VALUES, looped
from .cases.windows import BY_CASE, options, some_pool
from .implementations import Impl
from .reference import pool as reference
from .reference.pool import Pool

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NAN, INF = math.nan, math.inf
# ml_dtypes' comparisons raise the processor's flag for a NaN, which NumPy then reports.
NAN_OF_BFLOAT16 = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


# --------------------------------------------------------------------------------------------------------- small cases
def test_a_small_plane(impl: Impl) -> None:
    x = impl.array([[[[1.0, 5, 2, 0], [3, 4, 8, 1], [9, 0, 1, 2], [0, 7, 6, 3]]]], "float32")
    (y, indices), ctx = F.max_pool_forward(x, 2, return_indices=True)
    impl.same(y, np.array([[[[5, 8], [9, 6]]]], "float32"))
    impl.same(indices, np.array([[[[1, 6], [8, 14]]]]))
    dx = F.max_pool_backward(impl.array([[[[1.0, 2], [3, 4]]]], "float32"), ctx)
    impl.same(dx, np.array([[[[0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 4, 0]]]], "float32"))
    impl.same(F.max_pool(x, 2), np.array([[[[5, 8], [9, 6]]]], "float32"))


def test_overlapping_windows_add_their_gradients(impl: Impl) -> None:  # the tutorials wrote = where += is right
    for ties in TIES:
        _, ctx = F.max_pool_forward(impl.array(line(0, 1, 9, 1, 0)), 3, 1, ties=ties)
        impl.same(F.max_pool_backward(impl.array(line(1, 2, 4)), ctx), line(0, 0, 7, 0, 0))


@pytest.mark.parametrize(
    ("ties", "expected"),
    [("first", (0, 6, 0, 12, 0)), ("all", (0, 6, 6, 12, 12)), ("split", (0, 3, 3, 6, 6))],
)
def test_ties(impl: Impl, ties: str, expected: tuple[float, ...]) -> None:
    y, ctx = F.max_pool_forward(impl.array(line(1, 5, 5, 7, 7)), (3,), 2, ties=ties)
    _, single = F.max_pool_forward(impl.array(line(1, 5, 5)), 3, ties=ties)
    impl.same(y, line(5, 7))
    impl.same(F.max_pool_backward(impl.array(line(6.0)), single), line(*expected[:3]))
    impl.same(F.max_pool_backward(impl.array(line(6, 12)), ctx), line(*expected))


def test_split_shares_in_thirds_and_adds_up(impl: Impl) -> None:
    _, ctx = F.max_pool_forward(impl.array(np.zeros((1, 1, 3, 3))), (1, 3), 1, ties="split")
    dx = impl.numpy(F.max_pool_backward(impl.array([[[[3.0], [6.0], [9.0]]]]), ctx))
    np.testing.assert_allclose(dx[0, 0], [[1] * 3, [2] * 3, [3] * 3])


# -------------------------------------------------------------------------------------------------- against the loops
@BY_CASE
@FORMATS
@pytest.mark.parametrize("values", VALUES)
def test_against_loops(impl: Impl, pool: Pool, data_format: str, values: str) -> None:
    host, expected, places, dy, *gradients = (ordered(a, data_format) for a in looped(pool, values))
    given = options(pool) | {"data_format": data_format}
    x, array = impl.array(host), impl.array(dy)
    impl.same(F.max_pool(x, **given), expected)
    for ties, dx in zip(TIES, gradients, strict=True):
        for op in (F.max_pool, lambda *a, **k: F.max_pool_forward(*a, **k)[0]):
            y, indices = op(x, **given, ties=ties, return_indices=True)
            impl.same(y, expected)
            impl.same(indices, places)
        y, ctx = F.max_pool_forward(x, **given, ties=ties)
        impl.same(y, expected)
        impl.same(F.max_pool_backward(array, ctx), dx)  # it adds in C order, so the bits are the loops'
    impl.same(x, host)
    impl.same(array, dy)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pytorch_agrees(ndim: int) -> None:
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, f"max_pool{ndim}d")
    rng, done = np.random.default_rng(ndim), 0
    while done < 30:
        pool = some_pool(rng, ndim)
        half = [p[0] for p in pool.padding]
        if any(2 * p > k for p, k in zip(half, pool.kernel, strict=True)):
            continue  # PyTorch takes at most half the kernel, the same on both sides
        pool = Pool(pool.lengths, pool.kernel, pool.stride, tuple((p, p) for p in half), pool.dilation, pool.ceil_mode)
        reach = [d * (k - 1) + 1 for k, d in zip(pool.kernel, pool.dilation, strict=True)]
        if any(n + 2 * p < r for n, p, r in zip(pool.lengths, half, reach, strict=True)):
            continue
        done += 1
        # without repeats: at a tie or a NaN PyTorch's own kernels differ
        x = rng.permutation(2 * 3 * math.prod(pool.lengths)).astype("float64").reshape(2, 3, *pool.lengths)
        t = torch.tensor(x, requires_grad=True)
        args = pool.kernel, pool.stride, tuple(half), pool.dilation, pool.ceil_mode
        expected, places = function(t, *args, return_indices=True)
        (y, indices), ctx = F.max_pool_forward(x, **options(pool), return_indices=True)
        assert y.shape == tuple(expected.shape), pool
        met = y > -INF  # PyTorch invents an index where dilation meets no cell
        np.testing.assert_array_equal(y, expected.detach().numpy(), err_msg=str(pool))
        np.testing.assert_array_equal(indices[met], places.numpy()[met], err_msg=str(pool))
        dy = rng.standard_normal(y.shape) * met
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(F.max_pool_backward(dy, ctx), t.grad.numpy(), err_msg=str(pool))


@FORMATS
@pytest.mark.parametrize("ties", TIES)
def test_gradient(ties: str, data_format: str, rng: np.random.Generator) -> None:
    for lengths, given in [
        ((7,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((5, 6), {"kernel_size": (3, 2), "stride": 1, "padding": ((0, 2), (1, 0)), "dilation": (2, 1)}),
        ((4, 3, 4), {"kernel_size": 2, "padding": "same"}),
    ]:
        x = ordered(rng.standard_normal((2, 3, *lengths)), data_format)
        gradcheck(F.max_pool, x, ties=ties, data_format=data_format, **given)


# ---------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", "full", 1, (1, 0), ((1, 0), 1), ((0, 1), (2, 1))])
def test_every_form_of_padding(impl: Impl, rng: np.random.Generator, padding: Any) -> None:
    lengths, kernel, stride = (6, 5), (3, 3), (2, 1)
    same = [(0, 1), (1, 1)]  # six cells, kernel 3, stride 2: one cell of padding, behind; five, stride 1: one each
    lower = [(1, 0), (1, 1)]
    named = {"valid": [(0, 0)] * 2, "full": [(2, 2)] * 2, "same": same, "same_lower": lower}
    numbers = {
        1: [(1, 1)] * 2,
        (1, 0): [(1, 1), (0, 0)],
        ((1, 0), 1): [(1, 0), (1, 1)],
        ((0, 1), (2, 1)): [(0, 1), (2, 1)],
    }
    pairs = tuple((named | numbers)[padding])
    x = rng.standard_normal((2, 2, *lengths))
    y, _ = reference.max_pool(x, Pool(lengths, kernel, stride, pairs, (1, 1)))
    impl.same(F.max_pool(impl.array(x), kernel, stride, padding), y)


def test_padding_never_wins(impl: Impl) -> None:
    x = np.full((1, 1, 3, 3), -5.0)
    impl.same(F.max_pool(impl.array(x), 3, 1, 1), x)
    impl.same(F.max_pool(impl.array(x.astype("int8")), 3, 1, 1), x.astype("int8"))


# ------------------------------------------------------------------------------------------------------------------ NaN
@NAN_OF_BFLOAT16
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_is_found_in_every_lane_and_in_the_tail(impl: Impl, dtype: str) -> None:
    # tensorflow#125965: lost in vector lanes, not in the tail. One NaN in each place of a line of 131 cells.
    length = 131
    x = np.zeros((length, 1, length), impl.dtype(dtype))
    x[np.arange(length), 0, np.arange(length)] = NAN
    for kernel, stride in [(2, 2), (3, 1), (length, 1)]:
        y = impl.numpy(F.max_pool(impl.array(x), kernel, stride))
        hit = np.array(
            [[any(s + o * stride == c for s in range(kernel)) for o in range(y.shape[2])] for c in range(length)]
        )
        np.testing.assert_array_equal(np.isnan(y[:, 0].astype("float32")), hit)


@pytest.mark.parametrize(
    ("ties", "expected"), [("first", [2, 0, 0, 0]), ("all", [2, 0, 2, 0]), ("split", [1, 0, 1, 0])]
)
def test_the_nans_of_a_window_share_its_gradient(impl: Impl, ties: str, expected: list[float]) -> None:
    # pytorch#7645: NaN was ignored
    (y, indices), ctx = F.max_pool_forward(impl.array(line(NAN, INF, NAN, 3)), 4, ties=ties, return_indices=True)
    impl.same(indices, np.array([[[0]]]))
    assert np.isnan(impl.numpy(y)).all()
    impl.same(F.max_pool_backward(impl.array(line(2)), ctx), line(*expected))


def test_a_nan_after_the_maximum_wins_too(impl: Impl) -> None:
    for values in ([INF, NAN], [NAN, INF], [-INF, NAN], [1, NAN, 2]):
        x = impl.array(line(*values))
        y, indices = F.max_pool(x, len(values), return_indices=True)
        assert np.isnan(impl.numpy(y)).all()
        impl.same(indices, np.array([[[np.isnan(values).argmax()]]]))


# ------------------------------------------------------------------------------ windows of −inf, windows of nothing
def test_a_window_of_minus_infinity_has_an_index_inside(
    impl: Impl,
) -> None:  # pytorch#7645: −1, and a write out of bounds
    x = impl.array(np.full((1, 1, 3, 3), -INF))
    for ties in TIES:
        (y, indices), ctx = F.max_pool_forward(x, 2, 1, 1, ties=ties, return_indices=True)
        impl.same(y, np.full((1, 1, 4, 4), -INF))
        impl.same(indices, np.array([[[[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]]]))
        dx = impl.numpy(F.max_pool_backward(impl.array(np.ones((1, 1, 4, 4))), ctx))
        assert dx.sum() == {"first": 16, "all": 36, "split": 16}[ties]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("ties", TIES)
def test_a_window_without_cells_gives_the_lowest_value_and_passes_nothing(impl: Impl, ties: str, dtype: str) -> None:
    # two cells, windows of two taps four cells apart: (-3, 1), (-2, 2), (-1, 3), (0, 4)
    x = impl.array(np.ones((1, 1, 2), dtype))
    (y, indices), ctx = F.max_pool_forward(x, 2, 1, 3, 4, ties=ties, return_indices=True)
    nothing = reference.lowest(np.dtype(dtype))
    impl.same(y, line(1, nothing, nothing, 1, dtype=dtype))
    impl.same(indices, np.array([[[1, -1, -1, 0]]]))
    if np.dtype(dtype).kind == "f":
        dx = F.max_pool_backward(impl.array(line(1, 2, 4, 8, dtype=dtype)), ctx)
        impl.same(dx, line(8, 1, dtype=dtype))


# -------------------------------------------------------------------------------------------------- dtypes and bits
@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_integers_and_bool(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    if dtype == "bool":
        x = rng.integers(0, 2, (2, 3, 5, 6)).astype(bool)
    else:  # the ends of the range, where a sum or a float would be wrong
        info = np.iinfo(dtype)
        x = rng.choice(np.array([info.min, info.min + 1, 0, info.max - 1, info.max], dtype), (2, 3, 5, 6))
    pool = Pool((5, 6), (2, 3), (1, 2), ((1, 0), (0, 2)), (1, 1), True)
    expected, places = reference.max_pool(x, pool)
    impl.same(F.max_pool(impl.array(x), **options(pool)), expected)
    y, indices = F.max_pool(impl.array(x), **options(pool), return_indices=True)
    impl.same(y, expected)
    impl.same(indices, places)


@pytest.mark.parametrize("dtype", FLOATS)
def test_results_have_the_dtype_of_x(impl: Impl, dtype: str, rng: np.random.Generator) -> None:
    kind = impl.dtype(dtype)
    x = rng.standard_normal((2, 3, 6, 6)).astype(kind)
    pool = Pool((6, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    expected, _ = reference.max_pool(x, pool)
    for ties in TIES:
        y, ctx = F.max_pool_forward(impl.array(x), 3, 1, 1, ties=ties)
        impl.same(y, expected)
        dx = impl.numpy(F.max_pool_backward(impl.array(np.ones(expected.shape, kind)), ctx), x.shape, kind)
        wanted = reference.max_pool_backward(np.ones(expected.shape), x, pool, ties)
        np.testing.assert_allclose(dx.astype("float64"), wanted, rtol=2.0**-7)
        impl.numpy(F.max_pool_backward(impl.array(np.ones(expected.shape, "float32")), ctx), x.shape, kind)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_add_up_in_float32(impl: Impl, dtype: str) -> None:  # candle PR 3719, in backward
    kind = impl.dtype(dtype)
    x = np.zeros((1, 1, 48, 48), kind)
    x[0, 0, 24, 24] = 1  # the maximum of 48 x 48 overlapping windows; added up in half types, 256 or 2048 is the end
    _, ctx = F.max_pool_forward(impl.array(x), 48, 1, ((23, 24), (23, 24)))
    dx = impl.numpy(F.max_pool_backward(impl.array(np.ones((1, 1, 48, 48), kind)), ctx))
    assert float(dx[0, 0, 24, 24]) == 2304.0


@NAN_OF_BFLOAT16
@pytest.mark.parametrize("dtype", FLOATS)
def test_y_has_the_bits_of_the_cell_that_the_index_names(impl: Impl, dtype: str) -> None:
    kind, rng = impl.dtype(dtype), np.random.default_rng(3)
    bits = rng.integers(0, 256, 4 * 4 * 9 * 9 * kind.itemsize, np.uint8).view(f"u{kind.itemsize}")
    quiet = (bits.view(kind) != bits.view(kind)) & (rng.random(bits.size) < 0.9)
    bits[quiet] = 0  # mostly finite numbers, some NaNs with payloads
    x = bits.view(kind).reshape(4, 4, 9, 9)
    x[:, :, ::3] = rng.choice(np.array([-0.0, 0.0]), (4, 4, 3, 9)).astype(kind)
    for data_format in ("channels_first", "channels_last"):
        for inference in (True, False):
            op = F.max_pool if inference else lambda *a, **k: F.max_pool_forward(*a, **k)[0]
            array = impl.array(ordered(x, data_format))
            y, indices = op(array, 2, 1, 1, return_indices=True, data_format=data_format)
            host, at = impl.numpy(y, dtype=kind), impl.numpy(indices)
            if data_format == "channels_last":
                host, at = np.moveaxis(host, -1, 1), np.moveaxis(at, -1, 1)
            named = np.take_along_axis(x.view(f"u{kind.itemsize}").reshape(4, 4, 81), at.reshape(4, 4, -1), axis=2)
            assert host.tobytes() == named.tobytes()


def test_zeros_of_both_signs_are_a_tie(impl: Impl) -> None:
    for values in ((-0.0, 0.0), (0.0, -0.0)):
        (y, indices), ctx = F.max_pool_forward(impl.array(line(*values)), 2, ties="all", return_indices=True)
        impl.same(y, line(values[0]))
        impl.same(indices, np.array([[[0]]]))
        impl.same(F.max_pool_backward(impl.array(line(3.0)), ctx), line(3.0, 3.0))


def test_gradients_of_integers(impl: Impl) -> None:
    _, ctx = F.max_pool_forward(impl.array(line(1, 3, 2, 4, dtype="int32")), 2)
    impl.same(F.max_pool_backward(impl.array(line(5, 6, dtype="int32")), ctx), line(0, 5, 0, 6, dtype="int32"))
    with pytest.raises(TypeError, match="dy"):
        F.max_pool_backward(impl.array(line(5, 6, dtype="float32")), ctx)


# ------------------------------------------------------------------------------------------------------------ saved
@pytest.mark.parametrize(
    ("kernel", "ties", "per_output"),
    [
        (2, "first", 1),  # pytorch#103785: eight bytes an output
        (16, "first", 1),
        ((16, 17), "first", 2),
        (2, "all", 1),
        (3, "all", 2),
        (3, "split", 2),
        ((4, 4), "split", 2),
        ((1, 17), "all", 3),
    ],
)
def test_what_the_context_keeps(impl: Impl, kernel: Any, ties: str, per_output: int) -> None:
    x = impl.array(np.zeros((2, 3, 34, 34)))
    y, ctx = F.max_pool_forward(x, kernel, 17, ties=ties)
    assert ctx.nbytes == per_output * math.prod(y.shape)
    _, with_indices = F.max_pool_forward(x, kernel, 17, ties=ties, return_indices=True)
    assert with_indices.nbytes == ctx.nbytes


@pytest.mark.parametrize("kernel", [(16, 16), (16, 17), (1, 300)])
def test_large_windows_find_their_last_cell(impl: Impl, kernel: tuple[int, int]) -> None:
    for last in ((kernel[0] - 1, 0), (kernel[0] - 1, kernel[1] - 1)):
        x = np.zeros((1, 1, *kernel), "float32")
        x[(0, 0, *last)] = 1
        for ties in ("first", "split") if kernel == (16, 17) else ("first",):
            (_, indices), ctx = F.max_pool_forward(impl.array(x), kernel, ties=ties, return_indices=True)
            assert int(impl.numpy(indices)[0, 0, 0, 0]) == last[0] * kernel[1] + last[1]
            impl.same(F.max_pool_backward(impl.array(np.ones((1, 1, 1, 1), "float32")), ctx), x)


@pytest.mark.parametrize("kernel", [(1, 2**31 - 1), (2**16, 2**16 + 1), (2**31 - 1, 2**31 - 1)])
def test_windows_far_larger_than_the_input(impl: Impl, kernel: tuple[int, int]) -> None:  # pytorch#189664
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    (y, indices), ctx = F.max_pool_forward(impl.array(x), kernel, 1, "same", return_indices=True)
    assert impl.numpy(y).tolist() == [[[[5.0] * 3] * 2 if kernel[0] > 1 else [[2.0] * 3, [5.0] * 3]]]
    assert impl.numpy(indices).tolist() == [[[[5] * 3] * 2 if kernel[0] > 1 else [[2] * 3, [5] * 3]]]
    dx = impl.numpy(F.max_pool_backward(impl.array(np.ones_like(x)), ctx))
    assert dx.sum() == 6
    for ties in ("all", "split"):
        _, ctx = F.max_pool_forward(impl.array(x), (999, 999), 1, "same", ties=ties)
        assert impl.numpy(F.max_pool_backward(impl.array(np.ones_like(x)), ctx)).sum() == 6


def test_inference_works_out_no_argmax(monkeypatch: pytest.MonkeyPatch) -> None:  # pytorch#41099
    def unwanted(*_: Any) -> None:
        raise AssertionError("an argmax nobody asked for")

    max_pool, maxima = (sys.modules[f"cnnlayers.functional.{name}"] for name in ("max_pool", "window_maxima"))
    monkeypatch.setattr(maxima, "argmax_dtype_name", unwanted)
    monkeypatch.setattr(max_pool, "_ties", unwanted)
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    with kernels.mode("off"):
        for ties in TIES:
            assert F.max_pool(x, 2, ties=ties).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]
        with pytest.raises(AssertionError):
            F.max_pool_forward(x, 2)


# ------------------------------------------------------------------------------------------------------------ sizes
def test_a_plane_of_over_2_to_31_cells() -> None:  # pytorch#68418: offsets overflowed 32 bits
    side = 47000
    x = np.zeros((1, 1, side, side), "uint8")  # 2 GiB that are never touched, so no memory is used
    x[0, 0, -1, -1] = 7
    with kernels.mode("off"):  # a kernel may copy
        y, indices = F.max_pool(x, 1, side - 1, return_indices=True)
    assert y.tolist() == [[[[0, 0], [0, 7]]]]
    assert indices.tolist() == [[[[0, side - 1], [side * (side - 1), side * side - 1]]]]


def test_a_batch_of_over_65535(impl: Impl) -> None:  # pytorch#16998: the batch in grid.y
    x = np.arange(70000 * 2, dtype="float32").reshape(70000, 1, 2)
    y, ctx = F.max_pool_forward(impl.array(x), 2)
    impl.same(y, x[:, :, 1:])
    dx = impl.numpy(F.max_pool_backward(impl.array(x[:, :, 1:]), ctx))
    np.testing.assert_array_equal(dx[:, :, 0], 0)
    np.testing.assert_array_equal(dx[:, :, 1:], x[:, :, 1:])


# ----------------------------------------------------------------------------------------------------------- errors
def test_bad_options(impl: Impl) -> None:
    x = impl.array(np.zeros((1, 1, 4, 4), "float32"))
    for op in (F.max_pool, F.max_pool_forward):
        with pytest.raises(ValueError, match="ties must be one of first, all, split; got 'last'"):
            op(x, 2, ties="last")
        with pytest.raises(TypeError, match="return_indices must be True or False, got 1"):
            op(x, 2, return_indices=1)
        with pytest.raises(TypeError, match="positional"):
            op(x, 2, 2, 0, 1, False)


def test_the_gradient_is_of_the_values(impl: Impl) -> None:
    (y, indices), ctx = F.max_pool_forward(impl.array(np.zeros((1, 1, 4), "float32")), 2, return_indices=True)
    with pytest.raises(TypeError, match="dy"):
        F.max_pool_backward((y, indices), ctx)
    with pytest.raises(TypeError, match="dy"):
        F.max_pool_backward(indices, ctx)


@pytest.mark.parametrize(
    ("kind", "dy_kind", "said"), [("bool", "bool", "bool has no gradient"), ("int8", "float64", "x's dtype int8")]
)
def test_dy_of_integers_and_bools(kind, dy_kind, said) -> None:
    y, ctx = F.max_pool_forward(np.ones((1, 1, 4, 4), kind), 2)
    with pytest.raises(TypeError, match=said):
        F.max_pool_backward(y.astype(dy_kind), ctx)
