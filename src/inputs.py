"""Where things are, on Kaggle or locally, and what is missing."""

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from src.console import UserError

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
REPOSITORY_WEIGHTS = Path(__file__).resolve().parent.parent / "kernel" / "weights"

# The notebook's places, from the working folder
LOCAL_PLACES = {
    "train_csv": Path("data/splits/train.csv"),
    "val_csv": Path("data/splits/val.csv"),
    "test_root": Path("data/test_dataset/orig_1024"),
}
# Checkpoints of this project before published weights: they are worth more
LOCAL_CHECKPOINTS = (
    REPOSITORY_WEIGHTS / "u2netp_alpha.pth",
    Path("U-2-Net/saved_models/u2netp/u2netp.pth"),
)
BEST_CHECKPOINT = "u2netp_best.pth"


@dataclass(frozen=True)
class Inputs:
    """Resolved paths of one run; None is what was neither named nor found."""

    train_csv: Path | None
    val_csv: Path | None
    test_root: Path | None
    checkpoint: Path | None
    out: Path
    kaggle_input: Path | None  # set on Kaggle only


def find_inputs(settings, kaggle_input=KAGGLE_INPUT):
    """`Inputs` from the flags, then from /kaggle/input or the notebook's folders.

    Raises UserError when a path given by a flag does not exist.
    """
    on_kaggle = kaggle_input.is_dir()
    found = search_kaggle(kaggle_input) if on_kaggle else search_local()
    for name in ("train_csv", "val_csv", "test_root", "checkpoint"):
        given = getattr(settings, name)
        if given is not None:
            found[name] = checked(given, name)
    out = settings.out or (KAGGLE_WORKING if on_kaggle else Path("outputs"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if settings.mode == "predict" and found["checkpoint"] is None:
        earlier = out / BEST_CHECKPOINT
        found["checkpoint"] = earlier if earlier.is_file() else None
    return Inputs(**found, out=out, kaggle_input=kaggle_input if on_kaggle else None)


def checked(path, name):
    """The path of a flag, if it is there and of the right kind."""
    is_right, kind = (path.is_dir, "folder") if name == "test_root" else (path.is_file, "file")
    if not is_right():
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {path}: there is no such {kind} (working folder: {Path.cwd()})")
    return path


def search_local():
    """What lies where the notebook has it."""
    found = {name: path if path.exists() else None for name, path in LOCAL_PLACES.items()}
    found["checkpoint"] = next((p for p in LOCAL_CHECKPOINTS if p.is_file()), None)
    return found


def search_kaggle(root, entries_per_folder=1000):
    """What lies under /kaggle/input, wherever a dataset has put it; the shallowest wins.

    Breadth first, and no folder is listed beyond its first `entries_per_folder` names, so that
    an image folder costs nothing.
    """
    found = {"train_csv": None, "val_csv": None, "test_root": None, "checkpoint": None}
    folders = deque([root])
    while folders:
        folder = folders.popleft()
        entries = sorted(first_entries(folder, entries_per_folder), key=lambda p: p.name)
        for path in entries:
            if path.is_dir():
                if path.name == "orig_1024":
                    found["test_root"] = found["test_root"] or path
                else:
                    folders.append(path)
            elif path.name in ("train.csv", "val.csv"):
                name = f"{path.stem}_csv"
                found[name] = found[name] or path
            elif path.suffix in (".pth", ".pt"):
                found["checkpoint"] = found["checkpoint"] or path
    return found


def first_entries(folder, count):
    """Up to `count` entries of a folder, in the order the file system gives them."""
    return [path for path, _ in zip(folder.iterdir(), range(count))]


def is_empty(inputs):
    """Whether there is no data at all, so that a demonstration has to stand in."""
    return not (inputs.train_csv or inputs.val_csv or inputs.test_root)


def check_complete(inputs, training):
    """Raise UserError naming whatever a training or prediction run still lacks."""
    if inputs.test_root is None:
        raise UserError(missing(inputs, "test folder orig_1024", "--test-root"))
    if training and inputs.train_csv is None:
        wanted = "train.csv to learn from and no checkpoint of this project to predict with"
        raise UserError(missing(inputs, wanted, "--train-csv or --checkpoint"))
    if training and inputs.val_csv is None:
        raise UserError(missing(inputs, "val.csv", "--val-csv"))
    if not training and inputs.checkpoint is None:
        raise UserError(missing(inputs, "checkpoint to predict with", "--checkpoint"))


def missing(inputs, wanted, flag):
    """One sentence: what is missing, what is there instead, and the way out."""
    root = inputs.kaggle_input
    if root:
        there = ", ".join(sorted(path.name for path in first_entries(root, 20))) or "nothing"
        return f"no {wanted} under {root}, which holds {there}: attach it as a dataset"
    return f"no {wanted}: name it with {flag}"


def natural_key(name):
    """Sort key that reads digits as numbers: 1, 2, 10 and not 1, 10, 2."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name) if part], name


def list_images(folder, limit=None):
    """The image files of a folder in natural order, at most `limit`; other files are left out.

    Raises UserError when there is none, or when two would get the same name in the submission.
    """
    suffixes = Image.registered_extensions()
    images = sorted(
        (p for p in folder.iterdir()
         if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()),
        key=lambda p: natural_key(p.name),
    )
    if not images:
        raise UserError(f"--test-root {folder}: there is no image in this folder")
    by_stem = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"{folder}: {other.name} and {path.name} would both be the row {path.stem!r}; "
                "remove or rename one"
            )
    return images[:limit]
