"""The training loop: steps, epochs, the best checkpoint, the end of the time."""

import math
import signal
import time
from functools import partial
from itertools import islice

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import agree, average, merged, summed, wait_for_all
from src.runtime.processes import rank
from src.runtime.stopping import Interrupted
from src.runtime.tables import write_table
from src.inputs.discovery import BEST_CHECKPOINT
from src.data.augment import JointAugment
from src.data.datasets import (
    ShuffledEpochs, TrainingSet, ValidationSet, check_share, collated, make_loader, share_loader,
)
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.losses import matte_loss, matte_mse
from src.training.evaluation import (
    describe_batch, describe_outputs, evaluate, seconds_per_image,
)
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
    each finished epoch. Raises Interrupted, after saving, when a signal came; UserError when
    last.pth is of another configuration, when the device has too little memory, when three losses
    in a row are not finite (the best checkpoint is kept), or when more than a twentieth of the
    training pairs cannot be read.
    """
    out, size = inputs.out, settings.predict_size or settings.train_size
    train_loader, val_loader = loaders(splits, settings, size, machine)
    first_train = first_items(train_loader, train_loader.sampler)
    first_val = first_items(val_loader, range(len(splits.val)))
    describe_batch("train", first_train)
    describe_batch("val", first_val)
    configuration = configuration_of(settings, model, splits)
    run = Run(model, settings, machine, len(train_loader), norms_are_frozen(settings, inputs))
    resume(run, unfinished(inputs), out, configuration)
    if run.metrics:
        write_tables(run, out, splits.val.skipped)
    if stop.seconds_left() < math.inf:
        run.val_seconds = seconds_per_image(model, first_val, machine)

    keep = partial(save, run, out, configuration)
    out_of_time = False
    while run.epoch <= settings.epochs and not out_of_time:
        started = time.monotonic()
        out_of_time = train_epoch(run, train_loader, partial(end_of_time, run, stop, reserve, keep))
        average(run.statistics())
        keep()
        if out_of_time:
            log(f"Time limit: training ends in epoch {run.epoch} after {run.batch} batches, to "
                "leave room for the prediction")
        name, val_loss, val_mse = validate(run, val_loader, stop)
        if not out_of_time:
            finish_epoch(run, val_loss, val_mse)
            write_tables(run, out, splits.val.skipped)
            log("Epoch {epoch}: train_mse={train_mse:.6f} val_mse={val_mse:.6f} lr={lr:.2e}"
                .format(**run.metrics[-1]) + f" ({time.monotonic() - started:.1f} s)")
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
    return run.metrics


def loaders(splits, settings, size, machine):
    """(training loader, loader of this process's share of the validation images at `size`)"""
    augment = JointAugment(settings.train_size, settings.crop_scale)
    train_set = TrainingSet(splits.train, augment, settings.seed)
    sampler = ShuffledEpochs(len(train_set), settings.seed)
    return (make_loader(train_set, settings.train_batch, machine, sampler),
            share_loader(ValidationSet(splits.val, size), settings.train_batch, machine))


def first_items(loader, keys):
    """A batch of the first keys' items, made in this process without starting the workers."""
    return collated([loader.dataset[key] for key in islice(keys, loader.batch_size)])


def norms_are_frozen(settings, inputs):
    """Whether batch norms keep the statistics of the weights that the training starts from."""
    if settings.batch_norm == "auto":
        return inputs.checkpoint is not None
    return settings.batch_norm == "frozen"


def end_of_time(run, stop, reserve, keep):
    """Whether the time limit ends the training now. All processes call it after the same steps,
    and agree. Saves when that is due; raises Interrupted, after saving, when a signal came."""
    out_of_time, interrupted, unsaved = agree(
        stop.seconds_left() < reserve(run.val_seconds), stop.signal is not None,
        time.monotonic() - run.saved_at >= 60 * run.settings.save_minutes)
    if unsaved or interrupted:
        keep()
    if interrupted:
        raise Interrupted(stop.signal or signal.SIGTERM)
    return out_of_time


def validate(run, loader, stop):
    """(note for the log, loss, MSE) of the better of the weights and their average, timed."""
    began = time.monotonic()
    errors = evaluate(run.candidates(), loader, run.machine, stop)
    run.val_seconds = (time.monotonic() - began) / len(errors) / len(loader.dataset)
    name = min(errors, key=lambda name: errors[name][1])
    return name, *errors[name]


# ---------------------------------------------------------------- one epoch


def train_epoch(run, loader, ending):
    """Train from the run's position to the end of its epoch, or until there is no time left.

    ending: () -> whether that is so; called by all processes after the same steps. Returns the
    last answer.
    """
    set_train_mode(run.model, run.frozen_norms)
    loader.sampler.epoch = run.epoch
    loader.sampler.done = run.batch * run.settings.train_batch
    check_every = STEPS_PER_CHECK if run.machine.device.type == "cuda" else 1
    losses = []
    for batch in progress(loader, f"train {run.epoch}", done=run.batch):
        note_unreadable(run, batch, len(loader.dataset))
        try:
            losses.append((train_step(run, batch), batch["path"]))
        except torch.OutOfMemoryError:
            raise UserError(memory_advice(*batch["img"].shape[::3])) from None
        run.batch += 1
        if run.batch % check_every == 0:
            check_losses(run, losses)
            losses.clear()
            if ending():
                return True
    check_losses(run, losses)
    return False


def note_unreadable(run, batch, count):
    """Remember what a batch's items could not read. Raises UserError when it is too much of the
    `count` pairs."""
    run.backdrops.update(batch["backdrops"])
    if batch["skipped"]:
        run.skipped.update(batch["skipped"])
        check_share(run.skipped, count, "training")


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
    images = run.machine.to_device(batch["img"])
    masks = batch["mask"].to(run.machine.device, non_blocking=True)
    with run.machine.autocast():
        outputs = run.parallel(images)
    loss = matte_loss(outputs, masks).mean()
    run.scaler.scale(loss).backward()
    return loss.detach(), matte_mse(outputs, masks).mean()


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


def finish_epoch(run, val_loss, val_mse):
    """Note the epoch's metrics, move the plateau schedule, go to the next epoch's start."""
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
    for pairs, backdrops in merged([(run.skipped, run.backdrops)]):
        run.skipped.update(pairs)
        run.backdrops.update(backdrops)


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
