"""Decoded pairs, batches, and randomness that does not depend on workers."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import draw, write_pairs


def training_set(kernel, csv, seed=1):
    return kernel.TrainingSet(kernel.read_pairs(csv), kernel.JointAugment(64, (0.5, 1.0)), seed)


def test_batches_keep_the_contract(kernel, small_data):
    loader = kernel.make_loader(
        training_set(kernel, small_data.train), 4, kernel.Machine(),
        kernel.ShuffledEpochs(4, 1))
    batch = next(iter(loader))
    assert batch["img"].shape == (4, 3, 64, 64) and batch["img"].dtype == torch.float32
    assert batch["mask"].shape == (4, 1, 64, 64) and batch["mask"].dtype == torch.float32
    assert -1 <= batch["img"].min() < -0.3 and 0.3 < batch["img"].max() <= 1
    assert batch["mask"].min() == 0 and batch["mask"].max() == 1


def epochs(kernel, csv, workers):
    data = training_set(kernel, csv)
    sampler = kernel.ShuffledEpochs(len(data), 1)
    loader = kernel.make_loader(data, 2, kernel.Machine(workers=workers), sampler)
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
    data = kernel.TestSet(kernel.list_tests(small_data.test), (64,))
    item = data[1]
    assert (item["name"], item["full"].shape, item["img"][64].shape, item["problem"]) == (
        "10", (40, 50, 3), (3, 64, 64), "")


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
        backdrop = kernel.draw_backdrop(rng, foreground.size)
        image, alpha = map(np.asarray, kernel.recomposed(foreground, backdrop, rng))
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
    assert 22 < blue < 38  # three quarters of them, give or take


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (33, 200)])
def test_backdrops_of_every_size(kernel, size):
    for seed in range(12):
        backdrop = kernel.draw_backdrop(np.random.default_rng(seed), size)
        assert backdrop.size == size and backdrop.mode == "RGB"
    alpha = Image.new("L", size, 200)
    shadow = kernel.shadowed(backdrop, alpha, np.random.default_rng(0))
    assert shadow.size == size and np.asarray(shadow).mean() < np.asarray(backdrop).mean()


def broken(data, *names):
    for name in names:
        (data.folder / "images" / f"{name}.png").write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_pair_stands_in_for_one_that_cannot_be_read(kernel, small_data, workers):
    broken(small_data, "train2")
    data = training_set(kernel, small_data.train)
    machine = kernel.Machine(workers=workers)
    loader = kernel.make_loader(data, 4, machine, [(1, i) for i in range(4)])
    (batch,) = loader
    assert [os.path.basename(path) for path in batch["path"]] == [
        "train0.png", "train1.png", "train3.png", "train3.png"]
    ((path, reason),) = batch["skipped"]
    assert path.endswith("train2.png") and "cannot be read as an image" in reason


def test_a_training_set_that_cannot_be_read_at_all_ends_the_run(kernel, small_data):
    broken(small_data, *(f"train{i}" for i in range(4)))
    with pytest.raises(kernel.UserError, match="4 training pairs in a row cannot be read"):
        training_set(kernel, small_data.train)[1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_pairs_are_left_out(kernel, tmp_path, workers):
    pairs = kernel.read_pairs(write_pairs(tmp_path, 40, size=8, name="val"))
    (tmp_path / "alphas" / "val7.png").unlink()
    (tmp_path / "images" / "val9.png").write_bytes(b"")
    rest = kernel.without_unreadable(pairs, kernel.Machine(workers=workers))
    assert len(rest) == 38 and pairs[7][0] not in [rest[i][0] for i in range(38)]
    assert sorted(map(os.path.basename, rest.skipped)) == ["val7.png", "val9.png"]
    assert "val7.png: cannot be read" in rest.skipped[pairs[7][0]]
    (tmp_path / "images" / "val11.png").write_bytes(b"")
    with pytest.raises(kernel.UserError, match="3 of 40 validation pairs .* more than 5%"):
        kernel.without_unreadable(pairs, kernel.Machine(workers=workers))


def test_skipped_pairs_are_listed(kernel, tmp_path, capsys):
    kernel.write_skipped(tmp_path, {})
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
    kernel.write_skipped(tmp_path, {"b.png": "is, broken", "a.png": "too"})
    table = pd.read_csv(tmp_path / "skipped.csv")
    assert table.to_dict("list") == {"image_path": ["a.png", "b.png"],
                                     "reason": ["too", "is, broken"]}
    assert "2 files cannot be read" in capsys.readouterr().out


def test_an_opaque_image_is_no_cut_out(kernel, tmp_path):
    draw(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(kernel.UserError, match="a.png: is opaque"):
        kernel.open_layers(tmp_path / "a.png", "")


def test_an_unreadable_test_image_is_black_of_its_declared_or_the_commonest_size(
        kernel, small_data):
    folder = small_data.test
    whole = (folder / "10.png").read_bytes()
    (folder / "10.png").write_bytes(whole[:len(whole) // 2])
    draw(folder / "11.png", np.zeros((64, 64, 3), np.uint8))
    (folder / "12.png").write_bytes(b"no image")
    tests = [*kernel.list_tests(folder), kernel.TestImage("gone", None)]
    items = {item["name"]: item for item in kernel.TestSet(tests, (32,))}
    shapes = {name: item["full"].shape for name, item in items.items()}
    assert shapes == {"2": (64, 64, 3), "10": (40, 50, 3), "11": (64, 64, 3), "12": (64, 64, 3),
                      "a.b": (90, 33, 3), "gone": (64, 64, 3)}
    assert [name for name, item in items.items() if item["problem"]] == ["10", "12", "gone"]
    assert "12.png: cannot be read" in items["12"]["problem"] and not items["12"]["full"].any()
    alone = kernel.TestSet([kernel.TestImage("gone", None)], (32,))
    assert alone[0]["full"].shape == (1024, 1024, 3)


class Always:
    """A numpy Generator that always wants a photograph, and the first one."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def random(self):
        return 0.0

    def integers(self, *bounds, **more):
        return bounds[0] if len(bounds) > 1 else 0

    def __getattr__(self, name):
        return getattr(self.rng, name)


