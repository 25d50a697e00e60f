"""The table of the CUDA kernels: registers, spills, and how much they move over the least. `make kernels` prints it,
and below it that of the launches (tests/sass): how near their machine code lets them come to a copy's bandwidth.

Nothing here has run on a GPU. Registers and spills are the compiler's word (tests/nvrtc.py); traffic is counted on the
emulator (tests/simt): the 32-byte sectors that a call's launches touch, over the bytes of the arrays that go in, come
out or are kept, each once. Tests hold the same figures to the limits below (test_kernel_table.py).
"""

from __future__ import annotations

import datetime
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cnnlayers import kernels
from cnnlayers.kernels.cuda import compile as compiler

from . import kernel_calls, nvrtc, simt, standin_cupy
from .kernel_calls import LAST, TRAIN, Asked, Call, on_device
from .sass import launches
from .sass import table as launch_table

MOST, OTHERS = (75, 90), (80, 100, 120)  # architectures that tests compile many kernels for, and one of each template
OPTIONS = (*compiler.OPTIONS, "-ftz=true")  # which CuPy adds
ONCE = 1.05  # over the least: each array comes from memory once
Limits = Mapping[str, tuple[float, float]]  # of each part of a trio: distinct sectors, and sectors asked for


@dataclass(frozen=True)
class Price:
    """A call, and the most that it may move over the least: distinct sectors, which memory must move, and sectors that
    warps ask for. What these have more comes from caches: a window's halo, above all."""

    call: Call
    limits: Limits


@dataclass(frozen=True)
class Moved:
    """What a part of a trio moved, in bytes; `launches`: its kernels."""

    part: str
    launches: tuple[str, ...]
    least: int
    distinct: int
    asked: int

    @property
    def over(self) -> tuple[float, float]:
        """(distinct, asked) over the least."""
        return self.distinct / self.least, self.asked / self.least


def _prices() -> Iterator[Price]:
    """Limits of what is asked for are those that were met when this was written, and a little."""
    few = kernel_calls.FEW
    for window, dtype, forward, backward in (
        ((2, 2, 0), "float32", 1.0, 1.0),
        # Halves read y again, from cache: to make it of the rank keeps 1.15, 2.8 and 4.3, but takes 8 to 11 % more
        # instructions, which are what limits these launches (predicted shares of 0.83 for 0.94, and of 0.59 for 0.64).
        ((2, 2, 0), "float16", 2.9, 1.15),
        ((3, 2, 1), "float32", 2.7, 2.1),  # from here on windows overlap, or rows are no whole packs
        ((3, 2, 1), "float16", 4.4, 2.1),
        ((3, 1, 1), "float32", 4.7, 5.8),
        ((3, 1, 1), "float16", 7.6, 6.5),
        ((3, 3, 0), "float32", 3.2, 3.7),
    ):
        side = 57 if window == (3, 3, 0) else 56
        limits = {"forward": (ONCE, forward), "backward": (ONCE, backward)}
        yield Price(Call("max_pool", (2, 4, side, side), window, {}, (dtype,)), limits)
    disjoint = Call("max_pool", (2, 28, 28, 64), (2,), {}, ("float32",))
    yield Price(disjoint, {"inference": (1.001, 1.15)})
    yield Price(Call("max_pool", (2, 28, 28, 64), (2,), LAST, ("float32",)), {"inference": (1.001, 1.15)})
    for op, args, asked in (("avg_pool", (2,), 2.9), ("avg_pool", (3, 2, 1), 4.8), ("avg_pool", (3, 1, 1), 7.6)):
        yield Price(Call(op, (2, 4, 56, 56), args, {}, few), dict.fromkeys(("forward", "backward"), (ONCE, asked)))
    for op in ("relu", "gelu", "dropout"):
        call = Call(op, (2, 4, 56, 56), (), {**TRAIN, "rng": 0} if op == "dropout" else {}, few)
        yield Price(call, dict.fromkeys(("forward", "backward"), (ONCE, ONCE)))
    for shape in ((64, 1024), (4, 16, 16, 32)):
        limits = {"forward": (ONCE, ONCE), "backward": (ONCE, 1.55)}  # dy is y here, and is read as well
        yield Price(Call("softmax", shape, (), {}, few), limits)
    yield Price(
        Call("softmax_cross_entropy", (256, 500), (), {}, few), {"forward": (ONCE, 2.9), "backward": (ONCE, 1.45)}
    )
    yield Price(Call("lp_pool", (2, 4, 56, 56), (2,), {}, few), {"forward": (ONCE, 2.2), "backward": (ONCE, 3.5)})
    lrn = Call("local_response_norm", (2, 32, 24, 24), (5,), {}, few)
    yield Price(lrn, {"forward": (ONCE, 3.5), "backward": (ONCE, 4.9)})
    pooled = dict.fromkeys(("forward", "backward"), (ONCE, 1.5))
    yield Price(Call("adaptive_avg_pool", (2, 4, 56, 56), (1,), {}, few), pooled)
    for mode in ("constant", "edge", "reflect", "symmetric", "wrap"):
        dtypes = (*few, "float64") if mode in ("constant", "reflect") else ("float32",)
        first, last = ((2, 2, 60, 64), {}, 6.2), ((2, 40, 40, 16), LAST, ONCE)  # 66 cells a row are no whole packs
        for shape, options, asked in (first, last):
            limits = dict.fromkeys(("forward", "backward"), (ONCE, asked))
            yield Price(Call("pad", shape, (1, mode), options, dtypes), limits)
    for shape, options, asked in (((2, 4, 24, 32), {}, 4.5), ((2, 24, 16, 16), LAST, 1.9)):
        limits = {"im2col": (ONCE, asked), "col2im": (ONCE, asked)}
        yield Price(Call("conv", shape, (None, 1, 1), options, ("float32",)), limits)
    yield from _norm_prices(few)


