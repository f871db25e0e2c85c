"""U2-Net and U2-NetP, with the parameter names and shapes of the published weights.

Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern
Recognition 106 (2020), arXiv:2005.09007, table 1. U2-Net has 44,009,869 parameters, U2-NetP, the
same with fewer channels, 1,131,181.
"""

import torch
import torch.nn.functional as F
from torch import nn


class ConvNormReLU(nn.Module):
    """3x3 convolution that keeps height and width, batch norm, ReLU: [B,in,H,W] -> [B,out,H,W]."""

    def __init__(self, in_channels, out_channels, dilation=1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(
            in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return F.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


def halve(x):
    """[B,C,H,W] -> [B,C,ceil(H/2),ceil(W/2)]"""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def resize_like(x, target):
    """x as large as target in height and width; the same tensor when it already is."""
    size = target.shape[2:]
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ResidualUBlock(nn.Module):
    """RSU-L of the paper's figure 2: a U-Net of `depth` levels added to its own input layer.

    [B,in,H,W] -> [B,out,H,W]. With `dilated` it is RSU-4F: no pooling, dilations 1, 2, 4, 8.
    """

    def __init__(self, depth, in_channels, mid_channels, out_channels, dilated=False):
        super().__init__()
        self.depth, self.dilated = depth, dilated
        dilations = [2**i for i in range(depth)] if dilated else [1] * (depth - 1) + [2]
        self.rebnconvin = ConvNormReLU(in_channels, out_channels)
        for level, dilation in enumerate(dilations, 1):
            width = out_channels if level == 1 else mid_channels
            self.add_module(f"rebnconv{level}", ConvNormReLU(width, mid_channels, dilation))
        for level in range(depth - 1, 0, -1):
            width = out_channels if level == 1 else mid_channels
            dilation = dilations[level - 1]
            self.add_module(f"rebnconv{level}d", ConvNormReLU(2 * mid_channels, width, dilation))

    def forward(self, x):
        entry = self.rebnconvin(x)
        levels = [self.rebnconv1(entry)]
        for level in range(2, self.depth + 1):
            pooled = level < self.depth and not self.dilated
            inner = halve(levels[-1]) if pooled else levels[-1]
            levels.append(getattr(self, f"rebnconv{level}")(inner))
        x = levels.pop()
        for level in range(self.depth - 1, 0, -1):
            skip = levels.pop()
            joined = torch.cat((resize_like(x, skip), skip), dim=1)
            x = getattr(self, f"rebnconv{level}d")(joined)
        return x + entry


class U2NET(nn.Module):
    """[B,3,H,W] in [-1,1], H and W from 32 up -> (d0, d1, ..., d6), each [B,1,H,W] in [0,1].

    d0 is the matte; d1 to d6 are the side maps it is fused from, for deep supervision. The sigmoid
    is applied here, once.
    """

    # name: (depth of the block, channels in, in the middle, out, dilated)
    STAGES = {
        "stage1": (7, 3, 32, 64, False), "stage2": (6, 64, 32, 128, False),
        "stage3": (5, 128, 64, 256, False), "stage4": (4, 256, 128, 512, False),
        "stage5": (4, 512, 256, 512, True), "stage6": (4, 512, 256, 512, True),
        "stage5d": (4, 1024, 256, 512, True), "stage4d": (4, 1024, 128, 256, False),
        "stage3d": (5, 512, 64, 128, False), "stage2d": (6, 256, 32, 64, False),
        "stage1d": (7, 128, 16, 64, False),
    }

    def __init__(self):
        super().__init__()
        for name, block in self.STAGES.items():
            self.add_module(name, ResidualUBlock(*block))
        for number in range(1, 7):
            _, _, _, channels, _ = self.STAGES["stage6" if number == 6 else f"stage{number}d"]
            self.add_module(f"side{number}", nn.Conv2d(channels, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        return tuple(torch.sigmoid(logits.float()) for logits in self.logits(x))

    def matte(self, x):
        """d0 alone, [B,1,H,W] in [0,1]: for prediction, which has no use for the side maps."""
        return torch.sigmoid(self.logits(x)[0].float())

    def logits(self, x):
        """The seven maps before their sigmoid"""
        levels = [self.stage1(x)]
        for number in range(2, 7):
            levels.append(getattr(self, f"stage{number}")(halve(levels[-1])))
        decoded = [levels.pop()]
        for number in range(5, 0, -1):
            skip = levels.pop()
            joined = torch.cat((resize_like(decoded[-1], skip), skip), dim=1)
            decoded.append(getattr(self, f"stage{number}d")(joined))
        sides = [
            resize_like(getattr(self, f"side{number}")(feature), x)
            for number, feature in enumerate(reversed(decoded), 1)
        ]
        fused = self.outconv(torch.cat(sides, dim=1))
        return fused, *sides


class U2NETP(U2NET):
    """The small variant: 16 channels in the middle of every block, 64 out."""

    STAGES = {name: (depth, 3 if name == "stage1" else 128 if name.endswith("d") else 64, 16, 64,
                     dilated)
              for name, (depth, _, _, _, dilated) in U2NET.STAGES.items()}


NETWORKS = {"u2netp": U2NETP, "u2net": U2NET}
