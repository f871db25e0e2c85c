"""The CSV contract, decoding, datasets, loaders."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from src.console import UserError

COLUMNS = ("image_path", "alpha_path")
ROWS_TO_PLACE = 20  # rows that are tried to learn which folder a CSV's paths are relative to


@dataclass(frozen=True)
class Pairs:
    """Images and their alphas, as two string arrays of one length (arrays, so that loader
    workers share them instead of copying a Python object per row)."""

    images: np.ndarray
    alphas: np.ndarray

    def __len__(self):
        return len(self.images)

    def first(self, count):
        """The first `count` pairs"""
        return Pairs(self.images[:count], self.alphas[:count])


def read_pairs(csv_path, limit=None):
    """`Pairs` of a CSV with the columns image_path and alpha_path, its first `limit` rows.

    Paths may be absolute, or relative to the working folder, to the CSV's folder, or to a folder
    above it. Raises UserError when a column, all rows, or all files of a column are missing.
    """
    table = pd.read_csv(csv_path, nrows=limit)
    for column in COLUMNS:
        if column not in table.columns:
            raise UserError(
                f"{csv_path}: no column {column}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError(f"{csv_path}: has no rows")
    return Pairs(*(placed_paths(table[column], csv_path) for column in COLUMNS))


def placed_paths(column, csv_path):
    """A column's paths as strings that can be opened from here, without touching each file."""
    bases = [Path.cwd(), *Path(csv_path).resolve().parents]
    sample = column.astype(str).head(ROWS_TO_PLACE)
    for base in bases:
        if any((base / name).is_file() for name in sample):
            return np.array([os.path.join(base, name) for name in column.astype(str)])
    raise UserError(
        f"{csv_path}, column {column.name}: {sample.iloc[0]} is neither in the working folder "
        f"({Path.cwd()}) nor in {bases[1]} or a folder above it"
    )


def open_image(path, mode):
    """The decoded image in the given Pillow mode; UserError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def open_pair(image_path, alpha_path):
    """(RGB image, L alpha) of one size.

    An alpha of another size but the same shape is resized; another shape is refused.
    """
    image, alpha = open_image(image_path, "RGB"), open_image(alpha_path, "L")
    if image.size != alpha.size:
        ratio = (image.width * alpha.height) / (image.height * alpha.width)
        if abs(ratio - 1) > 0.02:
            raise UserError(
                f"{alpha_path}: is {alpha.width}x{alpha.height}, its image {image_path} is "
                f"{image.width}x{image.height}; they must have the same shape"
            )
        alpha = alpha.resize(image.size, Image.Resampling.BILINEAR)
    return image, alpha


def image_tensor(image):
    """RGB image -> float32 [3,H,W] in [-1,1]"""
    return TF.to_tensor(image).sub_(0.5).div_(0.5)


def alpha_tensor(alpha):
    """L image -> float32 [1,H,W] in [0,1]"""
    return TF.to_tensor(alpha)


def resized(image, size):
    """The image stretched to size x size, as the network sees it."""
    return TF.resize(image, [size, size], InterpolationMode.BILINEAR)


class TrainingSet(Dataset):
    """Augmented pairs. An item's key is (epoch, index), and all its chance is drawn from (seed,
    epoch, index): which worker makes it, and what it made before, does not matter."""

    def __init__(self, pairs, augment, seed):
        self.pairs, self.augment, self.seed = pairs, augment, seed

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key
        path = str(self.pairs.images[index])
        image, alpha = open_pair(path, str(self.pairs.alphas[index]))
        image, alpha = self.augment(image, alpha, np.random.default_rng([self.seed, epoch, index]))
        return {"img": image_tensor(image), "mask": alpha_tensor(alpha), "path": path}


class ValidationSet(Dataset):
    """Whole pairs, resized to size x size."""

    def __init__(self, pairs, size):
        self.pairs, self.size = pairs, size

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        path = str(self.pairs.images[index])
        image, alpha = open_pair(path, str(self.pairs.alphas[index]))
        return {
            "img": image_tensor(resized(image, self.size)),
            "mask": alpha_tensor(resized(alpha, self.size)),
            "path": path,
        }


class TestSet(Dataset):
    """Test images, resized to size x size, with what their masks need: name and (width, height)."""

    __test__ = False  # a data set, not a test for pytest to collect

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        image = open_image(path, "RGB")
        return {"img": image_tensor(resized(image, self.size)), "path": path.name,
                "size": image.size}


class ShuffledEpochs(Sampler):
    """The keys (epoch, index) of one epoch in an order that only seed and epoch decide."""

    def __init__(self, length, seed):
        self.length, self.seed, self.epoch = length, seed, 1

    def __len__(self):
        return self.length

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


def make_loader(dataset, batch_size, workers, device, sampler=None):
    """A DataLoader in the dataset's order, or the sampler's; pinned where there is a GPU."""
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )
