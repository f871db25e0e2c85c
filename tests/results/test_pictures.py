"""Mattes and cut-outs as files: their colours, their names, and what must not stop them."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REAL, ROOT, draw, set_module
from forked import run_forked

SCRIPT = ROOT / "kernel" / "main.py"
PHOTOS = sorted(REAL.glob("val_*.jpg"))


def pixels(image):
    return np.asarray(image, float) / 255


@pytest.mark.parametrize("kind", ["smooth", "photograph"])
def test_the_colours_of_a_cut_out_are_the_foregrounds(kernel, kind):
    """Real mattes before a photograph; the truth is known at every pixel, and the image's own
    colours are at least three times as far from it where alpha is neither 0 nor 1."""
    own, found = [], []
    for number, path in enumerate(sorted(REAL.glob("*.webp"))[:3]):
        alpha = Image.open(path).convert("RGBA").resize((512, 512)).getchannel("A")
        rng = np.random.default_rng(number)
        truth = pixels(kernel.smooth_colours(rng, (512, 512), 6) if kind == "smooth" else
                       Image.open(PHOTOS[number % 2]).resize((512, 512)))
        backdrop = pixels(Image.open(PHOTOS[2]).resize((512, 512)))
        a = pixels(alpha)[..., None]
        image = np.rint(255 * (a * truth + (1 - a) * backdrop)).astype(np.uint8)
        soft = ((a > 0.02) & (a < 0.98))[..., 0]
        colours = kernel.foreground(Image.fromarray(image), alpha)
        own.append(np.abs(pixels(image) - truth)[soft].mean())
        found.append(np.abs(pixels(colours) - truth)[soft].mean())
    assert np.mean(own) > 3 * np.mean(found)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (65, 40)])
def test_what_is_solid_keeps_its_colours_and_nothing_is_black(kernel, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    alpha = np.where(np.arange(size[0]) >= size[0] // 2, 255, 0) * np.ones((size[1], 1))
    colours = kernel.foreground(image, alpha.astype(np.uint8))
    assert np.abs(colours.astype(int) - image)[alpha == 255].max() <= 1
    assert not colours[alpha == 0].any()


def test_a_cut_out_in_bands_has_the_colours_of_the_whole(kernel, monkeypatch):
    photo = Image.open(PHOTOS[0]).convert("RGB").resize((200, 616))
    with Image.open(sorted(REAL.glob("*.webp"))[0]) as image:
        mask = image.convert("RGBA").getchannel("A").resize(photo.size)
    set_module(kernel, monkeypatch, "BAND", 20_000)
    assert len(kernel.bands(photo)) > 4
    cutout = kernel.cut_out(photo, mask)
    assert np.array_equal(cutout.convert("RGB"), kernel.foreground(photo, mask))
    assert np.array_equal(cutout.getchannel("A"), mask)


@pytest.fixture
def photos(tmp_path):
    """A folder with pictures of one name in sub-folders, one that is no image, and other files."""
    folder = tmp_path / "photos"
    for name, path in {"a.jpg": PHOTOS[0], "sub/a.jpg": PHOTOS[1], "sub/b.jpg": PHOTOS[2]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((240, 200)).save(folder / name)
    with Image.open(sorted(REAL.glob("*.webp"))[0]) as image:
        image.resize((70, 50)).save(folder / "sub" / "b.webp")
    (folder / "torn.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("")
    draw(folder / ".hidden" / ".c.png", np.zeros((9, 9, 3), np.uint8))
    return folder


def written(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


NAMES = ["a", "sub/a", "sub/b.jpg", "sub/b.webp"]


def test_a_folder_of_photos_becomes_masks_and_cut_outs(photos, tmp_path):
    done = run_forked(SCRIPT, photos, cwd=tmp_path)
    assert done.returncode == 3 and "torn.png: cannot be read" in done.stdout, done.stderr
    out = tmp_path / "outputs"
    assert written(out) == [f"{kind}/{name}.png" for kind in ("cutouts", "masks") for name in NAMES]
    for name, source in zip(NAMES, ["a.jpg", "sub/a.jpg", "sub/b.jpg", "sub/b.webp"]):
        mask, cutout = (Image.open(out / kind / f"{name}.png") for kind in ("masks", "cutouts"))
        assert (mask.mode, cutout.mode) == ("L", "RGBA")
        assert mask.size == cutout.size == Image.open(photos / source).size
        assert np.array_equal(mask, cutout.getchannel("A"))
    assert np.asarray(Image.open(out / "masks" / "a.png")).max() > 200


def test_a_photo_becomes_a_mask_and_a_cut_out_beside_it(photos, tmp_path):
    """The output lies in the input's folder: a second run takes none of it for a photo."""
    (photos / "torn.png").unlink()
    for count in (1, 4):
        place = photos / "a.jpg" if count == 1 else photos
        done = run_forked(SCRIPT, place, "--out", photos, cwd=tmp_path)
        assert done.returncode == 0 and f"predict {count} pictures" in done.stdout, done.stderr
    assert sum(name.startswith("masks/") for name in written(photos)) == 4


