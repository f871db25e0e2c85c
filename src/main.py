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
from src.inputs import (
    BEST_CHECKPOINT, check_complete, find_inputs, is_empty, list_images, list_tests,
)
from src.demo import demo_places, make_demo
from src.hardware import choose_device, describe_machine, machine_for, prepare_machine
from src.pairs import read_pairs, shared_images, split_off
from src.data import without_unreadable, write_skipped
from src.u2netp import U2NETP
from src.files import digest
from src.checkpoint import read_checkpoint, write_checkpoint
from src.training import LAST_CHECKPOINT, train
from src.calibration import calibration_of, choose_calibration
from src.prediction import predict_masks, predictor, validation_pairs
from src.recipe import UNTRIED, candidate_sizes, choose_recipe
from src.submission import merge_submission, write_shard
from src.preview import (
    save_submission_preview, save_training_preview, save_validation_preview, spread,
)

KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12
SCORED = 500  # validation images that the final score looks at
UNREADABLE_STATUS = 3  # exit status when a test image could not be read


def run(settings):
    """The story: find, train or load, calibrate, predict, write, show. Returns the exit status."""
    prepare_machine(settings.seed)
    machine = machine_for(
        join_group(choose_device(settings.device)), settings.amp, settings.workers)
    log(describe_machine(machine.device))
    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    recipe = dict(checkpoint.recipe or {}) if checkpoint else {}
    training = settings.mode == "train" or (settings.mode == "auto" and not recipe)
    inputs = demo_or_complete(inputs, training, settings.seed)
    tests = list_tests(inputs.test_root, inputs.sample_csv, settings.limit)
    stop = StopWatch(settings.time_limit or (KAGGLE_HOURS if inputs.kaggle_input else None))
    stop.listen()
    describe(inputs, settings, training, len(tests))

    model, metrics = U2NETP(), []
    if checkpoint:
        model.load_state_dict(checkpoint.model_state)
    train_pairs, val_pairs, skipped = pairs_of(inputs, settings, training, machine)
    if training:
        if settings.batch_norm == "auto":
            settings = replace(settings, batch_norm="frozen" if checkpoint else "trained")
        metrics = train(model, train_pairs, val_pairs, settings, machine, inputs.out, stop,
                        len(tests), skipped)
        recipe = {}
    elif rank() == 0:
        write_skipped(inputs.out / "skipped.csv", skipped)

    machine = machine.for_prediction()
    fast = predictor(model, machine)

    def validate(pairs, recipe):
        return stop.guarded(validation_pairs(fast, pairs, recipe, machine))

    recipe = complete_recipe(recipe, settings, fast, val_pairs, machine)
    recipe.update(calibration_for(settings.calibration, recipe, val_pairs, validate))
    if training and rank() == 0:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(), recipe=recipe)
    errors = score(val_pairs.first(SCORED), recipe, validate) if val_pairs else []

    began = time.monotonic()
    problems = predict_tests(fast, tests, recipe, machine, inputs.out / "submission.csv", stop)
    rate = len(tests) / (time.monotonic() - began)
    if settings.preview:
        draw_previews(settings.preview, errors, val_pairs, recipe, validate, metrics, inputs.out)
    if len(metrics) == settings.epochs and rank() == 0:
        (inputs.out / LAST_CHECKPOINT).unlink(missing_ok=True)
    summarise(recipe, errors, rate, problems, inputs.out)
    return UNREADABLE_STATUS if problems else 0


def demo_or_complete(inputs, training, seed):
    """The inputs, a drawn demonstration set in the place of no data at all.

    Raises UserError when something that the run needs is missing.
    """
    demo = is_empty(inputs) and not inputs.kaggle_input
    if demo:
        inputs = replace(inputs, **demo_places(inputs.out / "demo"))
    check_complete(inputs, training)
    if demo:
        show_demo(inputs, seed)
    return inputs


def pairs_of(inputs, settings, training, machine):
    """(training pairs or None, validation pairs or None, {image path: why it was left out}).

    The validation pairs are split off the others where only training data are there, and are those
    that can be read.
    """
    photographs = list_images(settings.backgrounds) if settings.backgrounds else ()
    train_pairs = val_pairs = None
    if training:
        train_pairs = read_pairs(inputs.train_csv, settings.limit, photographs)
    if inputs.val_csv:
        val_pairs = read_pairs(inputs.val_csv, settings.limit, photographs)
    elif training:
        train_pairs, val_pairs = split_off(train_pairs)
        log(f"No validation CSV: {len(val_pairs)} of the training rows validate")
    if training and (shared := shared_images(train_pairs, val_pairs)):
        log(f"WARNING: {shared} validation images are training images too; the validation MSE "
            "promises too much")
    if val_pairs is None:
        return train_pairs, None, {}
    return train_pairs, *without_unreadable(val_pairs, machine)


