"""The engine on a small set: it learns, keeps the best, says what it saw."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

CPU = torch.device("cpu")


def settings_for(kernel, **changes):
    base = kernel.Settings(train_size=64, train_batch=2, epochs=3, lr=2e-3, workers=0)
    return dataclasses.replace(base, **changes)


def train(kernel, data, out, model=None, **changes):
    torch.manual_seed(0)
    model = model or kernel.U2NETP()
    metrics = kernel.train(model, kernel.read_pairs(data.train), kernel.read_pairs(data.val),
                           settings_for(kernel, **changes), CPU, out)
    return model, metrics


def test_it_learns_and_keeps_the_best(kernel, small_data, tmp_path, capsys):
    out = tmp_path / "out"
    model, metrics = train(kernel, small_data, out, epochs=6)
    assert metrics[-1]["train_loss"] < 0.8 * metrics[0]["train_loss"]
    table = pd.read_csv(out / "metrics.csv")
    assert list(table.columns) == [
        "epoch", "train_loss", "train_mse", "val_loss", "val_mse", "lr", "seconds"]
    assert list(table.epoch) == [1, 2, 3, 4, 5, 6]
    best = torch.load(out / "u2netp_best.pth", weights_only=True)
    assert best["val_mse"] == table.val_mse.min()
    assert best["epoch"] == table.epoch[table.val_mse.idxmin()]
    assert best["recipe"] == {"predict_size": 64}
    for key, value in model.state_dict().items():
        assert torch.equal(value, best["model_state"][key])
    log = capsys.readouterr().out
    assert "First train batch: img [2, 3, 64, 64] in [-" in log
    assert "mask [2, 1, 64, 64] in [0.00, 1.00]" in log
    assert "First val batch: img [2, 3, 64, 64]" in log
    assert "Epoch 1: train_mse=" in log and "saved the best model" in log
    assert "Check after training: d0 [2, 1, 64, 64]" in log and "finite True" in log


def test_the_reported_validation_mse_is_the_best_models(kernel, small_data, tmp_path):
    model, metrics = train(kernel, small_data, tmp_path)
    loader = kernel.make_loader(
        kernel.ValidationSet(kernel.read_pairs(small_data.val), 64), 1, 0, CPU)
    errors = [np.square(p - t).mean() for _, p, t, _ in
              kernel.validation_pairs(model, loader, CPU)]
    assert np.mean(errors) == pytest.approx(min(m["val_mse"] for m in metrics), rel=1e-4)


def test_workers_do_not_change_the_weights(kernel, small_data, tmp_path):
    alone, _ = train(kernel, small_data, tmp_path, epochs=2)
    shared, _ = train(kernel, small_data, tmp_path, epochs=2, workers=2)
    for one, other in zip(alone.state_dict().values(), shared.state_dict().values()):
        assert torch.equal(one, other)


def test_the_schedule_halves_the_rate_on_a_plateau(kernel, small_data, tmp_path):
    """A network that hardly changes: after its first epoch two more are borne, then the cut."""
    model = kernel.U2NETP()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    _, metrics = train(kernel, small_data, tmp_path, model, epochs=5, lr=1e-7)
    assert [m["lr"] for m in metrics] == [1e-7] * 3 + [5e-8] * 2


def test_a_loss_that_is_not_finite_names_the_batch(kernel, small_data, tmp_path):
    model = kernel.U2NETP()
    with torch.no_grad():
        model.outconv.bias.fill_(float("nan"))
    with pytest.raises(kernel.UserError, match=r"epoch 1, batch 1 .*images/train\d\.png"):
        kernel.train(model, kernel.read_pairs(small_data.train),
                     kernel.read_pairs(small_data.val), settings_for(kernel), CPU, tmp_path)
    assert not (tmp_path / "u2netp_best.pth").exists()


def test_images_smaller_than_the_crop_are_trained_on(kernel, small_data, tmp_path):
    for path in small_data.folder.glob("[ai]*s/*.png"):
        Image.open(path).resize((30, 44)).save(path)
    _, metrics = train(kernel, small_data, tmp_path, epochs=1)
    assert np.isfinite(metrics[0]["val_mse"])


def test_bf16_trains(kernel, small_data, tmp_path):
    _, metrics = train(kernel, small_data, tmp_path, epochs=1, amp="bf16")
    assert np.isfinite(metrics[0]["train_loss"])
