"""Loaders: items to batches, in worker processes."""

import signal

from torch.utils.data import DataLoader, default_collate

from src.runtime.distributed import TIMEOUT, shard
from src.runtime.hardware import fitting_loader

GRACE_SECONDS = 60  # that a loader worker outlives the signal which asks the run to end


def share_loader(dataset, batch_size, machine):
    """Batches of this process's share of a dataset, in order"""
    return make_loader(dataset, batch_size, machine, shard(range(len(dataset))))


def make_loader(dataset, batch_size, machine, sampler):
    """A DataLoader in the sampler's order; pinned where there is a GPU.

    Its workers end with each pass over it, so that no second set waits while the first works.
    """
    workers, ahead = fitting_loader(machine.workers, batch_size * dataset.item_bytes)
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, num_workers=workers,
        prefetch_factor=ahead if workers else None, collate_fn=collated,
        pin_memory=machine.device.type == "cuda", worker_init_fn=outlive_signals,
        timeout=TIMEOUT.seconds if workers else 0)  # of a read that hangs


def collated(items):
    """A batch; what its items have skipped is one list."""
    skipped = [each for item in items for each in item.pop("skipped", ())]
    return {**default_collate(items), "skipped": skipped}


def outlive_signals(worker):
    """Ctrl-C in a terminal and torchrun's SIGTERM reach loader workers too, which the main process
    needs to finish its step and save; a worker then ends with its loader, or after a minute."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
