"""Input size, mirroring and refinement, chosen on validation data."""

import time
from itertools import product

import numpy as np

from src.runtime.console import log, progress
from src.runtime.distributed import merged
from src.data.datasets import ScoredSet, share_loader
from src.prediction.predictor import at_full_size, mean_of, truth_of

IMAGES = 64  # validation images that the choice looks at


def candidate_sizes(size):
    """The size that was trained for, and a quarter more, in multiples of 32 pixels."""
    return [size, 32 * round(1.25 * size / 32)]


def choose_recipe(predictor, pairs, sizes):
    """The predictor with the size, or sizes, the mirroring and the refinement of the lowest
    validation MSE.

    Prints the table that it chose from.
    """
    trials = {}
    for rows in merged(list(trial_rows(predictor, pairs.first(IMAGES), sizes))):
        for trial, mse, seconds in rows:
            trials.setdefault(trial, []).append((mse, seconds))
    means = {trial: np.mean(rows, axis=0).tolist() for trial, rows in trials.items()}
    best = min(means, key=lambda trial: means[trial][0])
    log("Recipes on validation images:     size  flip  refine       MSE  s/image")
    for trial, (mse, seconds) in means.items():
        used, flip, refined = trial
        mark, size = "chosen" if trial == best else "", "+".join(map(str, used))
        log(f"{mark:>29}  {size:>7}  {yes(flip):4}  {yes(refined):6}  {mse:.6f}  {seconds:7.3f}")
    used, flip, refined = best
    return predictor.with_recipe(
        predict_size=used if len(used) > 1 else used[0], flip=flip, refine=refined)


def yes(flag):
    return "yes" if flag else "no"


def trial_rows(predictor, pairs, sizes):
    """Yields for each image of this process's share [((sizes, flip, refine), MSE, seconds), ...],
    of each size and of all together."""
    loader = share_loader(ScoredSet(pairs, sizes), 1, predictor.machine)
    for batch in progress(loader, "recipes", unit="image"):
        truth, trials = truth_of(batch), {}
        for size in sizes:
            trials.update(trials_at(predictor, batch, size))
        if len(sizes) > 1:
            for way in product((False, True), repeat=2):
                alphas, seconds = zip(*(trials[(size,), *way] for size in sizes))
                trials[tuple(sizes), *way] = mean_of(alphas), sum(seconds)
        yield [(trial, float(np.square(alpha - truth).mean()), seconds)
               for trial, (alpha, seconds) in trials.items()]


def trials_at(predictor, batch, size):
    """Yields ((sizes, flip, refine), (alpha [H,W], seconds)) of one image at one size."""
    began = time.perf_counter()
    plain = predictor.once(batch, size)
    forward = time.perf_counter() - began
    both = (plain + predictor.once(batch, size, mirrored=True)) / 2
    for flip, refined in product((False, True), repeat=2):
        began = time.perf_counter()
        alpha = at_full_size(
            both if flip else plain, batch["img"][size], batch["full"], refined)
        yield ((size,), flip, refined), (alpha, time.perf_counter() - began + forward * (1 + flip))


def compare_members(ensemble, pairs, names):
    """Print the validation MSE and the time of each member of an `Ensemble`, and of their mean."""
    rows = []
    loader = share_loader(ScoredSet(pairs.first(IMAGES), ensemble.sizes), 1, ensemble.machine)
    for batch in progress(loader, "ensemble", unit="image"):
        alphas, seconds = [], []
        for member in ensemble.members:
            began = time.perf_counter()
            alphas.append(member.full_alpha(batch, member.small_alphas(batch)))
            seconds.append(time.perf_counter() - began)
        errors = [np.square(each - truth_of(batch)).mean() for each in (*alphas, mean_of(alphas))]
        rows.append(list(zip(errors, (*seconds, sum(seconds)))))
    log("Ensemble on validation images:       MSE  s/image")
    for name, (mse, spent) in zip((*names, "all together"), np.mean(merged(rows), axis=0)):
        log(f"{name[-30:]:>30}  {mse:.6f}  {spent:7.3f}")
