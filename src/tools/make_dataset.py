"""Build a training set of RGBA cut-outs and backdrops from packages (a developer's tool).

    apt-get download tuxpaint-stamps-default openclipart-png endless-sky-data hedgewars-data \\
        freedroidrpg-data flare-game gnome-backgrounds mate-backgrounds ukui-wallpapers \\
        lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 lxqt-themes
    npm pack @lobehub/fluent-emoji-3d
    python -m src.tools.make_dataset OUT *.deb *.tgz --leave-out held_back.txt \\
        --subjects FOLDER --unlike val.csv --add splits/train.csv --photographs FOLDER

Debian packages and npm's tarballs are unpacked without being installed. OUT then holds cutouts/ and
train.csv, for --train-csv, and backdrops/, for --backgrounds. Each cut-out stands, at its own
resolution, on a transparent square canvas, as MAGICK's images do; the frame cuts some of them off,
and some are there a second time with a soft part (`soft_parts`) or, on a backdrop in flat/, as a
flat drawing (`flat_drawings`). Portraits stay in their own frame, and so do the subjects of
--painted, a folder that `painted_subjects` wrote.

The pictures of --subjects, generated or photographed with their alpha, are what MAGICK looks like:
each is placed SUBJECT_COPIES times, the first as it is, the others `retaken`, unless it shows a
subject of the --unlike CSVs, which validate.

Photographs are written again with other, smaller cut-outs in them, so that the network does not
learn that whatever stands out is the subject.

Stamps were looked at by eye, and all are taken except signs. Drawings come unsorted, so they must
pass `single_subject`; because some show what a stamp shows, anything that looks like a stamp that
was left out, or like an earlier drawing, is left out too.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from src.runtime.console import UserError, log
from src.runtime.tables import write_table
from src.inputs.discovery import COLUMNS
from src.data.datasets import open_layers
from src.data.pairs import read_pairs
from src.tools.flat_drawings import flat_drawing
from src.tools.soft_parts import with_soft_part

# Letters, digits and signs are no subjects; a sign's plate has no matte worth learning.
NOT_SUBJECTS = ("symbols/", "town/roadsigns/", "town/flags/")
SHORTEST_SIDE = 48  # pixels; smaller stamps are all edge once they are enlarged
CLIP_ART = ("animals", "food", "plants/trees", "plants/flowers", "transportation/boating",
            "transportation/vehicles", "tools", "recreation/toys", "recreation/sports",
            "recreation/music", "people", "containers", "buildings", "electronics", "office")
# Where drawings are: a name, the folder they share, its parts, and how many are taken at most.
DRAWINGS = (
    ("clip", "openclipart/png", CLIP_ART, 300),
    ("hedgewars", "hedgewars/Data", ("Forts", "Themes"), 100),
    ("freedroid", "freedroidrpg/data/graphics", ("droids", "items"), 40),
    ("space", "endless-sky/images", ("outfit", "ship"), 60),
)
DRAWING_SIDES = (100, 2000)  # pixels: the shorter at least, the longer at most
FLAT_EDGE = 0.4  # share of a border line that a subject covers which its frame cuts off
PORTRAITS = "flare/mods/*/images/portraits"
SUBJECT, SUBJECT_COPIES = "subject", 3  # what their names begin with, and how often each is placed
SUBJECT_SIDES = (100, 1024)  # pixels: at least; longer ones are reduced
ADDED_TIMES = 2
ALIKE = 0.08  # mean absolute difference of two thumbnails, in 0..1, below which they show the same
COVERAGE = (0.35, 0.95)  # share of the canvas that the subject's longer side takes
P_CUT_OFF, CUT_COVERAGE = 0.3, (0.6, 1.3)  # where the frame cuts the subject off
MOST_HIDDEN = 0.35  # of the subject's length, beyond the frame
P_SOFT = 0.1  # share of the cut-outs that are there again with a soft part
P_FLAT = 0.15  # share that is there again as a flat drawing
EMOJI, MOST_EMOJI = "package/assets/*.webp", 300
# Skin tones again, and signs: Unicode's digits, arrows, geometric shapes, zodiac, letters, flags.
NOT_EMOJI = re.compile(
    r"1f3f[b-f]|20e3|^(1f1|1f2[0-5]|00|[23]\d-|a[9e]|2[1-3]|25|26[4-7]|27[0-9a-c]|2b|30|32)"
    r"|^1f5(0|2|3|4|[5-6])|^1f4(f[1-7]|9f|b|a[0-2])|^1f53|^1f6(a[b-f]|b[0-9]|c[0-5])|1f7|26a|1faf")
SCENES, DISTRACTORS = 2, (1, 5)  # copies of a photograph with other things in it, and how many
BACKDROP_SIDE = 1600  # pixels of the longer side; photographs are only ever shown at crop size
BACKDROP_FOLDERS = ("usr/share/backgrounds", "usr/share/lxqt/wallpapers",
                    "endless-sky/images/land")
MOST_BACKDROPS = 80  # of a package folder; photographs were picked by hand, and all are taken
BACKDROP_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def unpack(packages, folder):
    """Unpack .deb files with dpkg, and tarballs, below the folder."""
    for package in packages:
        try:
            if package.suffix == ".deb":
                subprocess.run(["dpkg", "-x", package, folder], check=True)
            else:
                with tarfile.open(package) as tarball:
                    tarball.extractall(folder, filter="data")
        except (OSError, subprocess.CalledProcessError, tarfile.TarError) as error:
            raise UserError(f"{package}: cannot be unpacked ({error})") from None


def stamps(folder):
    """(name, RGBA image) of every usable stamp; a name is the path with _ for /."""
    for path in sorted(folder.glob("**/stamps/**/*.png")):
        relative = path.relative_to(next(p for p in path.parents if p.name == "stamps")).as_posix()
        image = trimmed(path)
        if relative.startswith(NOT_SUBJECTS) or image is None:
            continue
        if has_matte(image, SHORTEST_SIDE):
            yield relative.replace("/", "_"), image


def drawings(paths, title, rng):
    """(name, RGBA image) of the drawings that show one solid subject, in random order."""
    shortest, longest = DRAWING_SIDES
    for path in rng.permutation(np.array(paths, dtype=object)):
        image = trimmed(path, longest)
        if image is not None and min(image.size) >= shortest and single_subject(image):
            yield f"{title}_{path.parent.name}_{path.name}", image


def subjects(folders):
    """(name, RGBA image) of the pictures below the folders that have a matte"""
    shortest, longest = SUBJECT_SIDES
    paths = (path for folder in folders for path in sorted(folder.glob("**/*")))
    for number, path in enumerate(paths):
        if path.suffix.lower() not in (".png", ".webp") or (image := trimmed(path)) is None:
            continue
        if has_matte(image, shortest) and image.getchannel("A").getextrema()[1] > 247:
            image.thumbnail((longest, longest))
            yield f"{number}_{path.stem}.png", image


def emoji(folder, rng):
    """(name, RGBA image) of rendered beings and things, without signs, variants of skin and scenes
    that fill their square, in random order."""
    for path in rng.permutation(np.array(sorted(folder.glob(f"**/{EMOJI}")), dtype=object)):
        if NOT_EMOJI.search(path.stem) or (image := trimmed(path)) is None:
            continue
        if has_matte(image, SHORTEST_SIDE):
            yield f"emoji_{path.stem}.png", image


def portraits(folder):
    """(name, RGBA image) of busts in their square frame, which cuts them off."""
    for path in sorted(folder.glob(f"**/{PORTRAITS}/*.png")):
        with Image.open(path) as image:
            if image.width == image.height and "A" in image.getbands():
                yield f"portrait_{path.name}", image.convert("RGBA")


def canvases(folder):
    """(name, RGBA image) of the subjects that `painted_subjects` put on their canvas"""
    for path in sorted(folder.glob("*.webp")):
        with Image.open(path) as image:
            yield f"painted_{path.name}", image.convert("RGBA")


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
    return without_margin(image)


def without_margin(image):
    """The RGBA image without the transparent margin, None when it is empty"""
    box = image.getchannel("A").point(lambda level: 255 * (level > 8)).getbbox()
    return image.crop(box) if box else None


def has_matte(image, shortest):
    """Whether a trimmed RGBA image is large enough, and transparent somewhere"""
    return min(image.size) >= shortest and (np.asarray(image)[..., 3] < 8).mean() > 0.02


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


def cut_subject(image_path, alpha_path):
    """The RGBA image of a pair's subject without the transparent margin, whole if there is none"""
    image, *alpha = open_layers(image_path, alpha_path)
    if alpha:
        image.putalpha(alpha[0])
    return without_margin(image) or image


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


