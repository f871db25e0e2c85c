"""Paint RGBA subjects whose alpha is known, of the kinds that a matte gets wrong in whole regions
before a white or grey studio backdrop (a developer's tool).

    apt-get install fonts-dejavu fonts-liberation fonts-urw-base35
    python -m src.tools.painted_subjects OUT --count 700 --seed 1 --cutouts FOLDER \\
        --photographs FOLDER --fonts FOLDER --recolour 0.3

Letters, rings, handles, racks and frames have holes, which get filled; prints and cards have none,
though they look as if; white, glossy, chromed and black goods look like the backdrop or reflect it;
thin metal is missed; of things that belong together, or that the frame cuts off, a part is missed.

A thing is a list of parts, back to front: (shapes, finish, bump). A shape is (outline, width,
level): points [N,2] in a space of about 1 x 1 around (0, 0), y downwards, filled where the width is
0, or a mask "L" of TEXT_SCALE pixels per unit; level 0 cuts a hole into the part. `bump` is the
depth of its relief, or a function of x and y that gives its normals. A finish is a function of
normals (x, y, z), the light's direction, x and y that gives colours [H,W,3] in 0..1.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from src.runtime.console import UserError, log
from src.tools.soft_parts import blurred, layer, noise, over

SIDE, SCALE, TEXT_SCALE = 448, 3, 800  # pixels: canvas; per pixel, to draw; per unit, to write
CHARACTERS = "ABDOPQRabdegopq04689" * 2 + "CEFGHIJKLMNSTUVWXYZfhkmnrstuwyz12357&@%?!$"
CUTS = ("inside", "one", "two", "opposite")
PROFILES = {  # heights and radii of turned goods
    "bottle": ((-0.5, 0.06), (-0.28, 0.06), (-0.14, 0.17), (0.5, 0.17)),
    "vase": ((-0.5, 0.13), (-0.35, 0.07), (0.05, 0.23), (0.5, 0.1)),
    "can": ((-0.5, 0.25), (0.5, 0.25)),
    "jar": ((-0.5, 0.2), (-0.38, 0.2), (-0.34, 0.27), (0.44, 0.27), (0.5, 0.22)),
    "cup": ((-0.5, 0.36), (0.2, 0.33), (0.5, 0.2)),
    "tube": ((-0.5, 0.17), (0.36, 0.15), (0.42, 0.06), (0.5, 0.06)),
    "figure": ((-0.5, 0.02), (-0.4, 0.12), (-0.25, 0.06), (0, 0.2), (0.3, 0.07), (0.5, 0.2)),
    "ball": ((-0.5, 0), (0.5, 0)),
    "rod": ((-0.5, 0.05), (0.5, 0.05)),
}
VESSELS = tuple(PROFILES)[:-1]
LIGHT, SHINY = ("white", "white", "white", "grey", "glass"), ("chrome", "chrome", "gold", "black")
ANY = LIGHT + SHINY + ("coloured", "coloured", "picture", "picture")


class Sources(NamedTuple):
    cutouts: list = []
    photographs: list = []
    fonts: list = []
    recolour: float = 0.0


def pick(rng, things):
    return things[int(rng.integers(len(things)))]


# Shapes

def fill(points, level=255):
    return np.asarray(points, float), 0, level


def hole(points):
    return fill(points, 0)


def line(points, width):
    return np.asarray(points, float), width, 255


def arc(x, y, across, down=None, start=0.0, end=1.0):
    """Points of an ellipse's arc, turns from the right clockwise"""
    angle = 2 * np.pi * np.linspace(start, end, 72)
    return np.stack([x + across * np.cos(angle), y + (down or across) * np.sin(angle)], axis=1)


def box(left, top, right, bottom, radius=0.0):
    """Points of a rectangle with round corners"""
    radius = max(1e-4, min(radius, (right - left) / 2.01, (bottom - top) / 2.01))
    corners = ((right, bottom, 1, 1), (left, bottom, -1, 1), (left, top, -1, -1),
               (right, top, 1, -1))
    return np.concatenate([
        arc(x - a * radius, y - b * radius, radius, None, turn / 4, (turn + 1) / 4)[::8]
        for turn, (x, y, a, b) in enumerate(corners)])


def closed(points):
    """The points of an outline, long enough for a round joint where it closes"""
    return np.concatenate([points, points[:2]])


def rotated(points, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def shifted(shapes, x, y):
    return [(points + (x, y), width, level) for points, width, level in shapes]


def projected(points, yaw, pitch):
    """Points [N,3], z upwards, as a distant camera sees them: [N,2]"""
    x, y, z = np.asarray(points, float).T
    x, y = x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)
    return np.stack([x, y * np.sin(pitch) - z * np.cos(pitch)], axis=1)


# Painting

def extent(parts, linear):
    """The corners of a thing's box after the linear transform, [2,2]"""
    points = []
    for shape, width, level in (shape for part in parts for shape in part[0]):
        if isinstance(shape, Image.Image):
            left, top, right, bottom = shape.getbbox() or (0, 0, 1, 1)
            shape = (np.array([[left, top], [right, top], [left, bottom], [right, bottom]])
                     - np.array(shape.size) / 2) / TEXT_SCALE
        if level:
            turned = shape @ linear.T
            points += [turned - width / 2, turned + width / 2]
    points = np.concatenate(points)
    return np.stack([points.min(axis=0), points.max(axis=0)])


