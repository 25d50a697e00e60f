"""`cnnlayers bench`: plan a run, do it, keep what it found."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnlayers import backends
from cnnlayers.backends import Backend

from . import keras_networks, machine, peers, report
from .cases import PEERS, Case, chosen
from .clock import COPY_BYTES, ROUNDS, Copy, Product, clock_of, interleaved
from .contest import Contestant
from .measure import OURS, Row, Settings, measure
from .problem import problem

BACKENDS = {"cpu": "numpy", "gpu": "cupy"}
SECONDS = {"cpu": 0.7, "gpu": 0.2}  # of timing a row; half of it where calls are small
REPEATS = {"cpu": 2, "gpu": 100}  # runs whose bits are compared
PRODUCT = {"cpu": 1024, "gpu": 8192}  # rows of two square matrices, multiplied to measure the processor's speed
# Seconds a row, bytes of the copy and rows of the matrices, where only the way is to be tried.
QUICK, QUICK_COPY, QUICK_PRODUCT = 0.02, 1 << 22, 128


@dataclass
class RunPlan:
    """What will be measured, and where it goes. deadline: seconds after which no further case begins."""

    device: str
    b: Backend
    cases: list[Case]
    contestants: list[Contestant]
    absent: dict[str, str]
    out: Path
    asked: bool = False
    quick: bool = False
    deadline: float | None = None

    def beside(self, case: Case) -> list[Contestant]:
        """The peers for a case: those of its group, or all where the user named them."""
        names = None if self.asked else PEERS[case.group]
        return [peer for peer in self.contestants if names is None or peer.name in names]


@dataclass
class Outcome:
    """Rows so far; `left_out`: cases that no longer began, `broken`: cases whose arrays could not even be made."""

    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0
    broken: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def troubles(self) -> list[str]:
        return self.broken + [said for row in self.rows for said in report.troubles(row)]

    @property
    def wrong(self) -> bool:
        """Whether this library failed, gave another result than a peer, or other bits when asked again."""
        ours = any(row.mismatches or OURS in row.failed or not row.same_bits for row in self.rows)
        return ours or bool(self.broken)


def plan(
    device: str | None = None,
    ops: Sequence[str] = (),
    asked: Sequence[str] = (),
    out: Path | None = None,
    *,
    quick: bool = False,
    minutes: float | None = None,
    main: bool = False,
) -> RunPlan:
    """What a command line asks for. device None: the GPU where CuPy can use one, else the CPU.

    Raises ValueError for an op or a peer that there is not, and for a peer asked for that is absent;
    BackendUnavailable for a GPU that cannot be used; OSError for a folder that cannot be written to.
    """
    device = device or ("gpu" if backends.available()["cupy"] is None else "cpu")
    b = backends.use(BACKENDS[device])
    cases, without = keras_networks.usable(chosen(device, ops, quick, main), asked=bool(ops))
    contestants, absent = peers.found(device, asked)
    absent |= without
    out = out or machine.results()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: results need a folder")
    out.mkdir(parents=True, exist_ok=True)
    deadline = None if minutes is None else 60 * minutes
    return RunPlan(device, b, cases, contestants, absent, out, bool(asked), quick, deadline)


def run(planned: RunPlan, say: Callable[[str], None], step: Callable[[int, int, str], None]) -> Outcome:
    """Measure; `say` gets the table line by line, `step` what is being done. Ctrl-C ends it with what there is."""
    started = time.monotonic()
    facts = machine.facts(planned.b, ["cnnlayers", *sys.argv[1:]])
    facts |= {"absent": planned.absent, "peers": [peer.name for peer in planned.contestants]}
    outcome = Outcome(facts)
    seconds, rounds = (QUICK, 2) if planned.quick else (SECONDS[planned.device], ROUNDS)
    copy = Copy(planned.b, QUICK_COPY if planned.quick else COPY_BYTES)
    product = Product(planned.b, QUICK_PRODUCT if planned.quick else PRODUCT[planned.device])
    limits = {limit.name: (limit, limit.run) for limit in (copy, product)}
    times = interleaved(clock_of(planned.b), limits, 1, seconds, rounds)
    facts["copy_bytes_a_second"] = copy.bandwidth(times[copy.name])
    facts["peak_operations_a_second"] = product.operations_a_second(times[product.name])
    for title in _titles(planned, facts):
        say(title)
    settings = Settings(seconds, rounds, REPEATS[planned.device], copy, product)
    try:
        for i, case in enumerate(planned.cases):
            if planned.deadline is not None and time.monotonic() - started > planned.deadline:
                outcome.left_out = len(planned.cases) - i
                break
            step(i, len(planned.cases), case.name)
            for row in _rows(planned, case, settings, outcome):
                say(report.line(report.cells(row)))
    except KeyboardInterrupt:
        outcome.interrupted = True
    facts["seconds"] = round(time.monotonic() - started, 1)
    return outcome


def _titles(planned: RunPlan, facts: dict[str, Any]) -> list[str]:
    said = [
        f"{facts['device']}, {facts['threads']} threads; PyTorch has as many",
        f"copy: {facts['copy_bytes_a_second'] / 1e9:.1f} GB/s (read and written); matrix product:"
        f" {facts['peak_operations_a_second'] / 1e9:.0f} GFLOP/s; both measured again with the rows",
        *report.busy(facts),
    ]
    said += [f"{peer.name}: {peers.PEERS[peer.name].said}" for peer in planned.contestants]
    said += [f"without {name}: {reason}" for name, reason in planned.absent.items()]
    return [*said, "", *report.LEGEND, "", report.heading()]


def _rows(planned: RunPlan, case: Case, settings: Settings, outcome: Outcome) -> Iterator[Row]:
    """A case's rows, each in the outcome as soon as it is measured; its memory is given back afterwards."""
    clock = clock_of(planned.b)
    cache = int(planned.b.device.attributes["L2CacheSize"]) if planned.b.name == "cupy" else 0
    try:
        made = problem(case, planned.b, cache)
    except Exception as reason:  # one case that breaks does not end the run
        outcome.broken.append(f"{case.name}, {case.dtype}: {type(reason).__name__}: {reason}")
        return
    for part in case.parts:
        settings = replace(settings, seconds=settings.seconds / 2) if case.group == "small" else settings
        row = measure(made, part, planned.beside(case), clock, settings)
        outcome.rows.append(row)
        yield row
    del made
    _free(planned.b)


