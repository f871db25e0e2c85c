"""The drawn stand-in set."""

import numpy as np


def test_demo_is_deterministic_and_readable(kernel, tmp_path):
    for folder in ("one", "two"):
        kernel.make_demo(tmp_path / folder, seed=5)
    made, again = kernel.demo_places(tmp_path / "one"), kernel.demo_places(tmp_path / "two")
    train, val = kernel.read_pairs(made["train_csv"]), kernel.read_pairs(made["val_csv"])
    assert (len(train), len(val)) == (8, 4)
    assert len(kernel.list_images(made["test_root"])) == 6
    for path in made["test_root"].iterdir():
        assert path.read_bytes() == (again["test_root"] / path.name).read_bytes()


def test_demo_alphas_have_edges_and_everything_between(kernel):
    soft_pixels, corners = [], []
    for seed in range(8):
        image, alpha = kernel.draw_pair(np.random.default_rng(seed), size=256)
        assert image.size == alpha.size == (256, 256) and (image.mode, alpha.mode) == ("RGB", "L")
        values = np.asarray(alpha)
        assert values.min() == 0 and values.max() > 250
        soft_pixels.append(((values > 10) & (values < 245)).mean())
        corners.append(values[[0, 0, -1, -1], [0, -1, 0, -1]].max())
    assert max(soft_pixels) > 0.03 and max(corners) < 30


def test_an_image_is_its_foreground_over_its_backdrop(kernel):
    """I = alpha F + (1 - alpha) B, with the three layers drawn from the same random numbers."""
    image, alpha = kernel.draw_pair(np.random.default_rng(1), size=128)
    rng = np.random.default_rng(1)
    layers = (kernel.draw_alpha(rng, 128), kernel.smooth_colours(rng, (128, 128), cells=5),
              kernel.paint_backdrop(rng, (128, 128)))
    opacity, foreground, backdrop = (np.asarray(layer, float) for layer in layers)
    assert np.array_equal(opacity, alpha)
    opacity = opacity[..., None] / 255
    expected = opacity * foreground + (1 - opacity) * backdrop
    assert np.abs(expected - np.asarray(image)).max() <= 1
