"""The table, line by line as rows come in, and as Markdown; the summary; the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import STEP
from .measure import OURS, Row

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A heading and its width; numbers stand to the right."""

    name: str
    width: int
    left: bool = False


COLUMNS = (  # 100 with the spaces between
    Column("case", 43, True),
    Column("part", 9, True),
    Column("ours ms", 8),
    Column("PyTorch", 8),
    Column("ratio", 6),
    Column("spread", 6),
    Column("of limit", 8),
    Column("check", 5, True),
)
LEGEND = (
    "ratio: PyTorch's time / ours. spread: of our calls around their median. of limit: what an op needs at least, of",
    "the copy's bandwidth (bytes), or of the matrix product's speed (a convolution's operations by its definition).",
)
BUSY = 0.5  # threads a core that others keep busy
UNSTEADY = 1.3  # the fastest row of the copy, or of the product, over its slowest


def number(value: float | None, digits: int = 3) -> str:
    """Three figures, without an exponent."""
    if value is None or not math.isfinite(value):
        return NOTHING if value is None else str(value)
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.0%}".replace("%", " %")


def cells(row: Row) -> list[str]:
    """A row's cells, in COLUMNS' order."""
    times, reference = row.times, row.reference
    ours = times.get(OURS)
    return [
        row.case.name,
        row.part,
        "FAILED" if ours is None else number(ours.median * 1e3) + ("*" if ours.host_bound else ""),
        number(times[reference].median * 1e3) if reference else NOTHING,
        number(row.ratio(reference)),
        NOTHING if ours is None else "± " + percent(ours.spread).replace(" ", ""),
        percent(row.share()),
        _check(row),
    ]


def _check(row: Row) -> str:
    """Whether the result is the peers', and the same bits each time."""
    if row.mismatches:
        return "WRONG"
    if not row.same_bits:
        return "DIFFER"
    return "ok" if row.errors else "same" if row.repeated else NOTHING


def heading() -> str:
    return line([column.name for column in COLUMNS])


def line(found: Sequence[str]) -> str:
    """Cells at their columns' widths."""
    padded = [
        cell.ljust(column.width) if column.left else cell.rjust(column.width)
        for column, cell in zip(COLUMNS, found, strict=True)
    ]
    return " ".join(padded).rstrip()


def troubles(row: Row) -> list[str]:
    """What is wrong with a row, a sentence each."""
    where = f"{row.case.name}, {row.part}, {row.case.dtype}"
    found = [
        f"{where}: our result is not {name}'s: error {row.errors[name]:.2g}, tolerance {row.tolerance:g}"
        for name in row.mismatches
    ]
    found += [f"{where}: {name} failed: {reason}" for name, reason in row.failed.items()]
    if not row.same_bits:
        found.append(f"{where}: {row.repeated} repeated runs did not give the same bits")
    return found


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """None where there is no value."""
    logs = [math.log(v) for v in values if v is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def busy(facts: dict[str, Any]) -> list[str]:
    """A warning, where others use the machine."""
    load, cores = facts.get("load"), facts.get("cores")
    if not load or not cores or load < BUSY * cores:
        return []
    return [f"the machine is busy (load {load:.1f} on {cores} cores): figures may be far off"]


def _together(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """PyTorch's time over ours for all parts of a case together, with the case's name, the lowest first."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        if row.ratio(row.reference) is not None:
            cases.setdefault(row.case.name, []).append(row)
    sums = {
        name: (sum(r.times[str(r.reference)].median for r in found), sum(r.times[OURS].median for r in found))
        for name, found in cases.items()
    }
    return sorted((theirs / ours, name) for name, (theirs, ours) in sums.items())


def _compared(title: str, ratios: Sequence[tuple[float, str]], of: str) -> str:
    mean, (least, name) = geometric_mean(ratio for ratio, _ in ratios), ratios[0]
    return f"{title}: {number(mean)} times PyTorch's speed ({of}), lowest {number(least)} ({name})"


def summary(rows: Sequence[Row]) -> list[str]:
    """What the table comes to."""
    said = []
    for group in dict.fromkeys(row.case.group for row in rows):
        own = [row for row in rows if row.case.group == group]
        if group == "small":
            each = sorted((r, f"{row.case.name}, {row.part}") for row in own if (r := row.ratio(row.reference)))
            if each:
                said.append(_compared(group, each, f"geometric mean of {len(each)} rows"))
        together = _together(own)
        if together:
            said.append(_compared(group, together, f"geometric mean of {len(together)} cases, all parts together"))
    for what, bound in (("memory", "least_bytes"), ("arithmetic", "operations")):
        wanted = [row for row in rows if row.case.group in ("main", "breadth") and getattr(row, bound)]
        shares = sorted((share, f"{row.case.name}, {row.part}") for row in wanted if (share := row.share()))
        if shares:
            mean, (least, name) = geometric_mean(share for share, _ in shares), shares[0]
            said.append(
                f"share of the limit, {what}: {percent(mean)} (geometric mean), lowest {percent(least)} ({name})"
            )
    for name in dict.fromkeys(name for row in rows for name in row.times if name != OURS):
        compared = [r for row in rows if (r := row.ratio(name)) is not None]
        said.append(f"{name}: {number(geometric_mean(compared))} times its speed, over {len(compared)} rows")
    return said + _doubts(rows)


def _doubts(rows: Sequence[Row]) -> list[str]:
    """What makes the figures less sure."""
    said = []
    for name, unit, speeds in (
        ("copy", "GB/s", [row.bandwidth for row in rows]),
        ("matrix product", "GFLOP/s", [row.peak for row in rows]),
    ):
        found = [speed / 1e9 for speed in speeds if math.isfinite(speed)]
        if found and max(found) > UNSTEADY * min(found):
            low, high = f"{min(found):.3g}", f"{max(found):.3g}"
            said.append(f"the {name} ran at {low} to {high} {unit}: other programs used the machine meanwhile")
    starved = sum(row.times[OURS].host_bound for row in rows if OURS in row.times and row.part != STEP)
    if starved:
        said.append(f"* {starved} rows: the host did not keep ahead of the GPU, so its own time is in them")
    return said


def markdown(rows: Sequence[Row], facts: dict[str, Any], said: Sequence[str]) -> str:
    """The kept table: how it was made, what it says, every row."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"# {facts['device']}",
        "",
        f"{facts['date']}, commit {facts['commit'] or 'unknown'}, `{facts['command']}`, {facts['threads']} threads"
        f" (PyTorch has as many), copy bandwidth {facts['copy_bytes_a_second'] / 1e9:.1f} GB/s, matrix product"
        f" {facts['peak_operations_a_second'] / 1e9:.0f} GFLOP/s.",
        "",
        *LEGEND,
        "",
        f"{versions}.",
        "",
        *(f"- {line}" for line in said),
        "",
        "| " + " | ".join(column.name for column in COLUMNS) + " | others' time / ours |",
        "|" + "|".join(" --- " if column.left else " ---: " for column in COLUMNS) + "| --- |",
        *("| " + " | ".join([*cells(row), _others(row)]) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _others(row: Row) -> str:
    names = [name for name in row.times if name not in (OURS, row.reference)]
    return ", ".join(f"{name} {number(row.ratio(name), 2)}" for name in names)


def as_json(rows: Sequence[Row], facts: dict[str, Any], said: Sequence[str], complete: bool) -> str:
    """Everything that was measured; what is no number is null."""
    record = {**facts, "complete": complete, "summary": list(said), "rows": [row.record() for row in rows]}
    return json.dumps(_finite(record), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
