"""One row of the table: a part of a case, computed by everyone, compared, then timed in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import BACKWARD, Case, Target
from .clock import ROUNDS, Clock, Timing, interleaved
from .contest import TOLERANCE, Call, Contestant, Ours, Refused, error, same_bits
from .problem import Problem
from .traffic import least_bytes, operations

OURS = "cnnlayers"


@dataclass
class Row:
    """What was found. times: by contestant, ours too. errors: of our result against each peer's, relative to the
    largest value. refused: who has no such part, failed: who should have and broke, both with the reason. kept: bytes
    alive between forward and backward. repeated: runs whose bits were compared with the first's, and whether all were
    the same. reference: the fastest PyTorch."""

    case: Case
    part: str
    times: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    same_bits: bool = True
    least_bytes: float | None = None
    operations: float | None = None
    bandwidth: float = math.nan  # bytes a second of the copy in this run

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.case.dtype]

    @property
    def mismatches(self) -> list[str]:
        """The peers whose result is not ours."""
        return [name for name, found in self.errors.items() if not found <= self.tolerance]

    @property
    def reference(self) -> str | None:
        names = [name for name in self.times if name.startswith("pytorch")]
        return min(names, key=lambda name: self.times[name].median, default=None)

    @property
    def target(self) -> Target | None:
        return self.case.targets.get(self.part)

    @property
    def bytes_a_second(self) -> float | None:
        """The least bytes over our time."""
        return (
            None if self.least_bytes is None or OURS not in self.times else self.least_bytes / self.times[OURS].median
        )

    def ratio(self, name: str | None) -> float | None:
        """A contestant's time over ours: above 1 we are faster."""
        if name not in self.times or OURS not in self.times:
            return None
        return self.times[name].median / self.times[OURS].median

    def share(self, name: str = OURS) -> float | None:
        """The part of the copy's bandwidth that a contestant's time makes of the least bytes."""
        if self.least_bytes is None or name not in self.times:
            return None
        return self.least_bytes / self.times[name].median / self.bandwidth

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one, or without what it is measured by."""
        target = self.target
        if target is None or OURS not in self.times:
            return None
        found = [
            None if bound is None or value is None else value >= bound
            for bound, value in ((target.ratio, self.ratio(self.reference)), (target.share, self.share()))
        ]
        judged = [f for f in found if f is not None]
        return all(judged) if judged else None

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        case = {k: v for k, v in asdict(self.case).items() if k not in ("parts", "targets")}
        found = {k: v for k, v in asdict(self).items() if k not in ("case", "bandwidth")}
        derived = {
            "name": self.case.name,
            "reference": self.reference,
            "ratio": self.ratio(self.reference),
            "target": asdict(self.target) if self.target else None,
            "met": self.met,
            "bytes_a_second": self.bytes_a_second,
            "share_of_copy": self.share(),
            "tolerance": self.tolerance,
            "mismatches": self.mismatches,
        }
        return {**case, **found, **derived}


@dataclass(frozen=True)
class Settings:
    """seconds: of timing a row, in so many rounds. repeats: runs whose bits are compared."""

    seconds: float = 0.8
    rounds: int = ROUNDS
    repeats: int = 2
    bandwidth: float = math.nan


def measure(problem: Problem, part: str, peers: Sequence[Contestant], clock: Clock, settings: Settings) -> Row:
    """The row of a part. What fails is in it and hinders nobody else."""
    case = problem.case
    row = Row(case, part, bandwidth=settings.bandwidth)
    row.least_bytes = least_bytes(case, part, problem.y_shape)
    row.operations = operations(case, part, problem.y_shape)
    calls: dict[str, tuple[Contestant, Call]] = {}
    expected: list[Any] | None = None
    for contestant in (Ours(OURS), *peers):
        try:
            with contestant.session():
                call = contestant.call(problem, part)
                arrays = contestant.arrays(problem, part, call(0))
                if contestant.name == OURS:
                    expected = [a.copy() for a in arrays]
                    row.repeated = settings.repeats
                    row.same_bits = _repeats(problem, contestant, call, part, expected, settings.repeats)
                elif expected is not None:
                    row.errors[contestant.name] = error(problem.b, expected, arrays)
                if part == BACKWARD and case.group != "sweep":
                    _kept(row, problem, contestant)
            calls[contestant.name] = (contestant, call)
        except Refused as reason:
            row.refused[contestant.name] = str(reason)
        except Exception as reason:  # a peer may break in any way: the row says so
            row.failed[contestant.name] = f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}"
    del expected
    row.times = interleaved(clock, calls, problem.copies, settings.seconds, settings.rounds)
    return row


def _kept(row: Row, problem: Problem, contestant: Contestant) -> None:
    if contestant.name in (OURS, "pytorch"):
        kept = contestant.kept(problem)
        if kept is not None:
            row.kept[contestant.name] = kept


def _repeats(
    problem: Problem, contestant: Contestant, call: Call, part: str, expected: list[Any], repeats: int
) -> bool:
    """Whether so many more runs give the same bits; on a GPU the runs are queued, and waited for once."""
    b = problem.b
    same = b.xp.asarray(True)
    for _ in range(repeats):
        same = b.xp.logical_and(same, same_bits(b, expected, contestant.arrays(problem, part, call(0))))
    return bool(same)
