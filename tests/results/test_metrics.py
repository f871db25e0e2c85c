"""MSE, SAD and the gradient error."""

import numpy as np
import pandas as pd
import pytest

from conftest import load_bundle


def test_errors_by_hand(kernel):
    truth = np.zeros((10, 200), np.float32)
    prediction = truth.copy()
    prediction[:, :100] = 0.5
    errors = kernel.errors_of(prediction, truth)
    assert errors["mse"] == pytest.approx(0.125) and errors["sad"] == pytest.approx(0.5)
    assert kernel.errors_of(prediction, prediction) == {"mse": 0, "sad": 0, "gradient": 0}


def retold(alpha, sigma=1.4):
    """The gradient's magnitude as the benchmark's authors compute it, one pixel at a time: a filter
    of 9 x 9, the derivative of a Gaussian, of norm 1."""
    reach = np.arange(-4, 5)
    gauss = np.exp(-reach**2 / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    derivative = -reach * gauss / sigma**2
    window = np.outer(gauss, derivative)
    window /= np.sqrt(np.square(window).sum())
    padded = np.pad(alpha, 4, mode="edge")
    result = np.zeros_like(alpha)
    for y, x in np.ndindex(alpha.shape):
        patch = padded[y:y + 9, x:x + 9]
        result[y, x] = np.hypot((patch * window).sum(), (patch * window.T).sum())
    return result


def test_the_gradient_is_the_benchmarks(kernel):
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 14, 23))
    assert np.allclose(kernel.steepness(one), retold(one), atol=1e-5)
    expected = np.square(retold(one) - retold(other)).sum() / 1000
    assert kernel.errors_of(one, other)["gradient"] == pytest.approx(expected, rel=1e-4)


def test_a_blurred_edge_costs_gradient_more_than_a_moved_level(kernel):
    """What the measure is for: with the same MSE, a lost edge is worse than a grey one."""
    truth = np.zeros((40, 40))
    truth[:, 20:] = 1
    blurred = np.clip((np.arange(40) - 9.5) / 20, 0, 1) * np.ones((40, 1))
    mse = np.square(blurred - truth).mean()
    faded = truth * (1 - np.sqrt(2 * mse))
    assert kernel.errors_of(faded, truth)["mse"] == pytest.approx(mse)
    assert kernel.errors_of(blurred, truth)["gradient"] > (
        2 * kernel.errors_of(faded, truth)["gradient"])


def test_validation_csv_lists_the_worst_first(small_data, tmp_path):
    """With the backdrop column of the CSV, though a pair before it cannot be read."""
    table = pd.read_csv(small_data.val)
    rows = [table.iloc[0], table.iloc[1]] * 15
    more = pd.DataFrame(rows).assign(backdrop=["plain", "photo"] * 15)
    missing = pd.DataFrame([{"image_path": "images/none.png", "alpha_path": "alphas/val0.png",
                             "backdrop": "gone"}])
    pd.concat([missing, more]).to_csv(small_data.folder / "kinds.csv", index=False)
    out = tmp_path / "out"
    assert load_bundle().main([
        "--mode", "predict", "--val-csv", str(small_data.folder / "kinds.csv"), "--test-root",
        str(small_data.test), "--predict-size", "64", "--workers", "0", "--out", str(out)]) == 0
    scores = pd.read_csv(out / "validation.csv")
    assert list(scores.columns) == ["image_path", "mse", "sad", "gradient", "backdrop"]
    assert len(scores) == 30 and scores.mse.is_monotonic_decreasing
    names = scores.image_path.str.rsplit("/", n=1).str[-1]
    assert dict(zip(names, scores.backdrop)) == {"val0.png": "plain", "val1.png": "photo"}
