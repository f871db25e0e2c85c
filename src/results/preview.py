"""Pictures of validation images and their mattes, of the decoded submission, of the training."""

from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from src.runtime.console import UserError
from src.runtime.files import replacing
from src.data.images import open_image
from src.prediction.predictor import to_uint8
from src.results.pictures import cut_out
from src.results.submission import decode_mask, read_rows

CELL, GAP, LABEL = 256, 8, 24  # pixels: side of a picture, space between two, height of a caption
CHECK = 16  # pixels, side of a square of the checkerboard under a cut-out
HEAD, BINS = 140, 20  # pixels, height of the panel of scores; bars in it
PLOT = (520, 300)  # pixels, a curve's frame
COLOURS = ("#1f5fbf", "#d2601a")


def save_validation_preview(rows, path, scores=()):
    """One row of pictures for each of `rows`: (image, predicted alpha, true alpha, title).

    image: float32 tensor [3,h,w] in [-1,1]; alphas: float arrays [H,W] in [0,1]. scores: what
    score_panel shows above them.
    """
    cells = []
    for image, prediction, truth, title in rows:
        height, width = truth.shape
        pixels = Image.fromarray(to_uint8((image.permute(1, 2, 0).numpy() + 1) / 2))
        pixels = pixels.resize((width, height))
        difference = np.abs(prediction - truth)
        alpha = Image.fromarray(to_uint8(prediction))
        cells.append([
            (pixels, title), (Image.fromarray(to_uint8(truth)), "true alpha"),
            (alpha, "predicted alpha"),
            (Image.fromarray(to_uint8(difference)),
             f"difference, MSE {np.square(difference).mean():.4f}"),
            (on_a_board(pixels, alpha), "cut-out"),
        ])
    save_grid(cells, path, score_panel(scores, 5 * (CELL + GAP) - GAP) if scores else None)


