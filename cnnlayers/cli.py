"""The command line: `cnnlayers info | train | predict | bench`.

A mistake in the arguments, or in what they name, is one line on standard error and exit code 2; Ctrl-C is one line and
130. Every command imports what it needs when it runs, so that `info` and `--help` start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cnnlayers

if TYPE_CHECKING:
    from cnnlayers.distributed import Ranks
    from cnnlayers.train import Run

INTERRUPTED = 130
EPOCHS = 30
SHOWN_CLASSES = 3


class Refused(Exception):
    """What was asked for cannot be done; the message says why in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)}; see {self.prog} --help\n" if _speaks() else None)


def _speaks() -> bool:
    """Whether this process says what all ranks of an mpiexec would say alike."""
    from cnnlayers.distributed import launched_rank

    return launched_rank() == 0


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn the errors by which the library refuses what the arguments name into `Refused`."""
    from cnnlayers.backends import BackendUnavailable

    try:
        yield
    except (BackendUnavailable, ImportError, OSError, TypeError, ValueError) as error:
        raise Refused(_one_line(error)) from error


def _number(kind: Callable[[str], Any], least: float, exclusive: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number of at least (or above) `least`."""

    def parse(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (number > least if exclusive else number >= least) or number == math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {what} {'above' if exclusive else 'of at least'} {least:g}, got {text!r}"
            )
        return number

    return parse


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = _Parser(prog="cnnlayers", description=(cnnlayers.__doc__ or "").partition("\n")[0], allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"cnnlayers {cnnlayers.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    info = commands.add_parser("info", help="backends, devices, threads, kernels and extras of this machine")
    info.set_defaults(run=_info)

    train = commands.add_parser("train", help="train a network on real pictures", allow_abbrev=False)
    train.set_defaults(run=_train)
    add = train.add_argument
    add(
        "--data",
        metavar="digits|PATH",
        help="scikit-learn's handwritten digits (default), CIFAR-10's python folder, or a folder of one folder of "
        "pictures a class",
    )
    add("--model", choices=["three-layer", "resnet8"], help="the network (default: three-layer)")
    add("--epochs", type=_number(int, 1), metavar="N", help=f"epochs in all (default: {EPOCHS})")
    add("--batch-size", type=_number(int, 1), metavar="N", help="pictures a step (default: 64)")
    add("--optimizer", choices=["adam", "sgd"], help="sgd has momentum 0.9 (default: adam)")
    add("--lr", type=_number(float, 0, True), metavar="X", help="first learning rate (default: by data and optimizer)")
    add("--seed", type=_number(int, 0), metavar="N", help="a seed repeats its run bit for bit (default: 0)")
    add("--backend", choices=["auto", "numpy", "cupy"], help="where to compute (default: CNNLAYERS_BACKEND, else auto)")
    add("--distributed", action="store_true", help="of `mpiexec -n N`: N processes share every batch")
    again = train.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="continue the run in DIR up to --epochs, with its own settings"
    )
    again.add_argument("--overwrite", action="store_true", help="replace the run that is in DIR")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/<data>-<model>)")

    predict = commands.add_parser("predict", help="a trained model on your own pictures", allow_abbrev=False)
    predict.set_defaults(run=_predict)
    predict.add_argument("model", metavar="MODEL", help="model.safetensors of a run, or the run's folder")
    predict.add_argument(
        "images", metavar="IMAGE", nargs="+", help="a picture (PNG, JPEG and the like), or a folder: the pictures in it"
    )
    predict.add_argument("--backend", choices=["auto", "numpy", "cupy"], help="where to compute")

    bench = commands.add_parser("bench", help="this machine's speed, beside the peers installed", allow_abbrev=False)
    bench.set_defaults(run=_bench)
    add = bench.add_argument
    add("--ops", nargs="+", default=[], metavar="OP", help="only the cases of these ops (default: all)")
    add("--peers", nargs="+", default=[], metavar="PEER", help="beside whom (default: who is installed); none: nobody")
    add("--device", choices=["cpu", "gpu"], help="where (default: the GPU where CuPy can use one)")
    add("--out", type=Path, metavar="DIR", help="where the results go (default: bench/results, or runs/bench)")
    add("--minutes", type=_number(float, 0, True), metavar="X", help="begin no further case after so long")
    add("--quick", action="store_true", help="small shapes and few runs, to try the way; no figures to rely on")
    return top


def _interrupted(text: str) -> int:
    start = "\n" if sys.stderr.isatty() else ""  # below the ^C that a terminal shows
    print(f"{start}{text}", file=sys.stderr)
    return INTERRUPTED


def _check_environment() -> None:
    """Read what the environment asks for now, before any work is done."""
    from cnnlayers import backends, kernels

    backends.num_threads()
    kernels.current_mode()
    kernels.winograd_allowed()
    kernels.cudnn_allowed()


def _select(name: str | None) -> None:
    """Select the backend."""
    from cnnlayers import backends

    _check_environment()
    if name is None:
        backends.current()
    else:
        backends.use(name)


# ------------------------------------------------------------------------------------------------------------- commands
def _info(args: argparse.Namespace) -> int:
    from cnnlayers import info

    for line in info.lines():
        print(line)
    return 0


