"""Python started with tests/without on PYTHONPATH runs as if the packages that WITHOUT names were not installed.

WITHOUT=numba,sklearn PYTHONPATH=tests/without .venv/bin/python -m pytest
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

ABSENT = frozenset(filter(None, os.environ.get("WITHOUT", "").split(",")))


class Finder(importlib.machinery.PathFinder):
    """Finds what is installed, except the packages in ABSENT."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
