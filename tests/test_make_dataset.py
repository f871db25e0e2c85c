"""The data set builder on a package made here."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import draw
from src import make_dataset
from src.data import read_pairs

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg")


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
        assert 0.5 < 120 / image.width < 1
    assert [path.name for path in (out / "backdrops").iterdir()] == ["backgrounds_sea.jpg"]


def test_what_is_no_package_is_refused(tmp_path, capfd):
    (tmp_path / "no.deb").write_text("no package")
    assert make_dataset.main([str(tmp_path / "set"), str(tmp_path / "no.deb")]) == 2
    assert "no.deb: cannot be unpacked" in capfd.readouterr().err
