"""From an image file of any origin to upright pixels of 8 bits per channel: the colours that the
network sees, the file's own colours, alpha and profile, and notes; or a refusal in one sentence."""

import io
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile, PngImagePlugin

from src.runtime.console import UserError
from src.inputs.formats import NO_PIXELS, RAW_SUFFIXES, kind_without_pixels
from src.data.pixels import no_memory

warnings.filterwarnings("ignore", module="PIL")  # damaged metadata cost no picture, and no log
MAX_PIXELS = 150_000_000  # of one image, for which a run takes 3 GB of memory
Image.MAX_IMAGE_PIXELS = None  # the bound above comes with a sentence instead of a warning
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # texts cost no picture
ORIENTATION = 0x0112  # EXIF tag; its values from 5 on exchange width and height
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # what sets an orientation upright
IN_FRAMES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # formats of animations and of several pages
SAMPLE_FORMAT = 339  # TIFF tag; 2: signed integers
BITS, WHITE, PLANES = 258, 262, 284  # TIFF tags; 0 is white, each channel has a plane of its own
SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}  # an ICC header's words
SAME_COLOUR = 3  # levels by which a profile's colours may differ from sRGB's and count as those
GREY_TINT = 40  # levels by which the channels of a grey mask may differ (JPEG)
FEW = 0.05  # share of a mask's pixels that may have any colour, as a mark on it
SAME_SHAPE = 0.02  # by which the ratios of width to height may differ
# Which of these a transparent file is seen on: the one farthest from its colours. On 45 cut-outs of
# generated subjects the network loses 0.0016 of their alpha (MSE) there, as much as on white, which
# hides white subjects, and 0.0028 on grey.
BACKDROPS = ((255, 255, 255), (30, 60, 220), (220, 40, 200), (240, 220, 40))


class Tolerance(threading.local):
    """Pillow's switch for decoding truncated files, for one thread alone."""

    is_on = False

    def __bool__(self):
        return self.is_on


ImageFile.LOAD_TRUNCATED_IMAGES = Tolerance()


@contextmanager
def tolerance():
    switch = ImageFile.LOAD_TRUNCATED_IMAGES
    before, switch.is_on = switch.is_on, True
    try:
        yield
    finally:
        switch.is_on = before


