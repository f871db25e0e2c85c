"""MAGICK alpha: train U2-NetP, predict the alpha channel of single-subject images."""

import os
import sys
import time
import traceback
from dataclasses import replace
from functools import partial

import numpy as np

from src.config import PICTURES, default_text, parse_settings
from src.runtime.console import UserError, log
from src.runtime.distributed import (
    NO_GROUP_STATUS, NoGroup, agree, end_of_another, end_process, first_to_end, join_group,
    leave_group, merged, relaunch, shard, wait_for_all,
)
from src.runtime.files import digest
from src.runtime.hardware import choose_device, describe_machine, machine_for, prepare_machine
from src.runtime.processes import rank, world_size
from src.runtime.stopping import STARTED, Interrupted, StopWatch
from src.runtime.tables import write_table
from src.inputs.discovery import BEST_CHECKPOINT, LAST_CHECKPOINT
from src.inputs.places import (
    KAGGLE_INPUT, check_complete, find_inputs, is_empty, list_images, list_pictures,
    list_tests,
)
from src.data.cache import open_cache
from src.data.pairs import Splits, read_pairs, shared_images, split_off
from src.data.datasets import without_unreadable
from src.data.demo import demo_places, make_demo
from src.network.u2net import NETWORKS
from src.network.checkpoint import (
    network_of, read_checkpoint, weights_digest, write_checkpoint,
)
from src.training.state import unfinished
from src.training.loop import train, write_skipped
from src.prediction.calibration import choose_calibration
from src.prediction.choice import candidate_sizes, choose_recipe, compare_members
from src.prediction.predictor import Ensemble, make_ensemble, make_predictor
from src.prediction.recipe import Recipe, read_recipe, stored_form
from src.results.metrics import errors_of
from src.results.preview import (
    save_submission_preview, save_training_preview, save_validation_preview, spread,
)
from src.results.pictures import save_pictures
from src.results.submission import encoded_row, merge_submission, taken_rows, write_shard

KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12
SCORED = 500  # validation images that the final score looks at
UNREADABLE_STATUS = 3  # exit status when a test image could not be read, except on Kaggle
PROBLEMS = "problems.csv"


def run(settings):
    """The story: find, train or load, choose, predict, write, show. Returns the exit status."""
    machine = take_machine(settings)
    inputs, checkpoint, training = find(settings)
    recipe = read_recipe(checkpoint, settings.train_size)
    tests = (list_pictures(settings.pictures, inputs.out, settings.limit) if settings.pictures else
             list_tests(inputs.test_root, inputs.sample_csv, settings.limit))
    stop = StopWatch(settings.time_limit or (KAGGLE_HOURS if inputs.kaggle_input else None))
    stop.listen()
    describe(inputs, settings, training, len(tests))
    splits = find_pairs(inputs, settings, training, machine)

    model, metrics, finished = start_model(checkpoint, settings.network), [], False
    if training:
        reserve = partial(seconds_after_training, len(splits.val), len(tests))
        metrics, finished = train(model, splits, settings, machine, inputs, stop, reserve)
        recipe = Recipe(settings.train_size)

    predictor = make_predictor(model, recipe, machine)
    predictor = with_others(predictor, checkpoint, inputs, settings, splits.val)
    predictor = with_open_choices(predictor, settings, splits.val, stop)
    if training and rank() == 0:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(),
                         recipe=stored_form(predictor.recipe))
    scores = score(predictor, splits.val, stop)
    errors = [each["mse"] for each in scores]
    shown = shown_pairs(predictor, splits.val, errors, settings.preview, stop)

    began = time.monotonic()
    problems = predict_tests(predictor, tests, settings, inputs.out, stop)
    # From here on rank 0 works alone, however long it takes: nothing waits for the others any more.
    rate = len(tests) / (time.monotonic() - began)
    status = UNREADABLE_STATUS if problems and not inputs.kaggle_input else 0
    if rank() == 0:
        if finished:
            (inputs.out / LAST_CHECKPOINT).unlink(missing_ok=True)
        if not settings.pictures:
            draw_previews(settings.preview, shown, scores, metrics, tests, inputs.out)
            write_table(inputs.out / "validation.csv",
                        sorted(scores, key=lambda each: -each["mse"]))
            write_table(inputs.out / PROBLEMS, problems, ["filename", "reason"])
        summarise(predictor.recipes, scores, rate, problems, inputs.out, status)
    return status


