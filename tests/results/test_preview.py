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


def test_the_scores_of_all_stand_above_the_pictures(kernel, tmp_path):
    truth = np.zeros((64, 64), np.float32)
    rows = [(torch.ones(3, 64, 64), truth, truth, "1.png")]
    scores = [{"mse": 0.001, "sad": 1.0}] * 30 + [{"mse": 0.1, "sad": 3.0}] * 10
    for name, given in (("with.png", scores), ("without.png", [])):
        kernel.save_validation_preview(rows, tmp_path / name, given)
    above, below = (np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png"))
    head, gap = kernel.HEAD, kernel.GAP
    assert above.shape[0] == below.shape[0] + head
    assert np.array_equal(above[head:], below)
    bars = (above[:head] == (0x1f, 0x5f, 0xbf)).all(axis=2).sum(axis=0)
    first, last = bars[gap + 10], bars[gap + 19 * ((5 * (kernel.CELL + gap) - gap) // 20) + 10]
    assert first > 2.5 * last > 0 and not bars[400:800].any()  # 30 low, 10 high, none between


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


def test_the_worst_the_middling_and_the_best_are_shown(kernel):
    errors = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.4]
    assert kernel.spread(errors, 3) == [(2, "worst"), (6, "middle"), (1, "best")]
    assert kernel.spread(errors, 6) == [
        (2, "worst"), (4, "worst"), (0, "middle"), (6, "middle"), (5, "best"), (1, "best")]
    assert kernel.spread(errors, 1) == [(2, "worst")]
    assert sorted(index for index, _ in kernel.spread(errors, 99)) == list(range(7))
    assert kernel.spread([], 6) == []


def test_the_curves_stay_in_their_frames(kernel, tmp_path):
    for epochs in (1, 2, 50):
        metrics = [{"epoch": e + 1, "train_loss": 1 / (e + 1), "val_loss": 0.9, "train_mse": 0.1,
                    "val_mse": 0.2 / (e + 1), "lr": 1e-4} for e in range(epochs)]
        kernel.save_training_preview(metrics, tmp_path / "t.png")
        picture = np.asarray(Image.open(tmp_path / "t.png"))
        width, height = kernel.PLOT
        assert picture.shape == (3 * height, width, 3)
        below = picture[height - 33:height, 80:width - 20]  # ticks and title: black on white
        assert (below.max(axis=2) - below.min(axis=2)).max() == 0


def test_a_cut_out_stands_on_a_checkerboard(kernel):
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    image = Image.new("RGB", (64, 64), (9, 99, 9))
    cut = np.asarray(kernel.on_a_board(image, Image.fromarray(alpha)))
    assert (cut[10, 200:, :3] == (9, 99, 9)).all() and set(cut[:, :100, 0].ravel()) == {200, 255}


def test_pictures_never_cost_the_run(kernel, tmp_path, capsys):
    """Metrics of nothing and a submission that is not there."""
    kernel.draw_previews(3, [], [], [{"nothing": 1}], [], tmp_path)
    said = capsys.readouterr().out
    assert "preview/training.png was not drawn" in said
    assert "preview/submission.png was not drawn" in said
