"""MAGICK alpha: train U2-NetP, predict the alpha channel of single-subject images."""

import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from math import prod

from src.config import PICTURES, Settings, default_text, flag_name, parse_settings
from src.runtime.console import UserError, accept_any_letter, log
from src.runtime.distributed import (
    FAILURE_VARIABLE, NO_GROUP_STATUS, NoGroup, end_process, first_to_end, is_guarded, is_launched,
    noted_reason, relaunch, run_after, status_from_another, was_asked_to_end,
)
from src.runtime.hardware import take_machine
from src.runtime.processes import rank, world_size
from src.runtime.stopping import STARTED, Interrupted, StopWatch
from src.inputs.discovery import BEST_CHECKPOINT, LAST_CHECKPOINT, discover
from src.inputs.listing import list_pictures, list_tests
from src.inputs.places import (
    KAGGLE_INPUT, KAGGLE_WORKING, check_complete, check_tables, find_inputs, is_empty,
)
from src.data.demo import demo_places, show_demo
from src.data.splits import find_splits
from src.network.checkpoint import build_network, read_checkpoint, write_checkpoint
from src.network.u2net import U2NETP
from src.training.loop import train
from src.training.state import take_over, unfinished
from src.prediction.choice import choose, with_others
from src.prediction.predictor import make_predictor
from src.prediction.recipe import Recipe, read_recipe, stored_form
from src.results.report import score, shown_pairs, summarise, write_report
from src.results.submission import commonest_size, predict_tests

KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12
BAD_INPUT = 2  # exit status
OVERTIME_SECONDS = 1200  # after the time limit, in which a run ends by itself unless it hangs
UNREADABLE_STATUS = 3  # exit status when an image had a problem, except on Kaggle


def run(settings, failure=""):
    """The story: find, train or load, choose, predict, write, show. Returns the exit status.

    failure: the reason why the run before failed, after which this one only predicts.
    """
    machine = take_machine(settings)
    inputs, checkpoint, training = find_after(settings, failure) if failure else find(settings)
    recipe = read_recipe(checkpoint, settings.train_size)
    tests = (list_pictures(settings.pictures, inputs.out, settings.limit) if settings.pictures else
             list_tests(inputs.test_root, inputs.sample_csv, settings.limit))
    describe(inputs, settings, training, len(tests))
    splits = find_splits(inputs, settings, training)
    stop = StopWatch(settings.time_limit or (KAGGLE_HOURS if inputs.kaggle_input else None),
                     partial(seconds_after_training, len(splits.val or ()), len(tests),
                             prod(commonest_size(tests)) / 1e6 if training else 0),
                     saves=training)
    stop.listen()

    model, finished = build_network(checkpoint) if checkpoint else U2NETP(), False
    if training:
        _, finished = train(model, splits, settings, machine, inputs, stop)
        recipe = Recipe(settings.predict_size or settings.train_size)

    predictor = make_predictor(model, recipe, machine)
    predictor = with_others(
        predictor, checkpoint, inputs.others, settings.ensemble, splits.val)
    predictor = choose(predictor, settings, splits.val, stop)
    if training and rank() == 0:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(),
                         recipe=stored_form(predictor.recipe))
    scores = score(predictor, splits.val, stop)
    shown = shown_pairs(predictor, splits.val, scores, settings.preview, stop)

    began = time.monotonic()
    kinds = settings.save or (PICTURES if settings.pictures else ())
    csv_path = None if settings.pictures else inputs.out / "submission.csv"
    problems, notes = predict_tests(
        predictor, tests, kinds, inputs.out, csv_path, stop, strict=is_guarded())
    problems = [("the run", failure)] * bool(failure) + problems
    # From here on rank 0 works alone, however long it takes: nothing waits for the others any more.
    if rank() == 0:
        rate = len(tests) / (time.monotonic() - began)
        try:
            if finished:
                (inputs.out / LAST_CHECKPOINT).unlink(missing_ok=True)
            if not settings.pictures:
                write_report(inputs.out, settings.preview, scores, shown, tests, problems + notes)
            summarise(predictor.recipe, scores, rate, problems, notes, inputs.out,
                      is_complete=bool(settings.pictures))
        except Exception as error:
            if not inputs.kaggle_input:  # there the submission counts
                raise
            log(f"The report is not complete: {error}")
    return UNREADABLE_STATUS if problems and not inputs.kaggle_input else 0


# ---------------------------------------------------------------- find


