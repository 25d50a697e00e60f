"""Each op of torch.ops.cnnlayers: PyTorch's own checks of it, its fake shapes, its batching rule, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from cnnlayers import functional as F  # noqa: E402
from cnnlayers.torch import functional  # noqa: E402
from cnnlayers.torch.ops.library import OPS  # noqa: E402

from .torch_cases import each_device, kept, values  # noqa: E402, F401

C = torch.ops.cnnlayers
LAST = "channels_last"


def x_of(*shape: int) -> Any:
    return values(*shape).requires_grad_()


def parameters(*shapes: tuple[int, ...]) -> list[Any]:
    return [values(*shape).requires_grad_() for shape in shapes]


# Arguments of an op's `<op>`; those of its other ops follow from a call.
CALLS: dict[str, list[Callable[[], tuple[Any, ...]]]] = {
    "max_pool": [
        lambda: (x_of(2, 3, 5, 6), [2]),
        lambda: (x_of(2, 5, 6, 3), [3, 2], [2, 1], [1, 0, 0, 1], "", [1], True, "split", LAST),
        lambda: (x_of(2, 3, 20, 20), [17], [1], [0], "same"),  # more than 256 taps
        lambda: (x_of(0, 3, 5), [2]),
    ],
    "adaptive_max_pool": [lambda: (x_of(2, 3, 5, 6), [3, 2]), lambda: (x_of(2, 20, 3), [1], LAST)],
    "avg_pool": [
        lambda: (x_of(2, 3, 5, 6), [2], [1], [1], "", [1], True, False),
        lambda: (x_of(2, 3, 5), [2], [], [0], "", [1], False, True, 3),
    ],
    "sum_pool": [lambda: (x_of(2, 3, 5, 6), [2])],
    "lp_pool": [lambda: (x_of(2, 3, 5, 6), [2], [], [0], "", [1], False, 3.0)],
    "adaptive_avg_pool": [lambda: (x_of(2, 3, 5, 6), [3, 2])],
    "max_unpool": [
        lambda: (x_of(2, 3, 2, 3), *_indices(), [2]),
        lambda: (x_of(2, 3, 2, 3), *_indices(), [2], [], [0], [5, 6]),
    ],
    "pad": [
        lambda: (x_of(2, 3, 5, 6), [1, 0, 2, 1], "reflect"),
        lambda: (x_of(2, 3, 5), [1], "constant", 0.5),
        lambda: (x_of(2, 3, 5), [0]),
    ],
    "batch_norm": [
        lambda: (x_of(2, 3, 4, 4), *parameters((3,), (3,)), values(3), values(3).abs() + 1, True),
        lambda: (x_of(2, 3, 4, 4), None, None, values(3), values(3).abs() + 1),
        lambda: (x_of(2, 4, 4, 3), *parameters((3,)), None, None, None, True, 0.1, 1e-5, True, 0, LAST),
    ],
    "group_norm": [
        lambda: (x_of(2, 4, 3, 3), 2, *parameters((4,), (4,))),
        lambda: (x_of(2, 3, 3, 4), 2, None, None, 1e-3, LAST),
    ],
    "instance_norm": [lambda: (x_of(2, 4, 3, 3), *parameters((4,), (4,))), lambda: (x_of(2, 4, 3),)],
    "layer_norm": [lambda: (x_of(2, 3, 4), [3, 4], *parameters((3, 4))), lambda: (x_of(4), [4])],
    "rms_norm": [lambda: (x_of(2, 3, 4), [4], *parameters((4,))), lambda: (x_of(2, 4), [4], None, 1e-3)],
    "local_response_norm": [lambda: (x_of(2, 5, 3), 3)],
    "conv": [
        lambda: (x_of(2, 4, 5, 5), *parameters((6, 2, 3, 3), (6,)), [1], [0], "same", [1], 2),
        lambda: (x_of(2, 5, 4), *parameters((6, 4, 3)), None, [2], [1], "", [1], 1, LAST),
    ],
    "conv_transpose": [lambda: (x_of(2, 4, 3, 3), *parameters((4, 2, 3, 3), (2,)), [2], [0], [1])],
    "linear": [lambda: (x_of(3, 2, 4), *parameters((5, 4), (5,))), lambda: (x_of(4), *parameters((5, 4)))],
    "relu": [lambda: (x_of(3, 4),), lambda: (x_of(),)],
    "leaky_relu": [lambda: (x_of(3, 4), 0.2), lambda: (x_of(),)],
    "gelu": [lambda: (x_of(3, 4),), lambda: (x_of(), "tanh")],
    "sigmoid": [lambda: (x_of(3, 4),)],
    "tanh": [lambda: (x_of(3, 4),)],
    "softmax": [lambda: (x_of(3, 4),), lambda: (x_of(2, 3, 4), -1)],
    "mse_loss": [lambda: (x_of(4, 5), x_of(4, 5))],
    "dropout": [lambda: (x_of(3, 4), values(3, 4) > 0, 0.4)],
    "softmax_cross_entropy": [lambda: (x_of(4, 5), torch.tensor([0, 4, 2, 2]))],
}
CASES = [(op, i) for op, calls in CALLS.items() for i in range(len(calls))]
EACH = pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{i}" for op, i in CASES])


def _indices() -> tuple[Any, ...]:
    return (nn.MaxPool2d(2, return_indices=True)(values(2, 3, 4, 6))[1],)


def backward_call(op: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The call of `<op>_backward` that autograd makes for a call of the op."""
    seen: list[tuple[Any, tuple[Any, ...]]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace == "cnnlayers" and function._opname.endswith("_backward"):
                seen.append((function, args))
            return function(*args, **(kwargs or {}))

    y = getattr(C, op)(*args)
    with Watch():
        y.backward(torch.ones_like(y))
    (call,) = seen
    return call


def test_every_op_is_registered_and_has_a_case():
    trios = {name.removesuffix("_forward") for name in dir(F) if name.endswith("_forward")}
    assert set(CALLS) == trios
    assert {name.removesuffix("_forward").removesuffix("_backward") for name in OPS} == trios | {"dropout_mask"}
    assert all(f"{op}_backward" in OPS for op in trios)
    assert all(hasattr(C, name) for name in OPS)


@EACH
def test_pytorchs_own_checks_of_an_op(op, case):
    args = CALLS[op][case]()
    torch.library.opcheck(getattr(C, op).default, args)
    if f"{op}_forward" in OPS:
        torch.library.opcheck(getattr(C, f"{op}_forward").default, args)
    backward, given = backward_call(op, args)
    torch.library.opcheck(backward, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in given))


