"""Every CUDA kernel compiled for real devices, and what each moves on the emulator, held to the limits of the table."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest

from cnnlayers.kernels.cuda import compile as compiler

from . import kernel_calls, kernel_table, nvrtc, simt
from .kernel_calls import Asked, templates
from .kernel_table import MOST, OTHERS, PRICES, Price

STEMS = sorted(templates())
emulated = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


@functools.cache
def asked() -> list[Asked]:
    pytest.importorskip("ml_dtypes")  # bfloat16 is among the types
    return kernel_calls.asked_by()


@pytest.mark.parametrize("stem", STEMS)
def test_launchers_ask_for_every_kernel_there_is(stem: str) -> None:
    """A kernel that no call reaches is dead, or the list of calls is short."""
    assert {k.template for k in asked() if k.stem == stem} == set(templates()[stem])


def test_blocks_are_no_larger_than_launch_bounds_say() -> None:
    for kernel in asked():
        assert kernel.threads <= templates()[kernel.stem][kernel.template][0], kernel


@pytest.mark.skipif(nvrtc.unavailable() is not None, reason=str(nvrtc.unavailable()))
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(
    ("archs", "elements"),
    [
        pytest.param(MOST, False, id="one of each template"),
        pytest.param(MOST, True, id="one of each template and element", marks=pytest.mark.whole),
        pytest.param(OTHERS, False, id="one of each template, other devices", marks=pytest.mark.whole),
    ],
)
def test_compiled_for_devices(stem: str, archs: tuple[int, ...], elements: bool) -> None:
    """No spills, no local memory, registers as launch bounds leave them, 16 bytes at once where packs have so many."""
    few = kernel_table.few_of([k for k in asked() if k.stem == stem], elements=elements)
    for kernel, made in kernel_table.compiled([(arch, few) for arch in archs]):
        assert kernel_table.faults(kernel, made) == [], made


@emulated
@pytest.mark.sample(24)
@pytest.mark.parametrize(
    ("price", "dtype"), [(p, d) for p in PRICES for d in p.call.dtypes], ids=lambda v: getattr(v, "call", v)
)
def test_traffic(price: Price, dtype: str) -> None:
    """Distinct sectors, and sectors asked for, over the least."""
    found = {moved.part: moved for moved in kernel_table.moved(price.call, dtype)}
    for part, limits in price.limits.items():
        for over, most, what in zip(found[part].over, limits, ("moves", "asks for"), strict=True):
            assert over <= most + 1e-6, f"{part} {what} {over:.3f} times the least: {found[part].launches}"


# ---------------------------------------------------------------------------------------------------- the table itself
def test_a_spill_and_a_narrow_access_would_show() -> None:
    tile = Asked("max_pool_tiled", "max_pool_tiled<float, 2, 2, 4, 1, unsigned>")
    assert kernel_table.wide_by_design(tile) == (True, False)
    assert kernel_table.wide_by_design(Asked("pad", "pad_forward<unsigned long long, 2, unsigned>")) == (True, True)
    assert kernel_table.wide_by_design(Asked("pad", "pad_backward<__half, 4, unsigned>")) == (False, True)
    assert kernel_table.wide_by_design(Asked("norm_forward", "norm_moments<double, 2, 4, unsigned, true>")) == (
        True,
        False,
    )
    assert kernel_table.wide_by_design(Asked("im2col", "im2col<unsigned, 4, true, unsigned>")) == (True, True)
    assert kernel_table.wide_by_design(Asked("max_pool", "max_pool<float, unsigned char, unsigned>")) == (False, False)


def test_faults_are_told() -> None:
    tile = Asked("max_pool_tiled", "max_pool_tiled<float, 2, 2, 4, 1, unsigned>")
    assert (
        kernel_table.faults(tile, nvrtc.Kernel(tile.name, 90, 64, 0, 0, 0, 0, Counter({16: 1}), Counter({4: 1}))) == []
    )
    bad = nvrtc.Kernel(tile.name, 90, 255, 8, 4, 4, 0, Counter({4: 1}), Counter())
    said = ["8 bytes of spills", "8 bytes of stack", "255 registers", "no loads of 16 bytes"]
    assert [found[: len(start)] for found, start in zip(kernel_table.faults(tile, bad), said, strict=True)] == said


def test_few_are_one_of_each_template_and_element() -> None:
    few = kernel_table.few_of(asked())
    assert len({(k.template, k.element) for k in asked()}) == len(few)
    assert Asked("max_pool_tiled", "max_pool_tiled<__half, 3, 2, 8, 2, unsigned>", 256) in few


@emulated
def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two of its rows: a priced call, and a kernel without one."""
    monkeypatch.setattr(kernel_table, "PRICES", PRICES[:1])
    every = kernel_calls.asked_by  # of all calls it takes seconds, and `asked` knows the answer
    monkeypatch.setattr(kernel_calls, "asked_by", lambda *args, **given: every(*args, **given) if args else asked())
    gather = Asked("max_pool", "max_pool_gather<float, unsigned char, unsigned>")
    monkeypatch.setattr(kernel_table, "few_of", lambda asked: [gather])
    monkeypatch.setattr(kernel_table.launch_table, "main", lambda words: print("the launches"))
    kernel_table.main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"CUDA kernels, {kernel_table.datetime.date.today()}, ")
    assert "No GPU has run them" in printed
    tile = "| `max_pool_tiled<float, 2, 2, 4, 1, unsigned>` |"
    [row] = [line for line in printed.splitlines() if line.startswith(tile)]
    assert "| 1.00 | 1.00 | forward of max_pool((2, 4, 56, 56), 2, 2, 0), float32 |" in row
    [row] = [line for line in printed.splitlines() if gather.name in line]
    if nvrtc.unavailable() is None:
        assert len(row.split("|")[2].split()) == 3  # registers, for three architectures
    assert compiler.OPTIONS[0] in kernel_table.OPTIONS
