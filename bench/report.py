"""The table, line by line as rows come in, and as Markdown; the summary; the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import GEOMETRIC_MEAN, LEAST, STEP, Target
from .measure import OURS, Row

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A heading and its width; numbers stand to the right."""

    name: str
    width: int
    left: bool = False


COLUMNS = (
    Column("case", 46, True),
    Column("part", 9, True),
    Column("dtype", 8, True),
    Column("ours ms", 9),
    Column("PyTorch ms", 10),
    Column("ratio", 6),
    Column("target", 14),
    Column("met", 4, True),
    Column("GB/s", 7),
    Column("of copy", 7),
    Column("bits", 5, True),
    Column("check", 7, True),
    Column("others, times ours", 0, True),
)


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


def aim(target: Target | None) -> str:
    """A target in a word or two."""
    if target is None:
        return NOTHING
    parts = [f"{target.ratio:g}×"] if target.ratio is not None else []
    parts += [percent(target.share)] if target.share is not None else []
    return ", ".join(parts) or NOTHING


def cells(row: Row) -> list[str]:
    """A row's cells, in COLUMNS' order."""
    times, reference = row.times, row.reference
    others = [
        f"{name} {number(row.ratio(name), 2)}"
        for name in times
        if name not in (OURS, "pytorch") or (name == "pytorch" and name != reference)
    ]
    bits = NOTHING if not row.repeated else ("same" if row.same_bits else "DIFFER")
    return [
        row.case.name,
        row.part,
        row.case.dtype,
        number(times[OURS].median * 1e3) + ("*" if times[OURS].host_bound else "") if OURS in times else "FAILED",
        number(times[reference].median * 1e3) if reference else NOTHING,
        number(row.ratio(reference)),
        aim(row.target),
        {True: "yes", False: "no", None: ""}[row.met],
        _rate(row),
        percent(row.share()),
        bits,
        _check(row),
        "  ".join(others),
    ]


def _rate(row: Row) -> str:
    """Bytes a second; of a convolution its operations, marked so."""
    if row.bytes_a_second is not None:
        return number(row.bytes_a_second / 1e9)
    if row.operations is not None and OURS in row.times:
        return number(row.operations / row.times[OURS].median / 1e9) + " GF"
    return NOTHING


def _check(row: Row) -> str:
    if row.mismatches:
        return "WRONG"
    return "ok" if row.errors else NOTHING


def heading() -> str:
    return line([column.name for column in COLUMNS])


def line(found: Sequence[str]) -> str:
    """Cells at their columns' widths."""
    padded = [
        cell.ljust(column.width) if column.left else cell.rjust(column.width)
        for column, cell in zip(COLUMNS, found, strict=True)
    ]
    return "  ".join(padded).rstrip()


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


def summary(rows: Sequence[Row], device: str) -> list[str]:
    """What the table comes to."""
    said = []
    aimed = [row for row in rows if row.case.group == "targets" and row.target]
    ratios = [(r, row) for row in aimed if (r := row.ratio(row.reference)) is not None]
    if ratios:
        mean, (least, lowest) = geometric_mean(r for r, _ in ratios), min(ratios, key=lambda pair: pair[0])
        goals = [f", target {goal:g}" if device == "cpu" else "" for goal in (GEOMETRIC_MEAN, LEAST)]
        said.append(
            f"{len(ratios)} rows with a target: {number(mean)} times PyTorch's speed (geometric mean){goals[0]}"
        )
        said.append(f"lowest ratio: {number(least)} ({lowest.case.name}, {lowest.part}){goals[1]}")
    judged = [row for row in rows if row.met is not None]
    if judged:
        said.append(f"targets met: {sum(bool(row.met) for row in judged)} of {len(judged)}")
    names = dict.fromkeys(name for row in rows for name in row.times if name != OURS)
    for name in names:
        compared = [r for row in rows if (r := row.ratio(name)) is not None]
        said.append(f"{name}: {number(geometric_mean(compared))} times its speed, over {len(compared)} rows")
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
        f" (PyTorch has as many), copy bandwidth {facts['copy_bytes_a_second'] / 1e9:.1f} GB/s.",
        "",
        f"{versions}.",
        "",
        *(f"- {line}" for line in said),
        "",
        "| " + " | ".join(column.name for column in COLUMNS) + " |",
        "|" + "|".join(" --- " if column.left else " ---: " for column in COLUMNS) + "|",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


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