def test_pytorchs_own_checks_of_the_others():
    x = x_of(2, 3, 5, 6)
    torch.library.opcheck(
        C.max_pool_forward.default, (x, [2], [], [0], "", [1], False, "first", "channels_first", True)
    )
    torch.library.opcheck(C.dropout_mask.default, (x, 0.3, 7))


@EACH
def test_meta_tensors_have_the_shapes_and_types_of_real_ones(op, case):
    args = CALLS[op][case]()
    calls = [(getattr(C, op).default, args), backward_call(op, args)]
    if f"{op}_forward" in OPS:
        calls.append((getattr(C, f"{op}_forward").default, args))
    for function, given in calls:
        found = function(*given)
        fake = function(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in given))
        several = isinstance(found, tuple)
        for real, meta in zip(found if several else (found,), fake if several else (fake,), strict=True):
            assert meta.is_meta
            assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@EACH
@pytest.mark.parametrize("where", [0, -1], ids=["first", "last"])
def test_vmap_of_an_op_is_a_loop(op, case, where):
    """Of the op and of its gradients, once for each tensor of the call alone and once for all together."""
    args = CALLS[op][case]()
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    for batched in {(0,), tuple(tensors)}:
        if op == "batch_norm" and args[3] is not None:
            batched = tuple(i for i in batched if i < 3)
        stacked = {i: torch.stack([args[i].detach() * f for f in (1.0, -0.5, 2.0)], where) for i in batched}

        def run(*some: Any, batched: tuple[int, ...] = batched) -> Any:
            given = dict(zip(batched, some, strict=True))
            return getattr(C, op)(*(given.get(i, a) for i, a in enumerate(args)))

        def gradients(*some: Any, batched: tuple[int, ...] = batched) -> Any:
            every = torch.func.grad(lambda *s: (run(*s) * 1.5).sum(), argnums=tuple(range(len(batched))))
            return every(*some)

        for function in (run, gradients):
            found = torch.vmap(function, in_dims=where)(*stacked.values())
            expected = [function(*(t.select(where, i) for t in stacked.values())) for i in range(3)]
            several = isinstance(found, tuple)
            for j, a in enumerate(found if several else (found,)):
                wanted = torch.stack([e[j] if several else e for e in expected])
                torch.testing.assert_close(a.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)