def placement(size, cut, rng):
    """(scale, corner) of a thing of a size (width, height) on the canvas: with room around it, or
    cut off by one edge, by two that meet, or by two opposite ones where it is long enough."""
    size = np.asarray(size, float)
    long = int(size[1] > size[0])
    if cut == "opposite" and size[1 - long] > 0.85 * size[long]:
        cut = "one"
    if cut == "opposite":
        scale = min(rng.uniform(1.08, 1.6) / size[long], 0.95 / size[1 - long])
    else:
        scale = rng.uniform(*((0.6, 0.97) if cut == "inside" else (0.75, 1.3))) / size.max()
    if cut == "one":
        axis = int(rng.random() < 0.65)
        scale = min(scale, 0.95 / size[1 - axis])
    room = 1 - scale * size
    corner = rng.random(2) * room
    hidden = rng.uniform(0.06, 0.35, 2) * scale * size
    beyond = np.where(rng.random(2) < (0.5, 0.75), room + hidden, -hidden)
    if cut == "one":
        corner[axis] = beyond[axis]
    elif cut == "two":
        corner = beyond
    return scale * SIDE, corner * SIDE


def drawn(shapes, linear, shift):
    """The mask of shapes, float32 [SIDE,SIDE] in 0..1"""
    sheet = Image.new("L", (SIDE * SCALE, SIDE * SCALE))
    draw = ImageDraw.Draw(sheet)
    size = np.sqrt(abs(np.linalg.det(linear))) * SCALE
    for shape, width, level in shapes:
        if isinstance(shape, Image.Image):
            back = np.linalg.inv(linear * SCALE / TEXT_SCALE)
            start = np.array(shape.size) / 2 - back @ (shift * SCALE)
            sheet.paste(level, mask=shape.transform(
                sheet.size, Image.Transform.AFFINE,
                (*back[0], start[0], *back[1], start[1]), Image.Resampling.BILINEAR))
            continue
        points = [tuple(point) for point in (shape @ linear.T + shift) * SCALE]
        if not width:
            draw.polygon(points, fill=level)
            continue
        radius = max(1.5, width * size / 2)
        draw.line(points, fill=level, width=round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=level)
    return np.asarray(sheet.reduce(SCALE), np.float32) / 255


@lru_cache
def relief_filter(side):
    """The spectrum of Gaussian blurs of several widths, whose slopes at an edge are alike"""
    square = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side) ** 2
    return sum(width * np.exp(-2 * np.pi**2 * width**2 * square)
               for width in (1.5, 4, 10, 24)).astype(np.float32)


def relief(mask, depth):
    """Normals (x, y, z) of a mask as a cushion"""
    padded = np.pad(mask, 64, mode="edge")  # the frame cuts a thing off, it does not round it
    height = np.fft.irfft2(np.fft.rfft2(padded) * relief_filter(len(padded)), s=padded.shape)
    down, right = np.gradient(height[64:-64, 64:-64].astype(np.float32))
    return normalised(-depth * right, -depth * down, np.ones_like(mask))


def normalised(x, y, z):
    length = np.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def heap(shapes, linear, shift):
    """(height, tone) of filled shapes of which each lies on those before it, float32 in 0..1"""
    height, tone = Image.new("L", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
    draw, steps = ImageDraw.Draw(height), 16
    for number, (points, _, _) in enumerate(shapes):
        points = points @ linear.T + shift
        middle = points.mean(axis=0)
        for step in range(steps):
            inner = middle + (points - middle) * (1 - step / steps)
            draw.polygon([tuple(point) for point in inner],
                         fill=round(60 + 190 * (1 - (1 - step / steps) ** 2)))
        ImageDraw.Draw(tone).polygon([tuple(point) for point in points],
                                     fill=180 + 75 * (number * 37 % 100) // 100)
    return [blurred(np.asarray(plane, np.float32) / 255, 1.5) for plane in (height, tone)]


def painted(parts, rng, cut="inside", turn=180.0, flat=0.6):
    """The RGBA image of a thing, turned by up to `turn` degrees and foreshortened down to `flat`"""
    angle = np.radians(rng.uniform(-turn, turn))
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag(rng.permutation(
        [1.0, rng.uniform(flat, 1)]))
    corners = extent(parts, linear)
    scale, corner = placement(corners[1] - corners[0], cut, rng)
    linear, shift = linear * scale, corner - corners[0] * scale
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.9, -0.2), 0.9])
    light /= np.linalg.norm(light)
    pixels = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).astype(np.float32)
    x, y = np.moveaxis((pixels + 0.5 - shift) @ np.linalg.inv(linear).T, 2, 0).astype(np.float32)
    canvas, soft = np.zeros((SIDE, SIDE, 4), np.float32), rng.uniform(0.2, 0.8)
    for shapes, surface, bump in parts:
        mask = drawn(shapes, linear, shift)
        if bump == "heap":
            height, tone = heap(shapes, linear, shift)
            down, right = np.gradient(height)
            normals = normalised(-12 * right, -12 * down, np.ones_like(mask))
        elif callable(bump):
            across, along, out = bump(x, y)
            normals = normalised(cos * across - sin * along, sin * across + cos * along, out)
        else:
            normals = relief(mask, bump)
        colours = surface(normals, light, x, y)
        if bump == "heap":
            colours = colours * tone[..., None]
        if canvas[..., 3].any():  # the shadow of a part on those behind it
            canvas[..., :3] *= 1 - 0.4 * blurred(mask, 5)[..., None]
        canvas = over(layer(colours.clip(0, 1), blurred(mask, soft)), canvas)
    return Image.fromarray(np.rint(canvas * 255).astype(np.uint8))


# Finishes

def finish(rng, sources, names=ANY):
    name = pick(rng, names)
    if name in ("chrome", "gold"):
        return metal(rng, name == "gold" and rng.random() < 0.8)
    if name == "glass":
        return glass(rng)
    if name == "picture":
        return printed(pattern(rng, sources), rng)
    colour = {"white": rng.uniform(0.86, 0.97), "grey": rng.uniform(0.6, 0.88),
              "black": rng.uniform(0.02, 0.18), "coloured": rng.uniform(0.1, 1, 3)}[name]
    return matt(colour + rng.normal(0, 0.012, 3), rng, 2 if name == "black" else 1)