# ---------------------------------------------------------------- find


def take_machine(settings):
    """The `Machine` of this process: generators seeded, the others joined, its device chosen.

    Raises NoGroup when the processes cannot work together.
    """
    prepare_machine(settings.seed)
    join_group()
    device = choose_device(settings.device)
    if all(agree(device.type == "cpu", device.type != "cpu")):
        raise NoGroup("a card does not work in one of the processes")
    log(describe_machine(device))
    return machine_for(device, settings.amp, settings.workers)


def find(settings):
    """(inputs, checkpoint or None, whether to train); without any data a drawn demonstration set.

    Raises UserError when something that the run needs is missing.
    """
    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    if checkpoint and settings.network not in ("auto", checkpoint.network):
        if settings.checkpoint:
            raise UserError(f"--network {settings.network}: {checkpoint.path} holds "
                            f"{checkpoint.network}; leave --network out, or name other weights")
        log(f"{checkpoint.path} is left aside: it holds {checkpoint.network}")
        inputs, checkpoint = replace(inputs, checkpoint=None), None
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
    if demo:
        show_demo(inputs, settings.seed)
    return inputs, checkpoint, training


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


def start_model(checkpoint, network):
    """The network that a run starts from: the checkpoint's, else one with random weights."""
    if checkpoint:
        return network_of(checkpoint)
    return NETWORKS["u2netp" if network == "auto" else network]()


def describe(inputs, settings, training, test_count):
    """The header of the log: what was found and what will be done."""
    log(f"Mode: {'train and predict' if training else 'predict'} {test_count} test images")
    for name in ("train_csv", "val_csv", "test_root", "sample_csv", "checkpoint", "unfinished",
                 "out"):
        log(f"  {name}: {getattr(inputs, name) or '-'}")
    for path in inputs.others:
        log(f"  averaged with: {path}")
    log("Settings: " + ", ".join(
        f"{name} {default_text(value)}" for name, value in vars(settings).items()
        if value not in (None, ()) and not hasattr(inputs, name)))
    if training and inputs.checkpoint is None:
        log("No checkpoint to start from: the network learns from random weights")


def find_pairs(inputs, settings, training, machine):
    """The `Splits` of a run, without the validation pairs that cannot be read.

    Validation pairs are split off the others where only training data are there.
    """
    photographs = tuple(list_images(settings.backgrounds)) if settings.backgrounds else ()
    cache = open_cache(settings.cache, inputs.kaggle_input is not None)
    splits = Splits(*(csv and read_pairs(csv, settings.limit, photographs, cache)
                      for csv in (inputs.train_csv if training else None, inputs.val_csv)))
    if training and splits.val is None:
        splits = split_off(splits.train)
        log(f"No validation CSV: {len(splits.val)} of the training rows validate")
    if training and (shared := shared_images(*splits)):
        log(f"WARNING: {shared} validation images are training images too; the validation MSE "
            "promises too much")
    if splits.val is None:
        return splits
    splits = splits._replace(val=without_unreadable(splits.val, machine))
    if not training and rank() == 0:
        write_skipped(inputs.out, splits.val.skipped)
    return splits


# ---------------------------------------------------------------- choose


