"""Mutants of the CUDA kernels: a barrier, a fence, a mask, a bound or a tie's comparison weakened, one at a time. Each
must be noticed: the emulator reports a fault, or an answer differs. `make mutants` tries them all; tests try a few.

    python -m tests.mutants [--seed N --number N] [WORDS OF A FILE OR RULE]

What cannot be noticed, because the answers stay right whatever the device does, is in EQUIVALENT, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

import cnnlayers.functional as F
from cnnlayers import backends, kernels
from cnnlayers.kernels.cuda import compile as compiler
from cnnlayers.kernels.cuda import launch

from . import standin_cuda, standin_cupy
from .cases import norm as norms

# Of each rule what is looked for in a line's code, and what it becomes. A bound is a comparison with a variable that
# begins with a small letter: sizes that templates fix have capital ones.
RULES = {
    "barrier": (r"__syncthreads\(\);", "{}"),
    "fence": (r"__threadfence\(\);", "{}"),
    "mask": (r"_sync\(0xffffffffu", "_sync(0x7fffffffu"),
    "bound": (r"(?<=[\w\])]) < (?=[a-z(])", " <= "),
    "tie": (r"(?<=[\w\])]) > (?=[a-z])", " >= "),
}
TIES = ("max_pool.cu", "max_pool_keys.cuh")


@dataclass(frozen=True)
class Mutant:
    """Line `line` of a file with the `index`-th match of a rule replaced."""

    file: str
    line: int
    rule: str
    index: int

    def text(self, text: str) -> str:
        """The file's text, mutated."""
        lines = text.split("\n")
        pattern, new = RULES[self.rule]
        matches = list(re.finditer(pattern, _code(lines[self.line - 1])))
        start, end = matches[self.index].span()
        lines[self.line - 1] = lines[self.line - 1][:start] + new + lines[self.line - 1][end:]
        return "\n".join(lines)

    def __str__(self) -> str:
        code = compiler._text(self.file).split("\n")[self.line - 1].strip()
        return f"{self.file}:{self.line} {self.rule}{f' {self.index + 1}' if self.index else ''}: {code}"


def _code(line: str) -> str:
    """A line without its comment."""
    return line.partition("//")[0]


