"""Data: the digits; CIFAR-10's folder in its true format, missing, damaged, hostile; splits, batches, augmentation."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnlayers import augmentation, backends, cifar, data

NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


# ----------------------------------------------------------------------------------------- a folder in the true format
def python2(value: object) -> bytes:
    """`value` as Python 2's cPickle writes it at protocol 2, without its memo: texts are byte strings."""
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(python2(n) for n in value.shape) + b"\x86"
    return made + b"(K\x01" + shape + dtype + b"\x89" + python2(value.tobytes()) + b"tb"


def write(folder: Path, each: int = 7, pickled=lambda found: b"\x80\x02" + python2(found) + b".") -> dict[str, dict]:
    """The seven files with `each` pictures a batch; what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    files: dict[str, dict] = {"batches.meta": {b"num_cases_per_batch": each, b"label_names": NAMES, b"num_vis": 3072}}
    for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE):
        pictures = rng.integers(0, 256, (each, 3072), np.uint8)
        labels = [int(n) for n in rng.integers(0, 10, each)]
        files[name] = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": pictures,
            b"filenames": [b"a.png"] * each,
        }
    for name, found in files.items():
        (folder / name).write_bytes(pickled(found))
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / cifar.FOLDER)
    return tmp_path / cifar.FOLDER


WRITERS = {"python 2": lambda found: b"\x80\x02" + python2(found) + b"."} | {
    f"protocol {n}": lambda found, n=n: pickle.dumps(found, n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
}


@pytest.mark.parametrize("writer", WRITERS)
def test_cifar_as_every_python_writes_it(tmp_path: Path, writer: str) -> None:
    files = write(tmp_path / "here", pickled=WRITERS[writer])
    found = data.load_cifar10(tmp_path / "here")
    assert found.classes[:2] == ("airplane", "automobile")
    assert found.x.shape == (42, 3, 32, 32)
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)
    assert (len(found.train), len(found.test), found.flip, found.crop) == (35, 7, True, 4)
    labels = [n for name, held in files.items() if name != "batches.meta" for n in held[b"labels"]]
    assert found.y.tolist() == labels
    pixels = found.x * np.reshape(found.std, (3, 1, 1)) + np.reshape(found.mean, (3, 1, 1))
    raw = np.concatenate([held[b"data"] for name, held in files.items() if name != "batches.meta"])
    np.testing.assert_allclose(pixels.reshape(42, -1) * 255, raw, atol=1e-3)
    np.testing.assert_allclose(found.x[found.train].mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.x[found.train].std((0, 2, 3)), 1, atol=1e-5)


def test_cifar_from_the_folder_above(folder: Path) -> None:
    assert np.array_equal(data.load(str(folder.parent)).x, data.load(str(folder)).x)


# ------------------------------------------------------------------------------------------- missing, damaged, hostile
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_3", "test_batch"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*python version"):
        data.load_cifar10(folder)


@pytest.mark.parametrize("kept", [0, 1, 40, 9_000, 21_000])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"data_batch_2 is no intact file of CIFAR-10 .*fetch it again"):
        data.load_cifar10(folder)


PICTURES = np.zeros((2, 3072), np.uint8)
DAMAGED = {
    "no dictionary": ([1, 2], "holds a list instead of a dictionary"),
    "no data": ({b"labels": [1, 2]}, "has no 'data'"),
    "no labels": ({b"data": PICTURES}, "has no 'labels'"),
    "data of another kind": ({b"data": [0, 1], b"labels": [1, 2]}, "data is a list"),
    "fewer labels": ({b"data": PICTURES, b"labels": [1]}, r"shape \(2, 3072\), with 1 labels"),
    "other pictures": ({b"data": PICTURES[:, :100], b"labels": [1, 2]}, r"shape \(2, 100\)"),
    "a label too large": ({b"data": PICTURES, b"labels": [1, 10]}, "no list of ints from 0 to 9"),
    "a label of another kind": ({b"data": PICTURES, b"labels": [1, b"cat"]}, "no list of ints"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(folder: Path, case: str) -> None:
    found, said = DAMAGED[case]
    (folder / "data_batch_4").write_bytes(b"\x80\x02" + python2(found) + b".")
    with pytest.raises(ValueError, match=rf"data_batch_4 is no intact file.*{said}"):
        data.load_cifar10(folder)


@pytest.mark.parametrize("dtype", ["float32", "object"])
def test_arrays_of_anything_but_bytes(folder: Path, dtype: str) -> None:
    pictures = np.full((2, 3072), 1.0).astype(dtype)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": pictures, b"labels": [1, 2]}, 2))
    with pytest.raises(ValueError, match=r"test_batch is no intact file.*not uint8"):
        data.load_cifar10(folder)


class Hostile:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["batches.meta", "data_batch_1"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_file_runs_nothing(folder: Path, name: str, protocol: int) -> None:
    mark = folder / "mark"
    for call in (
        Hostile(os.mkdir, str(mark)),
        Hostile(eval, f"__import__('os').mkdir({str(mark)!r})"),
        Hostile(np.load, "a"),
    ):
        (folder / name).write_bytes(pickle.dumps({b"data": call, b"label_names": call}, protocol))
        with pytest.raises(ValueError, match=rf"{name} is no intact file.*asks for [\w.]+, which no file"):
            data.load_cifar10(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cnumpy\ndtype\n(U\x08evil.objtR.",  # a dtype by a name of its own
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01K\x02tb.",  # a state too short
        b"c_codecs\nencode\n(U\x01aU\x06base64tR.",
        b"\x80\x02}\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # 2**63 bytes to come
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"(" * 5000,
    ],
)
def test_crooked_streams(folder: Path, stream: bytes) -> None:
    (folder / "data_batch_1").write_bytes(stream)
    with pytest.raises(ValueError, match="data_batch_1 is no intact file"):
        data.load_cifar10(folder)


def test_a_huge_shape_is_no_allocation(folder: Path) -> None:
    stream = python2({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}).replace(
        python2(0) + python2(3072) + b"\x86", python2(2**31 - 1) + python2(2**31 - 1) + b"\x86"
    )
    (folder / "data_batch_1").write_bytes(b"\x80\x02" + stream + b".")
    with pytest.raises(ValueError, match=r"data_batch_1 is no intact file.*not the bytes"):
        data.load_cifar10(folder)


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match="must be 'digits', CIFAR-10's folder or a folder of pictures, and there is no folder 'mnist'",
    ):
        data.load("mnist")
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder: unpack it"):
        data.load(str(archive))
    with pytest.raises(FileNotFoundError, match=r"batches\.meta is missing"):
        data.load(str(tmp_path))


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    write(tmp_path / "empty", each=0)
    with pytest.raises(ValueError, match="holds no training pictures"):
        data.load_cifar10(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------------ digits, splits
@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    pytest.importorskip("sklearn")
    return data.load_digits()


def test_digits(digits: data.Dataset) -> None:
    assert digits.x.shape == (1797, 1, 8, 8)
    assert (digits.x.dtype, digits.y.dtype) == (np.float32, np.int64)
    assert digits.classes == tuple("0123456789")
    assert (digits.strokes, digits.flip, digits.shape) == (True, False, (1, 8, 8))
    np.testing.assert_allclose(digits.x[digits.train].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(digits.x[digits.train].std(), 1, atol=1e-5)
    assert digits.blank == pytest.approx(digits.x.min())


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'cnnlayers\[train\]'"):
        data.load_digits()


def test_the_test_split_is_fixed_and_stratified(digits: data.Dataset) -> None:
    again = data.load_digits()
    assert np.array_equal(digits.test, again.test)
    assert sorted([*digits.train, *digits.test]) == list(range(1797))
    whole, tested = np.bincount(digits.y), np.bincount(digits.y[digits.test])
    assert np.abs(tested - whole * data.TEST_SHARE).max() <= 0.5


def test_the_validation_split_is_the_seeds(digits: data.Dataset) -> None:
    train, held = digits.hold_out(0.1, seed=3)
    assert sorted([*train, *held]) == digits.train.tolist()
    assert np.array_equal(held, digits.hold_out(0.1, seed=3)[1])
    assert not np.array_equal(held, digits.hold_out(0.1, seed=4)[1])
    assert set(held.tolist()).isdisjoint(digits.test.tolist())
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        digits.hold_out(1.0, seed=0)
    with pytest.raises(ValueError, match="1797 training pictures are too few to hold out 0% of each class"):
        small(digits.x).hold_out(0.001, seed=0)


# ------------------------------------------------------------------------------------------------ batches, augmentation
def small(x: np.ndarray, **options: object) -> data.Dataset:
    rows = np.arange(len(x))
    return data.Dataset(**{"name": "small", "x": x, "y": rows, "classes": ("a",), "train": rows, "test": rows} | {
        "mean": (0.0,), "std": (1.0,), "crop": 1, "flip": False, "blank": -9.0} | options)  # fmt: skip


def test_batches_cover_the_rows_once() -> None:
    found = small(np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1), crop=0)
    plain = list(data.batches(found, np.array([7, 3, 5]), 2))
    assert [y.tolist() for _, y in plain] == [[7, 3], [5]]
    assert [x.reshape(-1).tolist() for x, _ in plain] == [[7, 3], [5]]
    shuffled = [list(data.batches(found, found.train, 4, np.random.default_rng(seed))) for seed in (0, 0, 1)]
    orders = [[n for _, y in batches for n in y.tolist()] for batches in shuffled]
    assert [len(y) for _, y in shuffled[0]] == [4, 4, 2]
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[1] != orders[2] != list(range(10))
    for x, y in shuffled[0]:
        assert np.array_equal(x.reshape(-1), y)
    with pytest.raises(ValueError, match="got size 0"):
        next(data.batches(found, found.train, 0))


@pytest.mark.parametrize("crop", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_augmented_pictures_are_crops_of_padded_ones(impl, crop: int, flip: bool) -> None:
    x = np.arange(40 * 2 * 3 * 5, dtype=np.float32).reshape(40, 2, 3, 5)
    made = data.augment(small(x, crop=crop, flip=flip), impl.array(x), np.random.default_rng(5))
    found = impl.numpy(made, x.shape, "float32")
    padded = np.pad(x, ((0, 0), (0, 0), (crop, crop), (crop, crop)), constant_values=-9)
    seen = set()
    for n in range(len(x)):
        offsets = [(i, j) for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
        crops = {
            (i, j, back): padded[n, :, i : i + 3, j : j + 5][..., :: -1 if back else 1]
            for i, j in offsets
            for back in (0, 1)
        }
        fits = [key for key, value in crops.items() if np.array_equal(value, found[n])]
        assert len(fits) == 1, f"picture {n} is no crop of its padded self"
        seen.add(fits[0])
    assert {back for *_, back in seen} == ({0, 1} if flip else {0})
    assert {i for i, *_ in seen} == {j for _, j, _ in seen} == set(range(2 * crop + 1))


def test_half_of_the_pictures_stay() -> None:
    x = np.random.default_rng(0).random((4000, 1, 4, 4), np.float32)
    same = (data.augment(small(x), x, np.random.default_rng(1)) == x).all((1, 2, 3)).mean()
    assert same == pytest.approx(1 / 2 + 1 / 18, abs=0.03)


@pytest.mark.parametrize("part", [slice(None), slice(0, 0), slice(3, 4), slice(5, 11)])
def test_distorted_strokes_do_not_depend_on_the_part(impl, part: slice) -> None:
    x = np.random.default_rng(0).random((11, 2, 8, 6), np.float32)
    strokes = small(x, strokes=True, blank=-0.5)
    whole = data.augment(strokes, x, np.random.default_rng(3))
    found = data.augment(strokes, impl.array(x[part]), np.random.default_rng(3), 11, part)
    impl.close(found, whole[part], rtol=1e-5, atol=1e-6)


def test_distortion_is_a_small_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 2×2 dot stays near its place, a quarter-turn is a quarter-turn, and what comes from outside is blank."""
    x = np.full((500, 1, 9, 9), -1, np.float32)
    x[:, :, 3:5, 4:6] = 2
    y = data.augment(small(x, strokes=True, blank=-1.0), x, np.random.default_rng(0)) + 1
    assert y.min() >= 0
    assert y.max() <= 3
    mass, place = y.sum((1, 2, 3)), np.arange(9)
    middle = np.stack([(y.sum((1, 3)) @ place) / mass, (y.sum((1, 2)) @ place) / mass])
    assert np.abs(middle - np.array([[3.5], [4.5]])).max() < 1.2
    assert middle.std(axis=1).min() > 0.1
    assert 3 < mass.min() < mass.max() < 50
    for name, value in {"SHARE": 1.0, "SHEAR": 0.0, "STRETCH": 0.0, "SHIFT": 0.0, "THICKNESS": 0.0}.items():
        monkeypatch.setattr(augmentation, name, value)
    monkeypatch.setattr(augmentation, "ROTATION", 90.0)
    monkeypatch.setattr(augmentation.numpy, "deg2rad", lambda degrees: np.pi / 2)
    turns = np.sign(np.random.default_rng(7).uniform(-1, 1, (7, 1, 1, 1, 1)))

    class Fixed:
        def random(self, shape: tuple) -> np.ndarray:
            return np.zeros(shape)

        def uniform(self, low: float, high: float, shape: tuple) -> np.ndarray:
            return np.broadcast_to(abs(turns), shape)

    picture = np.random.default_rng(1).random((1, 1, 7, 7), np.float32)
    turned = augmentation.distort(picture, Fixed(), 0.0)
    np.testing.assert_allclose(turned[0, 0], np.rot90(picture[0, 0], -1), atol=1e-5)


def test_augmentation_is_the_generators(digits: data.Dataset) -> None:
    three = [[x for x, _ in data.batches(digits, digits.train[:50], 16, np.random.default_rng(s))] for s in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(three[0], three[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(three[0], three[2], strict=True))
