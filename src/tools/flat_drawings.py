"""Flat drawings made of RGBA cut-outs: their shapes in a few flat colours, with outlines, on a
backdrop of nearly the same colour.

A network that has hardly seen any takes what is flat inside an outline for the backdrop.
"""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

SIDE = 512  # pixels
AREAS = (2, 6)  # how many colours, at least and fewer than
P_OUTLINE, P_INNER_LINES, P_GRADED = 0.8, 0.6, 0.7
LINE_WIDTHS = (3, 5, 7, 9)  # pixels


def flat_drawing(image, rng):
    """(RGB image of SIDE x SIDE, its alpha "L") of a drawing with the shapes of an RGBA cut-out on
    a square canvas."""
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    shape = image.getchannel("A").point(lambda level: 255 * (level > 127))
    areas = image.convert("RGB").filter(ImageFilter.MedianFilter(7)).quantize(
        int(rng.integers(*AREAS)), kmeans=1)
    colours = palette(rng, areas.getextrema()[1] + 1)
    drawing = Image.fromarray(colours[np.asarray(areas)])
    if rng.random() < P_INNER_LINES:
        drawing.paste(dark(rng), mask=borders(areas))
    if rng.random() < P_OUTLINE:
        inside = shape.filter(ImageFilter.MinFilter(int(rng.choice(LINE_WIDTHS))))
        drawing.paste(dark(rng), mask=ImageChops.difference(shape, inside))
    alpha = shape.filter(ImageFilter.GaussianBlur(0.8))
    return Image.composite(drawing, backdrop_near(colours[0], rng), alpha), alpha


def palette(rng, count):
    """Colours of which most have nearly one hue, uint8 [count,3]"""
    hue = np.where(rng.random(count) < 0.7, rng.random() + rng.normal(0, 0.12, count),
                   rng.random(count))
    rest = rng.integers((90, 70), 256, (count, 2))
    return rgb_of(np.column_stack([hue % 1 * 255, rest]))


def rgb_of(colours):
    """HSV in 0..255, [N,3] -> RGB, uint8 [N,3]"""
    return np.asarray(Image.fromarray(np.uint8(colours)[None], "HSV").convert("RGB"))[0]


def dark(rng):
    return tuple(int(level) for level in rng.integers(0, 50, 3))


def borders(areas):
    """A mask "L" of the lines between the areas of a palette image"""
    numbers = Image.fromarray(np.asarray(areas))
    return ImageChops.difference(
        numbers.filter(ImageFilter.MaxFilter(3)), numbers.filter(ImageFilter.MinFilter(3))
    ).point(lambda level: 255 * (level > 0))


def backdrop_near(colour, rng):
    """An RGB backdrop, plain or graded, and grainy, of colours near an RGB colour"""
    centre = np.asarray(Image.new("RGB", (1, 1), tuple(map(int, colour))).convert("HSV"))[0, 0]
    ends = centre + rng.normal(0, (25, 40, 50), (2, 3))
    ends[:, 0] %= 256
    top, bottom = rgb_of(ends.clip(0, 255)).astype(float)
    share = np.linspace(0, 0.5, SIDE)[:, None, None] * (rng.random() < P_GRADED)
    rows = np.broadcast_to(top + (bottom - top) * share, (SIDE, SIDE, 3))
    grain = rng.normal(0, rng.uniform(0, 4), rows.shape)
    return Image.fromarray(np.uint8((rows + grain).clip(0, 255)))
