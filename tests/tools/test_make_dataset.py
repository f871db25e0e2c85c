"""The data set builder on a package made here."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from conftest import draw, write_pairs
from src.data.pairs import read_pairs
from src.tools import make_dataset
from src.tools.soft_parts import glow, smoke, strands

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg")


@pytest.fixture(autouse=True)
def no_soft_copies(monkeypatch):
    """Each cut-out once and whole, unless a test asks for more."""
    monkeypatch.setattr(make_dataset, "P_SOFT", 0.0)
    monkeypatch.setattr(make_dataset, "P_FLAT", 0.0)
    monkeypatch.setattr(make_dataset, "P_CUT_OFF", 0.0)


@pytest.fixture
def package(tmp_path):
    """A .deb with three stamps, a letter, a tiny and an opaque picture, and a wallpaper."""
    root = tmp_path / "package"
    stamp = np.zeros((120, 200, 4), np.uint8)
    y, x = np.mgrid[:120, :200]
    stamp[np.hypot((x - 99.5) / 60, (y - 59.5) / 30) < 1] = (200, 30, 30, 255)  # 120 x 60
    stamps = root / "usr/share/tuxpaint/stamps"
    for name in ("animals/cat", "animals/cats/lynx", "food/pear", "symbols/a"):
        draw(stamps / f"{name}.png", stamp)
    draw(stamps / "food/tiny.png", stamp[80:100, 80:170])
    draw(stamps / "food/opaque.png", np.full((80, 80, 3), 9, np.uint8))
    draw(root / "usr/share/backgrounds/sea.png", np.full((300, 500, 3), 99, np.uint8))
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: art\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: art\n")
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "art.deb"], check=True,
                   stdout=subprocess.DEVNULL)
    return tmp_path / "art.deb"


def test_stamps_become_cut_outs_with_room_around_them(package, tmp_path):
    (tmp_path / "held_back.txt").write_text("food_pear.png\n")
    out = tmp_path / "set"
    assert make_dataset.main([str(out), str(package), "--leave-out",
                              str(tmp_path / "held_back.txt")]) == 0
    assert list(pd.read_csv(out / "train.csv").image_path) == [
        "cutouts/animals_cat.png", "cutouts/animals_cats_lynx.png"]
    pairs = read_pairs(out / "train.csv")
    with Image.open(pairs[0][0]) as image:
        assert image.mode == "RGBA" and image.width == image.height
        box = image.getchannel("A").getbbox()
        assert (box[2] - box[0], box[3] - box[1]) == (120, 60)  # its own resolution
        assert 0.3 < 120 / image.width < 1
    assert sorted(path.name for path in (out / "backdrops").iterdir()) == [
        "backgrounds_sea.jpg", "backgrounds_sea_0.jpg", "backgrounds_sea_1.jpg"]


def test_what_is_no_package_is_refused(tmp_path, capfd):
    (tmp_path / "no.deb").write_text("no package")
    assert make_dataset.main([str(tmp_path / "set"), str(tmp_path / "no.deb")]) == 2
    assert "no.deb: cannot be unpacked" in capfd.readouterr().err


def drawing(*shapes, size=(300, 300), colour=(220, 30, 30, 255)):
    """An RGBA drawing of ellipses, given by their boxes, each in two colours"""
    image = Image.new("RGBA", size)
    draw_on = ImageDraw.Draw(image)
    for left, top, right, bottom in shapes:
        draw_on.ellipse((left, top, right, bottom), fill=colour)
        middle = (left + right) / 2
        draw_on.ellipse((left + 20, top + 20, middle, bottom - 20), fill=(20, 20, 160, 255))
    return image


def test_clip_art_must_be_one_solid_coloured_subject():
    disc = drawing((20, 20, 280, 280))
    assert make_dataset.single_subject(disc)
    assert not make_dataset.single_subject(drawing((10, 10, 120, 120), (180, 180, 290, 290)))
    hole = disc.copy()
    ImageDraw.Draw(hole).ellipse((160, 100, 240, 200), fill=(0, 0, 0, 0))
    assert not make_dataset.single_subject(hole)
    veil = disc.copy()
    veil.putalpha(disc.getchannel("A").point(lambda level: level // 2))
    assert not make_dataset.single_subject(veil)
    grey = disc.convert("LA").convert("RGBA")
    assert not make_dataset.single_subject(grey)
    assert not make_dataset.single_subject(Image.new("RGBA", (300, 300), (200, 30, 30, 255)))


def test_what_looks_like_a_held_back_stamp_is_left_out_too(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps/animals"
    clips = tmp_path / "usr/share/openclipart/png/animals"
    subject = drawing((20, 80, 280, 220))
    for path in (stamps / "cat.png", clips / "same.png", clips / "mirrored.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path) if (
            path.stem == "mirrored") else subject.resize((450, 450)).save(path)
    drawing((20, 80, 280, 220), colour=(60, 240, 90, 255)).save(clips / "other.png")
    left_out, rng = {"animals_cat.png"}, np.random.default_rng(0)
    names = [name for name, _ in make_dataset.cutouts(tmp_path, [], left_out, [], rng)]
    assert names == ["clip_animals_other.png"]


def test_a_source_gives_each_drawing_once_and_no_more_than_its_share(tmp_path, monkeypatch):
    for number, colour in enumerate(((220, 30, 30), (60, 240, 90), (250, 250, 20), (20, 250, 250))):
        for copy in "ab":
            path = tmp_path / f"usr/share/art/things/{number}{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing((20, 80, 280, 220), colour=(*colour, 255)).save(path)

    def taken(most):
        monkeypatch.setattr(make_dataset, "DRAWINGS", (("new", "share/art", ("things",), most),))
        images = make_dataset.cutouts(tmp_path, [], set(), [], np.random.default_rng(0))
        return sorted(name[:12] for name, _ in images)

    assert taken(9) == [f"new_things_{number}" for number in range(4)]
    assert len(taken(2)) == 2


def test_portraits_stay_in_the_frame_that_cuts_them_off(tmp_path):
    folder = tmp_path / "usr/share/games/flare/mods/core/images/portraits"
    folder.mkdir(parents=True)
    bust = Image.new("RGBA", (320, 320))
    ImageDraw.Draw(bust).rectangle((60, 100, 260, 320), fill=(90, 60, 30, 255))
    bust.save(folder / "knight.png")
    bust.crop((0, 0, 320, 200)).save(folder / "banner.png")
    busts = make_dataset.portraits(tmp_path)
    names = make_dataset.write_cutouts([], busts, tmp_path / "set", seed=0)
    assert names == ["cutouts/portrait_knight.png"]
    with Image.open(tmp_path / "set" / names[0]) as image:
        assert image.size == (320, 320) and image.getchannel("A").getbbox() == (60, 100, 261, 320)


def test_rows_of_another_csv_are_added_twice(package, tmp_path):
    csv = write_pairs(tmp_path / "data", 2)
    assert make_dataset.main([str(tmp_path / "set"), str(package), "--add", str(csv)]) == 0
    pairs = read_pairs(tmp_path / "set" / "train.csv")
    assert len(pairs) == 3 + 2 * 2
    assert pairs[0] == (str(tmp_path / "set/cutouts/animals_cat.png"), "")
    assert all(Path(path).is_file() for path in (*pairs[3], *pairs[6]))


def test_a_drawing_that_its_frame_cuts_off_is_left_out():
    cut = drawing((20, 20, 280, 280)).crop((20, 20, 281, 150))
    assert not make_dataset.single_subject(cut)


def test_backdrops_come_once_and_without_logos(tmp_path):
    folder = tmp_path / "usr/share/backgrounds"
    ramp = np.tile(np.arange(512, dtype=np.uint16) // 2, (400, 1)).astype(np.uint8)
    draw(folder / "a.png", ramp)
    draw(folder / "b.png", np.flip(ramp, 1)[:300, 10:])
    draw(folder / "logo.png", np.dstack([ramp] * 4))
    draw(folder / "other.png", ramp.T)
    drawing((20, 20, 280, 280)).save(tmp_path / "thing.png")
    photographs = tmp_path / "photographs"
    draw(photographs / "pool.jpg", np.flip(ramp.T, 0))
    out, rng = tmp_path / "out", np.random.default_rng(0)
    things = [tmp_path / "thing.png"]
    assert make_dataset.write_backdrops(tmp_path, [photographs], things, out, rng) == 3 * 3
    names = ("backgrounds_a", "backgrounds_other", "photographs_pool")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{name}{number}.jpg" for name in names for number in ("", "_0", "_1"))
    plain, scene = (np.asarray(Image.open(out / f"backgrounds_a{number}.jpg"), int)
                    for number in ("", "_0"))
    changed = (np.abs(plain - scene).max(axis=2) > 60).mean()
    assert 0.001 < changed < 0.5


def test_photographs_picked_by_hand_are_all_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(make_dataset, "MOST_BACKDROPS", 1)
    monkeypatch.setattr(make_dataset, "SCENES", 0)
    across = np.tile(np.arange(512, dtype=np.uint16) // 2, (400, 1)).astype(np.uint8)
    places = tmp_path / "usr/share/backgrounds", tmp_path / "photographs"
    for place in places:
        draw(place / "across.png", across if place == places[0] else 255 - across // 2)
        draw(place / "down.png", across.T if place == places[0] else 255 - across.T // 2)
    out = tmp_path / "out"
    make_dataset.write_backdrops(tmp_path, [places[1]], [], out, np.random.default_rng(0))
    assert sorted(path.stem for path in out.iterdir()) == [
        "backgrounds_across", "photographs_across", "photographs_down"]


def test_the_frame_cuts_some_subjects_off():
    subject = drawing((0, 0, 299, 299))
    for seed in range(30):
        canvas = make_dataset.cut_off(subject, np.random.default_rng(seed))
        alpha = np.asarray(canvas.getchannel("A")) > 0
        assert canvas.width == canvas.height and alpha[-1].any()
        whole = (np.asarray(subject.getchannel("A")) > 0).sum()
        assert 0.2 * whole < alpha.sum() < whole


def test_subjects_are_placed_three_times_but_for_those_that_validate(tmp_path):
    seen, new = drawing((20, 80, 280, 220)), drawing((20, 20, 200, 280), colour=(60, 240, 90, 255))
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    seen.resize((600, 600)).save(folder / "again.png")
    new.save(folder / "more" / "new.webp", lossless=True)
    Image.new("RGB", (300, 300), (9, 99, 9)).save(folder / "opaque.png")
    (folder / "torn.png").write_bytes(b"no picture")
    scene = Image.new("RGB", (300, 300), (240, 240, 200))
    scene.paste(seen, (0, 0), seen)
    scene.save(tmp_path / "scene.png")
    seen.getchannel("A").save(tmp_path / "alpha.png")
    (tmp_path / "val.csv").write_text("image_path,alpha_path\nscene.png,alpha.png\n")
    assert make_dataset.main([str(tmp_path / "set"), "--subjects", str(folder),
                              "--unlike", str(tmp_path / "val.csv")]) == 0
    names = list(pd.read_csv(tmp_path / "set" / "train.csv").image_path)
    assert [name.split("_")[0] for name in names] == [
        f"cutouts/subject{copy}" for copy in range(3)] and all("new" in name for name in names)
    boxes = [Image.open(tmp_path / "set" / name).getchannel("A").getbbox() for name in names]
    assert len(set(boxes)) == 3
    assert all(abs(b[2] - b[0] - 181) < 9 and abs(b[3] - b[1] - 261) < 9 for b in boxes)


def test_a_subject_retaken_has_other_colours_and_the_same_outline():
    subject = drawing((20, 20, 280, 280)).crop((20, 20, 281, 281))
    before = np.asarray(subject, float) / 255
    for seed in range(8):
        after = np.asarray(make_dataset.retaken(subject, np.random.default_rng(seed)), float) / 255
        assert np.abs(after[..., 3] - before[..., 3]).mean() < 0.01
        assert np.abs(after - before)[before[..., 3] > 0.9, :3].mean() > 0.01


def test_flat_drawings_keep_the_shape_and_lie_on_backdrops_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(make_dataset, "P_FLAT", 1.0)
    (tmp_path / "cutouts").mkdir()
    subject = drawing((60, 40, 240, 280))
    subject.save(tmp_path / "cutouts" / "disc.png")
    (row,) = make_dataset.write_flat_drawings(tmp_path, ["cutouts/disc.png"], seed=3)
    assert row == ("flat/disc.png", "flat/disc_alpha.png")
    image, alpha = (np.asarray(Image.open(tmp_path / path)) for path in row)
    assert image.shape == (512, 512, 3) and alpha.shape == (512, 512)
    shape = np.asarray(subject.getchannel("A").resize((512, 512))) > 127
    assert ((alpha > 127) == shape).mean() > 0.99
    colours, counts = np.unique(image[alpha == 255], axis=0, return_counts=True)
    assert np.sort(counts)[-7:].sum() > 0.97 * counts.sum()  # a few flat colours


def test_nothing_found_is_said(tmp_path, capfd):
    assert make_dataset.main([str(tmp_path / "set"), "--subjects", str(tmp_path)]) == 2
    assert "no cut-out was found" in capfd.readouterr().err


def test_tarballs_of_emoji_come_without_signs_and_full_squares(tmp_path):
    for name in ("1f436", "1f436-1f3fb", "1f1e9-1f1ea", "2b05-fe0f"):
        folder = tmp_path / "package" / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        drawing((20, 20, 280, 280)).save(folder / f"{name}.webp", lossless=True)
    Image.new("RGBA", (256, 256), (20, 40, 90, 255)).save(folder / "1f306.webp", lossless=True)
    with tarfile.open(tmp_path / "emoji.tgz", "w:gz") as tarball:
        tarball.add(tmp_path / "package", "package")
    assert make_dataset.main([str(tmp_path / "set"), str(tmp_path / "emoji.tgz")]) == 0
    assert list(pd.read_csv(tmp_path / "set" / "train.csv").image_path) == [
        "cutouts/emoji_1f436.png"]


@pytest.mark.parametrize("part", [glow, smoke, strands])
def test_soft_parts_change_the_alpha_and_keep_the_subject(part):
    pixels = np.asarray(drawing((60, 60, 240, 240)), np.float32) / 255
    for seed in range(5):
        softened = part(pixels, np.random.default_rng(seed))
        assert softened.shape == pixels.shape and softened.min() >= 0 and softened.max() <= 1.001
        before, after = pixels[..., 3], softened[..., 3]
        assert (np.abs(after - before) > 0.05).any()
        soft = (after > 0.02) & (after < 0.98)
        assert soft.any() and (after[before > 0.9] > 0.9).mean() > 0.5


def test_painted_subjects_keep_their_canvas(package, tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[20:30, :40] = 200
    (tmp_path / "painted").mkdir()
    Image.fromarray(pixels).save(tmp_path / "painted" / "bars_0001.webp", lossless=True)
    out = tmp_path / "set"
    assert make_dataset.main([str(out), str(package), "--painted", str(tmp_path / "painted")]) == 0
    assert "cutouts/painted_bars_0001.png" in set(pd.read_csv(out / "train.csv").image_path)
    with Image.open(out / "cutouts" / "painted_bars_0001.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
