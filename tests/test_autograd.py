"""`cnnlayers.autograd.Tensor`: what it is, what backward does, and what it refuses; test_autograd_ops has its ops."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import threading
import weakref

import numpy as np
import pytest

from cnnlayers import autograd, backends, kernels
from cnnlayers.autograd import Tensor, no_grad
from cnnlayers.autograd import functional as TF

from .implementations import strict


@pytest.fixture(autouse=True)
def without_kernels():
    """Array code alone, where a test's `impl` does not ask for kernels: nothing has to be compiled."""
    with kernels.mode("off"):
        yield


def leaf(values, dtype="float64") -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


# ------------------------------------------------------------------------------------------------------------ a Tensor
def test_it_holds_the_array_it_was_given() -> None:
    x = np.ones((2, 3), "float32")
    t = Tensor(x)
    assert t.data is x
    assert (t.shape, t.dtype, t.ndim, t.size, len(t)) == ((2, 3), np.float32, 2, 6, 2)
    assert (t.grad, t.requires_grad) == (None, False)


@pytest.mark.parametrize("value", [3, 2.5, True, [1.0, 2.0], ((1, 2), (3, 4)), np.float32(1.5), []])
def test_numbers_and_sequences_become_arrays(value) -> None:
    with backends.using("numpy"):
        t = Tensor(value)
    assert isinstance(t.data, np.ndarray)
    np.testing.assert_array_equal(t.data, value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("3", "data must be an array.*backends.asarray"),
        (None, "data must be an array, got None"),
        (np.ones(2, complex), "data must be floating, integer or bool, got complex128"),
        (np.ma.masked_array([1.0]), "MaskedArray"),
        (Tensor(1.0), "Tensor already.*detach"),
    ],
    ids=["text", "None", "complex", "masked", "tensor"],
)
def test_what_is_no_data_is_refused(data, said) -> None:
    with pytest.raises(TypeError, match=said):
        Tensor(data)


def test_only_floats_require_gradients() -> None:
    with pytest.raises(TypeError, match=r"requires_grad must be float16.*got int64"):
        Tensor(np.arange(3), requires_grad=True)
    t = Tensor(np.arange(3))
    with pytest.raises(TypeError, match="got int64"):
        t.requires_grad = True
    with pytest.raises(TypeError, match="requires_grad must be True or False, got 'yes'"):
        Tensor(1.0, requires_grad="yes")
    assert not t.requires_grad


def test_requires_grad_passes_on_and_is_set_on_leaves() -> None:
    x, c = leaf([1.0, 2.0]), Tensor(np.ones(2))
    assert (x * c).requires_grad
    assert not (c * c).requires_grad
    assert not (x > 1).requires_grad
    assert not x.astype(np.int64).requires_grad
    x.requires_grad = False
    assert not (x * c).requires_grad
    c.requires_grad = True
    with pytest.raises(RuntimeError, match=r"computed, by add: \.detach"):
        (c + 1).requires_grad = False


def test_one_element_is_a_number() -> None:
    t = leaf([[2.5]])
    assert (float(t), int(t), bool(t), t.item(), f"{t:.2f}") == (2.5, 2, True, 2.5, "2.50")
    with pytest.raises(ValueError, match=r"one element.*\(2,\)"):
        float(Tensor(np.ones(2)))
    with pytest.raises(ValueError, match="one element"):
        bool(Tensor(np.ones(2)) == 1)
    with pytest.raises(TypeError, match="0-d"):
        len(Tensor(1.0))


def test_repr_tells_what_it_is() -> None:
    x = leaf([1.0])
    assert repr(Tensor(np.ones(1))) == "Tensor(array([1.]))"
    assert repr(x) == "Tensor(array([1.]), requires_grad=True)"
    assert repr(x + 1) == str(x + 1) == f"{x + 1}" == "Tensor(array([2.]), made by add)"


def test_results_are_arrays_also_without_axes(impl) -> None:
    x = Tensor(impl.array([1.0, 2.0, 3.0], "float32"))
    for y in (x.sum(), x.mean(), x.max(), x[0], x.sum() + 1, x @ x, -x.sum(), x.sum() * x.sum(), x.sum() > 2):
        impl.numpy(y.data, shape=())