def test_a_file_that_is_no_result_is_not_replaced(photos, tmp_path):
    """Hand-made masks in a folder that happens to be called so, a cut-out that was changed."""
    for name in ("masks/a.png", "cutouts/sub/a.png"):
        draw(tmp_path / name, np.full((200, 240), 7, np.uint8))
    (photos / "torn.png").unlink()
    done = run_forked(SCRIPT, photos, "--out", ".", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("is there already, and not a result; move it or name") == 2
    assert "PROBLEM with a: masks/a.png is there" in done.stdout
    for name in ("masks/a.png", "cutouts/sub/a.png"):
        assert np.asarray(Image.open(tmp_path / name)).max() == 7
    assert (tmp_path / "masks" / "sub" / "b.jpg.png").is_file()


def test_pictures_leave_the_results_of_a_training_alone(photos, tmp_path):
    out = tmp_path / "outputs"
    out.mkdir()
    for name in ("submission.csv", "validation.csv", "problems.csv", "metrics.csv"):
        (out / name).write_text("mine")
    assert run_forked(SCRIPT, photos / "a.jpg", cwd=tmp_path).returncode == 0
    assert [name for name in written(out) if "/" not in name] == [
        "metrics.csv", "problems.csv", "submission.csv", "validation.csv"]
    assert {path.read_text() for path in out.glob("*.csv")} == {"mine"}


@pytest.mark.parametrize("arguments, says", [
    (["nowhere.jpg"], "nowhere.jpg: there is no such picture or folder"),
    (["empty"], "empty: there is no picture"),
    (["outputs/cutouts/a.png"], "a.png: would be replaced by a result; name another --out"),
    (["outputs/cutouts"], "outputs/cutouts: there is no picture"),
    (["a.png", "--test-root", "empty"], "a.png, --test-root: both say what to work on"),
    ([""], "PICTURE: is empty; name a file or folder"),
    (["a.png", "--out", " "], "--out: is empty"),
    (["https://example.org/a.png"], "https://example.org/a.png: is an address"),
    (["a.png", "--checkpoint", "empty"], "--checkpoint empty: is a folder; name a file"),
    (["a.png", "--mode", "train"], "a.png, --mode train"),
    (["a.png", "--out", "a.png/out"], "a.png"),
    (["--save", "mattes"], "mattes: takes masks, cutouts or masks,cutouts")])
def test_bad_pictures_are_one_sentence(kernel, tmp_path, monkeypatch, capsys, arguments, says):
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    draw(tmp_path / "outputs" / "cutouts" / "a.png", np.zeros((9, 9, 4), np.uint8))
    monkeypatch.chdir(tmp_path)
    try:
        status = kernel.main([*arguments, "--workers", "0"])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and says in error and "Traceback" not in error


def test_saved_pictures_are_those_of_the_submission(small_data, tmp_path, kernel):
    flags = ("--mode", "predict", "--test-root", small_data.test, "--out", tmp_path / "out")
    assert run_forked(SCRIPT, *flags, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "out" / "masks").exists()
    assert run_forked(SCRIPT, *flags, "--save", "masks,cutouts", cwd=tmp_path).returncode == 0
    table = pd.read_csv(tmp_path / "out" / "submission.csv", dtype=str)
    for name, text in zip(table.filename, table.image_utf):
        mask = kernel.decode_mask(text)
        assert np.array_equal(Image.open(tmp_path / "out" / "masks" / f"{name}.png"), mask)
        cutout = Image.open(tmp_path / "out" / "cutouts" / f"{name}.png")
        assert np.array_equal(cutout.getchannel("A"), mask)


def test_a_reader_that_goes_away_does_not_stop_the_work(photos, tmp_path):
    """`2>&1 | head -1`: the log is cut, the results are not."""
    process = subprocess.Popen([sys.executable, SCRIPT, photos / "a.jpg"], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith("Python 3")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert written(tmp_path / "outputs") == ["cutouts/a.png", "masks/a.png"]


def test_the_readmes_line_for_photos_works(photos, tmp_path):
    """README: python kernel/main.py photo.jpg more_photos/"""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "python kernel/main.py photo.jpg more_photos/" in readme
    shutil.copy(photos / "a.jpg", tmp_path / "photo.jpg")
    (tmp_path / "more_photos").mkdir()
    shutil.copy(photos / "a.jpg", tmp_path / "more_photos" / "another.jpg")
    done = run_forked(SCRIPT, "photo.jpg", "more_photos/", cwd=tmp_path)
    assert done.returncode == 0
    assert written(tmp_path / "outputs") == ["cutouts/another.png", "cutouts/photo.png",
                                             "masks/another.png", "masks/photo.png"]
