"""Test images to rows: mask -> PNG -> base64 -> CSV, and back."""

import base64
import csv
import io
import math
from collections import Counter
from contextlib import nullcontext

import numpy as np
from PIL import Image

from src.runtime.console import UserError, progress
from src.runtime.distributed import all_gather, shard
from src.runtime.files import replacing
from src.runtime.processes import rank, world_size
from src.runtime.threads import mapped_ahead
from src.data.images import declared_size, read_picture, with_own_alpha
from src.data.pixels import no_memory, to_uint8
from src.results.pictures import save_pictures

HEADER = ("filename", "image_utf")
DEFAULT_SIZE = (1024, 1024)  # pixels, MAGICK's, of a mask whose image says nothing of its own


def predict_tests(predictor, tests, kinds, out, csv_path, stop):
    """Predict this process's share of the `TestImage`s; write pictures of these kinds below `out`,
    and the rows of all processes, in order, to the CSV, if its path is not None.

    Returns [(name, reason)] of the images with a problem, and [(name, note)] of those that their
    owner may expect otherwise. An image that cannot be read has a blank mask of its declared size,
    else of the commonest, and no pictures.
    """
    def opened(test):
        try:
            if test.path is None:
                raise UserError("there is no such image")
            return test, read_picture(test.path), ""
        except UserError as error:
            return test, None, str(error)

    def seen(item):
        test, picture, problem = item
        try:
            small = picture and predictor.small_alphas(test.name, picture.rgb)
            return test, picture, small, problem
        except (MemoryError, RuntimeError) as error:
            return test, None, None, no_memory(error, picture.rgb.size)

    def finished(item):
        test, picture, small, problem = item
        try:
            if picture:
                mask = to_uint8(with_own_alpha(predictor.full_alpha(picture.rgb, small), picture))
                problem = save_pictures(out, kinds, test.name, picture, mask) or picture.problem
                return test.name, encode_mask(mask) if csv_path else "", problem, picture.notes
        except (MemoryError, RuntimeError) as error:
            problem = no_memory(error, picture.rgb.size)
        blank = np.zeros(size(test)[::-1], np.uint8)
        return test.name, encode_mask(blank) if csv_path else "", problem, ()

    def size(test):
        return (test.path and declared_size(test.path)) or usual

    out.mkdir(parents=True, exist_ok=True)
    usual = commonest_size(tests)
    share = progress(shard(tests), "predict", unit="image")
    images = mapped_ahead(opened, share, pixels=lambda test: math.prod(size(test)))
    items = map(seen, stop.guarded(images))
    rows = mapped_ahead(
        finished, items, pixels=lambda item: math.prod(item[1].rgb.size) if item[1] else 0)
    return write_rows(csv_path, rows, len(tests))


def write_rows(csv_path, rows, count):
    """Write the (name, text, problem, notes) of all processes, `count` together, in the order of
    the whole sequence; all processes call it together. Without a path nothing is written.

    Returns [(name, problem)] and [(name, note)] of those with one.
    """
    problems, found = [], []
    target = replacing(csv_path) if csv_path and rank() == 0 else nullcontext()
    with target as part:
        # A name that is no UTF-8 must not cost the other rows.
        file = part and open(part, "w", newline="", encoding="utf-8", errors="backslashreplace")
        with file or nullcontext():
            writer = file and csv.writer(file, lineterminator="\n")
            if file:
                writer.writerow(HEADER)
            for _ in range(math.ceil(count / world_size())):
                row = next(rows, None)
                for name, text, problem, notes in all_gather([row] if row else []):
                    problems += [(name, problem)] if problem else []
                    found += [(name, note) for note in notes or ()]
                    if file:
                        writer.writerow((name, text))
    return problems, found


def commonest_size(tests):
    """(width, height) that most of the first hundred test images declare"""
    sizes = Counter(declared_size(path) for _, path in tests[:100] if path)
    del sizes[None]
    return sizes.most_common(1)[0][0] if sizes else DEFAULT_SIZE


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


def read_rows(csv_path):
    """Yields (filename, image_utf) of a submission, a few rows in memory at a time."""
    import pandas as pd
    for rows in pd.read_csv(csv_path, dtype=str, keep_default_na=False, chunksize=64):
        yield from rows.itertuples(index=False, name=None)
