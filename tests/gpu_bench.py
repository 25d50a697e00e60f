"""The benchmark of a GPU's main cases, for a short time on a machine, beside what the machine code promises.

python -m tests.gpu_bench --out DIR --minutes 2.5     gpu.md and gpu.json, and predicted.md: shares side by side
python -m tests.gpu_bench --out DIR --device          device.json: the device's attributes and the packages
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cnnlayers import backends
from cnnlayers.bench import machine, report, run
from cnnlayers.bench.measure import OURS, Row

PREDICTED = machine.ROOT / "bench" / "gpu_predicted.json"
# Of PyTorch its convolutions are cuDNN's; "pytorch-nocudnn" is without.
PEERS = ("pytorch", "pytorch-compile", "pytorch-nocudnn")


@contextlib.contextmanager
def device(kind: str) -> Iterator[Any]:
    """CuPy, or the stand-in for it."""
    if kind == "standin":
        from . import standin_cupy

        with standin_cupy.installed() as cupy:
            yield cupy
    else:
        reason = backends.available()["cupy"]
        if reason:
            raise SystemExit(f"no GPU here: {reason}")
        import cupy

        yield cupy


def write_device(cupy: Any, out: Path) -> None:
    """All that the driver says of the device, and what is installed."""
    said: dict[str, Any] = machine.facts(backends.of(cupy.zeros(1)), ["gpu_bench"])
    said["attributes"] = {name: int(value) for name, value in sorted(cupy.cuda.Device().attributes.items())}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ran = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=20, check=True)
        said["nvidia-smi"] = ran.stdout.splitlines()
    (out / "device.json").write_text(json.dumps(said, indent=1) + "\n")
    print(said["device"])


def bench(out: Path, minutes: float | None, quick: bool, say: Callable[[str], None] = print) -> int:
    """Measure the main cases. 1 where the library failed or differs from a peer."""
    planned = run.plan("gpu", out=out, quick=quick, minutes=minutes, main=True)
    planned.contestants = [peer for peer in planned.contestants if peer.name in PEERS]
    outcome = run.run(planned, say, lambda done, of, name: None)
    run.keep(planned, outcome)
    for line in (*report.summary(outcome.rows), *outcome.troubles):
        say(line)
    if outcome.left_out:
        say(f"time was up: {outcome.left_out} of {len(planned.cases)} cases were left out")
    table = beside_predictions(outcome.rows, predictions())
    (out / "predicted.md").write_text("\n".join(table) + "\n")
    return int(outcome.wrong)


Key = tuple[str, str, str]  # a case's name, a part, a dtype


def predictions(path: Path = PREDICTED) -> dict[Key, dict[str, float]]:
    """What `make kernels` has worked out from the machine code; empty where it never ran."""
    if not path.exists():
        return {}
    return {(row["case"], row["part"], row["dtype"]): row for row in json.loads(path.read_text())["rows"]}


def beside_predictions(rows: Sequence[Row], predicted: dict[Key, dict[str, float]]) -> list[str]:
    """The table of shares of a copy's bandwidth: at most and as guessed from the machine code, and as measured."""
    lines = [
        "| case | part | dtype | predicted, at most | predicted | measured | measured / predicted |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        share, found = row.share(), predicted.get((row.case.name, row.part, row.case.dtype), {})
        if OURS not in row.times or share is None:
            continue
        bound, guess = found.get("bound"), found.get("guess")
        cells = [f"{n:.2f}" if n is not None else "–" for n in (bound, guess, share, share / guess if guess else None)]
        lines.append(f"| {row.case.name} | {row.part} | {row.case.dtype} | {' | '.join(cells)} |")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_bench")
    parser.add_argument("--kind", choices=("gpu", "standin"), default="gpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--quick", action="store_true", help="small shapes: no figures to rely on")
    parser.add_argument("--device", action="store_true", help="only say what the device is")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    with device(given.kind) as cupy:
        if given.device:
            write_device(cupy, given.out)
            return 0
        return bench(given.out, given.minutes, given.quick)


if __name__ == "__main__":
    raise SystemExit(main())
