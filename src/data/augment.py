"""Augmentation: workers sample its parameters, the device makes the pixels."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from src.data.backdrops import composited, stretched


@dataclass(frozen=True)
class JointAugment:
    """Random crop, flip and rotation of image and alpha together, colour of the image alone.

    size: side of the largest result in pixels. crop_scale: range of the crop's side as a share of
    the image's shorter side.
    """

    size: int
    crop_scale: tuple[float, float] = (0.7, 1.0)
    p_flip: float = 0.5
    p_rotate: float = 0.3
    max_rotate: float = 10.0  # degrees
    p_color: float = 0.7

    @property
    def source_side(self):
        """Pixels of an image's shorter side from which every crop can be made without enlarging
        it, in multiples of 32."""
        return math.ceil(self.size / self.crop_scale[0] / 32) * 32

    def sample(self, width, height, rng):
        """The random parameters of an image of this size: a dict.

        "window": (left, top) of a square as large as the shorter side, which holds the crop; "map":
        float32 [2,3], affine, from the crop's coordinates to the window's, both in -1..1; "colour":
        float32 [3], factors of brightness, contrast and saturation within 15 %.
        """
        size, shorter = np.array([width, height]), min(width, height)
        share = rng.uniform(*self.crop_scale)
        centre = rng.random(2) * (size - share * shorter) + share * shorter / 2
        window = np.clip(np.round(centre - shorter / 2), 0, size - shorter)
        flip = -1 if rng.random() < self.p_flip else 1
        angle = 0.0
        if rng.random() < self.p_rotate:
            angle = math.radians(rng.uniform(-self.max_rotate, self.max_rotate))
        cos, sin = share * math.cos(angle), share * math.sin(angle)
        across, down = (centre - window) * 2 / shorter - 1
        colour = rng.uniform(0.85, 1.15, 3) if rng.random() < self.p_color else np.ones(3)
        return {"window": window.astype(int),
                "map": np.float32([[flip * cos, flip * sin, across], [-sin, cos, down]]),
                "colour": np.float32(colour)}

    def apply(self, batch, photographs, device, size=None):
        """A batch for the network, on the device: img float32 [B,3,size,size] in [-1,1], mask
        [B,1,size,size] in [0,1]; and the paths. size: of this batch, by default the largest.

        batch: items of TrainingSet; photographs: of a `PhotographPool`. Cut-outs are
        resampled with premultiplied colours and put on a backdrop. What rotation brings in from
        outside is black and transparent.
        """
        def moved(name):
            return batch[name].to(device, non_blocking=True)

        layers = moved("layers").permute(0, 3, 1, 2).float() / 255
        is_cutout = moved("is_cutout")[:, None, None, None]
        visible = torch.where(is_cutout, layers[:, 3:], 1.0)
        layers[:, :3] *= visible
        image, alpha = self.resampled(layers, moved("map"), size or self.size).split([3, 1], dim=1)
        if batch["is_cutout"].any():
            backdrop = stretched(batch, photographs, image.shape[2:], device)
            on_backdrop = composited(image, alpha, backdrop, {
                name: moved(name) for name in ("shadow", "floor", "tint")})
            image = torch.where(is_cutout, on_backdrop, image)
        image = recoloured(image, moved("colour")).mul_(2).sub_(1)
        return {"img": image.contiguous(memory_format=torch.channels_last),
                "mask": alpha.contiguous(), "path": batch["path"]}

    def resampled(self, layers, maps, size):
        """float32 [B,C,H,W] of squares of source_side -> [B,C,size,size], each through its map.

        Where a crop may be reduced to less than half, it is sampled more finely and averaged.
        """
        times = max(1, math.ceil(layers.shape[-1] * self.crop_scale[1] / size / 2))
        side = times * size
        grid = F.affine_grid(maps, (*layers.shape[:2], side, side), align_corners=False)
        layers = F.grid_sample(layers, grid, align_corners=False)
        return F.avg_pool2d(layers, times) if times > 1 else layers


def recoloured(images, factors):
    """RGB images [B,3,H,W] in 0..1 with brightness, contrast and saturation changed by factors
    [B,3], in this order; 1 keeps them. As torchvision's functions of these names."""
    from torchvision.transforms.functional import rgb_to_grayscale as grey  # only training waits
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 1)
    mean = grey(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 1)
    return torch.lerp(grey(images), images, saturation).clamp_(0, 1)
