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
def written(tmp_path):
    """Two images and a mask for each"""
    rng = np.random.default_rng(0)
    masks, paths = [], []
    for name, size in {"1": (5, 7), "a.b": (40, 30)}.items():
        draw(tmp_path / "test" / f"{name}.png", np.zeros((*size, 3), np.uint8))
        paths.append(tmp_path / "test" / f"{name}.png")
        masks.append((name, rng.integers(0, 256, size, dtype=np.uint8)))
    return masks, paths, tmp_path / "submission.csv"


def write(kernel, masks, paths, csv):
    kernel.write_shard(masks, csv)
    kernel.merge_submission(csv, paths)


def test_round_trip(kernel, written):
    masks, paths, csv = written
    write(kernel, iter(masks), paths, csv)
    table = pd.read_csv(csv, dtype=str)
    assert list(table.columns) == ["filename", "image_utf"]
    assert list(table.filename) == ["1", "a.b"]
    for (_, mask), text in zip(masks, table.image_utf):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(image, mask)
    assert os.listdir(csv.parent) in (["test", csv.name], [csv.name, "test"])


def shifted(masks):
    return [(name, mask[:, :-1]) for name, mask in masks]


@pytest.mark.parametrize("change, says", [
    (lambda masks: masks[:1], "has 1 rows for 2 images"),
    (lambda masks: masks[::-1], "'a.b' where '1' belongs"),
    (lambda masks: masks + masks[:1], "'1' where 'the end' belongs"),
    (shifted, "the mask is 6x5, its image 7x5"),
    (lambda masks: [(n, np.stack([m] * 3, -1)) for n, m in masks], "not 8-bit grayscale"),
])
def test_a_wrong_file_is_refused_and_the_older_one_survives(kernel, written, change, says):
    masks, paths, csv = written
    csv.write_text("older")
    with pytest.raises(kernel.UserError, match=says):
        write(kernel, change(masks), paths, csv)
    assert csv.read_text() == "older"
    assert not list(csv.parent.glob("*.part"))


@pytest.mark.parametrize("text", ["", "???", base64.b64encode(b"no image").decode()])
def test_what_is_no_mask_does_not_decode(kernel, text):
    with pytest.raises((OSError, ValueError)):
        kernel.decode_mask(text)


def test_a_failure_on_the_way_leaves_the_older_submission(kernel, written):
    masks, paths, csv = written
    csv.write_text("older")

    def broken():
        yield masks[0]
        raise MemoryError

    with pytest.raises(MemoryError):
        write(kernel, broken(), paths, csv)
    assert csv.read_text() == "older" and len(os.listdir(csv.parent)) == 2
