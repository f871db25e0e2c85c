"""The network: published names and shapes, any size, one sigmoid."""

import warnings

import pytest
import torch


def test_parameters_are_the_published_ones(kernel):
    model = kernel.U2NETP()
    assert sum(p.numel() for p in model.parameters()) == 1_131_181
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, shape in {
        "stage1.rebnconvin.conv_s1.weight": (64, 3, 3, 3),
        "stage1.rebnconv7.conv_s1.weight": (16, 16, 3, 3),
        "stage1.rebnconv1d.conv_s1.weight": (64, 32, 3, 3),
        "stage2d.rebnconv1d.bn_s1.running_var": (64,),
        "stage5d.rebnconvin.conv_s1.weight": (64, 128, 3, 3),
        "stage6.rebnconv4.bn_s1.num_batches_tracked": (),
        "side6.weight": (1, 64, 3, 3), "side6.bias": (1,), "outconv.weight": (1, 6, 1, 1),
    }.items():
        assert shapes[key] == shape
    convolutions = [key for key, shape in shapes.items() if len(shape) == 4]
    assert len(convolutions) == 119 and len(shapes) == 2 * 119 + 5 * 112
    assert model.stage6.rebnconv4.conv_s1.dilation == (8, 8)
    assert model.stage1.rebnconv7.conv_s1.dilation == (2, 2)


@pytest.mark.parametrize("height, width", [(32, 32), (33, 70), (97, 64), (320, 320)])
def test_any_size_gives_seven_maps_in_range(kernel, height, width):
    model = kernel.U2NETP().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # deprecated calls warn
        outputs = model(torch.rand(2, 3, height, width) * 2 - 1)
    assert isinstance(outputs, tuple) and len(outputs) == 7
    for output in outputs:
        assert output.shape == (2, 1, height, width)
        assert 0 <= output.min() and output.max() <= 1


def test_the_sigmoid_is_applied_once(kernel):
    """With the last layer fixed at a large bias, d0 is its sigmoid and not a sigmoid of that."""
    model = kernel.U2NETP().eval()
    with torch.no_grad():
        model.outconv.weight.zero_()
        model.outconv.bias.fill_(-9.0)
        d0 = model(torch.zeros(1, 3, 32, 32))[0]
    assert torch.allclose(d0, torch.tensor(-9.0).sigmoid())


def test_training_mode_learns_in_every_parameter(kernel):
    model = kernel.U2NETP()
    sum(output.mean() for output in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
