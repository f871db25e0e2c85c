"""The training loop: steps, epochs, the best checkpoint, the end of the time."""

import math
import signal
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import all_gather, all_reduce, average_tensors, barrier
from src.runtime.processes import rank, world_size
from src.runtime.stopping import Interrupted
from src.runtime.tables import write_table
from src.inputs.discovery import BEST_CHECKPOINT
from src.data.augment import JointAugment
from src.data.backdrops import PhotographPool
from src.data.datasets import ShuffledEpochs, TrainingSet, ValidationSet
from src.data.loading import make_loader, share_loader
from src.data.splits import check_share, write_skipped
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.losses import matte_loss, matte_mse
from src.training.evaluation import describe_outputs, evaluate
from src.training.state import Run, decided, make_configuration, resume, save, unfinished

MOST_SAMPLES = 20_000  # of an epoch, so that validation comes every few minutes
INVERTED = 0.6  # MSE of good weights on inverted masks at least; a half everywhere has up to 0.25
GRADIENT_NORM = 1.0  # longer gradients are shortened to it
NON_FINITE_IN_A_ROW = 3  # losses that end a run


def train(model, splits, settings, machine, inputs, stop):
    """Train the model in place; it ends with the weights of its best validation, which may be those
    it started from.

    Writes in `inputs.out`: u2netp_best.pth whenever the validation MSE falls, metrics.csv and
    skipped.csv after every epoch, last.pth after every epoch and every `save_minutes`. A last.pth
    of the same settings and data, there or attached, is continued, to the same weights as without
    the interruption (to the bit on a CPU, by epochs).

    splits: `Splits`; stop: `StopWatch`. Returns the metrics, a dict for each finished epoch, and
    whether the training has come to its end. Raises Interrupted, after saving, when a signal came;
    UserError when last.pth is of another configuration, when the device has too little memory, when
    three losses in a row are not finite (the best checkpoint is kept), or when more than a
    twentieth of the training pairs cannot be read.
    """
    settings = decided(settings, machine, inputs.kaggle_input is not None)
    out, size = inputs.out, settings.predict_size or settings.train_size
    train_set = TrainingSet(
        splits.train, JointAugment(settings.train_size, settings.crop_scale), settings.seed)
    sampler = ShuffledEpochs(len(train_set), settings.seed,
                             settings.epoch_samples or min(len(train_set), MOST_SAMPLES))
    configuration = make_configuration(settings, model, splits)
    # Before the loaders, which look how much shared memory NCCL has left them.
    run = Run(model, settings, machine, math.ceil(len(sampler) / settings.train_batch),
              frozen_norms=inputs.checkpoint is not None)
    resumed = resume(run, unfinished(inputs), out, configuration)
    train_loader = make_loader(train_set, settings.train_batch, machine, sampler)
    # As many pixels as a step has, which trains in as much memory.
    val_batch = max(1, settings.train_batch * min(1, settings.train_size**2 / size**2) // 1)
    val_loader = share_loader(ValidationSet(splits.val, size), int(val_batch), machine)
    photographs = PhotographPool(splits.train.photographs, settings.seed, 2 * settings.train_size,
                                 machine.device)
    keep = partial(save, run, out, configuration)
    if run.metrics:
        write_tables(run, out, splits.val.skipped)
    if not resumed:
        if inputs.checkpoint or settings.epochs is None:
            name, _, val_mse = validate(run, val_loader, stop)
            if inputs.checkpoint:  # random weights would pass for some to start from
                keep_best(run, out, size, name, val_mse, epoch=0)
        run.start_clock(stop)
    log(describe_plan(run, len(splits.train)))

    late = False
    while not (run.is_finished() or late):
        epoch, began, waits = run.epoch, time.monotonic(), []
        late = train_epoch(run, train_loader, photographs, waits, partial(look, run, stop, keep))
        trained = time.monotonic() - began
        average_tensors(run.statistics())
        keep()
        name, val_loss, val_mse = validate(run, val_loader, stop)
        if run.epoch_is_complete():
            finish_epoch(run, val_loss, val_mse, photographs.unreadable)
            write_tables(run, out, splits.val.skipped)
            log(describe_epoch(run, waits, trained, time.monotonic() - began))
        keep_best(run, out, size, name, val_mse, epoch)
        keep()
        late = late or look(run, stop, keep)  # the time may have run out meanwhile
    if late:
        log(f"Time limit: training ends in epoch {run.epoch} after {run.batch} batches, to leave "
            "room for the prediction")

    barrier()
    model.load_state_dict(read_checkpoint(out / BEST_CHECKPOINT).model_state)
    if run.best_epoch == 0:
        log("No epoch was better than the weights that the training started from: they stay")
    describe_outputs(model, val_loader, machine)
    return run.metrics, run.is_finished()


def look(run, stop, keep):
    """Compare notes with the other processes: progress, time, signals. All call it after the same
    steps. Saves when that is due. Returns whether the run's time is up; raises Interrupted, after
    saving, when a signal came."""
    run.tick()
    notes = all_gather([(
        run.own_progress(), stop.seconds_for_training(run.val_seconds) <= 0,
        stop.signal is not None,
        time.monotonic() - run.saved_at >= 60 * run.settings.save_minutes)])
    run.progress, late, interrupted, unsaved = map(max, zip(*notes))
    if late and run.fills_the_time:
        run.progress = 1.0
    if unsaved or interrupted:
        keep()
    if interrupted:
        raise Interrupted(stop.signal or signal.SIGTERM, True)
    return late and run.progress < 1


def validate(run, loader, stop):
    """(note for the log, loss, MSE) of the better of the weights and their average, timed."""
    began = time.monotonic()
    errors = evaluate(run.candidates(), loader, run.machine, stop)
    run.val_seconds = (time.monotonic() - began) / len(errors) / len(loader.dataset)
    name = min(errors, key=lambda name: errors[name][1])
    return name, *errors[name]


def keep_best(run, out, size, name, val_mse, epoch):
    """Write the candidate of that name to u2netp_best.pth if its validation MSE is the lowest."""
    if val_mse >= run.best:
        return
    run.best, run.best_epoch = val_mse, epoch
    if rank() == 0:
        # Weights without a recipe count as not trained here, should the run end now.
        recipe = {"recipe": {"predict_size": size}} if epoch else {}
        write_checkpoint(out / BEST_CHECKPOINT, run.candidates()[name].state_dict(),
                         val_mse=val_mse, **recipe)
    if epoch:
        log(f"  -> saved the best model so far (val_mse={val_mse:.6f}{name})")
    else:
        log(f"Validation MSE before the first step: {val_mse:.6f}")
        if val_mse > INVERTED:
            log("WARNING: that is as of inverted masks; save them with 0 for the backdrop and "
                "255 for the subject")


# ---------------------------------------------------------------- one epoch


def train_epoch(run, loader, photographs, waits, look_around):
    """Train from the run's position to the end of its epoch, or of the training.

    photographs: `PhotographPool`; waits: list, gets the seconds that each batch was waited for;
    look_around: () -> whether the run's time is up. Returns that.
    """
    if run.epoch_is_complete():  # an earlier run stopped before its validation
        return False
    set_train_mode(run.model, run.frozen_norms)
    settings, device = run.settings, run.machine.device
    loader.sampler.epoch = run.epoch
    loader.sampler.done = run.batch * settings.train_batch
    with memory_advised(settings.train_batch, settings.train_size):
        backdrops = photographs.for_epoch(run.epoch)
    losses = []
    bar = progress(loader, f"train {run.epoch}", done=run.batch)
    for items in noting_waits(bar, waits):
        photographs.prepare(run.epoch + 1)
        note_unreadable(run, items["skipped"], len(loader.dataset))
        with memory_advised(len(items["path"]), settings.train_size):
            batch = loader.dataset.augment.apply(items, backdrops, device, crop_size(run))
            losses.append((train_step(run, batch), batch["path"]))
        run.batch += 1
        if run.batch % run.machine.check_every == 0 or run.batch == run.steps_per_epoch:
            check_losses(run, losses)
            losses.clear()
            late = look_around()
            if late or run.progress >= 1:
                return late
    return False


def noting_waits(batches, waits):
    """The batches; `waits` gets the seconds in which the loader had none for the next step."""
    batches, began = iter(batches), time.monotonic()
    for batch in batches:
        waits.append(time.monotonic() - began)
        yield batch
        began = time.monotonic()


def crop_size(run):
    """Side of the next step's crops, in steps of 32 down from the largest; the position alone
    decides, so that it is the same in all processes and after a resume."""
    settings = run.settings
    smallest = settings.min_train_size or settings.train_size
    sizes = range(settings.train_size, smallest - 1, -32)
    rng = np.random.default_rng([settings.seed, run.epoch, run.batch])
    return sizes[int(rng.integers(len(sizes)))]


def note_unreadable(run, skipped, count):
    """Remember a batch's unreadable files. Raises UserError when they are too many of the `count`
    pairs."""
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

    A step whose gradients are not finite is skipped by the scaler, on the device; a loss that is
    not finite leaves the batch norms' statistics, and so their average, as they were.
    """
    run.set_rate()
    run.optimizer.zero_grad(set_to_none=True)
    statistics = [] if run.frozen_norms else [*map(torch.clone, run.model.buffers())]
    loss, mse = accumulate_gradients(run, batch)
    for buffer, before in zip(run.model.buffers(), statistics):
        buffer.copy_(torch.where(torch.isfinite(loss), buffer, before))
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    run.scaler.step(run.optimizer)
    # Without fp16 an infinite gradient would halve the scale as well.
    run.scaler.update(None if run.fp16 else 1.0)
    run.update_average()
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
    loss, mse, samples = all_reduce(run.totals.cpu().numpy()).tolist()
    if run.plateau is not None:
        run.plateau.step(val_mse)
    run.metrics.append({
        "epoch": run.epoch, "train_loss": loss / max(samples, 1),
        "train_mse": mse / max(samples, 1), "val_loss": val_loss, "val_mse": val_mse,
        "lr": run.rate,
    })
    run.totals.zero_()
    run.epoch, run.batch = run.epoch + 1, 0
    run.backdrops.update(unreadable)
    for skipped in all_gather([run.skipped]):
        run.skipped.update(skipped)


def describe_plan(run, rows):
    """How long the training is, and what its steps are: a line for the log"""
    settings = run.settings
    length = f"{run.total_steps} steps" if run.budget is None else (
        f"until {clock_time(run.budget - run.spent)}, in steps")
    return (f"Training {length} of {settings.train_batch * world_size()} crops each, "
            f"{run.steps_per_epoch} in an epoch; {rows} rows; {settings.schedule} schedule from "
            f"{settings.lr:.2e}")


def describe_epoch(run, waits, trained, seconds):
    """How good the last epoch was, how fast, and what limited it: a line for the log.

    waits: of `noting_waits`; trained: seconds of its steps; seconds: with its validation.
    """
    text = ("Epoch {epoch}: train_mse={train_mse:.6f} val_mse={val_mse:.6f} lr={lr:.2e}"
            .format(**run.metrics[-1]))
    if not waits:  # an earlier run has done all the steps
        return text
    crops = len(waits) * run.settings.train_batch * world_size()
    text += (f", {crops / trained:.1f} samples/s, {sum(waits) / trained:.0%} of the time without "
             "data")
    if run.machine.device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of card memory"
    left = (run.budget - run.spent if run.budget else
            (run.total_steps - run.step) * seconds / len(waits))
    return text + f", {seconds:.0f} s" + (
        "" if run.is_finished() else f", to end about {clock_time(left)}")


def clock_time(seconds):
    """The local time in so many seconds"""
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))


def write_tables(run, out, skipped):
    """metrics.csv and skipped.csv, as far as the run has come.

    skipped: {path: reason} of the validation pairs left out.
    """
    if rank() == 0:
        write_table(out / "metrics.csv", run.metrics)
        write_skipped(out, {**skipped, **run.skipped, **run.backdrops})
