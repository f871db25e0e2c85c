"""Masks and cut-outs as PNGs, the cut-outs in the colours of the foreground alone."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from src.runtime.files import replacing
from src.inputs.formats import MADE_BY, is_result
from src.data.pixels import (
    alpha_tensor, bands, box_mean, colour_tensor, no_memory, to_picture,
)

PASSES = ((4, 5), (2, 2))  # how many times smaller the means are taken, and their radius
MARGIN = 40  # rows around a band on which its colours depend


def foreground(image, alpha):
    """The colours of what stands before a backdrop, uint8 [H,W,3], of an image uint8 [H,W,3] and
    its alpha uint8 [H,W]; black where there is nothing of it.

    Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021: foreground and backdrop are
    blurred by their shares of the image, and what then is missing in I = alpha F + (1 - alpha) B is
    given to F; twice, with a wide blur and a narrow one. The blurs are means of a smaller image.
    """
    image, alpha = colour_tensor(image)[None], alpha_tensor(alpha)[None]
    front = back = image
    for times, radius in PASSES:
        small = [max(1, side // times) for side in alpha.shape[2:]]
        parts = torch.cat([F.interpolate(front * alpha, size=small, mode="area"),
                           F.interpolate(back * (1 - alpha), size=small, mode="area"),
                           F.interpolate(alpha, size=small, mode="area")], dim=1)
        parts = box_mean(parts, radius)
        share = parts[:, 6:]
        means = torch.cat([parts[:, :3] / share.clamp_min(1e-3),
                           parts[:, 3:6] / (1 - share).clamp_min(1e-3)], dim=1)
        means = F.interpolate(means, size=alpha.shape[2:], mode="bilinear", align_corners=False)
        front, back = means.split(3, dim=1)
        missing = (image - alpha * front).sub_((1 - alpha) * back)
        front = missing.mul_(alpha).add_(front).clamp_(0, 1)
    return np.array(to_picture((front * (alpha > 0))[0]))


def cut_out(image, mask):
    """The RGBA cut-out of an RGB image by a mask, L, of its size"""
    picture = Image.new("RGB", image.size)
    # A band has the bits of the whole where all heights are multiples of 4.
    whole = image.height % 4 and image.width * image.height <= 2**24
    for rows in [slice(0, image.height)] if whole else bands(image):
        top, bottom = max(0, rows.start - MARGIN), min(image.height, rows.stop + MARGIN)
        box = (0, top, image.width, bottom)
        colours = foreground(image.crop(box), mask.crop(box))
        picture.paste(Image.fromarray(colours[rows.start - top:rows.stop - top]), (0, rows.start))
    picture.putalpha(mask)
    return picture


def cut_out_picture(picture, mask):
    """`cut_out` of a `Picture`; one with an alpha of its own has its foreground's colours."""
    if picture.alpha is None:
        return cut_out(picture.colours, mask)
    result = picture.colours.copy()
    result.putalpha(mask)
    return result


def save_result(image, path, **options):
    """Write a PNG that says what it was made by, so that it is not taken for a photo later."""
    note = PngInfo()
    note.add_text("Software", MADE_BY)
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=note, **options)


def save_pictures(out, kinds, name, picture, mask):
    """Write masks/NAME.png and cutouts/NAME.png below `out`, as far as they are among the kinds.

    picture: `Picture`, whose own colours and profile a cut-out keeps; mask: uint8 [H,W] of its
    size. Names may have folders in them. Returns "", or why a picture could not be written; a file
    that is no result of this script is not replaced.
    """
    mask = Image.fromarray(mask)
    try:
        for kind in kinds:
            path = out / kind / f"{name}.png"
            if path.is_file() and not is_result(path):
                return f"{path} is there already, and not a result; move it or name another --out"
            result, profile = (mask, None) if kind == "masks" else (
                cut_out_picture(picture, mask), picture.profile)
            save_result(result, path, compress_level=3, icc_profile=profile)
    except (MemoryError, RuntimeError) as error:
        return no_memory(error, mask.size)
    except (OSError, ValueError) as error:
        return f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})"
    return ""
