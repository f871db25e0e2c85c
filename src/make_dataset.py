"""Build a training set of RGBA cut-outs and backdrops from Debian packages (a developer's tool).

    apt-get download tuxpaint-stamps-default gnome-backgrounds mate-backgrounds ukui-wallpapers
    python -m src.make_dataset OUT *.deb --leave-out held_back.txt

The packages are unpacked without being installed. OUT then holds cutouts/ and train.csv, for
--train-csv, and backdrops/, for --backgrounds. Each cut-out stands, at its own resolution, on a
transparent square canvas, as MAGICK's images do.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from src.console import UserError, log
from src.files import replacing

# Letters, digits and signs are no subjects; a sign's plate has no matte worth learning.
NOT_SUBJECTS = ("symbols/", "town/roadsigns/", "town/flags/")
SHORTEST_SIDE = 48  # pixels; smaller stamps are all edge once they are enlarged
COVERAGE = (0.55, 0.95)  # share of the canvas that the subject's longer side takes
BACKDROP_SIDE = 1600  # pixels of the longer side; photographs are only ever shown at crop size
BACKDROP_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def unpack(packages, folder):
    """Unpack .deb files below the folder with dpkg."""
    for package in packages:
        try:
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"{package}: cannot be unpacked ({error})") from None


def stamps(folder, left_out):
    """(name, RGBA image) of every usable stamp; a name is the path with _ for /."""
    for path in sorted(folder.glob("**/stamps/**/*.png")):
        relative = path.relative_to(next(p for p in path.parents if p.name == "stamps")).as_posix()
        name = relative.replace("/", "_")
        if relative.startswith(NOT_SUBJECTS) or name in left_out:
            continue
        with Image.open(path) as image:
            image = image.convert("RGBA")
        box = image.getchannel("A").point(lambda level: 255 * (level > 8)).getbbox()
        if box is None:
            continue
        image = image.crop(box)
        opacity = np.asarray(image.getchannel("A"))
        if min(image.size) >= SHORTEST_SIDE and (opacity < 8).mean() > 0.02:
            yield name, image


def on_canvas(image, rng):
    """The cut-out somewhere on a transparent square canvas, with room around it."""
    side = round(max(image.size) / rng.uniform(*COVERAGE))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, tuple(int(rng.integers(0, side - length + 1)) for length in image.size))
    return canvas


def write_backdrops(folder, out):
    """RGB JPEG copies of the packages' wallpapers; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(folder.glob("**/usr/share/backgrounds/**/*")):
        if path.suffix.lower() not in BACKDROP_SUFFIXES or path.is_symlink():
            continue
        with Image.open(path) as image:
            image = image.convert("RGB")
        if min(image.size) < 256:
            continue
        image.thumbnail((BACKDROP_SIDE, BACKDROP_SIDE))
        image.save(out / f"{path.parent.name}_{path.stem}.jpg", quality=92)
        count += 1
    return count


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("packages", type=Path, nargs="+", help=".deb files")
    parser.add_argument("--leave-out", type=Path, metavar="FILE",
                        help="names of stamps, one a line, that validation needs unseen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    left_out = set()
    if arguments.leave_out:
        left_out = {line.strip() for line in arguments.leave_out.read_text().splitlines()}
    cutouts = arguments.out / "cutouts"
    cutouts.mkdir(parents=True, exist_ok=True)
    names = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(arguments.packages, folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for number, (name, image) in enumerate(stamps(Path(folder), left_out)):
            on_canvas(image, np.random.default_rng([arguments.seed, number])).save(cutouts / name)
            names.append(f"cutouts/{name}")
        backdrops = write_backdrops(Path(folder), arguments.out / "backdrops")
    with replacing(arguments.out / "train.csv") as part:
        pd.DataFrame({"image_path": names}).to_csv(part, index=False)
    log(f"Wrote {len(names)} cut-outs and {backdrops} backdrops to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
