"""Make training pairs of photographs that have no alpha (a developer's tool).

    python -m src.tools.label_photographs OUT PHOTOGRAPHS --networks u2netp.pth isnet.onnx

A photograph's alpha is the mean of what the networks predict. OUT/train.csv lists the pairs, those
first on which the networks agree most; look at the last ones, and remove what is wrong. Those on
which they don't agree what the subject is are left out.

A network learns on squares cut out of a photograph, but predicts with the whole photograph
stretched to a square, so each that is no square is there a second time, stretched.

Composites alone make a network forget photographs: on real ones the sixth weights' error was two
fifths higher than that of the published weights they came from (kernel/weights/README.md).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from src.runtime.console import UserError, log
from src.runtime.hardware import Machine, prepare_machine
from src.runtime.tables import write_table
from src.inputs.discovery import COLUMNS
from src.inputs.listing import list_images
from src.data.images import open_image
from src.data.pixels import to_uint8
from src.network.checkpoint import build_network, read_checkpoint
from src.prediction.predictor import Predictor, make_predictor, make_views
from src.prediction.recipe import Recipe

LEAST_AGREEMENT = 0.74  # the networks' common part of the subject, as a share of all their parts
LONGEST_SIDE = 1024  # pixels; larger photographs are reduced
SQUARE = 1.1  # ratio of the sides up to which a photograph counts as square


class OnnxNetwork:
    """A network of the kind of IS-Net: an ONNX file whose input is [1,3,S,S] in [-0.5,0.5] and
    whose first output is alpha, [1,1,S,S] in [0,1]."""

    def __init__(self, path):
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no other class in common
            raise UserError(f"{path}: cannot be read as an ONNX file ({error})") from None
        source, first = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.input, self.output, self.side = source.name, first.name, source.shape[3]

    def matte(self, images):
        """float32 [1,3,S,S] in [-1,1] -> alpha [1,1,S,S] in [0,1]"""
        (alpha,) = self.session.run([self.output], {self.input: (images / 2).numpy()})
        return torch.from_numpy(alpha)


def predictor_of(path):
    """The `Predictor` of a checkpoint, mirrored and refined, or of an ONNX file"""
    if path.suffix == ".onnx":
        network = OnnxNetwork(path)
        recipe = Recipe(network.side)
        return Predictor(make_views(network, recipe), recipe)
    return make_predictor(build_network(read_checkpoint(path)), Recipe(flip=True), Machine())


def labelled(photographs, predictors):
    """Yields (path, alpha uint8 [H,W], agreement in 0..1) of each photograph that can be read."""
    for path in photographs:
        try:
            image = open_image(path, "RGB")
        except UserError as error:
            log(f"{error}; it is left out")
            continue
        alphas = np.stack([to_uint8(each.alpha(image)) for each in predictors]).astype(np.float32)
        agreement = alphas.min(axis=0).sum() / max(alphas.max(axis=0).sum(), 1)
        yield path, np.rint(alphas.mean(axis=0)).astype(np.uint8), float(agreement)


def write_pairs(path, alpha, out):
    """Write a photograph and its alpha, and both stretched to a square; returns the rows."""
    layers = [open_image(path, "RGB"), Image.fromarray(alpha)]
    for layer in layers:
        layer.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    longest, shortest = max(layers[0].size), min(layers[0].size)
    forms = {"": layers}
    if longest > SQUARE * shortest:
        forms["_square"] = [layer.resize((longest, longest)) for layer in layers]
    rows = []
    for form, (image, matte) in forms.items():
        rows.append((f"photographs/{path.stem}{form}.jpg",
                     f"photographs/{path.stem}{form}_alpha.png"))
        image.save(out / rows[-1][0], quality=94)
        matte.save(out / rows[-1][1])
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("photographs", type=Path, help="folder of photographs of one subject each")
    parser.add_argument("--networks", type=Path, nargs="+", required=True, metavar="FILE",
                        help="checkpoints of this project, and IS-Net as an ONNX file")
    arguments = parser.parse_args(argv)
    prepare_machine(0)
    try:
        photographs = list_images(arguments.photographs)
        predictors = [predictor_of(path) for path in arguments.networks]
        (arguments.out / "photographs").mkdir(parents=True, exist_ok=True)
        kept = [(agreement, write_pairs(path, alpha, arguments.out))
                for path, alpha, agreement in labelled(photographs, predictors)
                if agreement >= LEAST_AGREEMENT]
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept.sort(key=lambda each: -each[0])
    write_table(arguments.out / "train.csv", [row for _, rows in kept for row in rows], COLUMNS)
    log(f"Labelled {len(photographs)} photographs; on {len(kept)} the networks agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