def matt(colour, rng, shine=1):
    """Paper, china or plastic of one colour, or of the colours that a function of x and y gives"""
    depth, gloss = rng.uniform(0.25, 0.7), shine * rng.uniform(0, 0.4) * (rng.random() < 0.7)
    sharp, rim = rng.uniform(15, 80), rng.uniform(0.1, 0.45)

    def colours(normals, light, x, y):
        facing = sum(n * part for n, part in zip(normals, light))
        shade = 1 - depth * (1 - (facing / light[2]).clip(0, 1.02)) - rim * (1 - normals[2])
        half = light + (0, 0, 1)
        half /= np.linalg.norm(half)
        shine = gloss * sum(n * part for n, part in zip(normals, half)).clip(0, 1) ** sharp
        # A flat face looks into the light's direction nowhere, or everywhere.
        shine = (shine - gloss * half[2] ** sharp).clip(0, 1)
        base = colour(x, y) if callable(colour) else np.asarray(colour, np.float32)
        return base * shade[..., None] + shine[..., None]
    return colours


def printed(picture, rng):
    """A picture on the square from -0.5 to 0.5, mirrored around it"""
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    height, width = pixels.shape[:2]

    def colours(x, y):
        return pixels[(height * mirrored(y)).astype(int), (width * mirrored(x)).astype(int)]
    return matt(colours, rng)


def mirrored(x):
    return (1 - np.abs((x + 0.5) % 2 - 1)).clip(0, 0.9999)


def metal(rng, golden):
    """White and dark bands that a polished or brushed surface reflects"""
    count = int(rng.integers(5, 12))
    places = np.sort(rng.uniform(-1, 1, count))
    levels = rng.uniform(0.05, 0.7, count)
    levels[::2] = rng.uniform(0.8, 1, len(levels[::2]))
    bands = np.interp(np.linspace(-1, 1, 256), places, levels)
    tint = np.array([1, rng.uniform(0.72, 0.86), rng.uniform(0.3, 0.6)]) if golden else (
        1 + rng.normal(0, 0.015, 3))
    angle, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.5)

    def colours(normals, light, x, y):
        facing = np.cos(angle) * normals[0] + np.sin(angle) * normals[1]
        facing = facing + waves * np.sin(5 * x + 4 * y + angle) * normals[2]
        return bands[((facing.clip(-1, 1) + 1) * 127.5).astype(int), None] * tint
    return colours


def glass(rng):
    """Nearly white inside, dark and bright along the edges; opaque, as the cut-outs' glass is"""
    tint, inner = 1 - rng.uniform(0, 0.08, 3), rng.uniform(0.85, 0.98)
    power, dark, where = rng.uniform(1, 3), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8)

    def colours(normals, light, x, y):
        rim = (1 - normals[2]).clip(0, 1)
        streak = np.exp(-((normals[0] * np.sign(light[0]) - where) / 0.08) ** 2)
        value = inner - dark * rim**power + 0.5 * streak + 0.05 * np.sin(9 * x + 6 * y)
        return value[..., None] * tint
    return colours


def pattern(rng, sources):
    """A part of a photograph, or clouds of two colours"""
    if sources.photographs and rng.random() < 0.8:
        photograph = opened(pick(rng, sources.photographs), "RGB")
        side = min(photograph.size) * rng.uniform(0.5, 1)
        left, top = rng.random(2) * (np.array(photograph.size) - side)
        return photograph.resize((320, 320), box=(left, top, left + side, top + side))
    first, second = rng.uniform(0.1, 1, (2, 3))
    share = noise(rng, (320, 320))[..., None]
    return Image.fromarray(np.uint8(255 * (first + (second - first) * share)))


# Things

def written(text, path, stroke=0):
    """A mask "L" of text, about TEXT_SCALE pixels long"""
    size = TEXT_SCALE // max(2, len(text))
    font = ImageFont.truetype(str(path), size) if path else ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    mask = Image.new("L", (int(right - left) + 120, int(bottom - top) + 120))
    ImageDraw.Draw(mask).text((60 - left, 60 - top), text, 255, font, stroke_width=stroke)
    return mask


def letters(rng, sources):
    """Letters and digits, some with a border or with sides"""
    text = word(rng, rng.choice([1, 1, 2, 3, 4]))
    path, bold = pick(rng, sources.fonts or [None]), int(rng.choice([0, 0, 5, 12]))
    front = back = written(text, path, bold)
    if rng.random() < 0.25:
        back = ImageOps.fit(written(text, path, bold + 12), front.size, centering=(0.5, 0.5))
    if rng.random() < 0.35:
        step = rng.integers(-2, 3, 2)
        for _ in range(rng.integers(8, 24)):
            back = ImageChops.lighter(back, ImageChops.offset(back, *map(int, step)))
    parts = [([(front, 0, 255)], finish(rng, sources), rng.uniform(0.3, 2.5))]
    return parts if back is front else [([(back, 0, 255)], finish(rng, sources), 0.3)] + parts


def word(rng, length):
    return "".join(pick(rng, CHARACTERS) for _ in range(length))


def rings(rng, sources):
    """Rings, interlocked or set with a stone, and wheels"""
    surface, other = finish(rng, sources), finish(rng, sources)
    width = rng.uniform(0.02, 0.2)
    ring = [fill(arc(0, 0, 0.5)), hole(arc(0, 0, 0.5 - width))]
    parts = [(shifted(ring, 0.55 * number, rng.uniform(-0.3, 0.3) * number), surface,
              rng.uniform(0.4, 2)) for number in range(rng.choice([1, 1, 1, 2, 3]))]
    if len(parts) == 1 and rng.random() < 0.4:
        angles = np.linspace(0, 2 * np.pi, rng.integers(4, 15))[1:]
        spokes = [line([(0, 0), (0.47 * np.cos(a), 0.47 * np.sin(a))], width / 3) for a in angles]
        return [(spokes, other, 1.2), *parts, ([fill(arc(0, 0, 0.6 * width + 0.02))], other, 1)]
    if rng.random() < 0.3:
        stone = arc(0, -0.5, 0.14, rng.uniform(0.08, 0.16))[::rng.choice([1, 9, 12])]
        parts.append(([fill(stone)], finish(rng, sources, LIGHT + ("coloured",)), 1.5))
    return parts


