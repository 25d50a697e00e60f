"""Launchers of lp pooling: the loops of avg_pool_loops.py, with the powers of lp_pool_loops.py. Arguments are the
portable code's.

Chunks of backward are planes. For each group of them there are two temporary arrays of float64, of the sizes of its
windows and cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnlayers import backends
from cnnlayers.specs import LpPool

from .avg_pool import pooling_plan, prepared_loop
from .lp_pool_loops import make_backward, power_name
from .parallel import chunked, launcher, to_lanes
from .vectors import LANES
from .windows import planes_and_channels, refusal

Array = Any
GROUP_CELLS = 16384  # of some planes of x, at most: their arrays of float64 are then in the L2 cache
NO_NUMBERS = np.empty(0, np.float64)  # the workspace's dtype


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
    new, planes = backends.new_result(x.shape, x.dtype), planes_and_channels(spec.window)[0]
    if not x.size:
        return lambda dy, x: new()
    group = max(1, min(planes, GROUP_CELLS * planes // x.size))
    lengths = tuple(group * a.size // planes + LANES for a in (dy, x))
    in_chunks = chunked(planes, dy.nbytes + 2 * x.nbytes)
    loop = make_backward(forward.run, backward.run, power_name(spec.p))
    numbers = (group, planes, forward.units // planes, backward.units // planes), float(spec.p)

    def run(dy: Array, x: Array) -> Array:
        dx = new()
        arrays = to_lanes(dy), to_lanes(x), to_lanes(dx)
        in_chunks(loop, NO_NUMBERS, *arrays, forward.arguments, backward.arguments, *numbers, workspace=lengths)
        return dx

    return run
