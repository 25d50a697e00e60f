"""Batch norm's own: running statistics, evaluation, and statistics over several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cnnlayers.functional as F
from cnnlayers.testing import gradcheck

from .implementations import Impl
from .reference import norm as reference

SHAPE = (4, 3, 2, 3)


def parameters(rng: np.random.Generator, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(1.0, 0.5, channels), rng.normal(size=channels)


# --------------------------------------------------------------------------------------------------- running statistics
@pytest.mark.parametrize(
    ("options", "mean", "var"),
    [
        ({}, 0.9 * 10 + 0.1 * 4, 0.9 * 20 + 0.1 * 5 * 4 / 3),
        ({"unbiased": False}, 0.9 * 10 + 0.1 * 4, 0.9 * 20 + 0.1 * 5),
        ({"momentum": 0}, 10, 20),
        ({"momentum": 1.0}, 4, 20 / 3),
        ({"momentum": -0.5}, 1.5 * 10 - 0.5 * 4, 1.5 * 20 - 0.5 * 20 / 3),
        ({"momentum": 2, "unbiased": False}, -10 + 8, -20 + 10),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_training_updates_running_statistics_in_place(
    impl: Impl, options: dict[str, Any], mean: float, var: float, dtype: str
) -> None:
    x = impl.array([[1.0], [3.0], [5.0], [7.0]], "float32")  # mean 4, variance 5, or 20 / 3 over n - 1
    running_mean, running_var = impl.writable([10.0], dtype), impl.writable([20.0], dtype)
    F.batch_norm(x, None, None, running_mean, running_var, training=True, **options)
    rtol = 1e-3 if dtype == "float16" else 1e-6
    impl.close(running_mean, np.array([mean], dtype), rtol=rtol)
    impl.close(running_var, np.array([var], dtype), rtol=rtol)


def test_running_statistics_do_not_change_what_training_gives(impl: Impl, rng: np.random.Generator) -> None:
    x = impl.array(rng.normal(size=SHAPE))
    y = F.batch_norm(x, None, None, impl.writable(np.ones(3)), impl.writable(np.ones(3)), training=True)
    impl.same(y, impl.numpy(F.batch_norm(x, training=True)))


def test_without_running_statistics_evaluation_uses_the_batch(impl: Impl, rng: np.random.Generator) -> None:
    x, dy = impl.array(rng.normal(size=SHAPE)), impl.array(rng.normal(size=SHAPE))
    y, ctx = F.batch_norm_forward(x)
    trained, trained_ctx = F.batch_norm_forward(x, training=True)
    impl.same(y, impl.numpy(trained))
    impl.same(F.batch_norm_backward(dy, ctx)[0], impl.numpy(F.batch_norm_backward(dy, trained_ctx)[0]))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_in_training(impl: Impl, shape: tuple[int, ...]) -> None:
    """pytorch#1381: the unbiased variance of one value, 0 / 0, went into the running one."""
    x = impl.array(np.ones(shape))
    running = impl.writable(np.ones(3)), impl.writable(np.ones(3))
    with pytest.raises(ValueError, match="more than one value per channel in training"):
        F.batch_norm(x, None, None, *running, training=True)
    for array in running:
        impl.same(array, np.ones(3))
    impl.close(F.batch_norm(x, None, impl.array([1.0, 2.0, 3.0])), np.reshape([1.0, 2.0, 3.0], shape))
    impl.close(F.batch_norm(x, None, None, *running), np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0)])
@pytest.mark.filterwarnings("error")
def test_empty_batch_leaves_running_statistics(impl: Impl, shape: tuple[int, ...]) -> None:
    """pytorch#12013: an empty batch made them NaN."""
    x = impl.array(np.ones(shape))
    running = impl.writable([1.0, 2.0, 3.0]), impl.writable([4.0, 5.0, 6.0])
    y, ctx = F.batch_norm_forward(x, impl.array(np.ones(3)), impl.array(np.ones(3)), *running, training=True)
    impl.same(y, np.ones(shape))
    impl.same(running[0], np.array([1.0, 2.0, 3.0]))
    impl.same(running[1], np.array([4.0, 5.0, 6.0]))
    dx, dgamma, dbeta = F.batch_norm_backward(x, ctx)
    impl.same(dx, np.ones(shape))
    impl.same(dgamma, np.zeros(3))
    impl.same(dbeta, np.zeros(3))


