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

    @property
    def sizes(self):
        """The sides of the network's input"""
        return self.recipe.sizes

    @property
    def recipes(self):
        """The recipes of all networks, each with the calibration of the whole"""
        return (self.recipe,)

    def with_recipe(self, **changes):
        """The same network and machine with some of the recipe's values changed."""
        return replace(self, recipe=replace(self.recipe, **changes))

    def calibrated(self, alpha):
        """float [H,W] in [0,1] -> the same through the recipe's calibration"""
        return calibration_of(self.recipe)(alpha)

    @torch.inference_mode()
    def once(self, batch, size, mirrored=False):
        """alpha, float32 [B,1,size,size] in [0,1] on the CPU, of batch["img"][size], float32
        [B,3,size,size] in [-1,1].

        mirrored: predict the mirror image, and mirror the result back. In float32 on every device:
        bf16's 8 bits are enough to learn with but not to predict with (with batch norms folded they
        doubled the validation MSE of a fine-tuned network, 0.0082 to 0.0156), and a network of 1.1
        million parameters gains little time from fp16. Raises UserError, naming the image, for a
        prediction that is NaN or infinite.
        """
        images = batch["img"][size].flip(3) if mirrored else batch["img"][size]
        alpha = self.network.matte(self.machine.to_device(images)).cpu()
        if not torch.isfinite(alpha).all():
            names = batch["name"] if "name" in batch else batch["path"]
            raise UserError(f"{', '.join(names)}: the network predicts NaN or infinite alpha; "
                            "train with a lower --lr, or take another checkpoint")
        return alpha.flip(3) if mirrored else alpha

    def small_alphas(self, batch):
        """[(size, alpha [B,1,size,size])] of the recipe's sizes, mirrored too if it says so"""
        alphas = []
        for size in self.sizes:
            alpha = self.once(batch, size)
            if self.recipe.flip:
                alpha = (alpha + self.once(batch, size, mirrored=True)) / 2
            alphas.append((size, alpha))
        return alphas

    def full_alpha(self, batch, small_alphas):
        """The mean of the small alphas of a batch of one image, [H,W] in [0,1] of its own size"""
        return mean_of([at_full_size(alpha, batch["img"][size], batch["full"], self.recipe.refine)
                        for size, alpha in small_alphas])

    def alphas(self, loader, title, done=0):
        """Yields (batch, alpha [H,W] in [0,1]) for each image of a loader, before calibration.

        Loader workers decode ahead, and threads bring the alphas to full size behind the network,
        so that it need not wait.
        """
        small = ((batch, self.small_alphas(batch))
                 for batch in progress(loader, title, done, "image"))
        yield from mapped_ahead(lambda item: (item[0], self.full_alpha(*item)), small)

    def masks(self, tests, done=0):
        """Yields (name, uint8 mask [H,W] of the image's own size, "" or why the mask is blank).

        tests: list of TestImage, of which the first `done` are left out.
        """
        calibrate = calibration_of(self.recipe)
        loader = make_loader(TestSet(tests[done:], self.sizes), 1, self.machine)
        for batch, alpha in self.alphas(loader, "predict", done):
            problem = batch["problem"][0]
            yield batch["name"][0], to_uint8(calibrate(alpha) * (not problem)), problem

    def validation(self, pairs):
        """Yields (image, prediction, truth, path) of this process's share of the validation pairs.

        image: float32 [3,size,size] in [-1,1]; prediction, before calibration, and truth: float32
        arrays [H,W] in [0,1] of the image's own size, where the competition compares them.
        """
        loader = share_loader(ScoredSet(pairs, self.sizes), 1, self.machine)
        for batch, alpha in self.alphas(loader, "predict val"):
            yield batch["img"][self.sizes[0]][0], alpha, truth_of(batch), batch["path"][0]


@dataclass(frozen=True)
class Ensemble(Predictor):
    """The mean of several predictors' alphas; its own recipe is for the calibration alone.

    network: a ModuleList of the members' networks.
    """

    members: tuple[Predictor, ...] = ()

    @property
    def sizes(self):
        return tuple(dict.fromkeys(size for each in self.members for size in each.sizes))

    @property
    def recipes(self):
        own = {"calibration": self.recipe.calibration, "curve": self.recipe.curve}
        return tuple(replace(each.recipe, **own) for each in self.members)

    def with_recipe(self, **changes):
        own = {name: changes.pop(name) for name in ("calibration", "curve") if name in changes}
        return replace(self, recipe=replace(self.recipe, **own),
                       members=tuple(each.with_recipe(**changes) for each in self.members))

    def small_alphas(self, batch):
        return [each.small_alphas(batch) for each in self.members]

    def full_alpha(self, batch, small_alphas):
        return mean_of([member.full_alpha(batch, alphas)
                        for member, alphas in zip(self.members, small_alphas)])


def make_ensemble(members):
    """The `Ensemble` of predictors on one machine"""
    members = tuple(members)
    networks = nn.ModuleList(each.network for each in members)
    return Ensemble(networks, Recipe(), members[0].machine, members)


def make_predictor(model, recipe, machine):
    """A `Predictor` with a copy of the network that predicts the same, faster: batch norms folded
    into the convolutions before them (the same affine map per channel), channels last in memory."""
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, ConvNormReLU):
            module.conv_s1 = fuse_conv_bn_eval(module.conv_s1, module.bn_s1)
            module.bn_s1 = nn.Identity()
    network = network.to(machine.device, memory_format=torch.channels_last)
    return Predictor(network, recipe, machine)


def mean_of(alphas):
    return sum(alphas[1:], start=alphas[0]) / len(alphas)


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