def test_it_is_hashable_and_iterable() -> None:
    x = leaf([1.0, 2.0])
    assert len({x, x, leaf([1.0, 2.0])}) == 2
    assert [float(row) for row in x] == [1.0, 2.0]
    assert (x == None) is False  # noqa: E711  an identity question, not a comparison of elements


def test_leaves_are_copied_and_pickled() -> None:
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    for y in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert y.requires_grad
        np.testing.assert_array_equal([y.data, y.grad], [x.data, x.grad])
        assert not np.shares_memory(y.data, x.data)
    assert copy.copy(x).data is x.data
    with pytest.raises(TypeError, match=r"\.detach\(\) it first"):
        copy.deepcopy(x * 1)


def test_numpy_does_not_take_it_apart_behind_your_back() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match=r"\.detach"):
        np.asarray(x)
    with pytest.raises(TypeError):
        np.exp(x)
    np.testing.assert_array_equal(np.asarray(x.detach()), x.data)
    np.testing.assert_array_equal(backends.to_numpy(x.detach()), x.data)


@pytest.mark.parametrize("other", ["a", None, [1.0, 2.0], 1j, object()], ids=lambda v: type(v).__name__)
def test_operators_refuse_what_is_no_array(other) -> None:
    x = leaf([1.0, 2.0])
    for compute in (lambda: x + other, lambda: other * x, lambda: x @ other, lambda: x**other, lambda: x < other):
        with pytest.raises(TypeError):
            compute()
    with pytest.raises(TypeError, match="complex"):
        x + np.ones(2, complex)


def test_mixed_owners_are_refused() -> None:
    x, y = leaf([1.0]), Tensor(strict([1.0]))
    for compute in (
        lambda: x + y,
        lambda: x @ y.data,
        lambda: x.data * y,
        lambda: x == y,
        lambda: TF.linear(x, y),
        lambda: autograd.concat([x, y]),
        lambda: x[strict([0])],
        lambda: x.backward(y.data),
    ):
        with pytest.raises(TypeError, match="owner"):
            compute()


# ------------------------------------------------------------------------------------------------------------ backward
def test_gradients_accumulate_over_uses_and_over_backwards() -> None:
    x = leaf([1.0, 2.0])
    (x * x + 3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.data + 3)
    held = x.grad
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.data + 4)
    np.testing.assert_array_equal(held, 2 * x.data + 3)  # a gradient once read does not change
    x.grad = None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])


def test_a_diamond_of_many_uses_is_walked_once() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(64):  # 2**64 paths
        y = y + y
    y.backward()
    assert float(x.grad) == 2.0**64


def test_grads_are_nobody_elses_arrays() -> None:
    x, y, dy = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.ones(2)
    (x + y).backward(dy)
    (z := leaf([0.0, 0.0])).backward(dy)
    arrays = [x.grad, y.grad, z.grad, dy, x.data, y.data]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    x.grad[...] = 7
    np.testing.assert_array_equal(y.grad, dy)
    w = leaf(np.ones((2, 2)))
    w.T.reshape(4).sum().backward()  # a broadcast, read-only view on the way back
    w.grad += 1
    np.testing.assert_array_equal(w.grad, np.full((2, 2), 2.0))


def test_the_same_tensor_as_both_operands_and_as_its_own_root() -> None:
    x = leaf(3.0)
    x.backward()
    (x * x).backward()
    assert float(x.grad) == 7.0


def test_only_what_requires_gradients_gets_them() -> None:
    x, c = leaf([1.0]), Tensor(np.ones(1))
    y = x * c
    y.sum().backward()
    assert x.grad is not None
    assert c.grad is None
    assert y.grad is None


def test_detach_stops_gradients_and_shares_the_array() -> None:
    x = leaf([2.0])
    y = (x * x).detach()
    assert not y.requires_grad
    assert x.detach().data is x.data
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, [4.0])


@pytest.mark.parametrize(
    "gradient", [np.full((2, 1), 2.0), np.full((2, 1), 2.0, "float32"), Tensor(np.full((2, 1), 2.0))]
)
def test_backward_takes_a_gradient(gradient) -> None:
    x = leaf([[1.0], [2.0]])
    (3 * x).backward(gradient)
    np.testing.assert_array_equal(x.grad, [[6.0], [6.0]])
    assert x.grad.dtype == np.float64


def test_backward_of_one_element_needs_none_and_takes_a_number() -> None:
    x = leaf([[1.0]])
    x.backward()
    (2 * x).backward(3)
    assert float(x.grad[0, 0]) == 7.0