def frames(rng, sources):
    """Picture frames, open inside, of one strip or two"""
    height, width = rng.uniform(0.3, 0.5), rng.uniform(0.03, 0.14)
    edges = [box(inset - 0.5, inset - height, 0.5 - inset, height - inset)
             for inset in (0, width, width * rng.uniform(0.3, 0.8))]
    strips = [([fill(edge), hole(edges[1])], finish(rng, sources), rng.uniform(0.3, 2))
              for edge in (edges[0], edges[2])]
    return strips[:rng.integers(1, 3)]


def turned(rng, name, stretch):
    """(y, radii, normals) of a vessel or a rod as a lathe makes it, standing"""
    heights, radii = np.array(PROFILES[name]).T
    y, smooth = np.linspace(-0.5, 0.5, 101), int(rng.integers(1, 12))
    if name == "ball":
        radii = np.sqrt(0.2501 - y**2)
    else:
        radii = np.interp(y, heights, radii * rng.uniform(0.75, 1.3, len(radii)))
        radii = np.convolve(np.pad(radii, smooth, mode="edge"),
                            np.full(2 * smooth + 1, 1 / (2 * smooth + 1)), "valid")
    y = y * stretch
    slopes = np.gradient(radii, y).clip(-4, 4)

    def normals(x, height):
        across = (x / np.interp(height, y, radii)).clip(-0.97, 0.97)
        out = np.sqrt(1 - across**2)
        return across, -np.interp(height, y, slopes) * out, out
    return y, radii, normals


def vessels(rng, sources, names=VESSELS, stretches=(0.8, 1.5)):
    """Turned goods, some with labels, a handle, an opening or a lid"""
    name, surface = pick(rng, names), finish(rng, sources, LIGHT + LIGHT + SHINY + ("coloured",))
    stretch = rng.uniform(*stretches) if name != "ball" else 1
    y, radii, normals = turned(rng, name, stretch)
    side, (top, width) = np.stack([radii, y], axis=1), (y[0], radii[0])
    foot = arc(0, y[-1], radii[-1], 0.12 * radii[-1], 0, 0.5)
    parts = [([fill([*side, *foot, *(side * (-1, 1))[::-1]])], surface, normals)]
    if name == "cup" or (name in ("vase", "jar") and rng.random() < 0.3):
        middle, reach = rng.uniform(-0.2, 0.1) * stretch, rng.uniform(0.12, 0.28)
        loop = arc(np.interp(middle, y, radii), middle, reach, reach * stretch, -0.32, 0.32)
        parts.insert(0, ([line(loop * (rng.choice([-1, 1]), 1), rng.uniform(0.03, 0.09))],
                         surface, 1.2))
    for _ in range(rng.integers(0, 3) if name not in ("ball", "cup", "figure") else 0):
        low, high = np.sort(rng.uniform(-0.2, 0.5, 2)) * stretch
        label = side[(y > low) & (y < high)]
        if len(label) > 4:
            parts.append(([fill([*label, *(label * (-1, 1))[::-1]])],
                          finish(rng, sources, ("picture", "white", "coloured")), normals))
    if name in ("cup", "vase") or (name == "can" and rng.random() < 0.5):
        depth = width * rng.uniform(0.1, 0.35)
        parts += [([fill(arc(0, top, width, depth))], surface, 0.6),
                  ([fill(arc(0, top + 0.01, 0.93 * width, 0.9 * depth))], surface,
                   lambda x, y: (-x / width, np.full_like(x, 0.8), np.ones_like(x)))]
    elif name in ("bottle", "jar") and rng.random() < 0.7:
        lid = box(-width * 1.15, top - 0.1, width * 1.15, top + 0.06, 0.02)
        parts.append(([fill(lid)], finish(rng, sources), lambda x, y: (
            (x / width / 1.2).clip(-0.95, 0.95), 0 * x, 0 * x + 0.5)))
    return parts


def bars(rng, sources):
    """Long bottles, tubes and rods"""
    return vessels(rng, sources, ("rod", "rod", "bottle", "tube", "can"), (1.5, 4))


def plates(rng, sources):
    """Plates, bowls and trays from above: rings around a well, some with a stripe"""
    edges, slopes = np.sort(rng.uniform(0.2, 0.5, 4)), rng.normal(0, 0.7, 5)
    slopes[0] *= 0.1

    def normals(x, y):
        radius = np.hypot(x, y) + 1e-6
        slope = np.interp(radius, np.repeat(edges, 2) + np.tile([-0.012, 0.012], 4),
                          np.repeat(slopes, 2)[1:-1])
        return slope * x / radius, slope * y / radius, np.ones_like(x)
    radius, width = rng.uniform(0.3, 0.48), rng.uniform(0.004, 0.03)
    parts = [([fill(arc(0, 0, 0.5))], finish(rng, sources, LIGHT + ("chrome", "black")), normals),
             ([fill(arc(0, 0, radius)), hole(arc(0, 0, radius - width))], finish(rng, sources),
              normals)]
    return parts[:rng.choice([1, 1, 2])]


def level(across, along):
    """The normals of a flat face"""
    return lambda x, y: (0 * x + across, 0 * x + along, 0 * x + 1)