def _free(b: Backend) -> None:
    gc.collect()
    if b.name == "cupy":
        b.xp.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def keep(planned: RunPlan, outcome: Outcome) -> list[Path]:
    """Write the table, the JSON and the pictures; give their paths. Without matplotlib there are no pictures."""
    said = [*report.busy(outcome.facts), *report.summary(outcome.rows)]
    complete = not (outcome.interrupted or outcome.left_out)
    files = {
        ".md": report.markdown(outcome.rows, outcome.facts, [*said, *outcome.troubles]).encode(),
        ".json": report.as_json(outcome.rows, outcome.facts, [*said, *outcome.troubles], complete).encode(),
    }
    with contextlib.suppress(ImportError):
        from . import plots

        files |= {f"{name}.png": png for name, png in plots.pictures(outcome.rows, outcome.facts).items()}
    written = []
    for ending, content in files.items():
        path = planned.out / f"{planned.device}{ending}"
        _write(path, content)
        written.append(path)
    return written


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def shown(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int, int, str], None]]]:
    """How a run is shown: lines, and below them a bar where standard output is a terminal."""
    if not sys.stdout.isatty():
        yield (lambda said: print(said, flush=True)), (lambda done, of, name: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=sys.stdout), transient=True) as progress:
        task = progress.add_task("", total=total)
        print_above = progress.console.print
        yield (
            lambda said: print_above(said, markup=False, highlight=False, soft_wrap=True),
            lambda done, of, name: progress.update(task, completed=done, description=name),
        )
