"""Install a wheel into a fresh environment outside the repository, and use it there. Usage: wheel_check.py WHEEL."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

SCRIPT = """
import sys, cnnlayers, numpy as np
from cnnlayers import backends, kernels, functional as F, layers, bench
y, ctx = F.max_pool_forward(np.arange(16.0).reshape(1, 1, 4, 4), 2)
assert y.ravel().tolist() == [5, 7, 13, 15], y
assert F.max_pool_backward(y, ctx).sum() == 40
net = layers.Sequential(layers.Conv(1, 2, 3), layers.ReLU())
assert net(np.zeros((1, 1, 5, 5), np.float32)).shape == (1, 2, 3, 3)
assert not {"cupy", "numba", "matplotlib", "sklearn", "torch"} & set(sys.modules)
print("wheel", cnnlayers.__version__, "works from", cnnlayers.__file__)
"""


def main(wheel: Path) -> None:
    """Check the wheel's contents, then install and use it."""
    names = zipfile.ZipFile(wheel).namelist()
    root = Path(__file__).parents[1]
    sources = [p.relative_to(root).as_posix() for p in (root / "kernels").rglob("*.cu*")]
    for needed in ("py.typed", "backends/__init__.py", "bench/__init__.py", "layers/conv.py", *sources):
        assert f"cnnlayers/{needed}" in names, f"{needed} is not in the wheel"
    stray = sorted({name.split("/")[0] for name in names} - {"cnnlayers"})
    assert all(name.endswith(".dist-info") for name in stray), f"the wheel would install {stray}"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, str(wheel)], check=True)
        subprocess.run([python, "-c", SCRIPT], check=True, cwd=folder)
        subprocess.run([str(Path(folder) / "bin" / "cnnlayers"), "info"], check=True, cwd=folder)
        # A user's file, checked with the installed package's types; its wrong calls must be errors.
        user = Path(folder) / "typed_use.py"
        user.write_text((root / "tests" / "typed_use.py").read_text())
        mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", folder]
        subprocess.run([*mypy, str(user)], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
