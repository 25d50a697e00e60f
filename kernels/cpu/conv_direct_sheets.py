"""The sheets of direct convolution (conv_direct_loops.py): cells of an array in rows with zeros for the padding, and
results in such rows back to an array.

All arrays are flat. `axes` has a row for each spatial axis and the columns named below; `sizes` has the entries named
below. A *box* has for each axis the first window and the number of windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel
from .vectors import LANES, evens, interleave_high, interleave_low, load, load_first, store, store_first

Array = Any
U = np.uint64  # unsigned offsets need no test for negative ones

# Columns of `axes`. WINDOWS: positions on the axis. REACH: cells that a window reads beyond its first. PITCH: the
# distance of rows (on the last axis), of planes of rows, or of samples, counted in cells, rows and planes.
LENGTH, STEP, WINDOWS, REACH, PITCH, TARGET_LENGTH, TARGET_STEP = range(7)
# Entries of `sizes`. CELL: elements from one cell to the next; a negative one does not occur.
SAMPLES, GROUPS, CHANNELS, FILTERS, BATCH, BAND_AXIS, BAND, BANDS, SHEET = range(9)
SOURCE_SAMPLE, SOURCE_CHANNEL, SOURCE_CELL, TARGET_SAMPLE, TARGET_CHANNEL, TARGET_CELL = range(9, 15)


# -------------------------------------------------------------------------------------------------------- rows of cells
@kernel(allocates=False)
def _copy(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours."""
    done = count & ~15
    for i in range(0, done, LANES):
        store(target, to + i, load(source, at + i))
    if done < count:
        store_first(target, to + done, load_first(source, at + done, count - done), count - done)


