"""Flags, defaults and their validation."""

from pathlib import Path

import pytest

from conftest import set_module

def test_every_flag_of_the_contract_is_there(kernel, capsys):
    with pytest.raises(SystemExit) as stop:
        kernel.parse_settings(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for name in ("mode limit train-csv val-csv test-root checkpoint out epochs lr train-size "
                 "train-batch predict-size workers amp calibration seed device").split():
        assert f"--{name} " in shown
    lines = shown.splitlines()
    assert len(lines) <= 52 and max(map(len, lines)) <= 100  # a screen


def test_values_arrive_with_their_types(kernel):
    settings = kernel.parse_settings(
        ["--limit", "3", "--lr", "3e-4", "--out", "x", "--crop-scale", "0.5,1", "--amp", "off"])
    assert (settings.limit, settings.lr, settings.out) == (3, 3e-4, Path("x"))
    assert settings.crop_scale == (0.5, 1.0)
    assert kernel.parse_settings([]) == kernel.Settings()
    assert kernel.parse_settings(["--out=~/x"]).out == Path.home() / "x"


@pytest.mark.parametrize("arguments, named", [
    (["--limit", "0"], "--limit 0"), (["--limit", "-3"], "--limit -3"),
    (["--predict-size", "7"], "--predict-size 7"), (["--train-size", "40"], "--train-size 40"),
    (["--epochs", "x"], "--epochs"), (["--mode", "x"], "--mode"),
    (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs?"),
    (["--qqqq"], "unknown argument --qqqq"),
    (["--crop-scale", "0.9,0.2"], "--crop-scale 0.9,0.2"), (["--crop-scale", "1"], "--crop-scale"),
    (["--workers", "-1"], "--workers -1"),
    (["--predict-size", "5000"], "--predict-size 5000: must be at most 2048"),
])
def test_impossible_settings_are_refused_in_one_sentence(kernel, capsys, arguments, named):
    with pytest.raises(SystemExit) as stop:
        kernel.parse_settings(arguments)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and named in last


@pytest.mark.parametrize("written, flags, name, value", [
    (["--epochs=30", "--mode=train"], [], "epochs", 30),
    (["--epochs=30", "--mode=train"], ["--epochs", "3"], "epochs", 3),
    (["--epochs=30", "--mode=train"], ["--epochs", "3"], "mode", "train"),
    (["--checkpoint", "a.pth", "b.pth"], [], "checkpoint", (Path("a.pth"), Path("b.pth"))),
    (["--checkpoint", "a.pth", "b.pth"], ["--checkpoint", "c.pth"], "checkpoint",
     (Path("c.pth"),)),
    (["--checkpoint=a.pth"], ["--checkpoint", "b.pth", "c.pth"], "checkpoint",
     (Path("b.pth"), Path("c.pth"))),
    (["--checkpoint=a.pth"], ["photo.jpg"], "pictures", (Path("photo.jpg"),)),
])
def test_the_command_line_wins_over_arguments(kernel, monkeypatch, written, flags, name, value):
    set_module(kernel, monkeypatch, "ARGUMENTS", written)
    assert getattr(kernel.parse_settings(flags), name) == value
    monkeypatch.setattr("sys.argv", ["main.py", *flags])
    assert getattr(kernel.parse_settings(), name) == value


def test_arguments_are_checked_as_a_command_line_is(kernel, monkeypatch, capsys):
    set_module(kernel, monkeypatch, "ARGUMENTS", ["--epoch=3"])
    with pytest.raises(SystemExit):
        kernel.parse_settings([])
    assert "unknown argument --epoch=3; did you mean --epochs?" in capsys.readouterr().err
