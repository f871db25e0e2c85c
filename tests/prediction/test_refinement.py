"""The guided filter on cases with a known answer."""

import numpy as np
import pytest
import torch

from conftest import set_module


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def refine(kernel, alpha, small, image, **options):
    """`refine` of an image that is floats, [1,3,H,W]"""
    refined = kernel.refine(alpha, small, kernel.to_picture(image[0]), **options)
    return torch.from_numpy(refined)[None, None]


def test_box_mean_is_the_mean_of_the_window(kernel):
    x = rand(1, 2, 9, 11)
    means = kernel.box_mean(x, 2)
    assert means.shape == x.shape
    assert means[0, 1, 4, 5] == pytest.approx(x[0, 1, 2:7, 3:8].mean().item(), rel=1e-5)
    assert means[0, 0, 0, 0] == pytest.approx(x[0, 0, :3, :3].mean().item(), rel=1e-5)


def test_the_closed_form_solves_the_system(kernel):
    a = rand(50, 3, 3).double()
    matrices = a @ a.transpose(1, 2) + 0.1 * torch.eye(3)
    right = rand(50, 3, seed=1).double()
    entries = [matrices[:, i, j].view(50, 1, 1, 1)
               for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    solution = kernel.solve_symmetric(*entries, right.view(50, 3, 1, 1)).view(50, 3)
    assert torch.allclose(solution, torch.linalg.solve(matrices, right))


def test_an_alpha_linear_in_colour_is_recovered_at_full_resolution(kernel):
    """alpha = 0.3 r + 0.5 g + 0.2 b in the small image: then so it is in the large one."""
    image = torch.nn.functional.interpolate(rand(1, 3, 12, 12), size=(256, 256), mode="bicubic",
                                            align_corners=False).clamp(0, 1)
    small = torch.nn.functional.interpolate(image, size=(64, 64), mode="area")
    weights = torch.tensor([0.3, 0.5, 0.2]).view(1, 3, 1, 1)
    truth = (weights * image).sum(dim=1, keepdim=True)
    refined = refine(kernel, (weights * small).sum(dim=1, keepdim=True), small, image,
                     epsilon=1e-7)
    assert refined.shape == truth.shape and (refined - truth).abs().max() < 0.01


def test_a_sharp_edge_comes_back_from_a_small_matte(kernel):
    image = torch.zeros(1, 3, 256, 256)
    image[..., 101:] = torch.tensor([0.9, 0.8, 0.1]).view(1, 3, 1, 1)
    truth = (image[:, :1] > 0.5).float()
    small, alpha = (torch.nn.functional.interpolate(x, size=(64, 64), mode="area")
                    for x in (image, truth))
    plain = kernel.resize_alpha(alpha, 256, 256)
    refined = refine(kernel, alpha, small, image)
    errors = [(x - truth).square().mean().item() for x in (plain, refined)]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("level", [0.0, 0.37, 1.0])
def test_a_constant_matte_stays_and_the_range_is_kept(kernel, level):
    image = rand(1, 3, 100, 60)
    small = torch.nn.functional.interpolate(image, size=(64, 64), mode="area")
    refined = refine(kernel, torch.full((1, 1, 64, 64), level), small, image)
    assert torch.allclose(refined, torch.tensor(level), atol=1e-4)
    noisy = refine(kernel, rand(1, 1, 64, 64, seed=3).round(), small, image)
    assert noisy.min() >= 0 and noisy.max() <= 1


def test_one_colour_images_do_no_harm(kernel):
    """Without any contrast there is nothing to follow: the smoothed matte, and no NaN."""
    image, small = torch.full((1, 3, 200, 200), 0.5), torch.full((1, 3, 64, 64), 0.5)
    refined = refine(kernel, rand(1, 1, 64, 64), small, image)
    assert torch.isfinite(refined).all() and 0.3 < refined.mean() < 0.7


def test_bands_have_the_bits_of_the_whole(kernel, monkeypatch):
    alpha, image = rand(1, 1, 64, 64), rand(1, 3, 403, 90, seed=1)
    small = torch.nn.functional.interpolate(image, size=(64, 64), mode="area")
    whole = refine(kernel, alpha, small, image)
    set_module(kernel, monkeypatch, "BAND", 2000)
    assert len(kernel.bands(kernel.to_picture(image[0]))) > 9
    assert np.array_equal(refine(kernel, alpha, small, image), whole)


@pytest.mark.parametrize("target", [21, 64, 403])
def test_rows_are_enlarged_as_torch_does(kernel, target):
    x = rand(20, 1)
    upper, lower, share = kernel.rows_between(20, target)
    rows = x[upper] * (1 - share) + x[lower] * share
    expected = torch.nn.functional.interpolate(x[None, None], size=(target, 1), mode="bilinear")
    assert torch.allclose(rows, expected[0, 0], atol=1e-6)
