"""A drawn stand-in set, so that a fresh machine runs the whole story without a download.

Soft edges, thin strands, glow and transparency over plain, gradient and textured backdrops.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.runtime.console import log
from src.runtime.distributed import barrier
from src.runtime.processes import rank
from src.runtime.tables import write_table
from src.data.backdrops import paint_backdrop, smooth_colours

DEMO_SIZE = 1024  # pixels, as in MAGICK
DEMO_COUNTS = {"train": 8, "val": 4, "test": 6}


def demo_places(folder):
    """Where make_demo puts what, by the names of `Inputs`."""
    return {"train_csv": folder / "train.csv", "val_csv": folder / "val.csv",
            "test_root": folder / "orig_1024"}


def show_demo(inputs, seed):
    """Draw the demonstration set for these `Inputs`, and say loudly that it is one."""
    log("=" * 72)
    log("DEMONSTRATION: no data was found, so a small drawn set stands in, in "
        f"{inputs.test_root.parent}.")
    log("Its figures say nothing about real images; name yours with --train-csv, --val-csv and")
    log("--test-root.")
    log("=" * 72)
    if rank() == 0:
        make_demo(inputs.test_root.parent, seed)
    barrier()


def make_demo(folder, seed):
    """Write train.csv, val.csv and orig_1024/ into the folder; the same seed, the same files."""
    for number, (split, count) in enumerate(DEMO_COUNTS.items()):
        images = folder / ("orig_1024" if split == "test" else "images")
        rows = []
        for index in range(count):
            image, alpha = draw_pair(np.random.default_rng([seed, number, index]))
            name = f"{index + 1}.png" if split == "test" else f"{split}_{index + 1}.png"
            save_png(image, images / name)
            if split != "test":
                save_png(alpha, folder / "alphas" / name)
                rows.append({"image_path": f"images/{name}", "alpha_path": f"alphas/{name}"})
        if rows:
            write_table(folder / f"{split}.csv", rows)


def save_png(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)


def draw_pair(rng, size=DEMO_SIZE):
    """(RGB image, L alpha), both size x size: a subject drawn over a backdrop."""
    alpha = draw_alpha(rng, size)
    foreground = smooth_colours(rng, (size, size), cells=5)
    backdrop = paint_backdrop(rng, (size, size))
    return Image.composite(foreground, backdrop, alpha), alpha


def draw_alpha(rng, size):
    """A body with a soft or sharp edge, strands around it, now and then a glow or a veil."""
    body = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(body)
    centre = size * (1 + rng.uniform(-0.15, 0.15, 2))
    radius = size * rng.uniform(0.4, 0.6)
    draw.polygon(outline(rng, centre, radius), fill=255)
    for _ in range(int(rng.integers(10, 40))):
        draw.line(strand(rng, centre, radius), fill=255, width=int(rng.integers(2, 10)))
    alpha = body.reduce(2).filter(ImageFilter.GaussianBlur(float(rng.choice([0.5, 1.5, 6.0]))))
    layers = [np.asarray(alpha, np.float32)]
    if rng.random() < 0.4:
        glow = body.reduce(2).filter(ImageFilter.GaussianBlur(size / 20))
        layers.append(np.asarray(glow, np.float32) * rng.uniform(0.3, 0.8))
    if rng.random() < 0.4:
        veil = Image.new("L", (2 * size, 2 * size))
        shape = outline(rng, centre + rng.uniform(-0.5, 0.5, 2) * radius, radius * 0.9)
        ImageDraw.Draw(veil).polygon(shape, fill=int(rng.integers(60, 200)))
        layers.append(np.asarray(veil.reduce(2), np.float32))
    return Image.fromarray(np.max(layers, axis=0).round().astype(np.uint8))


def outline(rng, centre, radius):
    """Points of a closed, wavy curve around the centre."""
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    wave = sum(
        rng.uniform(0, 0.35 / k) * np.sin(k * angle + rng.uniform(0, 2 * np.pi))
        for k in range(2, 8)
    )
    points = centre + (radius * (1 + wave) * np.stack([np.cos(angle), np.sin(angle)])).T
    return [tuple(point) for point in points]


def strand(rng, centre, radius):
    """Points of a hair that leaves the body and bends."""
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-0.4, 0.4), 24)
    length = radius * np.linspace(0.6, rng.uniform(1.1, 1.6), 24)
    return [tuple(p) for p in centre + (length * np.stack([np.cos(angle), np.sin(angle)])).T]
