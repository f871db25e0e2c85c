"""Every knob once: default, flag, help, validation.

A field of `Settings` is the flag of the same name: `train_size` is `--train-size`. This module
needs the standard library only, so that build.py can check what `--set` asks for.
"""

import argparse
import math
import os
import re
import sys
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path

# A Kaggle script gets no arguments. Write flags here, like ["--mode=train", "--epochs=30"], or let
# `python build.py --set mode=train --set epochs=30` do so. The same flag on a command line wins.
ARGUMENTS = []

HELP_WIDTH = 100  # columns
LARGEST_SIZE = 2048  # pixels, side of what a network sees
PICTURES = ("masks", "cutouts")  # kinds of pictures, and the folders of the results that hold them


def knob(default, group, help, *, minimum=None, choices=None, type=None, nargs=None, flag=True):
    """A dataclass field that is also a command line flag, or, without `flag`, what stands there
    without one; `type` parses the text, or each of its values where `nargs` lets it have more."""
    metadata = {
        "group": group, "help": help, "minimum": minimum, "choices": choices,
        "type": type or (str if choices else default.__class__), "nargs": nargs, "flag": flag,
    }
    return field(default=default, metadata=metadata)


def parse_range(text):
    """'0.7,1.0' -> (0.7, 1.0)"""
    low, high = (float(part) for part in text.split(","))
    return low, high


def parse_path(text):
    """'~/x' -> the Path of x in one's home"""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    if re.match(r"\w+://", text):
        raise argparse.ArgumentTypeError(f"{text}: is an address; name a file on this machine")
    return Path(os.path.expanduser(text))


def parse_flag(text):
    """'true' -> True"""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def parse_kinds(text):
    """'masks,cutouts' -> ('masks', 'cutouts')"""
    kinds = tuple(part for part in text.split(",") if part)
    if not set(kinds) <= set(PICTURES):
        raise argparse.ArgumentTypeError(f"{text}: takes masks, cutouts or masks,cutouts")
    return kinds


METAVARS = {int: "N", float: "X", parse_path: "PATH", parse_range: "LOW,HIGH", parse_flag: "BOOL",
            parse_kinds: "KINDS"}


@dataclass(frozen=True)
class Settings:
    """What one run is asked to do. Sizes are pixels; paths are relative to the working folder."""

    pictures: tuple[Path, ...] = knob(
        (), "run", "photos, folders: write masks and cut-outs of them, and nothing else",
        type=parse_path, nargs="*", flag=False)

    mode: str = knob(
        "auto", "run", "auto, train, predict; auto trains unless it finds our weights",
        choices=("auto", "train", "predict"))
    limit: int | None = knob(
        None, "run", "only the first N rows of each CSV and N test images", minimum=1, type=int)
    seed: int = knob(42, "run", "the same seed and data give the same result", minimum=0)
    device: str = knob("auto", "run", "auto, cpu, cuda, cuda:1, ...")
    amp: str = knob(
        "auto", "run", "of training: auto (what the device is fast at), off, fp16, bf16",
        choices=("auto", "off", "fp16", "bf16"))
    workers: int | None = knob(
        None, "run", "processes that decode images [one per core, at most 4]", minimum=0,
        type=int)
    gpus: int | None = knob(
        None, "run", "graphics cards, one process each [all]; on the CPU: processes [1]",
        minimum=1, type=int)
    time_limit: float | None = knob(
        None, "run", "hours for the whole run; where 9 are allowed, 8.5 [none; Kaggle: 11.5]",
        minimum=0.001, type=float)

    train_csv: Path | None = knob(
        None, "files", "has image_path, alpha_path [data/splits/train.csv; Kaggle: by columns]",
        type=parse_path)
    val_csv: Path | None = knob(
        None, "files", "the same to validate with [data/splits/val.csv, else a split]",
        type=parse_path)
    test_root: Path | None = knob(
        None, "files", "test images [data/test_dataset/orig_1024; Kaggle: any orig_1024]",
        type=parse_path)
    sample_csv: Path | None = knob(
        None, "files", "sample submission with the rows to write [Kaggle: by its columns]",
        type=parse_path)
    checkpoint: tuple[Path, ...] | None = knob(
        None, "files", "weights to start from or predict with; of several the alphas are averaged",
        type=parse_path, nargs="+")
    ensemble: bool = knob(
        False, "files", "true: average over all attached checkpoints of this project",
        type=parse_flag)
    backgrounds: Path | None = knob(
        None, "files", "photographs to put RGBA cut-outs on, beside drawn backdrops",
        type=parse_path)
    cache: Path | None = knob(
        None, "files", "scratch folder for decoded images; off: none [Kaggle: /kaggle/temp; temp]",
        type=parse_path)
    out: Path | None = knob(
        None, "files", "folder of the results [outputs; Kaggle: /kaggle/working]",
        type=parse_path)

    epochs: int | None = knob(
        None, "training", "how many [5; Kaggle: as many as the time allows]", minimum=1, type=int)
    epoch_samples: int | None = knob(
        None, "training", "rows of an epoch, after which it validates [all, at most 20000]",
        minimum=1, type=int)
    hours: float | None = knob(
        None, "training", "train so long, in place of --epochs", minimum=0.001, type=float)
    lr: float | None = knob(
        None, "training", "learning rate of AdamW [1e-4 x sqrt(crops of all cards / 4)]",
        minimum=0.0, type=float)
    # U2-Net was designed for 320. On cut-outs the published weights reach an MSE of 0.011 there and
    # 0.17 at the notebook's 1024: scale matters more than resolution.
    train_size: int = knob(320, "training", "side of a training crop as the network sees it",
                           minimum=64)
    min_train_size: int | None = knob(
        None, "training", "each step takes a size from this to --train-size [only that]",
        minimum=64, type=int)
    train_batch: int | None = knob(
        None, "training", "crops in a step, on each card [16, or what fits; CPU: 4]", minimum=1,
        type=int)
    # The notebook's crop, 512 of 1024 pixels, is `--train-size 512 --crop-scale 0.5,0.5`.
    crop_scale: tuple[float, float] = knob(
        (0.7, 1.0), "training", "a crop's side as a share of the image's shorter side",
        type=parse_range)
    schedule: str = knob(
        "auto", "training", "plateau (halve lr when validation stalls), cosine, auto: by length",
        choices=("auto", "plateau", "cosine"))
    # Short runs never reach a half-life; then validation prefers the plain weights.
    ema: int = knob(
        1000, "training", "half-life in samples of the weights' moving average; 0: none",
        minimum=0)
    save_minutes: float = knob(
        10.0, "training", "minutes between saves of last.pth, from which a killed run resumes",
        minimum=0.0)

    predict_size: int | None = knob(
        None, "prediction", "side of the network's input [the recipe's, near --train-size]",
        minimum=32, type=int)
    calibration: str = knob(
        "auto", "prediction", "auto (the recipe's, else the best on validation), notebook, none",
        choices=("auto", "notebook", "none"))
    save: tuple[str, ...] = knob(
        (), "prediction", "masks,cutouts: write these as PNGs too, in folders of these names",
        type=parse_kinds)
    preview: int = knob(
        6, "prediction", "validation images and masks to draw in preview/; 0: no pictures",
        minimum=0)


