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
    assert len(pairs) == 4 and os.path.isfile(pairs.images[3]) and os.path.isfile(pairs.alphas[3])


def test_paths_may_be_absolute(kernel, small_data):
    rewrite(small_data.train, small_data.folder)
    assert kernel.read_pairs(small_data.train).images[0] == str(
        small_data.folder / "images" / "train0.png")


def test_paths_may_be_relative_to_the_working_folder(kernel, small_data, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "train.csv"
    elsewhere.parent.mkdir()
    shutil.move(small_data.train, elsewhere)
    monkeypatch.chdir(small_data.folder)
    assert os.path.isfile(kernel.read_pairs(elsewhere).images[0])


def test_paths_may_be_relative_to_a_folder_above_the_csv(kernel, small_data):
    splits = small_data.folder / "splits" / "fold0"
    splits.mkdir(parents=True)
    shutil.move(small_data.train, splits / "train.csv")
    assert os.path.isfile(kernel.read_pairs(splits / "train.csv").images[0])


def test_limit_takes_the_first_rows(kernel, small_data):
    pairs = kernel.read_pairs(small_data.train, limit=2)
    assert [os.path.basename(p) for p in pairs.images] == ["train0.png", "train1.png"]


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
    first, second = torch.cat([b["img"] for b in alone[:2]]), torch.cat([b["img"] for b in alone[2:]])
    assert not torch.equal(first, second)
    data = training_set(kernel, small_data.train)
    assert not torch.equal(data[1, 0]["img"], data[2, 0]["img"])
    assert not torch.equal(data[1, 0]["img"], training_set(kernel, small_data.train, 2)[1, 0]["img"])


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
    image, alpha = kernel.open_pair(tmp_path / "image.png", tmp_path / "half.png")
    assert image.size == alpha.size == (60, 40)
    with pytest.raises(kernel.UserError, match="tall.png"):
        kernel.open_pair(tmp_path / "image.png", tmp_path / "tall.png")


def test_test_images_come_with_name_and_original_size(kernel, small_data):
    data = kernel.TestSet(kernel.list_images(small_data.test), 64)
    item = data[1]
    assert (item["path"], item["size"], item["img"].shape) == ("10.png", (50, 40), (3, 64, 64))
