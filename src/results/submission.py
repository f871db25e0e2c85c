"""Mask <-> PNG <-> base64 <-> CSV, and the check that Kaggle would make."""

import base64
import csv
import io
from contextlib import ExitStack
from itertools import zip_longest

import numpy as np
import pandas as pd
from PIL import Image

from src.runtime.console import UserError
from src.runtime.files import replacing
from src.runtime.processes import rank, world_size
from src.runtime.threads import mapped_ahead
from src.data.images import declared_size

HEADER = ("filename", "image_utf")
csv.field_size_limit(2**31 - 1)  # a mask is one field


def encode_mask(mask):
    """uint8 [H,W] -> base64 text of an 8-bit grayscale PNG"""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_mask(text):
    """base64 text of an 8-bit grayscale PNG -> uint8 [H,W]; ValueError for any other image."""
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
        if (image.format, image.mode) != ("PNG", "L"):
            raise ValueError(f"is {image.format} of mode {image.mode}, not 8-bit grayscale PNG")
        return np.asarray(image)


def encoded_row(item):
    """(name, mask, problem) with the mask as text"""
    name, mask, problem = item
    return name, encode_mask(mask), problem


def write_shard(csv_path, key, names, predict, finish=encoded_row):
    """Write this process's rows beside the CSV to be, going on where a killed run stopped.

    key: a text that is the same only for the same masks; names: of this process's images in order;
    predict: number of rows that are there already -> (name, uint8 mask [H,W], "" or why the mask
    is blank) of the others; finish: such an item -> its row, called in threads, in any order,
    before the row counts as done.
    """
    path = shard_paths(csv_path)[rank()]
    path.parent.mkdir(parents=True, exist_ok=True)
    done = whole_rows(path, key, names)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if done is None:
            file.truncate(0)
            writer.writerow((key, "", ""))
        rows = mapped_ahead(finish, predict(done or 0))
        for row in rows:
            writer.writerow(row)
            file.flush()


def whole_rows(path, key, names):
    """How many rows of these names a killed run has left in its file, whatever comes after them
    cut off; None when there is no file, or one of other masks."""
    if not path.exists():
        return None
    with open(path, "r+b") as file:
        if file.readline() != f"{key},,\n".encode():
            return None
        done, end = 0, file.tell()
        for line in file:
            if done == len(names) or not line.endswith(b"\n") or next(
                    csv.reader([line.decode("utf-8", "replace")]))[0] != names[done]:
                break
            done, end = done + 1, end + len(line)
        file.truncate(end)
    return done


def shard_paths(csv_path):
    """Files with the rows of each process, in the order of their ranks."""
    return [csv_path.with_name(f"{csv_path.name}.{number}-of-{world_size()}")
            for number in range(world_size())]


def merge_submission(csv_path, tests):
    """Put the rows of all processes together in the order of the test images, and check them.

    The file takes its place only after the check; see check_submission. Returns the (name, reason)
    of each row whose mask is blank because its image cannot be read.
    """
    problems = []
    with replacing(csv_path) as part:
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for name, text, problem in taken_rows(csv_path):
                writer.writerow((name, text))
                problems += [(name, problem)] if problem else []
        check_submission(part, tests)
    return problems


def taken_rows(csv_path):
    """Yields the rows that write_shard has written in all processes, in the order of the test
    images; then they are gone, so that rows which do not pass a check are not taken up again."""
    with ExitStack() as stack:
        shards = [csv.reader(stack.enter_context(open(path, newline="", encoding="utf-8")))
                  for path in shard_paths(csv_path)]
        for shard_rows in shards:
            next(shard_rows)  # the key
        for rows in zip_longest(*shards):
            yield from filter(None, rows)
    for path in shard_paths(csv_path):
        path.unlink()


def read_rows(csv_path):
    """Yields (filename, image_utf) of a submission, a few rows in memory at a time."""
    for rows in pd.read_csv(csv_path, dtype=str, keep_default_na=False, chunksize=64):
        if tuple(rows.columns) != HEADER:
            raise UserError(
                f"{csv_path}: has the columns {', '.join(rows.columns)} instead of "
                f"{', '.join(HEADER)}")
        yield from rows.itertuples(index=False, name=None)


def check_submission(csv_path, tests):
    """Raise UserError unless the CSV has, for each `TestImage` in order, one row with its name and
    a mask of its image's size (any size for an image that does not tell its own)."""
    count = 0
    for count, (name, text) in enumerate(read_rows(csv_path), 1):
        expected = tests[count - 1].name if count <= len(tests) else "the end"
        if count > len(tests) or name != expected:
            raise UserError(f"{csv_path}, row {count}: is {name!r} where {expected!r} belongs")
        try:
            height, width = decode_mask(text).shape
        except (OSError, ValueError) as error:
            raise UserError(f"{csv_path}, row {count} ({name}): {error}") from None
        path = tests[count - 1].path
        size = path and declared_size(path)
        if size and size != (width, height):
            raise UserError(
                f"{csv_path}, row {count} ({name}): the mask is {width}x{height}, its image "
                f"{size[0]}x{size[1]}")
    if count != len(tests):
        raise UserError(f"{csv_path}: has {count} rows for {len(tests)} images")
    names = {test.name for test in tests}
    if len(names) != len(tests):
        raise UserError(f"{csv_path}: names {len(tests) - len(names)} images more than once")
