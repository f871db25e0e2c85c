"""Feeding: samples a second that one core delivers, the notebook's dataset against ours.

    python tests/benchmarks/bench_loader.py --images FOLDER

FOLDER holds RGBA cut-outs of any size; COUNT of them are written as MAGICK has them, RGBA PNGs of
1024x1024, and their alphas once more for the notebook. One thread, no workers, in turns: the
notebook's dataset with its augmentation (crops of 320); ours while the cache is being written, ours
from the cache, ours from the cache and made into crops of 320 by the CPU, and ours without a cache.
Then what the cache costs: bytes and error of an image against the same one reduced directly.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from notebook import NotebookPairs  # noqa: E402
from src.config import Settings  # noqa: E402
from src.data.augment import JointAugment  # noqa: E402
from src.data.cache import open_cache  # noqa: E402
from src.data.datasets import ShuffledEpochs, TrainingSet, reduced_pair  # noqa: E402
from src.data.loading import collated  # noqa: E402
from src.data.pairs import read_pairs  # noqa: E402

COUNT, SIDE, SIZE, BATCH, TURNS = 48, 1024, 320, 4, 3
MAGICK_ROWS = 140_000


def write_magick(images, folder):
    """A CSV of RGBA PNGs, and one that names their alphas too."""
    paths = sorted(path for path in images.iterdir() if path.suffix in (".png", ".webp"))
    rows = []
    for number, path in enumerate(paths[i * len(paths) // COUNT] for i in range(COUNT)):
        with Image.open(path) as image:
            image = image.convert("RGBA").resize((SIDE, SIDE))
        image.save(folder / f"{number}.png")
        image.getchannel("A").save(folder / f"alpha{number}.png")
        rows.append((f"{number}.png", f"alpha{number}.png"))
    table = pd.DataFrame(rows, columns=["image_path", "alpha_path"])
    table.to_csv(folder / "both.csv", index=False)
    table[["image_path"]].to_csv(folder / "magick.csv", index=False)
    return folder / "magick.csv", folder / "both.csv"


def rate(make, count=COUNT):
    """make(number) a second"""
    began = time.perf_counter()
    for number in range(count):
        make(number)
    return count / (time.perf_counter() - began)


def measured(magick, both, folder):
    """{what: samples/s} of one turn, with a new cache in the folder."""
    pairs = read_pairs(magick, cache=open_cache(folder, False))
    augment = JointAugment(SIZE, Settings().crop_scale)
    ours = TrainingSet(pairs, augment, 0)
    without = TrainingSet(replace(pairs, cache=None), augment, 0)

    def crops(number):
        items = [ours[3, number * BATCH + i] for i in range(BATCH)]
        augment.apply(collated(items), [], torch.device("cpu"))

    return {
        "notebook": rate(NotebookPairs(both, SIZE).__getitem__),
        "ours, cache being written": rate(lambda number: ours[1, number]),
        "ours, cached": rate(lambda number: ours[2, number]),
        "ours, cached, crops made by the CPU": BATCH * rate(crops, COUNT // BATCH),
        "ours, --cache off": rate(lambda number: without[1, number]),
    }


def cost_of_the_cache(magick, folder):
    """Print bytes and errors of cached images."""
    pairs = read_pairs(magick, cache=open_cache(folder, False))
    side = JointAugment(SIZE, Settings().crop_scale).source_side
    errors = []
    for index in range(len(pairs)):
        cached, direct = (
            [np.asarray(each, float) for each in reduced_pair(which, index, side)]
            for which in (pairs, replace(pairs, cache=None)))
        visible = direct[1][..., None] / 255
        errors.append((np.square((cached[1] - direct[1]) / 255).mean(),
                       np.square((cached[0] - direct[0]) / 255 * visible).mean()))
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    alpha, colour = np.mean(errors, axis=0)
    print(f"cached at {side} pixels: {np.mean(sizes) / 1e3:.1f} KB an image, MSE of the alpha "
          f"{alpha:.1e}, of the visible colours {colour:.1e}")


def magick_start(folder):
    """Print how long it takes until the first key of an epoch over MAGICK's rows is there."""
    names = [f"images/{number % 256:02x}/{number:036x}.png" for number in range(MAGICK_ROWS)]
    for name in names[:20]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    pd.DataFrame({"image_path": names}).to_csv(folder / "rows.csv", index=False)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    pairs = read_pairs(folder / "rows.csv")
    next(iter(ShuffledEpochs(len(pairs), 0, 20_000)))
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{MAGICK_ROWS} rows: first key after {seconds:.2f} s, {grown / 1024:.0f} MB more memory")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    images = parser.parse_args().images
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        magick_start(folder)
        magick, both = write_magick(images, folder)
        turns = [measured(magick, both, folder / f"cache{turn}") for turn in range(TURNS)]
        for name in turns[0]:
            rates = [turn[name] for turn in turns]
            ratio = statistics.median(rates) / statistics.median(t["notebook"] for t in turns)
            print(f"{name:38}" + " ".join(f"{each:7.1f}" for each in rates)
                  + f"  samples/s a core, {ratio:.2f} times the notebook's")
        cost_of_the_cache(magick, folder / "cache0")


if __name__ == "__main__":
    main()
