"""MAGICK alpha: train U2-NetP, predict the alpha channel of single-subject images."""

import os
import sys
import time
import traceback
from dataclasses import replace

import numpy as np
import pandas as pd

from src.config import parse_settings
from src.console import UserError, log, rank
from src.distributed import (
    NO_GROUP_STATUS, NoGroup, agree, end_of_another, first_to_end, join_group, leave_group, merged,
    relaunch, shard, wait_for_all,
)
from src.stopping import STARTED, Interrupted, StopWatch
from src.inputs import (
    BEST_CHECKPOINT, KAGGLE_INPUT, LAST_CHECKPOINT, check_complete, find_inputs, is_empty,
    list_images, list_tests,
)
from src.demo import demo_places, make_demo
from src.hardware import choose_device, describe_machine, machine_for, prepare_machine
from src.pairs import read_pairs, shared_images, split_off
from src.data import without_unreadable, write_skipped
from src.u2netp import U2NETP
from src.files import digest, replacing
from src.checkpoint import read_checkpoint, write_checkpoint
from src.training import train, unfinished
from src.calibration import calibration_of, choose_calibration
from src.prediction import predict_masks, predictor, validation_pairs
from src.recipe import UNTRIED, candidate_sizes, choose_recipe
from src.submission import merge_submission, write_shard
from src.preview import (
    save_submission_preview, save_training_preview, save_validation_preview, spread,
)

KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12
SCORED = 500  # validation images that the final score looks at
UNREADABLE_STATUS = 3  # exit status when a test image could not be read, but for Kaggle
PROBLEMS = "problems.csv"


def run(settings):
    """The story: find, train or load, calibrate, predict, write, show. Returns the exit status."""
    prepare_machine(settings.seed)
    join_group()
    machine = machine_for(shared_device(settings.device), settings.amp, settings.workers)
    log(describe_machine(machine.device))
    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    recipe = dict(checkpoint.recipe or {}) if checkpoint else {}
    training = settings.mode == "train" or (settings.mode == "auto" and (
        not recipe or (unfinished(inputs) is not None and inputs.train_csv is not None)))
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
        metrics = train(model, train_pairs, val_pairs, settings, machine, inputs, stop, len(tests),
                        skipped)
        recipe = {}
    elif rank() == 0:
        write_skipped(inputs.out / "skipped.csv", skipped)

    fast = predictor(model, machine)

    def validate(pairs, recipe):
        return stop.guarded(validation_pairs(fast, pairs, recipe, machine))

    recipe = complete_recipe(recipe, settings, fast, val_pairs, machine)
    recipe.update(calibration_for(settings.calibration, recipe, val_pairs, validate))
    if training and rank() == 0:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(), recipe=recipe)
    errors = score(val_pairs.first(SCORED), recipe, validate) if val_pairs else []
    rows = preview_rows(settings.preview, errors, val_pairs, recipe, validate)

    began = time.monotonic()
    problems = predict_tests(fast, tests, recipe, machine, inputs.out / "submission.csv", stop)
    # From here on rank 0 works alone, however long it takes: nothing waits for the others any more.
    rate = len(tests) / (time.monotonic() - began)
    if settings.preview:
        draw_previews(settings.preview, rows, metrics, inputs.out)
    if len(metrics) == settings.epochs and rank() == 0:
        (inputs.out / LAST_CHECKPOINT).unlink(missing_ok=True)
    status = UNREADABLE_STATUS if problems and not inputs.kaggle_input else 0
    summarise(recipe, errors, rate, problems, inputs.out, status)
    return status


def shared_device(name):
    """The device of this process, of the same kind in all. Raises NoGroup for mixed ones."""
    device = choose_device(name)
    if all(agree(device.type == "cpu", device.type != "cpu")):
        raise NoGroup("a card does not work in one of the processes")
    return device


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
    key = digest([*state, np.array([repr(recipe), *map(str, tests)])])
    share = shard(tests)
    write_shard(csv, key, [test.name for test in share], lambda done: stop.guarded(
        predict_masks(fast, share, recipe, machine, done)))
    wait_for_all()
    return merge_submission(csv, tests) if rank() == 0 else []


