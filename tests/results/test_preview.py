"""Pictures: what they show, where."""

import numpy as np
from PIL import Image


def test_validation_rows_show_image_truth_prediction_difference(kernel, tmp_path):
    truth = np.zeros((64, 64), np.float32)
    truth[:, 32:] = 1
    white = Image.new("RGB", (64, 64), "white")
    rows = [(white, np.full_like(truth, 0.5), truth, "some/where/1.png")] * 2
    kernel.save_validation_preview(rows, tmp_path / "preview" / "validation.png")
    picture = np.asarray(Image.open(tmp_path / "preview" / "validation.png").convert("L"))
    cell, gap, label = kernel.CELL, kernel.GAP, kernel.LABEL
    assert picture.shape == (2 * (cell + label + gap) + gap, 5 * (cell + gap) + gap)
    middle = gap + label + cell // 2
    columns = [gap + i * (cell + gap) + cell // 2 for i in range(4)]
    levels = [int(picture[middle, x + 10]) for x in columns]
    assert levels == [255, 255, 128, 128] and picture[middle, columns[1] - 10] == 0
    assert picture[gap:gap + label, gap:gap + 100].min() < 100  # the caption


def test_test_images_stand_beside_their_mattes_and_cut_outs(kernel, tmp_path):
    masks = [(f"image {i} with a rather long name that has to be cut", np.full((40, 80), 60 * i))
             for i in range(5)]
    lines = [f"{n},{kernel.encode_mask(m.astype(np.uint8))}" for n, m in masks]
    (tmp_path / "s.csv").write_text("\n".join(["filename,image_utf", *lines]) + "\n")
    Image.new("RGB", (80, 40), (0, 200, 0)).save(tmp_path / "green.png")
    tests = [kernel.TestImage(name, tmp_path / "green.png") for name, _ in masks]
    tests[1] = kernel.TestImage(masks[1][0], tmp_path / "none.png")
    kernel.save_submission_preview(tmp_path / "s.csv", tmp_path / "s.png", tests, 3)
    picture = np.asarray(Image.open(tmp_path / "s.png"))
    cell, gap, label = kernel.CELL, kernel.GAP, kernel.LABEL
    assert picture.shape == (3 * (cell + label + gap) + gap, 3 * (cell + gap) + gap, 3)
    xs = [gap + i * (cell + gap) + cell // 2 for i in range(3)]
    ys = [gap + label + i * (cell + label + gap) + 20 for i in range(3)]
    assert [tuple(picture[y, xs[0]]) for y in ys] == [(0, 200, 0), (255,) * 3, (0, 200, 0)]
    assert [tuple(picture[y, xs[1]]) for y in ys] == [(0,) * 3, (60,) * 3, (120,) * 3]
    assert picture[ys[0], xs[2], 0] >= 200 > picture[ys[2], xs[2], 0]  # checkerboard, greenish


def test_a_cut_out_stands_on_a_checkerboard(kernel):
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    image = Image.new("RGB", (64, 64), (9, 99, 9))
    cut = np.asarray(kernel.on_a_board(image, Image.fromarray(alpha)))
    assert (cut[10, 200:, :3] == (9, 99, 9)).all() and set(cut[:, :100, 0].ravel()) == {200, 255}
