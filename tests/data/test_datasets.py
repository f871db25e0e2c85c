"""Decoded pairs, batches, and randomness that does not depend on workers."""

import operator
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import draw, set_module, write_pairs


def training_set(kernel, csv, seed=1):
    return kernel.TrainingSet(kernel.read_pairs(csv), kernel.JointAugment(64, (0.5, 1.0)), seed)


def applied(data, batch, photographs=()):
    """img and mask of a batch, as the device makes them"""
    return data.augment.apply(batch, photographs, torch.device("cpu"))


def made(kernel, data, *keys, photographs=()):
    return applied(data, kernel.collated([data[key] for key in keys]), photographs)


def test_batches_keep_the_contract(kernel, small_data):
    data = training_set(kernel, small_data.train)
    loader = kernel.make_loader(data, 4, kernel.Machine(), kernel.ShuffledEpochs(4, 1))
    batch = next(iter(loader))
    assert batch["layers"].dtype == torch.uint8 and batch["layers"].shape == (4, 128, 128, 4)
    sent = sum(batch[name].nbytes for name in ("layers", "tile"))
    assert sent == 4 * data.item_bytes
    batch = applied(data, batch)
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
        for name, value in one.items():
            same = torch.equal if torch.is_tensor(value) else operator.eq
            assert same(value, other[name]), name
    first, second = (torch.cat([b["map"] for b in part]) for part in (alone[:2], alone[2:]))
    assert not torch.equal(first, second)
    data, other = (training_set(kernel, small_data.train, seed) for seed in (1, 2))
    assert not np.array_equal(data[1, 0]["map"], data[2, 0]["map"])
    assert not np.array_equal(data[1, 0]["map"], other[1, 0]["map"])


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own(kernel):
    sampler = kernel.ShuffledEpochs(50, 7)
    orders = []
    for sampler.epoch in (1, 2):
        keys = list(sampler)
        assert {number for number, _ in keys} == {sampler.epoch}
        assert sorted(index for _, index in keys) == list(range(50))
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1]


def test_short_epochs_go_through_all_rows_before_one_comes_again(kernel, monkeypatch):
    whole = kernel.ShuffledEpochs(10, 7)
    passes = [key for whole.epoch in (1, 2, 3, 4) for key in whole]
    short, keys = kernel.ShuffledEpochs(10, 7, 4), []
    for short.epoch in range(1, 11):
        assert len(short) == 4
        keys += short
    assert keys == passes and keys[8:12][0][0] == 1 and keys[8:12][3][0] == 2
    short.epoch, short.done = 3, 3
    assert list(short) == keys[11:12] and len(short) == 1
    short.done = 6  # two batches of 3, of which the second had one row
    assert list(short) == [] and len(short) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        sampler = kernel.ShuffledEpochs(10, 7, 3)  # an even number, so that all have as many
        shares.append([key for sampler.epoch in (1, 2) for key in sampler])
    assert [key for both in zip(*shares) for key in both] == keys[:8]


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
def test_a_cut_out_brings_its_own_alpha_and_gets_new_backdrops(
        kernel, tmp_path, monkeypatch, rows):
    set_module(kernel, monkeypatch, "P_RECOLOURED", 0.0)
    pairs = kernel.read_pairs(cut_outs(tmp_path, rows))
    assert pairs[0] == pairs[1] == (str(tmp_path / "a.png"), "")
    data = kernel.TrainingSet(pairs, kernel.JointAugment(64, (1.0, 1.0), p_color=0.0), seed=0)
    corners = []
    for epoch in range(1, 6):
        batch = made(kernel, data, (epoch, 0))
        image, mask = batch["img"][0], batch["mask"][0, 0]
        inside, outside = mask > 0.99, mask < 0.01
        assert image.shape == (3, 64, 64) and inside.any() and outside.any()
        red = torch.tensor([1.0, -1.0, -1.0])[:, None]
        assert (image[:, inside] - red).abs().max() < 0.05
        corners.append(image[:, 0, 0])
    assert torch.stack(corners).std(dim=0).max() > 0.1
    assert torch.equal(made(kernel, data, (3, 1))["img"], made(kernel, data, (3, 1))["img"])
    whole = kernel.ValidationSet(pairs, 48)
    assert torch.equal(whole[1]["img"], whole[1]["img"])


