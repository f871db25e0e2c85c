"""From images to masks: the network at the recipe's size, then the image's own size."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.calibration import calibration_of
from src.console import UserError, progress
from src.data import ScoredSet, TestSet, make_loader, share_loader
from src.hardware import mapped_ahead
from src.refinement import refine
from src.u2netp import ConvNormReLU


def predictor(model, machine):
    """A copy of U2NETP that predicts the same, faster: batch norms folded into the convolutions
    before them (the same affine map per channel), channels last in memory."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, ConvNormReLU):
            module.conv_s1 = fuse_conv_bn_eval(module.conv_s1, module.bn_s1)
            module.bn_s1 = nn.Identity()
    return model.to(machine.device, memory_format=torch.channels_last)


@torch.inference_mode()
def predict_alpha(model, batch, machine, mirrored=False):
    """alpha, float32 [B,1,H,W] in [0,1] on the CPU, of a batch's "img", float32 [B,3,H,W] in [-1,1].

    model: what `predictor` returns; mirrored: predict the mirror image, and mirror that back. In
    float32 on every device: bf16's 8 bits are enough to learn with but not to predict with (with
    batch norms folded they doubled the validation MSE of a fine-tuned network, 0.0082 to 0.0156),
    and a network of 1.1 million parameters gains little time from fp16. Raises UserError, naming
    the image, for a prediction that is NaN or infinite.
    """
    images = batch["img"].flip(3) if mirrored else batch["img"]
    alpha = model.matte(machine.to_device(images)).cpu()
    if not torch.isfinite(alpha).all():
        names = batch["name"] if "name" in batch else batch["path"]
        raise UserError(f"{', '.join(names)}: the network predicts NaN or infinite alpha; train "
                        "with a lower --lr, or take another checkpoint")
    return alpha.flip(3) if mirrored else alpha


def resize_alpha(alpha, width, height):
    """alpha, float32 [B,1,h,w] -> [B,1,height,width] in [0,1]; bicubic, antialiased downwards."""
    if alpha.shape[2:] == (height, width):
        return alpha
    return F.interpolate(
        alpha, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)


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


def to_uint8(alpha):
    """float [H,W] in [0,1] -> uint8, rounded: truncating would lose half a level everywhere."""
    return np.rint(alpha * 255).astype(np.uint8)


def full_alphas(model, loader, recipe, machine, title, done=0):
    """Yields (batch, alpha [H,W] in [0,1]) of each image of a loader, before calibration.

    Loader workers decode ahead, and threads bring the alphas to full size behind the network, so
    that it need not wait.
    """
    def small_alphas():
        for batch in progress(loader, title, done, "image"):
            alpha = predict_alpha(model, batch, machine)
            if recipe["flip"]:
                alpha = (alpha + predict_alpha(model, batch, machine, mirrored=True)) / 2
            yield batch, alpha

    def finish(item):
        batch, alpha = item
        return batch, at_full_size(alpha, batch["img"], batch["full"], recipe["refine"])

    yield from mapped_ahead(finish, small_alphas())


def predict_masks(model, tests, recipe, machine, done=0):
    """Yields (name, uint8 mask [H,W] of the image's own size, "" or why the mask is blank).

    tests: list of TestImage; model: what `predictor` returns; recipe: {"predict_size": side of the
    network's input, "flip": average with the mirrored image, "refine": see at_full_size,
    "calibration": see calibration_of}. The first `done` tests are left out.
    """
    calibrate = calibration_of(recipe)
    loader = make_loader(TestSet(tests[done:], recipe["predict_size"]), 1, machine)
    for batch, alpha in full_alphas(model, loader, recipe, machine, "predict", done):
        problem = batch["problem"][0]
        yield batch["name"][0], to_uint8(calibrate(alpha) * (not problem)), problem


def validation_pairs(model, pairs, recipe, machine):
    """Yields (image, prediction, truth, path) of this process's share of the validation rows.

    image: float32 [3,size,size] in [-1,1]; prediction, before calibration, and truth: float32
    arrays [H,W] in [0,1], of the image's own size, where the competition compares them.
    """
    loader = share_loader(ScoredSet(pairs, recipe["predict_size"]), 1, machine)
    for batch, alpha in full_alphas(model, loader, recipe, machine, "predict val"):
        truth = batch["truth"][0].numpy().astype(np.float32) / 255
        yield batch["img"][0], alpha, truth, batch["path"][0]
