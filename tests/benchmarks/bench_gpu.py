"""Everything that only a graphics card runs, checked and measured on one; a line for each figure.

    python tests/benchmarks/bench_gpu.py [--device cuda]

Needs the checkout and the kernel's own packages. First speed: training against the notebook's own
loop at batches of 4, 16 and 32 for both networks, prediction against the notebook's at 1024. Then
the smoke: training of the demonstration set in each precision, killed and resumed, validation,
calibration, prediction; its masks against those that the CPU predicts with the same weights.
--device cpu tries the check itself where there is no card.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from notebook import predicted, training_steps  # noqa: E402
from src.config import Settings  # noqa: E402
from src.runtime.hardware import (  # noqa: E402
    STEPS_PER_CHECK, choose_device, machine_for, prepare_machine,
)
from src.runtime.stopping import StopWatch  # noqa: E402
from src.inputs.listing import TestImage, list_images  # noqa: E402
from src.data.augment import JointAugment  # noqa: E402
from src.data.backdrops import PhotographPool  # noqa: E402
from src.data.cache import open_cache  # noqa: E402
from src.data.datasets import ShuffledEpochs, TrainingSet  # noqa: E402
from src.data.demo import demo_places, make_demo  # noqa: E402
from src.data.images import open_image  # noqa: E402
from src.data.loading import make_loader  # noqa: E402
from src.data.pairs import read_pairs  # noqa: E402
from src.network.u2net import NETWORKS, U2NETP  # noqa: E402
from src.training.loop import train_epoch  # noqa: E402
from src.training.state import Run, decided, fitting_batch  # noqa: E402
from src.prediction.predictor import make_predictor  # noqa: E402
from src.prediction.recipe import Recipe  # noqa: E402
from src.results.submission import decode_mask, predict_tests, read_rows  # noqa: E402

SCRIPT = ROOT / "kernel" / "main.py"
SIZE, CHECKS = 320, 4  # pixels; measured stretches of STEPS_PER_CHECK steps, the first a warm-up
NOTEBOOK_STEPS = 6  # of its loop, which a card waits for; the first two are a warm-up
PREDICTIONS = 32  # images


# ---------------------------------------------------------------- smoke


def kernel(folder, *flags):
    """The bundled script with these flags in a folder, as a process."""
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, flags)], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process):
    """All that the process said; RuntimeError with it when it failed."""
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(text)
    return text


def train_killed_and_resumed(folder, device, amp):
    """What the second half of a training said that was killed after its first epoch. The results
    are in folder/out."""
    flags = ("--mode", "train", "--device", device, "--amp", amp, "--epochs", 2, "--train-size",
             128, "--gpus", 1, "--out", "out")
    process = kernel(folder, *flags)
    for line in process.stdout:
        if line.startswith("Epoch 1:"):
            break
    process.kill()
    process.communicate()
    return finished(kernel(folder, *flags))


def mask_difference(folder, device):
    """Largest difference, in levels of 255, of the device's masks from the CPU's."""
    masks = []
    for name in ("cpu", device):
        finished(kernel(folder, "--mode", "predict", "--device", name, "--gpus", 1, "--test-root",
                        "out/demo/orig_1024", "--checkpoint", "out/u2netp_best.pth", "--out",
                        f"masks-{name}"))
        rows = read_rows(folder / f"masks-{name}" / "submission.csv")
        masks.append([decode_mask(text).astype(int) for _, text in rows])
    return max(int(np.abs(one - other).max()) for one, other in zip(*masks))


# ---------------------------------------------------------------- speed


def our_training(csv, device, batch, network):
    """(samples/s, share of the time that waits for data) of our train_epoch, automatic precision,
    images cached"""
    machine, model = machine_for(device, "auto", None), NETWORKS[network]()
    settings = decided(
        dataclasses.replace(Settings(), train_size=SIZE, train_batch=batch), machine)
    pairs = read_pairs(csv, cache=open_cache(None, False))
    pairs = pairs.where(
        np.resize(np.arange(len(pairs)), CHECKS * STEPS_PER_CHECK * settings.train_batch))
    data = TrainingSet(pairs, JointAugment(SIZE, settings.crop_scale), settings.seed)
    loader = make_loader(data, settings.train_batch, machine,
                         ShuffledEpochs(len(pairs), settings.seed))
    run = Run(model, settings, machine, len(loader), frozen_norms=True)
    waits, marks = [], {}  # steps done: the time, when all work before it is

    def note_time():
        marks[len(waits)] = time.perf_counter()
        return False

    train_epoch(run, loader, PhotographPool((), 0, SIZE, device), waits, note_time)
    seconds = marks[len(waits)] - marks[STEPS_PER_CHECK]
    measured = waits[STEPS_PER_CHECK:]
    return settings.train_batch * len(measured) / seconds, sum(measured) / seconds


def notebook_training(csv, device, batch, network):
    """samples/s of the notebook's loop, float32"""
    model, table = NETWORKS[network]().to(device), pd.read_csv(csv)
    repeated = csv.with_name("repeated.csv")  # there are fewer images than a large batch has
    table.loc[np.resize(table.index, NOTEBOOK_STEPS * batch)].to_csv(repeated, index=False)
    marks = [time.perf_counter() for _, _ in zip(
        range(NOTEBOOK_STEPS), training_steps(model, repeated, SIZE, str(device), batch))]
    return batch * (NOTEBOOK_STEPS - 2) / (marks[-1] - marks[1])


