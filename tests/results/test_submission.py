"""Masks through PNG, base64 and CSV and back, and the check of the written file."""

import base64
import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import draw


@pytest.fixture
def written(tmp_path, kernel):
    """Two images and a mask for each"""
    rng = np.random.default_rng(0)
    masks, tests = [], []
    for name, size in {"1": (5, 7), "a.b": (40, 30)}.items():
        draw(tmp_path / "test" / f"{name}.png", np.zeros((*size, 3), np.uint8))
        tests.append(kernel.TestImage(name, tmp_path / "test" / f"{name}.png"))
        masks.append((name, rng.integers(0, 256, size, dtype=np.uint8), ""))
    return masks, tests, tmp_path / "submission.csv"


def write(kernel, masks, tests, csv):
    kernel.write_shard(csv, "key", [test.name for test in tests], lambda done: masks)
    kernel.merge_submission(csv, tests)


def test_round_trip(kernel, written):
    masks, tests, csv = written
    write(kernel, iter(masks), tests, csv)
    table = pd.read_csv(csv, dtype=str)
    assert list(table.columns) == ["filename", "image_utf"]
    assert list(table.filename) == ["1", "a.b"]
    for (_, mask, _), text in zip(masks, table.image_utf):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(image, mask)
    assert os.listdir(csv.parent) in (["test", csv.name], [csv.name, "test"])


def shifted(masks):
    return [(name, mask[:, :-1], "") for name, mask, _ in masks]


@pytest.mark.parametrize("change, says", [
    (lambda masks: masks[:1], "has 1 rows for 2 images"),
    (lambda masks: masks[::-1], "'a.b' where '1' belongs"),
    (lambda masks: masks + masks[:1], "'1' where 'the end' belongs"),
    (shifted, "the mask is 6x5, its image 7x5"),
    (lambda masks: [(n, np.stack([m] * 3, -1), "") for n, m, _ in masks], "not 8-bit grayscale"),
])
def test_a_wrong_file_is_refused_and_the_older_one_survives(kernel, written, change, says):
    masks, tests, csv = written
    csv.write_text("older")
    with pytest.raises(kernel.UserError, match=says):
        write(kernel, change(masks), tests, csv)
    assert csv.read_text() == "older"
    assert not list(csv.parent.glob("*.part"))


@pytest.mark.parametrize("text", ["", "???", base64.b64encode(b"no image").decode()])
def test_what_is_no_mask_does_not_decode(kernel, text):
    with pytest.raises((OSError, ValueError)):
        kernel.decode_mask(text)


def broken_after(masks, count):
    yield from masks[:count]
    raise MemoryError


def test_a_failure_on_the_way_leaves_the_older_submission(kernel, written):
    masks, tests, csv = written
    csv.write_text("older")
    with pytest.raises(MemoryError):
        write(kernel, broken_after(masks, 1), tests, csv)
    assert csv.read_text() == "older"


@pytest.mark.parametrize("damage", [lambda rows: rows, lambda rows: rows[:-20],
                                    lambda rows: rows[:20], lambda rows: rows + b"a.b,iVBORw0"])
def test_a_killed_prediction_goes_on_where_it_stopped(kernel, written, damage):
    masks, tests, csv = written
    names = [test.name for test in tests]
    with pytest.raises(MemoryError):
        kernel.write_shard(csv, "key", names, lambda done: broken_after(masks, 1))
    (shard,) = kernel.shard_paths(csv)
    shard.write_bytes(damage(b"key,,\n1," + kernel.encode_mask(masks[0][1]).encode() + b",\n"))
    whole = damage(b"x" * 1000) in (b"x" * 1000, b"x" * 1000 + b"a.b,iVBORw0")
    starts = []

    def rest(done):
        starts.append(done)
        return masks[done:]

    kernel.write_shard(csv, "key", names, rest)
    assert starts == [1 if whole else 0]
    kernel.merge_submission(csv, tests)
    resumed = csv.read_bytes()
    write(kernel, masks, tests, csv)
    assert csv.read_bytes() == resumed


def test_rows_of_other_masks_are_not_taken_up(kernel, written):
    masks, tests, csv = written
    names = [test.name for test in tests]
    kernel.write_shard(csv, "one", names, lambda done: masks)
    starts = []
    kernel.write_shard(csv, "other", names, lambda done: starts.append(done) or masks)
    assert starts == [0]
    kernel.merge_submission(csv, tests)
    assert len(pd.read_csv(csv)) == 2
