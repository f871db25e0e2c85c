"""The notebook's calibration, and the choice between it and none."""

import numpy as np
import pandas as pd
import pytest

from conftest import EchoRed, draw, plain_predictor


def test_the_notebooks_map_by_hand(kernel):
    alpha = np.full((10, 10), 0.2, np.float32)
    alpha[0, :5] = 0.6
    mapped = kernel.calibrated(alpha, "notebook")
    assert mapped[5, 5] == 0
    assert mapped[0, 0] == pytest.approx((0.4 / 0.8) ** 1.3, rel=1e-4)


@pytest.mark.parametrize("calibration", [None, "none", "notebook"])
def test_maps_are_monotone_and_stay_in_range(kernel, calibration):
    alpha = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    mapped = kernel.calibrated(alpha, calibration).ravel()
    assert mapped.min() >= 0 and mapped.max() <= 1 and (np.diff(mapped) >= 0).all()
    assert mapped.dtype == np.float32
    assert np.array_equal(mapped, alpha.ravel()) == (calibration != "notebook")


@pytest.mark.parametrize("truth", ["none", "notebook"])
def test_the_lowest_validation_error_is_chosen(kernel, tmp_path, capsys, truth):
    """Alphas that are the predictions, or what the notebook makes of them, to half a level."""
    for number in range(2):
        red = np.random.default_rng(number).integers(60, 256, (64, 64)) / 255
        alpha = kernel.calibrated(red, truth)
        draw(tmp_path / f"{number}.png", kernel.to_uint8(np.dstack([red] * 3)))
        draw(tmp_path / f"alpha{number}.png", kernel.to_uint8(alpha))
    pd.DataFrame({"image_path": ["0.png", "1.png"], "alpha_path": ["alpha0.png", "alpha1.png"]}
                 ).to_csv(tmp_path / "val.csv", index=False)
    pairs = kernel.read_pairs(tmp_path / "val.csv")
    # What the recipe has so far must not matter.
    predictor = plain_predictor(kernel, EchoRed(), calibration="notebook")
    assert kernel.choose_calibration(predictor, pairs, kernel.StopWatch()) == truth
    said = capsys.readouterr().out
    assert f"{truth} 0.00000" in said and "none 0." in said and "notebook 0." in said
