"""Where things are, on Kaggle or locally, and what is missing."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from src.config import PICTURES
from src.runtime.console import UserError, log
from src.runtime.tables import no_column, read_table
from src.inputs.discovery import BEST_CHECKPOINT, discover

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")

# The notebook's places, from the working folder
LOCAL_PLACES = {
    "train_csv": Path("data/splits/train.csv"),
    "val_csv": Path("data/splits/val.csv"),
    "test_root": Path("data/test_dataset/orig_1024"),
    "sample_csv": Path("data/sample_submission.csv"),
}
# The shipped weights first. The repository is one folder above kernel/, two above src/inputs/.
LOCAL_CHECKPOINTS = (
    *(folder / "kernel" / "weights" / "u2netp_alpha.pth"
      for folder in Path(__file__).resolve().parents[1:3]),
    Path("U-2-Net/saved_models/u2netp/u2netp.pth"),
)


@dataclass(frozen=True)
class Inputs:
    """Resolved paths of one run; None for what was neither named nor found."""

    train_csv: Path | None
    val_csv: Path | None
    test_root: Path | None
    sample_csv: Path | None
    checkpoint: Path | None
    unfinished: Path | None  # an attached training that may be continued
    out: Path
    kaggle_input: Path | None  # set on Kaggle only
    others: tuple[Path, ...] = ()  # more checkpoints, whose alphas are averaged with the first's


def find_inputs(settings, kaggle_input=KAGGLE_INPUT):
    """`Inputs` from the flags, then from /kaggle/input or the notebook's folders.

    Raises UserError when a path given by a flag does not exist.
    """
    on_kaggle = kaggle_input.is_dir()
    candidates = discover(kaggle_input) if on_kaggle else search_local()
    if settings.pictures:  # nothing else is looked at
        candidates = {name: paths if name == "checkpoint" else [] for name, paths in
                      candidates.items()}
    found = {name: paths[0] if paths else None for name, paths in candidates.items()}
    others = ()
    if settings.checkpoint:
        others = tuple(checked(path, "checkpoint") for path in settings.checkpoint[1:])
    elif settings.ensemble:
        others = tuple(candidates["checkpoint"][1:])
    for name, paths in candidates.items():
        given = getattr(settings, name, None)
        given = given[0] if isinstance(given, tuple) else given
        if given is not None:
            found[name] = checked(given, name)
        elif len(paths) > 1 and not (settings.ensemble and name == "checkpoint"):
            rest = ", ".join(map(str, paths[1:4])) + (", …" if len(paths) > 4 else "")
            choice = ("detach the others" if name == "unfinished" else
                      f"`python build.py --set {name}=PATH` or --{name.replace('_', '-')}")
            log(f"{name}: {paths[0]} is taken; there is also {rest} (to choose: {choice})")
    out = settings.out or (KAGGLE_WORKING if on_kaggle else Path("outputs"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if settings.pictures:
        found["test_root"] = settings.pictures[0]
    earlier = out / BEST_CHECKPOINT
    if not settings.checkpoint and earlier.is_file():
        found["checkpoint"] = earlier  # trained here: wins over the shipped ones
    return Inputs(**found, out=out, kaggle_input=kaggle_input if on_kaggle else None,
                  others=others)


def checked(path, name):
    """The path of a flag, if it is there and of the right kind."""
    is_right, kind = (path.is_dir, "folder") if name == "test_root" else (path.is_file, "file")
    if not is_right():
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag} {path}: there is no such {kind} (working folder: {Path.cwd()})")
    return path


def search_local():
    """What lies where the notebook has it, in the form of `discover`."""
    found = {name: [path] if path.exists() else [] for name, path in LOCAL_PLACES.items()}
    return {**found, "unfinished": [],
            "checkpoint": [path for path in LOCAL_CHECKPOINTS if path.is_file()][:1]}


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
    if not training and inputs.checkpoint is None:
        raise UserError(missing(inputs, "checkpoint to predict with", "--checkpoint"))


def missing(inputs, wanted, flag):
    """One sentence: what is missing, what is there instead, and the way out."""
    root = inputs.kaggle_input
    if root:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:20]) or "nothing"
        return f"no {wanted} under {root}, which holds {there}: attach it as a dataset"
    return f"no {wanted}: name it with {flag}"


class TestImage(NamedTuple):
    """A row of the submission to be: its name, and its image (None: there is no such file)."""

    name: str
    path: Path | None


def list_tests(folder, sample_csv=None, limit=None):
    """The `TestImage`s of a submission, at most `limit`.

    A sample submission decides their names and order; what it lacks, and what the folder lacks, is
    reported. Without one they are all images of the folder in natural order, named without their
    last extension.
    """
    if sample_csv is None:
        return [TestImage(path.stem, path) for path in list_images(folder, limit)]
    table = read_table(sample_csv)
    if "filename" not in table.columns:
        raise UserError(f"{sample_csv}: {no_column('filename', table.columns)}")
    paths = image_files(folder)
    by_name = {path.stem: path for path in paths} | {path.name: path for path in paths}
    tests = [TestImage(name, by_name.get(name)) for name in table["filename"]]
    if len({test.name for test in tests}) < len(tests):
        raise UserError(f"{sample_csv}: names an image twice")
    present = {test.path for test in tests} - {None}
    if not present:
        raise UserError(f"{sample_csv}: names no image of {folder}; name the right ones with "
                        "--sample-csv and --test-root")
    report("in the sample submission but not in the folder; a blank mask stands in for each",
           [test.name for test in tests if test.path is None])
    report("in the folder but not in the sample submission, and are left out",
           [path.name for path in paths if path not in present])
    return tests[:limit]


def list_pictures(places, out, limit=None):
    """The `TestImage`s of photos and of folders with all that is in them, at most `limit`.

    A name is the path below the folder without its last extension, which stays where two names
    would be the same. What an earlier run has written below `out` is left out. Raises UserError
    when a place does not exist or there is no picture.
    """
    paths = []  # (picture, the folder that its name leaves out)
    for place in places:
        if place.is_dir():
            found = image_files(place, recursive=True)
        elif place.is_file():
            found = [place]
        else:
            raise UserError(f"{place}: there is no such picture or folder (working folder: "
                            f"{Path.cwd()})")
        base = place if place.is_dir() else place.parent
        paths += [(path, base) for path in found]
    results = [(out / kind).resolve() for kind in PICTURES]
    paths = [(path, base) for path, base in paths
             if not any(result in path.resolve().parents for result in results)]
    names = [path.relative_to(base).with_suffix("").as_posix() for path, base in paths]
    common = {name for name, count in Counter(names).items() if count > 1}
    names = [path.relative_to(base).as_posix() if name in common else name
             for name, (path, base) in zip(names, paths)]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{name}: is there {count} times; name one folder that holds them all")
    if not names:
        raise UserError(f"{places[0]}: there is no picture")
    return [TestImage(name, path) for name, (path, _) in zip(names, paths)][:limit]


def report(what, names):
    """A log line about test images, if there are any"""
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        log(f"{len(names)} test images are {what}: {shown}")


def natural_key(name):
    """Sort key that reads digits as numbers: 1, 2, 10 and not 1, 10, 2."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name) if part], name


def image_files(folder, recursive=False):
    """The image files of a folder, by their suffixes, in natural order; others are left out."""
    suffixes = Image.registered_extensions()
    return sorted(
        (p for p in (folder.rglob("*") if recursive else folder.iterdir())
         if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()),
        key=lambda p: natural_key(p.relative_to(folder).as_posix()),
    )


def list_images(folder, limit=None):
    """`image_files`, at most `limit`.

    Raises UserError when there is none, or when two would get the same name in the submission.
    """
    images = image_files(folder)
    if not images:
        raise UserError(f"{folder}: there is no image in this folder")
    by_stem = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"{folder}: {other.name} and {path.name} would both be the row {path.stem!r}; "
                "remove or rename one"
            )
    return images[:limit]
