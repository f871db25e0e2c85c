"""Build a training set of RGBA cut-outs and backdrops from Debian packages (a developer's tool).

    apt-get download tuxpaint-stamps-default openclipart-png endless-sky-data hedgewars-data \\
        freedroidrpg-data flare-game gnome-backgrounds mate-backgrounds ukui-wallpapers \\
        lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 lxqt-themes
    python -m src.make_dataset OUT *.deb --leave-out held_back.txt --add splits/train.csv

The packages are unpacked without being installed. OUT then holds cutouts/ and train.csv, for
--train-csv, and backdrops/, for --backgrounds. Each cut-out stands, at its own resolution, on a
transparent square canvas, as MAGICK's images do; portraits, which their frame cuts off, stay in it.

Stamps were looked at by eye and are taken but for the signs. Drawings come unsorted, so they must
pass `single_subject`; and because some show what a stamp shows, whatever looks like a stamp that is
left out, or like an earlier drawing, is left out too.
"""

import argparse
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from src.console import UserError, log
from src.files import replacing
from src.pairs import COLUMNS, read_pairs

# Letters, digits and signs are no subjects; a sign's plate has no matte worth learning.
NOT_SUBJECTS = ("symbols/", "town/roadsigns/", "town/flags/")
SHORTEST_SIDE = 48  # pixels; smaller stamps are all edge once they are enlarged
CLIP_ART = ("animals", "food", "plants/trees", "plants/flowers", "transportation/boating",
            "transportation/vehicles", "tools", "recreation/toys", "recreation/sports",
            "recreation/music", "people", "containers", "buildings", "electronics", "office")
# Where drawings are: a name, the folder they share, its parts, and how many are taken at most.
DRAWINGS = (
    ("clip", "openclipart/png", CLIP_ART, 350),
    ("hedgewars", "hedgewars/Data", ("Forts", "Themes"), 100),
    ("freedroid", "freedroidrpg/data/graphics", ("droids", "items"), 40),
    ("space", "endless-sky/images", ("outfit", "ship"), 60),
)
DRAWING_SIDES = (100, 2000)  # pixels: the shorter at least, the longer at most
FLAT_EDGE = 0.4  # share of a border line that a subject covers which its frame cuts off
PORTRAITS = "flare/mods/*/images/portraits"
ADDED_TIMES = 3
ALIKE = 0.08  # mean absolute difference of two thumbnails, in 0..1, below which they show the same
COVERAGE = (0.35, 0.95)  # share of the canvas that the subject's longer side takes
BACKDROP_SIDE = 1600  # pixels of the longer side; photographs are only ever shown at crop size
BACKDROP_FOLDERS = ("usr/share/backgrounds", "usr/share/lxqt/wallpapers",
                    "endless-sky/images/land")
MOST_BACKDROPS = 80  # of a folder
BACKDROP_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def unpack(packages, folder):
    """Unpack .deb files below the folder with dpkg."""
    for package in packages:
        try:
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"{package}: cannot be unpacked ({error})") from None


def stamps(folder):
    """(name, RGBA image) of every usable stamp; a name is the path with _ for /."""
    for path in sorted(folder.glob("**/stamps/**/*.png")):
        relative = path.relative_to(next(p for p in path.parents if p.name == "stamps")).as_posix()
        image = trimmed(path)
        if relative.startswith(NOT_SUBJECTS) or image is None:
            continue
        if min(image.size) >= SHORTEST_SIDE and (np.asarray(image)[..., 3] < 8).mean() > 0.02:
            yield relative.replace("/", "_"), image


def drawings(paths, title, rng):
    """(name, RGBA image) of the drawings that show one solid subject, in an order of chance."""
    shortest, longest = DRAWING_SIDES
    for path in rng.permutation(np.array(paths, dtype=object)):
        image = trimmed(path, longest)
        if image is not None and min(image.size) >= shortest and single_subject(image):
            yield f"{title}_{path.parent.name}_{path.name}", image


def portraits(folder):
    """(name, RGBA image) of busts in their square frame, which cuts them off."""
    for path in sorted(folder.glob(f"**/{PORTRAITS}/*.png")):
        with Image.open(path) as image:
            if image.width == image.height and "A" in image.getbands():
                yield f"portrait_{path.name}", image.convert("RGBA")


def trimmed(path, longest=None):
    """The RGBA image without the transparent margin; None when it is empty, broken or longer than
    `longest` pixels."""
    try:
        with Image.open(path) as image:
            if longest and max(image.size) > longest:
                return None
            image = image.convert("RGBA")
    except OSError:
        return None
    box = image.getchannel("A").point(lambda level: 255 * (level > 8)).getbbox()
    return image.crop(box) if box else None