def _norm_prices(few: tuple[str, ...]) -> Iterator[Price]:
    for op, shape, args, options, forward, backward in (
        ("batch_norm", (16, 4, 28, 28), (), TRAIN, (ONCE, 1.05), (ONCE, 1.05)),  # a block a channel
        ("batch_norm", (16, 2, 56, 56), (), TRAIN, (1.52, 1.6), (1.69, 1.75)),  # read twice: 3 / 2 and 5 / 3
        ("batch_norm", (16, 2, 56, 56), (), {}, (ONCE, 1.05), (ONCE, 1.05)),  # evaluation
        ("batch_norm", (32, 16, 7, 7), (), TRAIN, (ONCE, 2.0), (ONCE, 2.0)),  # no whole packs
        ("batch_norm", (2, 7, 7, 64), (), {**TRAIN, **LAST}, (ONCE, 2.3), (ONCE, 2.8)),  # statistics are much of it
        ("batch_norm", (8, 28, 28, 16), (), {**TRAIN, **LAST}, (1.56, 2.0), (1.73, 2.0)),  # three launches
        ("batch_norm", (8, 28, 28, 16), (), LAST, (ONCE, 1.6), (ONCE, 1.6)),
        ("instance_norm", (8, 8, 28, 28), (), {}, (ONCE, 1.05), (ONCE, 1.05)),
        ("group_norm", (8, 8, 28, 28), (4,), {}, (ONCE, 1.1), (ONCE, 1.1)),
        ("layer_norm", (512, 256), ((256,),), {}, (ONCE, 5.1), (1.1, 3.9)),  # what 16 blocks leave of dgamma, dbeta
        ("rms_norm", (512, 256), ((256,),), {}, (ONCE, 3.1), (1.1, 3.9)),
    ):
        yield Price(Call(op, shape, args, options, few), {"forward": forward, "backward": backward})


PRICES = tuple(_prices())


# ------------------------------------------------------------------------------------------------------------- traffic
def moved(call: Call, dtype: str) -> list[Moved]:
    """What each part of the call's trio moves on the emulator."""
    found, done = [], 0
    with (
        standin_cupy.installed() as cupy,
        kernels.mode("require"),
        on_device(call.device, traffic=True, order="ascending") as made,
    ):
        for part, arrays in call.run(cupy, dtype, cupy.ones):
            launches, done = made[done:], len(made)
            if call.op == "conv":  # whose products are CuPy's
                found += [m for m in _columns(call, launches) if m not in found]
            elif launches:
                found.append(_moved(part, launches, sum(_unique(arrays).values())))
    return found


def _unique(arrays: Iterable[Any]) -> dict[int, int]:
    """Bytes of different arrays, by their addresses."""
    return {a.data.ptr: int(a.nbytes) for a in arrays}


