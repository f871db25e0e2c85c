"""Test images to masks, through PNG, base64 and CSV and back; what must not cost the other rows."""

import base64
import io
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, EchoRed, draw, plain_predictor
from forked import run_forked


@pytest.fixture
def predict(kernel, small_data, tmp_path):
    """(problems, {name: mask} of the CSV) of these test images, by default all of `small_data`;
    what is noted about them is `run.notes`"""
    def run(tests=None, kinds=(), network=EchoRed(), stop=None, strict=False):
        tests = tests or kernel.list_tests(small_data.test)
        problems, run.notes = kernel.predict_tests(
            plain_predictor(kernel, network), tests, kinds, tmp_path / "out", run.csv,
            stop or kernel.StopWatch(), strict)
        if run.csv is None:
            return problems, None
        return problems, {name: kernel.decode_mask(text) for name, text in
                          kernel.read_rows(run.csv)}

    run.csv, run.out = tmp_path / "out" / "submission.csv", tmp_path / "out"
    return run


def test_rows_are_the_images_masks_in_order(kernel, small_data, predict):
    problems, masks = predict()
    assert problems == [] and list(masks) == ["2", "10", "a.b"]
    for name, mask in masks.items():
        image = kernel.open_image(small_data.test / f"{name}.png", "RGB")
        assert mask.shape == (image.height, image.width)
        alpha = plain_predictor(kernel, EchoRed()).alpha(image)
        assert np.array_equal(mask, kernel.to_uint8(alpha))
    table = pd.read_csv(predict.csv, dtype=str)
    assert list(table.columns) == ["filename", "image_utf"]
    for text in table.image_utf:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (image.format, image.mode) == ("PNG", "L")
    assert os.listdir(predict.out) == ["submission.csv"]


