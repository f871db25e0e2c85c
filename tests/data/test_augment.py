"""Augmentation: geometry jointly, colour on the image only, any image size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF


def grey_pair(side, width=None):
    """Layers uint8 [side,side,4] whose grey level is its own alpha, so that joint geometry keeps
    them equal."""
    y, x = np.mgrid[:side, :width or side]
    alpha = ((x * 7 + y * 13) % 256).astype(np.uint8)
    return np.stack([alpha] * 4, axis=-1)


def batch_of(kernel, augment, layers, seeds, is_cutout=False):
    """A batch of the same layers, drawn with different seeds."""
    items = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        drawn = augment.sample(*layers.shape[1::-1], rng)
        left, top = drawn.pop("window")
        side = min(layers.shape[:2])
        items.append({"layers": layers[top:top + side, left:left + side].copy(), "path": str(seed),
                      "is_cutout": is_cutout, **drawn, **kernel.no_surroundings()})
    return kernel.collated(items)


def augmented(kernel, augment, layers, seeds=range(8), **more):
    """(images, alphas) in 0..1"""
    made = augment.apply(batch_of(kernel, augment, layers, seeds, **more), [], torch.device("cpu"))
    return (made["img"] + 1) / 2, made["mask"]


@pytest.mark.parametrize("crop_scale", [(0.4, 1.0), (1.0, 1.0), (0.2, 0.9)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1)])
def test_geometry_is_joint_at_every_shape(kernel, shape, crop_scale):
    augment = kernel.JointAugment(64, crop_scale, p_rotate=0.7, p_color=0.0)
    side = augment.source_side
    layers = grey_pair(side * shape[0], side * shape[1])
    images, alphas = augmented(kernel, augment, layers)
    assert images.shape == (8, 3, 64, 64) and alphas.shape == (8, 1, 64, 64)
    assert (images - alphas).abs().max() < 1e-5 and alphas.std() > 0.1


def test_colour_touches_the_image_only(kernel):
    augment = kernel.JointAugment(64, p_color=0.0)
    layers = grey_pair(augment.source_side)
    plain = augmented(kernel, augment, layers, [3])
    jittered = augmented(kernel, replace(augment, p_color=1.0), layers, [3])
    assert torch.equal(plain[1], jittered[1])
    assert not torch.equal(plain[0], jittered[0])


def test_colour_is_changed_as_torchvision_does_it(kernel):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor(
        [[1.15, 0.85, 1.1], [0.85, 1.15, 0.9], [1, 1, 1], [1.1, 1, 1], [1, 1, 0.85]])
    changed = kernel.recoloured(images.clone(), factors)
    for image, result, (brightness, contrast, saturation) in zip(images, changed, factors.tolist()):
        image = TF.adjust_contrast(TF.adjust_brightness(image, brightness), contrast)
        assert torch.allclose(result, TF.adjust_saturation(image, saturation), atol=2e-3)
    assert torch.allclose(changed[2], images[2], atol=1e-6)


def test_flip_and_scale_do_what_they_say(kernel):
    augment = kernel.JointAugment(96, (1.0, 1.0), p_flip=1, p_rotate=0, p_color=0)
    layers = grey_pair(96)
    levels = torch.from_numpy(layers[..., 3]).float() / 255
    flipped = augmented(kernel, augment, layers, [0])[1][0, 0]
    assert torch.allclose(flipped, levels.flip(-1), atol=1e-4)
    half = replace(augment, size=48, p_flip=0)
    halved = augmented(kernel, half, layers, [0])[1][0, 0]
    assert torch.allclose(halved, levels.view(48, 2, 48, 2).mean(dim=(1, 3)), atol=1e-4)


def test_a_crop_shows_its_share_of_the_image_anywhere(kernel):
    """On a ramp a crop's extent and place can be read off."""
    augment = kernel.JointAugment(64, (0.5, 0.5), p_flip=0, p_rotate=0, p_color=0)
    ramp = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 128, 0)
    _, alphas = augmented(kernel, augment, np.repeat(ramp, 4, axis=2), range(64))
    left, right = alphas[:, 0, 5, 0], alphas[:, 0, 5, -1]
    assert torch.allclose(right - left, torch.full_like(left, 63 / 256), atol=0.01)
    assert left.min() < 0.06 and right.max() > 0.94


