"""Validation between epochs, and the log lines that show that a training is sound."""

import numpy as np
import torch
from torch.utils.data import default_collate

from src.runtime.console import UserError, log, progress
from src.runtime.distributed import all_gather
from src.network.losses import matte_loss, matte_mse


@torch.no_grad()
def evaluate(models, loader, machine, stop):
    """{name: mean (loss, MSE)} of models over the validation images of all processes, in float32.

    models: {name: network}, set to eval mode. The means are taken image by image in the set's
    order, so that they do not depend on the number of processes. Raises UserError, naming the
    images, when a loss is NaN or infinite.
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
    errors = all_gather(errors)
    broken = [path for each, path in errors if not np.isfinite(each).all()]
    if broken:
        raise UserError(f"the validation loss is not finite for {', '.join(broken[:3])}: look at "
                        "these files, or lower --lr")
    means = np.mean([each for each, _ in errors], axis=0)
    return dict(zip(models, means.tolist()))


@torch.no_grad()
def describe_outputs(model, loader, machine):
    """Log whether the network's output, loss and metric are sound, on the first images of a
    `ValidationSet`."""
    model.eval()
    first = range(min(loader.batch_size, len(loader.dataset)))
    batch = default_collate([loader.dataset[index] for index in first])
    masks, outputs = batch["mask"].to(machine.device), model(machine.to_device(batch["img"]))
    d0 = outputs[0]
    loss, mse = matte_loss(outputs, masks).mean(), matte_mse(outputs, masks).mean()
    log(f"Check after training: alpha {list(d0.shape)} in [{d0.min():.4f}, {d0.max():.4f}], "
        f"finite {bool(torch.isfinite(d0).all())}; loss {loss:.6f}, MSE {mse:.6f}, "
        f"finite {bool(torch.isfinite(loss) and torch.isfinite(mse))}")