def seconds_after_training(val_count, test_count, val_seconds):
    """What must be left of the time when training ends: two validations, the choice of a recipe (of
    two sizes, with and without mirroring), a calibration, the final score and the prediction (by
    the slowest recipe, both sizes mirrored, with decoding and encoding), half as much again for safety,
    and half a minute.

    val_seconds: what a validation image takes, all processes together.
    """
    overhead = 0.2 / world_size()
    recipes = min(val_count, 64) * (6 * val_seconds + 4 * overhead)
    calibration = 2 * val_count * (6 * val_seconds + overhead)
    prediction = test_count * (6 * val_seconds + overhead)
    return 1.5 * (2 * val_count * val_seconds + recipes + calibration + prediction) + 30


def with_others(predictor, checkpoint, inputs, settings, val_pairs):
    """The predictor, or the `Ensemble` of it and of the inputs' other checkpoints.

    The same weights count once. With --ensemble a checkpoint without a recipe is not of this
    project, and left out.
    """
    members = {str(inputs.checkpoint): predictor}
    seen = {weights_digest(checkpoint.model_state): inputs.checkpoint} if inputs.others else {}
    for path in inputs.others:
        other = read_checkpoint(path)
        same = seen.setdefault(weights_digest(other.model_state), path)
        if same != path or path == inputs.checkpoint:
            log(f"{path} has the weights of {same}, and counts once")
        elif settings.ensemble and not other.recipe:
            log(f"{path} is left out: it has no recipe, so it is not of this project")
        else:
            recipe = read_recipe(other, predictor.sizes[0])
            members[str(path)] = make_predictor(network_of(other), recipe, predictor.machine)
    if len(members) == 1:
        return predictor
    ensemble = make_ensemble(members.values())
    if val_pairs:
        compare_members(ensemble, val_pairs, members)
    return ensemble


def with_open_choices(predictor, settings, val_pairs, stop):
    """The predictor with what its recipe leaves open chosen on validation data, where there are
    any; --predict-size and --calibration take precedence."""
    recipe = predictor.recipe
    if recipe.calibration is None and val_pairs and not isinstance(predictor, Ensemble):
        sizes = [settings.predict_size] if settings.predict_size else (
            candidate_sizes(recipe.predict_size))
        predictor = choose_recipe(predictor, val_pairs, sizes)
    if settings.predict_size:
        predictor = predictor.with_recipe(predict_size=settings.predict_size)
    if settings.calibration != "auto":
        return predictor.with_recipe(calibration=settings.calibration, curve=None)
    if recipe.calibration is not None:
        return predictor
    if val_pairs is None:
        log("No validation data and no recipe: predictions are taken as they are")
        return predictor.with_recipe(calibration="none")
    chosen, errors = choose_calibration(
        (prediction, truth)
        for _, prediction, truth, _ in stop.guarded(predictor.validation(val_pairs)))
    log("Validation MSE at the images' own size, by calibration: "
        + ", ".join(f"{name} {mse:.6f}" for name, mse in errors.items()))
    return predictor.with_recipe(**chosen)


def score(predictor, val_pairs, stop):
    """For each of the first validation images its path, its kind of backdrop if the CSV tells it,
    and the errors of the final recipe at its own size, a dict."""
    if val_pairs is None:
        return []
    pairs = val_pairs.first(SCORED)
    rows = stop.guarded(predictor.validation(pairs))
    scores = merged([
        {"image_path": path, **errors_of(predictor.calibrated(prediction), truth)}
        for _, prediction, truth, path in rows])
    if pairs.backdrops is None:
        return scores
    return [{**each, "backdrop": kind} for each, kind in zip(scores, pairs.backdrops.tolist())]


# ---------------------------------------------------------------- predict, write, show


