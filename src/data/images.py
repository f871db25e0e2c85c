"""Image files of any origin, made upright and 8 bits per channel, or refused in one sentence."""

import numpy as np
from PIL import Image, ImageOps

from src.runtime.console import UserError

MAX_PIXELS = 150_000_000  # of one image; RGB of this size takes 450 MB
Image.MAX_IMAGE_PIXELS = None  # the bound above comes with a sentence instead of a warning
ORIENTATION = 0x0112  # EXIF tag; its values from 5 on exchange width and height


def open_image(path, mode, at_least=None):
    """The image in the given Pillow mode: "L", "RGB" or "RGBA".

    at_least: (width, height) that is enough of it; a JPEG then decodes to half or a quarter of its
    size at a fraction of the cost.

    EXIF's orientation is applied, so that pixels stand as a viewer shows them. 16-bit grey is
    divided by 257, a CMYK or palette image converted; of an animation the first frame is taken.
    Raises UserError, which names the file, for one that cannot be read or has more than MAX_PIXELS.
    """
    def use(image):
        if at_least:
            image.draft(None, at_least)
        return decoded(image).convert(mode)

    return reading(path, use)


def open_alpha(path):
    """The alpha, L, that a file holds: its alpha channel if there is one that is not all opaque,
    else its grey. Levels of 0 and 1 only are spread to 0 and 255. Raises as open_image does.
    """
    return reading(path, lambda image: alpha_of(decoded(image)))


def alpha_of(image):
    """The alpha in a decoded image of any mode; see open_alpha."""
    alpha = image.convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        channel = image.convert("RGBA").getchannel("A")
        if channel.getextrema()[0] < 255:
            alpha = channel
    return alpha.point(lambda level: 255 * level) if alpha.getextrema()[1] == 1 else alpha


def reading(path, use):
    """use(the opened image); a UserError that names the file when that fails."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: has {image.width}x{image.height} pixels, more than the "
                    f"{MAX_PIXELS // 10**6} million that are read; make it smaller")
            return use(image)
    except UserError:
        raise
    except Exception as error:  # which one, for a damaged file, depends on where the damage is
        reason = " ".join(str(error).split()).replace(f" '{path}'", "") or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def decoded(image):
    """The pixels of an opened image, upright, 8 bits per channel."""
    turned = orientation(image) != 1
    image.load()
    image = ImageOps.exif_transpose(image) if turned else image
    if image.mode.startswith("I"):  # Pillow would clip at 255
        levels = np.rint(np.asarray(image, np.float64) / 257).clip(0, 255)
        return Image.fromarray(levels.astype(np.uint8))
    return image


def orientation(image):
    """EXIF's orientation of an opened image, 1 (upright) where it says none or nonsense."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for it behind the pixels
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1
    return value if value in range(1, 9) else 1


def declared_size(path):
    """(width, height) of the upright image by the file's header, None if that cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return None
            return (height, width) if orientation(image) >= 5 else (width, height)
    except Exception:  # as in `reading`
        return None
