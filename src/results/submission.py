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
from src.data.pixels import lacks_memory, no_memory, to_uint8
from src.results.pictures import save_pictures

HEADER = ("filename", "image_utf")
DEFAULT_SIZE = (1024, 1024)  # pixels, MAGICK's, of a mask whose image says nothing of its own


def predict_tests(predictor, tests, kinds, out, csv_path, stop, strict=False):
    """Predict this process's share of the `TestImage`s; write pictures of these kinds below `out`,
    and the rows of all processes, in order, to the CSV, if its path is not None.

    Returns [(name, reason)] of the images with a problem, and [(name, note)] of those that their
    owner may expect otherwise. An image that cannot be predicted has a blank mask of its declared
    size, else of the commonest, and no pictures. strict: an error that is neither the image's nor
    for want of memory is raised, which is right where another run follows.
    """
    def opened(test, _):
        if test.path is None:
            raise UserError("there is no such image")
        return read_picture(test.path), None

    def seen(test, item):
        picture, _ = item
        return picture, predictor.small_alphas(test.name, picture.rgb)

    def finished(test, item):
        picture, small = item
        mask = to_uint8(with_own_alpha(predictor.full_alpha(picture.rgb, small), picture))
        problem = save_pictures(out, kinds, test.name, picture, mask) or picture.problem
        return encode_mask(mask) if csv_path else "", problem, picture.notes

    def stage(function):
        def step(item):
            test, value = item
            if isinstance(value, UserError):  # of an earlier stage
                return item
            try:
                return test, function(test, value)
            except Exception as error:
                return test, UserError(why_no_alpha(error, size(test), strict))
        return step

    def row(item):
        test, value = stage(finished)(item)
        if isinstance(value, UserError):
            blank = np.zeros(size(test)[::-1], np.uint8)
            value = encode_mask(blank) if csv_path else "", str(value), ()
        return test.name, *value

    def size(test):
        return (test.path and declared_size(test.path)) or usual

    def pixels(item):
        test, value = item
        if isinstance(value, UserError):
            return 0
        return math.prod(value[0].rgb.size if value else size(test))

    for folder in (out, *(out / kind for kind in kinds)):
        folder.mkdir(parents=True, exist_ok=True)
    usual = commonest_size(tests)
    share = ((test, None) for test in progress(shard(tests), "predict", unit="image"))
    images = mapped_ahead(stage(opened), share, pixels=pixels)
    items = map(stage(seen), stop.guarded(images))
    return write_rows(csv_path, mapped_ahead(row, items, pixels=pixels), len(tests))


def why_no_alpha(error, size, strict):
    """Why an image (width, height) has no alpha, in a sentence without a subject; see
    predict_tests."""
    if isinstance(error, UserError):
        return str(error)
    if strict or lacks_memory(error):
        return no_memory(error, size)
    return f"cannot be predicted ({type(error).__name__}: {error})"


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
