"""The tool that makes the shipped checkpoint."""

import torch

from conftest import write_pairs
from src.tools import ship
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.u2net import U2NETP


def ends(tmp_path):
    torch.manual_seed(0)
    for name in ("first", "last"):
        write_checkpoint(tmp_path / f"{name}.pth", U2NETP().state_dict())
    return [tmp_path / "first.pth", tmp_path / "last.pth"]


def test_interpolation_is_linear_and_keeps_counters():
    first = {"w": torch.tensor([0.0, 2.0]), "num_batches_tracked": torch.tensor(3)}
    last = {"w": torch.tensor([1.0, 4.0]), "num_batches_tracked": torch.tensor(9)}
    middle = ship.between(first, last, 0.25)
    assert middle["w"].tolist() == [0.25, 2.5] and middle["num_batches_tracked"] == 9
    assert torch.equal(ship.between(first, last, 1.0)["w"], last["w"])


def test_the_best_share_is_shipped_small_with_its_recipe(tmp_path, capsys):
    out = tmp_path / "weights" / "out.pth"
    csv = write_pairs(tmp_path, 2, 32)
    arguments = [*map(str, (*ends(tmp_path), out)), "--val-csv", str(csv), "--shares", "0", "0.5",
                 "--sizes", "32"]
    assert ship.main(arguments) == 0
    said = capsys.readouterr().out
    shipped = read_checkpoint(out)
    assert out.stat().st_size < 2.6e6 and "0.50 of the way: validation MSE" in said
    errors = {share: float(line.split()[-1]) for share, line in
              zip((0.0, 0.5), said.splitlines())}
    assert shipped.recipe["share"] == min(errors, key=errors.get)
    assert shipped.recipe["predict_size"] == 32
    (line,) = [line for line in said.splitlines() if line.startswith("By calibration: ")]
    trials = dict(each.split() for each in line.removeprefix("By calibration: ").split(", "))
    assert set(trials) == {"none", "notebook"}  # two images are too few to fit a curve to
    assert shipped.recipe["calibration"] == min(trials, key=lambda name: float(trials[name]))


def test_a_missing_file_is_a_sentence(tmp_path, capsys):
    assert ship.main(["no.pth", "no.pth", "out.pth", "--val-csv", "no.csv"]) == 2
    assert "error:" in capsys.readouterr().err
