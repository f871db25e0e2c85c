"""Size, mirroring and refinement by validation error."""

from types import SimpleNamespace

import numpy as np
import torch


def test_the_recipe_of_the_lowest_error_is_chosen(kernel, small_data, capsys):
    """The validation images are soft discs and the network is told so by the red channel, at full
    strength only in mirrored images."""
    class SeesMirrored(torch.nn.Module):
        calls = 0

        def matte(self, x):
            self.calls += 1
            return (x[:, :1] > 0.5).float() * (1.0 if self.calls % 2 == 0 else 0.5)

    predictor = kernel.Predictor(SeesMirrored(), kernel.Recipe(999), kernel.Machine())
    chosen = kernel.choose_recipe(predictor, kernel.read_pairs(small_data.val), [64]).recipe
    assert (chosen.predict_size, chosen.flip, chosen.calibration) == (64, True, None)
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split()[-2:] == ["MSE", "s/image"] and len(rows) == 4
    errors = [float(row.split()[-2]) for row in rows]
    (best,) = [row for row in rows if "chosen" in row]
    assert float(best.split()[-2]) == min(errors)
    assert best.split()[1:4] == ["64", "yes", "yes" if chosen.refine else "no"]


def test_equal_errors_keep_the_simpler_recipe(kernel, small_data):
    """However long each took: a constant network gains nothing from mirroring or refinement."""
    class Constant(torch.nn.Module):
        def matte(self, x):
            return torch.zeros_like(x[:, :1])

    predictor = kernel.Predictor(Constant(), kernel.Recipe(), kernel.Machine())
    chosen = kernel.choose_recipe(predictor, kernel.read_pairs(small_data.val), [64, 96]).recipe
    assert chosen == kernel.Recipe(64, flip=False, refine=False)


def test_two_sizes_are_chosen_where_they_are_better(kernel, small_data, capsys):
    """One size answers too low, the other too high by as much."""
    class Opposite(torch.nn.Module):
        def matte(self, x):
            truth = (x[:, :1] > 0.5).float()
            return truth * 0.8 + (0.2 if x.shape[3] == 64 else 0.0)

    predictor = kernel.Predictor(Opposite(), kernel.Recipe(), kernel.Machine())
    pairs = kernel.read_pairs(small_data.val)
    chosen = kernel.choose_recipe(predictor, pairs, [64, 96]).recipe
    assert chosen.predict_size == (64, 96) and chosen.sizes == (64, 96)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 12
    (best,) = [row for row in rows if "chosen" in row]
    assert "64+96" in best
    assert kernel.read_recipe(SimpleNamespace(
        path="x", recipe=kernel.stored_form(chosen)), 1) == chosen


def test_members_are_compared_with_their_mean(kernel, small_data, capsys):
    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def matte(self, x):
            return torch.full_like(x[:, :1], self.value)

    members = [kernel.Predictor(Constant(value), kernel.Recipe(64, refine=False), kernel.Machine())
               for value in (0.0, 1.0)]
    pairs = kernel.read_pairs(small_data.val)
    kernel.compare_members(kernel.make_ensemble(members), pairs, ["low.pth", "high.pth"])
    _, low, high, both = capsys.readouterr().out.splitlines()
    assert low.split()[0] == "low.pth" and high.split()[0] == "high.pth"
    errors = [float(row.split()[-2]) for row in (low, high, both)]
    alphas = [np.asarray(kernel.open_alpha(pairs[i][1]), float) / 255 for i in range(2)]
    for error, value in zip(errors, (0, 1, 0.5)):
        expected = np.mean([np.square(alpha - value).mean() for alpha in alphas])
        assert abs(error - expected) < 1e-5


def test_candidate_sizes_fit_the_network(kernel):
    assert kernel.candidate_sizes(320) == [320, 384]
    assert kernel.candidate_sizes(256) == [256, 320]
