"""Training speed: the notebook's own loop against ours, samples a second.

    python tests/benchmarks/bench_training.py --train-csv CSV [--weights u2netp.pth]

Both train U2-NetP in float32 from the same weights on the same rows, batches of 4 at 320. Each
measurement runs in a process of its own, in turns, because the memory settings are the process's.
"""

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as TF

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.augment import JointAugment  # noqa: E402
from src.checkpoint import read_checkpoint  # noqa: E402
from src.config import Settings  # noqa: E402
from src.data import ShuffledEpochs, TrainingSet, make_loader  # noqa: E402
from src.pairs import read_pairs  # noqa: E402
from src.hardware import prepare_machine, worker_count  # noqa: E402
from src.training import Run, train_epoch  # noqa: E402
from src.u2netp import U2NETP  # noqa: E402

SIZE, BATCH, WARM_UP, STEPS, TURNS = 320, 4, 3, 8, 3


class NotebookSet(Dataset):
    """The notebook's CsvAlphaDataset with its JointAugment, re-told."""

    def __init__(self, csv):
        self.rows, self.folders = pd.read_csv(csv), [csv.parent, *csv.resolve().parents]
        self.image_transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self):
        return len(self.rows)

    def find(self, name):
        return next(folder / name for folder in self.folders if (folder / name).is_file())

    def __getitem__(self, index):
        row = self.rows.iloc[index]
        image = Image.open(self.find(row["image_path"])).convert("RGB")
        mask = Image.open(self.find(row["alpha_path"])).convert("L")
        window = transforms.RandomCrop.get_params(image, (SIZE, SIZE))
        image, mask = TF.crop(image, *window), TF.crop(mask, *window)
        if random.random() < 0.5:
            image, mask = TF.hflip(image), TF.hflip(mask)
        if random.random() < 0.3:
            angle = random.uniform(-10, 10)
            image, mask = (TF.rotate(x, angle, transforms.InterpolationMode.BILINEAR, fill=0)
                           for x in (image, mask))
        if random.random() < 0.7:
            for adjust in (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation):
                image = adjust(image, random.uniform(0.85, 1.15))
        return {"img": self.image_transform(image), "mask": transforms.ToTensor()(mask)}


def notebook_rate(csv, model):
    """Samples a second of the notebook's train_epoch, re-told, with its loader (no workers)."""
    loader = DataLoader(NotebookSet(csv), batch_size=BATCH, shuffle=True, num_workers=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    model.train()
    total_loss = total_mse = 0.0
    for number, batch in enumerate(loader):
        if number == WARM_UP:
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        outputs = model(batch["img"])
        loss = 0.0
        for output in outputs:
            loss += F.mse_loss(output, batch["mask"]) + 0.5 * F.l1_loss(output, batch["mask"])
        loss = loss / len(outputs)
        if not torch.isfinite(loss):
            raise RuntimeError("Non-finite loss")
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * BATCH
        total_mse += F.mse_loss(outputs[0].detach(), batch["mask"]).item() * BATCH
        if number == WARM_UP + STEPS - 1:
            return BATCH * STEPS / (time.perf_counter() - began)


def our_rate(csv, model):
    """Samples a second of our train_epoch with its defaults; the clock starts after the warm-up."""
    settings = dataclasses.replace(Settings(), train_size=SIZE, train_batch=BATCH)
    prepare_machine(settings.seed)
    pairs, device = read_pairs(csv), torch.device("cpu")
    data = TrainingSet(pairs, JointAugment(SIZE, settings.crop_scale), settings.seed)
    loader = make_loader(data, BATCH, worker_count(None), device,
                         ShuffledEpochs(len(pairs), settings.seed))
    run, times = Run(model, settings, device, len(loader)), []

    def note_time():
        times.append(time.perf_counter())
        return [len(times) == WARM_UP + STEPS, False]

    train_epoch(run, loader, note_time, save=lambda: None, save_seconds=3600)
    return BATCH * STEPS / (times[-1] - times[WARM_UP - 1])


SYSTEMS = {"notebook": notebook_rate, "ours": our_rate}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train-csv", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: random weights of one seed")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        torch.manual_seed(0)
        model = U2NETP()
        if arguments.weights:
            model.load_state_dict(read_checkpoint(arguments.weights).model_state)
        print(json.dumps(SYSTEMS[arguments.system](arguments.train_csv, model)))
        return
    rates = {name: [] for name in SYSTEMS}
    for _ in range(TURNS):
        for name in SYSTEMS:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--system", name],
                                  check=True, stdout=subprocess.PIPE, text=True)
            rates[name].append(json.loads(done.stdout))
    for name, values in rates.items():
        print(f"{name:9} " + " ".join(f"{value:.3f}" for value in values) + "  samples/s")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"ratio of the medians: {medians['ours'] / medians['notebook']:.2f}")


if __name__ == "__main__":
    main()
