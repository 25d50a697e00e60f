"""Long sums keep their digits: a million times 0.1, which float32 added up one by one makes 0.10096 of on the average.

Every sum of every op is here, with as many terms as run in a second or two; the right value is known without adding up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers import kernels
from cnnlayers.autograd import Tensor

from .cases.arrays import FORMATS
from .implementations import Impl, numpy_dtype

TENTH = float(np.float32(0.1))
MANY = 10**6
MODES = pytest.mark.parametrize("mode", ["auto", "off"])
PRODUCTS = 5e-6  # relative: BLAS adds up some hundred terms one after another


def tenths(*shape: int, data_format: str = "channels_first", dtype: Any = "float32") -> np.ndarray:
    """0.1 everywhere, in a shape given channels first."""
    shape = (shape[0], *shape[2:], shape[1]) if data_format == "channels_last" else shape
    return np.full(shape, TENTH, dtype)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, "float32")


def check(found: Any, expected: Any, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found, "float64"), expected, rtol=rtol)


# --------------------------------------------------------------------------------------------------------------- pools
@MODES
@FORMATS
@pytest.mark.parametrize("lengths", [(MANY,), (1000, 1000), (100, 100, 100)])
def test_global_averages(mode: str, data_format: str, lengths: tuple[int, ...]) -> None:
    x = tenths(1, 2, *lengths, data_format=data_format)
    with kernels.mode(mode):
        check(F.adaptive_avg_pool(x, 1, data_format=data_format), TENTH)
        check(F.avg_pool(x, lengths, data_format=data_format), TENTH)
        check(F.sum_pool(x, lengths, data_format=data_format), TENTH * MANY)
        check(F.lp_pool(x, lengths, 1, data_format=data_format), TENTH * MANY)
        check(F.lp_pool(x, lengths, 2, data_format=data_format), TENTH * MANY**0.5)
        check(F.lp_pool(x, lengths, 10, data_format=data_format), TENTH * MANY**0.1)


@pytest.mark.parametrize("ones_", [True, False])
def test_more_cells_than_float32_counts(ones_: bool) -> None:  # numpy#22956, numpy#29772: 0.839
    """More than 2**24: the compiled kernels leave these to the array code."""
    x = ones(1, 20_000_000, 2) if ones_ else tenths(1, 20_000_000, 2)
    check(F.adaptive_avg_pool(x, 1, data_format="channels_last"), 1.0 if ones_ else TENTH)


@MODES
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_all_dtypes(mode: str, dtype: str) -> None:
    kind = numpy_dtype(dtype)
    for data_format in ("channels_first", "channels_last"):
        x = tenths(1, 2, MANY, data_format=data_format, dtype=kind)
        with kernels.mode(mode):
            y = F.adaptive_avg_pool(x, 1, data_format=data_format)
        check(y, float(x.flat[0]))


@MODES
@FORMATS
def test_large_windows(mode: str, data_format: str) -> None:
    """Windows that overlap, and fewer than their taps; two of half the input; three that differ in size."""
    x = tenths(1, 1, MANY, data_format=data_format)
    with kernels.mode(mode):
        check(F.avg_pool(x, MANY - 4, 1, data_format=data_format), TENTH)
        check(F.avg_pool(x, MANY // 2, data_format=data_format), TENTH)
        check(F.sum_pool(x, MANY // 2, MANY // 4, data_format=data_format), TENTH * (MANY // 2))
        plane = tenths(1, 1, 1000, 1000, data_format=data_format)
        check(F.sum_pool(plane, 900, 50, data_format=data_format), TENTH * 900**2)
        check(F.avg_pool(plane, (3, 1000), data_format=data_format), TENTH)
        check(F.avg_pool(plane, (1000, 3), data_format=data_format), TENTH)
        check(F.adaptive_avg_pool(tenths(1, 1, 100_000, data_format=data_format), 3, data_format=data_format), TENTH)


@MODES
@FORMATS
def test_windows_over_one_cell(mode: str, data_format: str) -> None:
    """Backward adds up over the windows that a cell is in."""
    length, kernel = 2001, 1000
    x, dy = (tenths(1, 1, n, data_format=data_format) for n in (length, length - kernel + 1))
    peak = np.zeros_like(x)
    peak.reshape(-1)[kernel] = 1.0
    given: dict[str, Any] = {"kernel_size": kernel, "stride": 1, "data_format": data_format}
    most = np.minimum(np.minimum(np.arange(length) + 1, kernel), np.arange(length, 0, -1))
    with kernels.mode(mode):
        check(F.sum_pool_backward(dy, F.sum_pool_forward(x, **given)[1]).reshape(-1), TENTH * most)
        check(F.avg_pool_backward(dy, F.avg_pool_forward(x, **given)[1]).reshape(-1), TENTH * most / kernel)
        check(F.lp_pool_backward(dy, F.lp_pool_forward(x, norm_type=1, **given)[1]).reshape(-1), TENTH * most)
        x = tenths(1, 1, 1, data_format=data_format)
        for op, count in (("adaptive_avg_pool", 3000), ("adaptive_max_pool", 3000)):  # one cell, in all windows
            y, ctx = getattr(F, f"{op}_forward")(x, count, data_format=data_format)
            check(getattr(F, f"{op}_backward")(np.full_like(y, TENTH), ctx), TENTH * count)


@MODES
@pytest.mark.parametrize("ties", ["first", "all", "split"])
def test_a_maximum_of_many_windows(mode: str, ties: str) -> None:
    kernel = 4000
    x = np.zeros((1, 1, 2 * kernel), "float32")
    x[..., kernel] = 1.0
    with kernels.mode(mode):
        y, ctx = F.max_pool_forward(x, kernel, 1, ties=ties)
        dx = F.max_pool_backward(np.full_like(y, TENTH), ctx)
    check(dx[..., kernel], TENTH * kernel)
    assert dx.dtype == np.float32


@MODES
@FORMATS
def test_a_border_of_many_cells(mode: str, data_format: str) -> None:
    x = tenths(1, 2, 2, data_format=data_format)
    with kernels.mode(mode):
        y, ctx = F.pad_forward(x, ((20_000, 0),), "edge", data_format=data_format)
        dx = F.pad_backward(np.full_like(y, TENTH), ctx)
    check(dx[(0, 0, 0) if data_format == "channels_first" else (0, 0)], TENTH * 20_001)
    assert dx.dtype == np.float32


# --------------------------------------------------------------------------------------------------------------- norms
@MODES
@FORMATS
def test_norms(mode: str, data_format: str, rng: np.random.Generator) -> None:
    shape = (1, 2, MANY) if data_format == "channels_first" else (1, MANY, 2)
    x, dy = rng.random(shape, np.float32), np.full(shape, TENTH, "float32")
    axes = (0, 2) if data_format == "channels_first" else (0, 1)
    wide = x.astype("float64")
    mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    gamma = ones(2)
    with kernels.mode(mode):
        for op, given in (("batch_norm", {}), ("instance_norm", {})):
            y, ctx = getattr(F, f"{op}_forward")(x, gamma, gamma, data_format=data_format, eps=0.0, **given)
            np.testing.assert_allclose(y, (wide - mean) / np.sqrt(var) + 1, atol=1e-6)
            _, dgamma, dbeta = getattr(F, f"{op}_backward")(dy, ctx)
            check(dbeta, TENTH * MANY)
            np.testing.assert_allclose(dgamma, 0.0, atol=1e-6 * TENTH * MANY)
        y, ctx = F.layer_norm_forward(x, shape[1:], np.ones(shape[1:], "float32"), eps=0.0)
        np.testing.assert_allclose(y, (wide - wide.mean()) / wide.std() + 0, atol=1e-6)
        y, ctx = F.rms_norm_forward(tenths(*shape), shape[1:], eps=0.0)
        check(y, 1.0)


@MODES
def test_many_rows_share_a_parameter(mode: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((MANY // 4, 4)).astype("float32")
    with kernels.mode(mode):
        _, ctx = F.layer_norm_forward(x, 4, ones(4), ones(4))
        _, dgamma, dbeta = F.layer_norm_backward(tenths(*x.shape), ctx)
    check(dbeta, TENTH * len(x))
    wide = x.astype("float64")
    xhat = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(dgamma, TENTH * xhat.sum(0), atol=1e-6 * np.abs(TENTH * xhat).sum(0).max())


@MODES
def test_rows_in_columns(mode: str) -> None:
    """Rows whose cells do not lie on end."""
    with kernels.mode(mode):
        check(F.rms_norm(np.asfortranarray(tenths(50, 1000)), 1000, eps=0.0), 1.0)


@MODES
def test_responses_of_many_channels(mode: str) -> None:
    with kernels.mode(mode):
        y = F.local_response_norm(tenths(1, 4000), 4000, alpha=1.0, beta=1.0, k=0.0)
    check(y[0, 2000], TENTH / TENTH**2)


# ------------------------------------------------------------------------------------- convolutions and linear maps
@MODES
@FORMATS
@pytest.mark.parametrize(
    ("x", "weight", "groups"),
    [
        ((1, 2, MANY), (3, 2, 3), 1),
        ((1, 2, MANY), (3, 2, 1), 1),
        ((4, 2, 500, 500), (3, 2, 3, 3), 1),
        ((1, 2, MANY), (2, 1, 3), 2),
        ((1, 2, 1000, 1000), (2, 1, 3, 3), 2),
        ((4, 16, 500, 500), (16, 16, 3, 3), 1),
    ],
    ids=["line", "point", "plane", "depthwise line", "depthwise plane", "winograd"],
)
def test_gradients_of_a_convolution(
    mode: str, data_format: str, x: tuple[int, ...], weight: tuple[int, ...], groups: int
) -> None:
    array = tenths(*x, data_format=data_format)
    with kernels.mode(mode):
        y, ctx = F.conv_forward(
            array, np.zeros(weight, "float32"), ones(weight[0]), groups=groups, data_format=data_format
        )
        _, dweight, dbias = F.conv_backward(np.ones_like(y), ctx, needs_dx=False)
    count = y.size // weight[0]
    check(dbias, float(count))
    check(dweight, TENTH * count, PRODUCTS)


@MODES
def test_long_kernels(mode: str) -> None:
    """Of a line: 20,000 taps of several filters, and one channel a group."""
    kernel = 5000
    with kernels.mode(mode):
        for groups in (1, 2):
            x, weight = tenths(1, 2, 2 * kernel), ones(2, 2 // groups, kernel)
            y, ctx = F.conv_forward(x, weight, ones(2), groups=groups)
            check(y, TENTH * kernel * 2 / groups + 1, PRODUCTS)
            dx, _, _ = F.conv_backward(np.full_like(y, TENTH), ctx)
            check(dx[0, 0, kernel - 1 : kernel + 1], TENTH * kernel * 2 / groups, PRODUCTS)


@MODES
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (100, 90)])
def test_linear(mode: str, rows: int, columns: int) -> None:
    many = MANY // 10 if rows == 100 else MANY
    with kernels.mode(mode):
        y, ctx = F.linear_forward(tenths(rows, many), ones(columns, many), ones(columns))
        check(y, TENTH * many + 1, PRODUCTS)
        y, ctx = F.linear_forward(tenths(many, columns), ones(rows, columns), ones(rows))
        _, dweight, dbias = F.linear_backward(np.full_like(y, TENTH), ctx)
    check(dweight, TENTH * TENTH * many, PRODUCTS)
    check(dbias, TENTH * many)


# ------------------------------------------------------------------------------------------------ losses and autograd
def test_loss() -> None:
    """The mean over many rows, the sum over many classes."""
    x, labels = np.zeros((MANY, 2), "float32"), np.zeros(MANY, int)
    check(F.softmax_cross_entropy(x, labels), np.log(2))
    x = np.zeros((1, MANY), "float32")
    y, ctx = F.softmax_cross_entropy_forward(x, labels[:1])
    check(y, np.log(MANY))
    check(F.softmax_cross_entropy_backward(1.0, ctx)[0, :2], [1 / MANY - 1, 1 / MANY])


def test_tensors() -> None:
    x = Tensor(tenths(MANY, 2), requires_grad=True)
    check(x.sum(0).data, TENTH * MANY)
    check(x.mean(0).data, TENTH)
    row = Tensor(ones(1, 2), requires_grad=True)
    (x * row).sum().backward()
    check(row.grad, TENTH * MANY)
    table = Tensor(ones(3, 2), requires_grad=True)
    table[np.zeros(MANY, int)].backward(tenths(MANY, 2))
    check(table.grad[0], TENTH * MANY)
    weight, total = Tensor(ones(2), requires_grad=True), Tensor(np.zeros(2, "float32"))
    for _ in range(3000):
        total = total + weight * TENTH
    total.sum().backward()
    check(weight.grad, TENTH * 3000)


# ------------------------------------------------------------------------------------------------------ other backends
@FORMATS
def test_every_implementation(impl: Impl, data_format: str) -> None:
    """Shorter sums, for the emulator's sake, that lose digits all the same if added up one by one."""
    many = 20_000
    x = impl.array(tenths(1, 1, many, data_format=data_format))
    check(impl.numpy(F.adaptive_avg_pool(x, 1, data_format=data_format)), TENTH)
    check(impl.numpy(F.sum_pool(x, many - 2, 1, data_format=data_format)), TENTH * (many - 2))
    check(impl.numpy(F.lp_pool(x, many, 1, data_format=data_format)), TENTH * many)
    kernel = 1100
    peak = tenths(1, 1, 2 * kernel - 1, data_format=data_format)
    peak.reshape(-1)[kernel - 1] = 1.0  # the maximum of all windows
    dy = impl.array(tenths(1, 1, kernel, data_format=data_format))
    for op in ("sum_pool", "max_pool"):
        _, ctx = getattr(F, f"{op}_forward")(impl.array(peak), kernel, 1, data_format=data_format)
        dx = impl.numpy(getattr(F, f"{op}_backward")(dy, ctx)).reshape(-1)
        check(dx[kernel - 1], TENTH * kernel)
    y, ctx = F.linear_forward(impl.array(tenths(2, many)), impl.array(ones(3, many)))
    check(impl.numpy(y), TENTH * many, PRODUCTS)
