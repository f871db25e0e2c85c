"""The notebook's recipe against ours at equal compute: validation MSE after a short fine-tune.

    python tests/benchmarks/bench_recipe.py --weights u2netp.pth --train-csv CSV --val-csv CSV

Both start from the same published weights and see the same number of training pixels of the same
rows: the notebook crops of 512 unscaled, batches of 4, lr 1e-4, then predictions at 1024 with its
calibration; ours our defaults, crops of 320 at chance scale, then predictions at 320 with the
recipe that needs no validation data. Validation images are compared at their own size; where the
CSV has a column `backdrop`, for each kind. `--steps 0` shows the start. Further arguments are our
settings, to try others: `--lr 3e-4 --train-size 256`.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from notebook import BATCH, predicted, training_steps  # noqa: E402
from src.config import parse_settings  # noqa: E402
from src.runtime.hardware import machine_for, prepare_machine  # noqa: E402
from src.runtime.stopping import StopWatch  # noqa: E402
from src.data.cache import open_cache  # noqa: E402
from src.data.datasets import open_layers  # noqa: E402
from src.data.pairs import Splits, read_pairs  # noqa: E402
from src.network.checkpoint import build_network, read_checkpoint  # noqa: E402
from src.training.loop import train  # noqa: E402
from src.prediction.predictor import make_predictor  # noqa: E402
from src.prediction.recipe import Recipe  # noqa: E402

NOTEBOOK_SIZE = 512


def notebook_errors(weights, csv, pairs, steps):
    """MSE of each validation pair after `steps` of the notebook's training."""
    random.seed(0)
    torch.manual_seed(0)
    model = build_network(read_checkpoint(weights))
    for _, _ in zip(range(steps), training_steps(model, csv, NOTEBOOK_SIZE)):
        pass
    model.eval()
    errors = []
    for index in range(len(pairs)):
        image, alpha = open_layers(*pairs[index])
        mask = Image.fromarray(predicted(model, image)).resize(alpha.size)
        errors.append(np.square((np.asarray(mask, float) - np.asarray(alpha)) / 255).mean())
    return errors


def our_errors(weights, settings, pairs, steps):
    """The same for our training, with as many pixels, in one epoch."""
    prepare_machine(settings.seed)
    machine = machine_for(torch.device("cpu"), settings.amp, settings.workers)
    model = build_network(read_checkpoint(weights))
    if steps:
        count = round(steps * BATCH * (NOTEBOOK_SIZE / settings.train_size) ** 2)
        rows = read_pairs(settings.train_csv, cache=open_cache(settings.cache, False))
        rows = rows.where(np.resize(np.arange(len(rows)), count))
        settings = dataclasses.replace(settings, epochs=1, epoch_samples=count)
        with tempfile.TemporaryDirectory() as folder:
            inputs = SimpleNamespace(out=Path(folder), checkpoint=weights, unfinished=None,
                                     kaggle_input=None)
            train(model, Splits(rows, pairs), settings, machine, inputs, StopWatch())
    predictor = make_predictor(
        model, Recipe(settings.predict_size or settings.train_size), machine)
    return [np.square(prediction - truth).mean()
            for _, _, prediction, truth in predictor.validation(pairs)]


def by_kind(errors, csv):
    """'0.0123 (plain 0.0050, photo 0.0196)'"""
    text = f"{np.mean(errors):.4f}"
    table = pd.read_csv(csv)
    if "backdrop" in table:
        kinds = pd.Series(errors).groupby(table["backdrop"]).mean()
        text += " (" + ", ".join(f"{kind} {mse:.4f}" for kind, mse in kinds.items()) + ")"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--train-csv", type=Path, required=True)
    parser.add_argument("--val-csv", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24, help="the notebook's, 4 crops of 512 each")
    parser.add_argument("--ours-only", action="store_true", help="leave the notebook out")
    arguments, more = parser.parse_known_args()
    settings = parse_settings(["--train-csv", str(arguments.train_csv), "--schedule", "cosine",
                               *more])
    pairs, errors = read_pairs(arguments.val_csv), {}
    systems = {
        "notebook": lambda: notebook_errors(
            arguments.weights, arguments.train_csv, pairs, arguments.steps),
        "ours": lambda: our_errors(arguments.weights, settings, pairs, arguments.steps),
    }
    for name, measure in systems.items():
        if arguments.ours_only and name == "notebook":
            continue
        began = time.monotonic()
        errors[name] = measure()
        print(f"{name:9} MSE {by_kind(errors[name], arguments.val_csv)}  "
              f"{time.monotonic() - began:.0f} s", flush=True)
    if len(errors) == 2:
        ratio = np.mean(errors["ours"]) / np.mean(errors["notebook"])
        print(f"ours / notebook: {ratio:.3f} (1/{1 / ratio:.1f})")


if __name__ == "__main__":
    main()
