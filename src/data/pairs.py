"""The CSV contract: which images, and which alphas, to learn from."""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.runtime.console import UserError, log
from src.runtime.tables import near_name, no_column, read_table
from src.inputs.discovery import COLUMNS, INDEX_COLUMN
from src.data.cache import Cache
from src.data.images import open_alpha, open_image

PARTS = re.compile(r"[\\/]")  # what separates the parts of a path on any system
BACKDROP = "backdrop"  # optional column: the kind of backdrop, which errors are listed with
ROWS_TO_PLACE = 20  # rows that are tried to learn which folder a CSV's paths are relative to
ALPHA_NAMES = ("mask_path", "matte_path", "alpha", "mask", "matte")  # of alpha_path by others
MISSING = ("nan", "NaN", "NA", "<NA>", "None", "null", "NULL")  # in a cell without a value
ALPHAS_TRIED = 32  # of which one at least must show something
HELD_OUT = 0.05  # share of the images that validate when there is no validation CSV,
MOST_HELD_OUT = 500  # and their number at most


@dataclass(frozen=True)
class Pairs:
    """Images and their alphas: two arrays of encoded paths, of one length.

    An empty alpha path means the alpha channel of the image itself, an RGBA cut-out as in MAGICK.
    photographs: paths of backdrops for such cut-outs, beside the drawn ones. backdrops: what a
    table's column of that name says of each pair, None without one. cache: where decoded images
    are kept, None for nowhere. skipped: {path: reason} of the pairs that were left out, and of
    backdrops, because they cannot be read. Arrays, because loader workers share them, where a list
    would be copied object by object.
    """

    images: np.ndarray
    alphas: np.ndarray
    photographs: tuple = ()
    backdrops: np.ndarray | None = None
    cache: Cache | None = None
    skipped: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """(image path, alpha path or '')"""
        return os.fsdecode(self.images[index]), os.fsdecode(self.alphas[index])

    def first(self, count):
        """The first `count` pairs"""
        return self.where(np.arange(len(self)) < count)

    def where(self, mask):
        """The pairs at which the bool array [len] is set"""
        backdrops = None if self.backdrops is None else self.backdrops[mask]
        return replace(self, images=self.images[mask], alphas=self.alphas[mask],
                       backdrops=backdrops)


class Splits(NamedTuple):
    """The pairs to learn from and those to validate with; None where there are none."""

    train: Pairs | None
    val: Pairs | None


def read_pairs(csv_path, limit=None, photographs=(), cache=None, roots=()):
    """`Pairs` of a CSV with the column image_path, its first `limit` rows.

    The alpha is in alpha_path, or in a column of one of ALPHA_NAMES with file names in it; where
    that is missing, empty or the image itself, it is the image's alpha channel. Paths may be
    absolute, or relative to the working folder, to the CSV's folder, to a folder above it, or to
    one of the roots; paths of another machine are found by their last parts. An index of MAGICK, a
    table with page_id, names cut-outs. Raises UserError when the table or a column cannot be used,
    or none of a column's first files is found.
    """
    table = read_table(csv_path, limit)
    image_column, alpha_column = COLUMNS
    if image_column not in table.columns and INDEX_COLUMN in table.columns:
        pages = table[INDEX_COLUMN]
        table = ("images/" + pages.str[:2] + "/" + pages + ".png").to_frame(image_column)
    if image_column not in table.columns:
        raise UserError(f"{csv_path}: {no_column(image_column, table.columns)}")
    table = table.mask(table.isin(MISSING), "")
    table = table[table[image_column] != ""]
    if table.empty:
        raise UserError(f"{csv_path}: has no rows with an {image_column}")
    images = table[image_column]
    alpha_column = find_alpha_column(table, csv_path) or alpha_column
    alphas = table[alpha_column] if alpha_column in table.columns else images
    alphas = alphas.where(alphas != images, "")
    repeated = int(table.duplicated().sum())
    if repeated:
        log(f"{csv_path}: {repeated} duplicate rows (kept)")
    pairs = Pairs(placed_paths(images, image_column, csv_path, roots),
                  placed_paths(alphas, alpha_column, csv_path, roots), tuple(photographs),
                  table[BACKDROP].to_numpy(str) if BACKDROP in table.columns else None,
                  cache)
    if (pairs.images == pairs.alphas).any():
        raise UserError(f"{csv_path}: {image_column} and {alpha_column} lead to the same file, "
                        f"{pairs[int(np.argmax(pairs.images == pairs.alphas))][0]}")
    return pairs


