"""A few mutants of the CUDA kernels, which a seed chooses: each must be noticed. `make mutants` tries all of them."""

from __future__ import annotations

import os

import pytest

from cnnlayers.kernels.cuda import compile as compiler

from . import mutants, simt

emulated = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))
SEED = int(os.environ.get("CNNLAYERS_MUTANTS_SEED", 0))  # another number chooses others
NUMBER = 3
runs = mutants.runs()


@emulated
@pytest.mark.parametrize("mutant", mutants.chosen(SEED, NUMBER), ids=lambda m: f"{m.file}:{m.line} {m.rule} {m.index}")
def test_a_mutant_is_noticed(mutant: mutants.Mutant) -> None:
    assert mutants.noticed(mutant), f"{mutant}, chosen by CNNLAYERS_MUTANTS_SEED={SEED}"


@emulated
@pytest.mark.parametrize("index", [0, 1])
def test_both_barriers_of_a_blocks_sum_are_needed(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, where a block adds up one thing after another without any other barrier: layer norm's moments."""
    monkeypatch.setattr(mutants, "runs", lambda: [run for run in runs if run.name == "layer in two launches"])
    barriers = [m for m in mutants.every() if (m.file, m.rule) == ("row_reduce.cuh", "barrier")]
    assert len(barriers) == 2
    assert mutants.noticed(barriers[index])


@emulated
def test_what_is_not_a_mutant_is_not_noticed() -> None:
    """A comment at the end of a line changes nothing: then all answers must be the same."""

    class Comment(mutants.Mutant):
        def text(self, text: str) -> str:
            return f"{text}\n// the end"

    assert mutants.noticed(Comment("max_unpool.cu", 1, "barrier", 0)) is None


def test_every_rule_is_in_use_and_changes_its_line_alone() -> None:
    found = mutants.every()
    assert {m.rule for m in found} == set(mutants.RULES)
    assert len(set(map(str, found))) == len(found)
    for mutant in found[::7]:
        before = compiler._text(mutant.file)
        pairs = zip(before.split("\n"), mutant.text(before).split("\n"), strict=True)
        assert [i for i, (a, b) in enumerate(pairs, 1) if a != b] == [mutant.line]


def test_what_cannot_be_noticed_is_still_there() -> None:
    """An entry whose line is gone says nothing."""
    lines = {(m.file, m.rule): [] for m in mutants.every()}
    for m in mutants.every():
        lines[m.file, m.rule].append(compiler._text(m.file).split("\n")[m.line - 1])
    for file, rule, part in mutants.EQUIVALENT:
        assert any(part in line for line in lines.get((file, rule), ())), (file, rule, part)