def test_an_edge_pixel_is_foreground_over_backdrop(kernel):
    """I = alpha F + (1 - alpha) B at every level of alpha; a shadow only darkens B."""
    alpha = torch.linspace(0, 1, 256).repeat(2, 1, 8, 1)
    colour = torch.tensor([0.98, 0.4, 0.04])[:, None, None]
    backdrop = torch.rand(2, 3, 8, 256, generator=torch.Generator().manual_seed(0))
    batch = surroundings(kernel, 2, shadow=[[0, 0.02, 0, 0], [0.5, 0.02, 0, 0]])
    lit, dim = kernel.composited(alpha * colour, alpha, backdrop, batch)
    assert torch.allclose(lit, (alpha * colour + (1 - alpha) * backdrop)[0], atol=1e-6)
    assert (dim <= (alpha * colour + (1 - alpha) * backdrop)[1] + 1e-6).all()
    assert torch.allclose(dim[:, :, 255], colour[..., 0].expand(-1, 8), atol=1e-5)


def surroundings(kernel, count, **values):
    """A batch of `no_surroundings` with some of its values replaced"""
    none = {name: torch.from_numpy(value).expand(count, *value.shape)
            for name, value in kernel.no_surroundings().items()}
    return none | {name: torch.tensor(value).float() for name, value in values.items()}


def block(size=128):
    """alpha [1,1,size,size] of a solid block that stands on row 3/4 of the frame"""
    alpha = torch.zeros(1, 1, size, size)
    alpha[..., size // 4:3 * size // 4, size // 3:2 * size // 3] = 1
    return alpha


def test_a_studios_floor_has_a_shadow_and_a_reflection_at_the_foot(kernel):
    alpha, red = block(), torch.tensor([1.0, 0, 0])[:, None, None]
    white = torch.ones(1, 3, 128, 128)
    shadow, mirror = (kernel.composited(alpha * red, alpha, white, surroundings(
        kernel, 1, floor=[floor]))[0] for floor in ([0.6, 0.3, 0, 0.01, 0], [0, 1, 0, 1, 0.3]))
    for image in (shadow, mirror):
        assert torch.equal(image[:, 40:90, 60:70], red.expand(3, 50, 10))  # the subject is whole
    beside = shadow.mean(dim=0)[:, 41]  # of the subject, to whose left the shadow spreads
    assert beside[90] < 0.9 and beside[40] > 0.99 and shadow[:, 110:].min() > 0.95
    assert (shadow.max(dim=0).values - shadow.min(dim=0).values)[:, :40].max() < 1e-6  # grey
    below = mirror[:, 96:128, 64]
    assert below[0].min() == 1 and below[1, 0] < 0.75 < 0.95 < below[1, 31]  # red, and fades
    assert mirror[:, :96, :40].min() == 1


def test_a_tint_moves_the_subject_towards_its_backdrop_and_leaves_alpha(kernel):
    alpha, white = block(), torch.ones(1, 3, 128, 128)
    image = kernel.composited(alpha * 0.2, alpha, white, surroundings(
        kernel, 1, tint=[[1.0, 1.0, 1.0, 0.75]]))
    assert image[..., 64, 64].allclose(torch.tensor(0.8)) and image[..., 5, 5].min() == 1


def test_painted_backdrops_are_a_studio_as_often_as_shops_have_one(kernel):
    """At least a third of what is painted is even and light; colours of chance hardly ever are."""
    light = []
    for seed in range(300):
        tile = kernel.sample_surroundings(np.random.default_rng(seed), False)["tile"]
        light.append(tile.min() > 180 and np.ptp(tile.mean(axis=(0, 1))) < 15)
    assert 0.33 < np.mean(light) < 0.6
    plain = [kernel.paint_tile("plain", np.random.default_rng(seed))[0] for seed in range(100)]
    assert np.mean([tile.min() > 180 for tile in plain]) < 0.1


def test_a_shadow_is_the_blurred_shifted_alpha(kernel):
    alpha = torch.zeros(3, 1, 128, 128)
    alpha[:, :, 48:80, 48:80] = 1
    shadows = torch.tensor([[0, 0.03, 0.05, 0], [0.5, 0.01, 0, 0], [0.5, 0.03, 0.05, -0.05]])
    none, sharp, moved = 1 - kernel.lit(alpha, shadows)[:, 0]
    assert none.abs().max() < 1e-6
    assert sharp[64, 64] > 0.49 and sharp[20, 20] < 0.001 and sharp.max() <= 0.5 + 1e-5
    y, x = np.mgrid[:128, :128]
    weights = moved.numpy() / moved.sum().item()
    assert (weights * x).sum() == pytest.approx(63.5 + 0.05 * 128, abs=0.2)
    assert (weights * y).sum() == pytest.approx(63.5 - 0.05 * 128, abs=0.2)
    spread = np.sqrt((weights * (x - 63.5 - 6.4) ** 2).sum())
    assert spread == pytest.approx(np.hypot(32 / np.sqrt(12), 0.03 * 128), rel=0.05)


def test_photographs_serve_as_backdrops(kernel, tmp_path):
    draw(tmp_path / "bg" / "blue.png", np.full((90, 160, 3), (0, 0, 255), np.uint8))
    draw(tmp_path / "bg" / "blue.jpg", np.full((300, 200, 3), (0, 0, 255), np.uint8))
    csv = cut_outs(tmp_path, "image_path\na.png\n")
    paths = (tmp_path / "bg" / "blue.png", tmp_path / "bg" / "blue.jpg")
    data = kernel.TrainingSet(
        kernel.read_pairs(csv, None, paths), kernel.JointAugment(64, p_color=0.0), seed=0)
    pool = kernel.PhotographPool(paths, 0, 128, torch.device("cpu")).for_epoch(1)
    assert sorted(tuple(each.shape) for each in pool) == [(3, 90, 160), (3, 192, 128)]
    images = made(kernel, data, *((epoch, 0) for epoch in range(40)), photographs=pool)["img"]
    red, green, corner = images[:, :, 0, 0].T
    blue = ((red < -0.9) & (green < -0.9) & (corner > 0)).sum()
    assert 12 < blue < 28  # half of them, give or take


def test_a_view_is_a_part_of_the_photograph(kernel):
    y, x = np.mgrid[:60, :90]
    photograph = torch.from_numpy(np.stack([y * 4, x * 2, x * 0]).astype(np.uint8))
    for view, rows, columns in (((0, 1, 0.5, 0, 0), (0, 60), (15, 75)),
                                ((0, 0.5, 1, 1, 1), (30, 60), (89, 59))):
        part = kernel.cropped(photograph, view, (30, 30)) * 255
        assert part[0, 0, 0] / 4 == pytest.approx(rows[0] + 0.5, abs=1)
        assert part[0, -1, 0] / 4 == pytest.approx(rows[1] - 1.5, abs=1)
        assert part[1, 0, 0] / 2 == pytest.approx(columns[0], abs=1.5)
        assert part[1, 0, -1] / 2 == pytest.approx(columns[1], abs=2)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (33, 200)])