def test_strong_reduction_averages(kernel):
    """A fine checkerboard becomes grey and not a moiré."""
    augment = kernel.JointAugment(32, (0.2, 1.0), p_flip=0, p_rotate=0, p_color=0)
    side = augment.source_side
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    _, alphas = augmented(kernel, replace(augment, crop_scale=(1.0, 1.0)),
                          np.repeat(board[..., None], 4, axis=2), [0])
    assert (alphas - 0.5).abs().max() < 0.2


def test_rotation_stays_within_its_range_and_fills_with_nothing(kernel):
    augment = kernel.JointAugment(64, (1.0, 1.0), p_rotate=1.0, p_color=0.0, max_rotate=10)
    layers = np.full((64, 64, 4), 255, np.uint8)
    images, alphas = augmented(kernel, augment, layers)
    for image, alpha in zip(images, alphas):
        assert alpha.mean() > 0.9 and alpha[0, 32, 32] > 0.999
        assert torch.allclose(image, alpha.expand(3, -1, -1), atol=1e-5)
    assert alphas[:, 0, 0, 0].min() < 0.5
    tilted = augmented(kernel, augment, np.tile(np.uint8(  # white below a line
        255 * (np.arange(64) > 31))[:, None, None], (1, 64, 4)), range(64))[1]
    middle = tilted[:, 0, 12:52].sum(dim=1)
    slopes = (middle[:, 20] - middle[:, 43]) / 23
    largest = math.degrees(math.atan(slopes.abs().max()))
    assert 8 < largest < 10.5 and slopes.min() < -0.1 and slopes.max() > 0.1


def test_a_cut_out_is_resampled_with_premultiplied_colours(kernel):
    """Red inside, green where it is transparent: no green may leak into the edge."""
    layers = np.zeros((64, 64, 4), np.uint8)
    layers[..., 1] = 255
    layers[16:48, 16:48] = (255, 0, 0, 255)
    augment = kernel.JointAugment(24, (1.0, 1.0), p_rotate=1.0, p_color=0.0)
    images, alphas = augmented(kernel, augment, layers, is_cutout=True)  # before black
    edge = ((alphas > 0.1) & (alphas < 0.9))[:, 0]
    assert edge.any() and images[:, 1][edge].max() < 1e-5
    assert torch.allclose(images[:, 0][edge], alphas[:, 0][edge], atol=1e-5)


def test_reduced_images_are_no_smaller_than_the_smallest_crop(kernel):
    for size, low in ((320, 0.7), (512, 0.5), (64, 1.0), (256, 0.3)):
        side = kernel.JointAugment(size, (low, 1.0)).source_side
        assert side * low >= size and side % 32 == 0 and (side - 32) * low < size


def test_a_batch_can_be_smaller_than_the_largest(kernel):
    """The same crop at half the size: the mean of each 2x2 pixels, but for resampling."""
    augment = kernel.JointAugment(128, (1.0, 1.0), p_color=0, p_rotate=0)
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([x, y, 128 - x, 255 * (np.hypot(x - 64, y - 64) < 40)], axis=2)
    item = {"layers": torch.from_numpy(smooth.astype(np.uint8)), "is_cutout": torch.tensor(False),
            **augment.sample(128, 128, np.random.default_rng(0)), **kernel.no_surroundings()}
    items = torch.utils.data.default_collate([{**item, "path": "a"}])
    whole = augment.apply(items, [], "cpu")
    half = augment.apply(items, [], "cpu", 64)
    assert half["img"].shape == (1, 3, 64, 64) and half["mask"].shape == (1, 1, 64, 64)
    reduced = torch.nn.functional.avg_pool2d(whole["img"], 2)
    assert (half["img"] - reduced).abs().max() < 0.02