class Picture(NamedTuple):
    """A picture as it is predicted and cut out; all images upright and of one size.

    rgb: RGB in sRGB, what the network sees; where the file is transparent, on a plain backdrop.
    alpha: the file's own alpha, L, None where it is opaque. colours: RGB as in the file, in its
    ICC profile `profile` (None: sRGB), also below what is transparent. problem: "", or why a part
    of it is missing; notes: what else is not as its owner may expect; sentences without a subject.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    colours: Image.Image
    profile: bytes | None
    problem: str
    notes: tuple[str, ...]


class Decoded(NamedTuple):
    """An upright image of the file's own mode, the orientation it had, and the rest as in
    `Picture`."""

    image: Image.Image
    orientation: int = 1
    problem: str = ""
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- what others call


def read_picture(source):
    """The `Picture` in a file, or of a PIL image of any mode.

    What decodes of a damaged file is used, and noted. Raises UserError, which names the file, for
    one of which nothing can be read or that has more than MAX_PIXELS.
    """
    with refusing("the image" if isinstance(source, Image.Image) else source):
        decoded = upright(source) if isinstance(source, Image.Image) else decode(source)
        image, notes = with_8_bits(decoded.image), decoded.notes
        rgb, colours, profile = to_srgb(image)
        alpha = alpha_channel(image)
        if alpha and not alpha.getbbox():
            alpha, notes = None, (*notes, "has an alpha channel that is empty, which is not used")
        if alpha:
            rgb = on_plain_backdrop(rgb, alpha)
        return Picture(rgb, alpha, colours, profile, decoded.problem, notes)


def with_own_alpha(alpha, picture):
    """A predicted alpha, float [H,W] in [0,1], times the one that the picture brings along."""
    if picture.alpha is None:
        return alpha
    own = np.divide(picture.alpha, 255, dtype=np.float32)
    return np.multiply(alpha, own, out=own)


def open_image(path, mode, at_least=None):
    """The image in the Pillow mode "L", or in sRGB in the mode "RGB" or "RGBA".

    at_least: (width, height) that is enough of it; a JPEG then decodes to half or a quarter of its
    size at a fraction of the cost.

    EXIF's orientation is applied, so that pixels stand as a viewer shows them. Of an animation the
    first frame is taken. Raises UserError, which names the file, for one that cannot be read in
    full or has more than MAX_PIXELS.
    """
    with refusing(path):
        return in_mode(with_8_bits(decode_whole(path, at_least).image), mode)


def open_alpha(path):
    """The alpha, L, that a file holds; see to_alpha. Raises as open_image does."""
    with refusing(path, "a mask"):
        return to_alpha(decode_whole(path).image)


def open_pair(image_path, alpha_path):
    """[RGB image, L alpha] of one size.

    An alpha of another size but the same shape is resized. One that only fits the image before
    EXIF's orientation turned it, or only without its own orientation, was drawn so, and is turned
    to stand like the image; for a square image, or a half turn, that cannot be told, and the alpha
    is taken as a viewer shows it. Raises UserError for another shape, and as open_image does.
    """
    with refusing(image_path):
        picture = decode_whole(image_path)
        image = shown(with_8_bits(picture.image))
    with refusing(alpha_path, "a mask"):
        mask = decode_whole(alpha_path)
        alpha = to_alpha(mask.image)
    as_stored = turned(alpha, {6: 8, 8: 6}.get(mask.orientation, mask.orientation))
    for fitting in (alpha, as_stored, turned(as_stored, picture.orientation)):
        ratio = (image.width * fitting.height) / (image.height * fitting.width)
        if abs(ratio - 1) <= SAME_SHAPE:
            return [image, fitting if fitting.size == image.size else
                    fitting.resize(image.size, Image.Resampling.BILINEAR)]
    by_exif = ", turned upright by its EXIF data," if picture.orientation > 4 else ""
    raise UserError(
        f"{alpha_path}: is {alpha.width}x{alpha.height}, its image {image_path} is "
        f"{image.width}x{image.height}{by_exif}; they must have the same shape")


def declared_size(path):
    """(width, height) of the upright image by the file's header, None if that cannot be read."""
    try:
        with tolerance(), open(path, "rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            on_its_side = orientation(image) >= 5
            if on_its_side and image.format == "TIFF":
                image.load()  # some of Pillow's versions have the upright size only now
                return image.size
            return image.size[::-1] if on_its_side else image.size
    except Exception:  # as in `decode`
        return None


# ---------------------------------------------------------------- decoding


@contextmanager
def refusing(path, kind="an image"):
    """UserError that names the path for whatever the block raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # which one, for a damaged file, depends on where the damage is
        size = isinstance(error, MemoryError) and declared_size(path)
        reason = no_memory(error, size) if size else (
            f"cannot be read as {kind} ({why_not(error, path)})")
        raise UserError(f"{path}: {reason}") from None


def why_not(error, path):
    """An error's text on one line, without the path; for what Pillow does not know, what it is."""
    if isinstance(error, Image.UnidentifiedImageError):
        with suppress(OSError):
            return f"it is {kind_without_pixels(path)}"
    return " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__


def decode_whole(path, at_least=None):
    """`Decoded` from a file that lacks no pixel; raises UserError otherwise."""
    decoded = decode(path, at_least)
    if decoded.problem:
        raise UserError(f"{path}: {decoded.problem}")
    return decoded


def decode(path, at_least=None):
    """`Decoded` from a file, with a problem where only a part of it can be; see read_picture."""
    try:
        with open(path, "rb") as file:
            return opened(file, path, at_least)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = why_not(error, path)
    with suppress(Exception), tolerance(), open(path, "rb") as file:
        decoded = opened(file, path, at_least)
        pixels = np.asarray(decoded.image)
        if (pixels != pixels[0, 0]).any():
            if lacks_its_end_alone(path, at_least, decoded):
                note = "is incomplete: it lacks its end, though no pixel"
                return decoded._replace(notes=(note, *decoded.notes))
            return decoded._replace(
                problem=f"is incomplete ({reason}); what can be read of it is used")
    raise UserError(f"{path}: cannot be read as an image ({reason})")


def opened(file, path, at_least):
    """`Decoded` from a file object, so that Pillow maps none into memory: it would read a TIFF that
    lies on its side with its width and height exchanged. Raises anything where that fails."""
    with tolerance():  # of damaged metadata
        image = Image.open(file)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{path}: has {image.width}x{image.height} pixels, more than the "
                f"{MAX_PIXELS // 10**6} million that are read; make it smaller")
        if image.format in NO_PIXELS or str(path).lower().endswith(RAW_SUFFIXES):
            raise UserError(
                f"{path}: cannot be read as an image (it is {kind_without_pixels(path)})")
        if image.format == "TIFF" and is_garbled(image):
            raise ValueError("a TIFF in planes of more than 8 bits, which Pillow cannot decode; "
                             "save it with 8 bits a channel")
        if at_least:
            image.draft(None, at_least)
        return upright(image)


