"""The errors that matting papers quote, by image."""

import numpy as np
import torch
import torch.nn.functional as F

SIGMA, REACH = 1.4, 4  # pixels, of the Gaussian whose derivative is the gradient


def errors_of(prediction, truth):
    """{"mse", "sad", "gradient"} of a predicted and a true alpha, float arrays [H,W] in [0,1].

    MSE in 0..1; SAD, the sum of absolute differences, and the gradient error in thousands of
    pixels, as Rhemann et al., "A Perceptually Motivated Online Benchmark for Image Matting", CVPR
    2009, define them.
    """
    difference = prediction.astype(np.float64) - truth
    return {"mse": float(np.square(difference).mean()),
            "sad": float(np.abs(difference).sum() / 1000),
            "gradient": float(np.square(steepness(prediction) - steepness(truth)).sum(
                dtype=np.float64) / 1000)}


def steepness(alpha):
    """Magnitude of the gradient of an alpha [H,W], by Gaussian derivatives, borders repeated."""
    x = torch.arange(-REACH, REACH + 1, dtype=torch.float32)
    smooth = torch.exp(-x.square() / (2 * SIGMA**2))
    slope = -x * smooth
    smooth, slope = (kernel / kernel.norm() for kernel in (smooth, slope))
    image = torch.from_numpy(np.asarray(alpha, np.float32))[None, None]
    image = F.pad(image, [REACH] * 4, mode="replicate")
    across = filtered(image, along_x=slope, along_y=smooth)
    down = filtered(image, along_x=smooth, along_y=slope)
    return torch.hypot(across, down)[0, 0].numpy()


def filtered(image, along_x, along_y):
    """[1,1,H,W] under a separable filter, without its border"""
    return F.conv2d(F.conv2d(image, along_x.view(1, 1, 1, -1)), along_y.view(1, 1, -1, 1))
