"""Make the checkpoint that is shipped from the weights of several trainings (a developer's tool).

    python -m src.tools.ship u2netp.pth fine_tuned.pth more.pth \\
        --out kernel/weights/u2netp_alpha.pth --val-csv CSV [--shares 0.4,0.3,0.3 ...]

Averages of the weights are tried, and the one of the lowest validation MSE is taken: between two
ends this is WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, equation
1), among several a model soup (Wortsman et al., "Model soups", ICML 2022). Without --shares they
are all averages in fifths. Then the recipe is chosen on the same images, and the kernels are stored
in fp16. There is no calibration: the one that won by 2 % on 70 validation images lost as much on
others.
"""

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from src.runtime.console import UserError, log
from src.runtime.hardware import machine_for, prepare_machine
from src.data.pairs import read_pairs
from src.network.checkpoint import build_network, read_checkpoint, write_checkpoint
from src.prediction.choice import choose_views, squared_error
from src.prediction.predictor import make_predictor
from src.prediction.recipe import Recipe, stored_form

MACHINE = machine_for(torch.device("cpu"), "off", None)
SIZES = (320, 352, 384)


def parse_shares(text):
    """'0.4,0.6' -> (0.4, 0.6)"""
    shares = tuple(float(part) for part in text.split(","))
    if abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: the shares must add up to 1")
    return shares


def fifths(count):
    """All tuples of `count` shares in fifths that add up to 1, those of equal parts first"""
    tuples = [parts for parts in product(range(6), repeat=count) if sum(parts) == 5]
    return [tuple(part / 5 for part in parts) for parts in sorted(tuples, key=max)]


def averaged(states, shares):
    """The state_dict of the weighted mean of several; counters are the last one's."""
    return {key: sum(share * state[key] for share, state in zip(shares, states))
            if last.is_floating_point() else last for key, last in states[-1].items()}


def validation_mse(checkpoint, pairs, size):
    """Mean MSE at the images' own size by the recipe that needs no choice"""
    rows = make_predictor(build_network(checkpoint), Recipe(size), MACHINE).validation(pairs)
    return float(np.mean([squared_error(alpha, truth) for _, _, alpha, truth in rows]))


def halved(model_state):
    """The state_dict with its convolution kernels in fp16: half the size, computed in float32.

    Biases and batch norms, a hundredth of the size, stay as they are. Rounding errors are diffused
    along the taps of each kernel, so that they cancel where a feature map is smooth: on published
    weights that changes the validation MSE by 1.3e-6, plain rounding by 9.4e-5.
    """
    return {key: value if value.ndim < 4 else rounded_to_half(value)
            for key, value in model_state.items()}


def rounded_to_half(kernels):
    """[out,in,h,w] -> the same in fp16, each tap rounded together with the last one's error."""
    taps = kernels.double().flatten(2)
    rounded, error = [], 0.0
    for tap in taps.unbind(2):
        rounded.append((tap + error).half())
        error = tap + error - rounded[-1].double()
    return torch.stack(rounded, dim=2).view(kernels.shape)


def rounded(state):
    """(as it is stored, as it is read back): kernels in fp16, computed in float32"""
    stored = halved(state)
    return stored, {key: tensor.float() if tensor.is_floating_point() else tensor
                    for key, tensor in stored.items()}


def read_all(paths):
    """The `Checkpoint`s. Raises UserError when they are not of one network."""
    checkpoints = [read_checkpoint(path) for path in paths]
    for each in checkpoints:
        if each.network != checkpoints[0].network:
            raise UserError(f"{each.path}: holds {each.network}, {checkpoints[0].path} holds "
                            f"{checkpoints[0].network}; only weights of one network have a mean")
    return checkpoints


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--val-csv", type=Path, required=True)
    parser.add_argument("--shares", type=parse_shares, nargs="+", metavar="X,Y,...")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args(argv)
    trials = arguments.shares or fifths(len(arguments.checkpoints))
    if any(len(shares) != len(arguments.checkpoints) for shares in trials):
        parser.error("--shares: give one share for each checkpoint")
    prepare_machine(0)
    try:
        checkpoints = read_all(arguments.checkpoints)
        pairs = read_pairs(arguments.val_csv)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states, errors = [each.model_state for each in checkpoints], {}
    for shares in trials:
        candidate = replace(checkpoints[0], model_state=averaged(states, shares))
        errors[shares] = validation_mse(candidate, pairs, arguments.sizes[0])
        log(f"{','.join(map(str, shares))}: validation MSE {errors[shares]:.6f}")
    best = min(errors, key=errors.get)
    stored, state = rounded(averaged(states, best))
    model = build_network(replace(checkpoints[0], model_state=state))
    predictor = make_predictor(model, Recipe(arguments.sizes[0]), MACHINE)
    predictor = choose_views(predictor, pairs, arguments.sizes)
    recipe = stored_form(predictor.with_recipe(calibration="none").recipe)
    write_checkpoint(arguments.out, stored, recipe={**recipe, "shares": best})
    log(f"Wrote {arguments.out}: {arguments.out.stat().st_size:,} bytes, shares {best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