def find_alpha_column(table, csv_path):
    """The name of a table's column of alphas, None where it has none. Raises UserError for one of
    nearly the right name."""
    usual = COLUMNS[1]
    if usual in table.columns:
        return usual
    names = {str(name).lower(): name for name in table.columns}
    for other in (names[name] for name in ALPHA_NAMES if name in names):
        if table[other].str.contains(r"\.[A-Za-z]\w*$").any():  # not a number or a word
            log(f"{csv_path}: the column {other} is taken for {usual}")
            return other
    if near := near_name(usual, table.columns):
        raise UserError(f"{csv_path}: {no_column(usual, [near])}")


def placed_paths(column, name, csv_path, roots=()):
    """A column's paths as encoded strings that can be opened from here; '' stays ''.

    Which folder they are relative to, and how many leading parts belong to another machine, is
    learnt from the first few, not by touching each file.
    """
    filled = column[column != ""]
    # An absolute path would fit any folder.
    relative = filled[[not os.path.isabs(path) for path in filled]]
    sample = (filled if relative.empty else relative).head(ROWS_TO_PLACE)
    if sample.empty:
        return np.array([b""] * len(column))
    bases = [Path.cwd(), *Path(csv_path).resolve().parents, *roots]
    deepest = max(len(PARTS.split(path)) for path in sample)
    for dropped in (None, *range(deepest)):
        for base in bases:
            if any(is_file(base / without_parts(path, dropped)) for path in sample):
                if dropped:
                    log(f"{csv_path}, column {name}: {sample.iloc[0]} is taken for "
                        f"{base / without_parts(sample.iloc[0], dropped)}")
                return np.array([
                    os.fsencode(os.path.join(base, without_parts(path, dropped)) if path else "")
                    for path in column])
    elsewhere = f"the working folder ({bases[0]}) nor in " * (bases[0] != bases[1])
    raise UserError(f"{csv_path}, column {name}: {sample.iloc[0]} is neither in {elsewhere}"
                    f"{bases[1]} nor in a folder above it")


def without_parts(path, count):
    """A path of any system without its first `count` parts; None: to the letter."""
    return path if count is None else "/".join(PARTS.split(path)[count:])


def is_file(path):
    """Path.is_file, with False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def split_off(pairs):
    """`Splits` of the pairs to learn from, where no others were given.

    A twentieth of the images validates, at most 500, with all their rows.
    """
    images = len({os.path.basename(path) for path in pairs.images})
    if images < 2:
        raise UserError("a single image to learn from leaves none to validate with; name some "
                        "with --val-csv")
    mask = lowest_hashes(pairs, max(1, min(MOST_HELD_OUT, round(HELD_OUT * images))))
    return Splits(pairs.where(~mask), pairs.where(mask))


def lowest_hashes(pairs, count):
    """bool [len]: where the `count` images are whose file names have the lowest hashes, the same
    ones whatever the order of the rows."""
    names = [hashlib.sha256(os.path.basename(path)).digest() for path in pairs.images]
    chosen = set(sorted(set(names))[:count])
    return np.array([name in chosen for name in names])


def check_alphas(pairs):
    """Look at ALPHAS_TRIED alphas from all over the pairs before anything learns from them.

    Raises UserError when each of them is empty; warns when each is full, or none is above a half,
    or when a tenth have nothing but the lowest levels. Those that cannot be read are passed over.
    """
    extrema = []
    for index in np.unique(np.linspace(0, len(pairs) - 1, ALPHAS_TRIED).astype(int)).tolist():
        image, alpha = pairs[index]
        with suppress(UserError):
            layer = open_alpha(alpha) if alpha else open_image(image, "RGBA").getchannel("A")
            extrema.append((*layer.getextrema(), alpha or image))
    if not extrema:
        return
    lowest, highest = min(low for low, _, _ in extrema), max(high for _, high, _ in extrema)
    looked_at = f"all {len(extrema)} alphas that were looked at ({extrema[0][2]} among them)"
    if highest == 0:
        raise UserError(f"{looked_at} are empty: a training would learn that there is never "
                        "anything; save masks with 0 for the backdrop and 255 for the subject")
    if lowest == 255:
        log(f"WARNING: {looked_at} are full, as if there were no backdrop")
    faint = [path for _, high, path in extrema if 0 < high < 32]
    if 128 <= highest and len(faint) > len(extrema) / 10:
        log(f"WARNING: {len(faint)} of {len(extrema)} alphas that were looked at ({faint[0]} "
            "among them) have no level above 31 of 255, and teach next to nothing; if their levels "
            "number objects, save masks with 255 for each")
    if 0 < highest < 128:
        log(f"WARNING: {looked_at} have no level above {highest} of 255, so a training would learn "
            "that nothing is ever solid; save masks with 255 for the subject")


def shared_images(pairs, others):
    """How many different images both have"""
    return len(np.intersect1d(pairs.images, others.images))
