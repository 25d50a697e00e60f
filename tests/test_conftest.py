"""What decides which tests run: --sample, --not-passed, and packages that tests/without takes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from . import conftest

HERE = Path(__file__).parent


def items(test: str, number: int, impl: str | None = None, **marks: tuple[Any, ...]) -> list[Any]:
    """As pytest collects them: so many cases of a test."""

    def mark(name: str) -> Any:
        return SimpleNamespace(args=marks[name]) if name in marks else None

    params = {} if impl is None else {"impl": impl}
    return [
        SimpleNamespace(
            nodeid=f"tests/{test}[{impl}-{i}]",
            path=HERE / test.partition("::")[0],
            callspec=SimpleNamespace(params=params | {"case": i}),
            get_closest_marker=mark,
        )
        for i in range(number)
    ]


def sampled(given: list[Any]) -> list[str]:
    left_out = list(conftest._beyond_the_sample(given))
    return [item.nodeid for item in given if item not in left_out]


@pytest.mark.parametrize(
    ("impl", "marks", "left"),
    [
        ("numpy", {}, 50),
        ("standin", {}, conftest.SAMPLE["standin"]),
        ("cpu", {}, conftest.SAMPLE["cpu"]),
        ("cpu", {"sample": (20,)}, 20),
        ("numpy", {"sample": (20,)}, 50),
        (None, {}, 50),
        (None, {"sample": (20,)}, 20),
        (None, {"whole": ()}, 0),
    ],
)
def test_a_sample_keeps_so_many_cases(impl: str | None, marks: dict[str, Any], left: int) -> None:
    mine = items("test_a.py::test_one", 50, impl, **marks)
    kept = sampled(mine)
    assert len(kept) == left
    assert sampled([*items("test_a.py::test_two", 9, impl), *mine])[-left or 50 :] == kept  # whatever else there is
    assert sampled(items("test_a.py::test_one", 2, impl)) != []  # of few cases all are kept
    assert kept != [item.nodeid for item in mine[:left]] or left in (0, 50)


def test_what_has_passed_is_left_out_unless_it_looks_at_packages() -> None:
    given = [*items("test_a.py::test_one", 2), *items("test_cli.py::test_info", 2)]
    passed = [item.nodeid for item in (given[0], given[2])]
    dropped: list[Any] = []
    config: Any = SimpleNamespace(
        getoption={"sample": False, "not_passed": True}.get,
        cache=SimpleNamespace(get=lambda key, default: passed if key == conftest.PASSED else default),
        hook=SimpleNamespace(pytest_deselected=lambda items: dropped.extend(items)),
    )
    left = list(given)
    conftest.pytest_collection_modifyitems(config, left)
    assert (left, dropped) == (given[1:], given[:1])


def test_packages_are_taken_away() -> None:
    code = "import importlib.util as u; print([u.find_spec(n) is None for n in ('pytest', 'pluggy', 'numpy')])"
    env = os.environ | {"PYTHONPATH": str(HERE / "without"), "WITHOUT": "pytest,pluggy"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("[True, True, False]\n", "")
