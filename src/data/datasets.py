"""Datasets: pairs to learn from and pairs to validate with, and the order of an epoch."""

import hashlib
import os

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Sampler

from src.runtime.console import UserError
from src.runtime.distributed import shard
from src.runtime.processes import world_size
from src.data.backdrops import TILE, no_surroundings, recomposed, sample_surroundings
from src.data.cache import LOSSLESS, LOSSY
from src.data.images import open_image, open_pair
from src.data.pixels import alpha_tensor, image_tensor, resized

READ_TRIES = 20  # pairs that are tried for one item
LONGEST = 16  # times its shorter side; an image that is longer is squeezed for training


def open_layers(image_path, alpha_path):
    """[RGB image, L alpha] of one size, or [RGBA image] when there is no alpha path."""
    if alpha_path:
        return open_pair(image_path, alpha_path)
    cutout = open_image(image_path, "RGBA")
    if cutout.getchannel("A").getextrema()[0] == 255:
        raise UserError(f"{image_path}: is opaque, and its row names no alpha")
    return [cutout]


class TrainingSet(Dataset):
    """Raw samples for JointAugment.apply: pixels, and random augmentation parameters.

    An item's key is (epoch, index), and all its randomness comes from (seed, epoch, index): it does
    not matter which worker makes it, or what that worker made before. Its pixels are "layers",
    uint8 [S,S,4], image and alpha, of a square as large as the image's shorter side, reduced to S;
    "is_cutout" says whether they still need a backdrop.

    Another pair, from anywhere in the set, stands in for one that cannot be read, so that batches
    keep their size; the item lists it under "skipped".
    """

    def __init__(self, pairs, augment, seed):
        self.pairs, self.augment, self.seed = pairs, augment, seed
        self.item_bytes = 4 * augment.source_side**2 + 3 * TILE**2

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key
        skipped, rng = [], np.random.default_rng([self.seed, epoch, index, 1])
        for index in (index, *rng.integers(len(self.pairs), size=READ_TRIES - 1).tolist()):
            try:
                return {**self.item(epoch, index), "skipped": skipped}
            except UserError as error:
                skipped.append((self.pairs[index][0], str(error)))
        raise UserError(f"{len(set(skipped))} training pairs in a row cannot be read; the last: "
                        f"{skipped[-1][1]}")

    def item(self, epoch, index):
        rng = np.random.default_rng([self.seed, epoch, index])
        path, alpha_path = self.pairs[index]
        side = self.augment.source_side
        image, alpha = reduced_pair(self.pairs, index, side)
        sampled = self.augment.sample(*image.size, rng)
        left, top = sampled.pop("window").tolist()
        box = (left, top, left + side, top + side)
        surroundings = no_surroundings() if alpha_path else sample_surroundings(
            rng, bool(self.pairs.photographs))
        image.putalpha(alpha)
        return {"layers": np.array(image.crop(box)),
                "is_cutout": not alpha_path, "path": path, **sampled, **surroundings}


def reduced_pair(pairs, index, side):
    """(RGB image, L alpha) of a row, their shorter side `side`, from the cache if there is one."""
    def make():
        layers = [reduced(layer, side) for layer in open_layers(*pairs[index])]
        return layers if len(layers) == 2 else (layers[0].convert("RGB"), layers[0].getchannel("A"))

    return kept(pairs, index, f"{side}") or keep(pairs, index, f"{side}", *make(), LOSSY)


def reduced(layer, side):
    """An image whose shorter side is `side`; RGBA is averaged with premultiplied colours."""
    scale = side / min(layer.size)
    size = [min(round(scale * length), LONGEST * side) for length in layer.size]
    if layer.mode == "RGBA":
        return reduced(layer.convert("RGBa"), side).convert("RGBA")
    return layer.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)


def kept(pairs, index, form):
    """(RGB image, L alpha) of a row in this form from the pairs' cache, None if it has none"""
    sources = [path for path in pairs[index] if path]
    return pairs.cache and pairs.cache.get(sources, form)


def keep(pairs, index, form, image, alpha, encoding):
    """The (RGB image, L alpha) of a row as the pairs' cache, if they have one, will give them."""
    if pairs.cache is None:
        return image, alpha
    sources = [path for path in pairs[index] if path]
    return pairs.cache.put(sources, form, image, alpha, encoding)


class ValidationSet(Dataset):
    """Whole pairs, resized to size x size; an RGBA cut-out always stands on the same backdrop."""

    def __init__(self, pairs, size):
        self.pairs, self.size = pairs, size
        self.item_bytes = 4 * 4 * size**2

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        form = f"{self.size} over {self.pairs.photographs}"
        pair = kept(self.pairs, index, form)
        if pair is None:
            image, alpha, _ = whole_pair(self.pairs, index)
            pair = keep(self.pairs, index, form, resized(image, self.size),
                        resized(alpha, self.size), LOSSLESS)
        return {"img": image_tensor(pair[0]), "mask": alpha_tensor(pair[1]),
                "path": self.pairs[index][0]}


def whole_pair(pairs, index):
    """(RGB image, L alpha, [(path, reason)] of unreadable backdrops) of a row in full.

    The file name of an RGBA cut-out decides its backdrop. The composite is cached.
    """
    path, alpha_path = pairs[index]
    if alpha_path:
        return *open_layers(path, alpha_path), []
    form = f"composite over {pairs.photographs}"
    pair = kept(pairs, index, form)
    if pair is not None:
        return *pair, []
    (cutout,) = open_layers(path, "")
    name = hashlib.sha256(os.fsencode(os.path.basename(path))).digest()
    image, alpha, unreadable = recomposed(
        cutout, pairs.photographs, np.random.default_rng(list(name)))
    return *keep(pairs, index, form, image, alpha, LOSSLESS), unreadable


class ShuffledEpochs(Sampler):
    """The keys (pass, index) of one epoch: `samples` rows, all by default, of an endless sequence
    of permutations of all rows, so that none comes again before every other one has come.

    Seed and pass alone decide a permutation. Several processes each take every world_size-th key,
    so that their batches together are the batch of one process. `done` keys of this process are
    skipped: an earlier run has seen them.
    """

    def __init__(self, length, seed, samples=None):
        self.length, self.seed, self.epoch, self.done = length, seed, 1, 0
        self.samples = -(-(samples or length) // world_size()) * world_size()

    def __len__(self):
        # The last batch may be smaller than the others, by which `done` is counted.
        return max(0, self.samples // world_size() - self.done)

    def __iter__(self):
        places = (self.epoch - 1) * self.samples + shard(np.arange(self.samples))[self.done:]
        numbers, places = (each.tolist() for each in np.divmod(places, self.length))
        orders = {number: self.permutation(number) for number in set(numbers)}
        return ((number + 1, int(orders[number][place])) for number, place in zip(numbers, places))

    def permutation(self, number):
        return np.random.default_rng([self.seed, number + 1]).permutation(self.length)
