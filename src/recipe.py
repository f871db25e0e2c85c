"""The inference recipe: input size, mirroring and refinement, chosen on validation data."""

import time
from itertools import product

import numpy as np

from src.console import log, progress
from src.data import ScoredSet, share_loader
from src.distributed import merged
from src.prediction import at_full_size, predict_alpha

IMAGES = 64  # validation images that the choice looks at
# Without validation data: the refinement lowered the MSE of every network and size it was tried
# with, at 20 ms an image; mirroring helps less and doubles the time.
UNTRIED = {"flip": False, "refine": True}


def candidate_sizes(size):
    """The size that was trained for, and a quarter more, in multiples of 32 pixels."""
    return [size, 32 * round(1.25 * size / 32)]


def choose_recipe(model, pairs, sizes, budget, machine):
    """{"predict_size", "flip", "refine"} of the lowest validation MSE within the budget.

    model: what `predictor` returns; budget: seconds per image for network and refinement, None for
    no limit. When nothing fits the budget, the fastest is taken. Prints the table it chose from
    and returns it too, as "trials": [size, flip, refine, MSE] without the seconds, which no two
    runs share.
    """
    trials = {}
    for size in sizes:
        images = trial_rows(model, pairs.first(IMAGES), size, machine)
        for rows in merged(list(images)):
            for each, mse, seconds in rows:
                trials.setdefault((size, *each), []).append((mse, seconds))
    means = {trial: np.mean(rows, axis=0).tolist() for trial, rows in trials.items()}
    affordable = {t: mse for t, (mse, seconds) in means.items() if not budget or seconds <= budget}
    if affordable:
        best = min(affordable, key=affordable.get)
    else:
        best = min(means, key=lambda trial: means[trial][1])
        log(f"No recipe fits --predict-budget {budget}: the fastest is taken")
    log("Recipes on validation images:  size  flip  refine       MSE  s/image")
    for trial, (mse, seconds) in means.items():
        size, flip, refined = trial
        log(f"{'chosen' if trial == best else '':>29}  {size:4}  {yes(flip):4}  {yes(refined):6}  "
            f"{mse:.6f}  {seconds:7.3f}")
    return {**dict(zip(("predict_size", "flip", "refine"), best)),
            "trials": [[*trial, round(mse, 6)] for trial, (mse, _) in means.items()]}


def yes(flag):
    return "yes" if flag else "no"


def trial_rows(model, pairs, size, machine):
    """Yields for each image of this process's share [((flip, refine), MSE, seconds), ...]."""
    loader = share_loader(ScoredSet(pairs, size), 1, machine)
    for batch in progress(loader, f"recipe {size}", unit="image"):
        truth = batch["truth"][0].numpy().astype(np.float32) / 255
        began = time.perf_counter()
        plain = predict_alpha(model, batch, machine)
        forward = time.perf_counter() - began
        both = (plain + predict_alpha(model, batch, machine, mirrored=True)) / 2
        rows = []
        for flip, refined in product((False, True), repeat=2):
            began = time.perf_counter()
            alpha = at_full_size(both if flip else plain, batch["img"], batch["full"], refined)
            seconds = time.perf_counter() - began + forward * (1 + flip)
            rows.append(((flip, refined), float(np.square(alpha - truth).mean()), seconds))
        yield rows
