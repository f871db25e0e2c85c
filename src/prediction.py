"""From images to masks: the network at the recipe's size, then the image's own size."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.calibration import calibration_of
from src.console import progress
from src.data import ScoredSet, TestSet, make_loader, share_loader
from src.hardware import autocast, mapped_ahead
from src.u2netp import ConvNormReLU


def predictor(model, device):
    """A copy of U2NETP that predicts the same, faster: batch norms folded into the convolutions
    before them (the same affine map per channel), channels last in memory."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, ConvNormReLU):
            module.conv_s1 = fuse_conv_bn_eval(module.conv_s1, module.bn_s1)
            module.bn_s1 = nn.Identity()
    return model.to(device, memory_format=torch.channels_last)


@torch.inference_mode()
def predict_alpha(model, images, device, dtype=None):
    """float32 [B,3,H,W] in [-1,1] -> alpha, float32 [B,1,H,W] in [0,1] on the CPU.

    model: what `predictor` returns. dtype: autocast's, None for float32.
    """
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    with autocast(device, dtype):
        return model.matte(images).float().cpu()


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


def predict_masks(model, paths, recipe, device, dtype=None, workers=0, done=0):
    """Yields (file name without its last extension, uint8 mask [H,W] of the image's own size).

    model: what `predictor` returns; recipe: {"predict_size": side of the network's input,
    "calibration": see calibration_of}. The first `done` paths are left out. Loader workers decode
    ahead and threads finish the masks behind the network, so that it need not wait.
    """
    calibrate = calibration_of(recipe)
    loader = make_loader(TestSet(paths[done:], recipe["predict_size"]), 1, workers, device)

    def finish(item):
        path, width, height, alpha = item
        return path.stem, to_uint8(calibrate(resize_alpha(alpha, width, height)[0, 0].numpy()))

    def alphas():
        for batch, path in zip(progress(loader, "predict", done, "image"), paths[done:]):
            width, height = (int(side) for side in batch["size"])
            yield path, width, height, predict_alpha(model, batch["img"], device, dtype)

    yield from mapped_ahead(finish, alphas())


def validation_pairs(model, pairs, size, device, dtype=None, workers=0):
    """Yields (image, prediction, truth, path) of this process's share of the validation rows.

    image: float32 [3,size,size] in [-1,1]; prediction and truth: float32 arrays [H,W] in [0,1], of
    the image's own size, where the competition compares them.
    """
    loader = share_loader(ScoredSet(pairs, size), 1, workers, device)
    for batch in progress(loader, "predict val", unit="image"):
        truth = batch["truth"][0].numpy()
        height, width = truth.shape
        alpha = resize_alpha(predict_alpha(model, batch["img"], device, dtype), width, height)
        yield batch["img"][0], alpha[0, 0].numpy(), truth.astype(np.float32) / 255, batch["path"][0]
