"""The training loop: steps, epochs, the best checkpoint, the end of the time."""

import math
import signal
import time
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import agree, average, merged, summed, wait_for_all
from src.runtime.processes import rank, world_size
from src.runtime.stopping import Interrupted
from src.runtime.tables import write_table
from src.inputs.discovery import BEST_CHECKPOINT
from src.data.augment import JointAugment
from src.data.backdrops import PhotographPool
from src.data.datasets import (
    ShuffledEpochs, TrainingSet, ValidationSet, check_share, collated, make_loader, share_loader,
)
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.losses import matte_loss, matte_mse
from src.training.evaluation import (
    describe_batch, describe_outputs, evaluate, seconds_per_image,
)
from src.training.plan import MOST_SAMPLES, Pace, decided, planned_steps
from src.training.state import Run, configuration_of, resume, save, unfinished

GRADIENT_NORM = 1.0  # longer gradients are shortened to it
NON_FINITE_IN_A_ROW = 3  # losses that end a run
STEPS_PER_CHECK = 16  # on a GPU, where looking at a loss waits for all work before it


def train(model, splits, settings, machine, inputs, stop, reserve):
    """Train the model in place; it ends with the weights of its best validation.

    Writes in `inputs.out`: u2netp_best.pth whenever the validation MSE falls, metrics.csv and
    skipped.csv after every epoch, last.pth after every epoch and every `save_minutes`. A last.pth
    of the same settings and data, there or in what is attached, is continued, to the same weights
    as without the interruption (to the bit on a CPU).

    splits: `Splits`; stop: `StopWatch`; reserve: seconds that a validation image takes -> seconds
    that its time limit must leave for what comes after training. Returns the metrics, a dict for
    each finished epoch, and whether the training has come to its end. Raises Interrupted, after
    saving, when a signal came; UserError when last.pth is of another configuration, when the device
    has too little memory, when three losses in a row are not finite (the best checkpoint is kept),
    or when more than a twentieth of the training pairs cannot be read.
    """
    settings = decided(settings, model, machine, inputs.kaggle_input is not None)
    out, size = inputs.out, settings.predict_size or settings.train_size
    train_loader, val_loader = loaders(splits, settings, size, machine)
    photographs = PhotographPool(splits.train.photographs, settings.seed, 2 * settings.train_size,
                                 machine.device)
    configuration = configuration_of(settings, model, splits)
    run = Run(model, settings, machine, len(train_loader), norms_are_frozen(settings, inputs))
    resume(run, unfinished(inputs), out, configuration)
    with memory_advised(settings.train_batch, settings.train_size):
        first_train, first_val = first_batches(train_loader, val_loader,
                                               photographs.of_epoch(run.epoch), machine.device)
    run.pace = pace_of(train_loader)
    if run.metrics:
        write_tables(run, out, splits.val.skipped)
    if run.total_steps is None or stop.seconds_left() < math.inf:
        run.val_seconds = seconds_per_image(model, first_val, machine)
    log(describe_plan(run, len(splits.train)))

    keep = partial(save, run, out, configuration)
    plan = partial(plan_length, run, stop, reserve, len(splits.val), time.monotonic())
    ending = partial(end_of_time, run, stop, reserve, keep, plan)
    out_of_time = False
    while not run.is_finished() and not out_of_time:
        began, before = time.monotonic(), run.pace.now()
        out_of_time = train_epoch(run, train_loader, photographs, ending)
        average(run.statistics())
        keep()
        if out_of_time:
            log(f"Time limit: training ends in epoch {run.epoch} after {run.batch} batches, to "
                "leave room for the prediction")
        name, val_loss, val_mse = validate(run, val_loader, stop)
        if not out_of_time:
            finish_epoch(run, val_loss, val_mse, photographs.unreadable)
            write_tables(run, out, splits.val.skipped)
            log(describe_epoch(run, before, time.monotonic() - began))
        if val_mse < run.best:
            run.best = val_mse
            if rank() == 0:
                write_checkpoint(out / BEST_CHECKPOINT, run.candidates()[name].state_dict(),
                                 val_mse=val_mse, recipe={"predict_size": size})
            log(f"  -> saved the best model so far (val_mse={val_mse:.6f}{name})")
        keep()

    wait_for_all()
    model.load_state_dict(read_checkpoint(out / BEST_CHECKPOINT).model_state)
    describe_outputs(model, first_train, machine)
    return run.metrics, run.is_finished()