def test_backdrops_are_read_like_every_image(kernel, tmp_path):
    """Upright, and no more than MAX_PIXELS; the next one stands in for one that cannot be read."""
    exif = Image.Exif()
    exif[0x0112] = 6  # its left side is up
    wide = np.zeros((40, 160, 3), np.uint8)
    wide[:, :80] = 255
    Image.fromarray(wide).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:300])
    Image.new("1", (15_001, 10_000)).save(tmp_path / "vast.png")
    paths = [tmp_path / name for name in ("torn.jpg", "vast.png", "turned.jpg")]
    backdrop, unreadable = kernel.choose_backdrop(paths, (20, 80), Always())
    rows = np.asarray(backdrop.convert("L")).mean(axis=1)
    assert rows[:10].mean() > 200 and rows[-10:].mean() < 50
    assert [path for path, _ in unreadable] == [str(path) for path in paths[:2]]
    assert "torn.jpg: cannot be read" in unreadable[0][1]
    assert "more than the 150 million" in unreadable[1][1]
    drawn, unreadable = kernel.choose_backdrop(paths[:2], (20, 80), np.random.default_rng(3))
    assert drawn.size == (20, 80)


def test_an_unreadable_backdrop_is_listed_and_training_goes_on(kernel, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    csv = cut_outs(tmp_path, "image_path\na.png\n")
    pairs = kernel.read_pairs(csv, None, [tmp_path / "torn.jpg"])
    data = kernel.TrainingSet(pairs, kernel.JointAugment(64), seed=0)
    loader = kernel.make_loader(data, 8, kernel.Machine(), [(1 + i, 0) for i in range(8)])
    (batch,) = loader
    assert len(batch["img"]) == 8 and not batch["skipped"]
    assert {path for path, _ in batch["backdrops"]} == {str(tmp_path / "torn.jpg")}
    readable = kernel.without_unreadable(pairs, kernel.Machine())
    assert set(readable.skipped) <= {str(tmp_path / "torn.jpg")}


def test_a_validation_cut_out_keeps_its_backdrop_in_any_subset(kernel, tmp_path):
    """The preview scores a subset; it must show what was scored."""
    cut_outs(tmp_path, "image_path\na.png\n")
    for name in "bcd":
        shutil.copy(tmp_path / "a.png", tmp_path / f"{name}.png")
    csv = tmp_path / "all.csv"
    csv.write_text("image_path\na.png\nb.png\nc.png\nd.png\n")
    pairs = kernel.read_pairs(csv)
    whole, part = kernel.ValidationSet(pairs, 48), kernel.ValidationSet(
        pairs.where(np.array([False, False, True, True])), 48)
    assert torch.equal(whole[2]["img"], part[0]["img"])
    assert torch.equal(whole[3]["img"], part[1]["img"])
    assert not torch.equal(whole[2]["img"], whole[3]["img"])


def test_little_shared_memory_means_fewer_batches_ahead(kernel, tmp_path, monkeypatch, capsys):
    def free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))

    for room, expected, says in ((1000, (4, 2), ""), (80, (4, 1), "1 batch ahead"),
                                 (40, (2, 1), "2 of 4 workers"), (10, (0, 1), "main process")):
        free(room)
        assert kernel.fitting_loader(4, 10, tmp_path) == expected
        said = capsys.readouterr().out
        assert says in said and bool(said) is bool(says)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    free(160)
    assert kernel.fitting_loader(4, 10, tmp_path) == (4, 1)
    assert kernel.fitting_loader(0, 10**9, tmp_path) == (0, 2)
    assert kernel.fitting_loader(4, 10, tmp_path / "none") == (4, 2)  # Windows, macOS
