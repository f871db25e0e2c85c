"""Soft and thin parts drawn onto RGBA cut-outs: glow, smoke, strands.

Cut-outs of packages are solid; MAGICK's hair, smoke and glass are not. Each function takes and
returns float32 [H,W,4] in [0,1], colours not premultiplied.

Veils and holes were tried as well: they taught that what is flat inside an outline is transparent.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def with_soft_part(image, rng):
    """The RGBA cut-out with one part of those below, chosen by the numpy Generator."""
    pixels = np.asarray(image, np.float32) / 255
    part = rng.choice([glow, smoke, strands])
    return Image.fromarray(np.rint(part(pixels, rng) * 255).astype(np.uint8), "RGBA")


def over(front, back):
    """Porter and Duff's "over" of straight colours (SIGGRAPH 1984)"""
    alpha = front[..., 3:] + back[..., 3:] * (1 - front[..., 3:])
    colour = front[..., :3] * front[..., 3:] + back[..., :3] * back[..., 3:] * (1 - front[..., 3:])
    return np.concatenate([colour / np.maximum(alpha, 1e-6), alpha], axis=2)


def layer(colour, alpha):
    """A [H,W,4] layer of one colour"""
    return np.concatenate([np.broadcast_to(colour, (*alpha.shape, 3)), alpha[..., None]],
                          axis=2).astype(np.float32)


def blurred(plane, radius):
    """A float [H,W] plane in [0,1] after a Gaussian blur, in 8 bits"""
    image = Image.fromarray(np.rint(plane * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(radius))), np.float32) / 255


def noise(rng, shape):
    """Fractal noise, float [H,W] in [0,1]: octaves of random grids, each half as strong."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(2, 7):
        grid = rng.random((2**octave, 2**octave), dtype=np.float32)
        size = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(size) / 2**octave
    total -= total.min()
    return total / total.max()


def bright(rng):
    """A light, saturated colour, float32 [3]"""
    colour = rng.uniform(0.3, 1, 3).astype(np.float32)
    return colour / colour.max()


def outline(pixels):
    """(y, x) of the opaque pixels at the subject's edge, int [N,2]"""
    solid = pixels[..., 3] > 0.9
    return np.argwhere(solid & ~(blurred(solid.astype(np.float32), 1) > 0.95))


def glow(pixels, rng):
    """A halo that fades away from the outline."""
    side = max(pixels.shape)
    halo = blurred(pixels[..., 3], side * rng.uniform(0.02, 0.08)) * rng.uniform(0.5, 1)
    return over(pixels, layer(bright(rng), halo))


def smoke(pixels, rng):
    """Smoke, fog or flames behind the subject, thinning out with the distance from it."""
    near = blurred(pixels[..., 3], max(pixels.shape) * rng.uniform(0.06, 0.15))
    density = noise(rng, near.shape)
    alpha = (near * 1.6).clip(0, 1) * ((density - 0.35) * 2.5).clip(0, 1) * rng.uniform(0.5, 1)
    colour = bright(rng) if rng.random() < 0.5 else np.full(3, rng.uniform(0.3, 1), np.float32)
    return over(pixels, layer(colour * (0.7 + 0.3 * density[..., None]), alpha))


def strands(pixels, rng):
    """Hair, whiskers or twigs that leave the outline and bend."""
    height, width = pixels.shape[:2]
    solid = pixels[..., 3] > 0.9
    edge = outline(pixels)
    if not len(edge):
        return pixels
    centre = np.argwhere(solid).mean(axis=0)
    side = max(height, width)
    sheet = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(sheet)
    tilt = rng.uniform(-1, 1)
    for y, x in edge[rng.integers(0, len(edge), int(rng.integers(30, 160)))]:
        angle = np.arctan2(y - centre[0], x - centre[1]) + rng.normal(tilt, 0.35)
        bend = rng.normal(0, 0.9) * np.linspace(0, 1, 16)
        step = side * rng.uniform(0.03, 0.16) / 16
        points = np.cumsum(step * np.stack([np.cos(angle + bend), np.sin(angle + bend)], 1), axis=0)
        draw.line([tuple(2 * (point + (x, y))) for point in points], fill=255,
                  width=int(rng.integers(1, max(2, side // 200) + 2)))
    lines = np.asarray(sheet.reduce(2), np.float32) / 255
    colour = pixels[solid][:, :3].mean(axis=0) * rng.uniform(0.5, 1.2)
    return over(pixels, layer(colour.clip(0, 1), lines))