def every() -> list[Mutant]:
    """All mutants, in the order of files."""
    found = []
    for path in sorted(compiler.HERE.glob("*.cu*")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            for rule, (pattern, _) in RULES.items():
                if rule == "tie" and path.name not in TIES:
                    continue
                for index, _ in enumerate(re.finditer(pattern, _code(line))):
                    found.append(Mutant(path.name, number, rule, index))
    return found


# ------------------------------------------------------------------------------------------------------------ the calls
@dataclass(frozen=True)
class Run:
    """A call: `arrays()` makes what it computes; `exact`: any other bit counts."""

    name: str
    compute: Callable[[Any], Sequence[Any]]
    exact: bool = False


ONE = {"MultiProcessorCount": 1}  # blocks are few, and take several turns


def _trio(op: str, shape: tuple[int, ...], *args: Any, dtype: str = "float32", **options: Any) -> Run:
    """A trio on an array of few different numbers, so that maxima tie, with a NaN and an infinity."""

    def compute(cupy: Any) -> list[Any]:
        rng = np.random.default_rng(0)
        x = rng.integers(-2, 3, shape).astype(dtype)
        if op in ("max_pool", "adaptive_max_pool"):
            x.reshape(-1)[:2] = np.nan, np.inf
        given = args
        if op == "softmax_cross_entropy":
            given = (cupy.asarray(rng.integers(0, shape[1] + (shape[0] == 7), shape[0])),)  # one may be out of range
        elif op == "max_unpool":
            indices = rng.permuted(np.arange(np.prod(shape)).reshape(shape) % 20, axis=-1)
            indices[0, 0, 0, 0] = 40  # the first that is out of range
            given = (cupy.asarray(indices), *args)
        elif op == "conv":
            given = (cupy.asarray(rng.integers(-2, 3, args[0]).astype(dtype)), *args[1:])
        with standin_cuda.emulating(attributes=ONE):
            return trio(cupy, x, given, rng)

    def trio(cupy: Any, x: np.ndarray, given: Sequence[Any], rng: np.random.Generator) -> list[Any]:
        found, ctx = getattr(F, f"{op}_forward")(cupy.asarray(x), *given, **options)
        y = found if isinstance(found, tuple) else (found,)
        dy = cupy.asarray(rng.integers(-3, 4, y[0].shape).astype(dtype)) if y[0].shape else cupy.asarray(np.float32(1))
        dx = getattr(F, f"{op}_backward")(dy, ctx)
        inferred = getattr(F, op)(cupy.asarray(x), *given, **options) if op != "dropout" else ()
        groups = (y, dx if isinstance(dx, tuple) else (dx,), inferred if isinstance(inferred, tuple) else (inferred,))
        return [a for group in groups for a in group if a is not None]

    said = ", ".join(map(str, (shape, *args, *(f"{k}={v}" for k, v in options.items()), dtype)))
    return Run(f"{op}({said})", compute, exact=op in ("max_pool", "adaptive_max_pool", "pad", "max_unpool"))


def _norm(name: str, call: norms.Call) -> Run:
    def compute(cupy: Any) -> list[Any]:
        x, dy, parameters = call.drawn(np.random.default_rng(0), "float32")
        with norms.device(call.device, call.threads):
            return call.both(cupy.asarray, x, dy, parameters)

    return Run(name, compute)


def _running(call: norms.Call, cupy: Any) -> list[Any]:
    """y and the running statistics, which a second update would change."""
    x, _, parameters = call.drawn(np.random.default_rng(0), "float32")
    given = [cupy.asarray(np.abs(p) + i) for i, p in enumerate((*parameters, *parameters))]
    with norms.device(call.device, call.threads):
        return [F.batch_norm_forward(cupy.asarray(x), *given, **call.options)[0], *given[2:]]


LAST = {"data_format": "channels_last"}


POOLS = ("avg_pool", "avg_pool_tiled", "avg_pool_narrow", "avg_pool_planes")
STEMS = {  # the sources that an op's launchers may take; those of norms otherwise
    **dict.fromkeys(("max_pool", "adaptive_max_pool"), ("max_pool", "max_pool_tiled", "max_pool_narrow")),
    **dict.fromkeys(("avg_pool", "sum_pool", "adaptive_avg_pool"), POOLS),
    **{stem: (stem,) for stem in ("max_unpool", "lp_pool", "local_response_norm", "softmax")},
    "pad": ("pad", "pad_rows"),
    **dict.fromkeys(("relu", "leaky_relu", "gelu", "sigmoid", "tanh", "dropout"), ("activations",)),
    "conv": ("im2col",),
    "softmax_cross_entropy": ("cross_entropy",),
}
NORMS = tuple(sorted(p.stem for p in compiler.HERE.glob("*norm*.cu") if p.stem != "local_response_norm"))


@functools.cache
def runs() -> tuple[Run, ...]:
    """Small calls that take every way through the kernels."""
    found = []
    for dtype in ("float32", "float16"):
        for window in ((2,), (3, 2, 1), (3, 1, 1)):
            found.append(_trio("max_pool", (2, 3, 10, 16), *window, dtype=dtype))
            found.append(_trio("max_pool", (2, 3, 10, 16), *window, dtype=dtype, ties="split"))
        found.append(_trio("max_pool", (2, 3, 9, 13), 3, 2, 1, dtype=dtype, return_indices=True))
    found += [
        _trio("max_pool", (2, 3, 9, 13), (3, 2), (2, 3), 1, 2, ties="all"),
        _trio("max_pool", (2, 3, 9, 13), 3, 2, 1, ties="split"),
        _trio("max_pool", (2, 3, 9, 13), 2, return_indices=True),
        _trio("max_pool", (2, 3, 9, 13), 5, 2, 2, ties="split"),
        _trio("max_pool", (2, 3, 9, 13), (3, 2)),
        _trio("max_pool", (2, 2, 5, 4, 7), 3, 2, 1),
        _trio("avg_pool", (2, 2, 5, 4, 7), 3, 2, 1),
        _trio("avg_pool", (2, 3, 9, 13), 5, 2, 2, 1, count_include_pad=False, ceil_mode=True),
        _trio("max_pool", (1, 3, 40), 35, 1),
        _trio("max_pool", (1, 3, 8, 40), (3, 40)),
        _trio("max_pool", (2, 9, 11, 3), 3, 2, 1, **LAST),
        _trio("adaptive_max_pool", (2, 3, 13, 9), 4),
        _trio("avg_pool", (2, 3, 9, 13), 3, 2, 1, ceil_mode=True),
        _trio("avg_pool", (2, 3, 9, 13), 3, 2, 1, 2, count_include_pad=False),
        *(_trio("avg_pool", (2, 3, 10, 16), *window) for window in ((2,), (3, 2, 1), (3, 1, 1))),
        _trio("avg_pool", (2, 3, 9, 16), 3, 1, 1),  # two rows a thread, of an odd number
        _trio("adaptive_avg_pool", (2, 3, 13, 9), 4),
        _trio("adaptive_avg_pool", (3, 3, 7, 7), 1),
        _trio("adaptive_avg_pool", (2, 9, 9, 36), 1, **LAST),
        _trio("max_pool", (2, 9, 6, 8), 3, 2, 1, **LAST),
        _trio("max_pool", (2, 9, 6, 8), 2, dtype="float16", ceil_mode=True, **LAST),
        _trio("max_pool", (2, 5, 6, 8), 3, 1, 1, ties="all", **LAST),
        _trio("avg_pool", (2, 9, 6, 8), 3, 2, 1, **LAST),
        _trio("adaptive_avg_pool", (12, 12, 33, 32), 1),  # two warps a plane, and a block has several turns
        _trio("sum_pool", (3, 3, 40), 40),
        _trio("sum_pool", (3, 3, 90), 40, 13),
        _trio("max_unpool", (2, 3, 2, 5), 2),
        *(_trio("pad", (2, 3, 5, 7), 2, mode) for mode in ("constant", "edge", "reflect", "symmetric", "wrap")),
        *(_trio("pad", (2, 3, 5, 7), ((3, -1), (-2, 1)), mode) for mode in ("constant", "edge", "reflect")),
        _trio("pad", (2, 3, 5, 8), ((1, 0), (0, -1)), "edge"),
        _trio("pad", (1, 2, 6, 12), ((-1, 0), (1, 0)), "wrap"),
        *(_trio("pad", (2, 3, 5, 7), (rows, (1, 0)), "reflect") for rows in ((0, 0), (0, 1))),  # nothing after a row
        _trio("pad", (1, 2, 3, 8), ((0, 0), (4, 1)), "symmetric"),  # a pack of its own for each border
        _trio("pad", (2, 3, 4, 5, 4), 1, "reflect"),
        _trio("pad", (2, 5, 7, 8), 2, "reflect", **LAST),
        _trio("pad", (1, 3, 5, 3), 1, "constant", **LAST),
        _trio("pad", (1, 2, 30, 64), 3, "symmetric"),
        _trio("conv", (2, 4, 9, 12), (8, 4, 3, 3), None, 1, 1),
        _trio("conv", (2, 9, 8, 12), (8, 12, 3, 3), None, 2, 1, 2, **LAST),
        *(_trio(op, (5, 7, 11)) for op in ("relu", "leaky_relu", "gelu", "sigmoid", "tanh")),
        _trio("dropout", (5, 7, 11), training=True, rng=1),
        *(_trio("softmax", shape) for shape in ((9, 10), (3, 700), (2, 9001), (2, 33, 24), (1, 300, 9))),
        _trio("softmax_cross_entropy", (300, 5)),
        _trio("softmax_cross_entropy", (7, 2)),
        _trio("softmax_cross_entropy", (40, 1100)),
        _trio("local_response_norm", (2, 9, 4, 3), 5, alpha=0.5),
        _trio("local_response_norm", (2, 70, 3), 12, alpha=0.5),
        _trio("lp_pool", (2, 3, 9, 8), 2),
        _trio("lp_pool", (2, 3, 9, 8), 3, 9.0, 2, 1),
        _trio("lp_pool", (2, 2, 5, 5, 5), 2),
        _trio("lp_pool", (2, 3, 5, 40), (2, 40)),
        _trio("lp_pool", (2, 3, 5, 40), (2, 35), 9.0, 1),
    ]
    last = norms.CALLS["batch last in three launches"]
    more = {"batch last, not whole ranges": dataclasses.replace(last, shape=(4, 9, 9, 136))}
    named = [_norm(name, call) for name, call in {**norms.CALLS, **more}.items()]
    return (*found, *named, Run("batch last, with running statistics", functools.partial(_running, last)))


@dataclass(frozen=True)
class Answer:
    """What a run computed, and the sources of the kernels that it launched."""

    arrays: list[np.ndarray]
    stems: set[str]


def _computed(run: Run) -> Answer:
    stems: set[str] = set()
    real = launch.kernel

    def kernel(stem: str, instance: str, **given: Any) -> Any:
        stems.add(stem)
        return real(stem, instance, **given)

    with (
        standin_cupy.installed() as cupy,
        kernels.mode("require"),
        standin_cuda.emulating(order="random", seed=3),
        mock.patch.object(launch, "kernel", kernel),
        np.errstate(all="ignore"),
    ):
        return Answer([np.array(a.get()) for a in run.compute(cupy) if a is not None], stems)


@functools.cache
def answer(run: Run) -> Answer:
    """A run with the kernels as they are."""
    return _computed(run)


def _may_notice(run: Run, file: str) -> bool:
    """Whether a run's op may launch kernels of the file: without running it."""
    stems = STEMS.get(run.name.partition("(")[0], NORMS)
    return any(uses(stem, file) for stem in stems)


def _differs(run: Run, got: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> bool:
    if run.exact:
        return any(a.tobytes() != b.tobytes() for a, b in zip(got, right, strict=True))
    near = (
        np.allclose(a.astype(float), b.astype(float), rtol=1e-3, atol=1e-3, equal_nan=True)
        for a, b in zip(got, right, strict=True)
    )
    return not all(near)


# ---------------------------------------------------------------------------------------------------------- the mutants
@contextlib.contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Kernels are compiled from the mutated file."""
    real = compiler._text

    def text(file: str) -> str:
        return mutant.text(real(file)) if file == mutant.file else real(file)

    def forget() -> None:
        backends.PLANS.clear()
        for cache in (compiler.source, compiler._function):
            cache.cache_clear()

    forget()
    with mock.patch.object(compiler, "_text", text):
        yield
    forget()


def uses(stem: str, file: str) -> bool:
    """Whether a source is this file or includes it."""
    return file == f"{stem}.cu" or f'#line 1 "{file}"' in compiler.source(stem)


def noticed(mutant: Mutant) -> str | None:
    """The first call that shows the mutant, and how; None if all answers are right."""
    for run in runs():
        if not _may_notice(run, mutant.file):
            continue
        right = answer(run)
        if not any(uses(stem, mutant.file) for stem in right.stems):
            continue
        with mutated(mutant):
            try:
                got = _computed(run).arrays
            except compiler.KernelError as error:
                said = str(error)
                return f"{run.name}: {'does not compile' if 'did not compile' in said else said.splitlines()[0][-120:]}"
        if _differs(run, got, right.arrays):
            return f"{run.name}: another answer"
    return None


ONE_TURN_MORE = "a turn more, in which nothing is in bounds"
# Mutants that cannot be noticed: (file, rule, a part of the line) and why.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("avg_pool.cu", "bound", "offset * w.dilation; c < sw.end"): ONE_TURN_MORE,
    ("avg_pool.cu", "bound", "k < RUN && c < sw.end"): ONE_TURN_MORE,
    ("avg_pool_planes.cu", "bound", "for (int p = t; p < packs"): ONE_TURN_MORE,
    ("avg_pool_planes.cu", "bound", "first < n; first +="): ONE_TURN_MORE,
    ("avg_pool_planes.cu", "bound", "j < block.size; j += U * block.step"): ONE_TURN_MORE,
    ("channels_last_norm_backward.cu", "bound", "j < block.size; j += K * block.step"): ONE_TURN_MORE,
    ("channels_last_norm.cu", "bound", "has_channel = "): "numbers of one channel more, which nobody reads",
    ("channels_last_norm_backward.cu", "bound", "has_channel = "): "numbers of one channel more, which nobody reads",
    ("channels_last_norm.cu", "bound", "j < block.size; j += K * block.step"): ONE_TURN_MORE,
    ("cross_entropy.cu", "bound", "begin < size; begin += R * step"): ONE_TURN_MORE,
    ("im2col.cu", "bound", "begin < n; begin +="): ONE_TURN_MORE,
    ("im2col.cu", "bound", "i < end; i += run"): ONE_TURN_MORE,
    ("im2col.cu", "bound", "v < run && i + v < end"): "the same thread stores the right value in its next run",
    ("max_pool.cu", "bound", "tap < argmax"): "no two lanes have one tap",
    ("norm_backward.cu", "bound", "j < end; j += K * step"): ONE_TURN_MORE,
    ("scale_shift.cuh", "bound", "        if (k < number)"): "the pivot alone changes, here to an older cell",
    ("softmax.cu", "bound", "begin < size; begin += turn"): ONE_TURN_MORE,
    ("row_reduce.cuh", "bound", "return b < a ? b : a"): "of equal numbers either will do",
    ("pad.cu", "bound", "i < n_y; i +="): ONE_TURN_MORE,
    ("pad.cu", "bound", "i < n_x; i +="): ONE_TURN_MORE,
    ("pad.cu", "bound", "p < n && n - p >= margin"): "the next comparison says more",
    ("pad.cu", "bound", "first < row && row - first >= V"): "the next comparison says more",
    ("pad.cuh", "bound", "to_front < before(), out"): "one cell further out is cell -1, which is none",
    ("layer_norm_backward.cu", "bound", "j < end; j += N * step"): ONE_TURN_MORE,
    ("layer_norm_backward.cu", "bound", "k < end; k += N * warps"): ONE_TURN_MORE,
    ("norm_forward.cu", "bound", "j < size; j += K * step"): ONE_TURN_MORE,
}


def is_equivalent(mutant: Mutant) -> bool:
    code = _code(compiler._text(mutant.file).split("\n")[mutant.line - 1])
    return any(mutant.file == file and mutant.rule == rule and part in code for file, rule, part in EQUIVALENT)


def chosen(seed: int | None, number: int | None, words: Sequence[str] = ()) -> list[Mutant]:
    """The mutants that are to be noticed; of these a number that a seed chooses, if one is given."""
    found = [m for m in every() if not is_equivalent(m) and (not words or any(w in str(m) for w in words))]
    return found if number is None else random.Random(seed).sample(found, min(number, len(found)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("words", nargs="*", help="only mutants whose file, rule or line has one of these words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="so many of them, which the seed chooses")
    given = parser.parse_args()
    left, mutants, start = [], chosen(given.seed, given.number, given.words), time.monotonic()
    for mutant in mutants:
        how = noticed(mutant)
        left += [] if how else [mutant]
        print(f"{'noticed' if how else 'NOT NOTICED'}: {mutant}{f' -- {how}' if how else ''}", flush=True)
    print(f"{len(mutants) - len(left)} of {len(mutants)} noticed, {time.monotonic() - start:.0f} s")
    return len(left)


if __name__ == "__main__":
    sys.exit(main() > 0)
