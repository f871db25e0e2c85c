"""Augmentation: geometry of image and alpha jointly, photometry of the image only."""

from dataclasses import dataclass

from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF


@dataclass(frozen=True)
class JointAugment:
    """Random crop, flip, rotation and colour jitter, in this order.

    size: side of the result in pixels. crop_scale: the crop's side as a share of the image's
    shorter side, drawn from this range and resized to `size`; None crops `size` pixels unscaled.
    An image smaller than the crop gives its largest square, resized.
    """

    size: int
    crop_scale: tuple[float, float] | None = None
    p_flip: float = 0.5
    p_rotate: float = 0.3
    max_rotate: float = 10.0  # degrees
    p_color: float = 0.7

    def __call__(self, image, alpha, rng):
        """(RGB, L) of one size -> (RGB, L) of size x size; all chance comes from the Generator."""
        image, alpha = self.crop(image, alpha, rng)
        if rng.random() < self.p_flip:
            image, alpha = TF.hflip(image), TF.hflip(alpha)
        if rng.random() < self.p_rotate:
            angle = rng.uniform(-self.max_rotate, self.max_rotate)
            # What turns in from outside is black and transparent.
            image, alpha = (
                TF.rotate(x, angle, interpolation=InterpolationMode.BILINEAR, fill=0)
                for x in (image, alpha)
            )
        if rng.random() < self.p_color:
            image = TF.adjust_brightness(image, rng.uniform(0.85, 1.15))
            image = TF.adjust_contrast(image, rng.uniform(0.85, 1.15))
            image = TF.adjust_saturation(image, rng.uniform(0.85, 1.15))
        return image, alpha

    def crop(self, image, alpha, rng):
        width, height = image.size
        shorter = min(width, height)
        if self.crop_scale is None:
            side = min(self.size, shorter)
        else:
            side = max(1, round(rng.uniform(*self.crop_scale) * shorter))
        top = int(rng.integers(0, height - side + 1))
        left = int(rng.integers(0, width - side + 1))
        return tuple(
            TF.resized_crop(x, top, left, side, side, [self.size, self.size],
                            InterpolationMode.BILINEAR)
            for x in (image, alpha)
        )
