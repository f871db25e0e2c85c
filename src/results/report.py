"""Scores, report files, and the end of the log."""

import os
import time
from functools import partial

import numpy as np

from src.config import PICTURES
from src.runtime.console import log
from src.runtime.distributed import all_gather
from src.runtime.stopping import STARTED
from src.runtime.tables import write_table
from src.results.preview import save_submission_preview, save_validation_preview

SCORED = 500  # validation images that the final score looks at
PROBLEMS = "problems.csv"


def score(predictor, val_pairs, stop):
    """For each of the first validation images a dict: image_path, MSE in 0..1, SAD in thousands of
    pixels (Rhemann et al., CVPR 2009), and its kind of backdrop if the CSV tells it."""
    if val_pairs is None:
        return []
    pairs = val_pairs.first(SCORED)
    scores = all_gather([
        {"image_path": path, "mse": float(np.square(alpha - truth).mean(dtype=np.float64)),
         "sad": float(np.abs(alpha - truth).sum(dtype=np.float64) / 1000)}
        for path, _, alpha, truth in stop.guarded(predictor.validation(pairs))])
    if pairs.backdrops is None:
        return scores
    return [{**each, "backdrop": kind} for each, kind in zip(scores, pairs.backdrops.tolist())]


def shown_pairs(predictor, val_pairs, scores, count, stop):
    """Rows for save_validation_preview: `count` validation images, evenly from the worst to the
    best."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index]["mse"])
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    if not len(places):
        return []
    mask = np.isin(np.arange(len(val_pairs)), [order[place] for place in places])
    rows = all_gather([
        (image, alpha, truth, os.path.basename(path)) for path, image, alpha, truth in
        stop.guarded(predictor.validation(val_pairs.where(mask)))])
    return sorted(rows, key=lambda row: -np.square(row[1] - row[2]).mean())


def write_report(out, count, scores, shown, tests, problems):
    """validation.csv, problems.csv and, with `count` images in each, the pictures in preview/"""
    write_table(out / PROBLEMS, problems, ["filename", "reason"])
    write_table(out / "validation.csv", sorted(scores, key=lambda each: -each["mse"]))
    pictures = [("validation.png", save_validation_preview, shown),
                ("submission.png",
                 partial(save_submission_preview, tests=tests, count=count),
                 out / "submission.csv")]
    for name, paint, content in pictures if count else ():
        if not content:
            continue
        try:
            paint(content, path=out / "preview" / name)
        except Exception as error:  # whatever a picture fails with, the results are there
            log(f"preview/{name} was not drawn: {error}")


def summarise(recipe, scores, images_per_second, problems, notes, out, is_complete):
    """The end of the log: how good, how fast, the files, the problems; the first of them, or, where
    no table holds them, all."""
    log(f"Done in {time.time() - STARTED:.0f} s; {recipe}")
    if scores:
        mse, sad = (np.mean([each[name] for each in scores]) for name in ("mse", "sad"))
        log(f"  validation MSE {mse:.6f} in 0..1, {mse * 255**2:.1f} in 0..255, SAD {sad:.2f}, "
            f"over {len(scores)} images of their own size")
    log(f"  predicted {images_per_second:.2f} images/s")
    for kind in PICTURES:
        count = sum(path.is_file() and path.stat().st_mtime >= STARTED
                    for path in (out / kind).rglob("*.png"))
        if count:
            log(f"  wrote {count} pictures into {out / kind}")
    for path in sorted(out.glob("*.*")) + sorted(out.glob("preview/*.png")):
        if path.stat().st_mtime >= STARTED:
            log(f"  wrote {path} ({path.stat().st_size:,} bytes)")
    most = None if is_complete else 20
    for name, note in notes[:most]:
        log(f"  NOTE on {name}: it {note}")
    for name, reason in problems[:most]:
        log(f"  PROBLEM with {name}: {reason}")
    if problems:
        log(f"Problems: {len(problems)}" + ("" if is_complete else
            f", all in {out / PROBLEMS}; an image that cannot be read has a blank mask in the "
            "submission, and no pictures"))
