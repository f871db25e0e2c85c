"""From files to masks: original size, order, rounding."""

import numpy as np
import pytest
import torch

def predictor(kernel, network, size=32, workers=0, **recipe):
    """A Predictor that does nothing beside the network, unless told to."""
    return kernel.Predictor(network, kernel.Recipe(size, **{"refine": False, **recipe}),
                            kernel.Machine(workers=workers))


class EchoRed(torch.nn.Module):
    """A network whose matte is the red channel."""

    def matte(self, x):
        return x[:, :1] / 2 + 0.5


def trained(kernel):
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    model = kernel.U2NETP().train()
    for _ in range(3):
        model(torch.rand(2, 3, 64, 64) * 2 - 1)
    return model.eval()


@pytest.mark.parametrize("size", [64, 97])
def test_the_predictor_predicts_what_the_network_does(kernel, size):
    model = trained(kernel)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, size, size) * 2 - 1
    fast = kernel.make_predictor(model, kernel.Recipe(), kernel.Machine()).once(
        {"img": {size: images}}, size)
    with torch.no_grad():
        assert (fast - model(images)[0]).abs().max() < 1e-5
        assert torch.equal(model.matte(images), model(images)[0])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])  # the network itself stays as it was


def test_validation_compares_at_the_images_own_size(kernel, small_data):
    pairs = kernel.read_pairs(small_data.val)
    rows = list(predictor(kernel, trained(kernel), 48).validation(pairs))
    assert [row[3] for row in rows] == [pairs[0][0], pairs[1][0]]
    for image, prediction, truth, _ in rows:
        assert image.shape == (3, 48, 48) and prediction.shape == truth.shape == (96, 96)
    alpha = kernel.open_image(pairs[1][1], "L")
    assert np.array_equal(rows[1][2], np.asarray(alpha, np.float32) / 255)


def test_done_images_are_left_out(kernel, small_data):
    tests = kernel.list_tests(small_data.test)
    plain = predictor(kernel, trained(kernel))
    whole, rest = list(plain.masks(tests)), list(plain.masks(tests, done=2))
    assert len(rest) == 1 and rest[0][0] == "a.b" and np.array_equal(rest[0][1], whole[2][1])


def test_mapping_ahead_keeps_order_and_bounds(kernel):
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    for count, value in enumerate(kernel.mapped_ahead(lambda x: x * x, items(), ahead=3), 1):
        assert value == (count - 1) ** 2 and len(taken) <= count + 3
    assert count == 50


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_have_their_images_names_sizes_and_order(kernel, small_data, workers):
    tests = kernel.list_tests(small_data.test)
    masks = list(predictor(kernel, kernel.U2NETP().eval(), workers=workers).masks(tests))
    assert [name for name, *_ in masks] == ["2", "10", "a.b"]
    assert [mask.shape for _, mask, _ in masks] == [(64, 64), (40, 50), (90, 33)]
    assert all(mask.dtype == np.uint8 for _, mask, _ in masks)


def test_at_the_images_own_size_nothing_is_lost(kernel, small_data):
    """The mask is the matte of the pixels themselves, to the last level."""
    path = small_data.test / "2.png"
    (row,) = predictor(kernel, EchoRed(), 64).masks([kernel.TestImage("2", path)])
    assert np.array_equal(row[1], np.asarray(kernel.open_image(path, "RGB"))[..., 0])


def test_values_are_rounded_not_truncated(kernel):
    levels = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(kernel.to_uint8(levels), np.arange(256))
    assert kernel.to_uint8(np.float32(0.998)) == 254 and kernel.to_uint8(np.float32(0.999)) == 255


def test_the_recipes_calibration_is_applied(kernel, small_data):
    tests = [kernel.TestImage("10", small_data.test / "10.png")]
    plain, stretched = (
        next(predictor(kernel, EchoRed(), 64, calibration=name).masks(tests))[1]
        for name in ("none", "notebook"))
    assert stretched.min() == 0 and (stretched <= plain).all() and (stretched < plain).any()


