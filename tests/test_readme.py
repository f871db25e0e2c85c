"""The README's commands and names are the project's own."""

import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import build
from conftest import REAL, ROOT, load_modules
from src.tools import export_onnx, import_onnx, label_photographs, make_dataset, ship

README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = (ROOT / "kernel" / "README.md").read_text(encoding="utf-8")


def commands():
    return [line.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
            for line in block.splitlines()]


def test_the_two_commands_include_their_setup():
    first, *others = commands()
    assert first == "pip install -r requirements.txt && python kernel/main.py --limit 10"
    tests = [line for line in others if "pytest" in line]
    assert len(tests) == 1
    for name in re.findall(r"-r (\S+)", tests[0]):
        assert (ROOT / name).is_file()
    assert "tests/requirements.txt" in tests[0] and tests[0].startswith("pip install")


def test_runtime_dependencies_are_the_agreed_ones():
    assert (ROOT / "requirements.txt").read_text().split() == [
        "torch", "torchvision", "numpy", "pandas", "pillow", "tqdm"]


def test_the_flags_that_the_readme_names_exist(capsys):
    """Whatever looks like a flag, outside pip's own line and the Kaggle client's, is one of our
    commands'."""
    known = set(load_modules().command_line()._option_string_actions)
    for command in (build, export_onnx, import_onnx, label_photographs, make_dataset, ship):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    ours = "\n".join(line for line in (README + MANUAL).splitlines()
                     if not line.strip().startswith(("pip download", "kaggle ")))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours)) <= known


def test_the_pictures_and_files_that_the_readme_names_exist():
    for folder, text in ((ROOT, README), (ROOT / "kernel", MANUAL)):
        for name in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (folder / name).is_file(), name


def test_the_readmes_python_works(tmp_path):
    """As it is typed, in a copy of kernel/."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    shutil.copytree(ROOT / "kernel", tmp_path / "kernel")
    shutil.copy(next(REAL.glob("val_*.jpg")), tmp_path / "kernel" / "photo.jpg")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "kernel", check=True)
    with Image.open(tmp_path / "kernel" / "mask.png") as mask:
        assert mask.mode == "L" and mask.getextrema()[0] == 0 and mask.getextrema()[1] > 250