def cutouts(folder, subject_folders, left_out, seen, rng):
    """(name, RGBA image) of all that training may see, but for the portraits: nothing that is like
    the thumbnails `seen`, to which those that came are added."""
    for name, image in unlike(subjects(subject_folders), seen):
        for copy in range(SUBJECT_COPIES):
            yield f"{SUBJECT}{copy}_{name}", retaken(image, rng) if copy else image
    for name, image in stamps(folder):
        if name in left_out:
            seen.append(thumbnail(image))
        else:
            yield name, image
    for title, shared, parts, most in DRAWINGS:
        paths = {path for part in parts for path in folder.glob(f"**/{shared}/{part}/**/*.png")}
        yield from islice(unlike(drawings(sorted(paths), title, rng), seen), most)
    yield from islice(unlike(emoji(folder, rng), seen), MOST_EMOJI)


def retaken(image, rng):
    """The RGBA cut-out as another camera in another light would show it: exposure, white balance,
    contrast, saturation; at times noise, or a blur, which softens the alpha too."""
    colours = (np.asarray(image)[..., :3] / 255) ** rng.uniform(0.65, 1.5)
    colours *= np.exp(rng.normal(0, 0.07, 3))
    for middle, change in ((colours.mean(), (0.75, 1.2)),
                           (colours.mean(axis=2, keepdims=True), (0.5, 1.25))):
        colours = middle + (colours - middle) * rng.uniform(*change)
    if rng.random() < 0.3:
        colours = colours + rng.normal(0, rng.uniform(0.01, 0.04), colours.shape)
    result = Image.fromarray(np.rint(colours.clip(0, 1) * 255).astype(np.uint8))
    result.putalpha(image.getchannel("A"))
    if rng.random() < 0.4:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2) * max(image.size) / 512)
        result = result.convert("RGBa").filter(blur).convert("RGBA")
    return result