def loaders(splits, settings, size, machine):
    """(training loader, loader of this process's share of the validation images at `size`)"""
    augment = JointAugment(settings.train_size, settings.crop_scale)
    train_set = TrainingSet(splits.train, augment, settings.seed)
    samples = settings.epoch_samples or min(len(train_set), MOST_SAMPLES)
    sampler = ShuffledEpochs(len(train_set), settings.seed, samples)
    return (make_loader(train_set, settings.train_batch, machine, sampler),
            share_loader(ValidationSet(splits.val, size), settings.train_batch, machine))


def first_batches(train_loader, val_loader, photographs, device):
    """A batch of each loader, as the network gets it, which the log describes.

    photographs: what a `PhotographPool` gives.
    """
    val = first_items(val_loader, range(len(val_loader.dataset)))
    train = train_loader.dataset.augment.apply(
        first_items(train_loader, train_loader.sampler), photographs, device)
    describe_batch("train", train)
    describe_batch("val", val)
    return train, val


def first_items(loader, keys):
    """A batch of the first keys' items, made in this process without starting the workers."""
    return collated([loader.dataset[key] for key in islice(keys, loader.batch_size)])


def pace_of(loader):
    """The `Pace` of a training, which foresees how fast cached images come: those of the first
    batch are cached by now."""
    pairs = loader.dataset.pairs
    steps_per_pass = math.ceil(len(pairs) / loader.batch_size / world_size())
    if pairs.cache is None or pairs.cache.is_full.value:
        return Pace(steps_per_pass=steps_per_pass)
    began = time.monotonic()
    first_items(loader, loader.sampler)
    return Pace((time.monotonic() - began) / max(1, loader.num_workers), steps_per_pass)


def norms_are_frozen(settings, inputs):
    """Whether batch norms keep the statistics of the weights that the training starts from."""
    if settings.batch_norm == "auto":
        return inputs.checkpoint is not None
    return settings.batch_norm == "frozen"


def end_of_time(run, stop, reserve, keep, plan):
    """Whether the time limit ends the training now. All processes call it after the same steps,
    and agree. Plans and saves when that is due; raises Interrupted, after saving, when a signal
    came."""
    plan()
    out_of_time, interrupted, unsaved = agree(
        stop.seconds_left() < reserve(run.val_seconds), stop.signal is not None,
        time.monotonic() - run.saved_at >= 60 * run.settings.save_minutes)
    if unsaved or interrupted:
        keep()
    if interrupted:
        raise Interrupted(stop.signal or signal.SIGTERM)
    return out_of_time


def plan_length(run, stop, reserve, val_count, began):
    """Decide how many steps the training has, if the time decides and has been measured."""
    if run.total_steps is not None:
        return
    seconds, elapsed = stop.seconds_left() - reserve(run.val_seconds), time.monotonic() - began
    if run.settings.hours is not None:
        seconds = min(seconds, 3600 * run.settings.hours - elapsed)
    between = run.val_seconds * val_count * len(run.candidates())
    if run.pace.epochs > 1:
        between = (elapsed - run.pace.seconds) / (run.pace.epochs - 1)
    steps = planned_steps(run, max(0.0, seconds), between)
    if steps is not None:
        run.plan(steps)
        log(f"Planned: {steps} steps, {steps / run.steps_per_epoch:.1f} epochs, which end about "
            f"{clock_time(seconds)}")