def single_subject(image):
    """Whether an RGBA drawing, trimmed, is one connected, coloured shape without holes or veils.

    An outline drawing's paper shows through its holes, and what the matte of several things, of a
    veil or of a silhouette should be, is anybody's guess.
    A shape that fills much of an edge was cut off by its frame.
    """
    solid = np.asarray(image)[..., 3] > 127
    if max(edge.mean() for edge in (solid[0], solid[-1], solid[:, 0], solid[:, -1])) > FLAT_EDGE:
        return False
    image = ImageOps.contain(image, (256, 256))
    alpha = np.asarray(image.getchannel("A"))
    solid = ImageOps.expand(image.getchannel("A").point(lambda level: 255 * (level > 127)), 1)
    ImageDraw.floodfill(solid, (0, 0), 128)  # the outside
    labels = np.asarray(solid)
    area = (labels == 255).sum()
    if not area or (labels == 0).sum() > 0.03 * area or (alpha < 8).mean() < 0.05:
        return False
    opaque = alpha > 200
    if not opaque.any():
        return False
    y, x = np.argwhere(labels == 255)[area // 2]
    ImageDraw.floodfill(solid, (int(x), int(y)), 64)
    one_piece = (np.asarray(solid) == 64).sum() > 0.97 * area
    veiled = ((alpha > 20) & (alpha < 235)).sum() > 0.35 * (alpha > 20).sum()
    drawn = np.asarray(image.convert("L"))[opaque].std() > 22
    coloured = np.asarray(image.convert("RGB").convert("HSV"))[opaque][:, 1].mean() > 25
    return bool(one_piece and not veiled and drawn and coloured)


def thumbnail(image):
    """What two versions of one drawing share: float array [16,16,4] in [0,1], colours by alpha."""
    pixels = np.asarray(image.convert("RGBa").resize((16, 16), Image.Resampling.BOX))
    return pixels.astype(np.float32) / 255


def unlike(images, seen):
    """Those (name, image) that look like none of the thumbnails seen, mirrored or not; theirs are
    added."""
    for name, image in images:
        own = thumbnail(image)
        views = own, own[:, ::-1]
        if not any(np.abs(view - other).mean() < ALIKE for other in seen for view in views):
            seen.append(own)
            yield name, image


def cutouts(folder, left_out, rng):
    """(name, RGBA image) of all that training may see, but for the portraits."""
    seen = []
    for name, image in stamps(folder):
        if name in left_out:
            seen.append(thumbnail(image))
        else:
            yield name, image
    for title, shared, parts, most in DRAWINGS:
        paths = {path for part in parts for path in folder.glob(f"**/{shared}/{part}/**/*.png")}
        yield from islice(unlike(drawings(sorted(paths), title, rng), seen), most)


def on_canvas(image, rng):
    """The cut-out somewhere on a transparent square canvas, with room around it."""
    side = round(max(image.size) / rng.uniform(*COVERAGE))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, tuple(int(rng.integers(0, side - length + 1)) for length in image.size))
    return canvas


def wallpapers(folder, part):
    """(name, RGB image) of the pictures below a folder of backdrops"""
    for path in sorted(folder.glob(f"**/{part}/**/*")):
        if path.suffix.lower() not in BACKDROP_SUFFIXES or path.is_symlink():
            continue
        with Image.open(path) as image:
            # A wallpaper with an alpha channel is a logo on a colour that the desktop gives.
            if min(image.size) < 256 or "transparency" in image.info or "A" in image.getbands():
                continue
            yield f"{path.parent.name}_{path.stem}", image.convert("RGB")


def write_backdrops(folder, out):
    """RGB JPEG copies of the packages' wallpapers, one of each; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    seen = []
    for part in BACKDROP_FOLDERS:
        for name, image in islice(unlike(wallpapers(folder, part), seen), MOST_BACKDROPS):
            image.thumbnail((BACKDROP_SIDE, BACKDROP_SIDE))
            image.save(out / f"{name}.jpg", quality=92)
    return len(seen)


def write_set(folder, out, left_out, seed):
    """Cut-outs and backdrops of what is unpacked in `folder`; returns (cut-out paths relative to
    `out`, number of backdrops)."""
    (out / "cutouts").mkdir(parents=True, exist_ok=True)
    names = []
    for number, (name, image) in enumerate(
            cutouts(folder, left_out, np.random.default_rng(seed))):
        names.append(f"cutouts/{name}")
        canvas = on_canvas(image, np.random.default_rng([seed, number]))
        canvas.save(out / names[-1], compress_level=1)
    for name, image in portraits(folder):
        names.append(f"cutouts/{name}")
        image.save(out / names[-1], compress_level=1)
    return names, write_backdrops(folder, out / "backdrops")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("packages", type=Path, nargs="+", help=".deb files")
    parser.add_argument("--leave-out", type=Path, metavar="FILE",
                        help="names of stamps, one a line, that validation needs unseen")
    parser.add_argument("--add", type=Path, metavar="CSV",
                        help=f"training rows to add to train.csv, {ADDED_TIMES} times over")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    out, left_out = arguments.out, set()
    try:
        if arguments.leave_out:
            left_out = {line.strip() for line in arguments.leave_out.read_text().splitlines()}
        added = read_pairs(arguments.add) if arguments.add else ()
        with tempfile.TemporaryDirectory() as folder:
            unpack(arguments.packages, folder)
            names, backdrops = write_set(Path(folder), out, left_out, arguments.seed)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [(name, "") for name in names]
    rows += ADDED_TIMES * [added[index] for index in range(len(added))]
    with replacing(out / "train.csv") as part:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(part, index=False)
    log(f"Wrote {len(names)} cut-outs and {backdrops} backdrops to {out}; train.csv has "
        f"{len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