def test_backdrops_of_every_size(kernel, size):
    for seed in range(12):
        backdrop = kernel.paint_backdrop(np.random.default_rng(seed), size)
        assert backdrop.size == size and backdrop.mode == "RGB"


def test_tiles_repeat_without_a_seam(kernel):
    """Seen once over and twice over, a tile is the same; at its edge it goes on with its start."""
    rng = np.random.default_rng(0)
    tile = torch.from_numpy(np.asarray(kernel.smooth_colours(rng, (128, 128), 9)).copy())[None]
    once = kernel.tiled(tile, torch.eye(2, 3)[None], (128, 128))
    twice = kernel.tiled(tile, 2 * torch.eye(2, 3)[None], (256, 256))[0]
    assert torch.allclose(once[0], tile[0].permute(2, 0, 1) / 255, atol=1e-4)
    shifted = once[0].roll((64, 64), dims=(1, 2))
    for part in (twice[:, :128, :128], twice[:, 128:, :128], twice[:, 128:, 128:]):
        assert torch.allclose(part, shifted, atol=1e-4)


def test_where_there_are_more_photographs_than_room_each_epoch_has_its_own(
        kernel, tmp_path, monkeypatch):
    """Seed and epoch decide which, whether they were read ahead or not, and all come in time."""
    for level in range(6):
        draw(tmp_path / f"{level}.png", np.full((8, 8, 3), level, np.uint8))
    paths = sorted(tmp_path.iterdir())
    set_module(kernel, monkeypatch, "POOL_BYTES", 2 * 8 * 8 * 3 - 1)

    def levels(photographs):
        return [int(each[0, 0, 0]) for each in photographs]

    ahead, late = (kernel.PhotographPool(paths, 5, 8, torch.device("cpu")) for _ in range(2))
    first, reads = levels(ahead.for_epoch(1)), []
    real_read = ahead.read
    ahead.read = lambda epoch: reads.append(epoch) or real_read(epoch)
    for _ in range(3):  # with every batch
        ahead.prepare(2)
    second = levels(ahead.for_epoch(2))
    assert len(first) == len(second) == 2 and second == levels(late.for_epoch(2)) != first
    assert second == levels(ahead.for_epoch(2)) and reads == [2]
    seen = {level for epoch in range(1, 20) for level in levels(ahead.for_epoch(epoch))}
    assert seen == set(range(6))