@pytest.mark.parametrize(
    ("gradient", "error", "said"),
    [
        (None, ValueError, r"shape \(2,\) needs its gradient"),
        (2.0, TypeError, "gradient must be an array"),
        ([1.0, 1.0], TypeError, "gradient must be an array"),
        (np.ones((2, 1)), ValueError, r"gradient must have shape \(2,\), got \(2, 1\)"),
        (np.ones(3), ValueError, r"gradient must have shape \(2,\), got \(3,\)"),
        (np.ones(2, int), TypeError, "gradient must be float16.*got int64"),
    ],
    ids=str,
)
def test_wrong_gradients_are_refused(gradient, error, said) -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(error, match=said):
        y.backward(gradient)
    y.sum().backward()  # nothing was freed


def test_a_second_backward_says_what_to_do() -> None:
    x = leaf([1.0, 2.0])
    h = x * x
    loss = h.sum()
    loss.backward()
    before = x.grad.copy()
    other = (leaf([5.0, 5.0]) * h).sum()
    for result in (loss, h.mean(), other):
        with pytest.raises(RuntimeError, match=r"through this .* before.*anew.*retain_graph=True"):
            result.backward()
    np.testing.assert_array_equal(x.grad, before)


def test_retain_graph_allows_another() -> None:
    x = leaf([1.0, 2.0])
    y = TF.relu(x * x)
    y.backward(np.ones(2), retain_graph=True)
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, 4 * x.data)
    with pytest.raises(RuntimeError):
        y.backward(np.ones(2))


def test_backward_without_a_graph_is_refused() -> None:
    x = leaf(1.0)
    with no_grad():
        y = x * x
    for t in (Tensor(1.0), y, x.detach()):
        with pytest.raises(RuntimeError, match="requires_grad=True, or in a no_grad block, or is detached"):
            t.backward()


def test_a_backward_that_raises_changes_no_grad() -> None:
    class Ranks:
        dead = False

        def allreduce(self, value):
            if self.dead:
                raise OSError("a rank died")
            return value

    x, w = leaf(np.ones((4, 2))), leaf(np.ones((4, 2)))
    y = TF.batch_norm(x * 1, training=True, comm=(comm := Ranks()))
    comm.dead = True
    with pytest.raises(OSError, match="a rank died"):
        (y * w).sum().backward()
    assert x.grad is None
    assert w.grad is None


# ---------------------------------------------------------------------------------------------------- depth and memory
def test_a_chain_of_50_000_ops() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y + 1.0
    y.backward()
    assert (float(y), float(x.grad)) == (50_001.0, 1.0)
    for _ in range(50_000):
        x = x * 1.0
    del x, y  # a graph that was never walked is let go without recursion as well
    gc.collect()


def test_graphs_are_freed_without_the_cycle_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        x = leaf(np.ones((2, 1, 4, 4)))
        y = TF.max_pool(x * 2, 2)
        watched = [weakref.ref(t) for t in (x, y, y._node, y._node.sources[0])]
        del x, y
        assert [ref() for ref in watched] == [None] * 4
    finally:
        gc.enable()


def test_what_was_saved_is_freed_as_it_is_used() -> None:
    alive: list[int] = []
    x = leaf(np.ones(1000))
    watched, y = [], x
    for _ in range(5):
        y = y * (factor := np.full(1000, 2.0))
        watched.append(weakref.ref(factor))
        del factor
        y = TF.relu(y)
        y._node.gradients = counting(y._node.gradients, lambda: alive.append(sum(ref() is not None for ref in watched)))
    loss = y.sum()
    assert sum(ref() is not None for ref in watched) == 5
    loss.backward()
    assert alive == [5, 4, 3, 2, 1]
    assert [ref() for ref in watched] == [None] * 5  # though loss and y are still here
    np.testing.assert_array_equal(x.grad, np.full(1000, 32.0))


def counting(gradients, count):
    def run(dy):
        count()
        return gradients(dy)

    return run


@pytest.mark.parametrize("op", [lambda x, c: x * c, lambda x, c: x / c, lambda x, c: x @ c.T, lambda x, c: c - x])
def test_an_operand_nobody_needs_is_not_kept(op) -> None:
    x, c = leaf(np.ones((2, 3, 4))), np.ones((3, 4))
    h = x + 1
    watched = weakref.ref(h.data)
    y = op(h, c)  # x's gradient needs c, and c's is not asked for
    del h
    assert watched() is None
    y.sum().backward()


