"""gradcheck finds what is wrong, says where and by how much, and is not misled by kinks."""

from __future__ import annotations

import numpy as np
import pytest

from cnnlayers import functional as F
from cnnlayers import layers
from cnnlayers.checked_arrays import is_array
from cnnlayers.layers import Layer
from cnnlayers.testing import GradientError, gradcheck

from .implementations import strict


# An op of one's own: the trio stands in this module, and is found by its names.
def scaled(x, w, b=None):
    return x * w + (0 if b is None else b)


def scaled_forward(x, w, b=None):
    return scaled(x, w, b), (x, w, b)


def scaled_backward(dy, ctx):
    x, w, b = ctx
    return dy * w, (dy * x).sum(0), None if b is None else dy.sum(0)


def broken(**replaced):
    """The trio with another function in one place."""
    found = {"op": scaled, "forward": scaled_forward, "backward": scaled_backward} | replaced
    return found["op"], found["forward"], found["backward"]


@pytest.fixture
def arrays(rng):
    return rng.standard_normal((5, 4)), rng.standard_normal(4), rng.standard_normal(4)


def test_right_gradients_pass_and_are_reported(arrays):
    x, w, b = arrays
    report = gradcheck(scaled, x, w, b)
    assert list(report) == ["x", "w", "b"]
    assert max(report.values()) < 1e-9
    assert list(gradcheck(scaled, x, w)) == ["x", "w"]
    assert list(gradcheck(scaled, x, b=b, w=w)) == ["x", "w", "b"]
    assert list(gradcheck((scaled, scaled_forward, scaled_backward), x, w.astype(np.float32))) == ["x", "w"]
    assert list(gradcheck(scaled_forward, x, w)) == ["x", "w"]


def test_a_wrong_element_is_named_with_both_values(arrays):
    def wrong(dy, ctx):
        dx, dw, db = scaled_backward(dy, ctx)
        dw[2] += 0.25
        return dx, dw, db

    with pytest.raises(
        GradientError, match=r"scaled_backward: the gradient of w at \(2,\): .*off by 0\.25.* 1 of 4"
    ) as e:
        gradcheck(broken(backward=wrong), *arrays)
    given, slope = (
        float(str(e.value).split(word)[1].split()[0].rstrip(",")) for word in ("backward gives", "differences give")
    )
    assert given - slope == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("size", [12, 20_000])
@pytest.mark.parametrize("off", [1.00001, 0.0, -1.0, np.nan])
def test_one_wrong_element_among_many_is_found(size, off, rng):
    at = (size // 3, 1)

    def wrong(dy, ctx):
        dx, dw, db = scaled_backward(dy, ctx)
        dx[at] *= off
        return dx, dw, db

    x = rng.standard_normal((size, 4))
    with pytest.raises(GradientError, match=rf"gradient of x at \({at[0]}, {at[1]}\)"):
        gradcheck(broken(backward=wrong), x, np.array([1.0, 1.5, -2.0, 3.0]))


def test_a_gradient_that_is_forgotten_is_found(arrays):
    with pytest.raises(GradientError, match="gradient of x at"):
        gradcheck(broken(backward=lambda dy, c: (dy * 0, *scaled_backward(dy, c)[1:])), *arrays)


def overwriting_forward(x, w, b=None):
    y = scaled(x, w, b)
    x += 1
    return y, (x - 1, w, b)


def overwriting_dy(dy, ctx):
    found = scaled_backward(dy, ctx)
    dy *= 0.5
    return found


def used_once(dy, ctx):
    found = scaled_backward(dy, ctx)
    ctx[0][...] = 0
    return found


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"backward": lambda dy, c: (dy * c[1], (dy * c[0]).sum(0), dy.sum(0))}, "b was not given"),
        ({"backward": lambda dy, c: (dy * c[1], None, None)}, "w was given, but its gradient is None"),
        ({"backward": lambda dy, c: (dy * c[1], dy * c[0], None)}, r"gradient of w has shape \(5, 4\)"),
        ({"backward": lambda dy, c: ((dy * c[1]).astype("f4"), (dy * c[0]).sum(0), None)}, "dtype float32"),
        ({"backward": lambda dy, c: (strict(dy * c[1]), (dy * c[0]).sum(0), None)}, "another kind"),
        ({"backward": lambda dy, c: (*scaled_backward(dy, c), dy)}, "4 gradients for 3 arrays"),
        ({"backward": used_once}, "the same context"),
        ({"backward": overwriting_dy}, "wrote to dy"),
        ({"forward": overwriting_forward}, "wrote to x"),
        ({"forward": lambda x, w, b=None: (scaled(x, w) + 1, (x, w, b))}, "different results"),
        ({"op": lambda x, w, b=None: scaled(x, w) + np.random.default_rng().standard_normal()}, "results"),
    ],
)
def test_broken_promises(replaced, said, arrays):
    with pytest.raises(GradientError, match=said):
        gradcheck(broken(**replaced), *arrays[:2])


