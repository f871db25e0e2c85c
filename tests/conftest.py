"""What the tests share: the kernel as modules and as the bundled script, and small real files."""

import atexit
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread each, and no spinning: waiting threads would take the cores from one another.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

# The cache of decoded images goes there, and goes with it.
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="magick_tests_")
atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)
tempfile.tempdir = None

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import build
from src.runtime.hardware import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT / "tests" / "data" / "ai_cutouts"

LONGEST = ("test_kaggle.py", "test_distributed.py", "test_loop.py", "test_bad_input.py",
           "test_resume.py", "test_state.py", "test_main.py")  # go first, or one is left at the end

keep_freed_memory()  # as every run of the kernel does; the suite takes half the time


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def load_modules():
    """Every top-level name of the bundled modules in one namespace, as they live in the bundle."""
    names = {}
    for each in build.order_modules(ROOT):
        module = importlib.import_module(f"src.{each.name}")
        names.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    return SimpleNamespace(**names)


def load_bundle():
    spec = importlib.util.spec_from_file_location("bundled_kernel", ROOT / "kernel" / "main.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kernel():
    """The project's names. `build.py --check` shows that the bundle is the same text; what only
    the bundle can break is tested by running it."""
    return load_modules()


def set_module(kernel, monkeypatch, name, value):
    """Replace a global wherever the kernel's modules, or the bundle, hold it."""
    original = getattr(kernel, name)
    for module in list(sys.modules.values()):
        if getattr(module, name, None) is original:
            monkeypatch.setattr(module, name, value)


class EchoRed(torch.nn.Module):
    """A network whose matte is the red channel."""

    def matte(self, x):
        return x[:, :1] / 2 + 0.5


def plain_predictor(kernel, network, size=64, **recipe):
    """A Predictor that does nothing beside the network, unless told to."""
    recipe = kernel.Recipe(size, **{"refine": False, **recipe})
    return kernel.Predictor(kernel.make_views(network, recipe), recipe)


def draw(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_pairs(folder, count, size=96, name="train"):
    """A CSV of `count` bright discs on dark noise, with soft alpha; paths relative to the CSV."""
    rows = []
    y, x = np.mgrid[:size, :size] / size - 0.5
    for index in range(count):
        rng = np.random.default_rng(index)
        radius = rng.uniform(0.2, 0.35)
        alpha = np.clip((radius - np.hypot(x, y)) * 20 + 0.5, 0, 1)[..., None]
        backdrop = rng.integers(0, 80, (size, size, 3))
        image = alpha * np.array([250, 220, 180]) + (1 - alpha) * backdrop
        draw(folder / "images" / f"{name}{index}.png", image.astype(np.uint8))
        levels = (alpha[..., 0] * 255).round().astype(np.uint8)
        draw(folder / "alphas" / f"{name}{index}.png", levels)
        rows.append((f"images/{name}{index}.png", f"alphas/{name}{index}.png"))
    csv = folder / f"{name}.csv"
    pd.DataFrame(rows, columns=["image_path", "alpha_path"]).to_csv(csv, index=False)
    return csv


@pytest.fixture
def small_data(tmp_path):
    """train.csv (4 rows), val.csv (2) and orig_1024/ (3 images of different sizes)."""
    folder = tmp_path / "data"
    train, val = write_pairs(folder, 4), write_pairs(folder, 2, name="val")
    for name, (width, height) in {"10": (50, 40), "2": (64, 64), "a.b": (33, 90)}.items():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        draw(folder / "orig_1024" / f"{name}.png", pixels)
    return SimpleNamespace(folder=folder, train=train, val=val, test=folder / "orig_1024")


def run_script(script, *arguments, cwd):
    """The script as a user starts it, with nothing of this checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=cwd, env=environment,
        capture_output=True, text=True, timeout=280,
    )
