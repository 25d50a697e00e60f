"""The command line: `cnnlayers info | train | predict`.

A mistake in the arguments, or in what they name, is one line on standard error and exit code 2; Ctrl-C is one line and
130. Every command imports what it needs when it runs, so that `info` and `--help` start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cnnlayers

INTERRUPTED = 130
EPOCHS = 30
SHOWN_CLASSES = 3


class Refused(Exception):
    """What was asked for cannot be done; the message says why in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)}; see {self.prog} --help\n")


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
        "--data", metavar="digits|PATH", help="scikit-learn's handwritten digits (default), or CIFAR-10's python folder"
    )
    add("--model", choices=["three-layer"], help="the network (default: three-layer)")
    add("--epochs", type=_number(int, 1), metavar="N", help=f"epochs in all (default: {EPOCHS})")
    add("--batch-size", type=_number(int, 1), metavar="N", help="pictures a step (default: 64)")
    add("--optimizer", choices=["adam", "sgd"], help="sgd has momentum 0.9 (default: adam)")
    add("--lr", type=_number(float, 0, True), metavar="X", help="first learning rate (default: by data and optimizer)")
    add("--seed", type=_number(int, 0), metavar="N", help="a seed repeats its run bit for bit (default: 0)")
    add("--backend", choices=["auto", "numpy", "cupy"], help="where to compute (default: CNNLAYERS_BACKEND, else auto)")
    add("--resume", action="store_true", help="continue the run in DIR up to --epochs, with its own settings")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/<data>-<model>)")

    predict = commands.add_parser("predict", help="a trained model on your own pictures", allow_abbrev=False)
    predict.set_defaults(run=_predict)
    predict.add_argument("model", metavar="MODEL", help="model.safetensors of a run, or the run's folder")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="a picture: PNG, JPEG and the like")
    predict.add_argument("--backend", choices=["auto", "numpy", "cupy"], help="where to compute")
    return top


def _interrupted(said: str) -> int:
    start = "\n" if sys.stderr.isatty() else ""  # below the ^C that a terminal shows
    print(f"{start}{said}", file=sys.stderr)
    return INTERRUPTED


def _select(name: str | None) -> None:
    """Select the backend; what the environment asks for is read now, before any work is done."""
    from cnnlayers import backends, kernels

    backends.num_threads()
    kernels.current_mode()
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
    from cnnlayers import data, kernels, progress, train

    names = ("data", "model", "optimizer", "lr", "batch_size", "seed")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    out = args.out or Path("runs") / f"{data.name_of(args.data or 'digits')}-{args.model or 'three-layer'}"
    epochs = args.epochs or EPOCHS
    with _refusing():
        _select(args.backend)
        run = (train.resume if args.resume else train.start)(given, out)
        done = len(run.records)
        if args.epochs is None:
            epochs = max(epochs, done)
        elif epochs < done:
            raise ValueError(f"the run in {out} has done {done} epochs already, more than --epochs {epochs}")
    try:
        with progress.shown(epochs) as report:
            run.train(epochs, report)
        tested = run.test()
        with _reporting("no curves.png"):
            run.draw(tested)
    except KeyboardInterrupt:
        done = len(run.records)
        kept = f"epoch {done} is in {out}, --resume continues" if done else f"no epoch was finished, {out} is as it was"
        return _interrupted(f"interrupted: {kept}")
    except (OSError, kernels.KernelUnavailable, train.Diverged) as error:
        print(f"cnnlayers train: {_one_line(error)}", file=sys.stderr)
        return 1
    print(f"saved in {out}")
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
        answers = predict.predict(trained, args.images)
    width = max(map(len, args.images))
    for path, answer in zip(args.images, answers, strict=True):
        said = "   ".join(f"{name} {probability:6.1%}" for name, probability in answer[:SHOWN_CLASSES])
        print(f"{path:{width}}   {said}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except Refused as error:
        print(f"cnnlayers {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted("interrupted")
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
