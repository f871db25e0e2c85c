"""Build a training set of RGBA cut-outs and backdrops from Debian packages (a developer's tool).

    apt-get download tuxpaint-stamps-default openclipart-png gnome-backgrounds mate-backgrounds \\
        ukui-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 lxqt-themes
    python -m src.make_dataset OUT *.deb --leave-out held_back.txt

The packages are unpacked without being installed. OUT then holds cutouts/ and train.csv, for
--train-csv, and backdrops/, for --backgrounds. Each cut-out stands, at its own resolution, on a
transparent square canvas, as MAGICK's images do.

Stamps were looked at by eye and are taken but for the signs. Clip art comes unsorted, so it must
pass `single_subject`; and because it shares drawings with the stamps, whatever looks like a stamp
that is left out, is left out too.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from src.console import UserError, log
from src.files import replacing

# Letters, digits and signs are no subjects; a sign's plate has no matte worth learning.
NOT_SUBJECTS = ("symbols/", "town/roadsigns/", "town/flags/")
SHORTEST_SIDE = 48  # pixels; smaller stamps are all edge once they are enlarged
CLIP_ART = ("animals", "food", "plants/trees", "plants/flowers", "transportation/boating",
            "transportation/vehicles", "tools", "recreation/toys", "recreation/sports",
            "recreation/music", "people", "containers", "buildings", "electronics", "office")
CLIP_ART_SIDES = (120, 2000)  # pixels: the shorter at least, the longer at most
ALIKE = 0.08  # mean absolute difference of two thumbnails, in 0..1, below which they show the same
COVERAGE = (0.35, 0.95)  # share of the canvas that the subject's longer side takes
BACKDROP_SIDE = 1600  # pixels of the longer side; photographs are only ever shown at crop size
BACKDROP_FOLDERS = ("usr/share/backgrounds", "usr/share/lxqt/wallpapers")
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


def clip_art(folder):
    """(name, RGBA image) of the clip art that shows one solid subject."""
    shortest, longest = CLIP_ART_SIDES
    for root in folder.glob("**/openclipart/png"):
        for path in sorted({path for part in CLIP_ART for path in (root / part).rglob("*.png")}):
            image = trimmed(path, longest)
            if image is not None and min(image.size) >= shortest and single_subject(image):
                yield "clip_" + path.relative_to(root).as_posix().replace("/", "_"), image


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
    """Whether an RGBA drawing is one connected shape without holes or veils, and is coloured in.

    An outline drawing's paper shows through its holes, and what the matte of several things, of a
    veil or of a silhouette should be, is anybody's guess.
    """
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


def is_among(image, thumbnails):
    """Whether the image, or its mirror image, looks like one of the thumbnails."""
    own = thumbnail(image)
    return any(np.abs(view - other).mean() < ALIKE
               for other in thumbnails for view in (own, own[:, ::-1]))


def cutouts(folder, left_out):
    """(name, RGBA image) of all that training may see."""
    held_back = []
    for name, image in stamps(folder):
        if name in left_out:
            held_back.append(thumbnail(image))
        else:
            yield name, image
    for name, image in clip_art(folder):
        if not is_among(image, held_back):
            yield name, image


def on_canvas(image, rng):
    """The cut-out somewhere on a transparent square canvas, with room around it."""
    side = round(max(image.size) / rng.uniform(*COVERAGE))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, tuple(int(rng.integers(0, side - length + 1)) for length in image.size))
    return canvas


def write_backdrops(folder, out):
    """RGB JPEG copies of the packages' wallpapers, one of each; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    seen = []
    paths = [path for part in BACKDROP_FOLDERS for path in folder.glob(f"**/{part}/**/*")]
    for path in sorted(paths):
        if path.suffix.lower() not in BACKDROP_SUFFIXES or path.is_symlink():
            continue
        with Image.open(path) as image:
            # A wallpaper with an alpha channel is a logo on a colour that the desktop gives.
            if min(image.size) < 256 or "transparency" in image.info or "A" in image.getbands():
                continue
            image = image.convert("RGB")
        if is_among(image, seen):
            continue
        seen.append(thumbnail(image))
        image.thumbnail((BACKDROP_SIDE, BACKDROP_SIDE))
        image.save(out / f"{path.parent.name}_{path.stem}.jpg", quality=92)
    return len(seen)


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
    (arguments.out / "cutouts").mkdir(parents=True, exist_ok=True)
    names = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(arguments.packages, folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for number, (name, image) in enumerate(cutouts(Path(folder), left_out)):
            names.append(f"cutouts/{name}")
            canvas = on_canvas(image, np.random.default_rng([arguments.seed, number]))
            canvas.save(arguments.out / names[-1], compress_level=1)
        backdrops = write_backdrops(Path(folder), arguments.out / "backdrops")
    with replacing(arguments.out / "train.csv") as part:
        pd.DataFrame({"image_path": names}).to_csv(part, index=False)
    log(f"Wrote {len(names)} cut-outs and {backdrops} backdrops to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