def find(settings):
    """(inputs, checkpoint or None, whether to train); without any data a drawn demonstration set.

    Raises UserError when something that the run needs is missing.
    """
    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    ours = checkpoint is not None and bool(checkpoint.recipe)
    continues = unfinished(inputs) is not None and inputs.train_csv is not None
    if settings.mode == "train" and inputs.others:
        raise UserError("--mode train: training starts from one checkpoint; name one with "
                        "--checkpoint, without --ensemble")
    training = settings.mode == "train" or (
        settings.mode == "auto" and not settings.pictures and not inputs.others
        and (not ours or continues))
    demo = is_empty(inputs) and not inputs.kaggle_input
    if demo:
        inputs = replace(inputs, **demo_places(inputs.out / "demo"))
    check_complete(inputs, training)
    if not (settings.pictures or inputs.kaggle_input):
        check_tables(inputs)
    if demo:
        show_demo(inputs, settings.seed)
    return inputs, checkpoint, training


def find_after(settings, failure):
    """As `find`, for a prediction after a run that has failed, with the best weights that there are
    and without the tables, which may be the reason.

    What was attached to be continued is kept for the next session.
    """
    log("=" * 72)
    log(f"THE RUN HAS FAILED: {failure}")
    log("What follows is a prediction with the best weights that there are.")
    log("=" * 72)
    out, found = settings.out or KAGGLE_WORKING, discover(KAGGLE_INPUT)
    for part in out.glob("*.part"):
        part.unlink()
    if found["unfinished"] and not (out / LAST_CHECKPOINT).is_file():
        try:
            take_over(found["unfinished"][0], out)
        except OSError as error:
            log(f"WARNING: the attached training is not kept for the next session: {error}")
    checkpoint = best_there_is(
        [out / BEST_CHECKPOINT, *(settings.checkpoint or found["checkpoint"])],
        out / LAST_CHECKPOINT)
    inputs = find_inputs(replace(settings, train_csv=None, val_csv=None,
                                 checkpoint=checkpoint and (checkpoint.path,)))
    inputs = replace(inputs, train_csv=None, val_csv=None)
    check_complete(inputs, training=False)
    return inputs, checkpoint, False


def best_there_is(paths, last):
    """The first `Checkpoint` with a recipe; else the last.pth, else the first that can be read, or
    None.

    u2netp_best.pth has no recipe before the first step, when it is a copy of others, which may.
    """
    trained = (each for each in readable(paths) if each.recipe)
    return next(trained, None) or next(readable([last, *paths]), None)


def readable(paths):
    """Yields the `Checkpoint`s of the files that are there and can be used."""
    for path in filter(os.path.isfile, paths):
        try:
            checkpoint = read_checkpoint(path)
            read_recipe(checkpoint, 320)
        except Exception as error:  # of weights of any origin
            log(f"Left out: {error}")
        else:
            yield checkpoint


def describe(inputs, settings, training, test_count):
    """Log the files that were found, and the settings."""
    images = "pictures" if settings.pictures else "test images"
    log(f"Mode: {'train and predict' if training else 'predict'} {test_count} {images}")
    for name in ("train_csv", "val_csv", "test_root", "sample_csv", "checkpoint", "unfinished",
                 "backgrounds", "out"):
        if getattr(inputs, name) and not (settings.pictures and name == "test_root"):
            log(f"  {name}: {getattr(inputs, name)}")
    for path in inputs.others:
        log(f"  averaged with: {path}")
    changed = [f"{flag_name(name)} {default_text(value)}" for name, value in vars(settings).items()
               if value != getattr(Settings, name) and name not in ("pictures", *vars(inputs))]
    if changed:
        log("  " + " ".join(changed))
    if training and inputs.checkpoint is None:
        log("No checkpoint to start from: the network learns from random weights")


def seconds_after_training(val_count, test_count, megapixels, val_seconds):
    """Seconds to reserve after training: two validations, the choice of a recipe (of two sizes,
    with and without mirroring), a calibration, the final score and the prediction (by the slowest
    recipe, both sizes mirrored, with decoding and encoding); half as much again, and half a minute.

    megapixels: of a test image; val_seconds: seconds of a validation image, all processes together.
    """
    overhead = 0.2 * max(1, megapixels) / world_size()
    recipes = min(val_count, 64) * (6 * val_seconds + 4 * overhead)
    calibration = 2 * val_count * (6 * val_seconds + overhead)
    prediction = test_count * (6 * val_seconds + overhead)
    return 1.5 * (2 * val_count * val_seconds + recipes + calibration + prediction) + 30


# ---------------------------------------------------------------- the command line


