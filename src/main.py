"""MAGICK alpha: train U2-NetP, predict the alpha channel of single-subject images."""

import sys
import time
from dataclasses import replace

from src.config import parse_settings
from src.console import UserError, log
from src.inputs import BEST_CHECKPOINT, check_complete, find_inputs, is_empty, list_images
from src.demo import make_demo
from src.hardware import amp_dtype, choose_device, prepare_machine, worker_count
from src.data import ValidationSet, make_loader, read_pairs
from src.u2netp import U2NETP
from src.checkpoint import read_checkpoint, write_checkpoint
from src.training import train
from src.calibration import calibration_errors
from src.prediction import predict_masks, validation_pairs
from src.submission import write_submission
from src.preview import save_submission_preview, save_validation_preview

PREVIEWS = 3  # validation images that are drawn


def run(settings):
    """The story: find, train or load, calibrate, predict, write, show."""
    started = time.monotonic()
    prepare_machine(settings.seed)
    device = choose_device(settings.device)
    dtype, workers = amp_dtype(settings.amp, device), worker_count(settings.workers)

    inputs = find_inputs(settings)
    checkpoint = read_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    recipe = dict(checkpoint.recipe or {}) if checkpoint else {}
    training = settings.mode == "train" or (settings.mode == "auto" and not recipe)
    inputs = with_demo(inputs, settings.seed)
    check_complete(inputs, training)
    images = list_images(inputs.test_root, settings.limit)
    describe(inputs, settings, device, training, len(images))

    model = U2NETP()
    if checkpoint:
        model.load_state_dict(checkpoint.model_state)
    val_pairs = read_pairs(inputs.val_csv, settings.limit) if inputs.val_csv else None
    if training:
        train_pairs = read_pairs(inputs.train_csv, settings.limit)
        train(model, train_pairs, val_pairs, settings, device, inputs.out)
        recipe = {}
    model.to(device)

    def validate(pairs):
        loader = make_loader(ValidationSet(pairs, recipe["predict_size"]), 1, workers, device)
        return validation_pairs(model, loader, device, dtype)

    recipe["predict_size"] = (
        settings.predict_size or recipe.get("predict_size") or settings.train_size)
    recipe["calibration"] = choose_calibration(
        settings.calibration, recipe.get("calibration"), validate(val_pairs) if val_pairs else ())
    if training:
        write_checkpoint(inputs.out / BEST_CHECKPOINT, model.state_dict(), recipe=recipe)
    if val_pairs:
        save_validation_preview(
            validate(val_pairs.first(PREVIEWS)), inputs.out / "preview" / "validation.png")

    submission = inputs.out / "submission.csv"
    masks = predict_masks(model, images, recipe, device, dtype, workers)
    write_submission(masks, images, submission)
    save_submission_preview(submission, inputs.out / "preview" / "submission.png")
    log(f"Wrote {submission}: {len(images)} rows, recipe {recipe}, "
        f"{time.monotonic() - started:.0f} s in all")


def choose_calibration(wanted, stored, validation):
    """Name of the calibration: the flag's, else the checkpoint's, else the better one on
    validation data, else none."""
    if wanted != "auto":
        return wanted
    if stored:
        return stored
    errors = calibration_errors((prediction, truth) for _, prediction, truth, _ in validation)
    if not errors:
        log("No validation data and no recipe: predictions are taken as they are")
        return "none"
    log("Validation MSE by calibration: "
        + ", ".join(f"{name} {mse:.6f}" for name, mse in errors.items()))
    return min(errors, key=errors.get)


def with_demo(inputs, seed):
    """The inputs, with a demonstration set in place of data when there is none at all."""
    if inputs.kaggle_input or not is_empty(inputs):
        return inputs
    folder = inputs.out / "demo"
    log("=" * 72)
    log(f"DEMONSTRATION: no data was found, so a small drawn set stands in, in {folder}.")
    log("Its figures say nothing about real images; name yours with --train-csv, --val-csv and")
    log("--test-root.")
    log("=" * 72)
    return replace(inputs, **make_demo(folder, seed), demo=True)


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
    """Run from the command line; returns the exit status, 2 for bad input."""
    try:
        run(parse_settings(argv))
    except UserError as error:
        # A DataLoader worker's error arrives with the worker's traceback before its sentence.
        sentence = str(error).strip().rsplit("UserError: ", 1)[-1]
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