def validate(run, loader, stop):
    """(note for the log, loss, MSE) of the better of the weights and their average, timed."""
    began = time.monotonic()
    errors = evaluate(run.candidates(), loader, run.machine, stop)
    run.val_seconds = (time.monotonic() - began) / len(errors) / len(loader.dataset)
    name = min(errors, key=lambda name: errors[name][1])
    return name, *errors[name]


# ---------------------------------------------------------------- one epoch


def train_epoch(run, loader, photographs, ending):
    """Train from the run's position to the end of its epoch or of the training, or until there is
    no time left.

    photographs: `PhotographPool`; ending: () -> whether there is none; called by all processes
    after the same steps. Returns the last answer.
    """
    if run.has_all_steps():  # an earlier run stopped before its last validation
        return False
    set_train_mode(run.model, run.frozen_norms)
    loader.sampler.epoch = run.epoch
    loader.sampler.done = run.batch * run.settings.train_batch
    augment, device = loader.dataset.augment, run.machine.device
    backdrops = photographs.of_epoch(run.epoch)
    check_every = STEPS_PER_CHECK if device.type == "cuda" else 1
    losses = []
    for items in run.pace.timed(progress(loader, f"train {run.epoch}", done=run.batch)):
        photographs.prepare(run.epoch + 1)
        note_unreadable(run, items["skipped"], len(loader.dataset))
        with memory_advised(len(items["path"]), augment.size):
            batch = augment.apply(items, backdrops, device, crop_size(run))
            losses.append((train_step(run, batch), batch["path"]))
        run.batch += 1
        if run.has_all_steps():
            break
        if run.batch % check_every == 0:
            check_losses(run, losses)
            losses.clear()
            if ending():
                return True
    check_losses(run, losses)
    return False


def crop_size(run):
    """Side of the next step's crops, in multiples of 32 between the settings' bounds; the position
    alone decides, so that it is the same in all processes and after a resume."""
    settings = run.settings
    sizes = range(settings.min_train_size or settings.train_size, settings.train_size + 1, 32)
    rng = np.random.default_rng([settings.seed, run.epoch, run.batch])
    return sizes[int(rng.integers(len(sizes)))]


def note_unreadable(run, skipped, count):
    """Remember what a batch's items could not read. Raises UserError when it is too much of the
    `count` pairs."""
    if skipped:
        run.skipped.update(skipped)
        check_share(run.skipped, count, "training")


@contextmanager
def memory_advised(batch, size):
    """Too little memory inside becomes a UserError that says which flags need less."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(memory_advice(batch, size)) from None


def memory_advice(batch, size):
    """The error message when a batch of crops of size x size does not fit the device."""
    smaller = max(64, size * 3 // 4 // 32 * 32)
    way_out = f"--train-batch {batch // 2} or " if batch > 1 else ""
    return (f"the graphics card has too little memory for --train-batch {batch} at --train-size "
            f"{size}; take {way_out}--train-size {smaller}")


def set_train_mode(model, frozen_norms):
    """Training mode; frozen batch norms keep their statistics and train scale and shift only."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(not frozen_norms)


def train_step(run, batch):
    """One optimizer step; returns the batch's loss, a detached scalar tensor.

    A step whose gradients are not finite is skipped by the scaler, on the device.
    """
    run.optimizer.zero_grad(set_to_none=True)
    loss, mse = accumulate_gradients(run, batch)
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    run.scaler.step(run.optimizer)
    # Without fp16 an infinite gradient would halve the scale as well.
    run.scaler.update(None if run.fp16 else 1.0)
    run.update_average()
    if isinstance(run.scheduler, LambdaLR):
        run.scheduler.step()
    seen = torch.stack([loss, mse, torch.ones_like(loss)]).double() * len(batch["img"])
    run.totals += torch.where(torch.isfinite(loss), seen, 0.0)
    return loss


