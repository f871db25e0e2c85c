"""Maps from the network's prediction to alpha: the notebook's, and one fitted to data."""

from functools import partial

import numpy as np

from src.runtime.distributed import merged, summed
from src.runtime.processes import rank, world_size

LEVELS = 256  # of an 8-bit mask: the finest distinction a submission can make
FOLDS = 5


def calibration_of(recipe):
    """The map that a `Recipe` names: float arrays [H,W] in [0,1] -> the same, monotone."""
    if recipe.calibration == "fitted":
        return partial(along_curve, curve=np.asarray(recipe.curve, np.float32))
    return stretch_and_gamma if recipe.calibration == "notebook" else unchanged


def unchanged(alpha):
    """alpha in [0,1], not mapped at all"""
    return alpha


def stretch_and_gamma(alpha):
    """The notebook's map of one image, float [H,W] in [0,1] -> the same.

    The 1st percentile, taken for the backdrop's level, becomes 0; then gamma 1.3.
    """
    level = np.percentile(alpha, 1)
    return np.clip((alpha - level) / (1.0 - level + 1e-6), 0.0, 1.0) ** 1.3


def along_curve(alpha, curve):
    """alpha in [0,1] -> the curve's value, linear between its knots"""
    return np.interp(alpha, np.linspace(0, 1, len(curve)), curve).astype(np.float32)


def level_sums(prediction, truth):
    """[256,3]: for each level of the rounded prediction the share of pixels, and the sums of
    truth and squared truth over them, divided by the number of pixels."""
    levels = np.rint(prediction * (LEVELS - 1)).astype(np.int64).ravel()
    truth = truth.astype(np.float64).ravel()
    sums = [np.bincount(levels, weights, LEVELS)
            for weights in (np.ones_like(truth), truth, np.square(truth))]
    return np.stack(sums, axis=1) / levels.size


def fit_curve(sums):
    """The monotone curve of 256 knots that minimises the squared error of the given level sums.

    The map of least squared error is E[alpha | prediction]; isotonic regression by pooling adjacent
    violators makes it monotone (Ayer et al., Annals of Mathematical Statistics 26, 1955). Levels
    that no pixel had lie on the line between their neighbours.
    """
    seen = np.flatnonzero(sums[:, 0] > 0)
    blocks = []  # [weight, sum, number of levels], means ascending
    for weight, total in sums[seen, :2]:
        blocks.append([weight, total, 1])
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][0] >= blocks[-1][1] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last)]
    means = np.repeat([total / weight for weight, total, _ in blocks], [b[2] for b in blocks])
    return np.interp(np.arange(LEVELS), seen, means).clip(0, 1)


def curve_error(curve, sums):
    """Mean squared error of a curve over level sums"""
    count, total, squares = sums.T
    return float((np.square(curve) * count - 2 * curve * total + squares).sum())


def choose_calibration(pairs):
    """The best calibration for (prediction, truth) pairs, float arrays [H,W] in [0,1].

    Returns (the recipe's values for it, {name: MSE}). One pass over the pairs of all processes, in
    the memory of a few histograms. The fitted curve is judged on images it was not fitted on (five
    folds), against doing nothing and the notebook's map.
    """
    folds, counts = np.zeros((FOLDS, LEVELS, 3)), np.zeros(FOLDS)
    notebook = []
    for number, (prediction, truth) in enumerate(pairs):
        fold = (number * world_size() + rank()) % FOLDS
        folds[fold] += level_sums(prediction, truth)
        counts[fold] += 1
        notebook.append(float(np.square(stretch_and_gamma(prediction) - truth).mean()))
    folds, counts = summed(folds), summed(counts)
    whole, images = folds.sum(axis=0), counts.sum()
    errors = {
        "none": curve_error(np.linspace(0, 1, LEVELS), whole) / float(images),
        "notebook": float(np.mean(merged(notebook))),
    }
    if images >= FOLDS:
        errors["fitted"] = sum(
            curve_error(fit_curve(whole - fold), fold) for fold in folds) / float(images)
    best = min(errors, key=errors.get)
    recipe = {"calibration": best}
    if best == "fitted":
        recipe["curve"] = tuple(fit_curve(whole).round(5).tolist())
    return recipe, errors
