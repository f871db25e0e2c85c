"""Training speed: the notebook's own loop against ours, samples a second.

    python tests/benchmarks/bench_training.py --train-csv CSV [--weights u2netp.pth]

Both train one network (--network) from the same weights on the same rows, batches of 4 at 320: the
notebook in float32, ours by its defaults and once more in float32. Each measurement runs in a
process of its own, in turns, because the memory settings are the process's.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from notebook import BATCH, training_steps  # noqa: E402
from src.config import Settings  # noqa: E402
from src.runtime.hardware import machine_for, prepare_machine  # noqa: E402
from src.data.augment import JointAugment  # noqa: E402
from src.data.backdrops import PhotographPool  # noqa: E402
from src.data.cache import open_cache  # noqa: E402
from src.data.datasets import ShuffledEpochs, TrainingSet  # noqa: E402
from src.data.loading import make_loader  # noqa: E402
from src.data.pairs import read_pairs  # noqa: E402
from src.network.checkpoint import build_network, read_checkpoint  # noqa: E402
from src.network.u2net import NETWORKS  # noqa: E402
from src.training.loop import train_epoch  # noqa: E402
from src.training.state import Run, decided  # noqa: E402

SIZE, WARM_UP, STEPS, TURNS = 320, 3, 8, 3


def notebook_rate(csv, model):
    """Samples a second of the notebook's train_epoch, re-told, with its loader (no workers)."""
    times = [time.perf_counter() for _, _ in zip(
        range(WARM_UP + STEPS), training_steps(model, csv, SIZE))]
    return BATCH * STEPS / (times[-1] - times[WARM_UP - 1])


def our_rate(csv, model, amp="auto"):
    """Samples a second of our train_epoch with its defaults; the clock starts after the warm-up."""
    machine = machine_for(torch.device("cpu"), amp, None)
    settings = decided(
        dataclasses.replace(Settings(), train_size=SIZE, train_batch=BATCH), machine)
    prepare_machine(settings.seed)
    pairs = read_pairs(csv, cache=open_cache(None, False))
    data = TrainingSet(pairs, JointAugment(SIZE, settings.crop_scale), settings.seed)
    loader = make_loader(data, BATCH, machine,
                         ShuffledEpochs(len(pairs), settings.seed))
    run, times = Run(model, settings, machine, len(loader), frozen_norms=False), []

    def note_time():
        times.append(time.perf_counter())
        return len(times) == WARM_UP + STEPS

    photographs = PhotographPool((), settings.seed, SIZE, machine.device)
    train_epoch(run, loader, photographs, [], note_time)
    return BATCH * STEPS / (times[-1] - times[WARM_UP - 1])


SYSTEMS = {"notebook": notebook_rate, "ours": our_rate,
           "ours, float32": partial(our_rate, amp="off")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train-csv", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: random weights of one seed")
    parser.add_argument("--network", choices=NETWORKS, default="u2netp")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        torch.manual_seed(0)
        model = (build_network(read_checkpoint(arguments.weights)) if arguments.weights
                 else NETWORKS[arguments.network]())
        print(json.dumps(SYSTEMS[arguments.system](arguments.train_csv, model)))
        return
    rates = {name: [] for name in SYSTEMS}
    for _ in range(TURNS):
        for name in SYSTEMS:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--system", name],
                                  check=True, stdout=subprocess.PIPE, text=True)
            rates[name].append(json.loads(done.stdout))
    for name, values in rates.items():
        ratio = statistics.median(values) / statistics.median(rates["notebook"])
        print(f"{name:14} " + " ".join(f"{value:.3f}" for value in values)
              + f"  samples/s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
