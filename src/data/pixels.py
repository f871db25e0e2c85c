"""Between pictures, arrays and tensors; means over windows."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

BAND = 2**20  # pixels of an image that are floats at a time
START_BYTES, PIXEL_BYTES = 1.2e9, 12  # of memory that a run takes, and a pixel of a large image


def colour_tensor(image):
    """RGB image -> float32 [3,H,W] in [0,1]"""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() / 255


def image_tensor(image):
    """RGB image -> float32 [3,H,W] in [-1,1]"""
    return colour_tensor(image).sub_(0.5).div_(0.5)


def alpha_tensor(alpha):
    """L image -> float32 [1,H,W] in [0,1]"""
    return torch.from_numpy(np.array(alpha))[None] / 255


def resized(image, size):
    """The image stretched to size x size, as the network sees it"""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_picture(pixels):
    """float32 [3,H,W] in 0..1 -> RGB image"""
    levels = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.numpy())


def to_uint8(alpha):
    """float [H,W] in [0,1] -> uint8, rounded: truncating would lose half a level everywhere."""
    parts = np.array_split(alpha, -(-alpha.size // BAND))
    return np.concatenate([np.rint(part * 255).astype(np.uint8) for part in parts])


def bands(image):
    """Slices of rows that make up an image, each about BAND pixels and a 64th of it, in multiples
    of 4 rows."""
    rows = max(4, (BAND // image.width + image.height // 64) // 4 * 4)
    return [slice(top, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def lacks_memory(error):
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def no_memory(error, size):
    """Why an image (width, height) is a problem where memory is lacking; raises any other error."""
    if not lacks_memory(error):
        raise error
    pixels = size[0] * size[1]
    needed = (START_BYTES + PIXEL_BYTES * pixels) / 1e9
    return (f"its {pixels / 1e6:.0f} megapixels need {needed:.1f} GB of memory, more than is free; "
            "make it smaller, or end other programs")


def box_mean(x, radius):
    """Mean over the (2 radius + 1)^2 window of each pixel that lies in the image: [B,C,H,W]"""
    for window, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        x = F.avg_pool2d(x, window, stride=1, padding=padding, count_include_pad=False)
    return x
