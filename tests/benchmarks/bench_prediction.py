"""Prediction from file to CSV row: the notebook's own loop against ours, same weights and images.

    python tests/benchmarks/bench_prediction.py --checkpoint u2netp.pth --test-root FOLDER \\
        [--answers FOLDER]

Four systems, each in processes of its own (memory settings are the process's), in turns: the
notebook's loop at 1024 with its calibration; ours with the same size and calibration; ours with
the checkpoint's recipe, or the default one; the same by a stranger's loop, `load(path)` and an
`alpha(image)` after the other. Seconds an image, peak memory for 10 and 100 images, the largest
difference between the masks of the first two, and, given the true alphas, the MSE.
"""

import argparse
import base64
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from notebook import predicted  # noqa: E402
from src.runtime.hardware import machine_for, prepare_machine  # noqa: E402
from src.runtime.stopping import StopWatch  # noqa: E402
from src.inputs.listing import list_tests  # noqa: E402
from src.data.pixels import to_uint8  # noqa: E402
from src.network.checkpoint import build_network, read_checkpoint  # noqa: E402
from src.prediction.predictor import load, make_predictor  # noqa: E402
from src.prediction.recipe import Recipe, read_recipe  # noqa: E402
from src.results.submission import (  # noqa: E402
    HEADER, decode_mask, encode_mask, predict_tests, read_rows,
)

TURNS = 3
AS_NOTEBOOK = Recipe(1024, refine=False, calibration="notebook")


def notebook(model, tests, csv):
    """The notebook's prediction cell, re-told."""
    model.eval()
    rows = []
    for _, path in tests:
        buffer = io.BytesIO()
        mask = predicted(model, Image.open(path).convert("RGB"))
        Image.fromarray(mask).save(buffer, format="PNG")
        rows.append({"filename": path.name.split(".")[0],
                     "image_utf": base64.b64encode(buffer.getvalue()).decode()})
    pd.DataFrame(rows).to_csv(csv, index=False)


def ours(model, tests, csv, recipe):
    """What main.py does between the checkpoint and the finished submission.csv."""
    machine = machine_for(torch.device("cpu"), "off", None)
    prepare_machine(0)
    predict_tests(make_predictor(model, recipe, machine), tests, (), csv.parent, csv, StopWatch())


def one_by_one(checkpoint, tests, csv):
    """What a stranger's program would do."""
    predictor, rows = load(checkpoint, "cpu"), []
    for name, path in tests:
        with Image.open(path) as image:
            rows.append((name, encode_mask(to_uint8(predictor.alpha(image)))))
    pd.DataFrame(rows, columns=HEADER).to_csv(csv, index=False)


SYSTEMS = ("notebook", "ours at 1024", "our recipe", "alpha(image)")


def measure(system, checkpoint, tests, csv):
    """{"seconds": an image, "peak": MB} of one system in this process, workers included."""
    content = read_checkpoint(checkpoint)
    model = build_network(content)
    began = time.perf_counter()
    if system == "notebook":
        notebook(model, tests, csv)
    elif system == "ours at 1024":
        ours(model, tests, csv, AS_NOTEBOOK)
    elif system == "alpha(image)":
        one_by_one(checkpoint, tests, csv)
    else:
        ours(model, tests, csv, read_recipe(content, 320))
    peak = sum(resource.getrusage(who).ru_maxrss for who in
               (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": (time.perf_counter() - began) / len(tests), "peak": peak / 1024}


def masks_of(csv):
    return {name: decode_mask(text) for name, text in read_rows(csv)}


def mean_squared_error(masks, answers):
    """Of alpha in [0,1]; the answers are files named like the images."""
    return np.mean([
        np.square(mask / 255 - np.asarray(Image.open(next(answers.glob(f"{name}.*"))).convert("L"))
                  / 255).mean() for name, mask in masks.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--test-root", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--count", type=int, default=10, help="images (default: 10)")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tests = list_tests(arguments.test_root)
    tests = (tests * arguments.count)[:arguments.count]
    if arguments.system:
        if len(set(tests)) < len(tests):  # 100 images of 20: links, since names must differ
            folder = arguments.csv.parent / f"{arguments.count} images"
            folder.mkdir(exist_ok=True)
            for number, (_, path) in enumerate(tests):
                link = folder / f"{number}{path.suffix}"
                if not link.exists():
                    link.symlink_to(path.resolve())
            tests = list_tests(folder)
        print(json.dumps(measure(arguments.system, arguments.checkpoint, tests, arguments.csv)))
        return

    with tempfile.TemporaryDirectory() as folder:
        def run(system, count, turn):
            csv = Path(folder) / f"{system} {count} {turn}.csv"
            done = subprocess.run(
                [sys.executable, __file__, "--checkpoint", arguments.checkpoint, "--test-root",
                 arguments.test_root, "--count", str(count), "--system", system, "--csv", csv],
                check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(done.stdout.splitlines()[-1])

        count = arguments.count
        turns = [{s: run(s, count, turn) for s in SYSTEMS} for turn in range(TURNS)]
        seconds = {s: statistics.median(turn[s]["seconds"] for turn in turns) for s in SYSTEMS}
        masks = {s: masks_of(Path(folder) / f"{s} {count} 0.csv") for s in SYSTEMS}
        for system in SYSTEMS:
            each = " ".join(f"{turn[system]['seconds']:.3f}" for turn in turns)
            line = f"{system:13} {each} s/image  peak {turns[0][system]['peak']:.0f} MB"
            if system == "our recipe":
                line += f" ({run(system, 10 * count, 0)['peak']:.0f} MB for {10 * count} images)"
            if arguments.answers:
                line += f"  MSE {mean_squared_error(masks[system], arguments.answers):.5f}"
            print(line)
        for system in SYSTEMS[1:]:
            print(f"{system}: {seconds['notebook'] / seconds[system]:.2f} times as fast")
        difference = max(np.abs(masks["notebook"][n].astype(int) - masks["ours at 1024"][n]).max()
                         for n in masks["notebook"])
        print(f"largest difference of the masks at 1024: {difference} of 255")


if __name__ == "__main__":
    main()
