"""The emulator's traffic count: access patterns whose sectors are known, and a lockstep count of its own in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import simt
from .simt.kernels import every_order, module, needs_emulator

pytestmark = needs_emulator


def traffic(
    name: str, a: np.ndarray, b: np.ndarray, n: int, grid: int = 2, block: int = 256, **how: Any
) -> simt.Traffic:
    counted = module("traffic").launch(name, (grid,), (block,), (a, b, np.int32(n)), traffic=True, **how)
    assert counted is not None
    return counted


def array(n: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(n, dtype)


PATTERNS = {  # kernel, a, b, n; then coalescing and requests, (read, written)
    "contiguous": ("copy<float>", array(4096), array(4096), 4096, (1, 1), (128, 128)),
    "doubles": ("copy<double>", array(4096, "float64"), array(4096, "float64"), 4096, (1, 1), (128, 128)),
    "bytes": ("copy<unsigned char>", array(4096, "uint8"), array(4096, "uint8"), 4096, (1, 1), (128, 128)),
    "halves": ("copy<__half>", array(4096, "float16"), array(4096, "float16"), 4096, (1, 1), (128, 128)),
    "float4": ("copy<float4>", array(4096), array(4096), 1024, (1, 1), (32, 32)),
    "float4 by __ldg and __stcs": ("copy_hinted<float4>", array(4096), array(4096), 1024, (1, 1), (32, 32)),
    "float4 through its members": ("members", array(4096), array(4096), 1024, (1, 1), (32, 32)),
    "eight halves": ("twice<Pack<__half, 8>>", array(4096, "float16"), array(4096, "float16"), 512, (1, 1), (16, 16)),
    "four scalars a thread": ("four_scalars", array(4096), array(4096), 1024, (4, 4), (128, 128)),
    "every other": ("every_other", array(4096), array(2048), 2048, (2, 1), (64, 64)),
    "column": ("column", array(4096), array(4096), 4096, (8, 1), (128, 128)),
    "broadcast": ("broadcast", array(8), array(4096), 4096, (1 / 4, 1), (128, 128)),  # a sector for 32 lanes of 4 bytes
    "through shared memory": ("reversed_in_shared", array(4096), array(4096), 4096, (1, 1), (128, 128)),
}


@every_order
@pytest.mark.parametrize("pattern", PATTERNS)
def test_known_traffic(pattern: str, order: str) -> None:
    name, a, b, n, coalescing, requests = PATTERNS[pattern]
    t = traffic(name, a, b, n, order=order, grid=16 if "shared" in name else 2)
    assert (t.coalescing, t.requests) == (coalescing, requests)
    assert t.distinct[1] == b.nbytes // simt.SECTOR
    assert t.args[0].distinct[1] == t.args[1].distinct[0] == 0
    if pattern not in ("broadcast", "column"):
        assert (t.bytes[1], t.distinct[0]) == (b.nbytes, a.nbytes // simt.SECTOR)


def test_an_array_off_by_one_element_costs_a_sector_a_warp() -> None:
    t = traffic("copy<float>", array(4097)[1:], array(4096), 4096)
    assert t.sectors == (128 * 5, 128 * 4)
    assert t.distinct == (513, 512)
    assert t.reread == (640 / 513, 1)
    assert t.over(2 * 4096 * 4) == (32 * (640 + 512) / 32768, 32 * 1025 / 32768)


def test_reading_again_and_two_launches_together() -> None:
    t = traffic("thrice", array(4096), array(4096), 4096)
    assert t.args[0].reread == (3, None)
    assert t.args[1].reread == (2, 3)
    assert t.distinct == (1024, 512)
    assert traffic("column", array(4096), array(4096), 4096).reread == (8, 1)
    both = t + traffic("copy<float>", array(4096), array(4096), 4096)
    assert both.bytes == (16384 * 6, 16384 * 4)


@every_order
def test_lanes_with_different_trip_counts_line_up(order: str) -> None:
    t = traffic("ragged", np.arange(256, dtype=np.float32), array(32), 32, grid=1, block=32, order=order)
    assert (t.requests[0], t.sectors[0], t.bytes[0]) == (8, 2 * 16, 2 * 4 * (32 + 24 + 16 + 8))


def test_long_traces_are_merged_as_they_grow() -> None:
    t = traffic("copy<float>", array(1 << 17), array(1 << 17), 1 << 17, grid=1, block=32)
    assert (t.requests, t.coalescing) == ((1 << 12, 1 << 12), (1, 1))


def gathered_sectors(argmax: np.ndarray, h: int, w: int) -> list[int]:
    """Sectors that the gather asks for, argmax and dy, if the lanes of a warp go in lockstep."""
    planes, oh, ow = argmax.shape
    i = np.arange(planes * h * w).reshape(-1, 32)
    x, y, plane = i % w + 1, i // w % h + 1, i // (w * h)
    first = [np.where(v < 3, 0, (v - 3) // 2 + 1) for v in (y, x)]
    asked = [0, 0]
    for r in range(2):
        for c in range(2):
            row, column = first[0] + r, first[1] + c
            on = (row < np.minimum(y // 2 + 1, oh)) & (column < np.minimum(x // 2 + 1, ow))
            o = np.where(on, (plane * oh + row) * ow + column, 0)
            hit = on & (argmax.reshape(-1)[o] == (y - 2 * row) * 3 + x - 2 * column)
            for k, (mask, size) in enumerate(((on, 1), (hit, 4))):
                asked[k] += sum(len(set(lane[m] * size // simt.SECTOR)) for lane, m in zip(o, mask, strict=True))
    return asked


@every_order
@pytest.mark.parametrize(("planes", "h", "w"), [(2, 32, 32), (6, 16, 20)])
def test_a_divergent_gather_counts_as_in_lockstep(planes: int, h: int, w: int, order: str) -> None:
    rng, oh, ow = np.random.default_rng(0), h // 2, w // 2
    argmax = rng.integers(0, 9, (planes, oh, ow), np.uint8)
    args = (rng.random(argmax.shape, np.float32), argmax, np.empty((planes, h, w), np.float32))
    sizes = map(np.int32, (planes * h * w, h, w, oh, ow))
    t = module("traffic").launch("gather", (3,), (256,), (*args, *sizes), order=order, traffic=True)
    assert t is not None
    assert [t.args[1].sectors[0], t.args[0].sectors[0]] == gathered_sectors(argmax, h, w)
    assert t.args[2].coalescing == (None, 1)
