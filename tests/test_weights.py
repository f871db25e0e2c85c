"""The shipped checkpoint: small, sound, found without a flag, and as good as its card says."""

import numpy as np
import torch

from conftest import REAL, ROOT, load_bundle
from src.runtime.hardware import Machine
from src.data.pairs import read_pairs
from src.network.checkpoint import read_checkpoint
from src.network.u2net import U2NETP
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
    model = U2NETP()
    model.load_state_dict(checkpoint.model_state)
    pairs = read_pairs(REAL / "val.csv")
    predictor = make_predictor(model, read_recipe(checkpoint, 0), Machine())
    errors = [np.square(alpha - truth).mean() for _, alpha, truth, _ in predictor.validation(pairs)]
    assert np.mean(errors) < 0.005