def broken(data, *names):
    for name in names:
        (data.folder / "images" / f"{name}.png").write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_another_pair_stands_in_for_one_that_cannot_be_read(kernel, small_data, workers):
    broken(small_data, "train2")
    data = training_set(kernel, small_data.train)
    machine = kernel.Machine(workers=workers)
    loader = kernel.make_loader(data, 4, machine, [(1, i) for i in range(4)])
    (batch,) = loader
    names = [os.path.basename(path) for path in batch["path"]]
    sound = ["train0.png", "train1.png", "train3.png"]
    assert [*names[:2], names[3]] == sound and names[2] in sound
    (path, reason), *_ = batch["skipped"]
    assert path.endswith("train2.png") and "cannot be read as an image" in reason


def test_many_missing_neighbours_are_borne_if_their_share_is_small(kernel, tmp_path):
    """Thirty in a row of 600, as where one folder is missing: stand-ins come from the whole set."""
    pairs = kernel.read_pairs(write_pairs(tmp_path, 600, size=4))
    for number in range(100, 130):
        (tmp_path / "images" / f"train{number}.png").unlink()
    data = kernel.TrainingSet(pairs, kernel.JointAugment(32, (1.0, 1.0)), seed=0)
    stand_ins = {data[1, index]["path"] for index in range(100, 130)}
    assert len(stand_ins) > 20


def test_a_training_set_that_cannot_be_read_at_all_ends_the_run(kernel, small_data):
    broken(small_data, *(f"train{i}" for i in range(4)))
    with pytest.raises(kernel.UserError, match="4 training pairs in a row cannot be read"):
        training_set(kernel, small_data.train)[1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_pairs_are_left_out(kernel, tmp_path, workers):
    pairs = kernel.read_pairs(write_pairs(tmp_path, 40, size=8, name="val"))
    (tmp_path / "alphas" / "val7.png").unlink()
    (tmp_path / "images" / "val9.png").write_bytes(b"")
    rest = kernel.without_unreadable(pairs)
    assert len(rest) == 38 and pairs[7][0] not in [rest[i][0] for i in range(38)]
    assert sorted(map(os.path.basename, rest.skipped)) == ["val7.png", "val9.png"]
    assert "val7.png: cannot be read" in rest.skipped[pairs[7][0]]
    (tmp_path / "images" / "val11.png").write_bytes(b"")
    with pytest.raises(kernel.UserError, match="3 of 40 validation pairs .* more than 5%"):
        kernel.without_unreadable(pairs)


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
    pool = kernel.PhotographPool(paths, 0, 40, torch.device("cpu"))
    (photograph,) = pool.for_epoch(1)
    assert photograph.shape == (3, 160, 40)
    assert photograph[:, :70].float().mean() > 200 and photograph[:, 90:].float().mean() < 50
    assert set(pool.unreadable) == {str(path) for path in paths[:2]}
    assert "torn.jpg: cannot be read" in pool.unreadable[str(paths[0])]
    assert "more than the 150 million" in pool.unreadable[str(paths[1])]
    cutout = Image.new("RGBA", (20, 80))  # nothing before the backdrop
    for seed in range(9):
        image, _, unreadable = kernel.recomposed(cutout, paths, np.random.default_rng(seed))
        listed = [path for path, _ in unreadable]
        assert listed in ([], [str(paths[0]), str(paths[1])], [str(paths[1])])
        image, _, unreadable = kernel.recomposed(cutout, paths[:2], np.random.default_rng(seed))
        assert image.size == (20, 80) and len(unreadable) in (0, 2)


def test_backdrops_none_of_which_can_be_read_are_an_error(kernel, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    pool = kernel.PhotographPool([tmp_path / "torn.jpg"], 0, 64, torch.device("cpu"))
    with pytest.raises(kernel.UserError, match="none of the backdrops can be read.*torn.jpg"):
        pool.for_epoch(1)
    csv = cut_outs(tmp_path, "image_path\na.png\n")
    pairs = kernel.read_pairs(csv, None, (tmp_path / "torn.jpg",))
    readable = kernel.without_unreadable(pairs)
    assert set(readable.skipped) <= {str(tmp_path / "torn.jpg")} and len(readable) == 1


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