def test_arguments_that_cannot_be_checked(arrays):
    x, w, _ = arrays
    with pytest.raises(TypeError, match="is_array_forward and is_array_backward"):
        gradcheck(is_array, x)
    with pytest.raises(TypeError, match="three functions"):
        gradcheck((scaled, scaled_forward), x, w)
    with pytest.raises(ValueError, match="no floating array"):
        gradcheck(F.pad, np.arange(6).reshape(1, 1, 6), 1)
    with pytest.raises(ValueError, match="x must hold finite"):
        gradcheck(scaled, np.full((2, 4), np.inf), w)
    with pytest.raises(TypeError, match="derived from"):
        gradcheck(type("Mine", (), {"backward": 1})(), x)


KINKED = {
    "zeros": np.zeros((2, 2, 6, 5)),
    "ties": np.round(np.random.default_rng(1).standard_normal((2, 2, 6, 5))),
    "tight": np.random.default_rng(2).standard_normal((2, 2, 6, 5)) * 1e-7 + 1,
    "smooth": np.random.default_rng(3).standard_normal((2, 2, 6, 5)),
}


@pytest.mark.parametrize("kind", KINKED)
@pytest.mark.parametrize("ties", ["first", "all", "split"])
def test_kinks_are_avoided(kind, ties):
    gradcheck(F.max_pool, KINKED[kind], 3, 1, 1, ties=ties)
    gradcheck((relu, relu_forward, relu_backward), KINKED[kind])


def relu(x):
    return np.maximum(x, 0)


def relu_forward(x):
    return relu(x), x > 0


def relu_backward(dy, positive):
    return dy * positive


def test_a_kink_nearer_than_any_step_is_avoided(rng):
    """Both slopes are the mean of the two sides' there, at every step: only the bend tells."""
    x = rng.uniform(1, 2, (6, 8)) * rng.choice((-1.0, 1.0), (6, 8))
    x[2, 3] = 1e-14
    gradcheck((relu, relu_forward, relu_backward), x)


def test_a_slope_that_grows_with_the_step_is_avoided(rng):
    """The function is odd about the point, so it shows no bend: only the slopes tell."""
    x = rng.uniform(2, 3, (6, 8))
    x[2, 3] = 1.0

    def odd(x):
        return (x - 1) * np.abs(x - 1) ** 0.5

    gradcheck((odd, lambda x: (odd(x), x), lambda dy, x: dy * 1.5 * np.abs(x - 1) ** 0.5), x)


def test_a_kink_does_not_hide_a_fault():
    def wrong(dy, positive):
        return dy * (positive | (np.arange(positive.size).reshape(positive.shape) == 7))

    x = np.round(np.random.default_rng(1).standard_normal((40, 30)))
    x[0, 7] = -1
    with pytest.raises(GradientError, match=r"gradient of x at \(0, 7\)"):
        gradcheck((relu, relu_forward, wrong), x)


def test_a_function_that_jumps_everywhere_is_refused():
    def noise(x):
        return np.modf(np.sin(x * 1e9) * 1e5)[0]

    with pytest.raises(GradientError, match="smooth"):
        gradcheck((noise, lambda x: (noise(x), None), lambda dy, ctx: dy * 0), np.ones((2, 3)) / 3)


@pytest.mark.parametrize("make", [np.asarray, strict])
def test_library_ops(make, rng):
    x, w, b = (make(rng.standard_normal(s)) for s in ((2, 4, 6, 5), (6, 2, 3, 3), (6,)))
    assert list(gradcheck(F.pad, x, ((1, 2), (-1, 3)), "reflect")) == ["x"]
    assert list(gradcheck(F.max_pool, x, 2, return_indices=True)) == ["x"]
    assert list(gradcheck(F.conv, x, w, None, 2, groups=2)) == ["x", "weight"]
    assert list(gradcheck(F.conv, x, w, bias=b, groups=2)) == ["x", "weight", "bias"]