def our_prediction(folder, device, network="u2netp"):
    """images/s from file to mask: 320, refined"""
    machine = machine_for(device, "auto", None)
    paths = list_images(folder)
    tests = [TestImage(str(i), paths[i % len(paths)]) for i in range(PREDICTIONS)]
    predictor = make_predictor(NETWORKS[network](), Recipe(SIZE), machine)
    predict_tests(predictor, tests[:4], (), folder, None, StopWatch())
    began = time.perf_counter()
    predict_tests(predictor, tests, (), folder, None, StopWatch())
    return PREDICTIONS / (time.perf_counter() - began)


def notebook_prediction(folder, device):
    """images/s from file to mask: 1024, the notebook's calibration"""
    model, paths = U2NETP().to(device).eval(), list_images(folder)
    predicted(model, open_image(paths[0], "RGB"), device)
    began = time.perf_counter()
    for index in range(len(paths)):
        predicted(model, open_image(paths[index], "RGB"), device)
    return len(paths) / (time.perf_counter() - began)


def say(name, value):
    print(f"{name:<58} {value}", flush=True)


def measure(device, folder):
    """Print a line for each figure of speed and memory."""
    make_demo(folder, seed=0)
    places = demo_places(folder)
    on_card = device.type == "cuda"
    say(f"crops of {SIZE} in a step that the script takes",
        fitting_batch(SIZE, machine_for(device, "auto", None)))
    for network, batch in product(NETWORKS, (4, 16, 32)) if on_card else [("u2netp", 2)]:
        what = f"{network}, training, batch {batch}"
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        rate, waiting = our_training(places["train_csv"], device, batch, network)
        say(what, f"{rate:.1f} samples/s")
        say(f"{what}, share that waits for data", f"{waiting:.0%}")
        if on_card:
            peak = torch.cuda.max_memory_allocated() / 2**30
            say(f"{what}, peak memory", f"{peak:.2f} GiB")
        theirs = notebook_training(places["train_csv"], device, batch, network)
        say(f"{what}, the notebook's loop", f"{theirs:.1f} samples/s")
        say(f"{what}, ratio", f"{rate / theirs:.2f}")
    if on_card:
        rate = our_prediction(places["test_root"], device, "u2net")
        say("u2net, prediction at 320, mask of 1024", f"{rate:.2f} images/s")
    rate, theirs = (predict(places["test_root"], device)
                    for predict in (our_prediction, notebook_prediction))
    say("prediction at 320, mask of 1024", f"{rate:.2f} images/s")
    say("prediction at 1024, the notebook's loop", f"{theirs:.2f} images/s")
    say("prediction, ratio", f"{rate / theirs:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    name = parser.parse_args().device
    prepare_machine(0)
    device = choose_device(name)
    say("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    with tempfile.TemporaryDirectory() as folder:
        measure(device, Path(folder))
    for amp in ("fp16", "bf16") if device.type == "cuda" else ("bf16",):
        with tempfile.TemporaryDirectory() as folder:
            text = train_killed_and_resumed(Path(folder), name, amp)
            resumed = "Continuing out/last.pth" in text and "Epoch 2:" in text
            say(f"smoke, {amp}: killed, resumed, validated, predicted",
                "ok" if resumed else "FAILED")
            difference = mask_difference(Path(folder), name)
            say(f"smoke, {amp}: largest difference of masks from the CPU's", f"{difference} of 255")


if __name__ == "__main__":
    main()
