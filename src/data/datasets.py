"""Datasets and loaders: pairs to learn from, pairs to score, images to predict."""

import hashlib
import os
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from src.runtime.console import UserError, progress
from src.runtime.distributed import merged, shard
from src.runtime.hardware import fitting_loader
from src.runtime.processes import world_size
from src.data.backdrops import TILE, sample_surroundings, no_surroundings, recomposed
from src.data.cache import LOSSLESS, LOSSY
from src.data.images import declared_size, open_alpha, open_image

READ_TRIES = 20  # pairs in a row that may be unreadable before a run gives up at once
MOST_UNREADABLE = 0.05  # share of all pairs that may be
DEFAULT_SIZE = (1024, 1024)  # pixels, MAGICK's, of a mask whose image says nothing of its own
LONGEST = 16  # times its shorter side; an image that is longer is squeezed for training
GRACE_SECONDS = 60  # that a loader worker outlives the signal which asks the run to end


def open_layers(image_path, alpha_path):
    """[RGB image, L alpha] of one size, or [RGBA image] when there is no alpha path.

    An alpha of another size but the same shape is resized; another shape is refused.
    """
    if not alpha_path:
        cutout = open_image(image_path, "RGBA")
        if cutout.getchannel("A").getextrema()[0] == 255:
            raise UserError(f"{image_path}: is opaque, and its row names no alpha")
        return [cutout]
    image, alpha = open_image(image_path, "RGB"), open_alpha(alpha_path)
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


def network_inputs(image, sizes):
    """{size: float32 [3,size,size] in [-1,1]} of an RGB image"""
    return {size: image_tensor(resized(image, size)) for size in sizes}


class TrainingSet(Dataset):
    """What JointAugment.apply makes training pairs of: pixels, and all that chance decides.

    An item's key is (epoch, index), and all its randomness comes from (seed, epoch, index): it does
    not matter which worker makes it, or what that worker made before. Its pixels are "layers",
    uint8 [S,S,4], image and alpha, of a square as large as the image's shorter side, reduced to S;
    "is_cutout" says whether they still need a backdrop.

    The next pair stands in for one that cannot be read, so that batches keep their size; the item
    lists it under "skipped".
    """

    def __init__(self, pairs, augment, seed):
        self.pairs, self.augment, self.seed = pairs, augment, seed
        self.item_bytes = 4 * augment.source_side**2 + 3 * TILE**2

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key
        skipped = []
        for index in (np.arange(index, index + READ_TRIES) % len(self.pairs)).tolist():
            try:
                return {**self.item(epoch, index), "skipped": skipped}
            except UserError as error:
                skipped.append((self.pairs[index][0], str(error)))
        raise UserError(f"{len(set(skipped))} training pairs in a row cannot be read, the last "
                        f"because of {skipped[-1][1]}")

    def item(self, epoch, index):
        rng = np.random.default_rng([self.seed, epoch, index])
        path, alpha_path = self.pairs[index]
        side = self.augment.source_side
        image, alpha = reduced_pair(self.pairs, index, side)
        drawn = self.augment.draw(*image.size, rng)
        left, top = drawn.pop("window").tolist()
        box = (left, top, left + side, top + side)
        surroundings = no_surroundings() if alpha_path else sample_surroundings(
            rng, bool(self.pairs.photographs))
        image.putalpha(alpha)
        return {"layers": np.array(image.crop(box)),
                "is_cutout": not alpha_path, "path": path, **drawn, **surroundings}


def reduced_pair(pairs, index, side):
    """(RGB image, L alpha) of a row, their shorter side `side`, from the cache if there is one."""
    def make():
        layers = [reduced(layer, side) for layer in open_layers(*pairs[index])]
        return layers if len(layers) == 2 else (layers[0].convert("RGB"), layers[0].getchannel("A"))

    return cached(pairs, index, f"{side}", make, LOSSY)


def reduced(layer, side):
    """An image whose shorter side is `side`; RGBA is averaged with premultiplied colours."""
    scale = side / min(layer.size)
    size = [min(round(scale * length), LONGEST * side) for length in layer.size]
    if layer.mode == "RGBA":
        return reduced(layer.convert("RGBa"), side).convert("RGBA")
    return layer.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)


def cached(pairs, index, form, make, encoding):
    """make()'s (image, alpha) of a row, from the pairs' cache if they have one."""
    if pairs.cache is None:
        return make()
    sources = [path for path in pairs[index] if path]
    return pairs.cache.images(sources, form, make, encoding)


class ValidationSet(Dataset):
    """Whole pairs, resized to size x size; an RGBA cut-out always stands on the same backdrop."""

    def __init__(self, pairs, size):
        self.pairs, self.size = pairs, size
        self.item_bytes = tensor_bytes(size)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, alpha, _ = whole_pair(self.pairs, index)
        return {"img": image_tensor(resized(image, self.size)),
                "mask": alpha_tensor(resized(alpha, self.size)), "path": self.pairs[index][0]}


class ScoredSet(Dataset):
    """Whole pairs in their own size, beside the network's inputs: "img" is {size: image}."""

    def __init__(self, pairs, sizes):
        self.pairs, self.sizes = pairs, sizes
        self.item_bytes = sum(map(tensor_bytes, sizes)) + 4 * pixels_of(pairs[0][0])

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, alpha, _ = whole_pair(self.pairs, index)
        return {"img": network_inputs(image, self.sizes), "path": self.pairs[index][0],
                "full": np.array(image), "truth": np.array(alpha)}


