"""Launchers of lp pooling: the loops of avg_pool_loops.py, with the powers of lp_pool_loops.py. Arguments are the
portable code's.

Chunks of backward are planes. A chunk has two temporary arrays of float64, of the sizes of its windows and cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.backends import Backend
from cnnlayers.specs import LpPool

from .avg_pool import pooling_plan
from .lp_pool_loops import make_scale, make_slope, power_name
from .parallel import flat, parallel_chunks
from .vectors import as_bits
from .windows import planes_and_channels, refusal

Array = Any
BYTES_OF_CELL = 48  # counted for a cell of x, so that a chunk's arrays of float64 stay in the L2 cache


def refuses(step: str, spec: LpPool, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.scaled:
        return f"powers of exponent {spec.p} could leave the range of float64"
    return refusal(spec.window, arrays[0] if arrays else None)


def lp_pool_forward(b: Backend, spec: LpPool, x: Array) -> Array:
    """y."""
    plan = pooling_plan(spec, False, False)
    y = backends.result(plan.shape, x.dtype)
    if y.size:
        arrays = flat(as_bits(x)), as_bits(y).reshape(-1)
        parallel_chunks(
            plan.units, x.nbytes + y.nbytes, lambda start, stop: plan.run(*arrays, *plan.loop_arguments, start, stop)
        )
    return y


def lp_pool_backward(b: Backend, spec: LpPool, dy: Array, x: Array) -> Array:
    """dx."""
    forward, backward = pooling_plan(spec, False, False), pooling_plan(spec, True, False)
    dx, planes, power = backends.result(x.shape, x.dtype), planes_and_channels(spec.window)[0], power_name(spec.p)
    if not dx.size:
        return dx
    gradient, source, result = (a.reshape(planes, -1) for a in (flat(as_bits(dy)), flat(as_bits(x)), as_bits(dx)))

    def sums(start: int, stop: int) -> None:
        number, part = stop - start, (slice(start, stop),)
        cells, norms = flat(source[part]), np.empty(number * gradient.shape[1])
        forward.run(cells, norms, *forward.loop_arguments, 0, number * forward.units // planes)
        make_scale(power)(flat(gradient[part]), norms, spec.p)
        totals = np.empty(cells.size)
        backward.run(norms, totals, *backward.loop_arguments, 0, number * backward.units // planes)
        make_slope(power)(totals, cells, result[part].reshape(-1), spec.p)

    parallel_chunks(planes, BYTES_OF_CELL * x.size, sums)
    return dx