def accumulate_gradients(run, batch):
    """Add the gradients of the batch's mean loss; returns (loss, MSE), detached scalars."""
    with run.machine.autocast():
        outputs = run.parallel(batch["img"])
    loss = matte_loss(outputs, batch["mask"]).mean()
    run.scaler.scale(loss).backward()
    return loss.detach(), matte_mse(outputs, batch["mask"]).mean()


def check_losses(run, losses):
    """Log each loss that is NaN or infinite. Raises UserError at the third in a row.

    losses: [(scalar tensor, paths of the batch)].
    """
    if not losses:
        return
    values = torch.stack([loss for loss, _ in losses]).tolist()
    for value, (_, paths) in zip(values, losses):
        run.non_finite = 0 if math.isfinite(value) else run.non_finite + 1
        files = ", ".join(paths)
        if run.non_finite == NON_FINITE_IN_A_ROW:
            raise UserError(
                f"the loss was not finite {NON_FINITE_IN_A_ROW} times in a row, the last time "
                f"in epoch {run.epoch} for {files}; look at these files, or lower --lr")
        if run.non_finite:
            log(f"Epoch {run.epoch}: a loss was not finite, its step is skipped ({files})")


# ---------------------------------------------------------------- after an epoch


def finish_epoch(run, val_loss, val_mse, unreadable):
    """Note the epoch's metrics and unreadable backdrops, {path: reason}; move the plateau schedule,
    go to the next epoch's start."""
    loss, mse, samples = summed(run.totals.cpu().numpy()).tolist()
    if isinstance(run.scheduler, ReduceLROnPlateau):
        run.scheduler.step(val_mse)
    run.metrics.append({
        "epoch": run.epoch, "train_loss": loss / max(samples, 1),
        "train_mse": mse / max(samples, 1), "val_loss": val_loss, "val_mse": val_mse,
        "lr": run.optimizer.param_groups[0]["lr"],
    })
    run.totals.zero_()
    run.epoch, run.batch = run.epoch + 1, 0
    run.backdrops.update(unreadable)
    for skipped in merged([run.skipped]):
        run.skipped.update(skipped)


def describe_plan(run, rows):
    """How long the training is, and what its steps are: a line for the log"""
    settings = run.settings
    crops = settings.train_batch * world_size()
    length = "as long as the time allows" if run.total_steps is None else (
        f"{run.total_steps} steps")
    return (f"Training {length}, of {crops} crops each, {run.steps_per_epoch} in an epoch; "
            f"{rows} rows; {settings.schedule} schedule from {settings.lr:.2e}")


def describe_epoch(run, before, seconds):
    """How good the last epoch was, how fast, and what limited it: a line for the log.

    before: the pace when it began; seconds: what it took, with its validation.
    """
    text = ("Epoch {epoch}: train_mse={train_mse:.6f} val_mse={val_mse:.6f} lr={lr:.2e}"
            .format(**run.metrics[-1]))
    steps = run.pace.steps - before[2]
    if not steps:  # an earlier run has done them all
        return text
    step, wait = run.pace.since(before)
    crops = run.settings.train_batch * world_size()
    text += f", {crops / step:.1f} samples/s, {wait / step:.0%} of the time waiting for data"
    if run.machine.device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of card memory"
    text += f", {seconds:.0f} s"
    if run.total_steps and not run.is_finished():
        left = (run.total_steps - run.step) * seconds / steps
        text += f", to end about {clock_time(left)}"
    return text


def clock_time(seconds):
    """The local time in so many seconds"""
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))


def write_tables(run, out, skipped):
    """metrics.csv and skipped.csv, as far as the run has come.

    skipped: {path: reason} of what else was left out.
    """
    if rank() == 0:
        write_table(out / "metrics.csv", run.metrics)
        write_skipped(out, {**skipped, **run.skipped, **run.backdrops})


def write_skipped(out, skipped):
    """skipped.csv: {path: reason} of the files that were left out."""
    path = out / "skipped.csv"
    write_table(path, sorted(skipped.items()), ["image_path", "reason"])
    if skipped:
        log(f"{len(skipped)} files cannot be read and are left out: see {path}")
