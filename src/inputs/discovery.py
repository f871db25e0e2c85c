"""What lies under /kaggle/input, in whatever folders Kaggle and a dataset's author put it."""

import csv
import io
import os
from collections import deque
from itertools import islice
from pathlib import Path

from src.runtime.files import entry_kind
from src.runtime.tables import open_text, read_header

COLUMNS = ("image_path", "alpha_path")  # of a table of pairs
INDEX_COLUMN = "page_id"  # of MAGICK's own index: images/<first two characters>/<page_id>.png
BEST_CHECKPOINT = "u2netp_best.pth"  # the weights of a training's best epoch
LAST_CHECKPOINT = "last.pth"  # all that an unfinished training needs to continue
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_FOLDERS, MOST_ENTRIES = 10_000, 2_000_000  # that are looked at
OUR_TABLES = {  # by names; a column that tells each from tables of others
    "submission.csv": "image_utf", "validation.csv": "mse", "metrics.csv": "val_mse",
    "problems.csv": "reason", "skipped.csv": "reason"}
SHIPPED_CHECKPOINT = "u2netp_alpha.pth"
TEST_FOLDER, BACKDROP_FOLDER = "orig_1024", "backdrops"
KINDS = ("train_csv", "val_csv", "test_root", "sample_csv", "checkpoint", "unfinished",
         "backgrounds")


def discover(root):
    """{kind: [paths, the best first]} for the kinds above, each list possibly empty.

    Tables are recognised by their columns: image_path is a set of pairs, filename and image_utf a
    sample submission, page_id an index of MAGICK. Among several the usual name wins, then the one
    that says what it is, then the shallowest, then the first in the alphabet. Weights that an
    earlier session trained win over the shipped ones. Folders are visited breadth first; images are
    recognised by their names alone, so that 140,000 of them cost little.
    """
    found = {kind: [] for kind in KINDS}
    for depth, path, is_folder in walk(root):
        kind, name_rank = folder_kind(path) if is_folder else file_kind(path)
        if kind:
            found[kind].append((name_rank, depth, str(path), path))
    return {kind: [path for *_, path in sorted(each)] for kind, each in found.items()}


def mounted_folders(root):
    """The folders at most three levels below the root, where Kaggle mounts data sets."""
    return [path for depth, path, is_folder in walk(root) if is_folder and depth <= 3]


def walk(root):
    """Yields (depth, path, whether it is a folder) of what is below the root, breadth first."""
    folders, visited, left = deque([(1, Path(root))]), 0, MOST_ENTRIES
    while folders and visited < MOST_FOLDERS and left > 0:
        depth, folder = folders.popleft()
        visited += 1
        entries, count = entries_but_images(folder, left)
        left -= count
        for name, is_folder in sorted(entries):
            path = folder / name
            yield depth, path, is_folder
            if is_folder and name != TEST_FOLDER:
                folders.append((depth + 1, path))


def entries_but_images(folder, most):
    """([(name, whether it is a folder)] of a folder's entries but the images, how many entries were
    seen, at most `most`)."""
    entries, count = [], 0
    try:
        with os.scandir(folder) as scan:
            for count, entry in enumerate(islice(scan, most), 1):
                if not entry.name.lower().endswith(IMAGE_SUFFIXES):
                    entries.append((entry.name, entry_kind(entry) == "folder"))
    except OSError:  # a folder that may not be read holds nothing for us
        pass
    return entries, count


def folder_kind(path):
    """(kind, rank of the name: lower is better), (None, 0) for a folder of no use."""
    if path.name == BACKDROP_FOLDER:  # the shipped ones are the last choice
        return "backgrounds", int((path.parent / SHIPPED_CHECKPOINT).is_file())
    return ("test_root", 0) if path.name == TEST_FOLDER else (None, 0)


def file_kind(path):
    """(kind, rank of the name: lower is better), (None, 0) for a file of no use."""
    name, suffix = path.stem.lower(), path.suffix.lower()
    if path.name == LAST_CHECKPOINT:
        return "unfinished", 0
    if suffix in (".pth", ".pt", ".safetensors"):
        order = ("u2netp_best", "u2netp_alpha")
        usual = order.index(name) if name in order else 3 if "u2netp" in name else 4
        return "checkpoint", usual
    if suffix not in (".csv", ".tsv"):
        return None, 0
    columns = read_columns(path)
    if COLUMNS[1] not in columns and columns & {"mse", "reason"}:
        return None, 0  # validation.csv or skipped.csv of an earlier session
    if {"filename", "image_utf"} <= columns:
        return ("sample_csv", 0) if "sample" in name else (None, 0)
    if COLUMNS[0] in columns and "test" not in name:
        split = "val" if "val" in name else "train"
        return f"{split}_csv", 0 if name == split else 1 if split in name else 2
    return ("train_csv", 3) if INDEX_COLUMN in columns else (None, 0)


def read_columns(path):
    """The column names of a text table, as a set."""
    try:
        with open_text(path, errors="replace") as file:
            return set(read_header(io.StringIO(file.read(10_000)))[0])
    except (OSError, UnicodeError, csv.Error):
        return set()
