"""src/ is read from top to bottom: a folder imports only from those before it on the way."""

import subprocess
import sys

import pytest

import build
from conftest import ROOT

ORDER = (*build.CHAPTERS[:-1], "tools", "main")  # the tools stay out of the script


def list_imports(root):
    """Yields (file and line, folder or module of src/ that imports, the one it imports from)."""
    for path in sorted((root / "src").rglob("*.py")):
        name = ".".join(path.relative_to(root / "src").with_suffix("").parts)
        module = build.read_module(root, name)
        for node, wanted in module.imports:
            if wanted is not None:
                yield f"{module.file}:{node.lineno}", module.chapter, wanted.split(".")[0]


def upside_down(root):
    """The lines that import from a folder further down the way"""
    return [f"{line}: {folder} imports from {wanted}" for line, folder, wanted in list_imports(root)
            if ORDER.index(wanted) > ORDER.index(folder)]


def test_no_folder_imports_back():
    assert len(list(list_imports(ROOT))) > 100
    assert upside_down(ROOT) == []


def test_a_line_that_imports_back_is_named(tmp_path):
    (tmp_path / "src" / "data").mkdir(parents=True)
    (tmp_path / "src" / "data" / "pairs.py").write_text(
        "from src.runtime.console import log\nfrom src.training.loop import train\n")
    assert upside_down(tmp_path) == ["src/data/pairs.py:2: data imports from training"]


def test_every_folder_is_introduced():
    folders = [path for path in (ROOT / "src").iterdir() if path.is_dir() and path.suffix == ""
               and path.name != "__pycache__"]
    assert {path.name for path in folders} < set(ORDER)
    for folder in folders:
        text = build.introduction(ROOT, folder.name)
        assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize("module", ["u2net", "losses"])
def test_the_network_needs_torch_alone(module):
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, src.network.{module}\nprint(*sys.modules)"], cwd=ROOT,
        capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in loaded if name.split(".")[0] in ("src", "pandas", "PIL")]
    assert ours == ["src", "src.network", f"src.network.{module}"]
