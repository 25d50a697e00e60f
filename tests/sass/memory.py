"""Memory as the machine code sees it: the launch's arrays at made-up addresses, and a block's shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .operands import Array, i64, u32, u64


@dataclass(frozen=True)
class Region:
    """An array's place: `words` are those of `bytes`, which have a whole number of words."""

    start: int
    size: int
    bytes: Array
    words: Array
    array: Array  # kept alive


class Memory:
    """Global memory. Outside the arrays words are stored one by one, and are 0 before."""

    def __init__(self, arrays: Sequence[Array] = ()) -> None:
        self.other: dict[int, int] = {}
        self.known: dict[int, Region] = {}
        self.touched: set[tuple[int, bool]] = set()
        for array in arrays:
            self.address(array)

    def address(self, array: Array) -> int:
        """Where an array starts."""
        key = array.__array_interface__["data"][0] if array.size else -id(array)
        if key not in self.known:
            flat = array.reshape(-1).view(np.uint8)
            whole = np.concatenate([flat, np.zeros(-flat.size % 4, np.uint8)]) if flat.size % 4 else flat
            self.known[key] = Region(len(self.known) + 1 << 36, flat.size, whole, whole.view(u32), array)
        return self.known[key].start

    def moved(self, written: bool) -> int:
        """Bytes of the arrays that were read, or written, each once."""
        return sum(self.known[key].size for key, way in self.touched if way == written)

    def _region(self, address: int, written: bool = False) -> Region | None:
        for key, region in self.known.items():
            if region.start <= address < region.start + region.size:
                self.touched.add((key, written))
                return region
        return None

    def load(self, at: Array, size: int) -> Array:
        """(n, words) of `size` bytes at each address; smaller ones zero-extended."""
        words = max(1, size // 4)
        if not at.size:
            return np.zeros((0, words), u32)
        region = self._region(int(at[0]))
        if region and int(at.max()) + size <= region.start + region.size and int(at.min()) >= region.start:
            by = (at - u64(region.start)).astype(i64)
            out = region.words[(by // 4)[:, None] + np.arange(words)]
            if size < 4:
                out = (out >> ((by % 4 * 8).astype(u32))[:, None]) & u32((1 << 8 * size) - 1)
        else:
            out = np.array([self._one(int(a), size, words) for a in at], u32).reshape(-1, words)
        return out

    def _one(self, a: int, size: int, words: int) -> list[int]:
        region = self._region(a)
        if region:
            inside = a + size <= region.start + region.size
            return self.load(np.array([a], u64), size)[0].tolist() if inside else [0] * words
        return [self.other.get(a + 4 * k, 0) for k in range(words)]

    def store(self, at: Array, size: int, values: Array) -> None:
        """Store `size` bytes of each row of `values` at each address."""
        for a, row in zip(at.tolist(), values, strict=True):
            region = self._region(a, True)
            if region:
                by = a - region.start
                region.bytes[by : by + size] = np.ascontiguousarray(row).view(np.uint8)[:size]
            else:
                self.other.update({a + 4 * k: int(v) for k, v in enumerate(row)})

    def copy_back(self) -> None:
        """Give arrays whose size is no multiple of 4 bytes what was stored: their words are a copy."""
        for region in self.known.values():
            if region.size % 4:
                region.array.reshape(-1).view(np.uint8)[...] = region.bytes[: region.size]


class Shared:
    """A block's shared memory."""

    def __init__(self) -> None:
        self.words = np.zeros(1 << 16, u32)

    def load(self, at: Array, size: int) -> Any:
        found = self.words[(at.astype(i64) // 4)[:, None] + np.arange(max(1, size // 4))]
        if size < 4:
            found = (found >> ((at.astype(i64) % 4 * 8).astype(u32))[:, None]) & u32((1 << 8 * size) - 1)
        return found

    def store(self, at: Array, size: int, values: Array) -> None:
        if size < 4:
            for a, row in zip(at.tolist(), values, strict=True):
                self.words.view(np.uint8)[a : a + size] = np.ascontiguousarray(row).view(np.uint8)[:size]
        else:
            self.words[(at.astype(i64) // 4)[:, None] + np.arange(max(1, size // 4))] = values