def _train(args: argparse.Namespace) -> int:
    from cnnlayers import distributed, run_folder

    started = distributed.launched_size()
    if started > 1 and not args.distributed:
        raise Refused(
            f"a launcher (mpiexec or its like) started {started} processes, and each would write the same run: "
            f"--distributed makes them train it together ({distributed.size_variable()} says so; unset it for separate "
            "runs)"
        )
    try:
        ranks = distributed.world() if args.distributed else distributed.Ranks()
    except distributed.MPIUnavailable as error:
        raise Refused(_one_line(error)) from error
    with ranks.ending_together(Refused), contextlib.ExitStack() as until_the_end:
        with _refusing():
            run, epochs = _prepare(args, ranks)
            with ranks.agreeing():
                if ranks.first:
                    until_the_end.enter_context(run_folder.locked(run.out))
        return _train_to(epochs, run)


def _prepare(args: argparse.Namespace, ranks: Ranks) -> tuple[Run, int]:
    """The run that the arguments ask for, and up to which epoch it goes."""
    from cnnlayers import backends, data, train

    names = ("data", "model", "optimizer", "lr", "batch_size", "seed")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    out = args.out or Path("runs") / f"{data.name_of(args.data or 'digits')}-{args.model or 'three-layer'}"
    ranks.share_cores()
    with ranks.agreeing():
        _select(args.backend)
    if backends.current().name == "cupy":
        ranks.take_gpu()
        backends.use("cupy")  # new arrays: on that GPU
    begin = train.resume if args.resume else functools.partial(train.start, overwrite=args.overwrite)
    run = begin(given, out, ranks)
    done = len(run.records)
    if args.epochs is not None and args.epochs < done:
        raise ValueError(f"the run in {out} has done {done} epochs already, more than --epochs {args.epochs}")
    return run, args.epochs or max(run.planned or EPOCHS, done)


def _train_to(epochs: int, run: Run) -> int:
    """Train, test and draw. What the ranks meet alike the first one says; an error of one rank's own ends the job."""
    from cnnlayers import distributed, kernels, progress, train

    ranks, out = run.ranks, run.out
    try:
        if ranks.first:
            print(*progress.header(run.header(epochs)), sep="\n", flush=True)
        with progress.shown(epochs, None if ranks.first else io.StringIO()) as report, ranks.interruptible():
            run.train(epochs, report)
        if not ranks.first:
            return 0
        tested = run.test()
        with _reporting("no curves.png"):
            run.draw(tested)
    except KeyboardInterrupt:
        done = run.after_interrupt()
        kept = (
            f"epoch {done} is in {out}, --resume continues"
            if done
            else f"no epoch was finished, nothing is saved in {out}"
        )
        return _interrupted(f"interrupted: {kept}") if ranks.first else INTERRUPTED
    except BrokenPipeError:  # nobody reads on: the epoch just finished is on disk, and --resume continues
        _discard_output()
        return 1 if ranks.size == 1 else ranks.abort(1)
    except (OSError, kernels.KernelUnavailable, train.Diverged, distributed.Apart) as error:
        alike = isinstance(error, train.Diverged | distributed.Apart)
        if ranks.first or not alike:
            print(f"cnnlayers train: {_one_line(error)}", file=sys.stderr)
        return 1 if alike or ranks.size == 1 else ranks.abort(1)
    print(f"saved in {out}")
    print(f"next: cnnlayers predict {shlex.quote(str(out))} PICTURE")
    print(f"test accuracy {tested.accuracy:.1%}".replace("%", " %"))
    return 0


@contextlib.contextmanager
def _reporting(loss: str) -> Iterator[None]:
    """Say that an extra is missing and what is lost by it, and go on: a run that came so far does not fail for it."""
    try:
        yield
    except ImportError as error:
        print(f"cnnlayers train: {loss}: {_one_line(error)}", file=sys.stderr)


def _predict(args: argparse.Namespace) -> int:
    from cnnlayers import predict

    with _refusing():
        _select(args.backend)
        trained = predict.load(args.model)
        images = predict.pictures_of(args.images)
        answers = predict.predict(trained, images)
    width = max(map(len, map(str, images)))
    for path, answer in zip(images, answers, strict=True):
        text = "   ".join(f"{name} {probability:6.1%}" for name, probability in answer[:SHOWN_CLASSES])
        print(f"{path!s:{width}}   {text}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from cnnlayers.bench import report, run

    ops, peers = ([name for word in words for name in word.split(",") if name] for words in (args.ops, args.peers))
    with _refusing():
        _check_environment()
        planned = run.plan(args.device, ops, peers, args.out, quick=args.quick, minutes=args.minutes)
    with run.shown(len(planned.cases)) as (say, step):
        outcome = run.run(planned, say, step)
    print("", *report.summary(outcome.rows), sep="\n")
    if outcome.left_out:
        print(f"time was up: {outcome.left_out} of {len(planned.cases)} cases were left out")
    for trouble in outcome.troubles:
        print(f"cnnlayers bench: {_one_line(trouble)}", file=sys.stderr)
    written = run.keep(planned, outcome)
    print("in " + ", ".join(map(str, written)))
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        print("cnnlayers bench: no pictures: pip install 'cnnlayers[train]' brings matplotlib", file=sys.stderr)
    if outcome.interrupted:
        return _interrupted(f"interrupted: the {len(outcome.rows)} rows measured so far are in {planned.out}")
    return 1 if outcome.wrong else 0


def _discard_output() -> None:
    """Send what standard output has left to nowhere: whoever read it has gone."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed, or no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks is shown by its numbers
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(argv)
        finally:
            if sys.stdout is not None:  # it is None where standard output was closed
                sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupted("interrupted")
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:  # a full disk behind standard output
        print(f"cnnlayers: {_one_line(error)}", file=sys.stderr)
        _discard_output()
        return 1


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except Refused as error:
        if args.command != "train" or _speaks():
            print(f"cnnlayers {args.command}: {error}", file=sys.stderr)
        return 2