def boxes(rng, sources):
    """Cartons, and paper bags with handles: three faces of a box"""
    camera = rng.uniform(0.2, 1.3), rng.uniform(0.2, 0.9)
    size = rng.uniform(0.15, 0.5, 3) * (1, 1, 1.4)
    surface = finish(rng, sources, ("white", "white", "grey", "black", "coloured", "picture"))
    parts, tones = [], rng.permutation([(0.0, -0.1), (0.6, 0.5), (-0.6, 0.2)])
    for axis, tone in enumerate(tones):  # the faces at x = 1, y = 1 and z = 1
        corners = np.insert([(-1, -1), (1, -1), (1, 1), (-1, 1)], axis, 1, axis=1)
        face = projected(corners * size, *camera)
        parts.append(([fill(face), line(closed(face), 0.006)], surface, level(*tone)))
    if rng.random() < 0.4:
        top = projected([(0, 0, size[2])], *camera)
        loop = top + arc(0, 0.02, 0.5 * size[0], rng.uniform(0.2, 0.4), 0.5, 1)
        parts = [([line(loop + (0.03, -0.02), 0.02)], surface, 1), *parts,
                 ([line(loop, 0.02)], surface, 1)]
    return parts


def bags(rng, sources):
    """Bags, baskets, padlocks, kettlebells: a body below an open handle"""
    surface, strap = finish(rng, sources), finish(rng, sources)
    body = box(-0.42, -0.12, 0.42, 0.5, rng.uniform(0, 0.3))
    body[:, 0] *= 1 - rng.uniform(0, 0.5) * (0.5 - body[:, 1])
    loop = arc(0, -0.08, rng.uniform(0.12, 0.28), rng.uniform(0.2, 0.45), 0.5, 1)
    handle = [line(loop, rng.uniform(0.02, 0.1))]
    return [(handle, strap, 1.0), ([fill(body)], surface, rng.uniform(0.3, 1.2)),
            (shifted(handle, 0, 0.05), strap, 1.0)][:rng.integers(2, 4)]


def tool_shapes(rng):
    """The shapes of some tools, a list for each finish, from back to front"""
    width, spread, sides = rng.uniform(0.015, 0.06), rng.uniform(0.1, 0.3), (-1, 1)
    shaft, grip = line([(0, -0.5), (0, 0.5)], width), fill(box(-0.06, 0.05, 0.06, 0.5, 0.05))
    lens = box(-0.2, -rng.uniform(0.12, 0.2), 0.2, 0.15, rng.choice([0.04, 0.1, 0.2]))
    loop = closed(box(-0.22, -0.5, 0.22, 0.5, 0.21) * (rng.uniform(0.7, 1.4), 1))
    along, coils = np.linspace(0, 1, 160), 2 * np.pi * rng.integers(3, 12)
    bent = np.cumsum(np.cumsum(rng.normal(0, 1, (160, 2)), axis=0), axis=0)
    ticks = [[(r * np.sin(a), r * np.cos(a)) for r in (0.28, 0.32)] for a in np.arange(12) * 0.5236]
    hands = [[(0, 0), (r * np.sin(a), r * np.cos(a))] for r, a in
             zip((0.15, 0.24), rng.uniform(0, 6.28, 2))]
    return pick(rng, (
        # A fork, a spoon, a knife, a needle, a whisk
        [[line([(x, -0.5), (x, -0.25)], 0.016) for x in np.linspace(-0.06, 0.06, 4)]
         + [fill(box(-0.068, -0.28, 0.068, -0.18, 0.06)), line([(0, -0.2), (0, 0.5)], width)]],
        [[fill(arc(0, -0.33, 0.1, 0.17)), line([(0, -0.2), (0, 0.5)], width)]],
        [[fill([(-0.02, 0.1), (-0.05, -0.3), (0.02, -0.5), (0.03, 0.1)])], [grip]],
        [[fill([(-0.02, -0.5), (0.02, -0.5), (0, 0.5)]), hole(arc(0, -0.44, 0.008, 0.04))]],
        [[line(arc(0, -0.25, x, 0.25), 0.012) for x in (0.05, 0.12, 0.18)], [grip]],
        # A screwdriver, a spanner, scissors
        [[shaft], [grip]],
        [[fill(arc(0, -0.4, 0.12)), hole(box(-0.05, -0.6, 0.05, -0.4)), fill(arc(0, 0.5, 0.1)),
          line([(0, -0.32), (0, 0.42)], 0.08), hole(arc(0, 0.5, 0.055)[::12])]],
        [[fill([(-s * spread, -0.6), (s * 0.05, 0.05), (-s * 0.03, 0.08)]) for s in sides],
         [line([(0, 0.05), (s * (0.06 + spread / 4), 0.22)], width) for s in sides]
         + [line(arc(s * (0.12 + spread / 2), 0.36, 0.12, 0.16), width) for s in sides]],
        # A paper clip, a bent wire, a spring, a key, a carabiner, a hook
        [[line([*arc(0, 0.3, 0.1, None, 0, 0.5), *arc(0.03, -0.35, 0.13, None, 0.5, 1),
                *arc(0.05, 0.4, 0.11, None, 0, 0.5), (-0.06, -0.2)], 0.6 * width)]],
        [[line((bent - bent.min(axis=0)) / np.ptp(bent, axis=0).max(), 0.7 * width)]],
        [[line(np.stack([along + 0.03 * np.cos(coils * along), 0.12 * np.sin(coils * along)], 1),
               0.7 * width)]],
        [[line(arc(0, -0.3, 0.14, spread), 1.4 * width), line([(0, -0.15), (0, 0.55)], width)]
         + [fill(box(0, y, 0.3 * y - 0.05, y + 0.05)) for y in (0.4, 0.48)]],
        [[line(loop, width)], [line(loop[18:20] * (1, 0.6), 1.3 * width)]],
        [[line([*arc(-0.1, -0.35, 0.1, 0.12, 0.4, 1), *arc(0.12, 0.35, 0.12, None, 0.5, -0.1)],
               width)]],
        # A coat hanger, spectacles (twice), an alarm clock
        [[line([*arc(0, -0.3, 0.08, 0.08, 0.45, 1.2), (0, -0.2), (0, -0.12)], 0.6 * width)],
         [line([(-0.5, 0.2), (0, -0.12), (0.5, 0.2), (-0.5, 0.2)], width)]],
        *2 * ([[line(closed(lens + (s * 0.26, 0)), width) for s in sides]
               + [line([(s * 0.46, -0.08), (s * 0.62, -0.3)], 0.8 * width) for s in sides]
               + [line(arc(0, -0.02, 0.07, 0.05, 0.5, 1), width)],
               [fill(lens * 0.9 + (s * 0.26, 0)) for s in sides][:2 * rng.integers(0, 2)]],),
        [[line(arc(0, -0.38, spread, spread, 0.5, 1), width + 0.02), fill(arc(0, 0, 0.42))]
         + [line([(s * 0.2, 0.3), (s * 0.28, 0.48)], 0.05) for s in sides],
         [fill(arc(0, 0, 0.35))], [line(points, 0.015) for points in ticks + hands]],
    ))


