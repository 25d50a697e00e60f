"""Arguments and shapes: every form, every rule against counting windows one by one, every error and what it says."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cnnlayers import specs
from cnnlayers.specs import AdaptiveAxis, Axis, Window, arguments

from .reference.pool import windows_of

FIRST, LAST = "channels_first", "channels_last"


# ------------------------------------------------------------------------------------------- the windows, one by one
def axes() -> list[tuple[int, int, int, int, tuple[int, int], bool]]:
    """(length, kernel, stride, dilation, pad, ceil): every small case that is allowed."""
    cases = []
    for length, kernel, stride, dilation in itertools.product(range(1, 7), range(1, 4), range(1, 5), range(1, 4)):
        reach = dilation * (kernel - 1) + 1
        for pad in itertools.product(range(reach), repeat=2):
            if length + sum(pad) >= reach:
                cases += [(length, kernel, stride, dilation, pad, ceil) for ceil in (False, True)]
    return cases


def made(length: int, kernel: int, stride: int, dilation: int, pad: tuple[int, int], ceil: bool) -> Axis:
    return specs.pool_window((1, 1, length), kernel, stride, (pad,), dilation, ceil, FIRST).axes[0]


def test_windows_and_taps_are_those_counted_one_by_one() -> None:
    # pytorch#45357, #88144: one rule for all windowed ops, and no window that is wholly outside on the right
    for case in axes():
        length, kernel, stride, dilation, pad, _ = case
        windows, axis = windows_of(*case), made(*case)
        assert axis == Axis(length, len(windows), kernel, stride, dilation, *pad), case
        read = sorted((tap, o, w[tap]) for o, w in enumerate(windows) for tap in range(kernel) if 0 <= w[tap] < length)
        found = []
        for tap, which, cells in specs.taps(axis):
            pairs = zip(range(len(windows))[which], range(length)[cells], strict=True)
            found += [(tap, o, cell) for o, cell in pairs]
            assert which.stop <= len(windows), case  # plain slices, within the arrays
            assert cells.stop <= length, case
        assert sorted(found) == read, case
        assert list(specs.taps(axis, backwards=True)) == list(specs.taps(axis))[::-1], case
        reach = [cell for w in windows for cell in w]
        assert axis.whole_with(*pad) == all(-pad[0] <= cell < length + pad[1] for cell in reach), case
        cells = [cell for w in windows for cell in w if 0 <= cell < length]
        assert axis.whole == all(0 <= cell < length for w in windows for cell in w), case
        if axis.disjoint:
            assert len(cells) == len(set(cells)), case


def test_same_padding_gives_ceil_of_length_over_stride_with_the_least_padding() -> None:
    for length, kernel, stride, dilation in itertools.product(range(1, 10), range(1, 5), range(1, 5), range(1, 4)):
        shape, wanted = (1, 1, length), -(-length // stride)
        upper = specs.pool_window(shape, kernel, stride, "same", dilation, False, FIRST).axes[0]
        lower = specs.pool_window(shape, kernel, stride, "same_lower", dilation, False, FIRST).axes[0]
        assert (upper.out, lower.out) == (wanted, wanted)
        assert (upper.before, upper.after) == (lower.after, lower.before)
        assert 0 <= upper.after - upper.before <= 1  # the extra cell goes after
        total = upper.before + upper.after
        reach = specs.effective(kernel, dilation)
        if total:
            assert (length + total - 1 - reach) // stride + 1 < wanted  # one cell less would not do
        assert specs.pool_window(shape, kernel, stride, "same", dilation, True, FIRST).axes[0].out == wanted


def test_valid_and_full_padding() -> None:
    window = specs.pool_window((1, 1, 9, 9), (3, 2), 1, "full", (2, 3), False, FIRST)
    assert [(a.before, a.after, a.out) for a in window.axes] == [(4, 4, 13), (3, 3, 12)]
    window = specs.pool_window((1, 1, 9, 9), (3, 2), 1, "valid", (2, 3), False, FIRST)
    assert [(a.before, a.after, a.out) for a in window.axes] == [(0, 0, 5), (0, 0, 6)]


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (1, [(1, 1), (1, 1)]),
        (np.int64(1), [(1, 1), (1, 1)]),
        (np.array(1), [(1, 1), (1, 1)]),
        ((1, 2), [(1, 1), (2, 2)]),
        ([1, 2], [(1, 1), (2, 2)]),
        (np.array([1, 2]), [(1, 1), (2, 2)]),
        (((1, 0), (2, 1)), [(1, 0), (2, 1)]),
        ([[1, 0], (2, 1)], [(1, 0), (2, 1)]),
        (np.array([[1, 0], [2, 1]], np.uint8), [(1, 0), (2, 1)]),
        ((1, (2, 0)), [(1, 1), (2, 0)]),
        (((np.int32(1), 0), 2), [(1, 0), (2, 2)]),
    ],
)
def test_every_form_of_padding(padding: Any, expected: list[tuple[int, int]]) -> None:
    pads = [(a.before, a.after) for a in specs.pool_window((1, 1, 6, 6), 3, 1, padding, 1, False, FIRST).axes]
    assert pads == expected
    assert list(specs.pad_spec((1, 1, 6, 6), padding, "constant", FIRST).grow) == expected
    assert all(type(n) is int for pair in pads for n in pair)


@pytest.mark.parametrize("size", [3, np.int8(3), [3, 3], (3, np.uint64(3)), np.array([3, 3]), np.array(3), range(2, 4)])
def test_every_form_of_a_size(size: Any) -> None:
    expected = (2, 3) if isinstance(size, range) else (3, 3)
    window = specs.pool_window((1, 1, 9, 9), size, size, 0, size, False, FIRST)
    assert window.kernel == expected
    assert tuple(a.stride for a in window.axes) == expected
    assert tuple(a.dilation for a in window.axes) == expected
    assert all(type(n) is int for n in window.kernel)


def test_stride_none_is_the_kernel() -> None:
    assert [a.stride for a in specs.pool_window((1, 1, 9, 9), (2, 3), None, 0, 1, False, FIRST).axes] == [2, 3]


@pytest.mark.parametrize(("ndim", "data_format"), [*itertools.product((1, 2, 3), (FIRST, LAST))])
def test_shapes_of_one_to_three_axes_in_both_formats(ndim: int, data_format: str) -> None:
    spatial, out = (7, 8, 9)[:ndim], (3, 4, 4)[:ndim]
    shape = (2, 5, *spatial) if data_format == FIRST else (2, *spatial, 5)
    window = specs.pool_window(shape, 2, 2, 0, 1, False, data_format)
    assert window.out_shape == ((2, 5, *out) if data_format == FIRST else (2, *out, 5))
    assert (window.layout.channels, window.layout.lengths) == (5, spatial)
    assert window.layout.with_spatial(out, 4)[window.layout.channel] == 4
    index = window.layout.at(*range(ndim))
    assert np.zeros(shape)[index].shape == (2, 5)


# ------------------------------------------------------------------------------------------------------------- errors
GOOD: dict[str, Any] = {
    "shape": (2, 3, 6, 6),
    "kernel_size": 3,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "data_format": FIRST,
}
BAD = [
    # argument, value, error, what its message says
    ("shape", (2, 3), ValueError, r"x must have .* 1 to 3 spatial axes.*\(2, 3\)"),
    ("shape", (2, 3, 4, 4, 4, 4), ValueError, r"x must have .* 1 to 3 spatial axes.*\(2, 3, 4, 4, 4, 4\)"),
    ("shape", (2, 3, 0, 6), ValueError, r"x has a spatial axis without cells.*\(2, 3, 0, 6\)"),
    ("data_format", "NCHW", ValueError, "data_format must be 'channels_first' or 'channels_last', got 'NCHW'"),
    ("data_format", None, TypeError, "data_format must be a str, got NoneType"),
    ("ceil_mode", 1, TypeError, "ceil_mode must be True or False, got 1"),
    ("ceil_mode", "yes", TypeError, "ceil_mode must be True or False, got 'yes'"),
    ("kernel_size", 7, ValueError, r"covers 7 cells \(kernel_size 7, dilation 1\), more .* 6 \+ padding \(0, 0\)"),
    ("kernel_size", (3, 7), ValueError, "kernel_size 7"),
    ("dilation", 3, ValueError, r"covers 7 cells \(kernel_size 3, dilation 3\)"),
    ("dilation", 2**31 - 1, ValueError, "dilation 2147483647"),  # pytorch#189664
    ("kernel_size", 2**31 - 1, ValueError, "kernel_size 2147483647"),
    ("padding", 3, ValueError, r"padding must be smaller than the effective kernel \(3 cells\), got \(3, 3\)"),
    (
        "padding",
        ((0, 3), 0),
        ValueError,
        r"padding must be smaller than the effective kernel \(3 cells\), got \(0, 3\)",
    ),
    ("padding", -1, ValueError, "padding must be at least 0, got -1"),
    ("padding", ((0, -1), (0, 0)), ValueError, "padding must be at least 0, got -1"),
    ("padding", (1, 1, 1), ValueError, r"padding needs .* per spatial axis \(2\), got \(1, 1, 1\)"),
    ("padding", ((1, 1, 1), (0, 0)), ValueError, r"padding: an axis has two sides.*\(1, 1, 1\)"),
    ("padding", ((1, 1),), ValueError, r"padding needs .* per spatial axis \(2\), got \(\(1, 1\),\)"),
    ("padding", "SAME", ValueError, "padding must be numbers, 'valid', 'same', 'same_lower' or 'full', got 'SAME'"),
    ("padding", 1.0, TypeError, "padding must be an int, got 1.0 of type float"),
    ("padding", (1, None), TypeError, "padding must be an int, got None"),
    ("padding", ((0, 1), (0, True)), TypeError, "padding must be an int, got True of type bool"),
    ("padding", b"same", TypeError, "padding"),
    *[
        (name, value, error, f"{name} {said}")
        for name in ("kernel_size", "stride", "dilation")
        for value, error, said in [
            (0, ValueError, "must be at least 1, got 0"),
            (-2, ValueError, "must be at least 1, got -2"),
            ((2, 0), ValueError, "must be at least 1, got 0"),
            ((2, 2, 2), ValueError, r"needs one entry per spatial axis \(2\), got 3: \(2, 2, 2\)"),
            ((2,), ValueError, r"needs one entry per spatial axis \(2\), got 1: \(2,\)"),
            ((), ValueError, r"needs one entry per spatial axis \(2\), got 0"),
            (2.0, TypeError, "must be an int, got 2.0 of type float"),
            (True, TypeError, "must be an int, got True of type bool"),
            ((2, False), TypeError, "must be an int, got False of type bool"),
            (np.float32(2), TypeError, "must be an int"),
            (np.array([2.0, 2.0]), TypeError, "must be an int"),
            (np.bool_(True), TypeError, "must be an int"),
            ("2", TypeError, "must be an int or one per spatial axis, got '2'"),
            (2**31, ValueError, r"must be below 2\*\*31, got 2147483648"),
            (10**30, ValueError, r"must be below 2\*\*31"),
        ]
    ],
    ("kernel_size", None, TypeError, "kernel_size must be an int, got None"),
    ("kernel_size", (2**31 - 1,) * 2, ValueError, "kernel_size 2147483647"),
    ("dilation", None, TypeError, "dilation must be an int, got None"),
]


@pytest.mark.parametrize(
    ("argument", "value", "error", "said"), BAD, ids=lambda v: str(v) if type(v) is not str else v[:20]
)
def test_a_bad_argument_is_an_error_that_names_it(argument: str, value: Any, error: type[Exception], said: str) -> None:
    specs.pool_window(*GOOD.values())  # fails only for the one that is changed
    with pytest.raises(error, match=said):
        specs.pool_window(*(GOOD | {argument: value}).values())


def test_huge_arguments_that_fit_neither_overflow_nor_take_long() -> None:  # pytorch#189664
    huge, start = 2**31 - 1, time.thread_time()  # CPU time, which other processes do not change
    one = specs.pool_window((1, 1, 5), 1, huge, 0, huge, True, FIRST).axes[0]
    assert (one.out, [*specs.taps(one)]) == (1, [(0, slice(0, 1), slice(0, 1, huge))])
    wide = specs.pool_window((1, 1, 5), huge, 1, "same", 1, False, FIRST).axes[0]
    assert wide.out == 5
    assert len([*specs.taps(wide)]) == 9
    two = specs.pool_window((1, 1, 5), 2, 1, "same", huge, False, FIRST).axes[0]
    assert [*specs.taps(two)] == []  # its two taps straddle the input
    far = specs.pool_window((1, 1, 5), huge, 10**8, "full", 1, False, FIRST).axes[0]
    assert far.out == 22
    assert len([*specs.taps(far)]) == 21 * 5 + 1  # and not the 2**31 others, which see only padding
    with pytest.raises(ValueError, match=r"kernel_size must have fewer than 2\*\*63 taps in all, got \(2147483647, "):
        specs.pool_window((1, 1, 2, 2, 2), huge, 1, "same", 1, False, FIRST)
    assert time.thread_time() - start < 20  # hours, were it to count the taps


# --------------------------------------------------------------------------------------------------------- convolution
def test_a_convolution_follows_the_same_rule_with_any_padding() -> None:
    window = specs.conv_window((1, 3, 5, 6), (3, 2), (2, 1), ((4, 9), (0, 1)), (1, 2), FIRST)
    assert window.out_lengths == ((5 + 13 - 3) // 2 + 1, 6 + 1 - 3 + 1)
    assert specs.conv_window((1, 7, 8, 3), (3, 3), 2, "same", 1, LAST).out_shape == (1, 4, 4, 3)
    with pytest.raises(ValueError, match="covers 5 cells"):
        specs.conv_window((1, 3, 4, 9), (5, 5), 1, 0, 1, FIRST)


def test_a_transposed_convolution_undoes_a_convolutions_lengths() -> None:
    for kernel, stride, dilation, length in itertools.product(range(1, 4), range(1, 4), range(1, 3), range(1, 5)):
        reach = specs.effective(kernel, dilation)
        for pad, more in itertools.product(itertools.product(range(3), repeat=2), range(max(stride, dilation))):
            size = (length - 1) * stride + reach + more - sum(pad)
            arguments_ = ((1, 4, length), (kernel,), stride, (pad,), more, dilation, FIRST, 2)
            if size < 1:
                with pytest.raises(ValueError, match="padding"):
                    specs.transposed_window(*arguments_)
                continue
            window = specs.transposed_window(*arguments_)
            assert window.layout.shape == (1, 2, size)
            assert window.out_lengths == (length,)
            if more < stride:
                assert specs.out_length(size, kernel, stride, dilation, pad, False) == length


def test_errors_of_a_transposed_convolution() -> None:
    good: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 1}

    def window(**changed: Any) -> Window:
        return specs.transposed_window((1, 4, 5, 5), (3, 3), *(good | changed).values(), FIRST, 2)

    window()
    for changed, error, said in [
        ({"padding": "same"}, ValueError, "padding of a transposed convolution must be numbers, got 'same'"),
        ({"output_padding": 2}, ValueError, r"output_padding must be smaller than stride or dilation \(2, 1\), got 2"),
        ({"output_padding": -1}, ValueError, "output_padding must be at least 0, got -1"),
        ({"padding": 9}, ValueError, r"padding \(9, 9\) leaves"),
        ({"stride": 0}, ValueError, "stride"),
        ({"dilation": 1.5}, TypeError, "dilation"),
    ]:
        with pytest.raises(error, match=said):
            window(**changed)


# -------------------------------------------------------------------------------------------------------------- unpool
def test_unpool_sizes() -> None:
    def lengths(**options: Any) -> tuple[int, ...]:
        given = {"kernel_size": 3, "stride": 2, "padding": 1, "output_size": None} | options
        return specs.unpool_window((2, 3, 4, 5), *given.values(), FIRST).layout.shape

    assert lengths() == (2, 3, 7, 9)
    assert lengths(padding=((1, 0), (0, 1))) == (2, 3, 8, 10)
    assert lengths(stride=None, padding=0) == (2, 3, 12, 15)
    assert lengths(output_size=8) == (2, 3, 8, 8)
    assert lengths(output_size=(6, 10)) == (2, 3, 6, 10)
    assert lengths(output_size=(2, 3, 8, 10)) == (2, 3, 8, 10)  # the whole shape, as PyTorch also takes
    for options, error, said in [
        ({"output_size": (9, 9)}, ValueError, r"output_size must be within a stride of \(7, 9\).*got \(9, 9\)"),
        ({"output_size": (5, 9)}, ValueError, "output_size"),
        ({"output_size": (2, 9, 8, 10)}, ValueError, "output_size"),
        ({"output_size": (8, 8, 8)}, ValueError, "output_size"),
        ({"output_size": (8, 8.0)}, TypeError, "output_size"),
        ({"output_size": "8"}, TypeError, "output_size"),
        ({"padding": "same"}, ValueError, "padding of max_unpool must be numbers, got 'same'"),
        ({"padding": 3}, ValueError, r"padding must be smaller than the effective kernel \(3 cells\)"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"stride": -1}, ValueError, "stride"),
    ]:
        with pytest.raises(error, match=said):
            lengths(**options)
    with pytest.raises(ValueError, match="leaves an output"):
        specs.unpool_window((1, 1, 1), 2, 1, 1, None, FIRST)


# ------------------------------------------------------------------------------------------------------------ adaptive
def parts(length: int, out: int) -> list[range]:
    """The cells of each adaptive window, by fractions."""
    part = Fraction(length, out)
    return [range(math.floor(o * part), math.ceil((o + 1) * part)) for o in range(out)]


def test_widest_narrowest_and_adjoint_windows_are_those_counted_one_by_one() -> None:
    for length, out in itertools.product(range(1, 25), range(1, 27)):
        axis, windows = AdaptiveAxis(length, out), parts(length, out)
        assert axis.kernel == max(map(len, windows)), axis
        assert axis.narrowest == min(map(len, windows)), axis
        over = [[o for o, w in enumerate(windows) if cell in w] for cell in range(length)]
        assert over == [list(w) for w in parts(axis.adjoint.length, axis.adjoint.out)], axis


def test_adaptive_windows_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    for length, out in itertools.product(range(1, 10), range(1, 12)):
        seen = torch.nn.functional.adaptive_avg_pool1d(torch.eye(length)[None], out)[0].numpy() > 0  # (cell, window)
        assert seen.tolist() == [[cell in w for w in parts(length, out)] for cell in range(length)]


def test_adaptive_sizes_and_the_ordinary_pool_they_may_be() -> None:
    shape = (2, 3, 6, 8)
    assert specs.adaptive_window(shape, 2, FIRST).out_shape == (2, 3, 2, 2)
    assert specs.adaptive_window(shape, (None, 4), FIRST).out_shape == (2, 3, 6, 4)
    assert specs.adaptive_window(shape, None, FIRST).out_shape == shape
    assert specs.adaptive_window((2, 6, 8, 3), np.array([1, 9]), LAST).out_shape == (2, 1, 9, 3)
    regular = specs.adaptive_window(shape, (3, 2), FIRST).regular()
    assert regular is not None
    assert [(a.kernel, a.stride, a.out) for a in regular.axes] == [(2, 2, 3), (4, 4, 2)]
    assert specs.adaptive_window(shape, (3, 3), FIRST).regular() is None


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(value, ValueError) for value in (0, -1, (2, 0), (1,), (1, 2, 3), 2**31)],
        *[(value, TypeError) for value in (2.0, "2", True, (2, "3"), (2, 2.0))],
    ],
)
def test_a_bad_adaptive_size(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="output_size"):
        specs.adaptive_window((2, 3, 6, 8), value, FIRST)


# ----------------------------------------------------------------------------------------------------------------- pad
def test_pads_grow_and_crop() -> None:
    spec = specs.pad_spec((1, 2, 5, 6), ((2, -1), (-3, 0)), "constant", FIRST)
    assert (spec.grow, spec.crop) == (((2, 0), (0, 0)), ((0, 1), (3, 0)))
    assert spec.out_shape == (1, 2, 6, 3)
    for name, other in [("edge", "replicate"), ("wrap", "circular")]:
        assert specs.pad_spec((1, 1, 4), 1, other, FIRST) == specs.pad_spec((1, 1, 4), 1, name, FIRST)


PAD_LIMITS = [
    # mode, length, pair, allowed
    ("reflect", 4, (3, 3), True),
    ("reflect", 4, (4, 0), False),
    ("reflect", 4, (0, 4), False),
    ("reflect", 1, (0, 0), True),
    ("reflect", 1, (1, 0), False),
    ("symmetric", 4, (4, 4), True),
    ("symmetric", 4, (5, 0), False),
    ("wrap", 4, (4, 4), True),
    ("wrap", 4, (0, 5), False),
    ("wrap", 4, (3, -1), True),
    ("wrap", 4, (4, -1), False),  # wrap repeats what the crop leaves
    ("edge", 1, (100, 100), True),
    ("edge", 0, (1, 0), False),
    ("edge", 0, (0, 0), True),
    ("constant", 0, (2, 3), True),
    ("constant", 3, (-3, 0), True),
    ("constant", 3, (-2, -2), False),
    ("constant", 3, (-4, 9), False),
    ("reflect", 4, (-4, 0), True),
    ("reflect", 4, (-2, 3), True),
]


@pytest.mark.parametrize(("mode", "length", "pair", "allowed"), PAD_LIMITS)
def test_how_far_a_mode_pads(mode: str, length: int, pair: tuple[int, int], allowed: bool) -> None:
    if allowed:
        assert specs.pad_spec((1, 1, length), (pair,), mode, FIRST).out_shape == (1, 1, length + sum(pair))
    else:
        with pytest.raises(ValueError, match=r"padding") as caught:
            specs.pad_spec((1, 1, length), (pair,), mode, FIRST)
        assert str(pair) in str(caught.value)
        assert str(length) in str(caught.value) or str(length + min(pair)) in str(caught.value)


@pytest.mark.parametrize(
    ("padding", "mode", "error", "said"),
    [
        (1, "mirror", ValueError, "mode must be one of circular, constant, .*got 'mirror'"),
        (1, None, TypeError, "mode must be a str, got NoneType"),
        ("same", "constant", TypeError, "padding of pad must be numbers, got 'same'"),
        (1.5, "constant", TypeError, "padding must be an int"),
        ((1, 2, 3), "constant", ValueError, "padding needs"),
        (2**31, "constant", ValueError, "padding must be below"),
        (-(2**31), "constant", ValueError, "padding must be below|crops"),
        (True, "constant", TypeError, "padding must be an int"),
    ],
)
def test_errors_of_pad(padding: Any, mode: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        specs.pad_spec((1, 1, 4, 4), padding, mode, FIRST)


# --------------------------------------------------------------------------------------------------------- other checks
def test_real_numbers() -> None:
    for value in (1, 1.5, np.float32(1.5), np.array(2.0), Fraction(1, 2), np.int8(3)):
        assert arguments.real(value, "eps") == float(value)
    for value in ("1", b"1", None, [1.0], np.array([1.0]), 1j, True):
        with pytest.raises(TypeError, match="eps must be a real number"):
            arguments.real(value, "eps")
    for value in (math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(ValueError, match="eps must be finite"):
            arguments.real(value, "eps")
    assert arguments.real(math.inf, "eps", finite=False) == math.inf


def test_flags() -> None:
    assert [arguments.flag(v, "on") for v in (True, False, np.bool_(True), np.bool_(False))] == [True, False] * 2
    for value in (0, 1, None, "True", 1.0):
        with pytest.raises(TypeError, match="on must be True or False"):
            arguments.flag(value, "on")


def test_the_last_axes() -> None:
    assert arguments.trailing((2, 3, 4), 4) == (4,)
    assert arguments.trailing((2, 3, 4), [3, np.int64(4)]) == (3, 4)
    assert arguments.trailing((4,), 4) == (4,)
    for value in (3, (2, 4), (1, 2, 3, 4), ()):
        with pytest.raises(ValueError, match="normalized_shape"):
            arguments.trailing((2, 3, 4), value)
    with pytest.raises(TypeError, match="normalized_shape"):
        arguments.trailing((2, 3, 4), 4.0)


def test_groups() -> None:
    assert arguments.grouped(6, np.int64(3)) == 3
    for value in (4, 0, -1, 7):
        with pytest.raises(ValueError, match="num_groups"):
            arguments.grouped(6, value)
    with pytest.raises(TypeError, match="num_groups"):
        arguments.grouped(6, 3.0)


# ----------------------------------------------------------------------------------------------------- what is kept
def test_the_same_arguments_give_the_same_window() -> None:
    first = specs.pool_window((1, 2, 5, 6), (2, 3), None, ((1, 0), (0, 1)), 1, False, FIRST)
    assert specs.pool_window((1, 2, 5, 6), (2, 3), None, ((1, 0), (0, 1)), 1, False, FIRST) is first
    listed = specs.pool_window((1, 2, 5, 6), [2, np.int64(3)], None, [(1, 0), [0, 1]], 1, False, FIRST)
    assert listed == first
    assert hash(listed) == hash(first)
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("like_one", [True, 1.0, (True, 1), (1.0, 1), ((1, True), 1)])
def test_what_equals_a_good_argument_is_checked_all_the_same(like_one: Any) -> None:
    """1, True and 1.0 are one key of a dictionary."""
    for padding in (1, (1, 1), ((1, 1), 1)):
        specs.pool_window((1, 2, 5, 6), 3, 1, padding, 1, False, FIRST)
    for _ in range(2):
        with pytest.raises(TypeError, match="padding must be an int"):
            specs.pool_window((1, 2, 5, 6), 3, 1, like_one, 1, False, FIRST)
    with pytest.raises(TypeError, match="ceil_mode must be True or False"):
        specs.pool_window((1, 2, 5, 6), 3, 1, 1, 1, 0, FIRST)  # False is 0