def is_garbled(image):
    """Whether an opened TIFF has planes of which Pillow would read each second byte as a pixel."""
    bits = image.tag_v2.get(BITS, ())
    return (image.tag_v2.get(PLANES) == 2 and len(bits) > 1 and max(bits) > 8
            and image.tile[0][0] == "raw")


def upright(image):
    """`Decoded` from an opened image"""
    value, notes = orientation(image), ()
    if image.format in IN_FRAMES and (frames := frame_count(image)) > 1:
        notes = (f"has {frames} frames or pages; the first is taken",)
    is_upright = image.format == "TIFF"  # Pillow turns it itself
    image.load()
    return Decoded(image if is_upright else turned(image, value), value, notes=notes)


def turned(image, value):
    """An image of that orientation, set upright"""
    return image.transpose(TURNS[value]) if value > 1 else image


def lacks_its_end_alone(path, at_least, decoded):
    """Whether all pixels of a JPEG that was cut off are there: then no pixel depends on what comes
    after its data."""
    data = Path(path).read_bytes() + b"\0U" * 64 + b"\xff\xd9"
    other = opened(io.BytesIO(data), path, at_least).image
    return data.startswith(b"\xff\xd8") and other.tobytes() == decoded.image.tobytes()


def orientation(image):
    """EXIF's orientation of an opened image, 1 (upright) where it says none or nonsense."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for it behind the pixels
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1
    return value if value in range(1, 9) else 1


def frame_count(image):
    """How many frames or pages an opened image has, 1 where that cannot be told."""
    try:
        return image.n_frames
    except Exception:  # damage behind the first
        return 1
    finally:
        image.seek(0)


# ---------------------------------------------------------------- levels and colours


def with_8_bits(image):
    """A decoded image; deeper grey in L, by `eight_bits`, a palette with transparency in RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(eight_bits(deep_levels(image)))
    return image.convert("RGBA") if "transparency" in image.info else image


def deep_levels(image):
    """The levels of an image of mode I, I;16 or F, float64 [H,W]; 0 for negative ones and NaN."""
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    if levels.dtype.kind == "u" and tags.get(WHITE) == 0:  # Pillow sees to 8 bits only
        levels = np.iinfo(levels.dtype).max - levels
    if levels.dtype == np.int32 and not signed:  # Pillow has no unsigned mode of 32 bits
        levels = levels.view(np.uint32)
    return np.nan_to_num(levels.astype(np.float64), posinf=0).clip(0)


