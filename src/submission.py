"""Mask <-> PNG <-> base64 <-> CSV, and the check that Kaggle would make."""

import base64
import csv
import io

import numpy as np
import pandas as pd
from PIL import Image

from src.console import UserError
from src.files import replacing

HEADER = ("filename", "image_utf")


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


def write_submission(masks, paths, csv_path):
    """Write the CSV from (name, uint8 mask [H,W]) pairs, one row at a time, and check it.

    paths: the test images in the masks' order. The file takes its place only after the check.
    """
    with replacing(csv_path) as part:
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for name, mask in masks:
                writer.writerow((name, encode_mask(mask)))
        check_submission(part, paths)


def read_rows(csv_path):
    """Yields (filename, image_utf) of a submission, a few rows in memory at a time."""
    for rows in pd.read_csv(csv_path, dtype=str, keep_default_na=False, chunksize=64):
        if tuple(rows.columns) != HEADER:
            raise UserError(
                f"{csv_path}: has the columns {', '.join(rows.columns)} instead of "
                f"{', '.join(HEADER)}")
        yield from rows.itertuples(index=False, name=None)


def check_submission(csv_path, paths):
    """Raise UserError unless the CSV has, for each image path in order, one row with its name and
    a mask of its size."""
    count = 0
    for count, (name, text) in enumerate(read_rows(csv_path), 1):
        if count > len(paths) or name != paths[count - 1].stem:
            expected = paths[count - 1].stem if count <= len(paths) else "the end"
            raise UserError(f"{csv_path}, row {count}: is {name!r} where {expected!r} belongs")
        try:
            height, width = decode_mask(text).shape
        except (OSError, ValueError) as error:
            raise UserError(f"{csv_path}, row {count} ({name}): {error}") from None
        with Image.open(paths[count - 1]) as image:
            if image.size != (width, height):
                raise UserError(
                    f"{csv_path}, row {count} ({name}): the mask is {width}x{height}, its image "
                    f"{image.width}x{image.height}")
    if count != len(paths):
        raise UserError(f"{csv_path}: has {count} rows for {len(paths)} images")
    names = {path.stem for path in paths}
    if len(names) != len(paths):
        raise UserError(f"{csv_path}: names {len(paths) - len(names)} images more than once")