def tools(rng, sources):
    """Cutlery, hooks, wire, keys, spectacles: thin things, mostly of metal"""
    finishes = [finish(rng, sources, names) for names in
                (("chrome",) * 4 + LIGHT + ("black",), ANY, ("black", "coloured"))]
    return [(shapes, surface, 1.2) for shapes, surface in zip(tool_shapes(rng), finishes) if shapes]


def racks(rng, sources):
    """Grids, cages, tables, shelves and chairs, of bars"""
    surface, seat = finish(rng, sources), finish(rng, sources)
    thick, camera = rng.uniform(0.015, 0.05), (rng.uniform(0.2, 1.2), rng.uniform(0.15, 0.6))
    kind, count = rng.choice(["grid", "cage", "table", "shelf", "chair"]), int(rng.integers(3, 9))
    if kind == "grid":
        height, rows = rng.uniform(0.3, 0.5), np.linspace(-1, 1, int(rng.integers(3, 9)))
        posts = [line([(x, -height), (x, height)], thick) for x in np.linspace(-0.5, 0.5, count)]
        return [(posts[::rng.choice([1, count - 1])], surface, 1.5),
                ([line([(-0.5, y), (0.5, y)], thick) for y in height * rows], surface, 1.5)]
    if kind == "cage":
        rims = [arc(0, y, 0.3, 0.3 * np.sin(camera[1])) for y in (-0.4, 0.4)]
        wires = [line(ends, thick / 2) for ends in zip(rims[0][::6], rims[1][::6])]
        loops = [line(loop, thick) for loop in (*rims, arc(0, -0.4, 0.15, 0.25, 0.5, 1))]
        return [(wires + loops, surface, 1.5)]

    def bar(*points):
        return line(projected(points, *camera), thick)

    def board(z):
        face = projected([(x, y, z) for x, y in square], *camera)
        return [fill(face), line(closed(face), 1.3 * thick)], seat, 0.5
    square, low, high = ((-0.25, -0.25), (0.25, -0.25), (0.25, 0.25), (-0.25, 0.25)), -0.5, 0.6
    if kind == "shelf":
        posts = [bar((x, y, low), (x, y, high)) for x, y in square]
        return [(posts[:2], surface, 1.2), *map(board, np.linspace(-0.45, 0.5, count // 2 + 1)),
                (posts[2:], surface, 1.2)]
    legs = [bar((x, y, 0), (1.1 * x, 1.1 * y, low)) for x, y in square]
    if rng.random() < 0.5:
        legs.append(bar(*((x, y, low / 2) for x, y in closed(np.array(square)))))
    back = [bar((x, -0.25, 0), (x, -0.28, high)) for x in (-0.25, 0.25)]
    back += ([bar((-0.25, -0.28, z), (0.25, -0.28, z)) for z in np.linspace(0.2, high, count)]
             if rng.random() < 0.5 else
             [bar((-0.25, -0.28, high), (0.25, -0.28, high))]
             + [bar((x, -0.25, 0), (x, -0.28, high)) for x in np.linspace(-0.25, 0.25, count)])
    return [(legs + back * (kind == "chair"), surface, 1.2), board(0)]


def petals(rng, sources):
    """Flowers, white ones above all, and wreaths of leaves, open in the middle"""
    wreath, slim = rng.random() < 0.4, rng.uniform(0.25, 0.5)
    count = int(rng.integers(40, 90) if wreath else rng.integers(6, 26))
    leaf, leaves = arc(0, 0, 1, slim)[:-1], []
    for number in range(count):
        share = number / count
        around = 2 * np.pi * (share if wreath else 0.382 * number)
        tilt = around + rng.normal(0, 0.2) + wreath * (1.57 + rng.choice([-0.8, 0.8]))
        size = rng.uniform(0.07, 0.13) if wreath else 0.2 * (1 - 0.5 * share)
        middle = rng.normal(0.4, 0.02) if wreath else size
        leaves.append(fill(rotated(size * leaf, tilt) + rotated(np.array([[middle, 0]]), around)))
    names = ("white", "coloured", "coloured", "picture") if wreath else LIGHT + ("coloured",)
    parts = [(leaves, finish(rng, sources, names), "heap")]
    if wreath:
        return parts
    stem = np.stack([0.1 * np.sin(np.linspace(0, 2, 20)), np.linspace(0, 0.9, 20)], axis=1)
    stems = [([line(stem, 0.025)], matt((0.3, 0.5, 0.25), rng), 1.2)] * rng.integers(0, 2)
    return [*stems, *parts, ([fill(arc(0, 0, rng.uniform(0.03, 0.09)))], finish(rng, sources), 1)]


def chains(rng, sources):
    """Links or beads along a loop or a wave"""
    surface, count = finish(rng, sources, SHINY + LIGHT), int(rng.integers(8, 28))
    path = arc(0, 0, 0.45, rng.uniform(0.25, 0.45))
    if rng.random() < 0.4:
        across = np.linspace(-0.5, 0.5, len(path))
        path = np.stack([across, 0.2 * np.sin(rng.uniform(1, 9) * across)], axis=1)
    places = np.linspace(0, len(path) - 1, count + 1)
    joints = np.stack([np.interp(places, np.arange(len(path)), side) for side in path.T], axis=1)
    steps, middles = np.diff(joints, axis=0), (joints[1:] + joints[:-1]) / 2
    length = 0.62 * np.linalg.norm(steps[0])
    if rng.random() < 0.4:
        return [([line(path, 0.006)], surface, 1),
                ([fill(arc(*middle, 0.75 * length)) for middle in middles], surface, "heap")]
    links = [line(rotated(arc(0, 0, length, length * (0.25, 0.6)[number % 2]),
                          np.arctan2(step[1], step[0])) + middle, max(0.012, 0.3 * length))
             for number, (step, middle) in enumerate(zip(steps, middles))]
    return [(links[::2], surface, 1.5), (links[1::2], surface, 1.5)]


# Prints, cards and groups

def grey(rng, low, high):
    """A colour in 0..255, nearly grey, of a level in 0..1"""
    return tuple(int(255 * level) for level in
                 (rng.uniform(low, high) + rng.normal(0, 0.01, 3)).clip(0, 1))


def prints(rng, sources):
    """Stamps, photographs and posters: solid inside their border, though often white there"""
    height, border = rng.uniform(0.3, 0.5), rng.uniform(0.05, 0.14)
    size = [round(512 * (length - border)) for length in (1, 2 * height)]
    inside = pattern(rng, sources) if rng.random() < 0.5 else Image.new(
        "RGB", (9, 9), grey(rng, 0.82, 1))
    inside = inside.resize(size)
    if rng.random() < 0.5:
        thing = ImageOps.contain(subject(rng, sources), [round(0.8 * length) for length in size])
        inside.paste(thing, [(a - b) // 2 for a, b in zip(size, thing.size)], thing)
    inside = ImageOps.expand(inside, int(rng.integers(0, 8)), grey(rng, 0, 0.8))
    paper = Image.new("RGB", (512, 512), grey(rng, 0.86, 1))
    paper.paste(inside, [(512 - length) // 2 for length in inside.size])
    shapes = [fill(box(-0.5, -height, 0.5, height, rng.choice([0, 0.03])))]
    if rng.random() < 0.5:  # perforated
        radius = rng.uniform(0.008, 0.018)
        across, down = (np.linspace(-a, a, round(0.6 * a / radius)) for a in (0.5, height))
        centres = [(x, y) for x in across for y in (-height, height)]
        centres += [(x, y) for x in (-0.5, 0.5) for y in down]
        shapes += [hole(arc(*centre, radius)[::6]) for centre in centres]
    return [(shapes, printed(paper, rng), 0.15)]


def card(rng, sources):
    """A card with bands, a word and lines of text; its hang hole is open."""
    width = rng.uniform(0.28, 0.5)
    paper = Image.new("RGB", (512, 512), grey(rng, 0.88, 1))
    draw, ink = ImageDraw.Draw(paper), grey(rng, 0, 0.5)
    for _ in range(rng.integers(0, 3)):
        top, colour = rng.uniform(0, 460), tuple(map(int, rng.integers(0, 256, 3)))
        draw.rectangle((0, top, 512, top + rng.uniform(15, 150)), fill=colour)
    left = 256 - 430 * width
    for top in np.arange(rng.uniform(300, 400), 490, rng.uniform(15, 30)):
        draw.rectangle((left, top, left + 860 * width * rng.uniform(0.2, 1), top + 6), fill=ink)
    name = ImageOps.contain(written(word(rng, 6), pick(rng, sources.fonts or [None])),
                            (round(900 * width), 80))
    paper.paste(ink, (256 - name.width // 2, 60), name)
    shapes = [fill(box(-width, -0.5, width, 0.5, rng.choice([0.005, 0.03, 0.08])))]
    if rng.random() < 0.7:
        across = rng.choice([0.025, 0.1])
        shapes.append(hole(box(-across, -0.46, across, -0.41, 0.025)))
    return [(shapes, printed(paper, rng), 0.15)]


def cards(rng, sources, cut):
    """A thing on its card, at times beyond its edge"""
    sheet = painted(card(rng, sources), rng, cut, turn=8, flat=0.9)
    left, top, right, bottom = sheet.getbbox()
    width, height = right - left, bottom - top
    share = rng.uniform(0.5, pick(rng, (0.95, 0.95, 1.15)))
    thing = ImageOps.contain(subject(rng, sources), (max(8, round(share * width)),
                                                     max(8, round(0.6 * height))))
    x, y = (left + right - thing.width) // 2, round(top + rng.uniform(0.15, 0.35) * height)
    join(sheet, thing, (x, y))
    return sheet


def join(sheet, thing, corner):
    """Put a cut-out on an RGBA sheet, with its shadow on the things already there."""
    front, alpha = Image.new("RGBA", sheet.size), sheet.getchannel("A")
    front.paste(thing, corner)
    shadow = front.getchannel("A").filter(ImageFilter.GaussianBlur(5))
    sheet.paste((40, 40, 40), mask=shadow.point(lambda level: level // 3))
    sheet.putalpha(alpha)
    sheet.alpha_composite(front)


def groups(rng, sources, cut):
    """Two or three things side by side or overlapping, at times the same, mostly on one line"""
    things = [subject(rng, sources) for _ in range(rng.integers(2, 4))]
    if rng.random() < 0.2:
        things = things[:1] * 3
    sheet, left, floating = Image.new("RGBA", (3 * SIDE, SIDE)), 0, rng.random() < 0.2
    for thing in things:
        length = int(SIDE * rng.uniform(0.4, 0.7))
        thing = ImageOps.contain(thing, (length, length))
        lift = int(rng.integers(0, SIDE // 4)) if floating else 0
        join(sheet, thing, (left, SIDE - lift - thing.height))
        left += max(12, round(thing.width * rng.uniform(0.55, 1.1)))
    return on_sheet(sheet.crop(sheet.getbbox()), cut, rng)


# Subjects and cut-outs

def recoloured_towards(image, colour, rng):
    """The RGBA cut-out near an RGB colour in 0..255, its texture kept at a low contrast."""
    pixels = np.asarray(image, np.float32) / 255
    grey_levels = pixels[..., :3] @ np.float32([0.299, 0.587, 0.114])
    solid = pixels[..., 3] > 0.5
    colour = np.asarray(colour, np.float32) / 255
    share = float(colour.mean())  # the lighter the colour, the more lies below it
    middle = np.quantile(grey_levels[solid] if solid.any() else grey_levels, 0.1 + 0.8 * share)
    texture = (grey_levels - middle)[..., None] * rng.uniform(0.25, 0.6)
    tint = (pixels[..., :3] - grey_levels[..., None]) * rng.uniform(0, 0.25)
    pixels = np.concatenate([(colour + texture + tint).clip(0, 1), pixels[..., 3:]], axis=2)
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def opened(path, mode):
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it") from None


def cutout(rng, sources, share):
    """One of the cut-outs without its margin, mirrored or not, and recoloured at that share"""
    path = pick(rng, sources.cutouts)
    image = opened(path, "RGBA")
    inside = image.getchannel("A").getbbox()
    if inside is None:
        raise UserError(f"{path}: is transparent all over; remove it")
    image = image.crop(inside)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < share:
        levels = pick(rng, ((0.86, 0.97), (0.86, 0.97), (0.7, 0.88), (0.02, 0.15)))
        image = recoloured_towards(image, grey(rng, *levels), rng)
    return image


def subject(rng, sources):
    """The RGBA image of a thing without its margin, cut out or painted"""
    if sources.cutouts and rng.random() < 0.6:
        return cutout(rng, sources, sources.recolour)
    kind = pick(rng, (vessels, vessels, plates, boxes, bags, tools, tools, rings))
    image = painted(kind(rng, sources), rng, turn=25)
    return image.crop(image.getbbox())


def on_sheet(image, cut, rng):
    """A cut-out on the canvas"""
    scale, corner = placement(image.size, cut, rng)
    size = [max(1, round(length * scale)) for length in image.size]
    canvas = Image.new("RGBA", (SIDE, SIDE))
    corner = [round(place) for place in corner.tolist()]
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
    return canvas


def cuts(rng, sources, _):
    return on_sheet(cutout(rng, sources, sources.recolour), pick(rng, CUTS[1:]), rng)


def recoloured(rng, sources, cut):
    return on_sheet(cutout(rng, sources, 1), cut, rng)


# Things of parts, how often, by how many degrees they are turned, and their foreshortening
PARTS = ((letters, 14, 25, 0.7), (rings, 9, 180, 0.5), (vessels, 12, 12, 0.9),
         (plates, 6, 180, 0.35), (boxes, 5, 8, 0.9), (bags, 5, 15, 0.8), (tools, 9, 180, 0.8),
         (tools, 9, 15, 0.9), (frames, 5, 20, 0.7), (prints, 7, 12, 0.8), (racks, 8, 6, 0.9),
         (petals, 5, 30, 0.6), (chains, 4, 180, 0.7), (bars, 6, 180, 0.9))
SHEETS = ((groups, 10), (cards, 8), (cuts, 10), (recoloured, 8))
P_CUT = (0.72, 0.12, 0.08, 0.08)  # of CUTS
P_CUT_BARS = (0.1, 0.2, 0.1, 0.6)


def painted_subject(seed, number, sources):
    """(kind, RGBA image of SIDE x SIDE), the same for the same seed and number"""
    rng = np.random.default_rng([seed, number])
    usable = 2 if not sources.cutouts else 3 if not sources.recolour else 4
    table = PARTS + SHEETS[:usable]
    weights = np.array([row[1] for row in table], float)
    kind, _, *pose = table[rng.choice(len(table), p=weights / weights.sum())]
    cut = rng.choice(CUTS, p=P_CUT_BARS if kind is bars else P_CUT)
    if pose:
        return kind.__name__, painted(kind(rng, sources), rng, cut, *pose)
    return kind.__name__, kind(rng, sources, cut)


def files(folder, suffixes, flag):
    """The sorted files below the folder with one of the suffixes; none without a folder."""
    if folder is None:
        return []
    found = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in suffixes)
    if not found:
        raise UserError(f"{flag} {folder}: no {' or '.join(suffixes)} file is in it")
    return found


def write(folder, seed, number, sources):
    """Write a subject as WebP with a lossless alpha; returns whether its pictures could be read."""
    try:
        kind, image = painted_subject(seed, number, sources)
    except UserError as error:
        log(f"Skipped subject {number}: {error}")
        return False
    path = folder / f"{kind}_{number:04}.webp"
    image.save(path.with_suffix(".tmp"), "WEBP", quality=90, alpha_quality=100, method=2)
    path.with_suffix(".tmp").replace(path)
    return True


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cutouts", type=Path, metavar="FOLDER", help="RGBA pictures of subjects")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="for prints and labels")
    parser.add_argument("--fonts", type=Path, metavar="FOLDER", help="default: Pillow's own font")
    parser.add_argument("--recolour", type=float, default=0.0, metavar="SHARE",
                        help="of the cut-outs, towards white, grey or black")
    arguments = parser.parse_args(argv)
    try:
        sources = Sources(files(arguments.cutouts, (".png", ".webp"), "--cutouts"),
                          files(arguments.photographs, (".jpg", ".jpeg", ".png"), "--photographs"),
                          files(arguments.fonts, (".ttf", ".otf"), "--fonts"), arguments.recolour)
        arguments.out.mkdir(parents=True, exist_ok=True)
        count = sum(write(arguments.out, arguments.seed, number, sources)
                    for number in range(arguments.count))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log(f"Wrote {count} subjects to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
