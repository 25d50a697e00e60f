"""What a launch moved through global memory."""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 32  # bytes: the least that the device's memory moves

Pair = tuple[int, int]


@dataclass(frozen=True)
class Traffic:
    """Global memory traffic of a launch, or of one argument. Pairs are (read, written).

    requests: warp-level accesses. bytes: what the threads asked for. sectors: distinct 32-byte sectors of each request,
    summed. distinct: different sectors touched in the whole launch, the least that device memory can move.
    args: the same of each array argument, by its place.
    """

    requests: Pair
    bytes: Pair
    sectors: Pair
    distinct: Pair
    args: dict[int, Traffic] = field(default_factory=dict)

    @property
    def coalescing(self) -> tuple[float | None, float | None]:
        """Bytes of the sectors asked for over bytes asked for: 1 is perfect, below 1 means that lanes share data."""
        return _ratios([SECTOR * s for s in self.sectors], self.bytes)

    @property
    def reread(self) -> tuple[float | None, float | None]:
        """How often a sector is asked for: what is above 1 must come from a cache."""
        return _ratios(self.sectors, self.distinct)

    def over(self, least: int) -> tuple[float, float]:
        """(sectors asked for, distinct sectors), read and written together, in bytes over the `least` bytes."""
        return SECTOR * sum(self.sectors) / least, SECTOR * sum(self.distinct) / least

    def __add__(self, other: Traffic) -> Traffic:
        """Two launches together; their arguments are not told apart, and a sector that both touch counts twice."""

        def add(a: Pair, b: Pair) -> Pair:
            return a[0] + b[0], a[1] + b[1]

        return Traffic(
            add(self.requests, other.requests),
            add(self.bytes, other.bytes),
            add(self.sectors, other.sectors),
            add(self.distinct, other.distinct),
        )


def _ratios(a: list[int] | Pair, b: Pair) -> tuple[float | None, float | None]:
    first, second = (n / m if m else None for n, m in zip(a, b, strict=True))
    return first, second
