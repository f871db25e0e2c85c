"""A matte lifted to full resolution with the image as its guide."""

import torch
import torch.nn.functional as F

from src.data.pixels import box_mean

RADIUS, EPSILON = 4, 1e-4  # pixels of the small matte; squared levels of an image in [0,1]


def refine(alpha, small, image, radius=RADIUS, epsilon=EPSILON):
    """The fast guided filter with a colour guide: in each window of the small image alpha is fitted
    as a linear function of colour, and that function is applied to the full image.

    He, Sun, Tang, "Guided Image Filtering", TPAMI 35 (2013), equations 19 to 21; He, Sun, "Fast
    Guided Filter", arXiv:1505.00996, for the two resolutions.

    alpha: float32 [B,1,h,w] in [0,1]; small, image: the same RGB image in [0,1] as [B,3,h,w] and
    [B,3,H,W]. Returns [B,1,H,W] in [0,1].
    """
    mean_image, mean_alpha = box_mean(small, radius), box_mean(alpha, radius)
    covariance = box_mean(small * alpha, radius) - mean_image * mean_alpha
    slope = solve_symmetric(*colour_variances(small, mean_image, radius, epsilon), covariance)
    offset = mean_alpha - (slope * mean_image).sum(dim=1, keepdim=True)
    model = box_mean(torch.cat((slope, offset), dim=1), radius)
    model = F.interpolate(model, size=image.shape[2:], mode="bilinear", align_corners=False)
    return ((model[:, :3] * image).sum(dim=1, keepdim=True) + model[:, 3:]).clamp(0, 1)


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
