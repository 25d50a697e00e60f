"""Pictures from files and from a folder of one folder a class: what is read, and what is refused and how."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnlayers import backends, cli, data, picture_folder, pictures

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


def write(folder: Path, classes: dict[str, int], size: tuple[int, int] = (12, 9), mode: str = "RGB") -> None:
    """So many random pictures of `size` (across, down) a class; the later a class, the lighter."""
    rng = np.random.default_rng(0)
    for label, (name, number) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            cells = rng.integers(60 * label, 60 * label + 60, (size[1], size[0], 3), np.uint8)
            image.fromarray(cells).convert(mode).save(folder / name / f"{i}.png")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "pets", {"dog": 20, "cat": 10, "über 鳥": 5})
    found = data.load(str(tmp_path / "pets"))
    assert found.classes == ("cat", "dog", "über 鳥")
    assert (found.name, found.shape, found.flip, found.crop) == ("pets", (3, 9, 12), False, 1)
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)
    assert np.bincount(found.y).tolist() == [10, 20, 5]
    assert np.bincount(found.y[found.test]).tolist() == [2, 4, 1]
    assert np.bincount(found.y[found.hold_out(0.15, 0)[1]]).tolist() == [1, 2, 1]
    pixels = found.x * np.reshape(found.std, (3, 1, 1)) + np.reshape(found.mean, (3, 1, 1))
    with image.open(tmp_path / "pets" / "cat" / "0.png") as first:
        np.testing.assert_allclose(pixels[0] * 255, np.asarray(first).transpose(2, 0, 1), atol=1e-3)
    np.testing.assert_allclose(found.x[found.train].mean((0, 2, 3)), 0, atol=1e-5)


def test_sizes_and_colours(tmp_path: Path) -> None:
    write(tmp_path / "grey", {"a": 5, "b": 5}, mode="L")
    assert data.load(str(tmp_path / "grey")).shape == (1, 9, 12)
    image.new("RGB", (12, 9), (9, 8, 7)).save(tmp_path / "grey" / "a" / "colour.png")
    assert data.load(str(tmp_path / "grey")).shape == (3, 9, 12)
    image.new("L", (100, 50), 128).save(tmp_path / "grey" / "b" / "wide.png")
    found = data.load(str(tmp_path / "grey"))
    assert found.shape == (3, 32, 32)
    pixels = found.x * np.reshape(found.std, (3, 1, 1)) + np.reshape(found.mean, (3, 1, 1))
    np.testing.assert_allclose(pixels[-1], 128 / 255, atol=1e-5)
    for name, size in (("large", (65, 20)), ("small", (7, 30))):
        write(tmp_path / name, {"a": 5, "b": 5}, size)
        assert data.load(str(tmp_path / name)).shape == (3, 32, 32)


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "d", {"a": 5, "b": 6})
    for name in ("a/labels.txt", "a/.DS_Store", "a/.hidden.png", "notes.md", ".cache"):
        (tmp_path / "d" / name).write_text("no picture")
    (tmp_path / "d" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "d" / "__MACOSX").mkdir()
    assert np.bincount(data.load(str(tmp_path / "d")).y).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            {},
            "holds no folders of pictures: --data takes a folder with one folder of pictures .*batches.meta is missing",
        ),
        ({"a": 6}, r"holds one class only \(a\): --data takes"),
        ({"a": 6, "b": 0}, "b holds no pictures: --data takes"),
        ({"a": 6, "b": 4, "c": 1}, r"too few pictures in a class \(b has 4, c has 1\): each needs 5 or more"),
        ({"train/a": 6, "train/b": 6}, r"train holds folders \(a, b\).*if a is a class, --data .*train$"),
        ({"a": 6, "a/more": 6, "b": 6}, r"a holds folders \(more\), and a class's folder holds pictures only"),
    ],
)
def test_folders_of_another_form(tmp_path: Path, classes: dict[str, int], said: str) -> None:
    for name, number in classes.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            image.new("L", (9, 9), i).save(tmp_path / name / f"{i}.png")
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        data.load(str(tmp_path))


def test_pictures_beside_the_classes(tmp_path: Path) -> None:
    for number in (1, 9):
        image.new("L", (9, 9)).save(tmp_path / f"{number}.png")
    with pytest.raises(FileNotFoundError, match="holds 2 pictures but no folders: --data takes"):
        data.load(str(tmp_path))
    write(tmp_path, {"a": 5, "b": 5})
    with pytest.raises(ValueError, match=r"holds pictures of no class \(1.png, 9.png\): --data takes"):
        data.load(str(tmp_path))


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9, "b": 5})
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:150])
    for number in (4, 5, 6):
        (tmp_path / "a" / f"{number}.png").write_text("no picture")
    with pytest.raises(ValueError) as error:
        data.load(str(tmp_path))
    first, second, third, rest = str(error.value).split("; ")
    assert first.endswith("1.png is no picture that can be read: the file is empty")
    assert "2.png is no picture that can be read: " in second
    assert "4.png is no picture that can be read: it is none of the kinds that Pillow knows" in third
    assert rest == "and 2 more pictures cannot be used"


@pytest.mark.parametrize("kind", ["mnist", "", "picture.png"])
def test_what_is_no_folder(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    image.new("L", (9, 9)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", kind]) == 2
    said = capsys.readouterr().err
    assert ("is a file, not a folder" if kind == "picture.png" else f"there is no folder {kind!r}") in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow.*pip install 'cnnlayers\[train\]'"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "name"), [("pets", "pets"), ("digits", "digits-pictures"), ("cifar10", "cifar10-pictures")]
)
def test_names_of_folders(tmp_path: Path, folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    assert data.name_of(str(tmp_path / folder)) == data.name_of(".") == data.name_of("../" + folder + "/") == name


def test_training_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    write(tmp_path / "light or dark", {"dark": 30, "light": 30})
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "light or dark", "--epochs", "4", "--batch-size", "8"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "data      light or dark: 40 training, 8 validation, 12 test pictures" in said.out
    assert "classes   2: dark, light" in said.out
    assert said.out.splitlines()[-2] == "next: cnnlayers predict 'runs/light or dark-three-layer' PICTURE"
    assert said.out.splitlines()[-1] == "test accuracy 100.0 %"
    assert cli.main(["predict", "runs/light or dark-three-layer", "light or dark/dark", "light or dark/light"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60
    assert all(f"   {Path(line.partition('.png')[0]).parent.name} " in line for line in lines)
    # Resuming sees that the pictures are not those of the run any more.
    out = ["--out", "runs/light or dark-three-layer"]
    assert cli.main(["train", "--resume", "--epochs", "5", *out]) == 0
    image.new("RGB", (12, 9), (1, 2, 3)).save("light or dark/dark/0.png")
    assert cli.main(["train", "--resume", "--epochs", "6", *out]) == 2
    assert "changed since the run in" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- picture files
CELLS = np.arange(0, 240, 4, np.uint8).reshape(6, 10)


def saved(picture: object, path: Path, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "P", "I;16", "I", "F", "float from 0 to 1", "CMYK", "tRNS"])
@pytest.mark.parametrize("colours", [1, 3])
def test_every_kind_of_picture_has_the_same_cells(tmp_path: Path, kind: str, colours: int) -> None:
    plain = image.fromarray(CELLS)
    if kind == "I;16":
        path = saved(image.fromarray(CELLS.astype(np.uint16) * 257), tmp_path / "a.png")
    elif kind == "I":
        path = saved(image.fromarray(CELLS.astype(np.int32) * 257), tmp_path / "a.tif")
    elif kind in ("F", "float from 0 to 1"):
        path = saved(image.fromarray(CELLS.astype(np.float32) / (1 if kind == "F" else 255)), tmp_path / "a.tif")
    elif kind == "CMYK":
        path = saved(plain.convert("CMYK"), tmp_path / "a.tif")
    elif kind == "tRNS":
        path = saved(plain.convert("RGB"), tmp_path / "a.png", transparency=(255, 0, 255))
    else:
        path = saved(plain.convert(kind), tmp_path / "a.png")
    found = pictures.read(path, colours)
    assert (found.shape, found.dtype) == ((6, 10, colours), np.float64)
    np.testing.assert_allclose(found, np.repeat(CELLS[:, :, None] / 255, colours, axis=2), atol=1.01 / 255)


def test_transparent_pictures_show_what_is_drawn(tmp_path: Path) -> None:
    for ink, ground in ((0, 1.0), (255, 0.0)):  # black ink is seen on white, white ink on black
        cells = np.full((8, 8, 4), ink, np.uint8)
        cells[:, :, 3] = 0
        cells[2:6, 2:6, 3] = 255
        image.fromarray(cells).save(tmp_path / "a.png")
        found = pictures.read(tmp_path / "a.png", 1)[:, :, 0]
        assert (found[0, 0], found[3, 3]) == (ground, ink / 255)


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    exif = image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.fromarray(CELLS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(pictures.read(tmp_path / "a.png", 1)[:, :, 0] * 255, np.rot90(CELLS, -1), atol=1e-6)


def test_a_truncated_jpeg(tmp_path: Path) -> None:
    whole = io.BytesIO()
    image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(whole, "JPEG")
    for kept in (10, 300, len(whole.getvalue()) // 2):
        (tmp_path / "a.jpg").write_bytes(whole.getvalue()[:kept])
        with pytest.raises(ValueError, match=r"a.jpg is no picture that can be read: "):
            pictures.read(tmp_path / "a.jpg", 3)


def test_a_common_size_needs_one_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        image.new("L", (10, 20)).save(path)
    assert picture_folder._common_size(paths) == (20, 10)
    image.new("L", (20, 10)).save(paths[1])
    assert picture_folder._common_size(paths) == (32, 32)
