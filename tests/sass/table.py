"""The table of launches: what `make kernels` prints, and the predictions for the GPU's benchmark.

    python -m tests.sass.table [WORDS OF A CASE] [--lines] [--device "RTX 4090"]

--lines adds the source lines that cost most instructions. Without words the predictions are kept in
bench/gpu_predicted.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cnnlayers.bench import cases, traffic
from cnnlayers.functional import avg_pool_forward, max_pool_forward, pad_forward

from ..kernel_calls import LAST, TRAIN, Call
from . import launches
from .device import DEVICES, H200, Device
from .verdict import Verdict, judge

PREDICTED = Path(__file__).parents[2] / "bench" / "gpu_predicted.json"
DTYPES = ("float32", "float16")
SHORTEST = 1.0  # us of memory time: a shorter launch is not judged
HEAD = (
    "kernel", "of", "dtype", "instructions a warp", "busiest pipe us", "issue us", "memory us", "KB in flight", "bound",
    "guess", "registers", "spills", "blocks a processor", "sectors over the least",
)  # fmt: skip


def streaming() -> Iterator[Call]:
    """The streaming operations at two sizes."""
    for n, c, h, w in ((32, 64, 112, 112), (32, 64, 56, 56)):
        x, last = (n, c, h, w), (n, h, w, c)
        for args in ((2,), (3, 2, 1)):
            yield Call("max_pool", x, args, {}, DTYPES)
        for args in ((2,), (3, 1, 1)):
            yield Call("avg_pool", x, args, {}, DTYPES)
        yield Call("adaptive_avg_pool", x, (1,), {}, DTYPES)
        for mode in ("constant", "reflect"):
            yield Call("pad", x, (1, mode), {}, DTYPES)
        for options in (TRAIN, {}):
            yield Call("batch_norm", x, (), options, DTYPES)
        yield Call("group_norm", x, (32,), {}, DTYPES)
        yield Call("group_norm", last, (32,), LAST, DTYPES)
        yield Call("max_unpool", (n, c, h // 2, w // 2), (2,), {}, DTYPES)
    for cells in (768, 8192):
        yield Call("layer_norm", (8192, cells), ((cells,),), {}, DTYPES)
    yield Call("rms_norm", (8192, 8192), ((8192,),), {}, DTYPES)


CALLS = tuple(streaming())


def judged(call: Call, dtype: str, device: Device = H200) -> list[Verdict]:
    """Each different launch of a call, but inference where it is the forward."""
    found: dict[tuple[str, int, str], Verdict] = {}
    for launch in launches.captured(call, dtype):
        key = launch.kernel, launch.grid, launch.part.replace("inference", "forward")
        if key not in found:
            found[key] = judge(launch, device)
            found[key].launch.arguments = ()  # the arrays are large
    return list(found.values())


def row(call: Call, dtype: str, v: Verdict) -> str:
    """A line of the table."""
    cells = (
        f"`{v.launch.kernel}`", f"{v.launch.part} of {call}", dtype, f"{v.count:.0f}", f"{v.pipe[0]} {v.pipe[1]:.1f}",
        f"{v.issue:.1f}", f"{v.memory:.1f}", f"{v.flight / 1024:.1f}", f"{v.bound:.2f}", f"{v.guess:.2f}",
        v.kernel.registers, v.kernel.spills, v.held, f"{v.sectors:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def summary(verdicts: Sequence[Verdict]) -> str:
    """The last line of `make kernels`: geometric means, and the lowest."""
    if not verdicts:
        return "0 launches"
    names = ("bound", "guess")
    lowest = [min(getattr(v, name) for v in verdicts) for name in names]
    said = [
        f"{n} {mean:.2f} (lowest {least:.2f})" for n, mean, least in zip(names, means(verdicts), lowest, strict=True)
    ]
    return f"{len(verdicts)} launches: {', '.join(said)}"


def means(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """The geometric means of the bounds and of the guesses."""
    logs = [(math.log(v.bound), math.log(v.guess)) for v in verdicts]
    bound, guess = (math.exp(sum(column) / len(column)) for column in zip(*logs, strict=True))
    return bound, guess


def _job(job: tuple[Call, str, Device]) -> list[Verdict]:
    return judged(*job)


def all_judged(calls: Iterable[Call], device: Device = H200) -> Iterator[tuple[Call, str, list[Verdict]]]:
    """The verdicts of all calls, several at a time."""
    jobs = [(call, dtype, device) for call in calls for dtype in call.dtypes]
    with ProcessPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        for (call, dtype, _), found in zip(jobs, pool.map(_job, jobs), strict=True):
            yield call, dtype, found


# ---------------------------------------------------------------------------------------------------------- predictions
def call_of(case: cases.Case) -> Call | None:
    """A case of the benchmark as a call; None where no launcher of the library makes its launches."""
    if case.op in ("conv", "relu", *cases.NETWORKS):
        return None
    options = dict(case.options)
    args = tuple(options.pop(key) for key in ("num_groups", "normalized_shape", "output_size") if key in options)
    if case.op in ("layer_norm", "rms_norm"):
        args = ((case.shape[1],),)
    n, c, *spatial = case.shape
    return Call(case.op, (n, *spatial, c) if case.channels_last else case.shape, args, options, (case.dtype,))


def prediction(case: cases.Case, verdicts: Sequence[Verdict], part: str) -> dict[str, Any] | None:
    """The shares of a part: what the case must move at least, over the time that its launches take."""
    inference = part == cases.INFERENCE and not any(v.launch.part == part for v in verdicts)
    mine = [v for v in verdicts if v.launch.part == (cases.FORWARD if inference else part)]
    least = traffic.least_bytes(case, part, _y_shape(case))
    if not mine or least is None:
        return None
    memory = least / H200.copy * 1e6
    bound = memory / sum(max(v.memory, v.issue, v.pipe[1]) for v in mine)
    guess = memory / sum(v.time for v in mine)
    return {
        **{"case": case.name, "part": part, "dtype": case.dtype, "kernels": [v.launch.kernel for v in mine]},
        **{"least_us": round(memory, 2), "bound": round(min(1.0, bound), 3), "guess": round(min(1.0, guess), 3)},
    }


def _y_shape(case: cases.Case) -> tuple[int, ...]:
    """The output's shape, by the op on one cell's worth of memory."""
    import numpy as np

    functions = {"max_pool": max_pool_forward, "avg_pool": avg_pool_forward, "pad": pad_forward}
    if case.op == "adaptive_avg_pool":
        return (*case.shape[:2], 1, 1)
    if case.op not in functions:
        return case.shape
    y, _ = functions[case.op](np.zeros((1, 1, *case.shape[2:]), np.float32), **case.options)
    return (*case.shape[:2], *y.shape[2:])


def commit() -> str:
    """The commit of the files here."""
    said = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        ran = [subprocess.run(c, cwd=Path(__file__).parent, capture_output=True, text=True, check=True) for c in said]
    except (OSError, subprocess.CalledProcessError):
        return "no git repository"
    return f"commit {ran[0].stdout.strip()}{' with changes' if ran[1].stdout.strip() else ''}"


def write_predictions(path: Path = PREDICTED) -> int:
    """Work out the benchmark's main cases; gives the number of rows."""
    wanted = [(case, call) for case in cases.GPU_MAIN if (call := call_of(case))]
    rows, made_on = [], commit()
    for (case, _), (_, _, found) in zip(wanted, all_judged([call for _, call in wanted]), strict=True):
        rows += [made for part in case.parts if (made := prediction(case, found, part))]
    note = "Predictions from sm_90 machine code for an H200, by tests/sass. No GPU has run it."
    path.write_text(json.dumps({"note": note, "commit": made_on, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    return len(rows)


def print_table(words: Sequence[str] = (), device: Device = H200, lines: int = 0) -> None:
    """Print the table as Markdown, and the summary."""
    print(f"Predictions for {device.name}, by sm_90 code. Shares are of a copy's bandwidth.\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    counted: list[Verdict] = []
    for call, dtype, found in all_judged([c for c in CALLS if not words or any(w in str(c) for w in words)], device):
        for v in found:
            if v.memory >= SHORTEST:
                counted.append(v)
                print(row(call, dtype, v), flush=True)
                for line, n in v.lines.most_common(lines):
                    print(f"    {n / v.count:5.0%} {n:8.1f} {line}")
    print(f"\n{summary(counted)}")


def main(given_words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sass.table")
    parser.add_argument("words", nargs="*", help="only the calls that have one of these words")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--device", default=H200.name, choices=[d.name for d in DEVICES])
    given = parser.parse_args(given_words)
    device = next(d for d in DEVICES if d.name == given.device)
    if not given.words and device is H200:
        write_predictions()
    print_table(given.words, device, 12 if given.lines else 0)


if __name__ == "__main__":
    main()
