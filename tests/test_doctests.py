"""The docstrings of everything public: their examples give what they say, and they have numpydoc's sections."""

import doctest
import inspect
import itertools

import numpy as np
import pytest

import cnnlayers
from cnnlayers import backends, functional, kernels, layers, testing

OPS = sorted(name for name in functional.__all__ if not name.endswith(("_forward", "_backward")))
LAYERS = sorted(layers.__all__)
PUBLIC = [
    *((functional, name) for name in sorted(functional.__all__)),
    *((layers, name) for name in LAYERS),
    *((backends, name) for name in ("asarray", "available", "current", "of", "to_numpy", "use", "using")),
    *((kernels, name) for name in ("mode", "warmup", "winograd")),
    *((cnnlayers, name) for name in ("linear_operator", "load", "save")),
    (testing, "gradcheck"),
]


def sections(text: str) -> list[str]:
    lines = inspect.cleandoc(text).splitlines()
    return [line for line, rule in itertools.pairwise(lines) if line and rule == "-" * len(line)]


def run_examples(place, name: str) -> int:
    """How many examples the docstring of a public name has; they are run."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    number = 0
    for test in doctest.DocTestFinder(recurse=False).find(getattr(place, name), name, globs={}):
        number += len(test.examples)
        with np.printoptions(), backends.using("numpy"):
            runner.run(test)
    assert not runner.failures, f"{name}: {runner.failures} of {number} examples give something else; see the output"
    return number


@pytest.mark.parametrize(("place", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_the_examples_of_a_docstring_give_what_they_say(place, name):
    if name == "linear_operator":
        pytest.importorskip("scipy.sparse.linalg")
    run_examples(place, name)


@pytest.mark.parametrize(("place", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_a_docstring_has_numpydocs_sections_after_a_summary(place, name):
    text = inspect.cleandoc(getattr(place, name).__doc__)
    summary, _, rest = text.partition("\n")
    assert summary.endswith((".", ":"))
    assert not rest.strip() or rest.startswith("\n"), "a blank line after the summary"
    assert sections(text) or name == "Layer"


@pytest.mark.parametrize("name", OPS)
def test_an_ops_docstring_has_all_sections_and_an_example(name):
    text = getattr(functional, name).__doc__
    assert {"Parameters", "Returns", "Raises", "Examples", "References"} <= set(sections(text))
    assert run_examples(functional, name) > 0


@pytest.mark.parametrize("name", OPS)
def test_the_docstrings_of_an_ops_forward_and_backward_say_what_they_take_and_give(name):
    forward, backward = (getattr(functional, f"{name}_{form}") for form in ("forward", "backward"))
    assert "Returns" in sections(forward.__doc__)
    assert {"Parameters", "Returns"} <= set(sections(backward.__doc__))
    assert "ctx : Context" in forward.__doc__
    assert "ctx : Context" in backward.__doc__


@pytest.mark.parametrize("name", OPS)
def test_an_ops_docstring_names_every_parameter(name):
    function = getattr(functional, name)
    text = inspect.cleandoc(function.__doc__)
    described = {
        part.strip()
        for line in text.splitlines()
        if " : " in line and not line.startswith(" ")
        for part in line.split(" : ")[0].split(",")
    }
    assert set(inspect.signature(function).parameters) <= described


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_docstring_says_shapes_sources_and_parameters_and_has_an_example(name):
    layer = getattr(layers, name)
    text = inspect.cleandoc(layer.__doc__)
    if layer is not layers.Layer:
        assert {"Notes", "Examples", "References"} <= set(sections(text))
        assert run_examples(layers, name) > 0
        missing = [p for p in inspect.signature(layer).parameters if p not in text]
        assert not missing, f"{name}'s docstring does not name {missing}"


def test_a_wrong_example_is_noticed():
    class Place:
        @staticmethod
        def wrong():
            """
            >>> 1 + 1
            3
            """

    with pytest.raises(AssertionError, match="1 of 1 examples"):
        run_examples(Place, "wrong")
