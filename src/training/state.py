"""Everything that a training carries from step to step, and its exact resumption."""

import copy
import math
import os
import shutil
import time

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from src.runtime.console import UserError, log
from src.runtime.distributed import data_parallel, merged, wait_for_all
from src.runtime.files import digest, replacing
from src.runtime.processes import rank, world_size
from src.inputs.discovery import BEST_CHECKPOINT, LAST_CHECKPOINT
from src.network.checkpoint import unpickled, weights_digest, write_checkpoint
from src.training.plan import Pace

WEIGHT_DECAY = 1e-4
WARM_UP = 0.03  # share of all steps over which the cosine schedule's rate rises
# Settings that decide the weights; --workers, --time-limit and the like do not.
DECISIVE = ("seed", "epochs", "epoch_samples", "hours", "lr", "train_size", "min_train_size",
            "train_batch", "crop_scale", "predict_size", "schedule", "ema", "amp", "batch_norm")
UNPLANNED_RISE = 1000  # steps over which the rate rises as long as nobody knows how many there are


class Run:
    """Everything that one training carries from step to step, and that last.pth holds.

    epoch and batch: the position, `batch` batches of `epoch` are done. total_steps: how many there
    will be in all, None until that is planned. best: the lowest validation MSE. ema: a copy of the
    model that holds the moving average, None without one. What each process has of its own: totals,
    float64 (loss, MSE, samples) summed over the epoch so far; skipped and backdrops, {path: reason}
    of pairs and backdrops that could not be read; batch norms' statistics; the state of the random
    generators.
    """

    PARTS = ("ema", "optimizer", "scheduler", "scaler")
    VALUES = ("epoch", "batch", "total_steps", "best", "metrics", "frozen_norms")

    def __init__(self, model, settings, machine, steps_per_epoch, frozen_norms):
        device = machine.device
        self.model = model.to(device, memory_format=torch.channels_last)
        self.settings, self.machine, self.frozen_norms = settings, machine, frozen_norms
        self.steps_per_epoch, self.pace = steps_per_epoch, Pace()
        self.total_steps = settings.epochs and steps_per_epoch * settings.epochs
        self.saved_at = time.monotonic()
        self.val_seconds = 0.0  # that a validation image takes, all processes together
        self.non_finite = 0  # losses in a row that were NaN or infinite
        self.ema = None
        if settings.ema:
            self.ema = copy.deepcopy(model)
            self.ema_decay = 0.5 ** (settings.train_batch * world_size() / settings.ema)
        self.parallel = data_parallel(self.model, device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
        if settings.schedule == "cosine":
            self.scheduler = LambdaLR(self.optimizer, CosineWithWarmUp(self.total_steps))
        else:
            self.scheduler = ReduceLROnPlateau(
                self.optimizer, mode="min", factor=0.5, patience=2)
        # Without fp16 it only skips, on the device, the steps whose gradients are not finite.
        self.fp16 = machine.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.fp16 else 1.0)
        self.epoch, self.batch, self.best, self.metrics = 1, 0, math.inf, []
        self.skipped, self.backdrops = {}, {}
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    @property
    def step(self):
        """How many steps are done"""
        return (self.epoch - 1) * self.steps_per_epoch + self.batch

    def has_all_steps(self):
        return self.total_steps is not None and self.step >= self.total_steps

    def is_finished(self):
        """Whether the last epoch has been validated too"""
        return self.has_all_steps() and self.batch == 0

    def plan(self, total_steps):
        """Let the training, and the cosine schedule, end after so many steps."""
        self.total_steps = total_steps
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.lr_lambdas[0].steps = total_steps

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
                torch._foreach_lerp_(floats_of(self.ema), floats_of(self.model),
                                     1 - self.ema_decay)

    def own_state(self):
        """What this process does not share with the others, in the host's memory"""
        generators = {"cpu": torch.get_rng_state()}
        if self.machine.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.machine.device)
        return {"statistics": [each.cpu() for each in self.statistics()],
                "totals": self.totals.cpu(), "skipped": self.skipped,
                "backdrops": self.backdrops, "random": generators}

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


class CosineWithWarmUp:
    """Factor of the learning rate by step: linear from 0 to 1, then a half cosine back to 0 after
    `steps`; with None for these it rises, slowly, and stays. LambdaLR saves `steps` with its state.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, step):
        rising = max(1, round(WARM_UP * self.steps)) if self.steps else UNPLANNED_RISE
        if step < rising or not self.steps:
            return min(1.0, (step + 1) / rising)
        falling = max(1, self.steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / falling)))


# ---------------------------------------------------------------- last.pth


def configuration_of(settings, model, splits):
    """What must be the same for a last.pth to be continued."""
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
    """Continue what the last.pth at `path` holds, if there is one.

    The best weights so far are copied from beside it. Raises UserError naming the settings in which
    it differs from this run.
    """
    if path is None:
        return
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
