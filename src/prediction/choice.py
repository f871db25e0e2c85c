"""Input size, mirroring and refinement, chosen on validation data."""

import time
from itertools import product

import numpy as np

from src.runtime.console import log, progress
from src.runtime.distributed import merged
from src.data.datasets import ScoredSet, share_loader
from src.prediction.predictor import at_full_size, truth_of

IMAGES = 64  # validation images that the choice looks at


def candidate_sizes(size):
    """The size that was trained for, and a quarter more, in multiples of 32 pixels."""
    return [size, 32 * round(1.25 * size / 32)]


def choose_recipe(predictor, pairs, sizes):
    """The predictor with the size, mirroring and refinement of the lowest validation MSE.

    Prints the table that it chose from.
    """
    trials = {}
    for size in sizes:
        for rows in merged(list(trial_rows(predictor, pairs.first(IMAGES), size))):
            for trial, mse, seconds in rows:
                trials.setdefault(trial, []).append((mse, seconds))
    means = {trial: np.mean(rows, axis=0).tolist() for trial, rows in trials.items()}
    best = min(means, key=lambda trial: means[trial][0])
    log("Recipes on validation images:  size  flip  refine       MSE  s/image")
    for trial, (mse, seconds) in means.items():
        size, flip, refined = trial
        log(f"{'chosen' if trial == best else '':>29}  {size:4}  {yes(flip):4}  {yes(refined):6}  "
            f"{mse:.6f}  {seconds:7.3f}")
    size, flip, refined = best
    return predictor.with_recipe(predict_size=size, flip=flip, refine=refined)


def yes(flag):
    return "yes" if flag else "no"


def trial_rows(predictor, pairs, size):
    """Yields for each image of this process's share [((size, flip, refine), MSE, seconds), ...]."""
    loader = share_loader(ScoredSet(pairs, size), 1, predictor.machine)
    for batch in progress(loader, f"recipe {size}", unit="image"):
        truth = truth_of(batch)
        began = time.perf_counter()
        plain = predictor.once(batch)
        forward = time.perf_counter() - began
        both = (plain + predictor.once(batch, mirrored=True)) / 2
        rows = []
        for flip, refined in product((False, True), repeat=2):
            began = time.perf_counter()
            alpha = at_full_size(both if flip else plain, batch["img"], batch["full"], refined)
            seconds = time.perf_counter() - began + forward * (1 + flip)
            mse = float(np.square(alpha - truth).mean())
            rows.append(((size, flip, refined), mse, seconds))
        yield rows