def test_an_unreadable_image_has_a_blank_mask_of_its_size(kernel, small_data, predict):
    """By its header; else of the commonest size, whether it is torn or not there."""
    torn = small_data.test / "3.png"
    draw(torn, np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    torn.write_bytes(torn.read_bytes()[:60])
    (small_data.test / "4.png").write_bytes(b"no picture")
    draw(small_data.test / "5.png", np.full((40, 50, 3), 200, np.uint8))
    tests = [*kernel.list_tests(small_data.test), kernel.TestImage("6", None)]
    problems, masks = predict(tests, ("masks",))
    assert list(masks) == ["2", "3", "4", "5", "10", "a.b", "6"]
    assert [masks[name].shape for name in "346"] == [(70, 90), (40, 50), (40, 50)]
    assert not any(masks[name].any() for name in "346") and masks["5"].min() == 200
    assert [name for name, _ in problems] == ["3", "4", "6"]
    assert f"{torn}: cannot be read" in problems[0][1] and problems[2][1].startswith("there is no")
    assert sorted(path.stem for path in predict.out.rglob("*.png")) == ["10", "2", "5", "a.b"]


def test_without_a_csv_there_are_the_pictures_alone(kernel, predict):
    _, masks = predict(kinds=("masks", "cutouts"))
    predict.csv.unlink()
    predict.csv = None
    assert predict(kinds=("masks", "cutouts")) == ([], None)
    assert sorted(os.listdir(predict.out)) == ["cutouts", "masks"]
    for name, mask in masks.items():
        picture, cutout = (Image.open(predict.out / kind / f"{name}.png")
                           for kind in ("masks", "cutouts"))
        assert np.array_equal(picture, mask) and np.array_equal(cutout.getchannel("A"), mask)


def test_a_picture_that_cannot_be_written_costs_only_itself(kernel, predict):
    (predict.out / "masks" / "10.png").mkdir(parents=True)
    problems, masks = predict(kinds=("masks",))
    assert [name for name, _ in problems] == ["10"]
    assert "masks/10.png: cannot be written (" in problems[0][1]
    assert list(masks) == ["2", "10", "a.b"] and masks["10"].any()
    assert [path.name for path in sorted(predict.out.rglob("masks/*")) if path.is_file()] == [
        "2.png", "a.b.png"]


def test_a_folder_that_cannot_be_made_ends_the_run_at_once(kernel, small_data, tmp_path):
    """Before the first prediction, whether rows or pictures are wanted."""
    class Unwanted(torch.nn.Module):
        def matte(self, x):
            raise AssertionError

    (tmp_path / "file").write_text("")
    out, tests = tmp_path / "file" / "out", kernel.list_tests(small_data.test)
    predictor = plain_predictor(kernel, Unwanted())
    for kinds, csv in (((), out / "submission.csv"), (("masks",), None)):
        with pytest.raises(OSError):
            kernel.predict_tests(predictor, tests, kinds, out, csv, kernel.StopWatch())


def test_a_name_of_any_kind_is_a_row(kernel, small_data, predict):
    """With commas and quotes; one that is no UTF-8 must not cost the other rows."""
    names = ['a,"b"', "\udcff", "c\nd", "é"]
    _, masks = predict([kernel.TestImage(name, small_data.test / "2.png") for name in names])
    assert list(masks) == ['a,"b"', "\\udcff", "c\nd", "é"]


# ---------------------------------------------------------------- the older file


class FailsLater(EchoRed):
    calls = 0

    def matte(self, x):
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError
        return super().matte(x)


def test_a_failure_on_the_way_leaves_the_older_submission(predict):
    predict.out.mkdir()
    predict.csv.write_text("older")
    with pytest.raises(ZeroDivisionError):
        predict(network=FailsLater(), strict=True)
    assert predict.csv.read_text() == "older" and os.listdir(predict.out) == ["submission.csv"]


def test_a_failure_with_one_image_is_that_images_problem(predict):
    """Unless another run follows, which `strict` says."""
    problems, masks = predict(network=FailsLater())
    assert problems == [("a.b", "cannot be predicted (ZeroDivisionError: )")]
    assert masks["2"].any() and masks["10"].any() and not masks["a.b"].any()
    assert masks["a.b"].size > 1


def test_so_does_a_signal(kernel, predict):
    stop = kernel.StopWatch()
    stop.signal = signal.SIGTERM
    predict.out.mkdir()
    predict.csv.write_text("older")
    with pytest.raises(kernel.Interrupted):
        predict(stop=stop)
    assert predict.csv.read_text() == "older" and os.listdir(predict.out) == ["submission.csv"]


# ---------------------------------------------------------------- several processes


ROWS = """
import sys
from pathlib import Path
import torch
from src.runtime.distributed import join_group, shard
from src.runtime.processes import rank, world_size
from src.results.submission import write_rows

join_group()
names = [str(number) for number in range(5)]
rows = ((name, 2 * name, "odd" * (int(name) % 2), ("last",) * (name == "4"))
        for name in shard(names))
problems, notes = write_rows(Path(f"{world_size()}.csv"), rows, len(names))
assert problems == [("1", "odd"), ("3", "odd")], (rank(), problems)
assert notes == [("4", "last")], (rank(), notes)
torch.distributed.destroy_process_group() if world_size() > 1 else None
"""


def test_rows_are_the_same_with_one_and_two_processes(tmp_path):
    """Five rows: the second process has one fewer. All know of all problems."""
    (tmp_path / "rows.py").write_text(ROWS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for start in (["rows.py"], [torch.distributed.run.__file__, "--standalone",
                                "--nproc-per-node=2", "rows.py"]):
        done = run_forked(*start, cwd=tmp_path, environment=environment, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes() == (
        b"filename,image_utf\n0,00\n1,11\n2,22\n3,33\n4,44\n")


# ---------------------------------------------------------------- one mask


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (40, 30)])
def test_a_mask_comes_back_as_it_was(kernel, shape):
    mask = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(kernel.decode_mask(kernel.encode_mask(mask)), mask)


@pytest.mark.parametrize("text", ["", "???", base64.b64encode(b"no image").decode()])
def test_what_is_no_mask_does_not_decode(kernel, text):
    with pytest.raises((OSError, ValueError)):
        kernel.decode_mask(text)


def test_a_mask_in_colours_does_not_decode(kernel):
    with pytest.raises(ValueError, match="not 8-bit grayscale"):
        kernel.decode_mask(kernel.encode_mask(np.zeros((5, 7, 3), np.uint8)))