def on_canvas(image, rng):
    """The cut-out somewhere on a transparent square canvas: with room around it, or, at P_CUT_OFF,
    cut off by the frame, at the bottom above all."""
    if rng.random() < P_CUT_OFF:
        return cut_off(image, rng)
    side = round(max(image.size) / rng.uniform(*COVERAGE))
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, tuple(int(rng.integers(0, side - length + 1)) for length in image.size))
    return canvas


def cut_off(image, rng):
    """The cut-out on a canvas beyond whose bottom, at times left or right, a part of it lies."""
    side = round(max(image.size) / rng.uniform(*CUT_COVERAGE))
    hidden = rng.uniform(0.05, MOST_HIDDEN)
    left = int(rng.uniform(min(0, side - image.width), max(0, side - image.width)))
    top = side - round((1 - hidden) * image.height)
    if rng.random() < 0.3:
        left = side - round((1 - hidden) * image.width) if rng.random() < 0.5 else -round(
            hidden * image.width)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, (left, top))
    return canvas


def wallpapers(folder, part):
    """(name, RGB image) of the pictures below a folder of backdrops"""
    for path in sorted(folder.glob(f"**/{part}/**/*" if part else "**/*")):
        if path.suffix.lower() not in BACKDROP_SUFFIXES or path.is_symlink():
            continue
        with Image.open(path) as image:
            # A wallpaper with an alpha channel is a logo on a colour that the desktop gives.
            if min(image.size) < 256 or "transparency" in image.info or "A" in image.getbands():
                continue
            yield f"{path.parent.name}_{path.stem}", image.convert("RGB")


