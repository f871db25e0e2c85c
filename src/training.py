"""The training engine: exact resume, time limit, several GPUs, EMA, best checkpoint."""

import math
import time
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.augment import JointAugment
from src.checkpoint import read_checkpoint, unpickled, write_checkpoint
from src.console import UserError, log, progress, rank
from src.data import (
    ShuffledEpochs, TrainingSet, ValidationSet, check_share, collated, make_loader, share_loader,
    write_skipped,
)
from src.distributed import (
    agree, average_buffers, merged, sum_over_processes, wait_for_all, world_size,
)
from src.files import digest, replacing
from src.inputs import BEST_CHECKPOINT
from src.losses import matte_loss, matte_mse
from src.stopping import Interrupted

WEIGHT_DECAY = 1e-4
GRADIENT_NORM = 1.0  # longer gradients are shortened to it
WARM_UP = 0.03  # share of all steps over which the cosine schedule's rate rises
NON_FINITE_IN_A_ROW = 3  # losses that end a run
STEPS_PER_CHECK = 16  # on a GPU, where looking at a loss waits for all work before it
LAST_CHECKPOINT = "last.pth"
# Settings that decide the weights; --workers, --time-limit and the like do not.
DECISIVE = ("seed", "epochs", "lr", "train_size", "train_batch", "crop_scale", "predict_size",
            "schedule", "ema", "amp", "batch_norm")


class Run:
    """Everything that one training run carries from step to step, and that last.pth holds.

    epoch and batch: the position, `batch` batches of `epoch` are done. totals: float64
    (loss, MSE, samples) summed over the epoch so far. best: the lowest validation MSE. skipped:
    {image path: reason} of the pairs that could not be read.
    """

    PARTS = ("ema", "optimizer", "scheduler", "scaler")
    VALUES = ("epoch", "batch", "best", "metrics", "totals", "skipped")

    def __init__(self, model, settings, machine, steps_per_epoch):
        device = machine.device
        self.model = model.to(device, memory_format=torch.channels_last)
        self.machine = machine
        self.frozen_norms = settings.batch_norm == "frozen"
        self.pieces = 1  # that a batch is computed in
        self.non_finite = 0  # losses in a row that were NaN or infinite
        self.parallel = self.model
        if world_size() > 1:
            # Batch norms see their own card's crops only: synchronising 112 of them in every step
            # costs more than it gives at these batch sizes. Their running statistics are the first
            # card's, and the mean of all cards' where an epoch ends.
            self.parallel = DistributedDataParallel(
                self.model, device_ids=[device] if device.type == "cuda" else None)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
        if settings.schedule == "cosine":
            self.scheduler = LambdaLR(
                self.optimizer, cosine_with_warm_up(steps_per_epoch * settings.epochs))
        else:
            self.scheduler = ReduceLROnPlateau(
                self.optimizer, mode="min", factor=0.5, patience=2)
        # Without fp16 the scale stays 1, and only skips the steps whose gradients are not finite.
        fp16 = machine.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if fp16 else 1.0,
            growth_interval=2000 if fp16 else 2**31 - 1)
        self.ema = None
        if settings.ema:
            decay = 0.5 ** (settings.train_batch * world_size() / settings.ema)
            # The batch norms' statistics are averaged too: of batches of 4 they jump about so much
            # that the validation MSE changes by half when the weights hardly change at all.
            self.ema = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.epoch, self.batch, self.best, self.metrics, self.skipped = 1, 0, math.inf, [], {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def state_dict(self):
        parts = {name: getattr(self, name) for name in self.PARTS}
        random = {"cpu": torch.get_rng_state()}
        if self.machine.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.machine.device)
        return {
            **{name: part and part.state_dict() for name, part in parts.items()},
            **{name: getattr(self, name) for name in self.VALUES}, "random": random,
        }

    def load_state_dict(self, state):
        for name in self.PARTS:
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        for name in self.VALUES:
            setattr(self, name, state[name])
        self.totals = self.totals.to(self.machine.device)
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.machine.device)


