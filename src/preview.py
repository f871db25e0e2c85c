"""Pictures of validation images beside their alphas, and of the decoded submission."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from src.files import replacing
from src.prediction import to_uint8
from src.submission import decode_mask, read_rows

CELL, GAP, LABEL = 256, 8, 24  # pixels: side of a picture, space between two, height of a caption


def save_validation_preview(rows, path):
    """One row of pictures an item of `rows`: (image, predicted alpha, true alpha, file).

    image: float32 tensor [3,H,W] in [-1,1]; alphas: float arrays [H,W] in [0,1].
    """
    cells = []
    for image, prediction, truth, file in rows:
        difference = np.abs(prediction - truth)
        pixels = (image.permute(1, 2, 0).numpy() + 1) / 2
        mse = np.square(difference).mean()
        cells.append([
            (Image.fromarray(to_uint8(pixels)), Path(file).name),
            (Image.fromarray(to_uint8(truth)), "true alpha"),
            (Image.fromarray(to_uint8(prediction)), "predicted alpha"),
            (Image.fromarray(to_uint8(difference)), f"difference, MSE {mse:.4f}"),
        ])
    save_grid(cells, path)


def save_submission_preview(csv_path, path, count=3):
    """The first masks of a submission, decoded from the CSV, with their names and ranges."""
    row = []
    for name, text in islice(read_rows(csv_path), count):
        mask = decode_mask(text)
        height, width = mask.shape
        row.append((Image.fromarray(mask), f"{name}: {width}x{height}, {mask.min()}..{mask.max()}"))
    save_grid([row], path)


def save_grid(cells, path):
    """Write rows of (picture, caption) as one PNG; each picture is fitted into a square cell."""
    columns = max(len(row) for row in cells)
    sheet = Image.new(
        "RGB", (columns * (CELL + GAP) + GAP, len(cells) * (CELL + LABEL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for y, row in enumerate(cells):
        for x, (picture, caption) in enumerate(row):
            left, top = GAP + x * (CELL + GAP), GAP + y * (CELL + LABEL + GAP)
            picture = ImageOps.contain(picture.convert("RGB"), (CELL, CELL))
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + LABEL))
            while font.getlength(caption) > CELL:
                caption = caption.rstrip("…")[:-1] + "…"
            draw.text((left, top), caption, fill="black", font=font)
    with replacing(path) as part:
        sheet.save(part, format="PNG")
