"""From images to alphas: pictures of any mode, their own size, views and their mean."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from conftest import EchoRed, plain_predictor


def trained(kernel):
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    model = kernel.U2NETP().train()
    for _ in range(3):
        model(torch.rand(2, 3, 64, 64) * 2 - 1)
    return model.eval()


def noise(width, height):
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(kernel, small_data):
    """[(name, image, number)] of the three test images"""
    return [(test.name, kernel.open_image(test.path, "RGB"), number)
            for number, test in enumerate(kernel.list_tests(small_data.test))]


@pytest.mark.parametrize("size", [64, 97])
def test_the_predictor_predicts_what_the_network_does(kernel, size):
    model, machine = trained(kernel), kernel.Machine()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(1, 3, size, size) * 2 - 1
    (view,) = kernel.make_predictor(model, kernel.Recipe(size), machine).views
    with torch.no_grad():
        assert (kernel.once(view, images, machine, "x") - model(images)[0]).abs().max() < 1e-5
        assert torch.equal(model.matte(images), model(images)[0])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])  # the network itself stays as it was


# ---------------------------------------------------------------- one picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_has_an_alpha(kernel, mode):
    """At the network's own size the red channel comes back to the last level; where the picture has
    an alpha of its own, never more than that."""
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    if mode == "1":
        levels = levels // 128 * 255
    grey = Image.fromarray(levels)
    image = grey.convert(mode) if mode != "I;16" else Image.fromarray(
        levels.astype(np.uint16) * 257)
    assert image.mode == mode
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(levels.T.copy()))
    alpha = plain_predictor(kernel, EchoRed()).alpha(image)
    assert (alpha.dtype, alpha.shape) == (np.float32, (64, 64))
    if mode in ("LA", "RGBA"):
        assert (alpha <= levels.T / np.float32(255)).all() and alpha.max() > 0.5
        return
    assert np.array_equal(kernel.to_uint8(alpha), levels) and 0 <= alpha.min() <= alpha.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (20, 300), (65, 64)])
@pytest.mark.parametrize("recipe", [{}, {"refine": True}, {"flip": True, "size": (64, 96)}])
def test_an_alpha_has_its_pictures_size(kernel, size, recipe):
    """Smaller than the network, too."""
    alpha = plain_predictor(kernel, EchoRed(), **recipe).alpha(noise(*size))
    assert (alpha.dtype, alpha.shape) == (np.float32, size[::-1])
    assert 0 <= alpha.min() <= alpha.max() <= 1


def test_a_photograph_is_turned_upright(kernel, tmp_path):
    exif = Image.Exif()
    exif[kernel.ORIENTATION] = 6
    noise(80, 64).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        alpha = plain_predictor(kernel, EchoRed(), 96).alpha(image)
    upright = noise(80, 64).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(alpha, plain_predictor(kernel, EchoRed(), 96).alpha(upright))


def test_training_in_bf16_predicts_in_float32(kernel):
    model = trained(kernel)
    full, mixed = (kernel.make_predictor(model, kernel.Recipe(64), kernel.Machine(dtype=dtype))
                   for dtype in (None, torch.bfloat16))
    assert np.array_equal(full.alpha(noise(64, 64)), mixed.alpha(noise(64, 64)))


def test_load_predicts_by_the_checkpoints_own_recipe(kernel, tmp_path):
    model, recipe = trained(kernel), kernel.Recipe((32, 64), flip=True, calibration="notebook")
    kernel.write_checkpoint(tmp_path / "a.pth", model.state_dict(),
                            recipe=kernel.stored_form(recipe))
    loaded = kernel.load(tmp_path / "a.pth", "cpu")
    assert loaded.recipe == recipe and len(loaded.views) == 4
    made = kernel.make_predictor(model, recipe, kernel.Machine())
    assert np.array_equal(loaded.alpha(noise(70, 90)), made.alpha(noise(70, 90)))
    (tmp_path / "b.pth").write_bytes(b"no weights")
    with pytest.raises(kernel.UserError, match="b.pth"):
        kernel.load(tmp_path / "b.pth")


# ---------------------------------------------------------------- many, in order


def test_alphas_come_in_order_each_of_its_images_size(kernel, small_data):
    """Whatever came with an image comes with its alpha."""
    items = opened(kernel, small_data)
    rows = list(plain_predictor(kernel, trained(kernel), 32).alphas(items))
    assert [(image, more) for image, _, more in rows] == [each[1:] for each in items]
    assert [alpha.shape for _, alpha, _ in rows] == [(64, 64), (40, 50), (90, 33)]


def test_validation_compares_at_the_images_own_size(kernel, small_data):
    pairs = kernel.read_pairs(small_data.val)
    predictor = plain_predictor(kernel, trained(kernel), 48, calibration="notebook")
    rows = list(predictor.validation(pairs))
    assert [path for path, *_ in rows] == [pairs[0][0], pairs[1][0]]
    for index, (path, image, alpha, truth) in enumerate(rows):
        assert np.array_equal(image, kernel.open_image(path, "RGB"))
        assert np.array_equal(alpha, predictor.alpha(image))
        levels = np.asarray(kernel.open_image(pairs[index][1], "L"), np.float32)
        assert np.array_equal(truth, levels / 255)


def test_mapping_ahead_keeps_order_and_bounds(kernel):
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    for count, value in enumerate(kernel.mapped_ahead(lambda x: x * x, items(), ahead=3), 1):
        assert value == (count - 1) ** 2 and len(taken) <= count + 3
    assert count == 50


def test_a_prediction_that_is_not_finite_names_its_image(kernel, small_data):
    class Broken(torch.nn.Module):
        def matte(self, x):
            return x[:, :1] * float("nan")

    broken, pairs = plain_predictor(kernel, Broken()), kernel.read_pairs(small_data.val)
    with pytest.raises(kernel.UserError, match="^2: the network predicts NaN"):
        list(broken.alphas(opened(kernel, small_data)))
    with pytest.raises(kernel.UserError, match="val0.png: the network predicts NaN"):
        list(broken.validation(pairs))
    with pytest.raises(kernel.UserError, match="val0.png: the network predicts NaN"):
        kernel.choose_views(broken, pairs, [64])


# ---------------------------------------------------------------- views and their mean


def test_a_mirrored_view_averages_with_the_mirror_image(kernel):
    """A network that answers with a ramp from left to right: with its mirror image, one half."""
    class Ramp(torch.nn.Module):
        def matte(self, x):
            return torch.linspace(0, 1, x.shape[3]).expand(len(x), 1, *x.shape[2:])

    plain, both = (plain_predictor(kernel, Ramp(), flip=flip).alpha(noise(64, 64))
                   for flip in (False, True))
    assert plain[0, 0] == 0 and plain[0, -1] == 1
    assert np.abs(both - 0.5).max() < 1e-6


def test_mirrored_the_mirror_image_has_the_mirrored_alpha(kernel):
    image = noise(130, 110)
    mirrored = ImageOps.mirror(image)
    for flip, equal in ((True, True), (False, False)):
        predictor = plain_predictor(kernel, trained(kernel), flip=flip, refine=True)
        alpha, other = predictor.alpha(image), predictor.alpha(mirrored)[:, ::-1]
        assert np.allclose(alpha, other, atol=1e-4) == equal


def test_several_sizes_and_networks_are_averaged(kernel):
    """All views alike, and refinement is linear; the calibration comes after the mean."""
    recipe = kernel.Recipe(calibration="notebook")
    views = (*kernel.make_views(trained(kernel), kernel.Recipe((32, 64))),
             *kernel.make_views(EchoRed(), kernel.Recipe(48, flip=True)))
    whole = kernel.Predictor(views, recipe)
    assert whole.sizes == (32, 64, 48)
    raw = whole.with_recipe(calibration="none")
    alone = [replace(raw, views=(view,)).alpha(noise(90, 70)) for view in views]
    assert np.ptp(alone, axis=0).max() > 0.1
    mean = np.mean(alone, axis=0)
    assert np.abs(raw.alpha(noise(90, 70)) - mean).max() < 1e-3
    assert np.allclose(whole.alpha(noise(90, 70)),
                       kernel.stretch_and_gamma(raw.alpha(noise(90, 70))))


def test_a_changed_recipe_changes_the_views_of_all_networks(kernel):
    first, second = EchoRed(), EchoRed()
    views = (kernel.View(first, 32), kernel.View(second, 64, True))
    predictor = kernel.Predictor(views, kernel.Recipe(32))
    assert predictor.with_recipe(calibration="none", refine=False).views == views
    changed = predictor.with_recipe(predict_size=96, flip=True)
    assert changed.views == tuple(kernel.View(network, 96, mirrored) for network in (first, second)
                                  for mirrored in (False, True))


# ---------------------------------------------------------------- to the picture's own size


def test_the_recipes_calibration_is_applied(kernel):
    plain, stretched = (
        plain_predictor(kernel, EchoRed(), calibration=name).alpha(noise(64, 64))
        for name in ("none", "notebook"))
    assert stretched.min() == 0 and (stretched <= plain).all() and (stretched < plain).any()


def test_values_are_rounded_not_truncated(kernel):
    levels = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(kernel.to_uint8(levels), np.arange(256))
    assert kernel.to_uint8(np.float32([0.998, 0.999])).tolist() == [254, 255]


@pytest.mark.parametrize("width, height", [(7, 90), (64, 64), (300, 20)])
def test_resizing_keeps_constants_and_range(kernel, width, height):
    constant = kernel.resize_alpha(torch.full((1, 1, 64, 64), 0.3), width, height)
    assert constant.shape == (1, 1, height, width)
    assert torch.allclose(constant, torch.tensor(0.3))
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 1
    resized = kernel.resize_alpha(step, width, height)
    assert resized.min() >= 0 and resized.max() <= 1


def test_refinement_is_for_images_larger_than_the_input_only(kernel):
    alpha, inputs = torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1
    for size, differs in (((64, 64), False), ((140, 64), False), ((140, 130), True)):
        plain, refined = (kernel.at_full_size(alpha, inputs, noise(*size), flag)
                          for flag in (False, True))
        assert plain.shape == refined.shape == size[::-1]
        assert (not np.array_equal(plain, refined)) == differs