@kernel(allocates=False)
def _fill(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours, and put up to 15 zeros after them."""
    done = count & ~15
    for i in range(0, done, LANES):
        store(target, to + i, load(source, at + i))
    if done < count:
        store(target, to + done, load_first(source, at + done, count - done))


@kernel(allocates=False)
def _fill_by_two(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy every second cell to neighbours, and put up to 15 zeros after them."""
    cells = 2 * count - 1
    for i in range(0, cells, 2 * LANES):
        low, high = load_first(source, at + i, cells - i), load_first(source, at + i + LANES, cells - i - LANES)
        store(target, to + i // 2, evens(low, high))


@kernel(allocates=False)
def _gather(source: Array, at: int, step: int, target: Array, to: int, count: int) -> None:
    """Copy cells, `step` apart, to neighbours."""
    for i in range(U(count)):
        target[U(to) + i] = source[U(at) + i * U(step)]


@kernel(allocates=False)
def scatter(source: Array, at: int, target: Array, to: int, step: int, count: int) -> None:
    """Copy neighbours to cells that are `step` apart."""
    for i in range(U(count)):
        target[U(to) + i * U(step)] = source[U(at) + i]


@kernel(allocates=False)
def scatter_pairs(source: Array, even: int, odd: int, target: Array, to: int, count: int) -> None:
    """Copy neighbours at two places to `count` cells, alternately."""
    for i in range(0, count, 2 * LANES):
        x, y = load(source, even + i // 2), load(source, odd + i // 2)
        store_first(target, to + i, interleave_low(x, y), count - i)
        store_first(target, to + i + LANES, interleave_high(x, y), count - i - LANES)


@kernel(allocates=False)
def _span(first: int, step: int, length: int, limit: int) -> Any:
    """Which of `limit` cells, `step` apart from cell `first` on, are inside an axis: the first, and the one after the
    last."""
    low = min(limit, max(0, -(first // step)))
    return low, max(low, min(limit, (length - 1 - first) // step + 1))


@kernel(allocates=False)
def fill_sheets(
    source: Array, base: int, channels: int, samples: int, strides: Array, axes: Array, box: Array, starts: Array,
    sheets: Array, sheet: int,
) -> None:  # fmt: skip
    """Copy the cells that the windows of a box see. starts: for each phase of the stride, the cell of sheet cell 0.

    Rows are copied in order, because the zeros after a row may go to where later rows begin.

    box: for each axis the first window and their number."""
    by_sample, by_channel, by_cell = strides[0], strides[1], strides[2]
    step_x = axes[2, STEP] * by_cell
    for phase in range(len(starts)):
        z0 = starts[phase, 0] + box[0, 0] * axes[0, STEP]
        y0 = starts[phase, 1] + box[1, 0] * axes[1, STEP]
        x0 = starts[phase, 2] + box[2, 0] * axes[2, STEP]
        front, behind = _span(z0, axes[0, STEP], axes[0, LENGTH], box[0, 1] + axes[0, REACH])
        top, bottom = _span(y0, axes[1, STEP], axes[1, LENGTH], box[1, 1] + axes[1, REACH])
        left, right = _span(x0, axes[2, STEP], axes[2, LENGTH], box[2, 1] + axes[2, REACH])
        x0 += left * axes[2, STEP]
        for n in range(samples):
            for z in range(front, behind):
                for y in range(top, bottom):
                    row = (z0 + z * axes[0, STEP]) * axes[1, LENGTH] + y0 + y * axes[1, STEP]
                    at = base + n * by_sample + (row * axes[2, LENGTH] + x0) * by_cell
                    to = ((n * axes[0, PITCH] + z) * axes[1, PITCH] + y) * axes[2, PITCH] + left
                    to += phase * sheet
                    for _ in range(channels):
                        if step_x == 1:
                            _fill(source, at, sheets, to, right - left)
                        elif step_x == 2:
                            _fill_by_two(source, at, sheets, to, right - left)
                        else:
                            _gather(source, at, step_x, sheets, to, right - left)
                        at, to = at + by_channel, to + len(starts) * sheet


@kernel(allocates=False)
def zero(array: Array, to: int, count: int) -> None:
    for i in range(U(to), U(to + count)):
        array[i] = 0.0


@kernel(allocates=False)
def positions(axes: Array, box: Array, samples: int) -> Any:
    """Positions p of a box of windows, up to the last window."""
    rows = ((samples - 1) * axes[0, PITCH] + box[0, 1] - 1) * axes[1, PITCH] + box[1, 1] - 1
    return rows * axes[2, PITCH] + box[2, 1]


@kernel(allocates=False)
def set_box(axes: Array, sizes: Array, band: int, box: Array) -> None:
    """The windows of a band."""
    for axis in range(3):
        box[axis, 0], box[axis, 1] = 0, axes[axis, WINDOWS]
    axis, first = sizes[BAND_AXIS], band * sizes[BAND]
    box[axis, 0], box[axis, 1] = first, min(sizes[BAND], axes[axis, WINDOWS] - first)


@kernel(allocates=False)
def target_windows(axes: Array, box: Array, outputs: Array, phase: int, axis: int) -> Any:
    """How many windows of a box have a target cell on an axis. Where a stride does not divide the target, the last
    windows of some phases have none. outputs: for each phase the target's cell of window 0 on each axis."""
    cells = axes[axis, TARGET_LENGTH] - outputs[phase, axis]
    return max(0, min(box[axis, 1], -(-cells // axes[axis, TARGET_STEP]) - box[axis, 0]))


@kernel(allocates=False)
def target_cell(axes: Array, box: Array, outputs: Array, phase: int, z: int, y: int) -> Any:
    """The target's cell of the first window of a box's row."""
    cell = (outputs[phase, 0] + (box[0, 0] + z) * axes[0, TARGET_STEP]) * axes[1, TARGET_LENGTH]
    cell = (cell + outputs[phase, 1] + (box[1, 0] + y) * axes[1, TARGET_STEP]) * axes[2, TARGET_LENGTH]
    return cell + outputs[phase, 2] + box[2, 0] * axes[2, TARGET_STEP]


@kernel(allocates=False)
def list_rows(
    axes: Array, box: Array, samples: int, outputs: Array, phase: int, sizes: Array, pairs: bool, start: int, stop: int,
    rows: Array,
) -> int:  # fmt: skip
    """The rows of target cells whose results are at positions `start` to `stop`: their first position less `start`, the
    number of their cells, and the first of them. Returns the number of rows.

    outputs: for each phase the target's cell of window 0 on each axis. pairs: every position has results for two
    neighbours."""
    depth, height, width = (
        target_windows(axes, box, outputs, phase, 0), target_windows(axes, box, outputs, phase, 1),
        target_windows(axes, box, outputs, phase, 2),
    )  # fmt: skip
    number, p = 0, start
    while p < stop:
        line, x = p // axes[2, PITCH], p % axes[2, PITCH]
        plane, y = line // axes[1, PITCH], line % axes[1, PITCH]
        n, z = plane // axes[0, PITCH], plane % axes[0, PITCH]
        until = min(stop, p - x + axes[2, PITCH])
        count = min(until - p, width - x)
        if count > 0 and y < height and z < depth and n < samples:
            cell, first = target_cell(axes, box, outputs, phase, z, y), x * axes[2, TARGET_STEP]
            rows[number, 0] = p - start
            rows[number, 1] = min(2 * count, axes[2, TARGET_LENGTH] - 2 * box[2, 0] - first) if pairs else count
            rows[number, 2] = n * sizes[TARGET_SAMPLE] + (cell + first) * sizes[TARGET_CELL]
            number += 1
        p = until
    return number


@kernel(allocates=False)
def store_rows(out: Array, at: int, odd: int, target: Array, base: int, step: int, rows: Array, number: int) -> None:
    """Copy the results of one filter to the target's rows.

    odd: where the results for the odd cells of pairs are, if `at` has those for the even ones; else negative."""
    for i in range(number):
        position, count, to = rows[i, 0], rows[i, 1], base + rows[i, 2]
        if odd >= 0:
            scatter_pairs(out, at + position, odd + position, target, to, count)
        elif step == 1:
            _copy(out, at + position, target, to, count)
        else:
            scatter(out, at + position, target, to, step, count)