def eight_bits(levels):
    """Levels, float64 [H,W], from 0 to a full scale that their peak tells -> uint8.

    Full are 1 (of floats up to 1.5, which resampling may reach), 255, a peak of ten or more bits
    all set, 4095 (12 bits), 65535, or else the peak. So 16 bits that hold none over 255 are taken
    for 8, and those that hold none over 4095 for 12.
    """
    peak = levels.max()
    full = 1 if peak <= 1 or peak <= 1.5 and (levels % 1).any() else (
        peak if peak > 255 and np.log2(peak + 1) % 1 == 0 else
        next((full for full in (255, 4095, 65535) if peak <= full), peak))
    return np.rint(levels * (255 / full)).clip(0, 255).astype(np.uint8)


def in_mode(image, mode):
    """A decoded image of 8 bits in the mode L, or in sRGB in the mode RGB or RGBA."""
    if mode == "L" or not image.info.get("icc_profile") and image.mode != "LAB":
        return image.convert(mode)
    rgb = to_srgb(image)[0].copy()
    if mode == "RGBA":
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    return rgb


def to_srgb(image):
    """(RGB in sRGB, RGB as in the file, the ICC profile of the latter or None for sRGB).

    A profile that is broken, or for another kind of colours than the image has, is ignored. Where
    it is not one of RGB, the file's colours are those in sRGB.
    """
    profile = image.info.get("icc_profile") or b""
    has = {"1": "L", "LA": "L", "CMYK": "CMYK", "LAB": "LAB", "L": "L"}.get(image.mode, "RGB")
    space = SPACES.get(profile[16:20], "LAB" if image.mode == "LAB" else None)
    convert = transform_to_srgb(profile, space) if space in (has, "RGB") and (
        space == has or has == "L") else None
    if convert is None:
        rgb = image.convert("RGB")
        return rgb, rgb, None
    own = image if image.mode == space else image.convert(space)
    rgb = convert(own)
    return (rgb, own, profile) if space == "RGB" else (rgb, rgb, None)


