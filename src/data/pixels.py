"""Between pictures, arrays and tensors; means over windows."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF


def image_tensor(image):
    """RGB image -> float32 [3,H,W] in [-1,1]"""
    return TF.to_tensor(image).sub_(0.5).div_(0.5)


def alpha_tensor(alpha):
    """L image -> float32 [1,H,W] in [0,1]"""
    return TF.to_tensor(alpha)


def resized(image, size):
    """The image stretched to size x size, as the network sees it"""
    return TF.resize(image, [size, size], InterpolationMode.BILINEAR)


def to_picture(pixels):
    """float32 [3,H,W] in 0..1 -> RGB image"""
    levels = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.numpy())


def to_uint8(alpha):
    """float [H,W] in [0,1] -> uint8, rounded: truncating would lose half a level everywhere."""
    return np.rint(alpha * 255).astype(np.uint8)


def box_mean(x, radius):
    """Mean over the (2 radius + 1)^2 window of each pixel that lies in the image: [B,C,H,W]"""
    for window, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        x = F.avg_pool2d(x, window, stride=1, padding=padding, count_include_pad=False)
    return x
