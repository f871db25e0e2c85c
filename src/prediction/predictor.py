"""From an image to its alpha: the network at the recipe's sizes, then the image's own size."""

import copy
import os
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.runtime.console import UserError, progress
from src.runtime.distributed import shard
from src.runtime.hardware import Machine, choose_device, machine_for
from src.runtime.threads import mapped_ahead
from src.data.datasets import whole_pair
from src.data.images import read_picture, with_own_alpha
from src.data.pixels import image_tensor, resized
from src.network.checkpoint import build_network, read_checkpoint
from src.network.u2net import ConvNormReLU
from src.prediction.calibration import calibrated
from src.prediction.recipe import Recipe, read_recipe
from src.prediction.refinement import refine


class View(NamedTuple):
    """One way to look at an image: through a network, at a size, mirrored or not."""

    network: nn.Module
    size: int
    mirrored: bool = False


@dataclass(frozen=True)
class Predictor:
    """Views whose alphas are averaged. Several sizes, mirroring and several networks are all lists
    of views; of the recipe, refinement and calibration remain to be done.

        alpha = load("kernel/weights/u2netp_alpha.pth").alpha(Image.open("photo.jpg"))

    A view's network is anything whose matte(float32 [B,3,h,w] in [-1,1]) is an alpha [B,1,h,w] in
    [0,1].
    """

    views: tuple[View, ...]
    recipe: Recipe
    machine: Machine = Machine()

    def with_recipe(self, **changes):
        """The same networks and machine with some of the recipe's values changed."""
        recipe = replace(self.recipe, **changes)
        networks = dict.fromkeys(view.network for view in self.views)
        views = self.views if changes.keys() <= {"refine", "calibration"} else tuple(
            view for network in networks for view in make_views(network, recipe))
        return replace(self, recipe=recipe, views=views)

    def alpha(self, image):
        """float32 [H,W] in [0,1] of a PIL image of any mode, or of a file."""
        if not isinstance(image, (Image.Image, str, os.PathLike)):
            raise TypeError(f"alpha() takes a PIL image or a path, not {type(image).__name__}")
        picture = read_picture(image)
        ((_, alpha, _),) = self.alphas([("the image", picture.rgb, None)])
        return with_own_alpha(alpha, picture)

    def alphas(self, items):
        """Yields (image, alpha [H,W] in [0,1], more) for each (name, RGB image, more), in order.

        Threads bring the alphas to full size behind the network, so that it need not wait.
        """
        def finished(item):
            image, small, more = item
            return image, self.full_alpha(image, small), more

        small = ((image, self.small_alphas(name, image), more) for name, image, more in items)
        yield from mapped_ahead(finished, small, pixels=lambda item: prod(item[0].size))

    def small_alphas(self, name, image):
        """[(the network's input, [alpha of each view that has it])], float32 [1,3,size,size] and
        [1,1,size,size]"""
        inputs = network_inputs(image, self.sizes)
        return [(inputs[size], [once(view, inputs[size], self.machine, name)
                                for view in self.views if view.size == size])
                for size in self.sizes]

    def full_alpha(self, image, small):
        """The mean of all views' alphas, [H,W] in [0,1] of an RGB image's own size"""
        full = None
        for inputs, alphas in small:
            part = at_full_size(average(alphas), inputs, image, self.recipe.refine)
            part *= len(alphas) / len(self.views)  # in place, for large images
            full = part if full is None else full + part
        return calibrated(full, self.recipe.calibration)

    @property
    def sizes(self):
        """The different sides of the networks' inputs"""
        return tuple(dict.fromkeys(view.size for view in self.views))

    def validation(self, pairs):
        """Yields (path, image, alpha, truth) of this process's share of the validation pairs.

        image: RGB; alpha and truth: float32 arrays [H,W] in [0,1] of the image's own size, where
        the competition compares them.
        """
        def opened(index):
            image, alpha, _ = whole_pair(pairs, index)
            return pairs[index][0], image, (pairs[index][0], np.asarray(alpha, np.float32) / 255)

        indices = progress(shard(range(len(pairs))), "predict val", unit="image")
        for image, alpha, (path, truth) in self.alphas(mapped_ahead(opened, indices)):
            yield path, image, alpha, truth


def load(path, device="auto"):
    """The `Predictor` of a checkpoint by its own recipe. Raises UserError, naming the file, when it
    holds no weights of U2-Net or U2-NetP."""
    checkpoint = read_checkpoint(path)
    machine = machine_for(choose_device(device), "off", None)
    return make_predictor(build_network(checkpoint), read_recipe(checkpoint, 320), machine)


def make_predictor(model, recipe, machine):
    """A `Predictor` with a copy of the network that predicts the same, faster: batch norms folded
    into the convolutions before them (the same affine map per channel), channels last in memory."""
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, ConvNormReLU):
            module.conv_s1 = fuse_conv_bn_eval(module.conv_s1, module.bn_s1)
            module.bn_s1 = nn.Identity()
    network = network.to(machine.device, memory_format=torch.channels_last)
    return Predictor(make_views(network, recipe), recipe, machine)


def make_views(network, recipe):
    """The views of one network that a recipe names"""
    return tuple(View(network, size, mirrored) for size in recipe.sizes
                 for mirrored in (False, True)[:1 + recipe.flip])


def network_inputs(image, sizes):
    """{size: float32 [1,3,size,size] in [-1,1]} of an RGB image"""
    return {size: image_tensor(resized(image, size))[None] for size in sizes}


@torch.inference_mode()
def once(view, inputs, machine, name):
    """A view's alpha, float32 [1,1,size,size] in [0,1] on the CPU, of inputs as `network_inputs`
    gives them.

    In float32 on every device: bf16's 8 bits are enough to learn with but not to predict with (with
    batch norms folded they doubled the validation MSE of a fine-tuned network, 0.0082 to 0.0156),
    and a network of 1.1 million parameters gains little time from fp16. Raises UserError, naming
    the image, for a prediction that is NaN or infinite.
    """
    alpha = view.network.matte(machine.to_device(inputs.flip(3) if view.mirrored else inputs)).cpu()
    if not torch.isfinite(alpha).all():
        raise UserError(f"{name}: the network predicts NaN or infinite alpha; train with a lower "
                        "--lr, or take another checkpoint")
    return alpha.flip(3) if view.mirrored else alpha


def average(alphas):
    return sum(alphas[1:], start=alphas[0]) / len(alphas)


@torch.inference_mode()
def at_full_size(alpha, inputs, image, refined):
    """An alpha, float32 [1,1,h,w], as an array [H,W] in [0,1] of its RGB image's size.

    inputs: the image as the network saw it, float32 [1,3,h,w] in [-1,1]. `refined` lets edges
    follow the image; it does nothing where the image is not larger than the network's input.
    """
    height, width = alpha.shape[2:]
    if refined and image.height > height and image.width > width:
        return refine(alpha, (inputs + 1) / 2, image)
    return resize_alpha(alpha, image.width, image.height)[0, 0].numpy()


def resize_alpha(alpha, width, height):
    """alpha, float32 [B,1,h,w] -> [B,1,height,width] in [0,1]; bicubic, antialiased downwards."""
    if alpha.shape[2:] == (height, width):
        return alpha
    return F.interpolate(
        alpha, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