def on_a_board(image, alpha):
    """What an alpha takes out of an image, over a checkerboard, small enough for a cell."""
    picture = cut_out(*(ImageOps.contain(each, (CELL, CELL)) for each in (image, alpha)))
    y, x = np.mgrid[:picture.height, :picture.width] // CHECK
    board = Image.fromarray(np.where((x + y) % 2, 255, 200).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(board, picture)


def spread(errors, count):
    """(index, title) of `count` validation images, from the worst over the middle to the best.

    errors: their MSEs. A third of the pictures is for each of the three.
    """
    order = sorted(range(len(errors)), key=lambda index: -errors[index])
    count = min(count, len(order))
    third = -(-count // 3)
    worst, best = order[:third], order[len(order) - (count - third) // 2:]
    rest = [index for index in order if index not in (*worst, *best)]
    left = count - len(worst) - len(best)
    start = (len(rest) - left) // 2
    named = (("worst", worst), ("middle", rest[start:start + left]), ("best", best))
    return [(index, title) for title, group in named for index in group]


def save_submission_preview(csv_path, path, tests, count):
    """The first test images beside their mattes, decoded from the CSV, and their cut-outs.

    tests: list of TestImage, in the order of the rows. An image that cannot be read is left blank.
    """
    cells = []
    for (name, text), test in islice(zip(read_rows(csv_path), tests), count):
        mask = decode_mask(text)
        height, width = mask.shape
        try:
            image = open_image(test.path, "RGB")
        except UserError:
            image = Image.new("RGB", (width, height), "white")
        matte = Image.fromarray(mask)
        cells.append([(image, name), (matte, f"{width}x{height}, {mask.min()}..{mask.max()}"),
                      (on_a_board(image, matte), "cut-out")])
    save_grid(cells, path)


def save_grid(cells, path, head=None):
    """Write rows of (picture, caption) as one PNG; each picture is fitted into a square cell.

    head: an image to stand above them.
    """
    columns = max(len(row) for row in cells)
    above = head.height if head else 0
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP,
                              above + len(cells) * (CELL + LABEL + GAP) + GAP), "white")
    if head:
        sheet.paste(head, (GAP, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for y, row in enumerate(cells):
        for x, (picture, caption) in enumerate(row):
            left, top = GAP + x * (CELL + GAP), above + GAP + y * (CELL + LABEL + GAP)
            picture = ImageOps.contain(picture.convert("RGB"), (CELL, CELL))
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + LABEL))
            draw.text((left, top), shortened(caption, font, CELL), fill="black", font=font)
    save_png_at(path, sheet)


def score_panel(scores, width):
    """An image of that width: the mean errors of all images, and how many have which MSE, in
    twenty bins of equal ratio.

    scores: dicts with "mse" and "sad".
    """
    panel = Image.new("RGB", (width, HEAD), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(14)
    errors = np.array([each["mse"] for each in scores])
    mse, sad = errors.mean(), np.mean([each["sad"] for each in scores])
    draw.text((0, GAP), f"{len(scores)} validation images: mean MSE {mse:.4f}, SAD {sad:.1f}. "
              "Below, how many have which MSE:", fill="black", font=font)
    logs = np.log10(errors.clip(1e-6))
    counts, edges = np.histogram(logs, BINS, (logs.min() - 0.05, logs.max() + 0.05))
    step, bottom = width // BINS, HEAD - 22
    for number, count in enumerate(counts):
        if count:
            top = bottom - round((bottom - 32) * count / counts.max())
            draw.rectangle((number * step, top, (number + 1) * step - 3, bottom), fill=COLOURS[0])
    for number in range(0, BINS, 5):
        draw.text((number * step, bottom + 4), f"{10**edges[number]:.2g}", fill="black", font=font)
    return panel


def shortened(text, font, width):
    """The text, cut with an ellipsis where it is wider than `width` pixels"""
    while font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def save_training_preview(metrics, path):
    """Curves by epoch: losses, MSEs, learning rate. metrics: what `train` returns."""
    panels = [("loss", ("train_loss", "val_loss")), ("MSE", ("train_mse", "val_mse")),
              ("learning rate", ("lr",))]
    sheet = Image.new("RGB", (PLOT[0], len(panels) * PLOT[1]), "white")
    for number, (title, names) in enumerate(panels):
        curves = {name: [row[name] for row in metrics] for name in names}
        sheet.paste(curve_panel(title, curves), (0, number * PLOT[1]))
    save_png_at(path, sheet)


def curve_panel(title, curves):
    """An image of PLOT size: values from 0 up over epochs, one coloured line per curve, its last
    value beside its name."""
    panel = Image.new("RGB", PLOT, "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    left, top, right, bottom = 74, 40, PLOT[0] - 16, PLOT[1] - 34
    highest = max(max(values) for values in curves.values()) or 1.0
    epochs = len(next(iter(curves.values())))
    draw.rectangle((left, top, right, bottom), outline="#999999")
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        draw.text((left - 8, y), f"{share * highest:.2g}", fill="black", font=font, anchor="rm")
    for epoch in sorted({1, (epochs + 1) // 2, epochs}):
        x = left + (right - left) * (epoch - 1) / max(1, epochs - 1)
        draw.text((x, bottom + 6), str(epoch), fill="black", font=font, anchor="ma")
    draw.text(((left + right) / 2, bottom + 18), "epoch", fill="black", font=font, anchor="ma")
    draw.text((left, 12), title, fill="black", font=font)
    caption = right
    for colour, (name, values) in reversed(list(zip(COLOURS, curves.items()))):
        points = [(left + (right - left) * i / max(1, epochs - 1),
                   bottom - value / highest * (bottom - top)) for i, value in enumerate(values)]
        draw.line(points, fill=colour, width=2)
        for x, y in points if epochs < 40 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        label = f"{name} {values[-1]:.4g}"
        draw.text((caption, 12), label, fill=colour, font=font, anchor="ra")
        caption -= font.getlength(label) + 20
    return panel


def save_png_at(path, sheet):
    with replacing(path) as part:
        sheet.save(part, format="PNG")
