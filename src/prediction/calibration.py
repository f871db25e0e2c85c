"""Calibration: the notebook's map from the network's prediction to alpha, or none."""

import numpy as np


def calibrated(alpha, calibration):
    """A prediction, float array [H,W] in [0,1] -> alpha, the same; calibration: of a `Recipe`."""
    return stretch_and_gamma(alpha) if calibration == "notebook" else alpha


def stretch_and_gamma(alpha):
    """The notebook's map of one image, float [H,W] in [0,1] -> the same, monotone.

    The 1st percentile, taken for the backdrop's level, becomes 0; then gamma 1.3.
    """
    level = np.percentile(alpha, 1)
    return np.clip((alpha - level) / (1.0 - level + 1e-6), 0.0, 1.0) ** 1.3
