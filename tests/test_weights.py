"""The shipped checkpoint: small, sound, found without a flag, and as good as its card says."""

import numpy as np
import torch

from conftest import REAL, ROOT, load_bundle
from src.checkpoint import read_checkpoint
from src.hardware import Machine
from src.pairs import read_pairs
from src.prediction import predictor, validation_pairs
from src.u2netp import U2NETP

WEIGHTS = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"


def test_it_is_small_and_brings_its_recipe():
    assert WEIGHTS.stat().st_size < 2.4e6
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
    model = U2NETP()
    model.load_state_dict(checkpoint.model_state)
    pairs = read_pairs(REAL / "val.csv")
    recipe = checkpoint.recipe
    errors = [np.square(alpha - truth).mean() for _, alpha, truth, _ in
              validation_pairs(predictor(model, Machine()), pairs, recipe, Machine())]
    assert np.mean(errors) < 0.005
