"""The notebook that this project grew from, re-told: what the benchmarks measure against."""

import random

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as TF

BATCH = 4
NORMALISE = transforms.Normalize([0.5] * 3, [0.5] * 3)


class NotebookPairs(Dataset):
    """Its CsvAlphaDataset with its JointAugment: crops of `size` pixels, unscaled."""

    def __init__(self, csv, size):
        self.rows, self.folders = pd.read_csv(csv), [csv.parent, *csv.resolve().parents]
        self.size = size
        self.image_transform = transforms.Compose([transforms.ToTensor(), NORMALISE])

    def __len__(self):
        return len(self.rows)

    def find(self, name):
        return next(folder / name for folder in self.folders if (folder / name).is_file())

    def __getitem__(self, index):
        row = self.rows.iloc[index]
        image = Image.open(self.find(row["image_path"])).convert("RGB")
        mask = Image.open(self.find(row["alpha_path"])).convert("L")
        window = transforms.RandomCrop.get_params(image, (self.size, self.size))
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


def training_steps(model, csv, size, device="cpu", batch_size=BATCH):
    """Its train_epoch over and over, with its loader (no workers); yields after every step.

    model: on the device already.
    """
    loader = DataLoader(NotebookPairs(csv, size), batch_size=batch_size, shuffle=True,
                        num_workers=0, pin_memory=device != "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    total_loss = total_mse = 0.0
    while True:
        model.train()
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            outputs = model(batch["img"].to(device, non_blocking=True))
            masks = batch["mask"].to(device, non_blocking=True)
            loss = 0.0
            for output in outputs:
                loss += F.mse_loss(output, masks) + 0.5 * F.l1_loss(output, masks)
            loss = loss / len(outputs)
            if not torch.isfinite(loss):
                raise RuntimeError("Non-finite loss")
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(masks)
            total_mse += F.mse_loss(outputs[0].detach(), masks).item() * len(masks)
            yield


@torch.no_grad()
def predicted(model, image, device="cpu"):
    """Its prediction at 1024 with its calibration: RGB image -> uint8 [1024,1024], truncated."""
    resize = transforms.Resize((1024, 1024), transforms.InterpolationMode.BILINEAR)
    batch = NORMALISE(transforms.ToTensor()(resize(image)))[None]
    alpha = model(batch.to(device))[0][0, 0].cpu().numpy().astype(np.float32)
    level = np.percentile(alpha, 1)
    alpha = np.clip((alpha - level) / (1.0 - level + 1e-6), 0, 1) ** 1.3
    return (alpha * 255).astype(np.uint8)