def test_integer_arrays_and_statistics_are_passed_on(rng):
    x, gamma = rng.standard_normal((3, 4, 5)), rng.standard_normal(4)
    mean, var = np.zeros(4), np.ones(4)
    assert list(gradcheck(F.batch_norm, x, gamma, None, mean, var, training=True)) == ["x", "gamma"]
    assert list(gradcheck(F.batch_norm, x, running_mean=mean, running_var=var, eps=0.1)) == ["x"]
    assert (mean == 0).all()
    assert (var == 1).all()
    assert list(gradcheck(F.layer_norm, x, 5, beta=np.ones(5))) == ["x", "beta"]
    y, indices = F.max_pool(x, 2, return_indices=True)
    assert list(gradcheck(F.max_unpool, y, indices, 2)) == ["x"]
    assert list(gradcheck(F.softmax_cross_entropy, x[:, :, 0], np.array([0, 3, 1]))) == ["x"]
    assert list(gradcheck(F.dropout, x, 0.3, training=True, rng=5)) == ["x"]
    assert list(gradcheck(F.dropout, x, 0.3, training=True, rng=np.random.default_rng(5))) == ["x"]


def test_empty_arrays_and_windows_without_cells():
    assert gradcheck(F.pad, np.zeros((0, 2, 3)), 1) == {"x": 0.0}
    gradcheck(F.max_pool, np.random.default_rng(0).standard_normal((1, 1, 2)), 2, 1, 2, 3)


class Scale(Layer):
    """A layer of one's own, with a fault on demand."""

    def __init__(self, fault=None):
        super().__init__()
        self.fault = fault
        self.own_params["weight"] = np.full(4, 1.5, np.float32)

    def compute_forward(self, x):
        return x * self.own_params["weight"], x

    def compute_backward(self, dy, x):
        if self.fault == "writes":
            x += 1
        self.own_grads = {} if self.fault == "none" else {"weight": (dy * x).sum(0)}
        return dy * self.own_params["weight"] * (2 if self.fault == "twice" else 1)


def test_a_layer_of_ones_own(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    layer = Scale()
    layer(x)
    assert list(gradcheck(layer, x)) == ["x", "weight"]
    assert layer.params["weight"].dtype == np.float32
    assert not layer.grads
    layer.backward(x)  # the pending context was left alone
    for fault, said in [("none", "weight was given"), ("twice", "gradient of x at"), ("writes", "wrote to x")]:
        with pytest.raises(GradientError, match=f"Scale.*{said}"):
            gradcheck(Scale(fault), x)


def test_functions_without_a_name_are_called_after_the_others() -> None:
    x = np.array([1.0, 2.0])

    def cube(x):
        return x**3

    for trio, name in (
        ((lambda x: x**3, lambda x: (x**3, x), lambda dy, x: dy), "op"),
        ((cube, lambda x: (x**3, x), lambda dy, x: dy), "cube"),
    ):
        with pytest.raises(GradientError, match=f"^{name}_backward: the gradient of x at"):
            gradcheck(trio, x)
    with pytest.raises(GradientError, match="op_forward and op give different results"):
        gradcheck((lambda x: x, lambda x: (2 * x, x), lambda dy, x: dy), x)


def test_complex_gradients(rng: np.random.Generator) -> None:
    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    x = noise(2, 3, 5, 5)
    assert set(gradcheck(F.conv, x, noise(4, 3, 3, 3), noise(4), padding=1)) == {"x", "weight", "bias"}
    gradcheck(F.conv_transpose, x.astype("complex64"), rng.standard_normal((3, 4, 3, 3)), stride=2)
    gradcheck(F.linear, noise(2, 3), noise(4, 3), rng.standard_normal(4))
    gradcheck(F.pad, x, 2, "reflect")
    gradcheck(layers.Conv(3, 4, 3, rng=0), x)
    gradcheck(layers.Linear(5, 4, rng=0).map_arrays(lambda a: a.astype("complex64")), x)
    trio = (lambda x: 1j * x * x, lambda x: (1j * x * x, x), lambda dy, x: dy * 2j * x)  # lacks the conjugate
    with pytest.raises(GradientError, match=r"op_backward: the gradient of x at \(\d, [01]\)"):
        gradcheck(trio, noise(3))
