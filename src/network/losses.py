"""The deep-supervised loss and the metric."""

import torch
import torch.nn.functional as F


def matte_loss(outputs, target):
    """Mean over the seven maps of MSE + 0.5 L1: MSE is the metric, L1 steadies edges.

    outputs: the network's tuple of [B,1,H,W] in [0,1]; target: float32 [B,1,H,W] in [0,1].
    Returns the loss of each image, float32 [B]; a batch's loss is their mean.
    """
    losses = [F.mse_loss(map_.float(), target, reduction="none")
              + 0.5 * F.l1_loss(map_.float(), target, reduction="none") for map_ in outputs]
    return torch.stack([loss.mean(dim=(1, 2, 3)) for loss in losses]).mean(dim=0)


def matte_mse(outputs, target):
    """The metric: mean squared error of d0, alpha in [0,1], of each image: float32 [B]."""
    return (outputs[0].detach().float() - target).square().mean(dim=(1, 2, 3))
