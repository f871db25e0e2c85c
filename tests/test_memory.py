"""What large images take, and what happens where there is less."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import REAL, ROOT, EchoRed, draw, plain_predictor, set_module

TORCHS_WORDS = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"


def test_a_large_photo_takes_little_memory(tmp_path):
    """1.5 GB where the whole image as floats took 3.9."""
    with Image.open(sorted(REAL.glob("val_*.jpg"))[0]) as image:
        large = image.convert("RGB").resize((6000, 4000))
    large.save(tmp_path / "a.jpg")
    process = subprocess.Popen(
        [sys.executable, ROOT / "kernel" / "main.py", "a.jpg", "--device", "cpu"],
        cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    for kind in ("masks", "cutouts"):
        assert Image.open(tmp_path / "outputs" / kind / "a.png").size == large.size
    assert used.ru_maxrss < 2.0 * 2**20  # KB


@pytest.mark.parametrize("place, error", [
    ("turned", MemoryError()), ("network_inputs", RuntimeError(TORCHS_WORDS)),
    ("at_full_size", RuntimeError(TORCHS_WORDS)), ("at_full_size", MemoryError()),
    ("foreground", RuntimeError(TORCHS_WORDS))])
def test_lack_of_memory_is_one_pictures_problem(kernel, tmp_path, monkeypatch, place, error):
    for name, width in {"a": 70, "b": 90, "c": 70}.items():
        draw(tmp_path / f"{name}.png", np.full((60, width, 3), 200, np.uint8))
    original = getattr(kernel, place)

    def lacking(*inputs):
        if any(getattr(each, "width", 0) == 90 for each in inputs):
            raise error
        return original(*inputs)

    set_module(kernel, monkeypatch, place, lacking)
    out, csv = tmp_path / "out", tmp_path / "out" / "submission.csv"
    problems, _ = kernel.predict_tests(
        plain_predictor(kernel, EchoRed()), kernel.list_tests(tmp_path), ("masks", "cutouts"), out,
        csv, kernel.StopWatch())
    assert [name for name, _ in problems] == ["b"]
    assert "its 0 megapixels need 1.2 GB of memory" in problems[0][1]
    masks = {name: kernel.decode_mask(text) for name, text in kernel.read_rows(csv)}
    assert {name: mask.shape for name, mask in masks.items()} == {
        "a": (60, 70), "b": (60, 90), "c": (60, 70)}
    assert masks["a"].all() and masks["c"].all()
    assert masks["b"].all() if place == "foreground" else not masks["b"].any()
    assert sorted(path.stem for path in (out / "cutouts").iterdir()) == ["a", "c"]


def test_another_error_of_torch_is_not_for_want_of_memory(kernel, tmp_path, monkeypatch):
    draw(tmp_path / "a.png", np.full((60, 70, 3), 200, np.uint8))

    def broken(*inputs):
        raise RuntimeError("a mistake")

    set_module(kernel, monkeypatch, "at_full_size", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        kernel.predict_tests(plain_predictor(kernel, EchoRed()), kernel.list_tests(tmp_path), (),
                             tmp_path, tmp_path / "a.csv", kernel.StopWatch(), strict=True)
