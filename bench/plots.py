"""The pictures of a run. Matplotlib is imported only here, when drawing, without its global state.

Blue is this library, orange PyTorch (its fastest variant in the run); full colour is forward, pale is backward.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

from .cases import BACKWARD, FORWARD, said
from .measure import OURS, Row
from .report import geometric_mean, number

BLUE, ORANGE, INK, FAINT = "#2f6ea8", "#d1702b", "#22262a", "#9aa0a6"
ALPHA = {FORWARD: 1.0, BACKWARD: 0.45}
OFFSET = {FORWARD: -0.2, BACKWARD: 0.2}
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
Lines = dict[str, dict[str, Row]]  # a case's label -> its parts


def pictures(rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, bytes]:
    """PNGs by the ending of their names: "" is all in one, the others are one panel each. A panel without data is left
    out. Raises ImportError where matplotlib is not installed."""
    import matplotlib.figure  # noqa: F401

    lines, sizes = table(rows), sweep(rows)
    panels: dict[str, Callable[[Any], None]] = {}
    heights: dict[str, float] = {}
    for name, group in (("ratios", "main"), ("breadth", "breadth"), ("small", "small")):
        found = table(rows, group)
        if any(row.ratio(row.reference) for parts in found.values() for row in parts.values()):
            panels[name] = functools.partial(ratios, lines=found)
            heights[name] = 1.6 + 0.34 * len(found)
    if bounded(lines):
        panels["bandwidth"] = lambda part: shares(part, bounded(lines))
    if kept(lines):
        panels["memory"] = lambda part: memory(part, kept(lines))
    if sizes:
        panels["sizes"] = lambda part: growth(part, sizes, facts)
    heights = dict.fromkeys(panels, 1.6 + 0.34 * len(lines)) | {"sizes": 4.2} | heights
    widths = dict.fromkeys(panels, 11.0) | {"sizes": 4.4 * max(1, len(sizes))}
    drawn = {f"-{name}": _png((widths[name], max(3.0, heights[name])), facts, panel) for name, panel in panels.items()}
    if {"ratios", "bandwidth", "memory", "sizes"} <= set(panels):
        drawn[""] = _png((20, max(12.0, 8 + 0.34 * len(lines))), facts, lambda part: _all(part, panels))
    return drawn


def _all(part: Any, panels: dict[str, Callable[[Any], None]]) -> None:
    upper, lower = part.subfigures(2, 1, height_ratios=(1.9, 1))
    left, middle, right = upper.subfigures(1, 3, width_ratios=(1.25, 1, 1))
    for place, name in ((left, "ratios"), (middle, "bandwidth"), (right, "memory"), (lower, "sizes")):
        panels[name](place)
    for place in (middle, right):  # their lines are the left panel's
        for axes in place.axes:
            axes.tick_params(axis="y", labelsize=7)


def _png(size: tuple[float, float], facts: dict[str, Any], draw: Callable[[Any], None]) -> bytes:
    """A figure with its origin below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 0.5 / size[1]))
    body, foot = parts
    draw(body)
    versions = facts["versions"]
    torch = f", PyTorch {versions['torch']}" if "torch" in versions else ""
    origin = f"{facts['device']}, {facts['threads']} threads each · cnnlayers {versions['cnnlayers']}"
    origin += f" ({facts['commit'] or 'no commit'}){torch} · {facts['date']}"
    foot.text(0.01, 0.5, origin, fontsize=8, color=FAINT, va="center")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


# --------------------------------------------------------------------------------------------------------- what to draw
def table(rows: Sequence[Row], group: str = "main") -> Lines:
    """A group's cases, forward and backward; of the main ones on a GPU float16's where it was measured."""
    wanted = [row for row in rows if row.case.group == group and row.part in (FORWARD, BACKWARD)]
    half = group == "main" and {row.case.dtype for row in wanted} >= {"float16"}
    lines: Lines = {}
    for row in wanted:
        if not half or row.case.dtype == "float16":
            lines.setdefault(_label(row), {})[row.part] = row
    return lines


def _dtype(lines: Lines) -> str:
    """The lines' dtype, where it is not float32."""
    dtypes = {row.case.dtype for rows in lines.values() for row in rows.values()} - {"float32"}
    return "".join(f", {dtype}" for dtype in sorted(dtypes))


def _label(row: Row) -> str:
    case = row.case
    dtype = "" if case.dtype == "float32" else f" {case.dtype}"
    return f"{case.op.replace('adaptive_avg_pool', 'avg_pool')} {case.title}".strip() + f"{dtype}  {said(case.shape)}"


def bounded(lines: Lines) -> Lines:
    """The lines that memory bounds."""
    return {name: parts for name, parts in lines.items() if any(r.least_bytes and r.share() for r in parts.values())}


def kept(lines: Lines) -> Lines:
    """The lines that say what both keep for backward."""
    return {name: p for name, p in lines.items() if BACKWARD in p and {OURS, "pytorch"} <= set(p[BACKWARD].kept)}


