"""A matte lifted to full resolution with the image as its guide."""

import numpy as np
import torch
import torch.nn.functional as F

from src.data.pixels import bands, box_mean, colour_tensor

RADIUS, EPSILON = 4, 1e-4  # pixels of the small matte; squared levels of an image in [0,1]


def refine(alpha, small, image, radius=RADIUS, epsilon=EPSILON):
    """The fast guided filter with a colour guide: in each window of the small image alpha is fitted
    as a linear function of colour, and that function is applied to the full image.

    He, Sun, Tang, "Guided Image Filtering", TPAMI 35 (2013), equations 19 to 21; He, Sun, "Fast
    Guided Filter", arXiv:1505.00996, for the two resolutions.

    alpha: float32 [1,1,h,w] in [0,1]; image: RGB; small: the same, float32 [1,3,h,w] in [0,1].
    Returns an array [H,W] in [0,1], made in bands, because a large image would be gigabytes.
    """
    mean_image, mean_alpha = box_mean(small, radius), box_mean(alpha, radius)
    covariance = box_mean(small * alpha, radius) - mean_image * mean_alpha
    slope = solve_symmetric(*colour_variances(small, mean_image, radius, epsilon), covariance)
    offset = mean_alpha - (slope * mean_image).sum(dim=1, keepdim=True)
    model = box_mean(torch.cat((slope, offset), dim=1), radius)
    model = F.interpolate(model, size=(model.shape[2], image.width), mode="bilinear")
    upper, lower, share = rows_between(alpha.shape[2], image.height)
    full = np.empty((image.height, image.width), np.float32)
    for rows in bands(image):
        part = torch.addcmul(model[:, :, lower[rows]] * share[rows],
                             model[:, :, upper[rows]], 1 - share[rows])
        part[:, :3] *= colour_tensor(image.crop((0, rows.start, image.width, rows.stop)))
        full[rows] = part[:, :3].sum(dim=1).add_(part[:, 3]).clamp_(0, 1)[0].numpy()
    return full


def rows_between(count, target):
    """(upper, lower, share): the two of `count` rows between which each of `target` rows lies when
    they are enlarged, int64 [target], and the lower one's share, float32 [target,1]; to the bit
    those of F.interpolate."""
    scale = float(np.float32(count / target))
    place = ((torch.arange(target).double() + 0.5) * scale - 0.5).clamp_(min=0).float()
    upper = place.long()
    return upper, (upper + 1).clamp_(max=count - 1), (place - upper)[:, None]


def colour_variances(image, mean, radius, epsilon):
    """The six different entries of each window's 3x3 colour covariance plus epsilon on its
    diagonal, [B,1,H,W] each: rr, rg, rb, gg, gb, bb."""
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = box_mean(torch.stack([image[:, i] * image[:, j] for i, j in pairs], dim=1), radius)
    return [
        products[:, k, None] - mean[:, i, None] * mean[:, j, None] + epsilon * (i == j)
        for k, (i, j) in enumerate(pairs)
    ]


def solve_symmetric(rr, rg, rb, gg, gb, bb, right):
    """x of S x = right for symmetric positive definite 3x3 matrices S given by their entries, by
    the adjugate; right and x: [B,3,H,W]."""
    adjugate_rows = (
        (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb),
        (gb * rb - rg * bb, rr * bb - rb * rb, rb * rg - rr * gb),
        (rg * gb - gg * rb, rb * rg - rr * gb, rr * gg - rg * rg),
    )
    determinant = sum(a * b for a, b in zip(adjugate_rows[0], (rr, rg, rb)))
    rows = [sum(entry * right[:, i, None] for i, entry in enumerate(row)) for row in adjugate_rows]
    return torch.cat(rows, dim=1) / determinant