def check_settings(settings):
    """Raise ValueError, one sentence naming the flag, when the settings cannot work together."""
    for item in fields(Settings):
        value, minimum = getattr(settings, item.name), item.metadata["minimum"]
        if None not in (value, minimum) and not minimum <= value < math.inf:
            raise ValueError(f"{flag_name(item.name)} {value}: must be at least {minimum}")
    for name in ("train_size", "predict_size"):
        if (getattr(settings, name) or 0) > LARGEST_SIZE:
            raise ValueError(f"{flag_name(name)} {getattr(settings, name)}: must be at most "
                             f"{LARGEST_SIZE}")
    low, high = settings.crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"--crop-scale {low},{high}: needs 0 < LOW <= HIGH <= 1")
    if settings.pictures and settings.mode == "train":
        raise ValueError(f"{settings.pictures[0]}, --mode train: a picture is predicted; leave one "
                         "of them out")
    for name in ("train_csv", "val_csv", "test_root", "sample_csv"):
        if settings.pictures and getattr(settings, name):
            raise ValueError(f"{settings.pictures[0]}, {flag_name(name)}: both say what to work "
                             "on; leave one of them out")
    if (settings.min_train_size or 0) > settings.train_size:
        raise ValueError(f"--min-train-size {settings.min_train_size}: is more than --train-size "
                         f"{settings.train_size}")
    if settings.hours is not None and settings.epochs is not None:
        raise ValueError("--hours, --epochs: both say how long to train; take one of them")


def flag_name(name):
    return "--" + name.replace("_", "-")


def command_line():
    """The argparse parser made of the fields of `Settings`."""
    parser = argparse.ArgumentParser(
        usage="python kernel/main.py [PICTURE ...] [--flag VALUE ...]", allow_abbrev=False,
        description="Train U2-Net to predict alpha, and write submission.csv for a folder of test "
        "images. Without data it makes a small demonstration set. [In brackets: the default]",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=26, width=HELP_WIDTH),
    )
    groups = {}
    for item in fields(Settings):
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        shown = "" if item.default in (None, ()) else f" [{default_text(item.default)}]"
        is_flag, kind = item.metadata["flag"], item.metadata["type"]
        group.add_argument(
            flag_name(item.name) if is_flag else item.name, type=kind, default=item.default,
            choices=item.metadata["choices"], nargs=item.metadata["nargs"],
            metavar=METAVARS.get(kind, "NAME") if is_flag else "PICTURE",
            help=item.metadata["help"] + shown,
        )
    return parser


def default_text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_settings(argv=None):
    """Settings from ARGUMENTS and the command line (`sys.argv[1:]` when argv is None).

    Exits with status 2 and one sentence on standard error when a flag or its value is wrong.
    """
    parser = command_line()
    argv = sys.argv[1:] if argv is None else argv
    values, unknown = parser.parse_known_args([*ARGUMENTS, *argv])
    if unknown:
        flags = [flag_name(item.name) for item in fields(Settings)]
        near = get_close_matches(unknown[0].split("=")[0], flags, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"unknown argument {unknown[0]}{hint}")
    settings = Settings(**{name: tuple(value) if isinstance(value, list) else value
                           for name, value in vars(values).items()})
    try:
        check_settings(settings)
    except ValueError as error:
        parser.error(str(error))
    return settings