def _moved(part: str, launches: Sequence[Any], least: int) -> Moved:
    total = launches[0].traffic
    for launch in launches[1:]:
        total = total + launch.traffic
    names = tuple(dict.fromkeys(launch.name for launch in launches))
    return Moved(part, names, least, simt.SECTOR * sum(total.distinct), simt.SECTOR * sum(total.sectors))


def _columns(call: Call, launches: Sequence[Any]) -> Iterator[Moved]:
    """Of a convolution's steps: the image once (both ways where gradients are added to it) and the columns once."""
    image = 4 * math.prod(call.shape)
    for launch in launches:
        step = launch.name.partition("<")[0]
        yield _moved(step, [launch], image * 9 + image * (2 if step == "col2im" else 1))


# ----------------------------------------------------------------------------------------------------------- compilers
def few_of(asked: Sequence[Asked], *, elements: bool = True) -> list[Asked]:
    """One kernel of each template and (with `elements`) element: that with the widest packs, and 32-bit offsets."""
    best: dict[tuple[str, str], Asked] = {}
    for kernel in asked:
        key = kernel.template, kernel.element if elements else ""
        if key not in best or _crowded(kernel) > _crowded(best[key]):
            best[key] = kernel
    return list(best.values())


def _crowded(kernel: Asked) -> tuple[bool, list[int]]:
    return "unsigned long long" not in kernel.arguments[1:], [int(a) for a in kernel.arguments if a.isdecimal()]


def compiled(jobs: Iterable[tuple[int, Sequence[Asked]]]) -> list[tuple[Asked, nvrtc.Kernel]]:
    """The kernels as the compiler made them for an architecture each, all jobs side by side."""
    work = []
    for arch, asked in jobs:
        for stem in {kernel.stem for kernel in asked}:
            mine = [kernel for kernel in asked if kernel.stem == stem]
            work.append((arch, stem, list({kernel.name: kernel for kernel in mine}.values())))

    def one(job: tuple[int, str, list[Asked]]) -> list[tuple[Asked, nvrtc.Kernel]]:
        arch, stem, mine = job
        source, names = compiler.source(stem), [kernel.name for kernel in mine]
        made = nvrtc.compile_all(source, names, (arch,), options=OPTIONS, filename=f"{stem}.cu")
        return list(zip(mine, made, strict=True))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [pair for made in pool.map(one, sorted(work, key=lambda job: -len(job[2]))) for pair in made]


def faults(kernel: Asked, made: nvrtc.Kernel) -> list[str]:
    """What the compiler made of a kernel and should not have: spills or local memory, more registers than its launch
    bounds leave, narrow accesses where 16 bytes at once are meant."""
    threads, blocks = kernel_calls.templates()[kernel.stem][kernel.template]
    found = [f"{size} bytes of {what}" for size, what in ((made.spills, "spills"), (made.stack, "stack")) if size]
    if made.registers > 65536 // (threads * blocks):
        found.append(f"{made.registers} registers, with {blocks} blocks of {threads} threads a processor")
    for meant, there, what in zip(wide_by_design(kernel), made.wide, ("loads", "stores"), strict=True):
        if meant and not there:
            found.append(f"no {what} of 16 bytes")
    return found


STORES_SUMS = (
    "norm_moments",
    "norm_sums",
    "channels_last_moments",
    "channels_last_sums",
    "layer_norm_sums",
)  # and no array of packs


def wide_by_design(kernel: Asked) -> tuple[bool, bool]:
    """Whether a kernel is meant to (load, store) 16 bytes at once: where its packs have so many."""
    numbers = [int(a) for a in kernel.arguments[1:] if a.isdecimal()]
    if (
        kernel.stem in ("max_pool", "avg_pool", "max_unpool", "cross_entropy", "local_response_norm", "lp_pool")
        or not numbers
        or kernel.template == "channels_last_finish"
    ):
        return False, False
    if kernel.stem in ("max_pool_narrow", "avg_pool_narrow"):
        return (numbers[4] * kernel.itemsize == 16,) * 2
    if kernel.stem in ("max_pool_tiled", "avg_pool_tiled"):
        whole = numbers[2] * kernel.itemsize == 16
        back = kernel.template.endswith("_backward")
        return whole and not back, whole and (back or numbers[1] == 1)
    if kernel.stem == "avg_pool_planes":
        whole = numbers[0] * kernel.itemsize == 16
        return whole and kernel.template != "fill_planes", whole and kernel.template.startswith("fill_")
    whole = numbers[0] * kernel.itemsize == 16
    if kernel.stem == "im2col":
        runs = "true" in kernel.arguments
        return whole and runs, kernel.template == "im2col" or (whole and runs)
    if kernel.stem == "pad":
        return whole, True
    if kernel.stem == "pad_rows":
        return False, whole if kernel.template == "pad_rows" else numbers[1] * kernel.itemsize == 16
    return whole, whole and kernel.template not in STORES_SUMS


