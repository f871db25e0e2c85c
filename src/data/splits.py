"""The pairs of a run: to train on, to validate with, and those that cannot be read."""

from dataclasses import replace
from itertools import islice

import numpy as np

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import all_gather, shard
from src.runtime.processes import rank
from src.runtime.tables import write_table
from src.runtime.threads import mapped_ahead
from src.inputs.discovery import mounted_folders
from src.inputs.listing import list_backdrops
from src.data.cache import open_cache
from src.data.datasets import whole_pair
from src.data.pairs import (
    MOST_HELD_OUT, Splits, check_alphas, lowest_hashes, read_pairs, shared_images, split_off,
)

MOST_UNREADABLE = 0.05  # share of all pairs that may be


def find_splits(inputs, settings, training):
    """The `Splits` of a run, without the validation pairs that cannot be read.

    Validation pairs are split off the others where only training data are there.
    """
    photographs = tuple(list_backdrops(inputs.backgrounds)) if (
        inputs.backgrounds and (training or inputs.val_csv)) else ()
    cache = open_cache(settings.cache, inputs.kaggle_input is not None) if (
        training or inputs.val_csv) else None
    roots = mounted_folders(inputs.kaggle_input) if inputs.kaggle_input else ()
    splits = Splits(*(csv and read_pairs(csv, settings.limit, photographs, cache, roots)
                      for csv in (inputs.train_csv if training else None, inputs.val_csv)))
    if training:
        check_alphas(splits.train)
        if not photographs and (splits.train.alphas == b"").any():
            log("WARNING: cut-outs are put on painted backdrops only, for want of photographs: a "
                "training that had nothing else made the error before real scenes 1.6 times that "
                "of the published weights (0.0431, 0.0267); name photographs with --backgrounds")
    if training and splits.val is None:
        splits = split_off(splits.train)
        log(f"No validation CSV: {len(splits.val)} of the training rows validate")
    if training and (shared := shared_images(*splits)):
        log(f"WARNING: {shared} validation images are training images too; the validation MSE "
            "promises too much")
    if splits.val is None:
        return splits
    if len(splits.val) > MOST_HELD_OUT:
        log(f"{MOST_HELD_OUT} of {len(splits.val)} validation rows are looked at, always the same")
        splits = splits._replace(val=splits.val.where(lowest_hashes(splits.val, MOST_HELD_OUT)))
    splits = splits._replace(val=without_unreadable(splits.val))
    if not training and rank() == 0:
        write_skipped(inputs.out, splits.val.skipped)
    return splits


def without_unreadable(pairs):
    """The pairs that can be read; their `skipped` lists the others. Every file is opened once.

    For validation data, of which all is looked at in every epoch anyway. Raises UserError when more
    than a twentieth cannot be read.
    """
    def checked(index):
        try:
            return "", whole_pair(pairs, index)[2]
        except UserError as error:
            return str(error), []

    indices = progress(shard(range(len(pairs))), "read val", unit="pair")
    rows = all_gather(list(mapped_ahead(checked, indices)))
    unreadable = {pairs[i][0]: reason for i, (reason, _) in enumerate(rows) if reason}
    check_share(unreadable, len(pairs), "validation")
    backdrops = dict(each for _, backdrops in rows for each in backdrops)
    readable = np.array([not reason for reason, _ in rows])
    return replace(pairs.where(readable), skipped={**unreadable, **backdrops})


def check_share(unreadable, count, title):
    """Raise UserError when all, or more than one and a twentieth, of `count` pairs cannot be
    read."""
    if len(unreadable) == count or len(unreadable) > max(1, MOST_UNREADABLE * count):
        raise UserError(
            f"{len(unreadable)} of {count} {title} pairs cannot be read, more than "
            f"{MOST_UNREADABLE:.0%}; the first: {'; '.join(islice(unreadable.values(), 3))}")


def write_skipped(out, skipped):
    """skipped.csv: {path: reason} of the files that were left out."""
    path = out / "skipped.csv"
    write_table(path, [(file, reason.removeprefix(f"{file}: "))
                       for file, reason in sorted(skipped.items())], ["image_path", "reason"])
    if skipped:
        log(f"{len(skipped)} files cannot be read and are left out: see {path}")
