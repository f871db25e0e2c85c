"""Where the input is, on Kaggle or locally, and errors for missing input."""

from dataclasses import dataclass
from pathlib import Path

from src.config import flag_name
from src.runtime.console import UserError, log
from src.inputs.discovery import (
    BACKDROP_FOLDER, BEST_CHECKPOINT, OUR_TABLES, SHIPPED_CHECKPOINT, discover, read_columns,
)

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")

# The notebook's places, from the working folder
LOCAL_PLACES = {
    "train_csv": Path("data/splits/train.csv"),
    "val_csv": Path("data/splits/val.csv"),
    "test_root": Path("data/test_dataset/orig_1024"),
    "sample_csv": Path("data/sample_submission.csv"),
}
# The shipped weights first: beside the script, or seen from the modules.
HERE = Path(__file__).resolve().parent
LOCAL_CHECKPOINTS = (
    HERE / "weights" / SHIPPED_CHECKPOINT, HERE / SHIPPED_CHECKPOINT,
    *(folder / "kernel" / "weights" / SHIPPED_CHECKPOINT for folder in HERE.parents[1:2]),
    Path("U-2-Net/saved_models/u2netp/u2netp.pth"),
)


@dataclass(frozen=True)
class Inputs:
    """Resolved paths of one run, None where none was named or found."""

    train_csv: Path | None
    val_csv: Path | None
    test_root: Path | None
    sample_csv: Path | None
    checkpoint: Path | None
    unfinished: Path | None  # an attached training that may be continued
    backgrounds: Path | None
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
                      f"`python build.py --set {name}=PATH` or {flag_name(name)}")
            log(f"{name}: {paths[0]} is taken; there is also {rest} (to choose: {choice})")
    out = settings.out or (KAGGLE_WORKING if on_kaggle else Path("outputs"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if settings.pictures:
        found["test_root"] = settings.pictures[0]
    earlier = out / BEST_CHECKPOINT
    if not settings.checkpoint and earlier.is_file() and not (
            settings.pictures and found["checkpoint"]):
        if found["checkpoint"]:
            log(f"checkpoint: {earlier}, of an earlier training, is taken; there is also "
                f"{found['checkpoint']} (to choose: --checkpoint)")
        found["checkpoint"] = earlier
    return Inputs(**found, out=out, kaggle_input=kaggle_input if on_kaggle else None,
                  others=others)


def checked(path, name):
    """The path of a flag, if it is there and of the right kind."""
    is_folder = name in ("test_root", "backgrounds")
    is_right, kind = (path.is_dir, "folder") if is_folder else (path.is_file, "file")
    if not is_right():
        flag, other = flag_name(name), "file" if is_folder else "folder"
        raise UserError(f"{flag} {path}: is a {other}; name a {kind}" if path.exists() else
                        f"{flag} {path}: there is no such {kind} (working folder: {Path.cwd()})")
    return path


def search_local():
    """What lies where the notebook has it, in the form of `discover`."""
    found = {name: [path] if path.exists() else [] for name, path in LOCAL_PLACES.items()}
    weights = [path for path in LOCAL_CHECKPOINTS if path.is_file()][:1]
    backdrops = [path.with_name(BACKDROP_FOLDER) for path in weights
                 if path.with_name(BACKDROP_FOLDER).is_dir()]
    return {**found, "unfinished": [], "checkpoint": weights, "backgrounds": backdrops}


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


def check_tables(inputs):
    """Raise UserError where a result would replace an input, or a table of others."""
    tables = inputs.train_csv, inputs.val_csv, inputs.sample_csv
    given = [path.resolve() for path in tables if path]
    for name, column in OUR_TABLES.items():
        path = inputs.out / name
        is_other = path.is_file() and column not in read_columns(path)
        if is_other or path.resolve() in given:
            what = "no result of this script" if is_other else "an input of this run"
            raise UserError(f"{path}: is {what}, and would be replaced by a result; name another "
                            "--out")


def missing(inputs, wanted, flag):
    """An error message: the missing input, what is there instead, and the way out."""
    root = inputs.kaggle_input
    if root:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:20]) or "nothing"
        return f"no {wanted} under {root}, which holds {there}: attach it as a dataset"
    return f"no {wanted}: name it with {flag}"
