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

    def geometry(self, layers, rng):
        """The same crop, flip and rotation of every layer: images of one size, any modes.

        Pillow resizes and rotates RGBA with premultiplied colours. All randomness comes from the
        Generator.
        """
        layers = self.crop(layers, rng)
        if rng.random() < self.p_flip:
            layers = [TF.hflip(layer) for layer in layers]
        if rng.random() < self.p_rotate:
            angle = rng.uniform(-self.max_rotate, self.max_rotate)
            # What rotation brings in from outside is black and transparent.
            layers = [TF.rotate(layer, angle, InterpolationMode.BILINEAR, fill=0)
                      for layer in layers]
        return layers

    def crop(self, layers, rng):
        width, height = layers[0].size
        shorter = min(width, height)
        if self.crop_scale is None:
            side = min(self.size, shorter)
        else:
            side = max(1, round(rng.uniform(*self.crop_scale) * shorter))
        top = int(rng.integers(0, height - side + 1))
        left = int(rng.integers(0, width - side + 1))
        return [TF.resized_crop(layer, top, left, side, side, [self.size, self.size],
                                InterpolationMode.BILINEAR) for layer in layers]

    def photometry(self, image, rng):
        """Brightness, contrast and saturation of an RGB image, each changed by up to 15 %."""
        if rng.random() < self.p_color:
            image = TF.adjust_brightness(image, rng.uniform(0.85, 1.15))
            image = TF.adjust_contrast(image, rng.uniform(0.85, 1.15))
            image = TF.adjust_saturation(image, rng.uniform(0.85, 1.15))
        return image