def whole_pair(pairs, index):
    """(RGB image, L alpha, [(path, reason)] of unreadable backdrops) of a row in full.

    The file name of an RGBA cut-out decides its backdrop. What is composited is cached.
    """
    path, alpha_path = pairs[index]
    if alpha_path:
        return *open_layers(path, alpha_path), []
    name = hashlib.sha256(os.fsencode(os.path.basename(path))).digest()
    unreadable = []

    def make():
        (cutout,) = open_layers(path, "")
        image, alpha, missing = recomposed(
            cutout, pairs.photographs, np.random.default_rng(list(name)))
        unreadable.extend(missing)
        return image, alpha

    image, alpha = cached(pairs, index, f"composite over {pairs.photographs}", make, LOSSLESS)
    return image, alpha, unreadable


def tensor_bytes(size):
    """Of an image and an alpha, float32, size x size"""
    return 4 * 4 * size**2


def pixels_of(path):
    """How many pixels an image file declares"""
    width, height = declared_size(path) or DEFAULT_SIZE
    return width * height


class TestSet(Dataset):
    """Test images as {size: the network's input}, with their pixels, uint8 [H,W,3] of any size.

    tests: list of TestImage. Where an image cannot be read, "problem" says why, and black pixels of
    its declared size, or else of the commonest, stand in.
    """

    __test__ = False  # a data set, not a test for pytest to collect

    def __init__(self, tests, sizes):
        self.tests, self.sizes = tests, sizes
        width, height = self.commonest_size()
        self.item_bytes = sum(map(tensor_bytes, sizes)) + 3 * width * height

    def __len__(self):
        return len(self.tests)

    def __getitem__(self, index):
        name, path = self.tests[index]
        image, problem = self.opened(path)
        return {"img": network_inputs(image, self.sizes), "name": name,
                "full": np.array(image), "problem": problem}

    def opened(self, path):
        """(RGB image, "" or why it is only a black one)"""
        if path is None:
            return Image.new("RGB", self.commonest_size()), "there is no such image"
        try:
            return open_image(path, "RGB"), ""
        except UserError as error:
            return Image.new("RGB", declared_size(path) or self.commonest_size()), str(error)

    def commonest_size(self):
        """(width, height) that most of the first hundred test images declare"""
        sizes = Counter(declared_size(path) for _, path in self.tests[:100] if path)
        del sizes[None]
        return sizes.most_common(1)[0][0] if sizes else DEFAULT_SIZE


class ReadCheck(Dataset):
    """For each pair why it cannot be read, "" where it can, and its unreadable backdrops."""

    item_bytes = 1

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        try:
            return "", whole_pair(self.pairs, index)[2]
        except UserError as error:
            return str(error), []


def without_unreadable(pairs, machine):
    """The pairs that can be read; their `skipped` lists the others. Every file is opened once.

    For validation data, of which all is looked at in every epoch anyway. Raises UserError when more
    than a twentieth cannot be read.
    """
    loader = share_loader(ReadCheck(pairs), None, machine)
    checked_rows = merged(list(progress(loader, "read val", unit="pair")))
    unreadable = {pairs[i][0]: reason for i, (reason, _) in enumerate(checked_rows) if reason}
    check_share(unreadable, len(pairs), "validation")
    backdrops = dict(each for _, backdrops in checked_rows for each in backdrops)
    readable = np.array([not reason for reason, _ in checked_rows])
    return replace(pairs.where(readable), skipped={**unreadable, **backdrops})


def check_share(unreadable, count, title):
    """Raise UserError when more than a twentieth of `count` pairs cannot be read."""
    if len(unreadable) > MOST_UNREADABLE * count:
        first = next(iter(unreadable.values()))
        raise UserError(
            f"{len(unreadable)} of {count} {title} pairs cannot be read, more than "
            f"{MOST_UNREADABLE:.0%}; the first: {first}")


def collated(items):
    """A batch; what its items have skipped is one list."""
    skipped = [each for item in items for each in item.pop("skipped", ())]
    return {**default_collate(items), "skipped": skipped}


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


def share_loader(dataset, batch_size, machine):
    """Batches of this process's share of a dataset, in order; single items for batch_size None."""
    return make_loader(dataset, batch_size, machine, shard(range(len(dataset))))


def make_loader(dataset, batch_size, machine, sampler=None):
    """A DataLoader in the dataset's order, or the sampler's; pinned where there is a GPU.

    Its workers end with each pass over it, so that no second set waits while the first works.
    """
    workers, ahead = fitting_loader(machine.workers, (batch_size or 1) * dataset.item_bytes)
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=collated if batch_size else unchanged_item,
        pin_memory=machine.device.type == "cuda" and batch_size is not None,
        worker_init_fn=outlive_signals,
    )


def unchanged_item(item):
    return item


def outlive_signals(worker):
    """Ctrl-C in a terminal and torchrun's SIGTERM reach loader workers too, which the main process
    needs to finish its step and save; a worker then ends with its loader, or after a minute."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
