"""Train on a folder of pictures: one folder a class. This program draws its own pictures, trains, and predicts.

    python examples/train_on_pictures.py                # draws discs, squares and triangles in a temporary folder
    python examples/train_on_pictures.py FOLDER         # trains on the pictures in FOLDER/<class>/

It calls the command line, `cnnlayers train` and `cnnlayers predict`, and then loads the trained weights in Python.
Needs the extra `train`: pip install 'cnnlayers[train]'.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import cnnlayers
from cnnlayers import data, models

CLASSES = ("disc", "square", "triangle")
SIDE = 16


def drawing(name: str, rng: np.random.Generator) -> np.ndarray:
    """A picture (SIDE, SIDE, 3) uint8 of a shape: any place, size, and two colours that differ."""
    row, column = np.mgrid[:SIDE, :SIDE]
    radius = rng.uniform(4, 6)
    down, across = row - rng.uniform(radius, SIDE - radius), column - rng.uniform(radius, SIDE - radius)
    inside = {
        "disc": down**2 + across**2 < radius**2,
        "square": np.maximum(abs(down), abs(across)) < 0.85 * radius,
        "triangle": (abs(down) < radius) & (2 * abs(across) < radius + down),
    }[name]
    ground, colour = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    cells = np.where(inside[..., None], colour, ground) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return np.clip(cells, 0, 255).astype(np.uint8)


def draw_folder(folder: Path, number: int, seed: int = 0) -> None:
    """FOLDER/disc/000.png and so on: so many pictures of each class."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.fromarray(drawing(name, rng)).save(folder / name / f"{i:03}.png")


def run(*arguments: str | Path | int) -> None:
    """What `cnnlayers` on the command line does; an error ends the program."""
    subprocess.run([sys.executable, "-m", "cnnlayers", *map(str, arguments)], check=True)


def train_and_predict(folder: Path, out: Path, epochs: int) -> float:
    """Train on the folder and predict a picture of each class; the accuracy on the test pictures."""
    run("train", "--data", folder, "--model", "resnet8", "--epochs", epochs, "--out", out)
    classes = [one for one in sorted(folder.iterdir()) if one.is_dir()]
    run("predict", out, *(min(one.glob("[!.]*")) for one in classes))  # the first picture of each class

    pictures = data.load_folder(folder)  # the same split, normalised in the same way
    net = models.ResNet(8, pictures.shape, classes=len(pictures.classes))
    cnnlayers.load(net, out / "model.safetensors")
    found = net.eval()(pictures.x[pictures.test]).argmax(axis=1)
    return float((found == pictures.y[pictures.test]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="one folder of pictures a class; default: drawn ones")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        if folder is None:
            folder = Path(scratch, "shapes")
            draw_folder(folder, number=150)
        accuracy = train_and_predict(folder, Path(scratch, "run"), arguments.epochs)
        print(f"the loaded model: test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
