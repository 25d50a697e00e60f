"""Deblurring with reflected borders: the blur is a linear operator of cnnlayers, its inverse SciPy's LSQR.

    python examples/deblur.py [PICTURE.png]

A camera's blur mixes in what lies outside of the picture. To say that there is nothing but black (zero padding) is
wrong, and the error runs into the picture as stripes; to say that the picture goes on in its mirror image is nearly
right. LSQR needs the operator and its exact adjoint: that of reflected padding folds the borders back.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.sparse.linalg import lsqr

import cnnlayers

SIZE, WIDTH, NOISE, DAMP = 96, 11, 1e-3, 2.5e-2


def scene(size: int) -> np.ndarray:
    """Discs and bars on a ramp, larger than the picture that is taken of it."""
    row, column = np.mgrid[:size, :size] / size
    picture = 0.35 + 0.4 * column
    for middle, radius, value in (((0.3, 0.35), 0.17, 0.95), ((0.66, 0.6), 0.17, 0.1), ((0.25, 0.8), 0.1, 0.05)):
        picture[(row - middle[0]) ** 2 + (column - middle[1]) ** 2 < radius**2] = value
    picture[(row > 0.58) & (row < 0.82) & (column > 0.17) & (column < 0.4) & ((column * 26).astype(int) % 2 == 0)] = 1.0
    return picture


def gaussian(width: int) -> np.ndarray:
    line = np.exp(-(np.linspace(-2.2, 2.2, width) ** 2) / 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def blur(shape: tuple[int, int], kernel: np.ndarray, border: str):
    """Padding of half a kernel on every side, then the convolution with the kernel: picture and result have one shape.

    `border`: "constant" (black), "reflect", or any other mode of `cnnlayers.functional.pad`.
    """
    half = len(kernel) // 2
    pad = cnnlayers.linear_operator("pad", (1, 1, *shape), half, border, dtype="float64")
    conv = cnnlayers.linear_operator("conv", pad.dimsd, kernel[None, None], dtype="float64")
    return conv @ pad


def deblurred(blurred: np.ndarray, kernel: np.ndarray, border: str) -> np.ndarray:
    operator = blur(blurred.shape, kernel, border)
    start = blurred.ravel()  # damped is the distance from it
    return lsqr(operator, start, x0=start, damp=DAMP, iter_lim=100)[0].reshape(blurred.shape)


def error(picture: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(picture - truth) / np.linalg.norm(truth))


def main(file: str | None = None) -> dict[str, float]:
    """Blur, restore, and draw it to the file; the relative errors by name."""
    kernel, half = gaussian(WIDTH), WIDTH // 2
    world = scene(SIZE + 2 * half)  # the camera sees its middle; its blur mixes in the rest
    truth = world[half:-half, half:-half]
    conv = cnnlayers.linear_operator("conv", (1, 1, *world.shape), kernel[None, None], dtype="float64")
    blurred = (conv @ world.ravel()).reshape(truth.shape)
    blurred += NOISE * np.random.default_rng(0).standard_normal(truth.shape)
    pictures = {
        "taken": blurred,
        "restored, black border": deblurred(blurred, kernel, "constant"),
        "restored, reflected border": deblurred(blurred, kernel, "reflect"),
    }
    errors = {name: error(picture, truth) for name, picture in pictures.items()}
    for name, value in errors.items():
        print(f"{name:28} relative error {value:.3f}")
    if file is not None:
        draw({"scene": truth, **pictures}, errors, file)
    return errors


def draw(pictures: dict[str, np.ndarray], errors: dict[str, float], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{name}\n" + (f"error {errors[name]:.3f}" if name in errors else ""), fontsize=10)
        axes.set_axis_off()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:2])
