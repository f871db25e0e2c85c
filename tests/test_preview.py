"""Pictures: what they show, where."""

import numpy as np
import torch
from PIL import Image


def test_validation_rows_show_image_truth_prediction_difference(kernel, tmp_path):
    truth = np.zeros((64, 64), np.float32)
    truth[:, 32:] = 1
    rows = [(torch.ones(3, 64, 64), np.full_like(truth, 0.5), truth, "some/where/1.png")] * 2
    kernel.save_validation_preview(rows, tmp_path / "preview" / "validation.png")
    picture = np.asarray(Image.open(tmp_path / "preview" / "validation.png").convert("L"))
    cell, gap, label = kernel.CELL, kernel.GAP, kernel.LABEL
    assert picture.shape == (2 * (cell + label + gap) + gap, 5 * (cell + gap) + gap)
    middle = gap + label + cell // 2
    columns = [gap + i * (cell + gap) + cell // 2 for i in range(4)]
    levels = [int(picture[middle, x + 10]) for x in columns]
    assert levels == [255, 255, 128, 128] and picture[middle, columns[1] - 10] == 0
    assert picture[gap:gap + label, gap:gap + 100].min() < 100  # the caption


def test_submission_rows_are_the_decoded_masks(kernel, tmp_path):
    masks = [(f"image {i} with a rather long name that has to be cut", np.full((40, 80), 60 * i))
             for i in range(5)]
    lines = [f"{n},{kernel.encode_mask(m.astype(np.uint8))}" for n, m in masks]
    (tmp_path / "s.csv").write_text("\n".join(["filename,image_utf", *lines]) + "\n")
    kernel.save_submission_preview(tmp_path / "s.csv", tmp_path / "s.png", 3)
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("L"))
    cell, gap, label = kernel.CELL, kernel.GAP, kernel.LABEL
    assert picture.shape == (cell + label + 2 * gap, 3 * (cell + gap) + gap)
    xs = [gap + i * (cell + gap) + cell // 2 for i in range(3)]
    assert [int(picture[gap + label + 20, x]) for x in xs] == [0, 60, 120]
