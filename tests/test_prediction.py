"""From files to masks: original size, order, rounding."""

import numpy as np
import pytest
import torch

PLAIN = {"predict_size": 32, "flip": False, "refine": False, "calibration": "none"}


@pytest.fixture
def machine(kernel):
    return kernel.Machine()


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
def test_the_predictor_predicts_what_the_network_does(kernel, machine, size):
    model = trained(kernel)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, size, size) * 2 - 1
    fast = kernel.predict_alpha(kernel.predictor(model, machine), {"img": images}, machine)
    with torch.no_grad():
        assert (fast - model(images)[0]).abs().max() < 1e-5
        assert torch.equal(model.matte(images), model(images)[0])
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])  # the network itself stays as it was


def test_validation_compares_at_the_images_own_size(kernel, machine, small_data):
    pairs = kernel.read_pairs(small_data.val)
    rows = list(kernel.validation_pairs(
        kernel.predictor(trained(kernel), machine), pairs, {**PLAIN, "predict_size": 48}, machine))
    assert [row[3] for row in rows] == [pairs[0][0], pairs[1][0]]
    for image, prediction, truth, _ in rows:
        assert image.shape == (3, 48, 48) and prediction.shape == truth.shape == (96, 96)
    alpha = kernel.open_image(pairs[1][1], "L")
    assert np.array_equal(rows[1][2], np.asarray(alpha, np.float32) / 255)


def test_done_images_are_left_out(kernel, machine, small_data):
    paths = kernel.list_tests(small_data.test)
    recipe = PLAIN
    model = kernel.predictor(trained(kernel), machine)
    whole = list(kernel.predict_masks(model, paths, recipe, machine))
    rest = list(kernel.predict_masks(model, paths, recipe, machine, done=2))
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
def test_masks_have_their_images_names_sizes_and_order(kernel, machine, small_data, workers):
    paths = kernel.list_tests(small_data.test)
    recipe = PLAIN
    masks = list(kernel.predict_masks(
        kernel.predictor(kernel.U2NETP(), machine), paths, recipe, kernel.Machine(workers=workers)))
    assert [name for name, *_ in masks] == ["2", "10", "a.b"]
    assert [mask.shape for _, mask, _ in masks] == [(64, 64), (40, 50), (90, 33)]
    assert all(mask.dtype == np.uint8 for _, mask, _ in masks)


def test_at_the_images_own_size_nothing_is_lost(kernel, machine, small_data):
    """The mask is the matte of the pixels themselves, to the last level."""
    path = small_data.test / "2.png"
    masks = kernel.predict_masks(
        EchoRed(), [kernel.TestImage("2", path)], {**PLAIN, "predict_size": 64}, machine)
    red = np.asarray(kernel.open_image(path, "RGB"))[..., 0]
    assert np.array_equal(next(masks)[1], red)


def test_values_are_rounded_not_truncated(kernel):
    levels = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(kernel.to_uint8(levels), np.arange(256))
    assert kernel.to_uint8(np.float32(0.998)) == 254 and kernel.to_uint8(np.float32(0.999)) == 255


def test_the_recipes_calibration_is_applied(kernel, machine, small_data):
    path = kernel.TestImage("10", small_data.test / "10.png")
    plain, stretched = (
        next(kernel.predict_masks(EchoRed(), [path],
                                  {**PLAIN, "predict_size": 64, "calibration": name}, machine))[1]
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


def test_training_in_bf16_predicts_in_float32(kernel, machine):
    model = kernel.predictor(trained(kernel), machine)
    batch = {"img": torch.rand(1, 3, 64, 64) * 2 - 1}
    full = kernel.predict_alpha(model, batch, machine)
    mixed = kernel.predict_alpha(model, batch, kernel.Machine(dtype=torch.bfloat16))
    assert torch.equal(full, mixed)


def test_a_prediction_that_is_not_finite_names_its_image(kernel, machine, small_data):
    class Broken(torch.nn.Module):
        def matte(self, x):
            return x[:, :1] * float("nan")

    tests = kernel.list_tests(small_data.test)
    with pytest.raises(kernel.UserError, match="^2: the network predicts NaN"):
        list(kernel.predict_masks(Broken(), tests, PLAIN, machine))
    with pytest.raises(kernel.UserError, match="val0.png: the network predicts NaN"):
        list(kernel.validation_pairs(Broken(), kernel.read_pairs(small_data.val), PLAIN, machine))


def test_mirroring_averages_with_the_mirrored_image(kernel, machine, small_data):
    """A network that answers with a ramp from left to right: with its mirror image, one half."""
    class Ramp(torch.nn.Module):
        def matte(self, x):
            return torch.linspace(0, 1, x.shape[3]).expand(len(x), 1, *x.shape[2:])

    path = [kernel.TestImage("2", small_data.test / "2.png")]
    masks = {flip: next(kernel.predict_masks(
        Ramp(), path, {**PLAIN, "predict_size": 64, "flip": flip}, machine))[1] for flip in (0, 1)}
    assert masks[0][0, 0] == 0 and masks[0][0, -1] == 255
    assert (np.abs(masks[1].astype(int) - 127.5) < 1).all()


def test_refinement_is_for_images_larger_than_the_input_only(kernel):
    alpha, small = torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1
    full = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    same = kernel.at_full_size(alpha, small, full, refined=True)
    assert np.array_equal(same, alpha[0, 0])
    full = torch.randint(0, 256, (1, 130, 140, 3), dtype=torch.uint8)
    plain, refined = (kernel.at_full_size(alpha, small, full, flag) for flag in (False, True))
    assert plain.shape == refined.shape == (130, 140) and not np.array_equal(plain, refined)


def test_the_recipe_of_the_lowest_error_is_chosen_within_the_budget(
        kernel, machine, small_data, capsys):
    """The validation images are soft discs and the network is told so by the red channel, at full
    strength only in mirrored images."""
    class SeesMirrored(torch.nn.Module):
        calls = 0

        def matte(self, x):
            self.calls += 1
            return (x[:, :1] > 0.5).float() * (1.0 if self.calls % 2 == 0 else 0.5)

    pairs = kernel.read_pairs(small_data.val)
    chosen = kernel.choose_recipe(SeesMirrored(), pairs, [64], None, machine)
    assert chosen["predict_size"] == 64 and chosen["flip"] is True
    assert len(chosen["trials"]) == 4
    assert min(trial[3] for trial in chosen["trials"]) == chosen["trials"][2 + chosen["refine"]][3]
    table = capsys.readouterr().out
    assert table.count("chosen") == 1 and len(table.splitlines()) == 5
    cheap = kernel.choose_recipe(SeesMirrored(), pairs, [64], 1e-9, machine)
    assert "No recipe fits" in capsys.readouterr().out and cheap["flip"] is False


def test_candidate_sizes_fit_the_network(kernel):
    assert kernel.candidate_sizes(320) == [320, 384]
    assert kernel.candidate_sizes(256) == [256, 320]