def complete_recipe(recipe, settings, fast, val_pairs, machine):
    """The checkpoint's recipe with what it lacks but the calibration: chosen on validation data
    where there are any; --predict-size goes before."""
    if "refine" not in recipe and val_pairs:
        size = recipe.get("predict_size", settings.train_size)
        sizes = [settings.predict_size] if settings.predict_size else candidate_sizes(size)
        recipe = {**recipe, **choose_recipe(
            fast, val_pairs, sizes, settings.predict_budget, machine)}
    recipe = {**UNTRIED, "predict_size": settings.train_size, **recipe}
    return {**recipe, "predict_size": settings.predict_size or recipe["predict_size"]}


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


def score(pairs, recipe, validate):
    """The MSE of each validation image at its own size, by the final recipe."""
    calibrate = calibration_of(recipe)
    return merged([float(np.square(calibrate(prediction) - truth).mean())
                   for _, prediction, truth, _ in validate(pairs, recipe)])


def predict_tests(fast, tests, recipe, machine, csv, stop):
    """Write the submission, going on where an interrupted run of the same weights and recipe
    stopped; returns [(name, why its mask is blank)]."""
    state = [tensor.cpu() for tensor in fast.state_dict().values()]
    key = digest([*state, np.array([repr(recipe), str(machine.dtype), *map(str, tests)])])
    share = shard(tests)
    write_shard(csv, key, [test.name for test in share], lambda done: stop.guarded(
        predict_masks(fast, share, recipe, machine, done)))
    wait_for_all()
    return merge_submission(csv, tests) if rank() == 0 else []


def draw_previews(count, errors, val_pairs, recipe, validate, metrics, out):
    """Write preview/*.png; a picture that cannot be drawn costs a log line, not the run."""
    rows = []
    if errors:
        calibrate = calibration_of(recipe)
        chosen = dict(sorted(spread(errors, count)))
        mask = np.isin(np.arange(len(val_pairs)), list(chosen))
        shown = merged([(image, calibrate(prediction), truth, path) for image, prediction, truth,
                        path in validate(val_pairs.where(mask), recipe)])
        rows = [(image, prediction, truth, f"{title}: {path.rsplit('/', 1)[-1]}")
                for (image, prediction, truth, path), title in zip(shown, chosen.values())]
        rows.sort(key=lambda row: -np.square(row[1] - row[2]).mean())
    pictures = {
        "validation.png": rows and (save_validation_preview, rows),
        "training.png": metrics and (save_training_preview, metrics),
        "submission.png": (lambda csv, path: save_submission_preview(csv, path, count),
                           out / "submission.csv"),
    }
    for name, drawing in pictures.items() if rank() == 0 else ():
        if not drawing:
            continue
        draw, shown = drawing
        try:
            draw(shown, out / "preview" / name)
        except Exception as error:  # whatever a picture fails with, the results are there
            log(f"preview/{name} was not drawn: {error}")


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


def describe(inputs, settings, training, test_count):
    """The header of the log: what was found and what will be done."""
    log(f"Mode: {'train and predict' if training else 'predict'} {test_count} test images")
    for name in ("train_csv", "val_csv", "test_root", "sample_csv", "checkpoint", "out"):
        log(f"  {name}: {getattr(inputs, name) or '-'}")
    log("Settings: " + ", ".join(f"{name} {value}" for name, value in vars(settings).items()
                                 if value is not None and not hasattr(inputs, name)))
    if training and inputs.checkpoint is None:
        log("No checkpoint to start from: the network learns from random weights")


def summarise(recipe, errors, images_per_second, problems, out):
    """The end of the log: how good, how fast, what was written, what could not be read."""
    shown = ", ".join(f"{k} {v}" for k, v in recipe.items() if k not in ("curve", "trials"))
    log(f"Done in {time.time() - STARTED:.0f} s. Recipe: {shown}")
    if errors:
        mse = np.mean(errors)
        log(f"  validation MSE {mse:.6f} in 0..1, {mse * 255**2:.1f} in 0..255, over {len(errors)} "
            "images of their own size")
    log(f"  predicted {images_per_second:.2f} images/s")
    for path in sorted(out.glob("*.*")) + sorted(out.glob("preview/*.png")):
        if path.stat().st_mtime >= STARTED:
            log(f"  wrote {path} ({path.stat().st_size:,} bytes)")
    for name, reason in problems[:20]:
        log(f"  BLANK MASK for {name}: {reason}")
    if problems:
        log(f"{len(problems)} test images could not be read; their masks are blank, and the exit "
            f"status is {UNREADABLE_STATUS}")


def main(argv=None):
    """Run from the command line; returns the exit status: 2 for bad input, 3 when test images were
    unreadable, 128 + the signal's number after a signal."""
    settings = parse_settings(argv)
    launched = relaunch(settings.gpus, settings.device)
    if launched is not None:
        return launched
    try:
        status = run(settings)
        leave_group()
        return status
    except (UserError, Interrupted) as error:
        # Loaders that the error has left behind end their workers here, in order, not at exit.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, Interrupted):
            log("Stopped. The same command goes on from here.")
            return 128 + error.args[0]
        # A DataLoader worker's error arrives with the worker's traceback before its sentence.
        sentence = str(error).strip().rsplit("UserError: ", 1)[-1]
    except OSError as error:  # no room, no permission: the system's own words name the file
        if error.strerror is None:
            raise
        sentence = f"{error.filename or 'writing results'}: {error.strerror}"
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
