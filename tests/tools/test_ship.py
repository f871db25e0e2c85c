"""The tool that makes the shipped checkpoint."""

import pytest
import torch

from conftest import write_pairs
from src.tools import ship
from src.network.checkpoint import read_checkpoint, write_checkpoint
from src.network.u2net import U2NET, U2NETP


def ends(tmp_path):
    torch.manual_seed(0)
    for name in ("first", "last"):
        write_checkpoint(tmp_path / f"{name}.pth", U2NETP().state_dict())
    return [tmp_path / "first.pth", tmp_path / "last.pth"]


def test_the_mean_is_weighted_and_keeps_counters():
    first = {"w": torch.tensor([0.0, 2.0]), "num_batches_tracked": torch.tensor(3)}
    last = {"w": torch.tensor([1.0, 4.0]), "num_batches_tracked": torch.tensor(9)}
    mean = ship.averaged([first, last, last], (0.75, 0.05, 0.2))
    assert torch.allclose(mean["w"], torch.tensor([0.25, 2.5]))
    assert mean["num_batches_tracked"] == 9
    assert torch.equal(ship.averaged([first, last], (0.0, 1.0))["w"], last["w"])


def test_averages_in_fifths_are_all_there_are():
    assert ship.fifths(1) == [(1.0,)]
    assert sorted(ship.fifths(2)) == [
        (0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2), (1.0, 0.0)]
    assert len(ship.fifths(3)) == 21 and all(sum(each) == 1 for each in ship.fifths(3))


def test_the_best_average_is_shipped_small_with_its_recipe(tmp_path, capsys):
    out = tmp_path / "weights" / "out.pth"
    csv = write_pairs(tmp_path, 2, 32)
    arguments = [*map(str, ends(tmp_path)), "--out", str(out), "--val-csv", str(csv), "--sizes",
                 "32", "--shares", "1,0", "0.5,0.5"]
    assert ship.main(arguments) == 0
    said = capsys.readouterr().out
    shipped = read_checkpoint(out)
    assert out.stat().st_size < 2.6e6 and "0.5,0.5: validation MSE" in said
    errors = {shares: float(line.split()[-1]) for shares, line in
              zip(((1.0, 0.0), (0.5, 0.5)), said.splitlines())}
    assert shipped.recipe["shares"] == min(errors, key=errors.get)
    assert shipped.recipe["predict_size"] == 32
    assert shipped.recipe["calibration"] == "none"


def test_networks_that_have_no_mean_are_a_sentence(tmp_path, capsys):
    small, _ = ends(tmp_path)
    write_checkpoint(tmp_path / "large.pth", U2NET().state_dict())
    assert ship.main([str(small), str(tmp_path / "large.pth"), "--out", "o", "--val-csv", "v"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'large.pth'}: holds u2net" in said and "holds u2netp" in said


@pytest.mark.parametrize("shares", [["0.4,0.4"], ["1"], ["0.5,0.5", "1,0,0"]])
def test_shares_that_do_not_fit_are_refused(tmp_path, capsys, shares):
    with pytest.raises(SystemExit):
        ship.main([*map(str, ends(tmp_path)), "--out", "o", "--val-csv", "v", "--shares", *shares])
    assert "share" in capsys.readouterr().err


def test_a_missing_file_is_a_sentence(tmp_path, capsys):
    assert ship.main(["no.pth", "no.pth", "--out", "out.pth", "--val-csv", "no.csv"]) == 2
    assert "error:" in capsys.readouterr().err