def write_backdrops(folder, photographs, things, out, rng):
    """RGB JPEG copies of the packages' wallpapers and of the photographs, one of each, and of
    each SCENES more with some of the things (paths of cut-outs) in it; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    seen, count = [], 0
    sources = [islice(unlike(wallpapers(folder, part), seen), MOST_BACKDROPS)
               for part in BACKDROP_FOLDERS]
    sources += [unlike(wallpapers(place, ""), seen) for place in photographs]
    for name, image in chain.from_iterable(sources):
        image.thumbnail((BACKDROP_SIDE, BACKDROP_SIDE))
        image.save(out / f"{name}.jpg", quality=92)
        for number in range(SCENES):
            with_distractors(image, things, rng).save(out / f"{name}_{number}.jpg", quality=92)
        count += 1 + SCENES
    return count


def with_distractors(backdrop, things, rng):
    """A copy of an RGB backdrop with a few cut-outs in it, blurred as the distance would, some cut
    off by the frame."""
    scene = backdrop.copy()
    shorter = min(scene.size)
    for path in rng.choice(things, rng.integers(*DISTRACTORS)):
        image = trimmed(path)
        length = round(shorter * rng.uniform(0.1, 0.55))
        image = ImageOps.contain(image, (length, length))
        padded = ImageOps.expand(image, 12)
        padded = padded.convert("RGBa").filter(
            ImageFilter.GaussianBlur(float(rng.uniform(0, 3)))).convert("RGBA")
        corner = rng.uniform(-0.2, 0.95, 2) * scene.size
        place = int(corner[0]), int(max(corner[1], 0.1 * scene.height))
        scene.paste(padded, place, padded)
    return scene


def write_cutouts(found, framed, out, seed):
    """The (name, RGBA image)s found, each on a canvas, and those in their own frame, as PNGs in
    `out`/cutouts; returns their paths relative to `out`."""
    (out / "cutouts").mkdir(parents=True, exist_ok=True)
    names = []

    def write(name, image):
        names.append(f"cutouts/{Path(name).with_suffix('.png')}")
        image.save(out / names[-1], compress_level=1)

    for number, (name, image) in enumerate(found):
        rng = np.random.default_rng([seed, number])
        write(name, on_canvas(image, rng))
        if rng.random() < P_SOFT:
            write(f"soft_{name}", with_soft_part(on_canvas(image, rng), rng))
    for name, image in framed:
        write(name, image)
    return names


def write_flat_drawings(out, names, seed):
    """Flat drawings of some of the cut-outs, and their alphas, as PNGs in `out`/flat; returns the
    pairs of their paths relative to `out`."""
    (out / "flat").mkdir(exist_ok=True)
    rng, pairs = np.random.default_rng(seed), []
    for name in names:
        if rng.random() < P_FLAT:
            pairs.append((f"flat/{Path(name).stem}.png", f"flat/{Path(name).stem}_alpha.png"))
            with Image.open(out / name) as image:
                layers = flat_drawing(image, rng)
            for layer, path in zip(layers, pairs[-1]):
                layer.save(out / path, compress_level=1)
    return pairs


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("packages", type=Path, nargs="*", help=".deb files and .tgz tarballs")
    parser.add_argument("--leave-out", type=Path, metavar="FILE",
                        help="names of stamps that validation needs unseen, one per line")
    parser.add_argument("--subjects", type=Path, metavar="FOLDER", nargs="+", default=[],
                        help="pictures of single subjects with their alpha, .png or .webp")
    parser.add_argument("--painted", type=Path, metavar="FOLDER",
                        help="subjects of painted_subjects.py, taken as they are")
    parser.add_argument("--unlike", type=Path, metavar="CSV", nargs="+", default=[],
                        help="rows for validation: nothing like their subjects is taken")
    parser.add_argument("--add", type=Path, metavar="CSV", nargs="+", default=[],
                        help=f"training rows to add to train.csv, {ADDED_TIMES} times over")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", nargs="+", default=[],
                        help="backdrops beside those of the packages")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    out, left_out = arguments.out, set()
    try:
        if arguments.leave_out:
            left_out = {line.strip() for line in arguments.leave_out.read_text().splitlines()}
        seen = [thumbnail(cut_subject(*row)) for csv in arguments.unlike for row in read_pairs(csv)]
        added = [row for csv in arguments.add for row in read_pairs(csv)]
        with tempfile.TemporaryDirectory() as folder:
            unpack(arguments.packages, folder)
            found = cutouts(Path(folder), arguments.subjects, left_out, seen,
                            np.random.default_rng(arguments.seed))
            painted = canvases(arguments.painted) if arguments.painted else ()
            names = write_cutouts(found, chain(portraits(Path(folder)), painted), out,
                                  arguments.seed)
            if not names:
                raise UserError("no cut-out was found in the packages and the folders")
            flat = write_flat_drawings(out, names, arguments.seed)
            things = [name for name in names if name.startswith(f"cutouts/{SUBJECT}")] or names
            backdrops = write_backdrops(
                Path(folder), arguments.photographs, [out / name for name in things],
                out / "backdrops", np.random.default_rng(arguments.seed))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [(name, "") for name in names] + flat
    rows += ADDED_TIMES * added
    write_table(out / "train.csv", rows, COLUMNS)
    log(f"Wrote {len(names)} cut-outs and {backdrops} backdrops to {out}; train.csv has "
        f"{len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