def cosine_with_warm_up(steps):
    """Factor of the learning rate by step: linear from 0 to 1, then a half cosine back to 0.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    rising = max(1, round(WARM_UP * steps))

    def factor(step):
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor


# ---------------------------------------------------------------- the loop


def train(model, train_pairs, val_pairs, settings, machine, out, stop, test_count=0, skipped=()):
    """Train the model in place; it ends with the weights of its best validation.

    Writes in `out`: u2netp_best.pth whenever the validation MSE falls, metrics.csv and skipped.csv
    after every epoch, last.pth after every epoch and every `save_minutes`. A last.pth of the same
    settings and data is continued, to the same weights as without the interruption (to the bit on a
    CPU).

    stop: a StopWatch; test_count: the images to predict afterwards, for which its time limit must
    leave room; skipped: {image path: reason} of validation pairs that were left out. Returns the
    metrics, a dict for each finished epoch. Raises Interrupted, after saving, when a signal came;
    UserError when last.pth is of another configuration, when three losses in a row are not finite
    (the best checkpoint is kept), or when more than a twentieth of the training pairs cannot be
    read.
    """
    size = settings.predict_size or settings.train_size
    augment = JointAugment(settings.train_size, settings.crop_scale)
    train_set = TrainingSet(train_pairs, augment, settings.seed)
    sampler = ShuffledEpochs(len(train_set), settings.seed)
    train_loader = make_loader(train_set, settings.train_batch, machine, sampler)
    val_set = ValidationSet(val_pairs, size)
    val_loader = share_loader(val_set, settings.train_batch, machine)
    # Made in this process, without waking a loader's workers
    first_train = collated([train_set[key] for key in islice(sampler, settings.train_batch)])
    first_val = collated([val_set[index] for index in range(min(4, len(val_pairs)))])
    describe_batch("train", first_train)
    describe_batch("val", first_val)

    configuration = {
        **{name: getattr(settings, name) for name in DECISIVE}, "processes": world_size(),
        "first weights": digest(tensor.cpu().numpy() for tensor in model.state_dict().values()),
        "training rows": digest((train_pairs.images, train_pairs.alphas)),
        "validation rows": digest((val_pairs.images, val_pairs.alphas)),
    }
    steps = len(train_loader)
    run = Run(model, settings, machine, steps)
    run.skipped.update(skipped)
    resume(run, out / LAST_CHECKPOINT, configuration)
    candidates = {"": model} if run.ema is None else {"": model, ", moving average": run.ema.module}
    timing = {"val": 0.0}
    if stop.seconds_left() < math.inf:
        timing["val"] = seconds_per_image(model, first_val, machine)

    def save():
        if rank() == 0:
            write_checkpoint(out / LAST_CHECKPOINT, model.state_dict(), training=run.state_dict(),
                             configuration=configuration)

    def must_end():
        reserve = seconds_to_finish(timing["val"], len(val_pairs), test_count)
        return agree(stop.seconds_left() < reserve, stop.signal is not None)

    out_of_time = False
    while run.epoch <= settings.epochs and not out_of_time:
        started = time.monotonic()
        sampler.epoch, sampler.done = run.epoch, run.batch * settings.train_batch
        if run.batch < steps:
            out_of_time, interrupted = train_epoch(
                run, train_loader, must_end, save, 60 * settings.save_minutes)
            average_buffers(model)
            save()
            if interrupted:
                raise Interrupted(stop.signal)
        if out_of_time:
            log(f"Time limit: training ends in epoch {run.epoch} after {run.batch} of {steps} "
                "batches, to leave room for the prediction")

        began = time.monotonic()
        errors = {name: evaluate(each, val_loader, machine.for_prediction(), stop)
                  for name, each in candidates.items()}
        timing["val"] = (time.monotonic() - began) / len(candidates) / len(val_pairs)
        name = min(errors, key=lambda name: errors[name][1])
        val_loss, val_mse = errors[name]
        if not out_of_time:
            finish_epoch(run, val_loss, val_mse, out)
            log("Epoch {epoch}: train_mse={train_mse:.6f} val_mse={val_mse:.6f} lr={lr:.2e}"
                .format(**run.metrics[-1]) + f" ({time.monotonic() - started:.1f} s)")
        if val_mse < run.best:
            run.best = val_mse
            if rank() == 0:
                write_checkpoint(out / BEST_CHECKPOINT, candidates[name].state_dict(),
                                 val_mse=val_mse, recipe={"predict_size": size})
            log(f"  -> saved the best model so far (val_mse={val_mse:.6f}{name})")
        save()

    wait_for_all()
    model.load_state_dict(read_checkpoint(out / BEST_CHECKPOINT).model_state)
    describe_outputs(model, first_train, machine)
    return run.metrics


def train_epoch(run, loader, must_end, save, save_seconds):
    """Train from the run's position to the end of its epoch, or until something ends the run.

    must_end: () -> [out of time, interrupted], what this returns too.
    """
    set_train_mode(run.model, run.frozen_norms)
    guard = NonFiniteGuard(run)
    check_every = STEPS_PER_CHECK if run.machine.device.type == "cuda" else 1
    last_save, ending = time.monotonic(), [False, False]
    for batch in progress(loader, f"train {run.epoch}", done=run.batch):
        if batch["skipped"]:
            run.skipped.update(batch["skipped"])
            check_share(run.skipped, len(loader.dataset), "training")
        guard.note(train_step(run, batch), batch["path"])
        run.batch += 1
        if run.batch % check_every == 0:
            guard.check()
            if time.monotonic() - last_save >= save_seconds:
                save()
                last_save = time.monotonic()
            ending = must_end()
            if any(ending):
                break
    guard.check()
    return ending


def set_train_mode(model, frozen_norms):
    """Training mode; frozen batch norms keep their statistics and train scale and shift only."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(not frozen_norms)