# -------------------------------------------------------------------------------------------------------------- no_grad
def test_no_grad_records_nothing(monkeypatch) -> None:
    x = leaf(np.ones((1, 1, 4, 4)))
    with no_grad():
        assert not (x * 2).requires_grad
        assert not TF.max_pool(x, 2).requires_grad
        with no_grad():
            pass
        assert not (x + x).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator() -> None:
    @no_grad()
    def double(t, again=True):
        """Twice t."""
        return double(t, False) + t if again else t * 1

    x = leaf(1.0)
    assert double.__doc__ == "Twice t."
    assert not double(x).requires_grad
    assert (x * 1).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (x * 1).requires_grad


def test_no_grad_on_a_generator_is_on_while_its_body_runs() -> None:
    x = leaf(1.0)

    @no_grad()
    def double(count):
        """Twice t."""
        got = []
        for _ in range(count):
            try:
                got.append((yield (x * 2).requires_grad))
            except ZeroDivisionError:
                got.append(("caught", (x * 2).requires_grad))
        return got

    assert (double.__name__, double.__doc__, inspect.isgeneratorfunction(double)) == ("double", "Twice t.", True)
    generator = double(4)
    for resume in (
        lambda: next(generator),
        lambda: generator.send("first"),
        lambda: generator.throw(ZeroDivisionError),
        lambda: generator.send("third"),
    ):
        assert resume() is False
        assert (x * 1).requires_grad  # the caller's state is as it was
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == ["first", ("caught", False), "third", None]
    assert [*double(3)] == [False] * 3


def test_no_grad_on_a_generator_that_is_closed_or_fails() -> None:
    x, seen = leaf(1.0), []

    @no_grad()
    def numbers():
        try:
            yield 1
            raise ZeroDivisionError
        finally:
            seen.append((x * 1).requires_grad)

    first = numbers()
    next(first)
    first.close()
    assert seen == [False]
    second = numbers()
    next(second)
    with no_grad():
        del second  # in another state than the one in which it was made
    assert seen == [False] * 2
    third = numbers()
    next(third)
    with pytest.raises(ZeroDivisionError):
        next(third)
    assert seen == [False] * 3
    assert (x * 1).requires_grad


def test_no_grad_on_generators_that_alternate() -> None:
    x = leaf(1.0)

    def plain(count):
        for _ in range(count):
            yield (x * 1).requires_grad

    quiet = no_grad()(plain)
    assert [*zip(quiet(3), plain(3), quiet(3), strict=True)] == [(False, True, False)] * 3

    def delegating():
        yield from quiet(2)
        yield (x * 1).requires_grad

    assert [*delegating()] == [False, False, True]
    a = np.ones(10)
    gone = weakref.ref(a)

    @no_grad()
    def handing_on(items):
        while items:
            yield items.pop()

    items = [np.ones(1), a]
    del a
    generator = handing_on(items)
    next(generator)
    assert gone() is None  # what was yielded is the caller's alone


def test_no_grad_on_a_coroutine_is_on_while_its_body_runs() -> None:
    x, seen = leaf(1.0), []

    @no_grad()
    async def double(delay, fail=False):
        seen.append((x * 2).requires_grad)
        await asyncio.sleep(delay)
        seen.append((x * 2).requires_grad)
        if fail:
            raise ZeroDivisionError
        return (x * 2).requires_grad

    assert inspect.iscoroutinefunction(double)
    step = double(0)
    step.send(None)  # suspended, in this very context
    assert (x * 1).requires_grad
    with pytest.raises(StopIteration):
        step.send(None)

    async def main() -> None:
        assert await asyncio.gather(double(0.01), double(0.0)) == [False] * 2
        assert (x * 1).requires_grad
        with pytest.raises(ZeroDivisionError):
            await double(0, fail=True)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(double(30), 0.01)
        assert (x * 1).requires_grad

    asyncio.run(main())
    assert not any(seen)
    assert (x * 1).requires_grad


