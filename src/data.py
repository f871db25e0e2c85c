"""The CSV contract, decoding, datasets, loaders."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from src.backdrops import recomposed
from src.console import UserError
from src.distributed import shard, world_size

COLUMNS = ("image_path", "alpha_path")
ROWS_TO_PLACE = 20  # rows that are tried to learn which folder a CSV's paths are relative to


@dataclass(frozen=True)
class Pairs:
    """Images and their alphas: two arrays of encoded paths, of one length.

    An empty alpha path means the alpha channel of the image itself, an RGBA cut-out as in MAGICK.
    photographs: paths of backdrops for such cut-outs, beside the drawn ones. Arrays, because
    loader workers share them, where a list would be copied object by object.
    """

    images: np.ndarray
    alphas: np.ndarray
    photographs: tuple = ()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """(image path, alpha path or '')"""
        return os.fsdecode(self.images[index]), os.fsdecode(self.alphas[index])

    def first(self, count):
        """The first `count` pairs"""
        return replace(self, images=self.images[:count], alphas=self.alphas[:count])


def read_pairs(csv_path, limit=None, photographs=()):
    """`Pairs` of a CSV with the column image_path, its first `limit` rows.

    The alpha is in alpha_path; where that column is missing, empty or the image itself, it is the
    image's alpha channel. Paths may be absolute, or relative to the working folder, to the CSV's
    folder, or to a folder above it. Raises UserError when a column, all rows, or all files of a
    column are missing.
    """
    table = pd.read_csv(csv_path, nrows=limit, dtype=str)
    image_column, alpha_column = COLUMNS
    if image_column not in table.columns:
        raise UserError(
            f"{csv_path}: no column {image_column}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError(f"{csv_path}: has no rows")
    images = table[image_column]
    alphas = table.get(alpha_column, pd.Series("", images.index)).fillna("")
    alphas = alphas.where(alphas != images, "")
    return Pairs(placed_paths(images, image_column, csv_path),
                 placed_paths(alphas, alpha_column, csv_path), tuple(photographs))


def placed_paths(column, name, csv_path):
    """A column's paths as encoded strings that can be opened from here; '' stays ''.

    The folder they are relative to is learnt from the first few, not by touching each file.
    """
    bases = [Path.cwd(), *Path(csv_path).resolve().parents]
    sample = column[column != ""].head(ROWS_TO_PLACE)
    for base in bases if len(sample) else bases[:1]:
        if sample.empty or any((base / path).is_file() for path in sample):
            return np.array([os.fsencode(os.path.join(base, path) if path else "")
                             for path in column])
    raise UserError(
        f"{csv_path}, column {name}: {sample.iloc[0]} is neither in the working folder "
        f"({Path.cwd()}) nor in {bases[1]} or a folder above it"
    )


def open_image(path, mode):
    """The decoded image in the given Pillow mode; UserError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def open_layers(image_path, alpha_path):
    """[RGB image, L alpha] of one size, or [RGBA image] when there is no alpha path.

    An alpha of another size but the same shape is resized; another shape is refused.
    """
    if not alpha_path:
        return [open_image(image_path, "RGBA")]
    image, alpha = open_image(image_path, "RGB"), open_image(alpha_path, "L")
    if image.size != alpha.size:
        ratio = (image.width * alpha.height) / (image.height * alpha.width)
        if abs(ratio - 1) > 0.02:
            raise UserError(
                f"{alpha_path}: is {alpha.width}x{alpha.height}, its image {image_path} is "
                f"{image.width}x{image.height}; they must have the same shape"
            )
        alpha = alpha.resize(image.size, Image.Resampling.BILINEAR)
    return [image, alpha]


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
        rng = np.random.default_rng([self.seed, epoch, index])
        layers = self.augment.geometry(open_layers(*self.pairs[index]), rng)
        image, alpha = layers if len(layers) == 2 else recomposed(
            *layers, self.pairs.photographs, rng)
        image = self.augment.photometry(image, rng)
        return sample(image, alpha, self.pairs[index][0])


class ValidationSet(Dataset):
    """Whole pairs, resized to size x size; an RGBA cut-out stands on one backdrop for ever."""

    def __init__(self, pairs, size):
        self.pairs, self.size = pairs, size

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, alpha = whole_pair(self.pairs, index)
        return sample(
            resized(image, self.size), resized(alpha, self.size), self.pairs[index][0])


class ScoredSet(ValidationSet):
    """The same rows, with image and alpha in their own size beside the network's input."""

    def __getitem__(self, index):
        image, alpha = whole_pair(self.pairs, index)
        return {"img": image_tensor(resized(image, self.size)), "path": self.pairs[index][0],
                "full": np.array(image), "truth": np.array(alpha)}


def whole_pair(pairs, index):
    """(RGB image, L alpha) of a row in full, an RGBA cut-out on the backdrop of its number."""
    layers = open_layers(*pairs[index])
    if len(layers) == 2:
        return layers
    return recomposed(*layers, pairs.photographs, np.random.default_rng(index))


def sample(image, alpha, path):
    """What a batch is made of: img [3,H,W] in [-1,1], mask [1,H,W] in [0,1], the image's path."""
    return {"img": image_tensor(image), "mask": alpha_tensor(alpha), "path": path}


class TestSet(Dataset):
    """Test images as the network sees them, with name and pixels, uint8 [H,W,3] of any size."""

    __test__ = False  # a data set, not a test for pytest to collect

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        image = open_image(path, "RGB")
        return {"img": image_tensor(resized(image, self.size)), "path": path.name,
                "full": np.array(image)}


class ShuffledEpochs(Sampler):
    """The keys (epoch, index) of one epoch in an order that only seed and epoch decide.

    Several processes each take every world_size-th key, so that their batches together are the
    batch of one process; a few keys come twice where the length does not divide. `done` keys of
    this process are skipped: an earlier run has seen them.
    """

    def __init__(self, length, seed):
        self.length, self.seed, self.epoch, self.done = length, seed, 1, 0

    def __len__(self):
        return len(self.indices()) - self.done

    def __iter__(self):
        return ((self.epoch, int(index)) for index in self.indices()[self.done:])

    def indices(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return shard(np.resize(order, -(-self.length // world_size()) * world_size()))


def share_loader(dataset, batch_size, workers, device):
    """Batches of this process's share of a dataset, in order"""
    share = Subset(dataset, shard(range(len(dataset))))
    return make_loader(share, batch_size, workers, device)


def make_loader(dataset, batch_size, workers, device, sampler=None):
    """A DataLoader in the dataset's order, or the sampler's; pinned where there is a GPU."""
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_main_process,
    )


def leave_signals_to_the_main_process(worker):
    """Ctrl-C reaches every process of a terminal; a worker goes on until its loader is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