def train_step(run, batch):
    """One optimizer step; returns the batch's loss, a detached scalar tensor.

    When the card runs out of memory the batch is computed in twice as many pieces from then on.
    """
    images = run.machine.to_device(batch["img"])
    masks = batch["mask"].to(run.machine.device, non_blocking=True)
    errors = None
    while errors is None:
        run.optimizer.zero_grad(set_to_none=True)
        try:
            errors = accumulate_gradients(run, images, masks)
        except torch.OutOfMemoryError:
            halve_pieces(run, len(images))
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None:
        run.ema.update_parameters(run.model)
    if isinstance(run.scheduler, LambdaLR):
        run.scheduler.step()
    loss, mse = errors
    finite = torch.isfinite(loss)
    seen = torch.stack([loss, mse, torch.ones_like(loss)]).double() * len(images)
    run.totals += torch.where(finite, seen, 0.0)
    return loss


def accumulate_gradients(run, images, masks):
    """Add the gradients of the batch's mean loss, piece by piece; returns (loss, MSE), detached."""
    images, masks = images.tensor_split(run.pieces), masks.tensor_split(run.pieces)
    count, totals = sum(map(len, images)), 0.0
    for number, (image, mask) in enumerate(zip(images, masks), 1):
        waits = number < run.pieces and run.parallel is not run.model
        with run.parallel.no_sync() if waits else nullcontext():
            with run.machine.autocast():
                outputs = run.parallel(image)
            loss = matte_loss(outputs, mask).sum() / count
            run.scaler.scale(loss).backward()
        totals += torch.stack([loss.detach(), matte_mse(outputs, mask).sum() / count])
    return totals


def halve_pieces(run, batch):
    """Compute batches in twice as many pieces; the gradients stay those of the whole batch."""
    if run.pieces >= batch:
        raise UserError("the card has no memory for a single crop; lower --train-size") from None
    run.pieces = min(2 * run.pieces, batch)
    if run.machine.device.type == "cuda":
        torch.cuda.empty_cache()
    log(f"Out of memory: from here on a batch is computed in {run.pieces} pieces")


class NonFiniteGuard:
    """Watches for losses that are NaN or infinite, without waiting for the card in every step.

    The scaler has skipped the step of such a batch; here its trace in the batch norms' running
    statistics is undone, and the third in a row ends the run.
    """

    def __init__(self, run):
        self.run, self.noted = run, []
        self.keep()

    def buffers(self):
        """The statistics of the network and of its moving average"""
        models = [self.run.model] if self.run.ema is None else [self.run.model, self.run.ema.module]
        return [buffer for model in models for buffer in model.buffers()]

    def keep(self):
        self.kept = [buffer.clone() for buffer in self.buffers()]

    def note(self, loss, paths):
        self.noted.append((torch.isfinite(loss), paths))

    def check(self):
        """Look at the losses noted since the last check."""
        if not self.noted:
            return
        finite = torch.stack([flag for flag, _ in self.noted]).tolist()
        if not all(finite):
            for buffer, kept in zip(self.buffers(), self.kept):
                buffer.copy_(kept)
        for is_finite, (_, paths) in zip(finite, self.noted):
            self.run.non_finite = 0 if is_finite else self.run.non_finite + 1
            if is_finite:
                continue
            files = ", ".join(paths)
            if self.run.non_finite == NON_FINITE_IN_A_ROW:
                raise UserError(
                    f"the loss was not finite {NON_FINITE_IN_A_ROW} times in a row, the last time "
                    f"in epoch {self.run.epoch} for {files}; look at these files, or lower --lr")
            log(f"Epoch {self.run.epoch}: a loss was not finite, its step is skipped ({files})")
        self.noted.clear()
        self.keep()


# ---------------------------------------------------------------- validation and bookkeeping


