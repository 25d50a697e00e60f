"""A pytest plugin (`-p tests.gpu_plugin`) for machines without pytest-xdist and pytest-timeout: one of several
processes runs its part of the tests, notes each as it begins and ends, and ends with a test that takes too long.

A kernel that never ends cannot be interrupted from Python: after --test-seconds the process ends with a traceback, and
tests/gpu_stages.py starts another, which leaves out the tests that have begun already.
"""

from __future__ import annotations

import faulthandler
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cnnlayers-gpu")
    group.addoption("--part", default="0/1", help="K/N: of N parts the K-th, counted from 0")
    group.addoption("--test-seconds", type=float, default=60, help="the longest that one test may take")
    group.addoption("--notes", help="a file that gets `begin TEST`, `passed TEST` ..., and `end`")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("notes"):
        config.pluginmanager.register(Part(config))


class Part:
    """The hooks of one process."""

    def __init__(self, config: pytest.Config) -> None:
        self.notes = Path(config.getoption("notes"))
        self.part, self.parts = map(int, config.getoption("part").split("/"))
        self.seconds = config.getoption("test_seconds")
        self.stderr = os.dup(2)  # pytest captures the other while tests run

    def note(self, word: str, test: str = "") -> None:
        with self.notes.open("a") as file:
            file.write(f"{word} {test}".rstrip() + "\n")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        begun = {line.partition(" ")[2] for line in lines if line.startswith("begin ")}
        mine = [i for i in items if zlib.crc32(i.nodeid.encode()) % self.parts == self.part and i.nodeid not in begun]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.note("begin", item.nodeid)
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure in any phase, else the call's outcome."""
        if report.when == "call" or report.outcome != "passed":
            self.note(report.outcome, report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.note("end")
