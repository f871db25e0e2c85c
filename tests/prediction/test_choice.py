"""Size, mirroring and refinement by validation error."""

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


def test_candidate_sizes_fit_the_network(kernel):
    assert kernel.candidate_sizes(320) == [320, 384]
    assert kernel.candidate_sizes(256) == [256, 320]
