"""A .cu file made ready for g++: what no macro can do. Lines keep their numbers.

- `__shared__ T name[N];` and `extern __shared__ T name[];` become calls, since each block has memory of its own.
- `__launch_bounds__(n)` becomes a check at the start of the kernel's body.
"""

from __future__ import annotations

import re

# A comment, a string or a character: passed over, its text kept.
_OPAQUE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![\w])\'(?:\\.|[^\'\\\n])\'', re.S)
_SHARED = re.compile(r"\b__shared__\b")
_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(")
_ALIGN = re.compile(r"\b(?:alignas|__align__)\s*\(")
_WORDS = re.compile(r"\b(?:extern|static|__shared__)\b")
_DECLARATOR = re.compile(r"\s*(?P<type>.*?[\s>*&])?\s*(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*)", re.S)


class SourceError(ValueError):
    """A construct that the emulator cannot turn into C++."""


def rewrite(source: str, filename: str) -> str:
    """`source` for g++, its messages naming `filename`. SourceError for a __shared__ declaration it cannot read."""
    return f'#line 1 "{filename}"\n{_launch_bounds(_shared(source, filename))}'


def _hidden(source: str) -> str:
    """`source` with comments and strings blanked out, character for character."""
    return _OPAQUE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)


def _closing(text: str, start: int) -> int:
    """The index after the bracket that closes the one before `start`."""
    depth = 1
    while depth and start < len(text):
        depth += {"(": 1, ")": -1}.get(text[start], 0)
        start += 1
    return start


def _split(text: str) -> list[str]:
    """`text` at its commas outside every kind of bracket; inside the others a < compares."""
    parts, depth, angles = [""], 0, 0
    for c in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(c, 0)
        angles += {"<": 1, ">": -1}.get(c, 0) if not depth else 0
        if c == "," and not depth and not angles:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _shared(source: str, filename: str) -> str:
    while True:
        hidden = _hidden(source)
        found = _SHARED.search(hidden)
        if not found:
            return source
        start = max(hidden.rfind(c, 0, found.start()) for c in ";{}") + 1
        directive = hidden.rfind("\n#", 0, found.start())  # the declaration may follow one
        if directive >= start:
            start = min(hidden.index("\n", directive + 1), found.start())
        end = hidden.find(";", found.end())
        line = source.count("\n", 0, found.start()) + 1
        if end < 0:
            raise SourceError(f"{filename}:{line}: a __shared__ declaration without an end")
        declaration = hidden[start:end]
        blank = declaration[: len(declaration) - len(declaration.lstrip())]
        lines = "\n" * (declaration.count("\n") - blank.count("\n"))
        source = f"{source[:start]}{blank}{_allocation(declaration, f'{filename}:{line}')}{lines}{source[end + 1 :]}"


def _allocation(declaration: str, where: str) -> str:
    """The calls that stand for `extern __shared__ __align__(16) T a[]` or `__shared__ T a[N], b`."""
    align, dynamic = "1", re.search(r"\bextern\b", declaration)
    while found := _ALIGN.search(declaration):
        end = _closing(declaration, found.end())
        align = declaration[found.end() : end - 1]
        declaration = declaration[: found.start()] + declaration[end:]
    calls, kind = [], ""
    for part in _split(_WORDS.sub("", declaration)):
        m = _DECLARATOR.fullmatch(part)
        if not m or bool(kind) == bool((m["type"] or "").strip()):
            raise SourceError(
                f"{where}: write a shared variable as `__shared__ T name[N];` or `extern __shared__ T name[];`, "
                f"got {' '.join(declaration.split())!r}"
            )
        kind = kind or " ".join(m["type"].split())
        if dynamic:
            calls.append(f"SIMT_DYNAMIC(size_t({align}), {m['name']}, {kind});")
        else:
            calls.append(f"SIMT_SHARED(size_t({align}), {m['name']}, {' '.join(m['dims'].split())}, {kind});")
    return " ".join(calls)


def _launch_bounds(source: str) -> str:
    """Move each `__launch_bounds__(n)` into the body of its kernel; a declaration without a body loses it."""
    at = 0
    while found := _BOUNDS.search(_hidden(source), at):
        hidden = _hidden(source)
        end = _closing(hidden, found.end())
        check = f" SIMT_LAUNCH_BOUNDS({' '.join(source[found.end() : end - 1].split())});"
        lines = "\n" * source.count("\n", found.start(), end)
        parameters = hidden.find("(", end)
        after = _closing(hidden, parameters + 1) if parameters >= 0 else len(source)
        body = re.compile(r"\s*\{").match(hidden, after)
        if body:
            source = source[: body.end()] + check + source[body.end() :]
        source = source[: found.start()] + lines + source[end:]
        at = found.start()
    return source
