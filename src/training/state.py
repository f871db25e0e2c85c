"""Everything that a training carries from step to step, and its exact resumption."""

import copy
import math
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from src.runtime.console import UserError, log
from src.runtime.distributed import all_gather, barrier, data_parallel, is_guarded
from src.runtime.files import digest, replacing
from src.runtime.processes import rank, world_size
from src.inputs.discovery import BEST_CHECKPOINT, LAST_CHECKPOINT
from src.network.checkpoint import unpickled, weights_digest, write_checkpoint

EPOCHS = 5  # where neither --epochs nor a time limit says how many
CPU_BATCH, CARD_BATCH = 4, 16  # crops of a step; on a card, if its memory holds so many
GIB_PER_CROP = 0.6  # of 320x320 in half precision; U2-Net needs 0.45, U2-NetP 0.3
LR_OF_4 = 1e-4  # learning rate for steps of 4 crops, the notebook's
WEIGHT_DECAY = 1e-4
WARM_UP = 0.03  # share of the training in which the cosine schedule's rate rises
# Settings that decide the weights; --workers, --time-limit and the like do not.
DECISIVE = ("seed", "epochs", "epoch_samples", "hours", "lr", "train_size", "min_train_size",
            "train_batch", "crop_scale", "predict_size", "schedule", "ema", "amp")
DIGESTS = ("training rows", "validation rows", "backgrounds", "first weights")


def decided(settings, machine, on_kaggle=False):
    """The settings with batch, rate, schedule and length filled in; `epochs` stays None for a
    training that goes on as long as the time allows.

    AdamW's learning rate grows with the square root of the crops in a step, of all cards: so do
    the updates keep their noise (Malladi et al., "On the SDEs and Scaling Rules for Adaptive
    Gradient Algorithms", NeurIPS 2022).
    """
    by_time = settings.hours is not None or (on_kaggle and settings.epochs is None)
    batch, lr, schedule = settings.train_batch, settings.lr, settings.schedule
    if batch is None:
        batch = min(all_gather([fitting_batch(settings.train_size, machine)]))
    if lr is None:
        lr = LR_OF_4 * math.sqrt(batch * world_size() / 4)
    if schedule == "auto":
        schedule = "cosine" if by_time else "plateau"
    return replace(settings, train_batch=batch, lr=lr, schedule=schedule,
                   epochs=None if by_time else settings.epochs or EPOCHS)


def fitting_batch(size, machine):
    """Crops of size x size in a step that this process's device has memory for"""
    if machine.device.type != "cuda":
        return CPU_BATCH
    gib = torch.cuda.get_device_properties(machine.device).total_memory / 2**30
    return max(1, min(CARD_BATCH, int(gib / (GIB_PER_CROP * (size / 320) ** 2))))