X = np.ones((2, 3), "float32")
SHARED = np.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((np.ones(3), None), {}, ValueError, "got no running_var: give both or neither"),
        ((None, np.ones(3)), {"training": True}, ValueError, "got no running_mean"),
        ((np.ones(2), np.ones(2)), {}, ValueError, r"running_mean must have shape \(3,\), got \(2,\)"),
        ((np.ones(3), np.ones(3, int)), {}, TypeError, "running_var must be float"),
        ((np.ones(3), np.broadcast_to(1.0, 3)), {"training": True}, ValueError, "running_var .* read-only"),
        ((SHARED, SHARED), {"training": True}, ValueError, "share memory"),
        ((SHARED, SHARED[::-1]), {"training": True}, ValueError, "share memory"),
        ((None, None), {"momentum": "fast"}, TypeError, "momentum must be a real number"),
        ((None, None), {"momentum": None}, TypeError, "momentum must be a real number"),
        ((None, None), {"training": 1}, TypeError, "training must be True or False"),
        ((None, None), {"unbiased": "no"}, TypeError, "unbiased must be True or False"),
        ((None, None), {"comm": 3}, TypeError, "comm must have an allreduce"),
    ],
)
def test_errors(arguments: Any, options: dict[str, Any], error: type[Exception], said: str) -> None:
    kept = [None if a is None else a.copy() for a in arguments]
    with pytest.raises(error, match=said):
        F.batch_norm(X, None, None, *arguments, **options)
    for array, before in zip(arguments, kept, strict=True):
        np.testing.assert_array_equal(array, before)


# ----------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize("last", [False, True])
def test_evaluation_has_its_own_forward_and_backward(impl: Impl, last: bool, rng: np.random.Generator) -> None:
    """pytorch#586, and a tutorial's fault: the training formula in evaluation."""
    x, dy, (gamma, beta) = rng.normal(size=SHAPE), rng.normal(size=SHAPE), parameters(rng)
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2.0, 3)
    loops = reference.Norm(reference.rows_of("batch", SHAPE), gamma, beta, given=(mean, var))
    wanted = loops.forward(x), *loops.backward(dy, x)
    options = {}
    if last:
        x, dy, *wanted = (np.moveaxis(a, 1, -1) if a.ndim == 4 else a for a in (x, dy, *wanted))
        options = {"data_format": "channels_last"}
    y, ctx = F.batch_norm_forward(impl.array(x), *map(impl.array, (gamma, beta, mean, var)), **options)
    for found, expected in zip((y, *F.batch_norm_backward(impl.array(dy), ctx)), wanted, strict=True):
        impl.close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), SHAPE])
@pytest.mark.parametrize("given", [True, False])
def test_gradients_in_evaluation(shape: tuple[int, ...], given: bool, rng: np.random.Generator) -> None:
    gamma, beta = parameters(rng) if given else (None, None)
    gradcheck(F.batch_norm, rng.normal(size=shape), gamma, beta, rng.normal(size=3), rng.uniform(0.5, 2.0, 3))


def test_evaluation_stays_right_at_a_large_mean(impl: Impl, rng: np.random.Generator) -> None:
    """x * scale + (beta - mean * scale) would lose every digit here."""
    x, dy = (rng.normal(size=SHAPE) + 1e6).astype("float32"), rng.normal(size=SHAPE).astype("float32")
    gamma, beta = parameters(rng)
    mean, var = np.array([1e6 + 0.01, 1e6, 1e6 - 0.3]), rng.uniform(0.5, 2.0, 3)
    loops = reference.Norm(reference.rows_of("batch", SHAPE), gamma, beta, given=(mean, var))
    y, ctx = F.batch_norm_forward(impl.array(x), *map(impl.array, (gamma, beta, mean, var)))
    impl.close(y, loops.forward(x), rtol=1e-5, atol=1e-6, dtype="float32")
    for found, expected in zip(F.batch_norm_backward(impl.array(dy), ctx), loops.backward(dy, x), strict=True):
        impl.close(found, expected, rtol=1e-5, atol=1e-5, dtype=impl.numpy(found).dtype)


def test_context_does_not_follow_running_statistics(impl: Impl, rng: np.random.Generator) -> None:
    x, gamma = impl.array(rng.normal(size=SHAPE)), impl.array(np.ones(3))
    mean, var = impl.writable(np.zeros(3)), impl.writable(np.ones(3))
    _, ctx = F.batch_norm_forward(x, gamma, None, mean, var)
    before = F.batch_norm_backward(x, ctx)
    F.batch_norm(x, gamma, None, mean, var, training=True, momentum=1.0)
    for now, then in zip(F.batch_norm_backward(x, ctx)[:2], before[:2], strict=True):
        impl.same(now, impl.numpy(then))


