"""The training engine: exact resume, time limit, several GPUs, EMA, best checkpoint."""

import copy
import math
import os
import shutil
import signal
import time
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from src.augment import JointAugment
from src.checkpoint import read_checkpoint, unpickled, write_checkpoint
from src.console import UserError, log, progress, rank
from src.data import (
    ShuffledEpochs, TrainingSet, ValidationSet, check_share, collated, make_loader, share_loader,
    write_skipped,
)
from src.distributed import (
    agree, average, data_parallel, merged, summed, wait_for_all, world_size,
)
from src.files import digest, replacing
from src.inputs import BEST_CHECKPOINT, LAST_CHECKPOINT
from src.losses import matte_loss, matte_mse
from src.stopping import Interrupted

WEIGHT_DECAY = 1e-4
GRADIENT_NORM = 1.0  # longer gradients are shortened to it
WARM_UP = 0.03  # share of all steps over which the cosine schedule's rate rises
NON_FINITE_IN_A_ROW = 3  # losses that end a run
STEPS_PER_CHECK = 16  # on a GPU, where looking at a loss waits for all work before it
# Settings that decide the weights; --workers, --time-limit and the like do not.
DECISIVE = ("seed", "epochs", "lr", "train_size", "train_batch", "crop_scale", "predict_size",
            "schedule", "ema", "amp", "batch_norm")


