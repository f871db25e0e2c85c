"""The shipped checkpoint: small, sound, found without a flag, and as good as its card says."""

import re

import numpy as np
import pytest
import torch

from conftest import REAL, ROOT, load_bundle
from src.runtime.hardware import Machine
from src.data.pairs import read_pairs
from src.network.checkpoint import build_network, read_checkpoint
from src.prediction.predictor import make_predictor
from src.prediction.recipe import read_recipe

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"


def test_it_is_small_and_brings_its_recipe():
    assert WEIGHTS.stat().st_size < 2.6e6
    recipe = read_checkpoint(WEIGHTS).recipe
    assert {"predict_size", "flip", "refine", "calibration"} <= set(recipe)
    halves = torch.load(WEIGHTS, weights_only=True)["model_state"]
    assert halves["outconv.weight"].dtype == torch.float16


def test_a_clone_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle()
    inputs = bundle.find_inputs(bundle.parse_settings([]), tmp_path / "no kaggle here")
    assert inputs.checkpoint == WEIGHTS


def test_it_is_as_good_as_its_card_says():
    """On four subjects that it has never seen; bench_weights.py computes the whole table."""
    checkpoint = read_checkpoint(WEIGHTS)
    predictor = make_predictor(build_network(checkpoint), read_recipe(checkpoint, 0), Machine())
    rows = predictor.validation(read_pairs(REAL / "val.csv"))
    mse = np.mean([np.square(alpha - truth).mean() for _, _, alpha, truth in rows])
    card = " ".join((WEIGHTS.parent / "README.md").read_text("utf-8").split())
    (promised,) = re.findall(r"val.csv`, which the suite checks: (0\.\d+)", card)
    assert mse == pytest.approx(float(promised), rel=0.02)
