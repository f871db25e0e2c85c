"""The notebook's calibration, the fitted curve, and the choice among them."""

import numpy as np
import pytest


def test_the_notebooks_map_by_hand(kernel):
    alpha = np.full((10, 10), 0.2, np.float32)
    alpha[0, :5] = 0.6
    mapped = kernel.calibration_of(kernel.Recipe(calibration="notebook"))(alpha)
    assert mapped[5, 5] == 0
    assert mapped[0, 0] == pytest.approx((0.4 / 0.8) ** 1.3, rel=1e-4)


@pytest.mark.parametrize("values", [
    {}, {"calibration": "none"}, {"calibration": "notebook"},
    {"calibration": "fitted", "curve": np.sqrt(np.linspace(0, 1, 256)).tolist()}])
def test_maps_are_monotone_and_stay_in_range(kernel, values):
    alpha = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    mapped = kernel.calibration_of(kernel.Recipe(**values))(alpha).ravel()
    assert mapped.min() >= 0 and mapped.max() <= 1 and (np.diff(mapped) >= 0).all()
    assert mapped.dtype == np.float32


def test_a_curve_is_linear_between_its_knots(kernel):
    identity = kernel.calibration_of(
        kernel.Recipe(calibration="fitted", curve=tuple(np.linspace(0, 1, 256))))
    alpha = np.random.default_rng(0).random((50, 50), np.float32)
    assert np.abs(identity(alpha) - alpha).max() < 1e-6
    step = kernel.along_curve(np.array([0.5 / 255]), np.r_[0.0, np.ones(255)])
    assert step[0] == pytest.approx(0.5)


def pairs_of(truth_of, count=10, size=64, levels=256):
    """Predictions of whole levels with truth_of(level, rng)"""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        prediction = rng.integers(0, levels, (size, size)) / 255
        yield prediction.astype(np.float32), truth_of(prediction, rng).astype(np.float32)


def sums_of(kernel, pairs):
    return sum(kernel.level_sums(*pair) for pair in pairs)


def test_the_fit_is_the_conditional_mean(kernel):
    """Truth is 1 with probability p^2: the best map of p is p^2."""
    pairs = pairs_of(lambda p, rng: rng.random(p.shape) < p**2, count=40)
    curve = kernel.fit_curve(sums_of(kernel, pairs))
    assert np.abs(curve - np.linspace(0, 1, 256) ** 2).max() < 0.06
    assert (np.diff(curve) >= 0).all()


def test_pooling_gives_the_least_squares_of_all_monotone_curves(kernel):
    """Levels 0, 1, 2 with means 0.2, 0.8, 0.5 and weights 1, 1, 2: the last two pool to 0.6."""
    sums = np.zeros((256, 3))
    sums[:3, 0], sums[:3, 1] = [1, 1, 2], [0.2, 0.8, 1.0]
    assert kernel.fit_curve(sums)[:3] == pytest.approx([0.2, 0.6, 0.6])


def test_levels_nobody_saw_lie_on_the_line_between(kernel):
    sums = np.zeros((256, 3))
    sums[[10, 20], 0], sums[[10, 20], 1] = 1, [0.2, 0.4]
    curve = kernel.fit_curve(sums)
    assert curve[15] == pytest.approx(0.3) and curve[0] == 0.2 and curve[255] == 0.4


def test_the_curves_error_is_the_pixels_error(kernel):
    (pair,) = pairs_of(lambda p, rng: rng.random(p.shape), count=1)
    curve = np.linspace(0.1, 0.9, 256)
    pixels = np.square(kernel.along_curve(pair[0], curve) - pair[1]).mean()
    assert kernel.curve_error(curve, kernel.level_sums(*pair)) == pytest.approx(pixels, rel=1e-5)


def test_the_choice_follows_the_evidence(kernel):
    recipe, errors = kernel.choose_calibration(pairs_of(lambda p, rng: p**2))
    assert recipe["calibration"] == "fitted" and errors["fitted"] < 0.1 * errors["none"]
    assert len(recipe["curve"]) == 256
    recipe, errors = kernel.choose_calibration(
        pairs_of(lambda p, rng: kernel.stretch_and_gamma(p), count=3))
    assert recipe == {"calibration": "notebook"} and errors["notebook"] == pytest.approx(0)
    assert "fitted" not in errors  # three images are too few to judge a fit


def test_a_fit_that_does_not_carry_over_is_not_chosen(kernel):
    """Every image has its own levels, so what one teaches is wrong for the others."""
    def own(number):
        rng = np.random.default_rng(number)
        return ((rng.integers(0, 25, (32, 32)) * 10 + number) / 255).astype(np.float32)

    recipe, errors = kernel.choose_calibration(
        (p, np.clip(p + (0.2 if n % 5 == 0 else -0.05), 0, 1))
        for n, p in enumerate(map(own, range(10))))
    assert errors["fitted"] > min(errors["none"], errors["notebook"])
    assert recipe["calibration"] != "fitted"
