"""What the machine decides about a training: crops in a step, learning rate, length."""

import copy
import math
import time
from dataclasses import replace

import torch

from src.runtime.distributed import merged
from src.runtime.processes import world_size

EPOCHS = 5  # where neither --epochs nor a time limit says how many
MOST_SAMPLES = 20_000  # of an epoch, so that validation comes every few minutes
CPU_BATCH, CARD_BATCH = 4, 16  # crops of a step; on a card, if so many fit
LR_OF_4 = 1e-4  # learning rate for steps of 4 crops, the notebook's
MEASURED_SECONDS = 120  # of training, before its length is planned
MARGIN = 0.98  # of the time is planned for, so that a slower hour does not cut the schedule off
SETTLED_STEPS = 16  # before they are measured: workers start, kernels are chosen


def decided(settings, model, machine, on_kaggle=False):
    """The settings with what was left to the machine filled in; `epochs` stays None for a training
    that goes on as long as the time allows.

    AdamW's learning rate grows with the square root of the crops in a step, of all cards: so do
    the updates keep their noise (Malladi et al., "On the SDEs and Scaling Rules for Adaptive
    Gradient Algorithms", NeurIPS 2022).
    """
    by_time = settings.hours is not None or (on_kaggle and settings.epochs is None)
    batch = settings.train_batch or fitting_batch(model, settings.train_size, machine)
    lr = settings.lr
    if lr is None:
        lr = LR_OF_4 * math.sqrt(batch * world_size() / 4)
    schedule = settings.schedule
    if schedule == "auto":
        schedule = "cosine" if by_time else "plateau"
    return replace(settings, train_batch=batch, lr=lr, schedule=schedule,
                   epochs=None if by_time else settings.epochs or EPOCHS)


def fitting_batch(model, size, machine):
    """Crops of size x size in a step: as many as fit on every card, at most CARD_BATCH."""
    if machine.device.type != "cuda":
        return CPU_BATCH
    batch = CARD_BATCH
    while batch > 1 and not fits(model, batch, size, machine):
        batch //= 2
    return min(merged([batch]))


def fits(model, batch, size, machine):
    """Whether a step on a quarter more crops than `batch` has room on the device."""
    twin = copy.deepcopy(model).to(machine.device, memory_format=torch.channels_last).train()
    images, has_room = torch.zeros(batch + batch // 4, 3, size, size), True
    try:
        with machine.autocast():
            outputs = twin(machine.to_device(images))
        sum(output.float().mean() for output in outputs).backward()
    except torch.OutOfMemoryError:
        has_room = False
    twin = outputs = None  # the memory is the next trial's
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return has_room


class Pace:
    """How fast the steps of a training come, and how long they wait for data, in this process.

    seconds, waited, steps: sums over all epochs, validation left out; epochs: how many have begun.
    cached_step: seconds that the loader needs for a step once the images are cached, which they are
    from the second pass over the rows on, after steps_per_pass; infinite when nothing is cached.
    """

    def __init__(self, cached_step=math.inf, steps_per_pass=0):
        self.cached_step, self.steps_per_pass = cached_step, steps_per_pass
        self.seconds, self.waited, self.steps, self.epochs = 0.0, 0.0, 0, 0
        self.settled = None  # the same after the first SETTLED_STEPS

    def timed(self, batches):
        """The batches of an epoch; the clock runs until the last one has been used."""
        batches = iter(batches)
        self.epochs += 1
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch
            self.seconds += time.monotonic() - began
            self.steps += 1
            if self.steps == SETTLED_STEPS:
                self.settled = self.now()

    def now(self):
        return self.seconds, self.waited, self.steps

    def since(self, earlier):
        """(seconds of a step, those of them that it waits) since an earlier `now`"""
        seconds, waited, steps = (b - a for a, b in zip(earlier, self.now()))
        return seconds / max(steps, 1), waited / max(steps, 1)


def planned_steps(run, seconds, between):
    """How many steps a training has in all if it ends in `seconds`; None while it is too early to
    say. All processes call it together and get the same.

    between: seconds from the end of an epoch to the next one.
    """
    pace, own = run.pace, None
    if pace.settled and pace.seconds - pace.settled[0] >= min(MEASURED_SECONDS, seconds / 30):
        seconds *= MARGIN
        step, wait = pace.since(pace.settled)
        each = between / run.steps_per_epoch
        later = min(step, max(step - wait, pace.cached_step)) + each
        step += each
        first_pass = min(max(0, pace.steps_per_pass - run.step), seconds / step)
        own = run.step + max(1, int(first_pass + (seconds - first_pass * step) / later))
    everyone = merged([own])  # each has clocks of its own
    return None if None in everyone else min(everyone)
