"""What `make gpu-smoke`, `gpu`, `gpu-sanitize` and `gpu-report` run, on a machine that may be had for ten minutes:

    python -m tests.gpu_stages smoke      CuPy as the library takes it, every kernel compiled and served once: 90 s
    python -m tests.gpu_stages tests      every test on CuPy itself: at most five minutes
    python -m tests.gpu_stages sanitize   compute-sanitizer's memcheck and racecheck over a call of each op
    python -m tests.gpu_stages report     all of that and the benchmark, the most informative first, each step under a
                                          time limit; what is known is in --out after every step

Needs CuPy, NumPy and pytest, no network. `--kind standin` runs the same steps on the stand-in for CuPy, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PROCESSES = min(8, os.cpu_count() or 1)  # each takes some 500 MB of a GPU's memory
LAST_LINES = 15  # of a step's log that are shown


@dataclass
class Counts:
    """Tests by their outcome. `faults`: the names of those that failed, took too long or ended their process."""

    passed: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    unfinished: bool = False

    def __str__(self) -> str:
        said = f"{self.passed} passed, {self.skipped} skipped, {len(self.faults)} failed"
        return said + (", not all were run" if self.unfinished else "")

    @property
    def good(self) -> bool:
        """Something has passed and nothing has failed."""
        return bool(self.passed) and not self.faults and not self.unfinished


# ------------------------------------------------------------------------------------------------- tests, side by side
@dataclass
class Part:
    """A process's part of the tests, and the process that runs it now."""

    command: list[str]
    notes: Path
    log: Path
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def read(self) -> tuple[dict[str, str], str | None, bool]:
        """Each test's outcome, the test that has begun and not ended, and whether the process came to its end."""
        outcomes: dict[str, str] = {}
        running, ended = None, False
        for line in self.notes.read_text().splitlines():
            word, _, test = line.partition(" ")
            ended = word == "end"
            running = test if word == "begin" else None if test == running else running
            if word in ("passed", "skipped", "failed") and outcomes.get(test) != "failed":
                outcomes[test] = word
        return outcomes, running, ended

    def died(self) -> bool:
        """Note the test that ended the process, and start the rest of its part. False where the process has finished,
        or ended before its first test: another would too."""
        before = self.notes.read_text()
        _, running, ended = self.read()
        if ended or running is None:
            return False
        self.notes.write_text(f"{before}failed {running}\n")
        self.start()
        return True


def run_tests(pytest_arguments: Sequence[str], out: Path, *, name: str, seconds: float, test_seconds: float = 60,
              processes: int = PROCESSES) -> Counts:  # fmt: skip
    """Run what pytest selects on several processes, for at most `seconds`. Logs and notes are in `out`."""
    until, parts = time.monotonic() + seconds, []
    for k in range(processes):
        notes, log = out / f"{name}-{k}.notes", out / f"{name}-{k}.log"
        notes.write_text("")
        log.write_text("")
        options = ["-q", "-p", "no:cacheprovider", "-p", "tests.gpu_plugin", "--part", f"{k}/{processes}"]
        options += ["--test-seconds", str(test_seconds), "--notes", str(notes)]
        parts.append(Part([sys.executable, "-m", "pytest", *options, *pytest_arguments], notes, log))
        parts[-1].start()
    running, lost = list(parts), []
    try:
        while running and time.monotonic() < until:
            time.sleep(0.1)
            for part in [p for p in running if p.process and p.process.poll() is not None]:
                if not part.died():
                    running.remove(part)
                    lost += [] if part.read()[2] else [part]
    finally:
        for part in running:
            kill(part.process)
    return _counted(parts, [*running, *lost])


def _counted(parts: Sequence[Part], unfinished: Sequence[Part]) -> Counts:
    counts = Counts(unfinished=bool(unfinished))
    for part in parts:
        for test, outcome in part.read()[0].items():
            counts.passed += outcome == "passed"
            counts.skipped += outcome == "skipped"
            counts.faults += [test] if outcome == "failed" else []
    return counts