def main(argv=None):
    """Run from the command line; returns the exit status: 2 for bad input, 3 when images had
    problems, 128 + the signal's number after a signal."""
    accept_any_letter()
    settings, on_kaggle = parse_settings(argv), KAGGLE_INPUT.is_dir()
    if on_kaggle:
        # Some drivers hang when cards talk to each other directly; by way of the host's memory it
        # costs nothing for gradients of 4 MB.
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
    failure = os.environ.get(FAILURE_VARIABLE, "")
    if failure:  # what may have been its reason is left out
        settings = replace(settings, mode="predict", device="cpu", amp="auto", ensemble=False,
                           backgrounds=None)
    guarded = on_kaggle and not (settings.pictures or failure or is_launched())
    if guarded:
        end_at(STARTED + 3600 * (settings.time_limit or KAGGLE_HOURS) + OVERTIME_SECONDS)
    status = attempt(settings, guarded, failure)
    return end_well(settings, status) if guarded and status else status


def end_at(when):
    """Raise TimeoutError at that time, and once more later: what hangs would last till Kaggle ends
    the session, and loses all."""
    def time_is_up(number, frame):
        signal.alarm(OVERTIME_SECONDS // 2)
        raise TimeoutError("the time is up")

    signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(max(1, round(when - time.time())))


def end_well(settings, status):
    """The exit status after a run on Kaggle has ended with another than 0, for which Kaggle throws
    all results away.

    Unless the input was bad it is tried once more, from its last save. Then comes a prediction on
    the CPU with the best weights there are. 0 if there is a submission or a trained checkpoint.
    """
    submission, *weights = ((settings.out or KAGGLE_WORKING) / name for name in
                            ("submission.csv", BEST_CHECKPOINT, LAST_CHECKPOINT))
    hours_left = (settings.time_limit or KAGGLE_HOURS) - (time.time() - STARTED) / 3600
    reason = noted_reason(status)
    if status != BAD_INPUT and hours_left > 1 and not (
            is_new(submission) or was_asked_to_end()):
        log(f"WARNING: {reason}; the run starts again")
        status = attempt(settings, True)
        reason = noted_reason(status)
    if not status or was_asked_to_end():
        return status
    if is_new(submission):
        log(f"The submission is complete; what came after it has failed: {reason}")
        return 0
    try:
        status = run_after(reason)
    except Exception as error:  # the time is up, or no process can be started
        log(f"The prediction has failed: {error}")
    if status and any(map(is_new, (submission, *weights))):
        log("The prediction has failed too; see above. Status 0, so that Kaggle keeps the files.")
        return 0
    return status


def is_new(path):
    """Whether this run has written the file"""
    return path.is_file() and path.stat().st_mtime >= STARTED


def attempt(settings, guarded, failure=""):
    """The exit status of one run, in the processes that it takes; see `run` and `relaunch`."""
    try:
        launched = None if failure else relaunch(settings.gpus, settings.device, guarded)
        if launched is not None:
            return launched
        return run(settings, failure)
    except NoGroup as error:
        print(f"WARNING: process {rank()} cannot work with the others ({error})", flush=True)
        # Not sys.exit: a thread that waits for NCCL could keep the process alive.
        os._exit(NO_GROUP_STATUS)
    except Exception as error:
        # Loaders that the error has left behind end their workers here, in order, not at exit.
        traceback.clear_frames(error.__traceback__)
        return report_end(error, guarded)


def report_end(error, guarded):
    """Report why the run ended and return the exit status; re-raise bugs, unless it is guarded."""
    if isinstance(error, Interrupted):
        number, saved = error.args
        status = 128 + number
        sentence = "Stopped. The same command " + (
            "goes on from here." if saved else "begins anew.")
    elif isinstance(error, UserError):
        # A DataLoader worker's error arrives with the worker's traceback before its sentence.
        status, sentence = BAD_INPUT, "error: " + str(error).strip().rsplit("UserError: ", 1)[-1]
    elif isinstance(error, OSError) and error.strerror:  # the system's own words name the file
        status = 1 if is_guarded() else BAD_INPUT  # it may pass
        sentence = f"error: {error.filename or type(error).__name__}: {error.strerror}"
    else:
        status = status_from_another(error)
        if status is None:
            last = (str(error).strip().splitlines() or [""])[-1]  # behind a loader's traceback
            first_to_end(1, f"{type(error).__name__}: {last}")
            if not guarded and world_size() == 1:
                raise error
            traceback.print_exception(error)  # the interpreter's own end may abort; see end_process
        return status or 1
    reason = "" if isinstance(error, Interrupted) else sentence.removeprefix("error: ")
    if first_to_end(status, reason):
        print(sentence, file=sys.stdout if isinstance(error, Interrupted) else sys.stderr)
    return status


if __name__ == "__main__":
    end_process(main())
