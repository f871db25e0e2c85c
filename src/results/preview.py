"""Pictures of validation images and their mattes, and of the decoded submission."""

from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from src.runtime.console import UserError
from src.data.images import read_picture
from src.data.pixels import to_uint8
from src.results.pictures import cut_out, save_result
from src.results.submission import decode_mask, read_rows

CELL, GAP, LABEL = 256, 8, 24  # pixels: side of a picture, space between two, height of a caption
CHECK = 16  # pixels, side of a square of the checkerboard under a cut-out


def save_validation_preview(rows, path):
    """One row of pictures for each of `rows`: (RGB image, predicted alpha, true alpha, title);
    alphas: float arrays [H,W] in [0,1]."""
    cells = []
    for image, prediction, truth, title in rows:
        difference = np.abs(prediction - truth)
        alpha = Image.fromarray(to_uint8(prediction))
        cells.append([
            (image, title), (Image.fromarray(to_uint8(truth)), "true alpha"),
            (alpha, "predicted alpha"),
            (Image.fromarray(to_uint8(difference)),
             f"difference, MSE {np.square(difference).mean():.4f}"),
            (on_a_board(image, alpha), "cut-out"),
        ])
    save_grid(cells, path)


def on_a_board(image, alpha):
    """The cut-out over a checkerboard, small enough for a cell"""
    picture = cut_out(*(ImageOps.contain(each, (CELL, CELL)) for each in (image, alpha)))
    y, x = np.mgrid[:picture.height, :picture.width] // CHECK
    board = Image.fromarray(np.where((x + y) % 2, 255, 200).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(board, picture)


def save_submission_preview(csv_path, path, tests, count):
    """The first test images beside their mattes, decoded from the CSV, and their cut-outs.

    tests: list of TestImage, in the order of the rows. An image that cannot be read is left blank.
    """
    cells = []
    for (name, text), test in islice(zip(read_rows(csv_path), tests), count):
        mask = decode_mask(text)
        height, width = mask.shape
        try:
            image = read_picture(test.path).rgb
        except UserError:
            image = Image.new("RGB", (width, height), "white")
        matte = Image.fromarray(mask)
        cells.append([(image, name), (matte, f"{width}x{height}, {mask.min()}..{mask.max()}"),
                      (on_a_board(image, matte), "cut-out")])
    save_grid(cells, path)


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
            draw.text((left, top), shortened(caption, font, CELL), fill="black", font=font)
    save_result(sheet, path)


def shortened(text, font, width):
    """The text, cut with an ellipsis where it is wider than `width` pixels"""
    while font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