def cosine_with_warm_up(progress):
    """Share of the learning rate at a progress in 0..1: a linear rise, then half a cosine to 0.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


class Run:
    """Everything that one training carries from step to step, and that last.pth holds.

    epoch and batch: the position, `batch` batches of `epoch` are done. progress: 0..1, by steps or
    by time. budget: seconds that a training by time has in all, None by epochs; spent: those gone
    by, of all sessions. best: the lowest validation MSE, of best_epoch (0: before the first step).
    ema: a copy of the model that holds the moving average, None without one. Each process has its
    own: totals, float64 (loss, MSE, samples) summed over the epoch so far; skipped and backdrops,
    {path: reason} of pairs and backdrops that could not be read; batch norms' statistics.
    """

    PARTS = ("ema", "optimizer", "plateau", "scaler")
    VALUES = ("epoch", "batch", "progress", "budget", "spent", "val_seconds", "best",
              "best_epoch", "metrics", "frozen_norms")

    def __init__(self, model, settings, machine, steps_per_epoch, frozen_norms):
        device = machine.device
        self.model = model.to(device, memory_format=torch.channels_last)
        self.settings, self.machine, self.frozen_norms = settings, machine, frozen_norms
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = settings.epochs and steps_per_epoch * settings.epochs
        self.progress, self.budget, self.spent = 0.0, None, 0.0
        self.ticked = self.saved_at = time.monotonic()
        self.val_seconds = 0.0  # that a validation image takes, all processes together
        self.non_finite = 0  # losses in a row that were NaN or infinite
        self.ema = None
        if settings.ema:
            self.ema = copy.deepcopy(model)
            self.ema_decay = 0.5 ** (settings.train_batch * world_size() / settings.ema)
        self.parallel = data_parallel(self.model, device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
        self.plateau = None
        if settings.schedule == "plateau":
            self.plateau = ReduceLROnPlateau(self.optimizer, mode="min", factor=0.5, patience=2)
        # Without fp16 it only skips, on the device, the steps whose gradients are not finite.
        self.fp16 = machine.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.fp16 else 1.0)
        self.epoch, self.batch, self.metrics = 1, 0, []
        self.best, self.best_epoch = math.inf, None
        self.skipped, self.backdrops = {}, {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    @property
    def step(self):
        """How many steps are done"""
        return (self.epoch - 1) * self.steps_per_epoch + self.batch

    def is_finished(self):
        """Whether the training has come to its end, and its last weights are validated"""
        return self.progress >= 1 and self.batch == 0

    def epoch_is_complete(self):
        """Whether all steps of the epoch, or of the training, are done"""
        return self.progress >= 1 or self.batch == self.steps_per_epoch

    @property
    def fills_the_time(self):
        """Whether the run's time limit alone ends the training"""
        return self.settings.epochs is None and self.settings.hours is None

    def start_clock(self, stop):
        """Start the budget of a training by time: --hours, or the rest of the time limit."""
        self.tick()
        self.spent = 0.0
        if self.settings.hours is not None:
            self.budget = 3600 * self.settings.hours
        elif self.fills_the_time:
            self.budget = max(1.0, stop.seconds_for_training(self.val_seconds))

    def tick(self):
        """Add the seconds since the last call to those spent."""
        now = time.monotonic()
        self.spent, self.ticked = self.spent + now - self.ticked, now

    def own_progress(self):
        """By steps, or by this process's clock; the steps of a training by time may differ from
        process to process, so its progress counts when all have compared theirs."""
        share = self.spent / self.budget if self.budget else self.step / self.total_steps
        return min(1.0, max(self.progress, share))

    def set_rate(self):
        """Give the next step its learning rate, which is the same in all processes."""
        if self.plateau is None:
            progress = self.progress if self.budget else (self.step + 0.5) / self.total_steps
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * cosine_with_warm_up(progress)

    @property
    def rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def candidates(self):
        """{note for the log: network}, of which the best is kept: the weights and their average"""
        average = {} if self.ema is None else {", moving average": self.ema}
        return {"": self.model, **average}

    def statistics(self):
        """The batch norms' means, variances and counters, of the network and of its average"""
        return [buffer for model in self.candidates().values() for buffer in model.buffers()]

    def update_average(self):
        """Move the average towards the weights and the batch norms' statistics.

        These too: of batches of 4 they jump about so much that the validation MSE changes by half
        when the weights hardly change at all.
        """
        if self.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(float_tensors(self.ema), float_tensors(self.model),
                                     1 - self.ema_decay)

    def own_state(self):
        """The state of this process alone, in the host's memory"""
        return {"statistics": [each.cpu() for each in self.statistics()],
                "totals": self.totals.cpu(), "skipped": self.skipped, "backdrops": self.backdrops}

    def state_dict(self):
        """For last.pth; all processes call it together."""
        parts = {name: getattr(self, name) for name in self.PARTS}
        return {
            **{name: part and part.state_dict() for name, part in parts.items()},
            **{name: getattr(self, name) for name in self.VALUES},
            "processes": all_gather([self.own_state()]),
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


def float_tensors(model):
    """Parameters and batch norms' statistics, without the counters of batches seen"""
    return [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]


# ---------------------------------------------------------------- last.pth


def make_configuration(settings, model, splits):
    """Settings and data that must be unchanged for a last.pth to be continued."""
    photographs = [os.path.basename(path) for path in splits.train.photographs]
    configuration = {
        **{name: getattr(settings, name) for name in DECISIVE}, "processes": world_size(),
        "reduced images are kept as JPEG": splits.train.cache is not None,
        "network": type(model).__name__,
        "training rows": digest((splits.train.images, splits.train.alphas)),
        "validation rows": digest((splits.val.images, splits.val.alphas)),
        "backgrounds": digest([np.array(photographs)]) if photographs else None,
    }
    if settings.checkpoint:
        # Weights that were merely found may be the earlier session's own by now.
        configuration["first weights"] = weights_digest(model.state_dict())
    return configuration


def save(run, out, configuration):
    """Write last.pth; all processes call it together."""
    run.tick()
    training = run.state_dict()
    if rank() == 0:
        write_checkpoint(out / LAST_CHECKPOINT, run.model.state_dict(), training=training,
                         configuration=configuration)
    run.saved_at = time.monotonic()


def unfinished(inputs):
    """The last.pth to continue: our own, else one that is attached; None if there is none."""
    own = inputs.out / LAST_CHECKPOINT
    return own if own.is_file() else inputs.unfinished


def resume(run, path, out, configuration):
    """Continue what the last.pth at `path` holds, if there is one; returns whether there is.

    It is copied to `out`, as are the best weights beside it. One that differs from this run raises
    UserError, naming the settings; if it is attached, it is left alone with a warning.
    """
    if path is None:
        return False
    try:
        content = unpickled(path)
    except UserError as error:
        return begin_anew(path, out, error)
    saved = content.get("configuration", {}) if isinstance(content, dict) else {}
    differing = [f"the {name} are others" if name in DIGESTS else
                 f"{name} was {saved.get(name)} and is {configuration.get(name)}"
                 for name in {**configuration, **saved}
                 if saved.get(name) != configuration.get(name)]
    if differing:
        return begin_anew(path, out, f"{path}: is of another run ({'; '.join(differing)})",
                          "; take the same settings, remove the file, or name another --out")
    missing = [name for name in (*run.PARTS, *run.VALUES, "processes")
               if name not in content.get("training", {})]
    if missing:
        return begin_anew(path, out, f"{path}: is of another version of this script, without "
                          f"{', '.join(missing)}", "; remove the file, or name another --out")
    run.model.load_state_dict(content["model_state"])
    run.load_state_dict(content["training"])
    if rank() == 0:
        take_over(path, out)
    barrier()
    if not (out / BEST_CHECKPOINT).is_file():
        run.best = math.inf
    log(f"Continuing {path}: epoch {run.epoch}, {run.batch} batches done")
    return True


def take_over(path, out):
    """Copy an attached last.pth, and the best weights beside it, to where this run has its own."""
    for source in (path.with_name(BEST_CHECKPOINT), path):
        if path.parent != out and source.is_file():
            with replacing(out / source.name) as part:
                shutil.copyfile(source, part)


def begin_anew(path, out, sentence, way_out=""):
    """Warn that the attached last.pth at `path` is left alone, and return False; raise UserError
    for this run's own, unless another run may follow, as after the loss of a card."""
    if path.parent == out and not is_guarded():
        raise UserError(f"{sentence}{way_out}")
    log(f"WARNING: {sentence}; the training begins anew")
    return False
