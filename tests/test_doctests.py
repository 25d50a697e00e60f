"""The docstrings of everything public: their examples give what they say, and they have numpydoc's sections."""

import doctest
import inspect
import itertools

import numpy as np
import pytest

import cnnlayers
from cnnlayers import autograd, backends, data, distributed, functional, keras, kernels, layers, models, optim, testing
from cnnlayers import train as training

try:
    from cnnlayers import torch as cnnlayers_torch
except ImportError:  # PyTorch is not installed
    cnnlayers_torch = None

OPS = sorted(name for name in functional.__all__ if not name.endswith(("_forward", "_backward")))
LAYERS = sorted(layers.__all__)
PUBLIC = [
    *((functional, name) for name in sorted(functional.__all__)),
    *((layers, name) for name in LAYERS),
    *((backends, name) for name in ("asarray", "available", "current", "of", "to_numpy", "use", "using")),
    *((kernels, name) for name in ("mode", "warmup", "winograd")),
    *((cnnlayers, name) for name in ("linear_operator", "load", "save")),
    (testing, "gradcheck"),
    *((place, name) for place in (optim, models, data, training, distributed) for name in place.__all__),
    *((autograd, name) for name in autograd.__all__ if name != "functional"),
    *((keras, name) for name in ("install", "installed")),
    *((cnnlayers_torch, name) for name in getattr(cnnlayers_torch, "__all__", ()) if name != "functional"),
]
CLASSES = [(place, name) for place, name in PUBLIC if inspect.isclass(getattr(place, name))]
# Names that say all by their name and summary: exceptions, and functions of one word's result.
WITHOUT_SECTIONS = {"Layer", "Apart", "Diverged", "MPIUnavailable", "installed"}
# What the examples need beside the library itself.
NEEDS = {"linear_operator": "scipy.sparse.linalg", "start": "sklearn", "onnx_translations": "onnxscript"}


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
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    run_examples(place, name)


@pytest.mark.parametrize(("place", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_a_docstring_has_numpydocs_sections_after_a_summary(place, name):
    text = inspect.cleandoc(getattr(place, name).__doc__)
    summary, _, rest = text.partition("\n")
    assert summary.endswith((".", ":"))
    assert not rest.strip() or rest.startswith("\n"), "a blank line after the summary"
    assert sections(text) or name in WITHOUT_SECTIONS


@pytest.mark.parametrize(("place", "name"), CLASSES, ids=[name for _, name in CLASSES])
def test_every_public_member_of_a_class_has_a_summary(place, name):
    members = {
        member: value
        for kind in getattr(place, name).__mro__
        if kind.__module__.startswith("cnnlayers") and not kind.__module__.startswith("cnnlayers.torch")
        for member, value in vars(kind).items()
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    }
    without = [member for member, value in members.items() if not (inspect.getdoc(value) or "").strip()]
    assert not without, f"{name} has members without a docstring: {without}"


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