@lru_cache(16)
def transform_to_srgb(profile, mode):
    """An image of that mode and ICC profile -> RGB in sRGB, as a function; None for a profile that
    is broken. Colours that are sRGB's, but for rounding, stay as they are."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else (
            ImageCms.createProfile("LAB"))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImportError:  # a Pillow without LittleCMS
        return lambda image: image.convert("RGB")
    except Exception:  # lcms has its own errors
        return None
    if mode == "RGB":
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 51, np.uint8)] * 3), axis=-1)
        cube = Image.fromarray(cube.reshape(6, 36, 3))
        difference = ImageChops.difference(cube, ImageCms.applyTransform(cube, transform))
        if max(high for _, high in difference.getextrema()) <= SAME_COLOUR:
            return lambda image: image
    return lambda image: ImageCms.applyTransform(image, transform)


def shown(image):
    """The RGB image, in sRGB, that stands for one of any mode, on a plain backdrop where it is
    transparent."""
    rgb, alpha = to_srgb(image)[0], alpha_channel(image)
    return on_plain_backdrop(rgb, alpha) if alpha and alpha.getbbox() else rgb


# ---------------------------------------------------------------- alpha


def alpha_channel(image):
    """The alpha, L, that an image of 8 bits brings along; None for an opaque one."""
    if not image.mode.endswith("A") and "transparency" not in image.info:
        return None
    channel = image.convert("RGBA").getchannel("A")
    return channel if channel.getextrema()[0] < 255 else None


def to_alpha(image):
    """The alpha, L, that a decoded image of any mode means.

    Its alpha channel if it has one that is not all opaque; else its levels (`eight_bits`), where a
    single one beside 0, or 1 alone, is a label and counts as 255. In a palette or in more than 8
    bits, where no level is over 31, all but 0 are labels: numbers of classes or of objects. A
    coloured mask is read by mask_from_colours.

    What no file tells: which of several classes is the subject (here all but 0), whether 0 is the
    subject, and whether several faint levels of 8 bits are labels (here they are levels).
    """
    if image.mode.startswith("I") or image.mode == "F":
        levels = deep_levels(image)
        if 1 < levels.max() < 32 and not (levels % 1).any():
            levels = levels > 0
        return with_labels(Image.fromarray(eight_bits(np.float64(levels))))
    channel = alpha_channel(image)
    if channel:
        return channel.point(lambda level: 255 * level) if channel.getextrema()[1] == 1 else channel
    if image.mode in ("1", "L", "LA"):
        return with_labels(image.convert("L"))
    rgb = to_srgb(image)[0] if image.mode == "LAB" else image.convert("RGB")
    red, green, blue = rgb.split()
    tint = max(ImageChops.difference(*two).getextrema()[1]
               for two in ((red, green), (green, blue), (blue, red)))
    if tint > GREY_TINT:
        return mask_from_colours(rgb)
    grey = rgb.convert("L")
    if image.mode == "P" and grey.getextrema()[1] < 32:
        return grey.point(lambda level: 255 * (level > 0))
    return with_labels(grey)


def with_labels(levels):
    """L, its one level beside 0, or its only level if that is 1, made 255"""
    values = [value for _, value in levels.getcolors(2) or ()]
    is_label = values == [1] or len(values) == 2 and min(values) == 0
    return levels.point(lambda level: 255 * (level > 0)) if is_label else levels


def mask_from_colours(rgb):
    """L: 255 where a mask has its subject's colour. Of two colours that is the brighter one; of
    several flat ones each but black; shades of one colour on black are soft. Else the grey; raises
    ValueError where many colours cover more than a few pixels, as in a photograph."""
    grey, colours = rgb.convert("L"), rgb.getcolors(256)
    low, high = grey.getextrema()
    if colours and len(colours) == 2 and low < high:
        return grey.point(lambda level: 255 * (level == high))
    brightness = ImageChops.lighter(ImageChops.lighter(*rgb.split()[:2]), rgb.getchannel("B"))
    darkest, brightest = brightness.getextrema()
    if darkest < 16 and is_of_one_hue(rgb):
        return brightness.point(lambda level: round(level * 255 / brightest))
    if colours and any(colour == (0, 0, 0) for _, colour in colours):
        return brightness.point(lambda level: 255 * (level > 0))
    pixels = np.int16(rgb.resize((64, 64), Image.Resampling.NEAREST))
    if not colours and (np.ptp(pixels, axis=2) > GREY_TINT).mean() > FEW:
        raise ValueError("it has many colours, like a photograph; are image_path and alpha_path "
                         "exchanged?")
    return grey


def is_of_one_hue(rgb):
    """Whether the bright parts of an RGB image have one hue, far from grey."""
    pixels = np.float32(rgb.resize((64, 64), Image.Resampling.NEAREST)).reshape(-1, 3)
    brightness = pixels.max(axis=1, keepdims=True)
    bright = brightness[:, 0] > brightness.max() / 2
    hues = pixels[bright] / brightness[bright].clip(1)
    return hues.min(axis=1).max() < 0.7 and np.ptp(hues, axis=0).max() < 0.3


def on_plain_backdrop(rgb, alpha):
    """The RGB image on a colour far from all that its alpha, L, leaves visible, so that nothing of
    it passes for backdrop."""
    small = rgb.copy()
    small.putalpha(alpha)
    small = np.float32(small.convert("RGBa").resize((64, 64)).convert("RGBA")).reshape(-1, 4)
    visible = small[small[:, 3] > 100, :3]
    distances = [np.percentile(np.linalg.norm(visible - colour, axis=1), 10) if len(visible) else 0
                 for colour in BACKDROPS]
    backdrop = Image.new("RGB", rgb.size, BACKDROPS[int(np.argmax(distances))])
    return Image.composite(rgb, backdrop, alpha)