def test_no_grad_on_an_asynchronous_generator_is_on_while_its_body_runs() -> None:
    x, seen = leaf(1.0), []

    @no_grad()
    async def numbers(count):
        try:
            for i in range(count):
                await asyncio.sleep(0)
                try:
                    seen.append((yield i, (x * 1).requires_grad))
                except ZeroDivisionError:
                    yield "caught", (x * 1).requires_grad
        finally:
            await asyncio.sleep(0)
            seen.append((x * 1).requires_grad)

    assert inspect.isasyncgenfunction(numbers)

    async def main() -> None:
        async for i, wanted in numbers(3):
            assert (i in range(3), wanted, (x * 1).requires_grad) == (True, False, True)
        assert seen == [None, None, None, False]
        generator = numbers(3)
        assert await generator.asend(None) == (0, False)
        assert await generator.asend("sent") == (1, False)
        assert await generator.athrow(ZeroDivisionError) == ("caught", False)
        await generator.aclose()
        assert seen[4:] == ["sent", False]
        assert (x * 1).requires_grad

    asyncio.run(main())


@pytest.mark.parametrize(
    ("block", "value"),
    [(lambda: kernels.mode("require"), "require"), (lambda: kernels.winograd("off"), False)],
    ids=["mode", "winograd"],
)
def test_other_blocks_are_decorators_too(block, value) -> None:
    def look():
        return kernels.current_mode() if value == "require" else kernels.winograd_allowed()

    @block()
    def generator():
        yield look()
        yield look()

    before = look()
    iterator = generator()
    assert [next(iterator), look(), next(iterator), look()] == [value, before, value, before]
    assert block()(look)() == value
    assert look() == before


def test_backward_works_inside_no_grad() -> None:
    x = leaf(2.0)
    y = x * x
    with no_grad():
        y.backward()
        x.data -= 0.25 * x.grad
    assert float(x) == 1.0


def test_no_grad_is_this_threads_and_this_tasks() -> None:
    x, seen = leaf(1.0), {}
    with no_grad():
        worker = threading.Thread(target=lambda: seen.update(thread=(x * 1).requires_grad))
        worker.start()
        worker.join()

    async def quiet(entered, leave) -> None:
        with no_grad():
            entered.set()
            await leave.wait()

    async def main() -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(quiet(entered, leave))
        await entered.wait()
        seen["task"] = (x * 1).requires_grad
        leave.set()
        await task

    asyncio.run(main())
    assert seen == {"thread": True, "task": True}


def test_independent_graphs_in_several_threads() -> None:
    shared, errors = leaf(np.ones(3)), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x, w = rng.standard_normal((4, 3)), leaf(rng.standard_normal((3, 3)))
            (TF.relu(Tensor(x) @ w) * shared).sum().backward()
            expected = x.T @ (x @ w.data > 0)
            if not np.allclose(w.grad, expected):
                errors.append(seed)
            shared.sum().backward()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    total = sum(
        np.maximum(rng.standard_normal((4, 3)) @ rng.standard_normal((3, 3)), 0).sum(0) + 1
        for rng in map(np.random.default_rng, range(8))
        for _ in range(20)
    )
    np.testing.assert_allclose(shared.grad, total)


# ----------------------------------------------------------------------------------------------------- changes in place
def test_in_place_operators_do_not_lose_a_leaf() -> None:
    x = leaf([1.0, 2.0])
    for change in ("x += 1", "x -= 1", "x *= 2", "x /= 2", "x **= 2", "x @= x"):
        with pytest.raises(RuntimeError, match=r"t\.data -= lr"):
            exec(change, {"x": x})
    total = Tensor(0.0)
    total += x.sum()
    total *= 2
    total.backward()
    np.testing.assert_array_equal(x.grad, [2.0, 2.0])
    with pytest.raises(TypeError, match=r"not assigned to.*\.data"):
        x[0] = 1.0


def test_data_and_grad_may_be_replaced_by_their_like() -> None:
    x = leaf([1.0, 2.0])
    x.data -= 1
    x.data = x.data * 3
    np.testing.assert_array_equal(x.data, [0.0, 3.0])
    x.grad = np.ones(2)
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 2.0])
    for name in ("data", "grad"):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(2,\), got \(3,\)"):
            setattr(x, name, np.ones(3))
        with pytest.raises(TypeError, match=f"{name} must have dtype float64, got float32"):
            setattr(x, name, np.ones(2, "float32"))
        with pytest.raises(TypeError, match="owner"):
            setattr(x, name, strict(np.ones(2)))
        with pytest.raises(TypeError, match="must be an array"):
            setattr(x, name, [1.0, 2.0])
