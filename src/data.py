"""Datasets and loaders: pairs to learn from, pairs to score, images to predict."""

import signal
from collections import Counter

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from src.backdrops import recomposed
from src.console import UserError, log, progress
from src.distributed import merged, shard, world_size
from src.files import replacing
from src.images import declared_size, open_alpha, open_image

READ_TRIES = 20  # pairs in a row that may be unreadable before a run gives up at once
MOST_UNREADABLE = 0.05  # share of all pairs that may be
DEFAULT_SIZE = (1024, 1024)  # pixels, MAGICK's, of a mask whose image says nothing of its own


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


class TrainingSet(Dataset):
    """Augmented pairs. An item's key is (epoch, index), and all its chance is drawn from (seed,
    epoch, index): which worker makes it, and what it made before, does not matter.

    The next pair stands in for one that cannot be read, so that batches keep their size; the item
    then tells of it under "skipped".
    """

    def __init__(self, pairs, augment, seed):
        self.pairs, self.augment, self.seed = pairs, augment, seed

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key
        skipped = []
        for index in (np.arange(index, index + READ_TRIES) % len(self.pairs)).tolist():
            try:
                item = self.augmented(epoch, index)
                return {**item, "skipped": skipped}
            except UserError as error:
                skipped.append((self.pairs[index][0], str(error)))
        raise UserError(f"{len(set(skipped))} training pairs in a row cannot be read, the last "
                        f"because of {skipped[-1][1]}")

    def augmented(self, epoch, index):
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
    """Test images as the network sees them, with their pixels, uint8 [H,W,3] of any size.

    tests: list of TestImage. Where an image cannot be read, "problem" says why, and black pixels of
    its declared size, or else of the commonest, stand in.
    """

    __test__ = False  # a data set, not a test for pytest to collect

    def __init__(self, tests, size):
        self.tests, self.size = tests, size

    def __len__(self):
        return len(self.tests)

    def __getitem__(self, index):
        name, path = self.tests[index]
        image, problem = self.opened(path)
        return {"img": image_tensor(resized(image, self.size)), "name": name,
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
    """Why each pair cannot be read, "" where it can."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        try:
            open_layers(*self.pairs[index])
        except UserError as error:
            return str(error)
        return ""


def without_unreadable(pairs, machine):
    """(the pairs that can be read, {image path: why not} of the others), every file opened once.

    For validation data, of which all is looked at in every epoch anyway.
    """
    share = Subset(ReadCheck(pairs), shard(range(len(pairs))))
    loader = DataLoader(share, batch_size=None, num_workers=machine.workers,
                        worker_init_fn=leave_signals_to_the_main_process)
    reasons = merged(list(progress(loader, "read val", unit="pair")))
    unreadable = {pairs[i][0]: reason for i, reason in enumerate(reasons) if reason}
    check_share(unreadable, len(pairs), "validation")
    return pairs.where(np.array([not reason for reason in reasons])), unreadable


def check_share(unreadable, count, title):
    """Raise UserError when more than a twentieth of `count` pairs cannot be read."""
    if len(unreadable) > MOST_UNREADABLE * count:
        first = next(iter(unreadable.values()))
        raise UserError(
            f"{len(unreadable)} of {count} {title} pairs cannot be read, more than "
            f"{MOST_UNREADABLE:.0%}; the first: {first}")


def write_skipped(path, unreadable):
    """skipped.csv: which pairs were left out, and why; no file when there are none."""
    path.unlink(missing_ok=True)
    if unreadable:
        with replacing(path) as part:
            rows = sorted(unreadable.items())
            pd.DataFrame(rows, columns=["image_path", "reason"]).to_csv(part, index=False)
        log(f"{len(unreadable)} pairs cannot be read and are left out: see {path}")


def collated(items):
    """A batch; what its items have skipped is one list."""
    skipped = [each for item in items for each in item.pop("skipped", ())]
    return {**default_collate(items), "skipped": skipped}


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


def share_loader(dataset, batch_size, machine):
    """Batches of this process's share of a dataset, in order"""
    share = Subset(dataset, shard(range(len(dataset))))
    return make_loader(share, batch_size, machine)


def make_loader(dataset, batch_size, machine, sampler=None):
    """A DataLoader in the dataset's order, or the sampler's; pinned where there is a GPU."""
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=machine.workers,
        persistent_workers=machine.workers > 0, collate_fn=collated,
        pin_memory=machine.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_main_process,
    )


def leave_signals_to_the_main_process(worker):
    """Ctrl-C reaches every process of a terminal; a worker goes on until its loader is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
