"""Maps from the network's prediction to alpha, and what each is worth on validation data."""

import numpy as np

from src.distributed import merged


def unchanged(alpha):
    """alpha in [0,1] as it is"""
    return alpha


def stretch_and_gamma(alpha):
    """The notebook's map of one image, float [H,W] in [0,1] -> the same.

    The 1st percentile, taken for the backdrop's level, becomes 0; then gamma 1.3.
    """
    level = np.percentile(alpha, 1)
    return np.clip((alpha - level) / (1.0 - level + 1e-6), 0.0, 1.0) ** 1.3


CALIBRATIONS = {"none": unchanged, "notebook": stretch_and_gamma}


def calibration_errors(pairs):
    """Mean MSE of every calibration over (prediction, truth) pairs, float arrays [H,W] in [0,1].

    Returns {name: MSE}, over the pairs of all processes; empty when there are none.
    """
    errors = merged([
        [np.square(calibrate(prediction) - truth).mean() for calibrate in CALIBRATIONS.values()]
        for prediction, truth in pairs
    ])
    return dict(zip(CALIBRATIONS, np.mean(errors, axis=0).tolist())) if errors else {}
