"""The training engine: one loop, best checkpoint, metrics.csv."""

import math
import time

import pandas as pd
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import default_collate

from src.augment import JointAugment
from src.checkpoint import write_checkpoint
from src.console import UserError, log, progress
from src.data import ShuffledEpochs, TrainingSet, ValidationSet, make_loader
from src.files import replacing
from src.hardware import amp_dtype, autocast, worker_count
from src.inputs import BEST_CHECKPOINT
from src.losses import matte_loss, matte_mse

WEIGHT_DECAY = 1e-4


def train(model, train_pairs, val_pairs, settings, device, out):
    """Train the model in place; it ends with the weights of its best epoch.

    Writes out/u2netp_best.pth at every epoch that lowers the validation MSE, and out/metrics.csv
    after every epoch. Returns the metrics, a list of one dict an epoch. Raises UserError when a
    loss is not finite; the best checkpoint so far is kept.
    """
    size = settings.predict_size or settings.train_size
    workers = worker_count(settings.workers)
    train_set = TrainingSet(
        train_pairs, JointAugment(settings.train_size, settings.crop_scale), settings.seed)
    sampler = ShuffledEpochs(len(train_set), settings.seed)
    train_loader = make_loader(train_set, settings.train_batch, workers, device, sampler)
    val_loader = make_loader(ValidationSet(val_pairs, size), settings.train_batch, workers, device)

    model.to(device)
    dtype = amp_dtype(settings.amp, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
    scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=2)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    check_batch = first_batch(train_loader)
    describe_batch("train", check_batch)
    describe_batch("val", first_batch(val_loader))

    best, metrics, best_state = math.inf, [], None
    for epoch in range(1, settings.epochs + 1):
        sampler.epoch, started = epoch, time.monotonic()
        train_loss, train_mse = train_epoch(
            model, train_loader, optimizer, scaler, device, dtype, epoch)
        val_loss, val_mse = evaluate(model, val_loader, device, dtype)
        scheduler.step(val_mse)
        metrics.append({
            "epoch": epoch, "train_loss": train_loss, "train_mse": train_mse,
            "val_loss": val_loss, "val_mse": val_mse, "lr": optimizer.param_groups[0]["lr"],
            "seconds": round(time.monotonic() - started, 1),
        })
        write_metrics(metrics, out / "metrics.csv")
        log("Epoch {epoch}: train_mse={train_mse:.6f} val_mse={val_mse:.6f} lr={lr:.2e} "
            "({seconds} s)".format(**metrics[-1]))
        if val_mse < best:
            best = val_mse
            best_state = {k: t.detach().cpu().clone() for k, t in model.state_dict().items()}
            write_checkpoint(out / BEST_CHECKPOINT, best_state, epoch=epoch, val_mse=val_mse,
                             recipe={"predict_size": size})
            log(f"  -> saved the best model so far (val_mse={best:.6f})")
    model.load_state_dict(best_state)
    describe_outputs(model, check_batch, device, dtype)
    return metrics


def train_epoch(model, loader, optimizer, scaler, device, dtype, epoch):
    """One pass over the training set; returns its mean (loss, MSE)."""
    model.train()
    totals = torch.zeros(2, device=device)
    for number, batch in enumerate(progress(loader, f"train {epoch}"), 1):
        images = batch["img"].to(device, non_blocking=True)
        masks = batch["mask"].to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            outputs = model(images)
        loss = matte_loss(outputs, masks)
        check_finite(loss, batch, f"epoch {epoch}, batch {number}")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        totals += len(images) * torch.stack([loss.detach(), matte_mse(outputs, masks)])
    return (totals / len(loader.dataset)).tolist()


@torch.no_grad()
def evaluate(model, loader, device, dtype):
    """Mean (loss, MSE) over a loader of whole pairs, in eval mode."""
    model.eval()
    totals = torch.zeros(2, device=device)
    for batch in progress(loader, "val"):
        images = batch["img"].to(device, non_blocking=True)
        masks = batch["mask"].to(device, non_blocking=True)
        with autocast(device, dtype):
            outputs = model(images)
        loss = matte_loss(outputs, masks)
        check_finite(loss, batch, "validation")
        totals += len(images) * torch.stack([loss, matte_mse(outputs, masks)])
    return (totals / len(loader.dataset)).tolist()


def check_finite(loss, batch, where):
    """Stop at a loss that is NaN or infinite, naming the files it came from."""
    if not torch.isfinite(loss):
        files = ", ".join(batch["path"])
        raise UserError(
            f"the loss is {loss.item()} in {where} ({files}): look at these files, or lower --lr")


def write_metrics(metrics, path):
    with replacing(path) as part:
        pd.DataFrame(metrics).to_csv(part, index=False)


def first_batch(loader):
    """The loader's first batch, made in this process without waking its workers."""
    return default_collate([loader.dataset[key] for key in next(iter(loader.batch_sampler))])


def describe_batch(title, batch):
    """A log line that shows that shapes and ranges are what the network expects."""
    parts = [
        f"{key} {list(batch[key].shape)} in [{batch[key].min():.2f}, {batch[key].max():.2f}]"
        for key in ("img", "mask")
    ]
    log(f"First {title} batch: {', '.join(parts)}")


@torch.no_grad()
def describe_outputs(model, batch, device, dtype):
    """A log line that shows that the trained network's output, loss and metric are sound."""
    model.eval()
    masks = batch["mask"].to(device)
    with autocast(device, dtype):
        outputs = model(batch["img"].to(device))
    d0, loss, mse = outputs[0], matte_loss(outputs, masks), matte_mse(outputs, masks)
    log(f"Check after training: d0 {list(d0.shape)} in [{d0.min():.4f}, {d0.max():.4f}], "
        f"finite {bool(torch.isfinite(d0).all())}; loss {loss:.6f}, MSE {mse:.6f}, "
        f"finite {bool(torch.isfinite(loss) and torch.isfinite(mse))}")
