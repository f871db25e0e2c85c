"""Colours of cut-outs: the error of the image's own and of the estimated foreground, and the time.

    python tests/benchmarks/bench_cutouts.py --mattes FOLDER --photographs FOLDER

FOLDERs hold RGBA cut-outs, whose alphas are used, and photographs. Composites of 1024x1024 before a
photograph, of foregrounds that are known at every pixel: another photograph, smooth colours. Mean
absolute error in 0..1 where 0.02 < alpha < 0.98.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.data.backdrops import smooth_colours  # noqa: E402
from src.inputs.listing import image_files  # noqa: E402
from src.results.pictures import foreground  # noqa: E402

COUNT, SIZE = 8, (1024, 1024)


def read(path, mode):
    with Image.open(path) as image:
        return image.convert(mode).resize(SIZE)


def errors(alpha, truth, backdrop):
    """(error of the image's own colours, of the estimate, seconds of the estimate)"""
    share, truth, backdrop = (np.asarray(each, float) / 255 for each in (alpha, truth, backdrop))
    share = share[..., None]
    image = np.rint(255 * (share * truth + (1 - share) * backdrop)).astype(np.uint8)
    soft = ((share > 0.02) & (share < 0.98))[..., 0]
    began = time.perf_counter()
    estimate = foreground(image, alpha)
    seconds = time.perf_counter() - began
    return *(np.abs(each / 255 - truth)[soft].mean() for each in (image, estimate)), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mattes", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    arguments = parser.parse_args()
    mattes, photographs = image_files(arguments.mattes), image_files(arguments.photographs)
    figures = {"photograph": [], "smooth colours": []}
    for number in range(COUNT):
        alpha = read(mattes[number * len(mattes) // COUNT], "RGBA").getchannel("A")
        front, back = (read(photographs[(number + step) % len(photographs)], "RGB")
                       for step in (0, COUNT))
        smooth = smooth_colours(np.random.default_rng(number), SIZE, 6)
        for name, truth in zip(figures, (front, smooth)):
            figures[name].append(errors(alpha, truth, back))
    for name, rows in figures.items():
        own, found, seconds = np.mean(rows, axis=0)
        print(f"{name:15} image's own {own:.3f}, estimate {found:.3f}: {own / found:.1f} times "
              f"less, {seconds:.3f} s an image")


if __name__ == "__main__":
    main()
