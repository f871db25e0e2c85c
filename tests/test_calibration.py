"""The notebook's calibration, and the comparison on validation pairs."""

import numpy as np
import pytest


def test_the_notebooks_map_by_hand(kernel):
    alpha = np.full((10, 10), 0.2, np.float32)
    alpha[0, :5] = 0.6
    mapped = kernel.CALIBRATIONS["notebook"](alpha)
    assert mapped[5, 5] == 0
    assert mapped[0, 0] == pytest.approx((0.4 / 0.8) ** 1.3, rel=1e-4)


@pytest.mark.parametrize("name", ["none", "notebook"])
def test_maps_are_monotone_and_stay_in_range(kernel, name):
    alpha = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    mapped = kernel.CALIBRATIONS[name](alpha).ravel()
    assert mapped.min() >= 0 and mapped.max() <= 1 and (np.diff(mapped) >= 0).all()


def test_errors_are_means_over_pairs(kernel):
    truth = np.zeros((8, 8), np.float32)
    errors = kernel.calibration_errors([(truth + 0.5, truth), (truth + 0.1, truth)])
    assert errors["none"] == pytest.approx((0.25 + 0.01) / 2)
    assert errors["notebook"] == 0
    assert kernel.calibration_errors([]) == {}
