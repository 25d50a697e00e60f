"""A setting that an environment variable makes for the process, and a `with` block for one thread or async task."""

from __future__ import annotations

import contextvars
import os

from cnnlayers.backends import Block, assigned


class Setting:
    """One of `choices`, the first by default. `name_in_errors`: what a block's value is called in an error."""

    def __init__(self, variable: str, choices: tuple[str, ...], name_in_errors: str) -> None:
        self.variable = variable
        self.choices = choices
        self.name_in_errors = name_in_errors
        self.process: list[str] = []  # the variable's value, once it has been read
        self._block: contextvars.ContextVar[str | None] = contextvars.ContextVar(variable, default=None)

    def _checked(self, name: str, name_in_errors: str) -> str:
        if not isinstance(name, str) or name not in self.choices:
            raise ValueError(f"{name_in_errors} must be one of {', '.join(self.choices)}; got {name!r}")
        return name

    def current(self) -> str:
        """The value in force here: the innermost block's, else the variable's, which is read once."""
        chosen = self._block.get()
        if chosen is None:
            if not self.process:
                self.process.append(self._checked(os.environ.get(self.variable) or self.choices[0], self.variable))
            chosen = self.process[0]
        return chosen

    def block(self, name: str) -> Block[str]:
        """The value inside the block, in this thread or async task only. Raises ValueError for another name, when the
        block begins."""
        return assigned(self._block, lambda: self._checked(name, self.name_in_errors))
