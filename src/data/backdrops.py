"""Backdrops, drawn or photographs, and cut-outs composited onto them with soft shadows."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from src.runtime.console import UserError
from src.data.images import open_image

P_PHOTOGRAPH = 0.75  # when there are any; else every backdrop is drawn
P_SHADOW = 0.3
PHOTOGRAPH_TRIES = 20  # photographs in a row that may be unreadable before one is drawn


def choose_backdrop(photographs, size, rng):
    """(an RGB backdrop of size (width, height), [(path, reason)] of what could not be read).

    photographs: paths of images to take a part of, may be empty; rng: a numpy Generator. The next
    photograph stands in for one that cannot be read.
    """
    unreadable = []
    if len(photographs) and rng.random() < P_PHOTOGRAPH:
        first = int(rng.integers(len(photographs)))
        for number in range(first, first + min(PHOTOGRAPH_TRIES, len(photographs))):
            path = photographs[number % len(photographs)]
            try:
                return photograph(path, size, rng), unreadable
            except UserError as error:
                unreadable.append((str(path), str(error)))
    return draw_backdrop(rng, size), unreadable


def recomposed(foreground, backdrop, rng):
    """An RGBA cut-out over an RGB backdrop of its size, sometimes with its shadow: (RGB image, L
    alpha).

    Pillow composites with straight alpha: I = alpha F + (1 - alpha) B.
    """
    alpha = foreground.getchannel("A")
    if rng.random() < P_SHADOW:
        backdrop = shadowed(backdrop, alpha, rng)
    backdrop.putalpha(255)
    return Image.alpha_composite(backdrop, foreground).convert("RGB"), alpha


def draw_backdrop(rng, size):
    """An RGB image of size (width, height): plain, gradient, textured or patterned."""
    kind = rng.choice(["plain", "gradient", "textured", "patterned"])
    if kind == "textured":
        return smooth_colours(rng, size, cells=int(rng.integers(8, 60)))
    if kind == "patterned":
        return pattern(rng, size)
    width, height = size
    first, last = rng.integers(0, 256, (2, 3)).astype(np.float32)
    if kind == "plain":
        last = first
    across, down = rng.uniform(-1, 1, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = across * x / width + down * y / height
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    grain = rng.normal(0, rng.uniform(0, 4), (height, width, 1))
    pixels = first + ramp[..., None] * (last - first) + grain
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def smooth_colours(rng, size, cells):
    """Random colours on a cells x cells grid, interpolated to size (width, height)."""
    grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def pattern(rng, size):
    """A motif of a few random shapes, turned and repeated over size (width, height)."""
    motif = Image.new("RGB", tuple(int(side) for side in rng.integers(16, 160, 2)))
    draw = ImageDraw.Draw(motif)
    draw.rectangle((0, 0, *motif.size), fill=tuple(map(int, rng.integers(0, 256, 3))))
    for _ in range(int(rng.integers(1, 7))):
        corners = [tuple(corner) for corner in rng.uniform(-0.1, 1.1, (3, 2)) * motif.size]
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        shape = rng.choice(["polygon", "line", "ellipse"])
        if shape == "polygon":
            draw.polygon(corners, fill=colour)
        elif shape == "line":
            draw.line(corners, fill=colour, width=int(rng.integers(1, 12)))
        else:
            (x, y), radius = corners[0], rng.uniform(2, 40)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    side = int(1.5 * max(size))  # enough for any angle
    repeats = (-(-side // motif.height), -(-side // motif.width), 1)
    tiled = Image.fromarray(np.tile(np.asarray(motif), repeats))
    turned = tiled.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    left, top = (turned.width - size[0]) // 2, (turned.height - size[1]) // 2
    return turned.crop((left, top, left + size[0], top + size[1]))


def photograph(path, size, rng):
    """A random part of an image file, RGB of size (width, height), sometimes mirrored."""
    image = open_image(path, "RGB", at_least=(2 * size[0], 2 * size[1]))
    share = rng.uniform(0.4, 1.0) * min(image.width / size[0], image.height / size[1])
    width, height = share * size[0], share * size[1]
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def shadowed(backdrop, alpha, rng):
    """The backdrop darkened by the blurred, shifted alpha of what stands before it."""
    width, height = backdrop.size
    blurred = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(0.01, 0.05) * width))
    shift = rng.uniform(-0.05, 0.05, 2) * backdrop.size
    moved = Image.new("L", backdrop.size)
    moved.paste(blurred, tuple(int(s) for s in shift))
    strength = rng.uniform(0.2, 0.7)
    light = moved.point(lambda level: 255 - round(level * strength))
    return ImageChops.multiply(backdrop, Image.merge("RGB", (light,) * 3))