def sweep(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of the size sweep by op."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.case.group == "sweep" and OURS in row.times:
            found.setdefault(f"{row.case.op} {row.case.title}".strip(), []).append(row)
    return found


# --------------------------------------------------------------------------------------------------------------- panels
def ratios(part: Any, lines: Lines) -> None:
    """How many times PyTorch's speed, on a logarithmic axis."""
    axes = part.subplots()
    found = {(name, p): r for name, rows in lines.items() for p, row in rows.items() if (r := row.ratio(row.reference))}
    places = {name: i for i, name in enumerate(lines)}
    for (name, p), ratio in found.items():
        y = places[name] + OFFSET[p]
        axes.barh(y, ratio - 1, left=1, height=0.36, color=BLUE if ratio >= 1 else ORANGE, alpha=ALPHA[p])
        axes.text(ratio * (1.02 if ratio >= 1 else 0.98), y, number(ratio, 2), fontsize=7, color=INK, va="center",
                  ha="left" if ratio >= 1 else "right", zorder=5,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1)
    low, high = min(0.7, *found.values()) / 1.2, max(2.0, *found.values()) * 1.3
    _ticks(axes, low, high, "×")
    _rows(axes, lines)
    mean = number(geometric_mean(found.values()), 2)
    axes.set_title(f"Speed relative to PyTorch (geometric mean {mean})", fontweight="bold", loc="left", pad=20)
    axes.set_xlabel("PyTorch's time / ours (logarithmic)")
    _legend(axes, [(BLUE, FORWARD), (BLUE, BACKWARD)])


def shares(part: Any, lines: Lines) -> None:
    """The least bytes over the time, beside the measured copy."""
    axes = part.subplots()
    for i, rows in enumerate(lines.values()):
        for p, row in rows.items():
            y = i + OFFSET[p]
            axes.barh(y, 100 * (row.share() or 0), height=0.36, color=BLUE, alpha=ALPHA[p])
            theirs = row.share(row.reference) if row.reference else None
            if theirs is not None:
                axes.plot(100 * theirs, y, "D", color=ORANGE, markersize=4, alpha=max(0.6, ALPHA[p]))
    axes.axvline(100, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(0, max(105, axes.get_xlim()[1]))
    _rows(axes, lines)
    axes.set_title(f"Memory bandwidth used{_dtype(lines)}", fontweight="bold", loc="left", pad=20)
    axes.set_xlabel("least bytes / time, % of a copy's")
    _legend(axes, [(BLUE, FORWARD), (BLUE, BACKWARD)], diamond="PyTorch")


def memory(part: Any, lines: Lines) -> None:
    """Megabytes alive between forward and backward, on a logarithmic axis, and PyTorch's over ours."""
    axes = part.subplots()
    least = 0.1  # what is less is not seen
    for i, rows in enumerate(lines.values()):
        ours, theirs = (max(least, rows[BACKWARD].kept[name] / 1e6) for name in (OURS, "pytorch"))
        axes.barh(i - 0.2, ours, left=0, height=0.36, color=BLUE)
        axes.barh(i + 0.2, theirs, left=0, height=0.36, color=ORANGE)
        nothing = "we keep nothing" if theirs > least else "nobody keeps anything"
        said = f"{number(theirs / ours, 2)}×" if ours > least else nothing
        axes.text(max(ours, theirs) * 1.15, i, said, fontsize=8, va="center", color=INK)
    axes.set_xscale("log")
    most = max(max(rows[BACKWARD].kept.values()) for rows in lines.values()) / 1e6
    axes.set_xlim(least, most * 30)
    _rows(axes, lines)
    axes.set_title("Memory kept for the backward pass", fontweight="bold", loc="left", pad=20)
    axes.set_xlabel("MB (logarithmic); beside: PyTorch / ours")
    _legend(axes, [(BLUE, OURS), (ORANGE, "PyTorch")])


def growth(part: Any, sizes: dict[str, list[Row]], facts: dict[str, Any]) -> None:
    """Time against size, both logarithmic, with the time that the memory's limit allows."""
    panels = part.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, sizes.items(), strict=True):
        for p, style in ((FORWARD, "-"), (BACKWARD, "--")):
            of = [row for row in rows if row.part == p]
            for name, colour in (("pytorch", ORANGE), (OURS, BLUE)):
                points = [(_elements(row), row.times[name].median * 1e3) for row in of if name in row.times]
                if points:
                    label = f"{'PyTorch' if name == 'pytorch' else name}, {p}"
                    axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=label)
        limit = [(_elements(r), r.least_bytes / r.bandwidth * 1e3) for r in rows if r.part == FORWARD and r.least_bytes]
        if limit:
            axes.plot(*zip(*limit, strict=True), ":", color=FAINT, label="as fast as a copy, forward")
        axes.set_title(title, fontweight="bold", loc="left")
        axes.set(xscale="log", yscale="log", xlabel="elements of x")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms")
    panels[0].legend(frameon=False, fontsize=8)


def _elements(row: Row) -> int:
    n = 1
    for length in row.case.shape:
        n *= length
    return n


# ------------------------------------------------------------------------------------------------------ what they share
def _rows(axes: Any, lines: Lines) -> None:
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _ticks(axes: Any, low: float, high: float, unit: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xlim(low, high)
    ticks = [t for t in TICKS if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}{unit}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(axes: Any, bars: Sequence[tuple[str, str]], diamond: str = "") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [Patch(color=colour, alpha=ALPHA.get(name, 1.0), label=name) for colour, name in bars]
    if diamond:
        marks.append(Line2D([], [], color=ORANGE, marker="D", linestyle="", markersize=4, label=diamond))
    axes.legend(
        handles=marks, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 0.995), ncols=len(marks),
        handlelength=1.2, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
