"""Keras's own tests of the layers and ops that `cnnlayers.keras` replaces, on its NumPy backend, JAX blocked.

    python -m tests.keras_suite [PARTS] [PYTEST-ARGUMENTS]

PARTS are folders and files below keras/src, all of `PARTS` unless given. Also the pytest plugin that does so: it skips
what Keras's own settings skip on NumPy (training) and the cases whose expected values JAX or a missing PyTorch
computes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = (
    "layers/convolutional",
    "layers/pooling",
    "layers/normalization/batch_normalization_test.py",
    "layers/rnn/conv_lstm1d_test.py",
    "layers/rnn/conv_lstm2d_test.py",
    "layers/rnn/conv_lstm3d_test.py",
    "ops/nn_test.py",
)
# Marked by Keras with requires_trainable_backend, or calling fit without the mark.
TRAINING = ("test_enable_lora_conv", "test_bachnorm_ignore_masked_values")
# Cases whose expected values PyTorch computes.
BY_PYTORCH = ("test_hard_shrink", "test_soft_shrink", "test_tanh_shrink", "test_threshold")


def run(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the tests in a process where `import jax` fails."""
    keras = importlib.util.find_spec("keras")
    if keras is None or not keras.submodule_search_locations:
        raise SystemExit("Keras is not installed: pip install 'cnnlayers[keras]'")
    source = Path(keras.submodule_search_locations[0]) / "src"
    parts = [a for a in arguments if (source / a).exists()]
    rest = [a for a in arguments if a not in parts]
    files = [str(source / part) for part in parts or PARTS]
    options = ["-q", "-p", "tests.keras_suite", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(source)]
    options += ["-W", "default"]  # Keras's tests warn
    environment = os.environ | {
        "KERAS_BACKEND": "numpy",
        "WITHOUT": ",".join(filter(None, [os.environ.get("WITHOUT"), "jax"])),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "without"), str(ROOT)]),
    }
    command = [sys.executable, "-m", "pytest", *options, *files, *rest]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=capture, check=False)


def pytest_configure(config: pytest.Config) -> None:
    import cnnlayers.keras

    config.addinivalue_line("markers", "requires_trainable_backend: Keras's mark of tests that call fit")
    config.addinivalue_line("markers", "multi_device: Keras's mark of tests on several devices")
    cnnlayers.keras.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    torch = importlib.util.find_spec("torch")
    for item in items:
        if item.get_closest_marker("requires_trainable_backend") or item.name.startswith(TRAINING):
            item.add_marker(pytest.mark.skip(reason="Keras's NumPy backend does not train"))
        elif item.name.startswith(BY_PYTORCH) and "DtypeTest" in item.nodeid and not torch:
            item.add_marker(pytest.mark.skip(reason="PyTorch computes what is expected here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that itself imports JAX, for what it expects, is skipped; where Keras asks for JAX, it fails."""
    report = yield
    error = call.excinfo
    if error is not None and isinstance(error.value, ModuleNotFoundError) and error.value.name == "jax":
        raised_by = str(error.traceback[-1].path)
        if raised_by.endswith("_test.py"):
            report.outcome, report.longrepr = "skipped", (raised_by, 0, "JAX computes what is expected here")
    return report


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]).returncode)
