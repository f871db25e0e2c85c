"""The report: which images are shown, what a picture that fails costs."""

import numpy as np
import pytest
from PIL import Image

from conftest import write_pairs


class Levels:
    """Predicts a grey level for each pair, from its place."""

    def __init__(self, levels):
        self.levels = levels

    def validation(self, pairs):
        for index in range(len(pairs)):
            path, _ = pairs[index]
            level = self.levels[int(path.rsplit("train", 1)[1].split(".")[0])]
            yield (path, Image.new("RGB", (8, 8)), np.full((8, 8), level, np.float32),
                   np.zeros((8, 8), np.float32))


@pytest.mark.parametrize("count, shown", [(3, [4, 0, 3]), (1, [4]), (99, [4, 2, 0, 1, 3]), (0, [])])
def test_images_from_the_worst_to_the_best_are_shown(kernel, tmp_path, count, shown):
    pairs = kernel.read_pairs(write_pairs(tmp_path, 5, size=8))
    predictor, stop = Levels([0.3, 0.2, 0.4, 0.1, 0.9]), kernel.StopWatch()
    scores = kernel.score(predictor, pairs, stop)
    assert [each["mse"] for each in scores] == pytest.approx([0.09, 0.04, 0.16, 0.01, 0.81])
    assert scores[0]["sad"] == pytest.approx(0.3 * 64 / 1000)
    rows = kernel.shown_pairs(predictor, pairs, scores, count, stop)
    assert [row[3] for row in rows] == [f"train{number}.png" for number in shown]
    assert kernel.shown_pairs(predictor, None, [], count, stop) == []


@pytest.mark.parametrize("is_complete, named", [(True, 30), (False, 20)])
def test_every_problem_is_named_somewhere(kernel, tmp_path, capsys, is_complete, named):
    """In the log, where problems.csv does not list them."""
    problems = [(str(number), "torn") for number in range(30)]
    (tmp_path / "masks" / "a.png").mkdir(parents=True)
    kernel.summarise("", [], 1, problems, [], tmp_path, is_complete)
    said = capsys.readouterr().out
    assert said.count("PROBLEM with") == named and "Problems: 30" in said
    assert ("problems.csv" in said) == ("submission" in said) == (not is_complete)
    assert "pictures into" not in said


def test_pictures_never_cost_the_run(kernel, tmp_path, capsys):
    """A submission that is not there."""
    kernel.write_report(tmp_path, 3, [], [], [], [("a", "torn")])
    assert "preview/submission.png was not drawn" in capsys.readouterr().out
    assert (tmp_path / "problems.csv").read_text() == "filename,reason\na,torn\n"
