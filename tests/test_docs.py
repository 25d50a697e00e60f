"""The site's reference has every public name, and what checks the built site finds what is wrong with one."""

import importlib
import re
from pathlib import Path

import pytest

from . import site_check

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NAMED = re.compile(r"currentmodule:: (\S+)|auto(?:function|class|data):: (\S+)")
WHOLE = ["functional", "layers", "optim", "testing", "autograd", "keras", "cs231n", "torch", "torch.functional"]
ALIASES = {"functional", "KERAS_VERSIONS"}  # a module with a page of its own, a constant


def documented() -> dict[str, set[str]]:
    """The names that the reference documents, by module."""
    names: dict[str, set[str]] = {}
    for page in REFERENCE.glob("*.md"):
        module = ""
        for found in NAMED.finditer(page.read_text()):
            module = found[1] or module
            if found[2]:
                names.setdefault(module, set()).add(found[2])
    return names


@pytest.mark.parametrize("name", WHOLE)
def test_the_reference_has_every_public_name(name):
    if name.startswith("torch"):
        pytest.importorskip("torch")
    public = set(importlib.import_module(f"cnnlayers.{name}").__all__) - ALIASES
    text = (REFERENCE / "torch.md").read_text()
    in_text = {word for word in public if name == "torch" and f"`{word}`" in text}  # PyTorch's modules, in a list
    assert public - in_text == documented()[f"cnnlayers.{name}"] - in_text


def test_the_reference_names_nothing_that_is_not_there():
    for module, names in documented().items():
        if module.startswith("cnnlayers.torch"):
            pytest.importorskip("torch")
        place = importlib.import_module(module)
        assert not [name for name in names if not hasattr(place, name)]


def test_the_environment_variables_are_those_that_the_code_reads():
    root = REFERENCE.parents[1]
    sources = [
        path for folder in ("cnnlayers", "backends", "kernels", "bench") for path in (root / folder).rglob("*.py")
    ]
    read = {name for path in sources for name in re.findall(r"CNNLAYERS_[A-Z_]*[A-Z]", path.read_text())}
    assert set(re.findall(r"`(CNNLAYERS_\w+)`", (REFERENCE / "environment.md").read_text())) == read


def test_a_built_site_is_checked_for_links_and_other_hosts(tmp_path):
    (tmp_path / "style.css").write_text("body { color: black }")
    (tmp_path / "a.html").write_text('<link href="style.css?v=1"><h1 id="top"></h1><a href="b.html#there"></a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html"></a><a href="https://example.org"></a>')
    assert site_check.faults(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<a href="a.html#none"></a><a href="c.html"></a><img src="https://example.org/x.png">'
    )
    (tmp_path / "style.css").write_text("@import 'https://example.org/font.css';")
    assert [line.split(" ", 1)[1] for line in site_check.faults(tmp_path)] == [
        "links to b.html#there, which has no such place",
        "loads https://example.org/x.png from another host",
        "links to a.html#none, which has no such place",
        "links to c.html, which is not there",
        "loads from another host",
    ]
    assert site_check.faults(tmp_path / "empty") == [f"{tmp_path / 'empty'} has no pages"]
