"""JAX: every part compiled by `jax.jit`. Its CPU threads cannot be set: it uses the machine's cores.

float32 means float32 here too. On a GPU its streams are its own, so it is timed by the host's clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read at its import: leave memory to the others

import jax
from jax import lax
from jax import numpy as jnp

from cnnlayers import backends
from cnnlayers.backends import Backend

from .cases import BACKWARD, FORWARD, INFERENCE
from .contest import Call, Contestant, Refused
from .problem import Array, Problem

jax.config.update("jax_enable_x64", True)  # float64 stays float64; other dtypes are as given
jax.config.update("jax_default_matmul_precision", "highest")
MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect", "symmetric": "symmetric", "wrap": "wrap"}
DIFFERENTIATED = ("weight", "bias", "gamma", "beta")


def _window(x: Any, o: dict[str, Any], start: Any, combine: Any) -> Any:
    k, p = o["kernel_size"], o.get("padding", 0)
    return lax.reduce_window(
        x, jnp.asarray(start, x.dtype), combine, (1, 1, k, k), (1, 1, *(o.get("stride") or k,) * 2),
        ((0, 0), (0, 0), (p, p), (p, p)),
    )  # fmt: skip


def _normal(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    return (wide - mean) * lax.rsqrt(((wide - mean) ** 2).mean(axes, keepdims=True) + eps)


def _affine(x: Any, y: Any, gamma: Any, beta: Any) -> Any:
    channel = (1, -1) + (1,) * (y.ndim - 2)
    return (y * gamma.reshape(channel) + beta.reshape(channel)).astype(x.dtype)


def _batch_norm(x: Any, p: dict[str, Any], o: dict[str, Any]) -> Any:
    if o["training"]:
        return _affine(x, _normal(x, (0, 2, 3), 1e-5), p["gamma"], p["beta"])
    mean, var = (p[name].reshape(1, -1, 1, 1) for name in ("running_mean", "running_var"))
    return _affine(x, (x - mean) * lax.rsqrt(var + 1e-5), p["gamma"], p["beta"])


def _group_norm(x: Any, p: dict[str, Any], o: dict[str, Any]) -> Any:
    groups = x.reshape(x.shape[0], o["num_groups"], -1)
    return _affine(x, _normal(groups, (2,), 1e-5).reshape(x.shape), p["gamma"], p["beta"])


def _conv(x: Any, p: dict[str, Any], o: dict[str, Any]) -> Any:
    y = lax.conv_general_dilated(
        x, p["weight"], (o.get("stride", 1),) * 2, [(o.get("padding", 0),) * 2] * 2,
        feature_group_count=o.get("groups", 1), dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )  # fmt: skip
    return y + p["bias"].reshape(1, -1, 1, 1)


def _rms_norm(x: Any, p: dict[str, Any], o: dict[str, Any]) -> Any:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * lax.rsqrt((wide**2).mean(-1, keepdims=True) + o["eps"]) * p["gamma"]).astype(x.dtype)


OPS: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], Any]] = {
    "max_pool": lambda x, p, o: _window(x, o, -jnp.inf, lax.max),
    "avg_pool": lambda x, p, o: _window(x, o, 0, lax.add) / o["kernel_size"] ** 2,
    "adaptive_avg_pool": lambda x, p, o: x.mean((2, 3), keepdims=True),
    "pad": lambda x, p, o: jnp.pad(x, ((0, 0), (0, 0), *((o["padding"],) * 2,) * 2), MODES[o["mode"]]),
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": lambda x, p, o: (_normal(x, (-1,), 1e-5) * p["gamma"] + p["beta"]).astype(x.dtype),
    "rms_norm": _rms_norm,
    "relu": lambda x, p, o: jnp.maximum(x, jnp.zeros((), x.dtype)),
    "conv": _conv,
}


class Jax(Contestant):
    """Forward keeps what backward needs (`jax.vjp`), inference nothing."""

    name = "jax"
    by_events = False

    def call(self, problem: Problem, part: str) -> Call:
        case, options = problem.case, problem.options(part)
        function = OPS.get(case.op)
        if function is None or part not in (INFERENCE, FORWARD, BACKWARD):
            raise Refused("has no such op here")
        if case.channels_last:
            raise Refused("channels last is not written for it here")
        inputs = [_given(problem.b, x) for x in problem.inputs]
        parameters = {name: _given(problem.b, a) for name, a in problem.parameters.items()}
        trained = {name: a for name, a in parameters.items() if name in DIFFERENTIATED}

        def run(x: Any, trained: dict[str, Any]) -> Any:
            return function(x, parameters | trained, options)

        if part == INFERENCE:
            compiled = jax.jit(run)
            return lambda i: jax.block_until_ready((compiled(inputs[i], trained),))
        forward = jax.jit(lambda x, trained: jax.vjp(run, x, trained))
        if part == FORWARD:
            return lambda i: jax.block_until_ready(forward(inputs[i], trained))
        pulls = [forward(x, trained)[1] for x in inputs]
        backward = jax.jit(lambda pull, dy: pull(dy))
        gradients = [_given(problem.b, dy) for dy in problem.gradients]
        return lambda i: jax.block_until_ready(backward(pulls[i], gradients[i]))

    def arrays(self, problem: Problem, part: str, result: Any) -> list[Array]:
        if part != BACKWARD:
            return [_taken(problem.b, result[0])]
        dx, parameters = result
        return [_taken(problem.b, a) for a in (dx, *(parameters[n] for n in DIFFERENTIATED if n in parameters))]


def _given(b: Backend, a: Array) -> Any:
    return jnp.asarray(a) if b.name == "numpy" else jnp.from_dlpack(a)


def _taken(b: Backend, a: Any) -> Array:
    return backends.to_numpy(a) if b.name == "numpy" else b.xp.from_dlpack(a)
