"""From an image to its alpha: the network at the recipe's size, then the image's own size."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.runtime.console import UserError, progress
from src.runtime.hardware import Machine
from src.runtime.threads import mapped_ahead
from src.data.datasets import ScoredSet, TestSet, make_loader, share_loader
from src.network.u2net import ConvNormReLU
from src.prediction.calibration import calibration_of
from src.prediction.recipe import Recipe
from src.prediction.refinement import refine


@dataclass(frozen=True)
class Predictor:
    """A network, the recipe to predict with, and the machine to do it on.

    network: anything whose matte(float32 [B,3,h,w] in [-1,1]) is an alpha [B,1,h,w] in [0,1].
    """

    network: nn.Module
    recipe: Recipe
    machine: Machine

    def with_recipe(self, **changes):
        """The same network and machine with some of the recipe's values changed."""
        return replace(self, recipe=replace(self.recipe, **changes))

    def calibrated(self, alpha):
        """float [H,W] in [0,1] -> the same through the recipe's calibration"""
        return calibration_of(self.recipe)(alpha)

    @torch.inference_mode()
    def once(self, batch, mirrored=False):
        """alpha, float32 [B,1,h,w] in [0,1] on the CPU, of a batch's "img", float32 [B,3,h,w] in
        [-1,1].

        mirrored: predict the mirror image, and mirror the result back. In float32 on every device:
        bf16's 8 bits are enough to learn with but not to predict with (with batch norms folded they
        doubled the validation MSE of a fine-tuned network, 0.0082 to 0.0156), and a network of 1.1
        million parameters gains little time from fp16. Raises UserError, naming the image, for a
        prediction that is NaN or infinite.
        """
        images = batch["img"].flip(3) if mirrored else batch["img"]
        alpha = self.network.matte(self.machine.to_device(images)).cpu()
        if not torch.isfinite(alpha).all():
            names = batch["name"] if "name" in batch else batch["path"]
            raise UserError(f"{', '.join(names)}: the network predicts NaN or infinite alpha; "
                            "train with a lower --lr, or take another checkpoint")
        return alpha.flip(3) if mirrored else alpha

    def small_alpha(self, batch):
        """alpha [B,1,h,w] at the network's size, averaged with the mirrored one if so set"""
        alpha = self.once(batch)
        return (alpha + self.once(batch, mirrored=True)) / 2 if self.recipe.flip else alpha

    def alphas(self, loader, title, done=0):
        """Yields (batch, alpha [H,W] in [0,1]) for each image of a loader, before calibration.

        Loader workers decode ahead, and threads bring the alphas to full size behind the network,
        so that it need not wait.
        """
        small = ((batch, self.small_alpha(batch))
                 for batch in progress(loader, title, done, "image"))

        def finish(item):
            batch, alpha = item
            return batch, at_full_size(alpha, batch["img"], batch["full"], self.recipe.refine)

        yield from mapped_ahead(finish, small)

    def masks(self, tests, done=0):
        """Yields (name, uint8 mask [H,W] of the image's own size, "" or why the mask is blank).

        tests: list of TestImage, of which the first `done` are left out.
        """
        calibrate = calibration_of(self.recipe)
        loader = make_loader(TestSet(tests[done:], self.recipe.predict_size), 1, self.machine)
        for batch, alpha in self.alphas(loader, "predict", done):
            problem = batch["problem"][0]
            yield batch["name"][0], to_uint8(calibrate(alpha) * (not problem)), problem

    def validation(self, pairs):
        """Yields (image, prediction, truth, path) of this process's share of the validation pairs.

        image: float32 [3,size,size] in [-1,1]; prediction, before calibration, and truth: float32
        arrays [H,W] in [0,1] of the image's own size, where the competition compares them.
        """
        loader = share_loader(ScoredSet(pairs, self.recipe.predict_size), 1, self.machine)
        for batch, alpha in self.alphas(loader, "predict val"):
            yield batch["img"][0], alpha, truth_of(batch), batch["path"][0]


def make_predictor(model, recipe, machine):
    """A `Predictor` with a copy of U2NETP that predicts the same, faster: batch norms folded into
    the convolutions before them (the same affine map per channel), channels last in memory."""
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, ConvNormReLU):
            module.conv_s1 = fuse_conv_bn_eval(module.conv_s1, module.bn_s1)
            module.bn_s1 = nn.Identity()
    network = network.to(machine.device, memory_format=torch.channels_last)
    return Predictor(network, recipe, machine)


def truth_of(batch):
    """The true alpha of a ScoredSet's batch of one, float32 [H,W] in [0,1]"""
    return batch["truth"][0].numpy().astype(np.float32) / 255


def at_full_size(alpha, small, full, refined):
    """The alpha of one image, float32 [1,1,h,w], as an array [H,W] in [0,1] of the image's size.

    small: float32 [1,3,h,w] in [-1,1]; full: uint8 [1,H,W,3]. `refined` lets edges follow the
    image; it does nothing where the image is not larger than the network's input.
    """
    height, width = full.shape[1:3]
    if refined and height > alpha.shape[2] and width > alpha.shape[3]:
        guide = full.permute(0, 3, 1, 2).float() / 255
        return refine(alpha, (small + 1) / 2, guide)[0, 0].numpy()
    return resize_alpha(alpha, width, height)[0, 0].numpy()


def resize_alpha(alpha, width, height):
    """alpha, float32 [B,1,h,w] -> [B,1,height,width] in [0,1]; bicubic, antialiased downwards."""
    if alpha.shape[2:] == (height, width):
        return alpha
    return F.interpolate(
        alpha, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)


def to_uint8(alpha):
    """float [H,W] in [0,1] -> uint8, rounded: truncating would lose half a level everywhere."""
    return np.rint(alpha * 255).astype(np.uint8)