def kill(process: subprocess.Popen | None) -> None:
    """End a process that was started here, and what it has started."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --------------------------------------------------------------------------------------------------------------- steps
@dataclass
class Step:
    """A part of a report. `work` gives whether it went well, and what is to be said of it."""

    name: str
    work: Callable[[Path], tuple[bool, str]]


@dataclass
class Done:
    """What came of a step."""

    name: str
    good: bool
    seconds: float
    said: str


def command(name: str, words: Sequence[str], seconds: float) -> Step:
    """A step that is a command under a time limit."""

    def work(out: Path) -> tuple[bool, str]:
        log = out / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                file.write(f"\nended after {seconds:g} s\n")
            finally:
                kill(process)
        return process.returncode == 0, "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])

    return Step(name, work)


def tests(name: str, arguments: Sequence[str], seconds: float, test_seconds: float) -> Step:
    """A step that is tests."""

    def work(out: Path) -> tuple[bool, str]:
        counts = run_tests(arguments, out, name=name, seconds=seconds, test_seconds=test_seconds)
        return counts.good, "\n".join([str(counts), *counts.faults[:LAST_LINES]])

    return Step(name, work)


def run(steps: Sequence[Step], out: Path) -> list[Done]:
    """Do the steps in their order, whatever comes of them; `out`/summary.json is written anew after each."""
    out.mkdir(parents=True, exist_ok=True)
    done: list[Done] = []
    for step in steps:
        print(f"==== {step.name}", flush=True)
        started = time.monotonic()
        try:
            good, said = step.work(out)
        except Exception as error:  # of the step alone: the others are still worth having
            good, said = False, f"{type(error).__name__}: {error}"
        done.append(Done(step.name, good, round(time.monotonic() - started, 1), said))
        print(f"{said}\n{'passed' if good else 'FAILED'} after {done[-1].seconds} s", flush=True)
        (out / "summary.json").write_text(json.dumps([asdict(d) for d in done], indent=1) + "\n")
    print("\n" + "\n".join(f"{d.seconds:7.1f} s  {'passed' if d.good else 'FAILED'}  {d.name}" for d in done))
    return done


# -------------------------------------------------------------------------------------------------------------- stages
def chosen(kind: str, also: str = "", where: str = "tests/test_gpu.py") -> list[str]:
    """The tests of CuPy itself ("gpu"), or of the stand-in."""
    which = "standin" if kind == "standin" else "gpu and not standin"
    return [where, "-k", f"{which}{' and ' + also if also else ''}"]


def smoke(kind: str) -> Step:
    return tests("smoke", [*chosen(kind), "-m", "smoke"], 90, 60)


def same_bits(kind: str) -> Step:
    return tests("same-bits", chosen(kind, "(same or graph or stream)"), 120, 60)


def everything(kind: str) -> Step:
    return tests("tests", chosen(kind, where="tests"), 300, 120)


def sanitize(kind: str) -> list[Step]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [Step("sanitize", lambda out: (False, "compute-sanitizer is not installed: nothing was checked"))]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen(kind), "-m", "sanitize"]
    return [
        command(f"sanitize-{name}", [tool, "--tool", name, "--error-exitcode", "1", *pytest], 150)
        for name in ("memcheck", "racecheck")
    ]


def report(kind: str, out: Path, minutes: float) -> list[Step]:
    """The device, whether the library works at all, same bits, figures; then what there is time left for."""
    python, quick = [sys.executable, "-m"], ["--quick"] if kind == "standin" else []
    bench = [*python, "tests.gpu_bench", "--kind", kind, "--out", str(out), *quick]
    return [
        command("device", [*python, "tests.gpu_bench", "--kind", kind, "--out", str(out), "--device"], 30),
        smoke(kind),
        same_bits(kind),
        command("bench-main", [*bench, "--minutes", str(minutes)], 60 * minutes + 60),
        everything(kind),
        *sanitize(kind),
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_stages")
    parser.add_argument("stage", choices=("smoke", "tests", "sanitize", "report"))
    parser.add_argument("--kind", choices=("gpu", "standin"), default="gpu")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"))
    parser.add_argument("--minutes", type=float, default=2.5, help="of the benchmark in a report")
    given = parser.parse_args(words)
    out = Path(os.environ.get("CALLED_FROM", ".")) / given.out
    stages = {
        "smoke": lambda: [smoke(given.kind)],
        "tests": lambda: [everything(given.kind)],
        "sanitize": lambda: sanitize(given.kind),
        "report": lambda: report(given.kind, out.resolve(), given.minutes),
    }
    return 0 if all(d.good for d in run(stages[given.stage](), out.resolve())) else 1


if __name__ == "__main__":
    raise SystemExit(main())
