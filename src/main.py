"""MAGICK alpha: train U2-NetP, predict the alpha channel of single-subject images."""

import sys
import time
import traceback
from dataclasses import replace

import numpy as np

from src.config import parse_settings
from src.console import UserError, log, rank
from src.distributed import join_group, leave_group, merged, relaunch, shard, wait_for_all
from src.stopping import STARTED, Interrupted, StopWatch
from src.inputs import BEST_CHECKPOINT, check_complete, find_inputs, is_empty, list_images
from src.demo import demo_places, make_demo
from src.hardware import (
    amp_dtype, choose_device, prediction_dtype, prepare_machine, worker_count,
)
from src.data import read_pairs
from src.u2netp import U2NETP
from src.files import digest
from src.checkpoint import read_checkpoint, write_checkpoint
from src.training import LAST_CHECKPOINT, train
from src.calibration import calibration_of, choose_calibration
from src.prediction import predict_masks, predictor, validation_pairs
from src.recipe import UNTRIED, candidate_sizes, choose_recipe
from src.submission import merge_submission, write_shard
from src.preview import save_submission_preview, save_validation_preview

PREVIEWS = 3  # validation images that are drawn
KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12


def run(settings):
    """The story: find, train or load, calibrate, predict, write, show."""
    prepare_machine(settings.seed)
    device = join_group(choose_device(settings.device))
    dtype = prediction_dtype(amp_dtype(settings.amp, device))
    workers = worker_count(settings.workers)

    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    recipe = dict(checkpoint.recipe or {}) if checkpoint else {}
    training = settings.mode == "train" or (settings.mode == "auto" and not recipe)
    demo = is_empty(inputs) and not inputs.kaggle_input
    if demo:
        inputs = replace(inputs, **demo_places(inputs.out / "demo"))
    check_complete(inputs, training)
    if demo:
        show_demo(inputs, settings.seed)
    images = list_images(inputs.test_root, settings.limit)
    stop = StopWatch(settings.time_limit or (KAGGLE_HOURS if inputs.kaggle_input else None))
    stop.listen()
    describe(inputs, settings, device, training, len(images))

    model = U2NETP()
    if checkpoint:
        model.load_state_dict(checkpoint.model_state)
    photographs = list_images(settings.backgrounds) if settings.backgrounds else ()
    val_pairs = None
    if inputs.val_csv:
        val_pairs = read_pairs(inputs.val_csv, settings.limit, photographs)
    metrics = []
    if training:
        train_pairs = read_pairs(inputs.train_csv, settings.limit, photographs)
        metrics = train(model, train_pairs, val_pairs, settings, device, inputs.out, stop,
                        len(images))
        recipe = {}
    fast = predictor(model, device)

    def validate(pairs, recipe):
        return stop.guarded(validation_pairs(fast, pairs, recipe, device, dtype, workers))

    if "refine" not in recipe and val_pairs:
        size = recipe.get("predict_size", settings.train_size)
        sizes = [settings.predict_size] if settings.predict_size else candidate_sizes(size)
        recipe.update(choose_recipe(
            fast, val_pairs, sizes, settings.predict_budget, device, dtype, workers))
    recipe = {**UNTRIED, "predict_size": settings.train_size, **recipe}
    if settings.predict_size:
        recipe["predict_size"] = settings.predict_size
    recipe.update(calibration_for(settings.calibration, recipe, val_pairs, validate))
    if training and rank() == 0:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(), recipe=recipe)
    if val_pairs:
        show_validation(validate(val_pairs.first(PREVIEWS), recipe), recipe, inputs.out)

    submission, share = inputs.out / "submission.csv", shard(images)
    key = digest([*(t.cpu() for t in model.state_dict().values()),
                  np.array([repr(recipe), str(dtype), *map(str, images)])])
    write_shard(submission, key, [path.stem for path in share], lambda done: stop.guarded(
        predict_masks(fast, share, recipe, device, dtype, workers, done)))
    wait_for_all()
    if rank() > 0:
        return
    merge_submission(submission, images)
    save_submission_preview(submission, inputs.out / "preview" / "submission.png")
    if len(metrics) == settings.epochs:
        (inputs.out / LAST_CHECKPOINT).unlink(missing_ok=True)
    summary = ", ".join(f"{k} {v}" for k, v in recipe.items() if k not in ("curve", "trials"))
    log(f"Wrote {submission}: {len(images)} rows, recipe: {summary}; "
        f"{time.time() - STARTED:.0f} s in all")


def calibration_for(wanted, recipe, val_pairs, validate):
    """The recipe's calibration: the flag's, else the checkpoint's, else what validation data
    choose, else none."""
    if wanted != "auto":
        return {"calibration": wanted}
    if "calibration" in recipe:
        return {}
    if val_pairs is None:
        log("No validation data and no recipe: predictions are taken as they are")
        return {"calibration": "none"}
    chosen, errors = choose_calibration(
        (prediction, truth) for _, prediction, truth, _ in validate(val_pairs, recipe))
    log("Validation MSE at the images' own size, by calibration: "
        + ", ".join(f"{name} {mse:.6f}" for name, mse in errors.items()))
    return chosen


def show_validation(pairs, recipe, out):
    """Draw validation images, of all processes, with their calibrated predictions."""
    calibrate = calibration_of(recipe)
    shown = merged([(image, calibrate(prediction), truth, path)
                    for image, prediction, truth, path in pairs])
    if rank() == 0:
        save_validation_preview(shown, out / "preview" / "validation.png")


def show_demo(inputs, seed):
    """Draw the demonstration set, and say loudly that it is one."""
    log("=" * 72)
    log("DEMONSTRATION: no data was found, so a small drawn set stands in, in "
        f"{inputs.test_root.parent}.")
    log("Its figures say nothing about real images; name yours with --train-csv, --val-csv and")
    log("--test-root.")
    log("=" * 72)
    if rank() == 0:
        make_demo(inputs.test_root.parent, seed)
    wait_for_all()


def describe(inputs, settings, device, training, image_count):
    """The header of the log: what was found and what will be done."""
    log(f"Mode: {'train and predict' if training else 'predict'} on {device}")
    for name in ("train_csv", "val_csv", "test_root", "checkpoint", "out"):
        log(f"  {name}: {getattr(inputs, name) or '-'}")
    log(f"  test images: {image_count}")
    log(f"Settings: {settings}")
    if training and inputs.checkpoint is None:
        log("No checkpoint to start from: the network learns from random weights")


def main(argv=None):
    """Run from the command line; returns the exit status: 2 for bad input, 128 + the signal's
    number after a signal."""
    settings = parse_settings(argv)
    relaunch(settings.gpus, settings.device)
    try:
        run(settings)
        leave_group()
    except (UserError, Interrupted) as error:
        # Loaders that the error has left behind end their workers here, in order, not at exit.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, Interrupted):
            log("Stopped. The same command goes on from here.")
            return 128 + error.args[0]
        # A DataLoader worker's error arrives with the worker's traceback before its sentence.
        sentence = str(error).strip().rsplit("UserError: ", 1)[-1]
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