def test_context_keeps_x_only_where_backward_needs_it(impl: Impl) -> None:
    x, one = impl.array(np.ones(SHAPE)), impl.array(np.ones(3))
    statistics = 2 * 8 * 3
    assert F.batch_norm_forward(x, None, one, one, one)[1].nbytes == statistics
    assert F.batch_norm_forward(x, one, one, one, one)[1].nbytes == statistics + 8 * 3 + 8 * 72


def test_read_only_running_statistics_serve_in_evaluation() -> None:
    read_only = np.broadcast_to(np.float32(1.0), 3)
    np.testing.assert_allclose(F.batch_norm(X, None, None, read_only, read_only, eps=0.0), 0.0)


# --------------------------------------------------------------------------------------------------------- spatial form
@pytest.mark.parametrize("training", [True, False])
def test_spatial_form_is_the_flat_one_over_all_places(impl: Impl, training: bool, rng: np.random.Generator) -> None:
    """A tutorial reshaped to (N * H * W, C), passed the unshaped array on, and came back by an identity transpose."""
    x, dy, given = rng.normal(size=SHAPE), rng.normal(size=SHAPE), [*parameters(rng), rng.normal(size=3), np.ones(3)]

    def flat(a: np.ndarray) -> np.ndarray:
        return np.stack([a[:, c].ravel() for c in range(3)], axis=1)

    def run(x: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
        arrays = [impl.writable(a) for a in given]
        y, ctx = F.batch_norm_forward(impl.array(x), *arrays, training=training)
        return [impl.numpy(a) for a in (y, *F.batch_norm_backward(impl.array(dy), ctx), *arrays[2:])]

    y, dx, *rest = run(x, dy)
    for found, expected in zip((flat(y), flat(dx), *rest), run(flat(x), flat(dy)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- several ranks
class World:
    """Ranks that are threads: `comms` have mpi4py's `allreduce`, which waits until all have come."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)
        self.comms = [Rank(self, i) for i in range(size)]

    def run(self, work: Callable[[int, Any], Any]) -> list[Any]:
        """What each rank's work gives, or the exception it raised."""
        results: list[Any] = [None] * len(self.comms)

        def one(index: int) -> None:
            try:
                results[index] = work(index, self.comms[index])
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(self.comms))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Rank:
    def __init__(self, world: World, index: int) -> None:
        self.world, self.index, self.calls = world, index, 0

    def allreduce(self, value: Any) -> Any:
        assert type(value) is np.ndarray
        assert value.dtype == np.float64
        self.calls += 1
        self.world.slots[self.index] = value
        self.world.barrier.wait()
        summed = sum(self.world.slots)
        self.world.barrier.wait()
        return summed


def on_ranks(
    impl: Impl, parts: list[np.ndarray], dys: list[np.ndarray], given: Any, **options: Any
) -> tuple[list[Any], World]:
    """For each rank: y, dx, dgamma, dbeta, running mean and running variance."""
    world = World(len(parts))

    def work(index: int, comm: Any) -> list[Any]:
        running = impl.writable(np.full(3, 2.0)), impl.writable(np.full(3, 3.0))
        y, ctx = F.batch_norm_forward(
            impl.array(parts[index]), *map(impl.array, given), *running, training=True, comm=comm, **options
        )
        return [y, *F.batch_norm_backward(impl.array(dys[index]), ctx), *running]

    return world.run(work), world


@pytest.mark.parametrize("counts", [(3, 2), (5, 0), (1, 0, 1), (4, 4)])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_ranks_share_the_statistics_of_the_joined_batch(
    impl: Impl, counts: tuple[int, ...], data_format: str, rng: np.random.Generator
) -> None:
    shape = (3, 2, 2) if data_format == "channels_first" else (2, 2, 3)
    parts, dys = ([rng.normal(size=(n, *shape)) + 5 * n for n in counts] for _ in range(2))
    given = parameters(rng)
    found, world = on_ranks(impl, parts, dys, given, data_format=data_format)
    assert [comm.calls for comm in world.comms] == [3] * len(counts)  # two of the statistics, one of dx's sums
    [whole], _ = on_ranks(impl, [np.concatenate(parts)], [np.concatenate(dys)], given, data_format=data_format)
    y, dx, dgamma, dbeta, *running = zip(*found, strict=True)
    for ranks, joined in zip((y, dx), whole[:2], strict=True):
        np.testing.assert_allclose(np.concatenate([impl.numpy(a) for a in ranks]), impl.numpy(joined), atol=1e-10)
    for ranks, joined in zip((dgamma, dbeta), whole[2:4], strict=True):  # each rank's own: to be added up
        np.testing.assert_allclose(sum(impl.numpy(a) for a in ranks), impl.numpy(joined), rtol=1e-9, atol=1e-9)
    for ranks, joined in zip(running, whole[4:], strict=True):
        for a in ranks:
            impl.close(a, impl.numpy(joined), rtol=1e-12)


def test_ranks_of_one_process_are_no_different_from_none(impl: Impl, rng: np.random.Generator) -> None:
    x, dy, given = rng.normal(size=SHAPE), rng.normal(size=SHAPE), parameters(rng)
    [alone], _ = on_ranks(impl, [x], [dy], given)
    y, ctx = F.batch_norm_forward(impl.array(x), *map(impl.array, given), training=True)
    for found, expected in zip(alone, (y, *F.batch_norm_backward(impl.array(dy), ctx)), strict=False):
        # Not the same bits: a kernel may serve without ranks, and none does with them.
        impl.close(found, impl.numpy(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("means", [(1e6, 1e6), (1e6, 1e6 + 2), (1e6, -1e6), (0.0, 1e4)])
def test_ranks_stay_right_at_large_means(impl: Impl, means: tuple[float, float], rng: np.random.Generator) -> None:
    """The statistics of two float32 parts are those of the whole, also where each has a large mean of its own."""
    parts = [(rng.normal(size=(6, 3)) + mean).astype("float32") for mean in means]
    dys = [rng.normal(size=(6, 3)).astype("float32") for _ in means]
    given = parameters(rng)
    found, _ = on_ranks(impl, parts, dys, given)
    x, dy = np.concatenate(parts), np.concatenate(dys)
    exact = reference.Norm(reference.rows_of("batch", x.shape), *given)
    wanted = exact.forward(x), exact.backward(dy, x)[0]
    for ranks, expected in zip(list(zip(*found, strict=True))[:2], wanted, strict=True):
        joined = np.concatenate([impl.numpy(a) for a in ranks])
        np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    variance = impl.numpy(found[0][-1])
    np.testing.assert_allclose(variance, 2.7 + 0.1 * np.float64(x).var(axis=0, ddof=1), rtol=1e-7)


def test_one_value_over_all_ranks_is_refused_on_each(impl: Impl) -> None:
    """A rank that carried on would wait for the others forever."""
    found, _ = on_ranks(impl, [np.ones((1, 3)), np.ones((0, 3))], [np.ones((1, 3)), np.ones((0, 3))], (None, None)[:0])
    for error in found:
        assert isinstance(error, ValueError)
        assert "more than one value per channel over all ranks" in str(error)


@pytest.mark.filterwarnings("error")
def test_ranks_that_are_all_empty_leave_running_statistics(impl: Impl) -> None:
    empty = [np.ones((0, 3)), np.ones((0, 3))]
    for y, dx, dgamma, dbeta, mean, var in on_ranks(impl, empty, empty, (np.ones(3), np.ones(3)))[0]:
        impl.same(y, np.ones((0, 3)))
        impl.same(dx, np.ones((0, 3)))
        for found, expected in ((dgamma, 0.0), (dbeta, 0.0), (mean, 2.0), (var, 3.0)):
            impl.same(found, np.full(3, expected))


def test_comm_is_not_called_where_running_statistics_serve(impl: Impl) -> None:
    [comm] = World(1).comms
    one = impl.array(np.ones(3))
    _, ctx = F.batch_norm_forward(impl.array(X), one, one, one, one, comm=comm)
    F.batch_norm_backward(impl.array(X), ctx)
    assert comm.calls == 0


# -------------------------------------------------------------------------------------------------------------- PyTorch
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("shape", [(6, 3), (3, 3, 4), SHAPE, (2, 3, 2, 2, 2)])
def test_against_torch(shape: tuple[int, ...], momentum: float, training: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x, dy, (gamma, beta) = rng.normal(3, 2, shape), rng.normal(size=shape), parameters(rng)
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2.0, 3)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    running = torch.tensor(mean), torch.tensor(var)
    expected = torch.nn.functional.batch_norm(leaves[0], *running, *leaves[1:], training, momentum, 1e-3)
    expected.backward(torch.tensor(dy))
    y, ctx = F.batch_norm_forward(x, gamma, beta, mean, var, training=training, momentum=momentum, eps=1e-3)
    found = y, *F.batch_norm_backward(dy, ctx), mean, var
    wanted = expected.detach(), *(leaf.grad for leaf in leaves), *running
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w.numpy(), rtol=1e-9, atol=1e-11)