def predict_tests(predictor, tests, settings, out, stop):
    """Write the submission, or the pictures alone, going on where an interrupted run of the same
    weights and recipe stopped; returns [(name, why its mask is blank)]."""
    csv = out / ("pictures" if settings.pictures else "submission.csv")
    kinds = settings.save or (PICTURES if settings.pictures else ())
    finish = partial(finished_row, {test.name: test for test in tests}, kinds, out,
                     not settings.pictures)
    state = [tensor.cpu() for tensor in predictor.network.state_dict().values()]
    key = digest([*state, np.array([repr(predictor.recipes), repr(kinds), *map(str, tests)])])
    share = shard(tests)
    write_shard(csv, key, [test.name for test in share], lambda done: stop.guarded(
        predictor.masks(share, done)), finish)
    wait_for_all()
    if rank() > 0:
        return []
    if settings.pictures:
        return [(name, problem) for name, _, problem in taken_rows(csv) if problem]
    return merge_submission(csv, tests)


def finished_row(tests, kinds, out, with_mask, item):
    """The row of (name, mask, problem), its mask as text or left out, once its pictures are
    written; an image that cannot be read has none."""
    name, mask, problem = item
    if not problem:
        save_pictures(out, kinds, tests[name], mask)
    return encoded_row(item) if with_mask else (name, "", problem)


def shown_pairs(predictor, val_pairs, errors, count, stop):
    """What save_validation_preview shows: `count` validation images from the worst to the best."""
    if not errors or not count:
        return []
    titles = dict(sorted(spread(errors, count)))
    mask = np.isin(np.arange(len(val_pairs)), list(titles))
    rows = stop.guarded(predictor.validation(val_pairs.where(mask)))
    rows = merged([(image, predictor.calibrated(prediction), truth, os.path.basename(path))
                   for image, prediction, truth, path in rows])
    rows = [(*row[:3], f"{title}: {row[3]}") for row, title in zip(rows, titles.values())]
    return sorted(rows, key=lambda row: -np.square(row[1] - row[2]).mean())


def draw_previews(count, shown, scores, metrics, tests, out):
    """Write preview/*.png; a picture that cannot be drawn costs a log line, not the run."""
    pictures = [("validation.png", partial(save_validation_preview, scores=scores), shown),
                ("training.png", save_training_preview, metrics),
                ("submission.png", partial(save_submission_preview, tests=tests, count=count),
                 out / "submission.csv")]
    for name, draw, content in pictures if count else ():
        if not content:
            continue
        try:
            draw(content, path=out / "preview" / name)
        except Exception as error:  # whatever a picture fails with, the results are there
            log(f"preview/{name} was not drawn: {error}")


def summarise(recipes, scores, images_per_second, problems, out, status):
    """The end of the log: how good, how fast, what was written, what could not be read."""
    log(f"Done in {time.time() - STARTED:.0f} s")
    for recipe in recipes:
        log("  recipe: " + ", ".join(f"{k} {v}" for k, v in vars(recipe).items() if k != "curve"))
    if scores:
        mse, sad, gradient = (
            np.mean([each[name] for each in scores]) for name in ("mse", "sad", "gradient"))
        log(f"  validation MSE {mse:.6f} in 0..1, {mse * 255**2:.1f} in 0..255, SAD {sad:.2f}, "
            f"gradient error {gradient:.2f}, over {len(scores)} images of their own size")
    log(f"  predicted {images_per_second:.2f} images/s")
    for kind in PICTURES:
        count = sum(path.stat().st_mtime >= STARTED for path in (out / kind).rglob("*.png"))
        if count:
            log(f"  wrote {count} pictures into {out / kind}")
    for path in sorted(out.glob("*.*")) + sorted(out.glob("preview/*.png")):
        if path.stat().st_mtime >= STARTED:
            log(f"  wrote {path} ({path.stat().st_size:,} bytes)")
    for name, reason in problems[:20]:
        log(f"  BLANK MASK for {name}: {reason}")
    if problems:
        log(f"{len(problems)} test images could not be read: their masks are blank in a submission "
            f"({PROBLEMS} lists them), there are no pictures of them, and the exit status is "
            f"{status}")


# ---------------------------------------------------------------- the command line


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
    end_process(main())
