"""The deep-supervised loss and the metric."""

import torch.nn.functional as F


def matte_loss(outputs, target):
    """Mean over the seven maps of MSE + 0.5 L1: MSE is the metric, L1 steadies edges.

    outputs: the network's tuple of [B,1,H,W] in [0,1]; target: float32 [B,1,H,W] in [0,1].
    Returns a float32 scalar tensor.
    """
    maps = [output.float() for output in outputs]
    return sum(F.mse_loss(m, target) + 0.5 * F.l1_loss(m, target) for m in maps) / len(maps)


def matte_mse(outputs, target):
    """The metric: mean squared error of d0 in the unit of alpha in [0,1], a scalar tensor."""
    return F.mse_loss(outputs[0].detach().float(), target)
