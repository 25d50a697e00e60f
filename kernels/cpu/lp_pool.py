"""Launchers of lp pooling: the loops of avg_pool_loops.py, with the powers of lp_pool_loops.py. Arguments are the
portable code's.

Chunks of backward are planes. A chunk has two temporary arrays of float64, of the sizes of its windows and cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import LpPool

from .avg_pool import pooling_plan, prepared_loop
from .lp_pool_loops import make_scale, make_slope, power_name
from .parallel import chunked, flat, launcher, to_lanes
from .windows import planes_and_channels, refusal

Array = Any
BYTES_OF_CELL = 48  # counted for a cell of x, so that a chunk's arrays of float64 stay in the L2 cache


def refuses(step: str, spec: LpPool, *arrays: Array) -> str | None:
    """Why no kernel here serves this call, or None."""
    if spec.scaled:
        return f"powers of exponent {spec.p} could leave the range of float64"
    return refusal(spec.window, arrays[0] if arrays else None)


@launcher
def lp_pool_forward(spec: LpPool, x: Array) -> Callable[[Array], Array]:
    """y."""
    return prepared_loop(x, pooling_plan(spec, False, False))


@launcher
def lp_pool_backward(spec: LpPool, dy: Array, x: Array) -> Callable[[Array, Array], Array]:
    """dx."""
    forward, backward = pooling_plan(spec, False, False), pooling_plan(spec, True, False)
    new, planes, power = backends.new_result(x.shape, x.dtype), planes_and_channels(spec.window)[0], power_name(spec.p)
    in_chunks = chunked(planes if x.size else 0, BYTES_OF_CELL * x.size)
    scale, slope = make_scale(power), make_slope(power)

    def sums(gradient: Array, source: Array, result: Array, start: int, stop: int) -> None:
        number, cells = stop - start, flat(source[start:stop])
        with backends.workspace(np.float64, (number * gradient.shape[1],), (cells.size,)) as (norms, totals):
            forward.run(cells, norms, *forward.loop_arguments, 0, number * forward.units // planes)
            scale(flat(gradient[start:stop]), norms, spec.p)
            backward.run(norms, totals, *backward.loop_arguments, 0, number * backward.units // planes)
            slope(totals, cells, result[start:stop].reshape(-1), spec.p)

    def run(dy: Array, x: Array) -> Array:
        dx = new()
        if dx.size:
            in_chunks(sums, *(to_lanes(a).reshape(planes, -1) for a in (dy, x, dx)))
        return dx

    return run
