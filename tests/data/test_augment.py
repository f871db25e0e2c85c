"""Augmentation: geometry jointly, colour on the image only, any image size."""

import numpy as np
import pytest
from PIL import Image


def pair(width, height):
    """An image whose gray level is its own alpha, so that joint geometry keeps them equal."""
    y, x = np.mgrid[:height, :width]
    alpha = ((x * 7 + y * 13) % 256).astype(np.uint8)
    return Image.fromarray(np.stack([alpha] * 3, axis=-1)), Image.fromarray(alpha)


def augmented(augment, layers, seed):
    rng = np.random.default_rng(seed)
    image, alpha = augment.geometry(layers, rng)
    return augment.photometry(image, rng), alpha


@pytest.mark.parametrize("crop_scale", [None, (0.4, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("width, height", [(200, 120), (64, 64), (20, 31), (1, 1)])
def test_geometry_is_joint_at_every_size(kernel, width, height, crop_scale):
    augment = kernel.JointAugment(64, crop_scale, p_rotate=0.7, p_color=0.0)
    for seed in range(12):
        image, alpha = augmented(augment, pair(width, height), seed)
        assert image.size == alpha.size == (64, 64)
        assert (image.mode, alpha.mode) == ("RGB", "L")
        assert np.abs(np.asarray(image, int)[..., 0] - np.asarray(alpha, int)).max() <= 1


def test_colour_touches_the_image_only(kernel):
    plain = augmented(kernel.JointAugment(64, p_color=0.0), pair(100, 100), seed=3)
    jittered = augmented(kernel.JointAugment(64, p_color=1.0), pair(100, 100), seed=3)
    assert np.array_equal(plain[1], jittered[1])
    assert not np.array_equal(plain[0], jittered[0])


def test_without_scale_the_crop_is_a_window_of_the_pixels(kernel):
    image, alpha = pair(100, 90)
    augment = kernel.JointAugment(48, None, p_flip=0, p_rotate=0, p_color=0)
    cropped = np.asarray(augmented(augment, (image, alpha), seed=0)[1])
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(alpha), (48, 48))
    assert (windows == cropped).all(axis=(2, 3)).any()


def test_flip_and_scale_do_what_they_say(kernel):
    image, alpha = pair(80, 80)
    flip = kernel.JointAugment(80, (1.0, 1.0), p_flip=1, p_rotate=0, p_color=0)
    flipped = augmented(flip, (image, alpha), seed=0)[1]
    assert np.array_equal(flipped, np.asarray(alpha)[:, ::-1])
    half = kernel.JointAugment(40, (1.0, 1.0), p_flip=0, p_rotate=0, p_color=0)
    halved = augmented(half, (image, alpha), seed=0)[1]
    assert np.array_equal(halved, alpha.resize((40, 40), Image.Resampling.BILINEAR))


def test_rotation_stays_within_its_range_and_fills_with_nothing(kernel):
    white = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64), 255)
    augment = kernel.JointAugment(64, p_rotate=1.0, p_color=0.0, max_rotate=10)
    for seed in range(8):
        image, alpha = map(np.asarray, augmented(augment, white, seed))
        assert alpha.mean() > 255 * 0.9 and alpha[32, 32] == 255
        assert np.array_equal(alpha, image[..., 1])


def test_a_cut_out_is_resized_with_premultiplied_colours(kernel):
    """Red inside, green where it is transparent: no green may leak into the edge."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 1] = 255
    pixels[16:48, 16:48] = (255, 0, 0, 255)
    augment = kernel.JointAugment(24, (1.0, 1.0), p_rotate=1.0)
    for seed in range(6):
        (layer,) = augment.geometry([Image.fromarray(pixels)], np.random.default_rng(seed))
        red, green, _, alpha = np.moveaxis(np.asarray(layer, int), -1, 0)
        edge = (alpha > 20) & (alpha < 235)
        assert edge.any() and green[edge].max() <= 8 and red[edge].min() >= 240
