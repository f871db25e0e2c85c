"""Turn a checkpoint into an ONNX file for rembg (a developer's tool).

    python -m src.tools.export_onnx u2netp_best.pth u2netp_alpha.onnx [--half]
    rembg i -m u2net_custom -x '{"model_path": "u2netp_alpha.onnx"}' photo.jpg cutout.png

rembg divides the image at 320 pixels by its maximum and normalises it with ImageNet's mean and
standard deviation. The file begins with the map from there to [-1,1], and its first output is d0.
Needs the package onnx, which the kernel itself does not.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from src.runtime.console import UserError, log
from src.runtime.files import replacing
from src.runtime.hardware import Machine
from src.network.checkpoint import build_network, read_checkpoint
from src.prediction.predictor import make_predictor
from src.prediction.recipe import Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 320  # pixels; the published network's own input
OPSET = 17  # read by every onnxruntime from 1.12 on


class FromImageNet(nn.Module):
    """A network of input [-1,1] as one of ImageNet-normalised images: [1,3,320,320] -> (d0, …,
    d6), float32 [1,1,320,320] in [0,1]. With `half` its weights and layers are fp16."""

    def __init__(self, network, half):
        super().__init__()
        self.network = network.half() if half else network
        self.half_precision = half
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image):
        pixels = 2 * (image * self.std + self.mean) - 1
        return self.network(pixels.half() if self.half_precision else pixels)


def export(checkpoint, path, half=False):
    """Write a `Checkpoint`'s network, its batch norms folded, as an ONNX file."""
    network = make_predictor(build_network(checkpoint), Recipe(), Machine()).views[0].network
    with replacing(path) as part:
        torch.onnx.export(
            FromImageNet(network, half).eval(), (torch.zeros(1, 3, SIZE, SIZE),), str(part),
            opset_version=OPSET, input_names=["image"],
            output_names=[f"d{number}" for number in range(7)], dynamo=False)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("onnx", type=Path, help="the file to write")
    parser.add_argument("--half", action="store_true", help="fp16: half the size")
    arguments = parser.parse_args(argv)
    try:
        export(read_checkpoint(arguments.checkpoint), arguments.onnx, arguments.half)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log(f"Wrote {arguments.onnx}: {arguments.onnx.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
