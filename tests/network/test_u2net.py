"""The network: published names and shapes, any size, one sigmoid."""

import warnings

import pytest
import torch
import torch.nn.functional as F


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


def test_the_large_network_is_the_published_one(kernel):
    model = kernel.U2NET()
    assert sum(p.numel() for p in model.parameters()) == 44_009_869
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes.keys() == kernel.U2NETP().state_dict().keys() and len(shapes) == 798
    for key, shape in {
        "stage1.rebnconv7.conv_s1.weight": (32, 32, 3, 3),
        "stage3.rebnconvin.conv_s1.weight": (256, 128, 3, 3),
        "stage6.rebnconv4.conv_s1.weight": (256, 256, 3, 3),
        "stage5d.rebnconvin.conv_s1.weight": (512, 1024, 3, 3),
        "stage1d.rebnconv1d.conv_s1.weight": (64, 32, 3, 3), "side2.weight": (1, 64, 3, 3),
        "side3.weight": (1, 128, 3, 3), "side4.weight": (1, 256, 3, 3),
        "side5.weight": (1, 512, 3, 3), "side6.weight": (1, 512, 3, 3),
    }.items():
        assert shapes[key] == shape


def layer(state, name, x, dilation=1):
    """Convolution, batch norm and ReLU of the paper, by a state_dict"""
    x = F.conv2d(x, state[f"{name}.conv_s1.weight"], state[f"{name}.conv_s1.bias"],
                 padding=dilation, dilation=dilation)
    norm = [state[f"{name}.bn_s1.{key}"] for key in (
        "running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm))


def up(x, like):
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def pool(x):
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def rsu(state, name, x, height):
    """RSU-L of the paper's figure 2; height 4F is RSU-4F."""
    first = layer(state, f"{name}.rebnconvin", x)
    if height == "4F":
        h1 = layer(state, f"{name}.rebnconv1", first, 1)
        h2 = layer(state, f"{name}.rebnconv2", h1, 2)
        h3 = layer(state, f"{name}.rebnconv3", h2, 4)
        h4 = layer(state, f"{name}.rebnconv4", h3, 8)
        d3 = layer(state, f"{name}.rebnconv3d", torch.cat((h4, h3), 1), 4)
        d2 = layer(state, f"{name}.rebnconv2d", torch.cat((d3, h2), 1), 2)
        return layer(state, f"{name}.rebnconv1d", torch.cat((d2, h1), 1), 1) + first
    down = [layer(state, f"{name}.rebnconv1", first)]
    for number in range(2, height):
        down.append(layer(state, f"{name}.rebnconv{number}", pool(down[-1])))
    x = layer(state, f"{name}.rebnconv{height}", down[-1], 2)
    for number in range(height - 1, 0, -1):
        skip = down.pop()
        x = layer(state, f"{name}.rebnconv{number}d", torch.cat((up(x, skip), skip), 1))
    return x + first


def retold(state, image):
    """Table 1 of the paper, line by line; the widths are the state_dict's."""
    en1 = rsu(state, "stage1", image, 7)
    en2 = rsu(state, "stage2", pool(en1), 6)
    en3 = rsu(state, "stage3", pool(en2), 5)
    en4 = rsu(state, "stage4", pool(en3), 4)
    en5 = rsu(state, "stage5", pool(en4), "4F")
    en6 = rsu(state, "stage6", pool(en5), "4F")
    de5 = rsu(state, "stage5d", torch.cat((up(en6, en5), en5), 1), "4F")
    de4 = rsu(state, "stage4d", torch.cat((up(de5, en4), en4), 1), 4)
    de3 = rsu(state, "stage3d", torch.cat((up(de4, en3), en3), 1), 5)
    de2 = rsu(state, "stage2d", torch.cat((up(de3, en2), en2), 1), 6)
    de1 = rsu(state, "stage1d", torch.cat((up(de2, en1), en1), 1), 7)
    sides = [up(F.conv2d(x, state[f"side{n}.weight"], state[f"side{n}.bias"], padding=1), image)
             for n, x in enumerate((de1, de2, de3, de4, de5, en6), 1)]
    fused = F.conv2d(torch.cat(sides, 1), state["outconv.weight"], state["outconv.bias"])
    return [torch.sigmoid(x) for x in (fused, *sides)]


@pytest.mark.parametrize("name", ["U2NETP", "U2NET"])
def test_both_networks_compute_the_papers_table(kernel, name):
    torch.manual_seed(0)
    model = getattr(kernel, name)().train()
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64) * 2 - 1)  # statistics of their own for the batch norms
        image = torch.rand(1, 3, 96, 70) * 2 - 1
        for ours, theirs in zip(model.eval()(image), retold(model.state_dict(), image)):
            assert (ours - theirs).abs().max() < 1e-5


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
