"""Make the checkpoint that is shipped from published and fine-tuned weights (a developer's tool).

    python -m src.tools.ship u2netp.pth fine_tuned.pth kernel/weights/u2netp_alpha.pth --val-csv CSV

The weights between both ends are tried, w = (1 - s) published + s fine-tuned (WiSE-FT, Wortsman et
al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation 1), and the share s of the
lowest validation MSE is taken; then the recipe and the calibration are chosen on the same images,
and the kernels are stored in fp16.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from src.runtime.console import UserError, log
from src.runtime.hardware import machine_for, prepare_machine
from src.data.pairs import read_pairs
from src.network.checkpoint import halved, read_checkpoint, write_checkpoint
from src.network.u2net import U2NETP
from src.prediction.calibration import choose_calibration
from src.prediction.choice import choose_recipe
from src.prediction.predictor import make_predictor
from src.prediction.recipe import Recipe, stored_form

MACHINE = machine_for(torch.device("cpu"), "off", None)
SHARES = (0.4, 0.6, 0.8, 1.0)
SIZES = (320, 352, 384)


def between(first, last, share):
    """The state_dict at `share` of the way from one to the other; counters are the last one's."""
    return {key: torch.lerp(first[key], value, share) if value.is_floating_point() else value
            for key, value in last.items()}


def predictor_of(model_state, size):
    model = U2NETP()
    model.load_state_dict(model_state)
    return make_predictor(model, Recipe(size), MACHINE)


def validation_mse(predictor, pairs):
    """Mean MSE at the images' own size"""
    rows = predictor.validation(pairs)
    return float(np.mean([np.square(alpha - truth).mean() for _, alpha, truth, _ in rows]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("published", type=Path)
    parser.add_argument("fine_tuned", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--val-csv", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args(argv)
    prepare_machine(0)
    try:
        ends = [read_checkpoint(path).model_state
                for path in (arguments.published, arguments.fine_tuned)]
        pairs = read_pairs(arguments.val_csv)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    errors = {}
    for share in arguments.shares:
        errors[share] = validation_mse(
            predictor_of(between(*ends, share), arguments.sizes[0]), pairs)
        log(f"{share:.2f} of the way: validation MSE {errors[share]:.6f}")
    best = min(errors, key=errors.get)
    state = halved(between(*ends, best))
    whole = {key: tensor.float() if tensor.is_floating_point() else tensor
             for key, tensor in state.items()}
    predictor = choose_recipe(predictor_of(whole, arguments.sizes[0]), pairs, arguments.sizes)
    calibration, trials = choose_calibration(
        (alpha, truth) for _, alpha, truth, _ in predictor.validation(pairs))
    log("By calibration: " + ", ".join(f"{name} {mse:.6f}" for name, mse in trials.items()))
    recipe = stored_form(predictor.with_recipe(**calibration).recipe)
    write_checkpoint(arguments.out, state, recipe={**recipe, "share": best})
    log(f"Wrote {arguments.out}: {arguments.out.stat().st_size:,} bytes, {best:.2f} of the way")
    return 0


if __name__ == "__main__":
    sys.exit(main())
