"""One row of the table: a part of a case, computed by everyone, compared, then timed in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import BACKWARD, Case
from .clock import ROUNDS, Clock, Copy, Product, Timing, interleaved
from .contest import TOLERANCE, Call, Contestant, Ours, Refused, error, same_bits
from .problem import Problem
from .traffic import least_bytes, operations

OURS = "cnnlayers"
# Of a deep network's gradients: an input of relu that one implementation rounds to 1e-8 and another to -1e-8 passes its
# gradient in one of them, and a bias has a few thousand such terms. The layers alone agree as TOLERANCE says.
KINKS = 3e-2


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
    bandwidth: float = math.nan  # bytes a second of a copy, measured in turn with this row
    peak: float = math.nan  # operations a second of a large matrix product, measured likewise

    @property
    def tolerance(self) -> float:
        return KINKS if self.case.op == "resnet8_step" else TOLERANCE[self.case.dtype]

    @property
    def mismatches(self) -> list[str]:
        """The peers whose result is not ours."""
        return [name for name, found in self.errors.items() if not found <= self.tolerance]

    @property
    def reference(self) -> str | None:
        names = [name for name in self.times if name.startswith("pytorch")]
        return min(names, key=lambda name: self.times[name].median, default=None)

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
        """A contestant's part of the limit: of the copy's bandwidth, by the least bytes, or of the peak, by the
        definition's operations. None where neither limits it, or where it was not measured."""
        if name not in self.times:
            return None
        limits = ((self.least_bytes, self.bandwidth), (self.operations, self.peak))
        shares = [work / self.times[name].median / limit for work, limit in limits if work and limit == limit]
        return shares[0] if shares else None

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        case = {k: v for k, v in asdict(self.case).items() if k != "parts"}
        found = {k: v for k, v in asdict(self).items() if k != "case"}
        derived = {
            "name": self.case.name,
            "reference": self.reference,
            "ratio": self.ratio(self.reference),
            "bytes_a_second": self.bytes_a_second,
            "share_of_limit": self.share(),
            "tolerance": self.tolerance,
            "mismatches": self.mismatches,
        }
        return {**case, **found, **derived}


@dataclass(frozen=True)
class Settings:
    """seconds: of timing a row, in so many rounds. repeats: runs whose bits are compared. copy: what shows the memory's
    bandwidth; product: what shows the processor's operations a second."""

    seconds: float = 0.8
    rounds: int = ROUNDS
    repeats: int = 2
    copy: Copy | None = None
    product: Product | None = None


def measure(problem: Problem, part: str, peers: Sequence[Contestant], clock: Clock, settings: Settings) -> Row:
    """The row of a part. What fails is in it and hinders nobody else."""
    case = problem.case
    row = Row(case, part)
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
    copy = settings.copy if row.least_bytes is not None else None
    product = settings.product if copy is None and row.operations is not None else None
    calls |= {limit.name: (limit, limit.run) for limit in (copy, product) if limit is not None}
    row.times = interleaved(clock, calls, problem.copies, settings.seconds, settings.rounds)
    if copy is not None:
        row.bandwidth = copy.bandwidth(row.times.pop(copy.name))
    if product is not None:
        row.peak = product.operations_a_second(row.times.pop(product.name))
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
