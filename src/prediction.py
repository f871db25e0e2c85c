"""From images to masks: the network at the recipe's size, then the image's own size."""

import numpy as np
import torch
import torch.nn.functional as F

from src.calibration import CALIBRATIONS
from src.console import progress
from src.data import TestSet, make_loader
from src.hardware import autocast


@torch.inference_mode()
def predict_alpha(model, images, device, dtype=None):
    """float32 [B,3,H,W] in [-1,1] -> alpha, float32 [B,1,H,W] in [0,1] on the CPU.

    The model is used as it is; put it in eval mode first. dtype: autocast's, None for float32.
    """
    with autocast(device, dtype):
        outputs = model(images.to(
            device, non_blocking=True, memory_format=torch.channels_last))
    return outputs[0].float().cpu()


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


def predict_masks(model, paths, recipe, device, dtype=None, workers=0):
    """Yields (file name without its last extension, uint8 mask [H,W] of the image's own size).

    recipe: {"predict_size": side of the network's input, "calibration": a key of CALIBRATIONS}.
    """
    calibrate = CALIBRATIONS[recipe["calibration"]]
    loader = make_loader(TestSet(paths, recipe["predict_size"]), 1, workers, device)
    model.eval()
    for batch, path in zip(progress(loader, "predict"), paths):
        width, height = (int(side) for side in batch["size"])
        alpha = predict_alpha(model, batch["img"], device, dtype)
        yield path.stem, to_uint8(calibrate(resize_alpha(alpha, width, height)[0, 0].numpy()))


def validation_pairs(model, loader, device, dtype=None):
    """Yields (image, prediction, truth, path) of each image of a validation loader.

    image: float32 [3,H,W] in [-1,1]; prediction and truth: float32 arrays [H,W] in [0,1].
    """
    model.eval()
    for batch in progress(loader, "predict val"):
        alphas = predict_alpha(model, batch["img"], device, dtype)
        for image, alpha, mask, path in zip(batch["img"], alphas, batch["mask"], batch["path"]):
            yield image, alpha[0].numpy(), mask[0].numpy(), path
