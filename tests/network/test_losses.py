"""The loss and the metric on values that can be worked out by hand."""

import pytest
import torch


def test_loss_is_the_mean_over_maps_of_mse_and_half_l1(kernel):
    target = torch.zeros(2, 1, 4, 4)
    outputs = [torch.full_like(target, 0.1 * i) for i in range(7)]
    expected = sum((0.1 * i) ** 2 + 0.5 * 0.1 * i for i in range(7)) / 7
    assert kernel.matte_loss(outputs, target).tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_metric_looks_at_d0_only(kernel):
    target = torch.ones(2, 1, 4, 4)
    outputs = [torch.full_like(target, 0.5)] + [torch.zeros_like(target)] * 6
    outputs[0][1] = 1.0
    assert kernel.matte_mse(outputs, target).tolist() == [0.25, 0.0]


def test_half_precision_maps_are_compared_in_float32(kernel):
    target = torch.full((1, 1, 4, 4), 0.3)
    outputs = [torch.full_like(target, 0.5).half()] * 7
    assert kernel.matte_loss(outputs, target).dtype == torch.float32