@EACH
def test_many_gradients_at_once(op, case):
    args = CALLS[op][case]()
    y = getattr(C, op)(*args)
    tensors = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    dys = torch.stack([torch.ones_like(y), (torch.arange(y.numel()) % 3 - 1.0).reshape(y.shape).to(y.dtype)])
    found = torch.autograd.grad(y, tensors, dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        expected = torch.autograd.grad(y, tensors, dy, retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)


@EACH
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_derivatives_that_there_are_not_are_refused_by_name(op, case):
    args = CALLS[op][case]()
    x = args[0]

    def run(x: Any) -> Any:
        return getattr(C, op)(x, *args[1:])

    (dx,) = torch.autograd.grad((run(x) ** 2).sum(), x, create_graph=True)
    second = rf"{op} of cnnlayers\.torch has no second derivative"
    forward = rf"{op}(_forward|_backward)? of cnnlayers\.torch has no forward-mode derivative"
    with pytest.raises(RuntimeError, match=second):
        dx.sum().backward()
    plain = x.detach()
    with pytest.raises(RuntimeError, match=second):
        torch.func.grad(lambda x: torch.func.grad(lambda x: (run(x) ** 2).sum())(x).sum())(plain)
    for tangent_of in (plain, x):
        with pytest.raises(RuntimeError, match=forward):
            torch.func.jvp(run, (tangent_of,), (plain,))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=forward):
            run(torch.autograd.forward_ad.make_dual(tangent_of, plain))
    with pytest.raises(RuntimeError, match=forward):
        torch.func.hessian(lambda x: run(x).sum())(plain)


def test_a_call_in_no_grad_or_inference_mode_saves_nothing():
    x = x_of(1, 1, 4, 4)
    assert kept(lambda: C.max_pool(x, 2)) == 4
    with torch.no_grad():
        assert kept(lambda: C.max_pool(x, 2)) == 0
        assert not C.max_pool(x, 2).requires_grad
    with torch.inference_mode():
        assert C.max_pool(x, 2).is_inference()

    def outer(x: Any) -> Any:  # no_grad inside a transform holds there alone
        with torch.no_grad():
            y = C.max_pool(x, 2)
        return (y * C.avg_pool(x, 2)).sum()

    (expected,) = torch.autograd.grad(
        (nn.functional.max_pool2d(x, 2).detach() * nn.functional.avg_pool2d(x, 2)).sum(), x
    )
    torch.testing.assert_close(torch.func.grad(outer)(x.detach()), expected)


def test_a_result_shares_no_memory_with_the_arguments():
    x = values(2, 3, 4, 4)
    for y in (C.pad(x, [0]), C.relu(x.abs() + 1), C.max_pool(x, 1), C.dropout(x, torch.ones(2, 3, 4, 4) > 0, 0.5)):
        before = y.clone()
        x.add_(1)
        assert torch.equal(y, before)


def test_the_signatures_are_those_of_the_functional_ops():
    import inspect

    for op in CALLS:
        mine, plain = (inspect.signature(getattr(module, op)).parameters.values() for module in (functional, F))
        assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in plain]


def test_bad_arguments_are_refused_before_the_op():
    x = values(2, 3, 6, 6)
    for error, match, call in [
        (ValueError, "kernel_size needs one entry per spatial axis", lambda: functional.max_pool(x, (2,))),
        (TypeError, "kernel_size must be an int", lambda: functional.max_pool(x, 2.5)),
        (TypeError, "ceil_mode must be True or False", lambda: functional.avg_pool(x, 2, ceil_mode=1)),
        (ValueError, "padding must be numbers", lambda: functional.max_pool(x, 2, padding="")),
        (ValueError, "padding must be numbers", lambda: functional.max_pool(x, 2, padding="sam")),
        (ValueError, "kernel_size must be at least 1", lambda: functional.max_pool(x, 0)),
        (ValueError, "num_groups must divide", lambda: functional.group_norm(x, 2)),
        (ValueError, "more than one value per group", lambda: functional.group_norm(x[:, :, :1, :1], 3)),
        (ValueError, "a seed of at least 0", lambda: functional.dropout(x, training=True, rng=-1)),
        (ValueError, "output_size needs one entry", lambda: functional.adaptive_avg_pool(x, (1,))),
        (ValueError, "output_size must be at least 1", lambda: functional.adaptive_avg_pool(x, 0)),
        (ValueError, "momentum must be finite", lambda: functional.batch_norm(x, training=True, momentum=float("nan"))),
    ]:
        with pytest.raises(error, match=match):
            call()
