"""A property that is worked out once for each instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class once:
    """As functools.cached_property, without its lock (before Python 3.12), which a forked child could find locked."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make, self.name = make, make.__name__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = vars(instance)[self.name] = self.make(instance)
        return value
