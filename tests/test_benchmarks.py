"""The benchmarks keep up with what they measure: each of them starts."""

import runpy
import sys

import pytest

from conftest import ROOT

FOLDER = ROOT / "tests" / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("bench_*.py")))
def test_each_one_starts(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert stop.value.code == 0 and f"usage: {name}" in capsys.readouterr().out