class Run:
    """Everything that one training run carries from step to step, and that last.pth holds.

    epoch and batch: the position, `batch` batches of `epoch` are done. best: the lowest validation
    MSE. ema: a copy of the model that holds the moving average, None without one. What each
    process has of its own: totals, float64 (loss, MSE, samples) summed over the epoch so far;
    skipped and backdrops, {path: reason} of pairs and backdrops that could not be read; batch
    norms' statistics; the state of chance.
    """

    PARTS = ("ema", "optimizer", "scheduler", "scaler")
    VALUES = ("epoch", "batch", "best", "metrics", "frozen_norms")

    def __init__(self, model, settings, machine, steps_per_epoch, frozen_norms):
        device = machine.device
        self.model = model.to(device, memory_format=torch.channels_last)
        self.machine = machine
        self.frozen_norms = frozen_norms
        self.non_finite = 0  # losses in a row that were NaN or infinite
        self.ema = None
        if settings.ema:
            self.ema = copy.deepcopy(model)
            self.ema_decay = 0.5 ** (settings.train_batch * world_size() / settings.ema)
        self.parallel = data_parallel(self.model, device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
        if settings.schedule == "cosine":
            self.scheduler = LambdaLR(
                self.optimizer, cosine_with_warm_up(steps_per_epoch * settings.epochs))
        else:
            self.scheduler = ReduceLROnPlateau(
                self.optimizer, mode="min", factor=0.5, patience=2)
        # Without fp16 it only skips, on the device, the steps whose gradients are not finite.
        self.fp16 = machine.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.fp16 else 1.0)
        self.epoch, self.batch, self.best, self.metrics = 1, 0, math.inf, []
        self.skipped, self.backdrops = {}, {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def statistics(self):
        """The batch norms' means, variances and counters, of the network and of its average"""
        models = [self.model] if self.ema is None else [self.model, self.ema]
        return [buffer for model in models for buffer in model.buffers()]

    def update_average(self):
        """Move the average towards the weights and the batch norms' statistics.

        These too: of batches of 4 they jump about so much that the validation MSE changes by half
        when the weights hardly change at all.
        """
        if self.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(floats_of(self.ema), floats_of(self.model),
                                     1 - self.ema_decay)

    def own_state(self):
        """What this process does not share with the others, in the host's memory"""
        chance = {"cpu": torch.get_rng_state()}
        if self.machine.device.type == "cuda":
            chance["cuda"] = torch.cuda.get_rng_state(self.machine.device)
        return {"statistics": [each.cpu() for each in self.statistics()],
                "totals": self.totals.cpu(), "skipped": self.skipped,
                "backdrops": self.backdrops, "random": chance}

    def state_dict(self):
        """For last.pth; all processes call it together."""
        parts = {name: getattr(self, name) for name in self.PARTS}
        return {
            **{name: part and part.state_dict() for name, part in parts.items()},
            **{name: getattr(self, name) for name in self.VALUES},
            "processes": merged([self.own_state()]),
        }

    def load_state_dict(self, state):
        for name in self.PARTS:
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        for name in self.VALUES:
            setattr(self, name, state[name])
        own = state["processes"][rank()]
        self.skipped, self.backdrops = own["skipped"], own["backdrops"]
        self.totals.copy_(own["totals"])
        for buffer, value in zip(self.statistics(), own["statistics"]):
            buffer.copy_(value)
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"]:
            torch.cuda.set_rng_state(own["random"]["cuda"], self.machine.device)


def floats_of(model):
    """Parameters and batch norms' statistics, without the counters of batches seen"""
    return [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]


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


def train(model, train_pairs, val_pairs, settings, machine, inputs, stop, test_count=0, skipped=()):
    """Train the model in place; it ends with the weights of its best validation.

    Writes in `inputs.out`: u2netp_best.pth whenever the validation MSE falls, metrics.csv and
    skipped.csv after every epoch, last.pth after every epoch and every `save_minutes`. A last.pth
    of the same settings and data, there or in what is attached, is continued, to the same weights
    as without the interruption (to the bit on a CPU).

    stop: a StopWatch; test_count: the images to predict afterwards, for which its time limit must
    leave room; skipped: {path: reason} of what was left out of the validation. Returns the metrics,
    a dict for each finished epoch. Raises Interrupted, after saving, when a signal came; UserError
    when last.pth is of another configuration, when the device has too little memory, when three
    losses in a row are not finite (the best checkpoint is kept), or when more than a twentieth of
    the training pairs cannot be read.
    """
    out = inputs.out
    size = settings.predict_size or settings.train_size
    augment = JointAugment(settings.train_size, settings.crop_scale)
    train_set = TrainingSet(train_pairs, augment, settings.seed)
    sampler = ShuffledEpochs(len(train_set), settings.seed)
    train_loader = make_loader(train_set, settings.train_batch, machine, sampler)
    val_loader = share_loader(ValidationSet(val_pairs, size), settings.train_batch, machine)
    # Made in this process, without waking a loader's workers
    first_train = collated([train_set[key] for key in islice(sampler, settings.train_batch)])
    first_val = collated([val_loader.dataset[index] for index in range(min(4, len(val_pairs)))])
    describe_batch("train", first_train)
    describe_batch("val", first_val)

    configuration = configuration_of(settings, model, train_pairs, val_pairs)
    steps = len(train_loader)
    norms = settings.batch_norm
    run = Run(model, settings, machine, steps, norms == "frozen" or (
        norms == "auto" and inputs.checkpoint is not None))
    if resume(run, unfinished(inputs), out, configuration) and run.metrics:
        write_tables(run, out, skipped)
    candidates = {"": model} if run.ema is None else {"": model, ", moving average": run.ema}
    timing = {"val": 0.0, "saved": time.monotonic()}
    if stop.seconds_left() < math.inf:
        timing["val"] = seconds_per_image(model, first_val, machine)

    def save():
        training = run.state_dict()
        if rank() == 0:
            write_checkpoint(out / LAST_CHECKPOINT, model.state_dict(), training=training,
                             configuration=configuration)
        timing["saved"] = time.monotonic()

    def ending():
        reserve = seconds_to_finish(timing["val"], len(val_pairs), test_count)
        out_of_time, interrupted, unsaved = agree(
            stop.seconds_left() < reserve, stop.signal is not None,
            time.monotonic() - timing["saved"] >= 60 * settings.save_minutes)
        if unsaved or interrupted:
            save()
        if interrupted:
            raise Interrupted(stop.signal or signal.SIGTERM)
        return out_of_time

    out_of_time = False
    while run.epoch <= settings.epochs and not out_of_time:
        started = time.monotonic()
        sampler.epoch, sampler.done = run.epoch, run.batch * settings.train_batch
        if run.batch < steps:
            out_of_time = train_epoch(run, train_loader, ending)
        average(run.statistics())
        save()
        if out_of_time:
            log(f"Time limit: training ends in epoch {run.epoch} after {run.batch} of {steps} "
                "batches, to leave room for the prediction")

        began = time.monotonic()
        errors = evaluate(candidates, val_loader, machine, stop)
        timing["val"] = (time.monotonic() - began) / len(candidates) / len(val_pairs)
        name = min(errors, key=lambda name: errors[name][1])
        val_loss, val_mse = errors[name]
        if not out_of_time:
            finish_epoch(run, val_loss, val_mse, out, skipped)
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


def train_epoch(run, loader, ending):
    """Train from the run's position to the end of its epoch, or until there is no time left.

    ending: () -> whether that is so; called by all processes after the same steps. Returns the
    last answer.
    """
    set_train_mode(run.model, run.frozen_norms)
    guard = NonFiniteGuard(run)
    check_every = STEPS_PER_CHECK if run.machine.device.type == "cuda" else 1
    out_of_time = False
    for batch in progress(loader, f"train {run.epoch}", done=run.batch):
        run.backdrops.update(batch["backdrops"])
        if batch["skipped"]:
            run.skipped.update(batch["skipped"])
            check_share(run.skipped, len(loader.dataset), "training")
        try:
            guard.note(train_step(run, batch), batch["path"])
        except torch.OutOfMemoryError:
            raise UserError(memory_advice(*batch["img"].shape[::3])) from None
        run.batch += 1
        if run.batch % check_every == 0:
            guard.check()
            out_of_time = ending()
            if out_of_time:
                break
    guard.check()
    return out_of_time


def memory_advice(batch, size):
    """What to say when a batch of crops of size x size does not fit the device."""
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
    """One optimizer step; returns the batch's loss, a detached scalar tensor."""
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


class NonFiniteGuard:
    """Watches for losses that are NaN or infinite, without waiting for the card in every step.

    The scaler has skipped the step of such a batch; here its trace in the batch norms' running
    statistics is undone, and the third in a row ends the run.
    """

    def __init__(self, run):
        self.run, self.noted = run, []
        self.keep()

    def keep(self):
        self.kept = [buffer.clone() for buffer in self.run.statistics()]

    def note(self, loss, paths):
        self.noted.append((torch.isfinite(loss), paths))

    def check(self):
        """Look at the losses noted since the last check."""
        if not self.noted:
            return
        finite = torch.stack([flag for flag, _ in self.noted]).tolist()
        if not all(finite):
            for buffer, kept in zip(self.run.statistics(), self.kept):
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
def evaluate(models, loader, machine, stop):
    """{name: mean (loss, MSE)} of models over the validation images of all processes, in float32.

    models: {name: network}, set to eval mode. The means are taken image by image in the set's
    order, so that they do not depend on the number of processes.
    """
    errors = []
    for model in models.values():
        model.eval()
    for batch in stop.guarded(progress(loader, "val")):
        images = machine.to_device(batch["img"])
        masks = batch["mask"].to(machine.device, non_blocking=True)
        each = []
        for model in models.values():
            outputs = model(images)
            each.append(torch.stack([matte_loss(outputs, masks), matte_mse(outputs, masks)], dim=1))
        errors += zip(torch.stack(each, dim=1).tolist(), batch["path"])  # [B, models, 2]
    errors = merged(errors)
    broken = [path for each, path in errors if not np.isfinite(each).all()]
    if broken:
        raise UserError(f"the validation loss is not finite for {', '.join(broken[:3])}: look at "
                        "these files, or lower --lr")
    means = np.mean([each for each, _ in errors], axis=0)
    return dict(zip(models, means.tolist()))


def finish_epoch(run, val_loss, val_mse, out, skipped):
    """Note the epoch's metrics, move the plateau schedule, go to the next epoch's start.

    skipped: {path: reason} of what else has been left out, for skipped.csv.
    """
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
    write_tables(run, out, skipped)


def write_tables(run, out, skipped):
    """metrics.csv and skipped.csv, as far as the run has come"""
    if rank() == 0:
        write_skipped(out / "skipped.csv", {**dict(skipped), **run.skipped, **run.backdrops})
        with replacing(out / "metrics.csv") as part:
            pd.DataFrame(run.metrics).to_csv(part, index=False)


def configuration_of(settings, model, train_pairs, val_pairs):
    """What must be the same for a last.pth to be continued."""
    photographs = [os.path.basename(path) for path in train_pairs.photographs]
    configuration = {
        **{name: getattr(settings, name) for name in DECISIVE}, "processes": world_size(),
        "training rows": digest((train_pairs.images, train_pairs.alphas)),
        "validation rows": digest((val_pairs.images, val_pairs.alphas)),
        "backgrounds": digest([np.array(photographs)]) if photographs else None,
    }
    if settings.checkpoint:
        # Weights that were merely found may be the earlier session's own by now.
        weights = model.state_dict().values()
        configuration["first weights"] = digest(tensor.cpu().numpy() for tensor in weights)
    return configuration


def unfinished(inputs):
    """The last.pth to continue: our own, else one that is attached; None if there is none."""
    own = inputs.out / LAST_CHECKPOINT
    return own if own.is_file() else inputs.unfinished


def resume(run, path, out, configuration):
    """Continue what the last.pth at `path` holds; whether there is one (path is not None).

    The best weights so far are copied from beside it. Raises UserError naming the settings in which
    it differs from this run.
    """
    if path is None:
        return False
    content = unpickled(path)
    saved = content.get("configuration", {})
    differing = [f"{name} was {saved.get(name)} and is {configuration.get(name)}"
                 for name in {**configuration, **saved}
                 if saved.get(name) != configuration.get(name)]
    if differing:
        raise UserError(f"{path}: is of another run ({'; '.join(differing)}); take the same "
                        "settings, remove the file, or name another --out")
    run.model.load_state_dict(content["model_state"])
    run.load_state_dict(content["training"])
    best = path.with_name(BEST_CHECKPOINT)
    if path.parent != out and best.is_file() and rank() == 0:
        with replacing(out / BEST_CHECKPOINT) as part:
            shutil.copyfile(best, part)
    wait_for_all()
    if not (out / BEST_CHECKPOINT).is_file():
        run.best = math.inf
    log(f"Continuing {path}: epoch {run.epoch}, {run.batch} batches done")
    return True


def seconds_per_image(model, batch, machine):
    """Time of a forward pass, for an estimate before the first validation has been timed."""
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        with torch.no_grad():
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
    outputs = model(machine.to_device(batch["img"]))
    d0 = outputs[0]
    loss, mse = matte_loss(outputs, masks).mean(), matte_mse(outputs, masks).mean()
    log(f"Check after training: d0 {list(d0.shape)} in [{d0.min():.4f}, {d0.max():.4f}], "
        f"finite {bool(torch.isfinite(d0).all())}; loss {loss:.6f}, MSE {mse:.6f}, "
        f"finite {bool(torch.isfinite(loss) and torch.isfinite(mse))}")