def preview_rows(count, errors, val_pairs, recipe, validate):
    """What save_validation_preview shows: `count` validation images from the worst to the best."""
    if not errors or not count:
        return []
    calibrate = calibration_of(recipe)
    chosen = dict(sorted(spread(errors, count)))
    mask = np.isin(np.arange(len(val_pairs)), list(chosen))
    shown = merged([(image, calibrate(prediction), truth, path) for image, prediction, truth,
                    path in validate(val_pairs.where(mask), recipe)])
    rows = [(image, prediction, truth, f"{title}: {path.rsplit('/', 1)[-1]}")
            for (image, prediction, truth, path), title in zip(shown, chosen.values())]
    return sorted(rows, key=lambda row: -np.square(row[1] - row[2]).mean())


def draw_previews(count, rows, metrics, out):
    """Write preview/*.png; a picture that cannot be drawn costs a log line, not the run."""
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
    for name in ("train_csv", "val_csv", "test_root", "sample_csv", "checkpoint", "unfinished",
                 "out"):
        log(f"  {name}: {getattr(inputs, name) or '-'}")
    log("Settings: " + ", ".join(f"{name} {value}" for name, value in vars(settings).items()
                                 if value is not None and not hasattr(inputs, name)))
    if training and inputs.checkpoint is None:
        log("No checkpoint to start from: the network learns from random weights")


def summarise(recipe, errors, images_per_second, problems, out, status):
    """The end of the log: how good, how fast, what was written, what could not be read; this also
    in problems.csv."""
    if rank() > 0:  # the others' files may be gone while one looks at them
        return
    write_problems(out / PROBLEMS, problems)
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
        log(f"{len(problems)} test images could not be read; their masks are blank, they are listed "
            f"in {out / PROBLEMS}, and the exit status is {status}")


def write_problems(path, problems):
    """problems.csv: the test images whose masks are blank, and why; no file when there are none."""
    path.unlink(missing_ok=True)
    if problems:
        with replacing(path) as part:
            pd.DataFrame(problems, columns=["filename", "reason"]).to_csv(part, index=False)


def main(argv=None):
    """Run from the command line; returns the exit status: 2 for bad input, 3 when test images were
    unreadable (0 on Kaggle, which would throw the submission away), 128 + the signal's number after
    a signal."""
    settings = parse_settings(argv)
    if KAGGLE_INPUT.is_dir():
        # Some drivers hang when cards talk to each other directly; by way of the host's memory it
        # costs nothing for gradients of 4 MB.
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
    try:
        launched = relaunch(settings.gpus, settings.device)
        if launched is not None:
            return launched
        status = run(settings)
        leave_group()
        return status
    except NoGroup as error:
        print(f"WARNING: process {rank()} cannot work with the others ({error})", flush=True)
        # Not sys.exit: a thread that waits for NCCL could keep the process alive.
        os._exit(NO_GROUP_STATUS)
    except Exception as error:
        # Loaders that the error has left behind end their workers here, in order, not at exit.
        traceback.clear_frames(error.__traceback__)
        return status_of(error)


def status_of(error):
    """Say what ended the run, unless another process has; the exit status. Raises what is a
    mistake in this script."""
    if isinstance(error, Interrupted):
        status, sentence = 128 + error.args[0], "Stopped. The same command goes on from here."
    elif isinstance(error, UserError):
        # A DataLoader worker's error arrives with the worker's traceback before its sentence.
        status, sentence = 2, "error: " + str(error).strip().rsplit("UserError: ", 1)[-1]
    elif isinstance(error, OSError) and error.strerror:  # the system's own words name the file
        status, sentence = 2, f"error: {error.filename or 'writing results'}: {error.strerror}"
    else:
        status = end_of_another(error)
        if status is None:
            first_to_end(1)
            raise error
        return status
    if first_to_end(status):
        print(sentence, file=sys.stdout if isinstance(error, Interrupted) else sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