# --------------------------------------------------------------------------------------------------------------- table
@dataclass(frozen=True)
class Row:
    """A line of the table; `made`: its kernels, compiled."""

    kernels: tuple[str, ...]
    call: str = ""
    over: tuple[float, float] | None = None
    made: list[nvrtc.Kernel] = field(default_factory=list)

    def __str__(self) -> str:
        archs = sorted({k.arch for k in self.made})
        registers = " ".join(str(max(k.registers for k in self.made if k.arch == arch)) for arch in archs)
        spills = str(max(k.spills + k.stack for k in self.made)) if self.made else ""
        loads, stores = (any(k.wide[i] for k in self.made) for i in (0, 1))
        wide = ", ".join(word for word, there in (("loads", loads), ("stores", stores)) if there)
        figures = [f"{n:.2f}" for n in self.over] if self.over else ["", ""]
        names = " + ".join(f"`{name}`" for name in self.kernels)
        return f"| {names} | {registers} | {spills} | {wide} | {' | '.join(figures)} | {self.call} |"


def rows(archs: Sequence[int] = (75, 90, 120)) -> list[Row]:
    """The whole table: priced calls first, then a kernel of each template and dtype that none of them launched."""
    asked = kernel_calls.asked_by()
    priced = kernel_calls.asked_by(tuple(price.call for price in PRICES), device={}, wide=False)
    _build(priced)
    wanted = {(k.stem, k.name): k for k in (*few_of(asked), *priced)}
    made: dict[str, list[nvrtc.Kernel]] = {}
    if nvrtc.unavailable() is None:
        for kernel, found in compiled((arch, list(wanted.values())) for arch in archs):
            made.setdefault(kernel.name, []).append(found)
    table = []
    for price in PRICES:
        for dtype in price.call.dtypes:
            for m in moved(price.call, dtype):
                if m.part in price.limits:
                    where = f"{m.part} of {price.call}, {dtype}"
                    table.append(Row(m.launches, where, m.over, [k for n in m.launches for k in made.get(n, [])]))
    shown = {name for row in table for name in row.kernels}
    others = sorted(name for _, name in wanted if name not in shown)
    return [*table, *(Row((name,), "", None, made.get(name, [])) for name in others)]


def _build(asked: Sequence[Asked]) -> None:
    """Compile for the emulator, side by side; the stand-in finds them there."""
    if simt.unavailable() is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda kernel: simt.Module(compiler.source(kernel.stem), [kernel.name]), asked))


def every() -> int:
    """Compile every kernel that a launcher can ask for, for every architecture, and print what is wrong; minutes."""
    wrong, asked = 0, kernel_calls.asked_by()
    for arch in nvrtc.ARCHS:
        for kernel, made in compiled([(arch, asked)]):
            for fault in faults(kernel, made):
                wrong += 1
                print(f"sm_{arch} {kernel.name}: {fault}")
        print(f"sm_{arch}: {len(asked)} kernels", flush=True)
    return wrong


def main() -> None:
    """Print the table as Markdown."""
    archs = (75, 90, 120)
    print(f"CUDA kernels, {datetime.date.today()}, {launch_table.commit()}, {nvrtc.compiler()}. No GPU has run them.\n")
    said = " ".join(f"sm_{arch}" for arch in archs)
    print(f"| kernel | registers ({said}) | spills | 16 bytes at once | sectors over the least | asked for | call |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(archs):
        print(row)
    print(
        "\nSpills: bytes of a thread, stack included. Sectors over the least: what memory must move, over the arrays'"
        "\nown bytes. Asked for: what warps ask of the caches; where windows overlap this is the halo's price."
    )
    for reason in filter(None, (nvrtc.unavailable(), simt.unavailable())):
        print(f"\nNot all columns: {reason}")
    print("\nMachine code: ", end="")
    if launches.unavailable() is None:
        launch_table.main([])
    else:
        print(f"not listed: {launches.unavailable()}")


if __name__ == "__main__":
    if sys.argv[1:] == ["every"]:
        raise SystemExit(every() != 0)
    main()
