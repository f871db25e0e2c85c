"""The CSV contract, decoding, and randomness that does not depend on workers."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import draw


def rewrite(csv, prefix):
    table = pd.read_csv(csv)
    for column in table:
        table[column] = [os.path.join(prefix, name) for name in table[column]]
    table.to_csv(csv, index=False)


def test_paths_may_be_relative_to_the_csv(kernel, small_data):
    pairs = kernel.read_pairs(small_data.train)
    assert len(pairs) == 4 and all(map(os.path.isfile, pairs[3]))


def test_paths_may_be_absolute(kernel, small_data):
    rewrite(small_data.train, small_data.folder)
    assert kernel.read_pairs(small_data.train)[0][0] == str(
        small_data.folder / "images" / "train0.png")


def test_paths_may_be_relative_to_the_working_folder(kernel, small_data, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "train.csv"
    elsewhere.parent.mkdir()
    shutil.move(small_data.train, elsewhere)
    monkeypatch.chdir(small_data.folder)
    assert os.path.isfile(kernel.read_pairs(elsewhere)[0][0])


def test_paths_may_be_relative_to_a_folder_above_the_csv(kernel, small_data):
    splits = small_data.folder / "splits" / "fold0"
    splits.mkdir(parents=True)
    shutil.move(small_data.train, splits / "train.csv")
    assert os.path.isfile(kernel.read_pairs(splits / "train.csv")[0][0])


def test_limit_takes_the_first_rows(kernel, small_data):
    pairs = kernel.read_pairs(small_data.train, limit=2)
    assert [os.path.basename(pairs[i][0]) for i in range(2)] == ["train0.png", "train1.png"]
    assert len(pairs) == 2


@pytest.mark.parametrize("text, named", [
    ("image,alpha_path\na,b\n", "image_path"), ("image_path,alpha_path\n", "no rows"),
    ("image_path,alpha_path\nx.png,y.png\n", "x.png"),
])
def test_a_csv_that_cannot_work_is_refused(kernel, tmp_path, text, named):
    csv = tmp_path / "train.csv"
    csv.write_text(text)
    with pytest.raises(kernel.UserError, match=named) as refusal:
        kernel.read_pairs(csv)
    assert str(csv) in str(refusal.value)


def training_set(kernel, csv, seed=1):
    return kernel.TrainingSet(kernel.read_pairs(csv), kernel.JointAugment(64, (0.5, 1.0)), seed)


def test_batches_keep_the_contract(kernel, small_data):
    loader = kernel.make_loader(
        training_set(kernel, small_data.train), 4, 0, torch.device("cpu"),
        kernel.ShuffledEpochs(4, 1))
    batch = next(iter(loader))
    assert batch["img"].shape == (4, 3, 64, 64) and batch["img"].dtype == torch.float32
    assert batch["mask"].shape == (4, 1, 64, 64) and batch["mask"].dtype == torch.float32
    assert -1 <= batch["img"].min() < -0.3 and 0.3 < batch["img"].max() <= 1
    assert batch["mask"].min() == 0 and batch["mask"].max() == 1


def epochs(kernel, csv, workers):
    data = training_set(kernel, csv)
    sampler = kernel.ShuffledEpochs(len(data), 1)
    loader = kernel.make_loader(data, 2, workers, torch.device("cpu"), sampler)
    for sampler.epoch in (1, 2):
        yield from loader


def test_randomness_is_a_function_of_seed_epoch_and_index(kernel, small_data):
    alone = list(epochs(kernel, small_data.train, workers=0))
    shared = list(epochs(kernel, small_data.train, workers=2))
    assert len(alone) == len(shared) == 4
    for one, other in zip(alone, shared):
        assert one["path"] == other["path"]
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["mask"], other["mask"])
    first, second = (torch.cat([b["img"] for b in part]) for part in (alone[:2], alone[2:]))
    assert not torch.equal(first, second)
    data, other = (training_set(kernel, small_data.train, seed) for seed in (1, 2))
    assert not torch.equal(data[1, 0]["img"], data[2, 0]["img"])
    assert not torch.equal(data[1, 0]["img"], other[1, 0]["img"])


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own(kernel):
    sampler = kernel.ShuffledEpochs(50, 7)
    orders = []
    for sampler.epoch in (1, 2):
        keys = list(sampler)
        assert {epoch for epoch, _ in keys} == {sampler.epoch}
        assert sorted(index for _, index in keys) == list(range(50))
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1]


def test_validation_shows_whole_pairs(kernel, small_data):
    data = kernel.ValidationSet(kernel.read_pairs(small_data.val), 48)
    item = data[0]
    assert item["img"].shape == (3, 48, 48) and item["mask"].shape == (1, 48, 48)
    with Image.open(item["path"]) as image:
        assert torch.allclose(item["img"].mean(), torch.tensor(
            np.asarray(image).mean() / 127.5 - 1).float(), atol=0.01)


def test_alpha_of_another_size_is_resized_and_of_another_shape_refused(kernel, tmp_path):
    draw(tmp_path / "image.png", np.zeros((40, 60, 3), np.uint8))
    draw(tmp_path / "half.png", np.full((20, 30), 255, np.uint8))
    draw(tmp_path / "tall.png", np.full((60, 40), 255, np.uint8))
    image, alpha = kernel.open_layers(tmp_path / "image.png", tmp_path / "half.png")
    assert image.size == alpha.size == (60, 40)
    with pytest.raises(kernel.UserError, match="tall.png"):
        kernel.open_layers(tmp_path / "image.png", tmp_path / "tall.png")


def test_test_images_come_with_name_and_original_size(kernel, small_data):
    data = kernel.TestSet(kernel.list_images(small_data.test), 64)
    item = data[1]
    assert (item["path"], item["full"].shape, item["img"].shape) == (
        "10.png", (40, 50, 3), (3, 64, 64))


def cut_outs(folder, rows):
    """RGBA files and a CSV: a red disc, green where it is transparent."""
    y, x = np.mgrid[:96, :96] / 96 - 0.5
    alpha = (np.clip((0.3 - np.hypot(x, y)) * 20 + 0.5, 0, 1) * 255).astype(np.uint8)
    pixels = np.zeros((96, 96, 4), np.uint8)
    pixels[..., 1], pixels[..., 3] = 255, alpha
    pixels[alpha > 0, :3] = (255, 0, 0)
    draw(folder / "a.png", pixels)
    csv = folder / "magick.csv"
    csv.write_text(rows)
    return csv


@pytest.mark.parametrize("rows", [
    "image_path\na.png\na.png\n", "image_path,alpha_path\na.png,a.png\na.png,\n"])
def test_a_cut_out_brings_its_own_alpha_and_gets_new_backdrops(kernel, tmp_path, rows):
    pairs = kernel.read_pairs(cut_outs(tmp_path, rows))
    assert pairs[0] == pairs[1] == (str(tmp_path / "a.png"), "")
    data = kernel.TrainingSet(pairs, kernel.JointAugment(64, (1.0, 1.0), p_color=0.0), seed=0)
    corners = []
    for epoch in range(1, 6):
        item = data[epoch, 0]
        inside, outside = item["mask"][0] > 0.99, item["mask"][0] < 0.01
        assert item["img"].shape == (3, 64, 64) and inside.any() and outside.any()
        red = torch.tensor([1.0, -1.0, -1.0])[:, None]
        assert (item["img"][:, inside] - red).abs().max() < 0.05
        corners.append(item["img"][:, 0, 0])
    assert torch.stack(corners).std(dim=0).max() > 0.1
    assert torch.equal(data[3, 1]["img"], data[3, 1]["img"])
    whole = kernel.ValidationSet(pairs, 48)
    assert torch.equal(whole[1]["img"], whole[1]["img"])


def test_an_edge_pixel_is_foreground_over_backdrop(kernel):
    """I = alpha F + (1 - alpha) B at every level of alpha, over a photograph of one colour."""
    foreground = Image.merge("RGBA", [
        Image.new("L", (256, 8), level) for level in (250, 100, 10)] + [Image.fromarray(
            np.tile(np.arange(256, dtype=np.uint8), (8, 1)))])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, alpha = map(np.asarray, kernel.recomposed(foreground, (), rng))
        opaque = alpha == 255
        assert (np.abs(image[opaque].astype(int) - (250, 100, 10)) <= 1).all()
        assert np.array_equal(alpha, np.asarray(foreground)[..., 3])


def test_photographs_serve_as_backdrops(kernel, tmp_path):
    draw(tmp_path / "bg" / "blue.png", np.full((90, 160, 3), (0, 0, 255), np.uint8))
    draw(tmp_path / "bg" / "blue.jpg", np.full((300, 200, 3), (0, 0, 255), np.uint8))
    csv = cut_outs(tmp_path, "image_path\na.png\n")
    pairs = kernel.read_pairs(
        csv, None, [tmp_path / "bg" / "blue.png", tmp_path / "bg" / "blue.jpg"])
    data = kernel.TrainingSet(pairs, kernel.JointAugment(64, p_color=0.0), seed=0)
    blue = 0
    for epoch in range(40):
        red, green, corner = data[epoch, 0]["img"][:, 0, 0].tolist()
        blue += red < -0.9 and green < -0.9 and corner > 0
    assert 8 < blue < 32  # half of them, give or take


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (33, 200)])
def test_backdrops_of_every_size(kernel, size):
    for seed in range(12):
        backdrop = kernel.draw_backdrop(np.random.default_rng(seed), size)
        assert backdrop.size == size and backdrop.mode == "RGB"
    alpha = Image.new("L", size, 200)
    shadow = kernel.shadowed(backdrop, alpha, np.random.default_rng(0))
    assert shadow.size == size and np.asarray(shadow).mean() < np.asarray(backdrop).mean()


def test_magick_sized_csvs_open_quickly_and_without_an_object_a_row(kernel, tmp_path):
    """140,000 rows: two arrays, a few dozen bytes a row, nothing for workers to copy."""
    csv = cut_outs(tmp_path, "image_path\na.png\n" + "".join(
        f"images/{i % 256:02x}/{i:032x}.png\n" for i in range(140_000)))
    pairs = kernel.read_pairs(csv)
    assert len(pairs) == 140_001
    assert pairs.images.dtype.kind == pairs.alphas.dtype.kind == "S"
    assert pairs.images.nbytes + pairs.alphas.nbytes < 40e6
    assert pairs[140_000][0].endswith(f"{139_999:032x}.png")
