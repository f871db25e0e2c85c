"""The importer on a file like the published one: same function, trainable batch norms."""

import copy

import numpy as np
import onnx
import pytest
import torch

from conftest import REAL, ROOT
from src.runtime.console import UserError
from src.data.backdrops import recomposed
from src.data.demo import draw_pair
from src.data.images import open_image
from src.data.pixels import alpha_tensor, image_tensor, resized
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.losses import matte_loss
from src.network.u2net import U2NET, U2NETP
from src.tools import import_onnx
from src.tools.ship import halved

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"


@pytest.fixture(scope="module")
@torch.no_grad()
def onnx_file(tmp_path_factory):
    """What rembg distributes, made of the shipped weights: batch norms folded into the
    convolutions, ImageNet's normalisation expected."""
    model = U2NETP().eval()
    model.load_state_dict(read_checkpoint(WEIGHTS).model_state)
    first = model.stage1.rebnconvin.conv_s1
    mean, std = (torch.tensor(x).view(1, 3, 1, 1)
                 for x in (import_onnx.IMAGENET_MEAN, import_onnx.IMAGENET_STD))
    first.bias -= (2 * first.weight * (0.5 - mean)).sum(dim=(1, 2, 3))
    first.weight *= 2 * std
    path = str(tmp_path_factory.mktemp("package") / "u2netp.onnx")
    torch.onnx.export(model, torch.zeros(1, 3, 320, 320), path, dynamo=False)
    return path


def pairs_of(split, count, size):
    """(images, masks) of real cut-outs, each before another drawn backdrop."""
    cutouts = [open_image(path, "RGBA") for path in sorted(REAL.glob("*.webp"))]
    composed = []
    for index in range(count):
        rng = np.random.default_rng([len(split), index])
        composed.append(recomposed(cutouts[index % len(cutouts)], (), rng)[:2])
    return (torch.stack([image_tensor(resized(image, size)) for image, _ in composed]),
            torch.stack([alpha_tensor(resized(alpha, size)) for _, alpha in composed]))


@pytest.fixture(scope="module")
def items():
    return pairs_of("val", 4, 320)


def imagenet(images):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1)
                 for x in (import_onnx.IMAGENET_MEAN, import_onnx.IMAGENET_STD))
    pixels = (images + 1) / 2
    return (pixels / pixels.amax(dim=(1, 2, 3), keepdim=True) - mean) / std


def test_our_network_is_the_published_one(onnx_file, items):
    model = import_onnx.import_folded(onnx_file)
    noise = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    assert import_onnx.largest_difference(model, onnx_file, noise) < 2e-5
    for image in items[0][:2]:
        # Float32's own noise on photographs: onnxruntime without its graph optimisations is
        # 1e-4 away from onnxruntime with them.
        assert import_onnx.largest_difference(model, onnx_file, imagenet(image[None])) < 1e-4


@torch.no_grad()
def test_the_large_network_is_imported_too(tmp_path):
    """By the width of its second convolution; random weights, 64 pixels."""
    torch.manual_seed(0)
    path = str(tmp_path / "u2net.onnx")
    image = torch.randn(1, 3, 64, 64)
    torch.onnx.export(U2NET().eval(), image, path, dynamo=False)
    model = import_onnx.import_folded(path)
    assert isinstance(model, U2NET)
    assert import_onnx.largest_difference(model, path, image) < 2e-5


def test_a_swapped_pair_of_layers_would_be_noticed(onnx_file):
    model = import_onnx.import_folded(onnx_file)
    one, other = model.stage4.rebnconv2.conv_s1, model.stage4.rebnconv3.conv_s1
    one.weight, other.weight = other.weight, one.weight
    noise = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    assert import_onnx.largest_difference(model, onnx_file, noise) > 1e-3


@torch.no_grad()
def test_normalisation_is_absorbed_exactly_inside_the_image(onnx_file, items):
    theirs, ours = (import_onnx.import_folded(onnx_file) for _ in range(2))
    import_onnx.absorb_normalisation(ours)
    pixels = items[0][:1]
    mean, std = (torch.tensor(x).view(1, 3, 1, 1)
                 for x in (import_onnx.IMAGENET_MEAN, import_onnx.IMAGENET_STD))
    first = theirs.stage1.rebnconvin.conv_s1(((pixels + 1) / 2 - mean) / std)
    second = ours.stage1.rebnconvin.conv_s1(pixels)
    assert torch.allclose(first[..., 1:-1, 1:-1], second[..., 1:-1, 1:-1], atol=2e-5)
    assert (first - second)[..., 0, :].abs().max() > 0.01  # the ring that zero padding reaches


@torch.no_grad()
def test_recovered_norms_keep_the_function_and_can_be_trained(onnx_file):
    """Statistics from training images, losses on a batch of validation images."""
    images, masks = pairs_of("val", 8, 160)
    model = import_onnx.import_folded(onnx_file)
    import_onnx.absorb_normalisation(model)
    before = model(images)[0]
    eval_loss = matte_loss(model(images), masks).mean().item()
    identity_loss = matte_loss(copy.deepcopy(model).train()(images), masks).mean().item()

    import_onnx.recover_norms(model, pairs_of("train", 16, 160)[0].split(8))
    assert (model.eval()(images)[0] - before).abs().max() < 1e-4
    train_loss = matte_loss(model.train()(images), masks).mean().item()
    assert abs(train_loss / eval_loss - 1) < 0.1
    assert identity_loss > 2 * eval_loss


def test_the_command_writes_what_the_notebook_loads(onnx_file, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(2):
        draw_pair(np.random.default_rng(seed), 320)[0].save(images / f"{seed}.png")
    output = tmp_path / "u2netp.pth"
    assert import_onnx.main([onnx_file, str(output), "--images", str(images), "--half"]) == 0
    assert output.stat().st_size <= 2_600_000
    model = U2NETP()
    model.load_state_dict(torch.load(output, map_location="cpu")["model_state"], strict=True)
    for norm in import_onnx.norms(model):
        assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert read_checkpoint(output).recipe is None


def test_other_files_are_refused(tmp_path, capsys):
    weight = onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    bias = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "b")
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"])], "g", value[:1], value[1:],
        [weight, bias])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "small.onnx")
    with pytest.raises(UserError, match="has 1 convolutions, u2netp has 119"):
        import_onnx.import_folded(tmp_path / "small.onnx")
    assert import_onnx.main([str(tmp_path / "small.onnx"), str(tmp_path / "x.pth")]) == 2
    assert "error: " in capsys.readouterr().err and not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("content", [None, b"no protobuf"])
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, capsys, content):
    path = tmp_path / "a.onnx"
    if content:
        path.write_bytes(content)
    assert import_onnx.main([str(path), str(tmp_path / "o.pth")]) == 2
    assert f"error: {path}: cannot be read as an ONNX file" in capsys.readouterr().err


@torch.no_grad()
def test_half_precision_keeps_the_mse(onnx_file, items, tmp_path):
    images, masks = items
    model = import_onnx.import_folded(onnx_file)
    write_checkpoint(tmp_path / "half.pth", halved(model.state_dict()))
    half = U2NETP().eval()
    half.load_state_dict(read_checkpoint(tmp_path / "half.pth").model_state)
    errors = [(m(images)[0].double() - masks).square().mean().item() for m in (model, half)]
    assert abs(errors[1] - errors[0]) < 1e-5
