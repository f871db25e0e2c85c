"""Sizes, mirroring, refinement and calibration by validation error; several checkpoints."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import EchoRed, plain_predictor


class Constant(torch.nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def matte(self, x):
        return torch.full_like(x[:, :1], self.value)


@pytest.fixture
def pairs(kernel, small_data):
    """Soft bright discs on dark noise"""
    return kernel.read_pairs(small_data.val)


def table(capsys):
    """(the line in a table of recipes that is chosen, errors of all)"""
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split()[-2:] == ["MSE", "s/image"]
    (best,) = [row.split() for row in rows if "chosen" in row]
    return best, [float(row.split()[-2]) for row in rows]


def test_the_views_of_the_lowest_error_are_chosen(kernel, pairs, capsys):
    """The network is told of the discs by the red channel, at full strength only in mirrored
    images."""
    class SeesMirrored(torch.nn.Module):
        calls = 0

        def matte(self, x):
            self.calls += 1
            return (x[:, :1] > 0.5).float() * (1.0 if self.calls % 2 == 0 else 0.5)

    predictor = plain_predictor(kernel, SeesMirrored(), 999)
    chosen = kernel.choose_views(predictor, pairs, [64])
    recipe = chosen.recipe
    assert (recipe.predict_size, recipe.flip, recipe.calibration) == (64, True, None)
    assert [(view.size, view.mirrored) for view in chosen.views] == [(64, False), (64, True)]
    best, errors = table(capsys)
    assert len(errors) == 4 and float(best[-2]) == min(errors)
    assert best[1:4] == ["64", "yes", "yes" if recipe.refine else "no"]


def test_equal_errors_keep_the_simpler_recipe(kernel, pairs):
    """However long each took: a constant network gains nothing from mirroring or refinement."""
    chosen = kernel.choose_views(plain_predictor(kernel, Constant(), 999), pairs, [64, 96]).recipe
    assert chosen == kernel.Recipe(64, flip=False, refine=False)


def test_two_sizes_are_chosen_where_they_are_better(kernel, pairs, capsys):
    """One size answers too low, the other too high by as much."""
    class Opposite(torch.nn.Module):
        def matte(self, x):
            truth = (x[:, :1] > 0.5).float()
            return truth * 0.8 + (0.2 if x.shape[3] == 64 else 0.0)

    chosen = kernel.choose_views(plain_predictor(kernel, Opposite()), pairs, [64, 96])
    assert chosen.recipe.predict_size == chosen.sizes == (64, 96)
    best, errors = table(capsys)
    assert len(errors) == 12 and best[1] == "64+96"
    assert kernel.read_recipe(SimpleNamespace(
        path="x", recipe=kernel.stored_form(chosen.recipe)), 1) == chosen.recipe


def test_the_table_has_the_errors_of_what_is_then_predicted(kernel, pairs, capsys):
    chosen = kernel.choose_views(plain_predictor(kernel, EchoRed()), pairs, [64, 96])
    best, _ = table(capsys)
    mse = np.mean([np.square(alpha - truth).mean()
                   for _, _, alpha, truth in chosen.validation(pairs)])
    assert float(best[-2]) == pytest.approx(mse, abs=1e-6)


def test_candidate_sizes_fit_the_network(kernel):
    assert kernel.candidate_sizes((320,)) == (320, 384)
    assert kernel.candidate_sizes((256,)) == (256, 320)


# ---------------------------------------------------------------- what a recipe leaves open


@pytest.mark.parametrize("recipe, flags, expected", [
    ({"calibration": "notebook"}, {}, (64, "notebook")),
    ({"calibration": "notebook"}, {"calibration": "none"}, (64, "none")),
    ({"calibration": "notebook"}, {"predict_size": 96}, (96, "notebook")),
    ({}, {"predict_size": 128, "calibration": "none"}, (128, "none"))])
def test_a_whole_recipe_stays_and_flags_take_precedence(kernel, pairs, recipe, flags, expected):
    predictor, settings = plain_predictor(kernel, EchoRed(), **recipe), kernel.Settings(**flags)
    chosen = kernel.choose(predictor, settings, pairs, kernel.StopWatch())
    assert (chosen.recipe.predict_size, chosen.recipe.calibration) == expected
    assert chosen.sizes == (expected[0],)


def test_without_validation_data_predictions_stay_as_they_are(kernel, capsys):
    predictor = plain_predictor(kernel, EchoRed())
    chosen = kernel.choose(predictor, kernel.Settings(), None, kernel.StopWatch())
    assert chosen == predictor.with_recipe(calibration="none")
    assert "predictions are taken as they are" in capsys.readouterr().out


@pytest.mark.parametrize("size", [96, (96, 128)])
def test_an_open_recipe_is_chosen_whole(kernel, pairs, capsys, size):
    """The sizes that it names are tried, whether one or several."""
    predictor = plain_predictor(kernel, EchoRed(), size)
    chosen = kernel.choose(predictor, kernel.Settings(), pairs, kernel.StopWatch())
    assert chosen.recipe.calibration in kernel.CALIBRATIONS
    said = capsys.readouterr().out
    assert set(re.findall(r"  ([\d+]+)  (?:yes|no)", said)) == {"96", "128", "96+128"}


# ---------------------------------------------------------------- several checkpoints


def test_members_are_compared_with_their_mean(kernel, pairs, capsys):
    low, high = (plain_predictor(kernel, Constant(value)) for value in (0.0, 1.0))
    together = replace(low, views=low.views + high.views)
    kernel.compare({"low.pth": low, "high.pth": high, "all together": together}, pairs)
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["low.pth", "high.pth", "all"]
    alphas = [np.asarray(kernel.open_alpha(pairs[i][1]), float) / 255 for i in range(2)]
    for row, value in zip(rows, (0, 1, 0.5)):
        expected = np.mean([np.square(alpha - value).mean() for alpha in alphas])
        assert abs(float(row.split()[-2]) - expected) < 1e-5


def test_what_is_left_out_does_not_count_as_the_same(kernel, tmp_path, capsys):
    """Weights of ours whose copy without a recipe lies before them"""
    torch.manual_seed(0)
    first, second = kernel.U2NETP().state_dict(), kernel.U2NETP().state_dict()
    paths = [tmp_path / f"{name}.pth" for name in "abc"]
    for path, state, more in zip(paths, (first, second, second), (
            {"recipe": {"predict_size": 32}}, {}, {"recipe": {"predict_size": 64}})):
        kernel.write_checkpoint(path, state, **more)
    checkpoint = kernel.read_checkpoint(paths[0])
    predictor = kernel.make_predictor(
        kernel.build_network(checkpoint), kernel.Recipe(32), kernel.Machine())
    for only_ours, sizes in ((True, (32, 64)), (False, (32,))):
        together = kernel.with_others(predictor, checkpoint, paths[1:], only_ours, None)
        assert together.sizes == sizes and len(together.views) == 2
        said = capsys.readouterr().out
        assert ("b.pth: has no recipe" in said) == only_ours
        assert ("c.pth has the weights of" in said) == (not only_ours)
