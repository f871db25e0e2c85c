"""Sizes, mirroring, refinement and calibration, chosen on validation data."""

import time
from dataclasses import replace
from itertools import product

import numpy as np

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import all_gather, shard
from src.runtime.threads import mapped_ahead
from src.data.datasets import whole_pair
from src.network.checkpoint import build_network, read_checkpoint, weights_digest
from src.prediction.calibration import calibrated
from src.prediction.predictor import (
    View, at_full_size, average, make_predictor, network_inputs, once,
)
from src.prediction.recipe import CALIBRATIONS, read_recipe

IMAGES = 64  # validation images that the choice looks at


def choose(predictor, settings, val_pairs, stop):
    """The predictor with what its recipe leaves open chosen on validation data, where there are
    any; --predict-size and --calibration take precedence."""
    recipe = predictor.recipe
    one_network = len({view.network for view in predictor.views}) == 1
    if recipe.calibration is None and val_pairs and one_network:
        sizes = [settings.predict_size] if settings.predict_size else candidate_sizes(recipe.sizes)
        predictor = choose_views(predictor, val_pairs, sizes)
    if settings.predict_size:
        predictor = predictor.with_recipe(predict_size=settings.predict_size)
    if settings.calibration != "auto":
        return predictor.with_recipe(calibration=settings.calibration)
    if recipe.calibration is not None:
        return predictor
    if val_pairs is None:
        log("No validation data and no recipe: predictions are taken as they are")
        return predictor.with_recipe(calibration="none")
    return predictor.with_recipe(calibration=choose_calibration(predictor, val_pairs, stop))


def choose_calibration(predictor, pairs, stop):
    """The calibration of the lowest validation MSE; logs the candidates."""
    rows = stop.guarded(predictor.with_recipe(calibration="none").validation(pairs))
    errors = np.mean(all_gather([
        [squared_error(calibrated(alpha, name), truth) for name in CALIBRATIONS]
        for _, _, alpha, truth in rows]), axis=0)
    log("Validation MSE at the images' own size, by calibration: "
        + ", ".join(f"{name} {error:.6f}" for name, error in zip(CALIBRATIONS, errors)))
    return CALIBRATIONS[int(errors.argmin())]


def squared_error(alpha, truth):
    return float(np.square(alpha - truth).mean())


# ---------------------------------------------------------------- sizes, mirroring, refinement


def candidate_sizes(sizes):
    """Several sizes as they are; a single one, and a quarter more, in multiples of 32 pixels."""
    larger = 32 * round(1.25 * sizes[0] / 32)
    return sizes if len(sizes) > 1 or larger == sizes[0] else (*sizes, larger)


def choose_views(predictor, pairs, sizes):
    """The predictor with the size, or sizes, the mirroring and the refinement of the lowest
    validation MSE. Prints the table that it chose from."""
    trials = {}
    for rows in all_gather(list(trial_rows(predictor, pairs.first(IMAGES), sizes))):
        for trial, *figures in rows:
            trials.setdefault(trial, []).append(figures)
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
    def opened(index):
        return pairs[index][0], *whole_pair(pairs, index)[:2]

    indices = progress(shard(range(len(pairs))), "recipes", unit="image")
    for path, image, truth in mapped_ahead(opened, indices):
        truth, trials = np.asarray(truth, np.float32) / 255, {}
        for size in sizes:
            trials.update(trials_at(predictor, path, image, size))
        if len(sizes) > 1:
            for way in product((False, True), repeat=2):
                alphas, seconds = zip(*(trials[((size,), *way)] for size in sizes))
                trials[(tuple(sizes), *way)] = average(alphas), sum(seconds)
        yield [(trial, squared_error(alpha, truth), seconds)
               for trial, (alpha, seconds) in trials.items()]


def trials_at(predictor, path, image, size):
    """Yields ((sizes, flip, refine), (alpha [H,W], seconds)) of an RGB image at one size."""
    network, inputs = predictor.views[0].network, network_inputs(image, [size])[size]
    began = time.perf_counter()
    views = [once(View(network, size, mirrored), inputs, predictor.machine, path)
             for mirrored in (False, True)]
    forward = (time.perf_counter() - began) / 2
    for flip, refined in product((False, True), repeat=2):
        began = time.perf_counter()
        alpha = at_full_size(average(views[:1 + flip]), inputs, image, refined)
        yield ((size,), flip, refined), (alpha, time.perf_counter() - began + forward * (1 + flip))


# ---------------------------------------------------------------- several checkpoints


def with_others(predictor, checkpoint, paths, only_ours, val_pairs):
    """The predictor, or, with the checkpoints at more paths, the mean of all their views.

    The same weights count once. only_ours: leave out a checkpoint without a recipe, which is not of
    this project.
    """
    members = {str(checkpoint.path): predictor} if paths else {}
    seen = {weights_digest(checkpoint.model_state): checkpoint.path} if paths else {}
    for path in paths:
        try:
            other = read_checkpoint(path)
            if only_ours and not other.recipe:
                raise UserError(f"{path}: has no recipe, so it is not of this project")
        except UserError as error:
            if not only_ours:
                raise
            log(f"Left out of the ensemble: {error}")
            continue
        same = seen.setdefault(weights_digest(other.model_state), path)
        if same != path or path == checkpoint.path:
            log(f"{path} has the weights of {same}, and counts once")
        else:
            recipe = read_recipe(other, predictor.sizes[0])
            members[str(path)] = make_predictor(build_network(other), recipe, predictor.machine)
    if len(members) < 2:
        return predictor
    together = replace(
        predictor, views=tuple(view for each in members.values() for view in each.views),
        recipe=replace(predictor.recipe, calibration=None))
    if val_pairs:
        compare({**members, "all together": together}, val_pairs.first(IMAGES))
    return together


def compare(predictors, pairs):
    """Print the validation MSE and the time an image of {name: predictor}."""
    log("Ensemble on validation images:       MSE  s/image")
    for name, predictor in predictors.items():
        began = time.perf_counter()
        errors = all_gather([squared_error(alpha, truth) for _, _, alpha, truth in
                             predictor.with_recipe(calibration="none").validation(pairs)])
        seconds = (time.perf_counter() - began) / len(errors)
        log(f"{name[-30:]:>30}  {np.mean(errors):.6f}  {seconds:7.3f}")
