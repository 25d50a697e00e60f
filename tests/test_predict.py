"""Prediction: which pictures are read and how, what is refused, and how well drawn digits are read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnlayers import backends, cli, evaluation, pictures, predict, progress, train

from . import drawn_digits
from .command_line import RUN, refusal


class Silent(progress.Lines):
    """Shows nothing."""

    def __init__(self) -> None: ...

    def end(self, record: dict) -> None: ...


@pytest.fixture(autouse=True, scope="module")
def on_numpy() -> Iterator[None]:
    with backends.using("numpy"):
        yield


SEVEN = [(6, 6), (34, 6), (18, 42)]  # a stroke through these points, (across, down), of 40 × 48


def draw(path: Path, ground: object, ink: object, scale: int = 6, mode: str = "L", margin: int = 0) -> Path:
    """A picture file with a seven."""
    image = pytest.importorskip("PIL.Image")
    from PIL import ImageDraw

    picture = image.new(mode, (40 * scale + 2 * margin, 48 * scale + margin), ground)
    points = [(margin + x * scale, y * scale) for x, y in SEVEN]
    ImageDraw.Draw(picture).line(points, fill=ink, width=6 * scale, joint="curve")
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pencil.png", {"ground": 230, "ink": 60}),
        ("board.png", {"ground": 10, "ink": 250}),
        ("small.png", {"ground": 255, "ink": 0, "scale": 1}),
        ("wide.jpg", {"ground": 255, "ink": 0, "margin": 300}),
        ("colour.png", {"ground": (250, 240, 200), "ink": (20, 20, 120), "mode": "RGB"}),
        ("clear.png", {"ground": (0, 0, 0, 0), "ink": (0, 0, 0, 255), "mode": "RGBA"}),
        ("deep.png", {"ground": 60000, "ink": 1000, "mode": "I;16"}),
    ],
)
def test_a_drawn_seven(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, name: str, options: dict
) -> None:
    model = predict.load(trained[0] / RUN)
    ((best, probability), *rest) = predict.predict(model, [draw(tmp_path / name, **options)])[0]
    assert best == "7"
    assert sum((p for _, p in rest), probability) == pytest.approx(1)
    assert [p for _, p in rest] == sorted((p for _, p in rest), reverse=True)


def test_predict_prints_a_line_a_picture(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pictures = [draw(tmp_path / "seven.png", 255, 0), draw(tmp_path / "other.png", 0, 255)]
    for model in (RUN, RUN / train.MODEL):
        assert cli.main(["predict", *map(str, (trained[0] / model, *pictures))]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [[str(path), "7"] for path in pictures]
        assert all(re.fullmatch(r"\S+\.png( +\d +[\d.]+%){3}", line) for line in lines)


def test_pictures_that_cannot_be_read(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained[0] / RUN
    whole = draw(tmp_path / "seven.png", 255, 0)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    assert "there is no picture nowhere.png" in refusal(capsys, "predict", run, whole, "nowhere.png")
    for name in ("half.png", "text.png"):
        assert f"{name} is no picture that can be read" in refusal(capsys, "predict", run, whole, tmp_path / name)
    (tmp_path / "nothing.png").touch()
    assert "nothing.png is no picture that can be read: the file is empty" in refusal(
        capsys, "predict", run, whole, tmp_path / "nothing.png"
    )
    said = refusal(capsys, "predict", run, tmp_path)
    for name in ("half.png", "text.png", "nothing.png"):
        assert f"{name} is no picture that can be read" in said
    assert "seven.png" not in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("white.png", {"ground": 255, "ink": 255}),
        ("black.png", {"ground": 0, "ink": 0}),
        ("faint.png", {"ground": 128, "ink": 131}),
        ("colour.png", {"ground": (9, 80, 80), "ink": (9, 80, 80), "mode": "RGB"}),
        ("clear.png", {"ground": (0, 0, 0, 0), "ink": (255, 255, 255, 0), "mode": "RGBA"}),
        ("deep.png", {"ground": 400, "ink": 400, "mode": "I;16"}),
        ("jpeg.jpg", {"ground": 200, "ink": 200}),
    ],
)
def test_a_blank_picture_is_refused(
    trained: tuple[Path, subprocess.CompletedProcess],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    options: dict,
) -> None:
    blank = draw(tmp_path / name, **options)
    assert f"{name} is blank" in refusal(capsys, "predict", trained[0] / RUN, blank)


def test_a_folder_stands_for_its_pictures(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "meine Bilder, 数字"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.png", "ä.JPG", "a.bmp"):
        draw(folder / name, 255, 0)
    draw(folder / ".hidden.png", 255, 0)
    (folder / "notes.txt").write_text("no picture")
    other = draw(tmp_path / "seven.png", 255, 0)
    assert cli.main(["predict", *map(str, (trained[0] / RUN, other, folder, other))]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [other, *(folder / name for name in ("a.bmp", "b.png", "ä.JPG")), other]
    assert [line.rpartition("   7 ")[0].strip() for line in lines] == [str(path) for path in expected]
    said = refusal(capsys, "predict", trained[0] / RUN, other, folder / "deeper")
    assert "deeper holds no pictures (PNG, JPEG" in said
    assert "pictures in its folders are not looked for" in refusal(capsys, "predict", trained[0] / RUN, tmp_path.parent)


def test_many_pictures_go_in_batches(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = predict.load(trained[0] / RUN)
    paths = [draw(tmp_path / f"{i}.png", 255 - 20 * i, 0 if i < 6 else 255, scale=1) for i in range(13)]
    together = predict.predict(model, paths)
    monkeypatch.setattr(predict, "EVALUATION_BATCH", 5)
    for one, other in zip(together, predict.predict(model, paths), strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], rtol=1e-5, atol=1e-7)


def test_models_that_cannot_be_read(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained[0] / RUN
    seven = draw(tmp_path / "seven.png", 255, 0)
    said = refusal(capsys, "predict", run / train.LAST, seven)
    assert "is no model that `cnnlayers train` wrote (it is a run's last.safetensors, for --resume: give" in said
    assert "give model.safetensors beside it" in said
    assert "is no whole safetensors file" in refusal(capsys, "predict", run / train.HISTORY, seven)


def test_a_test_digit_survives_the_way_through_a_picture(
    trained: tuple[Path, subprocess.CompletedProcess], tmp_path: Path
) -> None:
    from sklearn.datasets import load_digits

    image = pytest.importorskip("PIL.Image")
    model = predict.load(trained[0] / RUN)
    digits = load_digits()
    paths = []
    for i in range(0, 300, 3):
        cells = np.kron(np.rint(digits.images[i] * 255 / 16), np.ones((12, 12))).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        image.fromarray(255 - cells if i % 2 else cells).save(paths[-1])
    right = [
        answer[0][0] == str(digits.target[i])
        for answer, i in zip(predict.predict(model, paths), range(0, 300, 3), strict=True)
    ]
    assert np.mean(right) >= 0.93


def test_resizing_takes_the_mean_of_areas() -> None:
    picture = np.arange(12.0).reshape(3, 4, 1)
    np.testing.assert_allclose(pictures.resize(picture, 3, 2)[:, :, 0], [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]])
    np.testing.assert_allclose(pictures.resize(picture, 2, 1)[:, :, 0], [[(1.5 * 2 + 5.5) / 3], [(5.5 + 9.5 * 2) / 3]])
    np.testing.assert_allclose(pictures.resize(np.ones((5, 7, 3)), 8, 8), np.ones((8, 8, 3)))


def test_strokes_are_framed() -> None:
    paper = np.full((30, 50, 1), 0.9)
    paper[5:25, 10:15] = 0.2  # an upright stroke, 20 × 5
    for picture in (paper, 1 - paper):
        framed = predict.frame_strokes(picture, 8, 8)[:, :, 0]
        np.testing.assert_allclose(framed, np.tile([0, 0, 0, 1, 1, 0, 0, 0], (8, 1)), atol=0.21)
        assert framed[:, :2].max() == 0
    with pytest.raises(ValueError, match="is blank"):
        predict.frame_strokes(np.full((9, 9, 1), 0.7), 8, 8)


@pytest.mark.parametrize("width", [1, 3, 9, 20, 40])
def test_every_pen_gets_about_one_width(width: int) -> None:
    """An upright line of 96 cells."""
    paper = np.zeros((140, 140, 1))
    paper[12:108, 60 : 60 + width] = 1
    row = predict.frame_strokes(paper, 8, 8)[3, :, 0]
    assert 0.14 <= row.sum() / 8 <= 0.33  # of the height; in `paper` from 0.01 to 0.42


@pytest.mark.parametrize(("ground", "ink"), [(0.53, 1.0), (0.45, 0.0), (0.9, 0.1), (0.2, 0.35)])
def test_strokes_may_be_darker_or_lighter_than_any_ground(ground: float, ink: float) -> None:
    paper = np.full((60, 60, 1), ground)
    paper[10:50, 20:29] = ink
    framed = predict.frame_strokes(paper, 8, 8)
    assert framed[4, 3:5].mean() > 0.8
    assert framed[:, 0].max() == 0


def test_a_pen_like_the_training_pictures_changes_nothing() -> None:
    paper = np.zeros((80, 80, 1))
    paper[8:72, 32:46] = 0.8  # 64 cells high, 14 wide: 7 of the grid's 32
    framed = predict.frame_strokes(paper, 32, 32)[:, :, 0]
    np.testing.assert_allclose(framed, np.tile(np.r_[np.zeros(12), np.ones(7), np.zeros(13)], (32, 1)), atol=1e-9)


def test_drawn_digits_are_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Digits that another hand drew, with pens of many widths, anywhere on the paper, in both colourings."""
    pytest.importorskip("sklearn")
    run = train.start({}, tmp_path_factory.mktemp("drawn"))
    run.train(30, Silent())
    assert run.test().accuracy >= 0.97
    model = predict.load(run.out)
    found = drawn_digits.drawings()
    inputs = [predict.cells_of(model, drawing[:, :, None] / 255) for _, drawing in found]
    right = np.array([
        np.argmax(row) == int(label)
        for row, (label, _) in zip(evaluation.logits_of(model.model, np.stack(inputs)), found, strict=True)
    ])  # fmt: skip
    assert right.mean() >= 0.915
    sevens = [label == "7" for label, _ in found]
    assert right[sevens].mean() >= 0.85