@pytest.mark.parametrize("width, height", [(7, 90), (64, 64), (300, 20)])
def test_resizing_keeps_constants_and_range(kernel, width, height):
    constant = kernel.resize_alpha(torch.full((1, 1, 64, 64), 0.3), width, height)
    assert constant.shape == (1, 1, height, width)
    assert torch.allclose(constant, torch.tensor(0.3))
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 1
    resized = kernel.resize_alpha(step, width, height)
    assert resized.min() >= 0 and resized.max() <= 1


def test_training_in_bf16_predicts_in_float32(kernel):
    model, batch = trained(kernel), {"img": {64: torch.rand(1, 3, 64, 64) * 2 - 1}}
    full, mixed = (kernel.make_predictor(model, kernel.Recipe(), kernel.Machine(dtype=dtype))
                   for dtype in (None, torch.bfloat16))
    assert torch.equal(full.once(batch, 64), mixed.once(batch, 64))


def test_a_prediction_that_is_not_finite_names_its_image(kernel, small_data):
    class Broken(torch.nn.Module):
        def matte(self, x):
            return x[:, :1] * float("nan")

    broken = predictor(kernel, Broken())
    with pytest.raises(kernel.UserError, match="^2: the network predicts NaN"):
        list(broken.masks(kernel.list_tests(small_data.test)))
    with pytest.raises(kernel.UserError, match="val0.png: the network predicts NaN"):
        list(broken.validation(kernel.read_pairs(small_data.val)))


def test_mirroring_averages_with_the_mirrored_image(kernel, small_data):
    """A network that answers with a ramp from left to right: with its mirror image, one half."""
    class Ramp(torch.nn.Module):
        def matte(self, x):
            return torch.linspace(0, 1, x.shape[3]).expand(len(x), 1, *x.shape[2:])

    tests = [kernel.TestImage("2", small_data.test / "2.png")]
    plain, both = (next(predictor(kernel, Ramp(), 64, flip=flip).masks(tests))[1]
                   for flip in (False, True))
    assert plain[0, 0] == 0 and plain[0, -1] == 255
    assert (np.abs(both.astype(int) - 127.5) < 1).all()


def test_refinement_is_for_images_larger_than_the_input_only(kernel):
    alpha, small = torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1
    full = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    same = kernel.at_full_size(alpha, small, full, refined=True)
    assert np.array_equal(same, alpha[0, 0])
    full = torch.randint(0, 256, (1, 130, 140, 3), dtype=torch.uint8)
    plain, refined = (kernel.at_full_size(alpha, small, full, flag) for flag in (False, True))
    assert plain.shape == refined.shape == (130, 140) and not np.array_equal(plain, refined)


def test_several_sizes_are_averaged(kernel, small_data):
    tests = kernel.list_tests(small_data.test)
    model = trained(kernel)
    both, *each = (
        [mask.astype(float) for _, mask, _ in predictor(kernel, model, size).masks(tests)]
        for size in ((32, 64), 32, 64))
    for mean, small, large in zip(both, *each):
        assert np.abs(mean - (small + large) / 2).max() <= 1  # rounded before and after
    assert any((small != large).any() for small, large in zip(*each))


def test_an_ensemble_is_the_mean_of_its_members_masks(kernel, small_data):
    """Each with its own size, mirroring and refinement; the calibration is the whole's."""
    tests = kernel.list_tests(small_data.test)
    members = [predictor(kernel, trained(kernel), 32, flip=True),
               predictor(kernel, trained(kernel), (32, 64), refine=True),
               predictor(kernel, EchoRed(), 48, calibration="notebook")]
    ensemble = kernel.make_ensemble(members)
    assert ensemble.sizes == (32, 64, 48)
    members[2] = members[2].with_recipe(calibration=None)
    masks = [[mask.astype(float) for _, mask, _ in each.masks(tests)]
             for each in (ensemble, *members)]
    for mean, *own in zip(*masks):
        assert np.abs(mean - np.mean(own, axis=0)).max() <= 1
    stretched = ensemble.with_recipe(calibration="notebook", predict_size=64)
    assert [each.recipe.predict_size for each in stretched.members] == [64, 64, 64]
    assert {each.calibration for each in stretched.recipes} == {"notebook"}
    assert next(stretched.masks(tests))[1].min() == 0
