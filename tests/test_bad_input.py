"""Everything that a stranger's data can do: what is fed, what is read, what still comes out.

Each row of CASES spoils a small, sound set of data and says which exit status and which sentence
follow. Whatever happens, no traceback is shown and an older submission survives a failure.
"""

import base64
import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT, draw, load_bundle, write_pairs

BUNDLE = load_bundle()
QUICK = ["--train-size", "64", "--train-batch", "8", "--epochs", "1", "--workers", "0",
         "--predict-size", "32", "--calibration", "none", "--preview", "0", "--ema", "0"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of this project, with a recipe, that predicts at once."""
    path = tmp_path_factory.mktemp("weights") / "ours.pth"
    torch.manual_seed(0)
    recipe = {"predict_size": 32, "flip": False, "refine": True, "calibration": "none"}
    BUNDLE.write_checkpoint(path, BUNDLE.U2NETP().state_dict(), recipe=recipe)
    return path


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged TIFFs


@pytest.fixture
def data(tmp_path, monkeypatch):
    """20 training and 20 validation pairs of 16 pixels, 3 test images, an older submission."""
    folder = tmp_path / "data"
    made = SimpleNamespace(
        folder=folder, train=write_pairs(folder, 20, 16), val=write_pairs(folder, 20, 16, "val"),
        test=folder / "orig_1024", out=tmp_path / "out")
    for name in ("1", "2", "10"):
        draw(made.test / f"{name}.png", np.full((20, 30, 3), 99, np.uint8))
    made.out.mkdir()
    (made.out / "submission.csv").write_text(OLDER)
    monkeypatch.chdir(tmp_path)
    return made


def predict(data, weights, *more):
    return BUNDLE.main(["--test-root", str(data.test), "--checkpoint", str(weights), "--out",
                        str(data.out), "--workers", "0", *more])


def learn(data, *more):
    return BUNDLE.main(["--mode", "train", "--train-csv", str(data.train), "--val-csv",
                        str(data.val), "--test-root", str(data.test), "--out", str(data.out),
                        *QUICK, *more])


def masks_of(data):
    """{name: uint8 mask} of the submission, read with nothing of ours"""
    table = pd.read_csv(data.out / "submission.csv", dtype=str, keep_default_na=False)
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
            for name, text in zip(table.filename, table.image_utf)}


OLDER = "filename,image_utf\nolder,\n"


def untouched(data):
    return (data.out / "submission.csv").read_text() == OLDER


# ---------------------------------------------------------------- prediction


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def sixteen_bit(path):
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(path)


def long_name(data):
    draw(data.test / ("я" * 120 + ".png"), np.zeros((9, 9, 3), np.uint8))


TEST_IMAGES = [
    # what is done to the test folder, exit status, what is read, names and sizes that come out
    ("truncated PNG", lambda d: truncate(d.test / "2.png"), 3, "PROBLEM with 2:",
     {"2": (20, 30)}),
    ("zero bytes", lambda d: (d.test / "2.png").write_bytes(b""), 3, "Problems: 1, all in",
     {"2": (20, 30)}),
    ("text named .png", lambda d: (d.test / "2.png").write_text("hello"), 3, "cannot be read as",
     {"2": (20, 30)}),
    ("16-bit", lambda d: sixteen_bit(d.test / "2.png"), 0, "", {"2": (20, 30)}),
    ("1x1", lambda d: draw(d.test / "2.png", np.zeros((1, 1, 3), np.uint8)), 0, "", {"2": (1, 1)}),
    ("33x2000", lambda d: draw(d.test / "2.png", np.zeros((2000, 33, 3), np.uint8)), 0, "",
     {"2": (2000, 33)}),
    ("hidden file", lambda d: (d.test / ".2.png").write_text("x"), 0, "", {}),
    ("Thumbs.db", lambda d: (d.test / "Thumbs.db").write_text("x"), 0, "", {}),
    ("sub-folder", lambda d: draw(d.test / "more" / "9.png", np.zeros((9, 9, 3), np.uint8)), 0, "",
     {}),
    ("dots and spaces", lambda d: draw(d.test / "a b.c.d.png", np.zeros((9, 8, 3), np.uint8)), 0,
     "", {"a b.c.d": (9, 8)}),
    ("comma and quotes", lambda d: draw(d.test / 'a,"b".png', np.zeros((9, 8, 3), np.uint8)), 0, "",
     {'a,"b"': (9, 8)}),
    ("Cyrillic, 244 bytes", long_name, 0, "", {"я" * 120: (9, 9)}),
    ("two files of one stem", lambda d: draw(d.test / "2.jpg", np.zeros((9, 8, 3), np.uint8)), 2,
     "would both be the row '2'", None),
    ("empty folder", lambda d: [p.unlink() for p in d.test.iterdir()], 2, "there is no image",
     None),
    ("all unreadable", lambda d: [p.write_bytes(b"") for p in d.test.iterdir()], 3,
     "Problems: 3, all in", {"1": (1024, 1024), "10": (1024, 1024)}),
]


@pytest.mark.parametrize("spoil, status, says, sizes", [case[1:] for case in TEST_IMAGES],
                         ids=[case[0] for case in TEST_IMAGES])
def test_test_images(data, weights, capfd, spoil, status, says, sizes):
    spoil(data)
    assert predict(data, weights) == status
    said = capfd.readouterr()
    assert says in said.out + said.err and "Traceback" not in said.out + said.err
    if status == 2:
        assert untouched(data) and said.err.startswith("error: ")
        return
    masks = masks_of(data)
    assert {"1", "2", "10"} <= set(masks)
    for name, size in sizes.items():
        assert masks[name].shape == size
        assert (status == 3) is not masks[name].any() or masks[name].size == 1
    assert len(masks) == len({"1", "2", "10", *sizes})


def test_masks_of_all_black_images_are_valid(data, weights):
    """The percentile of a constant prediction must not divide by nothing."""
    draw(data.test / "2.png", np.zeros((20, 20, 3), np.uint8))
    assert predict(data, weights, "--calibration", "notebook") == 0
    assert masks_of(data)["2"].shape == (20, 20)


def test_a_rotated_photo_gets_an_upright_mask(data, weights):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(data.test / "2.jpg", exif=exif)
    (data.test / "2.png").unlink()
    assert predict(data, weights) == 0 and masks_of(data)["2"].shape == (30, 20)


# ---------------------------------------------------------------- training data


def rewrite(path, change):
    """The CSV's rows, a list of [image, alpha], through `change`, which alters it in place."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    change(rows)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def spoil_images(data, *numbers, name="train"):
    for number in numbers:
        (data.folder / "images" / f"{name}{number}.png").write_bytes(b"broken")


def alpha(data, number, image):
    image.save(data.folder / "alphas" / f"train{number}.png")


def unusual(data):
    """A half-size alpha, one in RGBA, one of the levels 0 and 1, a cell without a value"""
    alpha(data, 1, Image.new("L", (8, 8), 200))
    alpha(data, 2, Image.new("RGBA", (16, 16), (0, 0, 0, 99)))
    alpha(data, 3, Image.fromarray(np.eye(16, dtype=np.uint8)))
    rewrite(data.train, lambda rows: rows[4].__setitem__(0, ""))


def photographs(data):
    for path in (data.folder / "alphas").glob("val*.png"):
        draw(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def leak(data):
    rewrite(data.val, lambda rows: rows.append(["images/train0.png", "alphas/train0.png"]))


TRAINING = [
    # what is done to the training data, exit status, what is read
    ("a missing file in one row", lambda d: (d.folder / "images/train5.png").unlink(), 0,
     "skipped.csv"),
    ("a broken image", lambda d: spoil_images(d, 5), 0, "skipped.csv"),
    ("a broken validation image", lambda d: spoil_images(d, 5, name="val"), 0, "skipped.csv"),
    ("too many broken images", lambda d: spoil_images(d, 5, 6), 2, "2 of 20 training pairs"),
    ("all images broken", lambda d: spoil_images(d, *range(20)), 2, "cannot be read"),
    ("too many broken validation images", lambda d: spoil_images(d, 1, 2, name="val"), 2,
     "2 of 20 validation pairs"),
    ("alpha of another shape", lambda d: alpha(d, 3, Image.new("L", (8, 16), 200)), 0,
     "skipped.csv"),
    ("unusual but sound", unusual, 0, ""),
    ("rows twice", lambda d: rewrite(d.train, lambda rows: rows.extend(rows[:3])), 0,
     "3 duplicate rows (kept)"),
    ("an image in both sets", leak, 0, "1 validation images are training images too"),
    ("no training CSV", lambda d: d.train.unlink(), 2, "--train-csv"),
    ("photographs as masks", photographs, 2, "are image_path and alpha_path exch"),
    ("an empty CSV", lambda d: d.train.write_text(""), 2, "train.csv: is empty"),
    ("a wrong column", lambda d: d.train.write_text("image,alpha\na,b\n"), 2,
     "rename image to image_path"),
]


@pytest.mark.parametrize("spoil, status, says", [case[1:] for case in TRAINING],
                         ids=[case[0] for case in TRAINING])
def test_training_data(data, capfd, spoil, status, says):
    spoil(data)
    assert learn(data) == status
    said = capfd.readouterr()
    assert says in said.out + said.err and "Traceback" not in said.out + said.err
    if status:
        assert untouched(data) and said.err.strip().splitlines()[-1].startswith("error: ")
    else:
        assert list(masks_of(data)) == ["1", "2", "10"]
        assert (data.out / "skipped.csv").exists() is (says == "skipped.csv")


def test_three_broken_rows_among_many_are_all_that_is_lost(data, capfd):
    """In proportion: 140,000 rows of which 3 are broken; here 63 rows of the same 20 images."""
    rewrite(data.train, lambda rows: rows.extend(rows * 2))
    rewrite(data.train, lambda rows: rows.extend([["images/no1.png", "x"], ["images/no2.png", "x"],
                                                  ["images/no3.png", "x"]]))
    assert learn(data, "--train-batch", "16") == 0
    assert len(pd.read_csv(data.out / "skipped.csv")) == 3


# ---------------------------------------------------------------- settings and places


@pytest.mark.parametrize("arguments, says", [
    (["--predict-size", "7"], "--predict-size 7"), (["--limit", "-1"], "--limit -1"),
    (["--limit", "x"], "--limit"), (["--amp", "fp16", "--device", "cpu"], "--amp fp16"),
    (["--device", "cuda:7"], "--device cuda:7"), (["--device", "toaster"], "--device toaster"),
    (["--crop-scale", "2,1"], "--crop-scale"), (["--crop-scale", "1"], "--crop-scale"),
    (["--time-limit", "-1"], "--time-limit"), (["--time-limit", "0"], "--time-limit"),
    (["--epoch", "3"], "did you mean --epochs"), (["--batch-size", "3"], "--batch-size"),
    (["--lr", "nan"], "--lr"), (["--preview", "-3"], "--preview"),
])
def test_impossible_settings_are_refused_before_any_work(data, weights, capfd, arguments, says):
    try:
        status = predict(data, weights, *arguments)
    except SystemExit as stopped:  # argparse's way
        status = stopped.code
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and says in last and untouched(data)


def test_an_output_that_is_a_file(data, weights, capfd):
    data.out = data.folder / "taken"
    data.out.write_text("mine")
    assert predict(data, weights) == 2
    assert "is a file; name a folder" in capfd.readouterr().err
    assert data.out.read_text() == "mine"


def small_disk(folder, size):
    """Mount a file system of `size` at the folder; whether that is allowed here."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                          capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size, options", [("16k", []), ("32k", ["--preview", "0"])])
def test_a_full_disk_leaves_the_older_submission(data, weights, capfd, size, options):
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        draw(data.test / f"n{number}.png", noise)
    disk = data.folder.parent / "disk"
    if not small_disk(disk, size):
        pytest.skip("this machine does not let us mount a small disk")
    try:
        shutil.move(data.out / "submission.csv", disk)
        data.out = disk
        assert predict(data, weights, *options) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert "No space left on device" in said and untouched(data)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_output(data, weights, capfd):
    disk = data.folder.parent / "disk"
    if not small_disk(disk, "64k"):
        pytest.skip("this machine does not let us mount a small disk")
    try:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        data.out = disk
        assert predict(data, weights) == 2
        assert "Read-only file system" in capfd.readouterr().err.strip().splitlines()[-1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_build_refuses_unknown_settings():
    done = subprocess.run([sys.executable, "build.py", "--set", "epoch=3", "--check"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode and "epoch" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- by chance


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc"))
NAMES = st.text(LETTERS, min_size=1, max_size=12).map(lambda text: f"x{text}x")
IMAGES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from(MODES))


def random_image(path, width, height, mode):
    """A noisy image file, with the suffix of a format that has the mode"""
    rng = np.random.default_rng([width, height])
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    else:
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert(mode)
    image.save(path.with_name(path.name + (".tif" if mode == "CMYK" else ".png")))


@settings(max_examples=15, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, IMAGES, min_size=1, max_size=6))
def test_images_of_any_size_mode_and_name_come_out_as_they_went_in(data, weights, images):
    """From file through the network, the CSV and base64 back to a mask."""
    shutil.rmtree(data.test)
    data.test.mkdir()
    for name, (width, height, mode) in images.items():
        random_image(data.test / name, width, height, mode)
    assert predict(data, weights, "--preview", "0") == 0
    assert {name: mask.shape for name, mask in masks_of(data).items()} == {
        name: (height, width) for name, (width, height, _) in images.items()}


def flipped(content, rng):
    """The bytes with some of them changed, cut out or doubled"""
    content = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        at = int(rng.integers(0, len(content)))
        kind = rng.integers(0, 4)
        if kind < 2:
            content[at] = int(rng.integers(0, 256))
        elif kind == 2:
            del content[at:at + int(rng.integers(1, 40))]
        else:
            content[at:at] = content[at:at + 20]
        content = content or bytearray(b"x")
    return bytes(content)


def sources(folder):
    """Small files of each format, to be damaged"""
    folder.mkdir()
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif"):
        image.save(folder / f"a.{suffix}")
    return [(path.suffix, path.read_bytes()) for path in sorted(folder.iterdir())]


def test_damaged_images_are_read_or_refused_in_a_sentence(tmp_path):
    """2,000 images with flipped bytes."""
    rng, refused = np.random.default_rng(1), 0
    originals = sources(tmp_path / "originals")
    for number in range(2000):
        suffix, content = originals[number % len(originals)]
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(flipped(content, rng))
        size = BUNDLE.declared_size(path)
        for read in (lambda: BUNDLE.open_image(path, "RGB"), lambda: BUNDLE.open_alpha(path)):
            try:
                assert read().size == size
            except BUNDLE.UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert 100 < refused < 3900


def test_damaged_tables_are_read_or_refused_in_a_sentence(data):
    """1,000 CSVs with flipped bytes."""
    rng, content, refused = np.random.default_rng(2), data.train.read_bytes(), 0
    for _ in range(1000):
        data.train.write_bytes(flipped(content, rng))
        try:
            assert len(BUNDLE.read_pairs(data.train)) > 0
        except BUNDLE.UserError as error:
            refused += 1
            assert str(data.train) in str(error)
    assert 10 < refused < 990


def test_damaged_checkpoints_are_read_or_refused_in_a_sentence(tmp_path, weights):
    """150 checkpoints with flipped bytes, most of them in the first and last kilobytes, where the
    structure is."""
    rng, content, refused = np.random.default_rng(3), weights.read_bytes(), 0
    path = tmp_path / "damaged.pth"
    for number in range(150):
        part = slice(0, 2000) if number % 3 == 0 else slice(-60_000, None) if (
            number % 3 == 1) else slice(0, None)
        piece = content[part]
        path.write_bytes(flipped(piece, rng) + content[2000:] if part.stop else
                         content[:len(content) - len(piece)] + flipped(piece, rng))
        try:
            BUNDLE.U2NETP().load_state_dict(BUNDLE.read_checkpoint(path).model_state)
        except BUNDLE.UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20


def test_nothing_of_this_file_is_left_mounted():
    assert "/disk " not in Path("/proc/mounts").read_text() if sys.platform == "linux" else True
