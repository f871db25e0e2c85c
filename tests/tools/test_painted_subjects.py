"""Painted subjects: the same for a seed, open and solid in the right places."""

import numpy as np
import pytest
from PIL import Image

from src.tools import painted_subjects as painting
from src.tools.painted_subjects import (
    PARTS, SHEETS, SIDE, Sources, finish, frames, main, painted, painted_subject, prints,
    recoloured_towards, rings, written)


@pytest.fixture
def cutouts(tmp_path):
    """A red disc of half the canvas, as a cut-out; the folder that holds it"""
    y, x = np.mgrid[:200, :200]
    disc = np.full((200, 200, 4), (200, 30, 30, 255), np.uint8)
    disc[..., 1] = x
    disc[np.hypot(x - 99.5, y - 99.5) > 80] = 0
    (tmp_path / "cutouts").mkdir()
    Image.fromarray(disc).save(tmp_path / "cutouts" / "disc.png")
    return tmp_path / "cutouts"


def alpha(image):
    assert image.mode == "RGBA" and image.size == (SIDE, SIDE)
    return np.asarray(image.getchannel("A")) / 255


def edges(plane):
    """How many edges of the frame the subject touches"""
    return sum(bool(edge.max() > 0.5) for edge in (plane[0], plane[-1], plane[:, 0], plane[:, -1]))


def inside(plane):
    """Alpha at the middle of the subject's box"""
    y, x = np.nonzero(plane > 0.5)
    return plane[(y.min() + y.max()) // 2, (x.min() + x.max()) // 2]


def test_a_seed_always_gives_the_same_files(tmp_path, cutouts):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for out, seed in ((first, 3), (again, 3), (other, 4)):
        assert main([str(out), "--count", "3", "--seed", str(seed), "--cutouts", str(cutouts),
                     "--recolour", "0.5"]) == 0
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert len(files) == 3 and all(name.endswith(".webp") for name in files)
    assert files == {path.name: path.read_bytes() for path in again.iterdir()}
    assert files != {path.name: path.read_bytes() for path in other.iterdir()}


@pytest.mark.parametrize("kind", dict.fromkeys(row[0] for row in PARTS + SHEETS),
                         ids=lambda kind: kind.__name__)
def test_every_kind_gives_a_subject_with_soft_edges(kind, monkeypatch, cutouts):
    monkeypatch.setattr(painting, "PARTS", tuple(row for row in PARTS if row[0] is kind)[:1])
    monkeypatch.setattr(painting, "SHEETS", tuple(row for row in SHEETS if row[0] is kind))
    for number in range(2):
        name, image = painted_subject(1, number, Sources([cutouts / "disc.png"], recolour=0.5))
        plane = alpha(image)
        assert name == kind.__name__
        assert 0.001 < plane.mean() < 1 and plane.max() > 0.95
        assert ((plane > 0.1) & (plane < 0.9)).sum() > 20


@pytest.mark.parametrize("kind", [frames, rings])
def test_frames_and_rings_are_open(kind):
    rng = np.random.default_rng(0)
    for _ in range(6):
        ring = [part for part in kind(rng, Sources()) if part[0][-1][2] == 0][:1]
        assert inside(alpha(painted(ring, rng, turn=5))) == 0


def test_a_letter_is_open_where_it_has_a_hole():
    rng = np.random.default_rng(0)
    letter = [([(written("O", None), 0, 255)], finish(rng, Sources()), 1)]
    plane = alpha(painted(letter, rng))
    assert inside(plane) == 0 and plane.mean() > 0.05


def test_prints_are_solid_inside():
    rng = np.random.default_rng(0)
    for _ in range(6):
        plane = alpha(painted(prints(rng, Sources()), rng, turn=0))
        y, x = np.nonzero(plane > 0.5)
        top, bottom, left, right = y.min() + 12, y.max() - 12, x.min() + 12, x.max() - 12
        assert plane[top:bottom, left:right].min() == 1
        assert edges(plane) == 0


@pytest.mark.parametrize("cut, least, most", [("inside", 0, 0), ("one", 1, 2), ("two", 2, 4),
                                              ("opposite", 2, 2)])
def test_the_frame_cuts_a_thing_off(cut, least, most):
    rng = np.random.default_rng(0)
    bar = [([painting.fill(painting.box(-0.5, -0.1, 0.5, 0.1))], finish(rng, Sources()), 1)]
    for _ in range(5):
        plane = alpha(painted(bar, rng, cut, turn=0))
        assert least <= edges(plane) <= most
        if cut == "opposite":
            assert plane[:, 0].max() > 0.5 < plane[:, -1].max()


def test_the_bevel_does_not_follow_the_frame():
    *_, outward = painting.relief(np.ones((SIDE, SIDE), np.float32), 2)
    assert outward.min() > 0.999


@pytest.mark.parametrize("level", [245, 10])
def test_recolouring_keeps_alpha_and_some_texture(cutouts, level):
    with Image.open(cutouts / "disc.png") as image:
        result = recoloured_towards(image, (level,) * 3, np.random.default_rng(0))
        assert result.getchannel("A").tobytes() == image.getchannel("A").tobytes()
        before, after = (np.asarray(picture)[60:140, 60:140, :3].astype(float)
                         for picture in (image, result))
    assert abs(after.mean() - level) < 40
    assert 2 < after.mean(axis=2).std() < before.mean(axis=2).std()


def test_a_broken_cut_out_is_skipped_by_name(tmp_path, cutouts, capsys):
    (cutouts / "disc.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main([str(out), "--count", "6", "--seed", "2", "--cutouts", str(cutouts)]) == 0
    assert 0 < len(list(out.iterdir())) < 6
    assert "disc.png: cannot be read" in "".join(capsys.readouterr())


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--fonts", str(tmp_path)]) == 2
    assert "--fonts" in capsys.readouterr().err