@torch.no_grad()
def evaluate(model, loader, machine, stop):
    """Mean (loss, MSE) over the validation images of all processes, in eval mode.

    The means are taken image by image in the set's order, so that they do not depend on the
    number of processes.
    """
    model.eval()
    errors = []
    for batch in stop.guarded(progress(loader, "val")):
        masks = batch["mask"].to(machine.device, non_blocking=True)
        with machine.autocast():
            outputs = model(machine.to_device(batch["img"]))
        both = torch.stack([matte_loss(outputs, masks), matte_mse(outputs, masks)], dim=1)
        errors += zip(both.tolist(), batch["path"])
    errors = merged(errors)
    broken = [path for both, path in errors if not np.isfinite(both).all()]
    if broken:
        raise UserError(f"the validation loss is not finite for {', '.join(broken[:3])}: look at "
                        "these files, or lower --lr")
    return np.mean([both for both, _ in errors], axis=0).tolist()


def finish_epoch(run, val_loss, val_mse, out):
    """Note the epoch's metrics, move the plateau schedule, go to the next epoch's start."""
    loss, mse, samples = sum_over_processes(run.totals).tolist()
    if isinstance(run.scheduler, ReduceLROnPlateau):
        run.scheduler.step(val_mse)
    run.metrics.append({
        "epoch": run.epoch, "train_loss": loss / max(samples, 1),
        "train_mse": mse / max(samples, 1), "val_loss": val_loss, "val_mse": val_mse,
        "lr": run.optimizer.param_groups[0]["lr"],
    })
    run.totals = torch.zeros_like(run.totals)
    run.epoch, run.batch = run.epoch + 1, 0
    for others in merged([run.skipped]):
        run.skipped.update(others)
    if rank() == 0:
        write_skipped(out / "skipped.csv", run.skipped)
        with replacing(out / "metrics.csv") as part:
            pd.DataFrame(run.metrics).to_csv(part, index=False)


def resume(run, path, configuration):
    """Continue what last.pth holds, if it is there.

    Raises UserError naming the settings in which it differs from this run.
    """
    if not path.is_file():
        return
    content = unpickled(path)
    saved = content.get("configuration", {})
    differing = [f"{name} was {saved.get(name)} and is {value}"
                 for name, value in configuration.items() if saved.get(name) != value]
    if differing:
        raise UserError(f"{path}: is of another run ({'; '.join(differing)}); take the same "
                        "settings, remove the file, or name another --out")
    run.model.load_state_dict(content["model_state"])
    run.load_state_dict(content["training"])
    log(f"Continuing {path}: epoch {run.epoch}, {run.batch} batches done")


def seconds_per_image(model, batch, machine):
    """Time of a forward pass, for an estimate before the first validation has been timed."""
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        with torch.no_grad(), machine.autocast():
            model.eval()(machine.to_device(batch["img"]))[0].sum().item()
    return (time.monotonic() - began) / len(batch["img"]) / world_size()


def seconds_to_finish(val_seconds, val_count, test_count):
    """What must be left when training ends: two validations, the choice of a recipe (at two sizes,
    with and without mirroring), a calibration, the final score and the prediction (at the dearest
    recipe, with decoding and encoding), half as much again for safety, and half a minute.

    val_seconds: a validation image's share of the time, all processes together.
    """
    overhead = 0.2 / world_size()
    recipes = min(val_count, 64) * (6 * val_seconds + 4 * overhead)
    calibration = 2 * val_count * (4 * val_seconds + overhead)
    prediction = test_count * (4 * val_seconds + overhead)
    return 1.5 * (2 * val_count * val_seconds + recipes + calibration + prediction) + 30


def describe_batch(title, batch):
    """A log line that shows that shapes and ranges are what the network expects."""
    parts = [
        f"{key} {list(batch[key].shape)} in [{batch[key].min():.2f}, {batch[key].max():.2f}]"
        for key in ("img", "mask")
    ]
    log(f"First {title} batch: {', '.join(parts)}")


@torch.no_grad()
def describe_outputs(model, batch, machine):
    """A log line that shows that the trained network's output, loss and metric are sound."""
    model.eval()
    masks = batch["mask"].to(machine.device)
    with machine.autocast():
        outputs = model(machine.to_device(batch["img"]))
    d0 = outputs[0]
    loss, mse = matte_loss(outputs, masks).mean(), matte_mse(outputs, masks).mean()
    log(f"Check after training: d0 {list(d0.shape)} in [{d0.min():.4f}, {d0.max():.4f}], "
        f"finite {bool(torch.isfinite(d0).all())}; loss {loss:.6f}, MSE {mse:.6f}, "
        f"finite {bool(torch.isfinite(loss) and torch.isfinite(mse))}")
