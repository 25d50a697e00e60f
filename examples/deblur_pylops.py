"""Deblurring with PyLops: the blur of `deblur.py` as a PyLops operator, and a penalty on the picture's edges.

    pip install 'cnnlayers[scipy]' pylops
    python examples/deblur_pylops.py

Least squares spread an edge and let the noise through. The total variation, the sum of the sizes of the differences
between neighbours, keeps edges sharp and plain areas plain. PyLops has the differences and the solver (split Bregman);
the blur, with reflected borders, and its exact adjoint are this library's.
"""

from __future__ import annotations

import numpy as np
import pylops
from deblur import NOISE, SIZE, WIDTH, blur, deblurred, error, gaussian, scene

EDGES = 1e-2


def variation(blurred: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The picture whose blur is near `blurred`, with a small total variation."""
    operator = pylops.aslinearoperator(blur(blurred.shape, kernel, "reflect"))
    differences = [pylops.FirstDerivative(blurred.shape, axis=axis, kind="forward") for axis in (0, 1)]
    found = pylops.optimization.sparsity.splitbregman(
        operator,
        blurred.ravel(),
        differences,
        x0=blurred.ravel(),
        niter_outer=15,
        niter_inner=2,
        mu=30,
        epsRL1s=[EDGES, EDGES],
        iter_lim=20,
    )
    return np.asarray(found[0]).reshape(blurred.shape)


def main() -> dict[str, float]:
    """Blur, restore by both; the relative errors by name."""
    kernel = gaussian(WIDTH)
    truth = scene(SIZE)
    operator = pylops.aslinearoperator(blur(truth.shape, kernel, "reflect"))
    assert pylops.utils.dottest(operator, *operator.shape, rtol=1e-10)
    blurred = (operator @ truth.ravel()).reshape(truth.shape)
    blurred += NOISE * np.random.default_rng(0).standard_normal(truth.shape)
    pictures = {
        "taken": blurred,
        "restored, least squares": deblurred(blurred, kernel, "reflect"),
        "restored, total variation": variation(blurred, kernel),
    }
    errors = {name: error(picture, truth) for name, picture in pictures.items()}
    for name, value in errors.items():
        print(f"{name:28} relative error {value:.3f}")
    return errors


if __name__ == "__main__":
    main()
