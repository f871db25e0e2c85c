"""The engine on a small set: it learns, keeps the best, says what it saw."""

import dataclasses
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import set_module, write_pairs


def settings_for(kernel, **changes):
    base = kernel.Settings(train_size=32, train_batch=2, epochs=3, lr=2e-3, workers=0)
    return dataclasses.replace(base, **changes)


def train(kernel, data, out, model=None, *, check_every=1, stop=None, checkpoint=None,
          on_kaggle=False, **changes):
    torch.manual_seed(0)
    model = model or kernel.U2NETP()
    settings = settings_for(kernel, **changes)
    machine = kernel.machine_for(torch.device("cpu"), settings.amp, settings.workers)
    machine = dataclasses.replace(machine, check_every=check_every)
    inputs = SimpleNamespace(
        out=out, checkpoint=checkpoint, unfinished=None, kaggle_input=on_kaggle or None)
    splits = kernel.Splits(kernel.read_pairs(data.train), kernel.read_pairs(data.val))
    metrics, finished = kernel.train(
        model, splits, settings, machine, inputs, stop or kernel.StopWatch())
    assert finished
    return model, metrics


def test_it_learns_and_keeps_the_best(kernel, small_data, tmp_path, capsys):
    out = tmp_path / "out"
    model, metrics = train(kernel, small_data, out, epochs=6, train_size=64)
    assert metrics[-1]["train_loss"] < 0.8 * metrics[0]["train_loss"]
    table = pd.read_csv(out / "metrics.csv")
    assert list(table.columns) == [
        "epoch", "train_loss", "train_mse", "val_loss", "val_mse", "lr"]
    assert list(table.epoch) == [1, 2, 3, 4, 5, 6]
    best = torch.load(out / "u2netp_best.pth", weights_only=True)
    assert best["val_mse"] == pytest.approx(table.val_mse.min(), rel=1e-12)  # of a parsed text
    assert best["recipe"] == {"predict_size": 64}
    for key, value in model.state_dict().items():
        assert torch.equal(value, best["model_state"][key])
    log = capsys.readouterr().out
    assert "Epoch 1: train_mse=" in log and "saved the best model" in log
    assert "Check after training: alpha [2, 1, 64, 64]" in log and "finite True" in log


def test_the_reported_validation_mse_is_the_best_models(kernel, small_data, tmp_path):
    model, metrics = train(kernel, small_data, tmp_path)
    loader = kernel.share_loader(
        kernel.ValidationSet(kernel.read_pairs(small_data.val), 32), 1, kernel.Machine())
    mse = kernel.evaluate({"": model}, loader, kernel.Machine(), kernel.StopWatch())[""][1]
    assert mse == pytest.approx(min(m["val_mse"] for m in metrics), rel=1e-4)


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
    with pytest.raises(kernel.UserError, match=r"3 times in a row.* epoch 1 .*images/train\d\.png"):
        train(kernel, small_data, tmp_path, model, train_batch=1, train_size=64)
    assert not (tmp_path / "u2netp_best.pth").exists()


def test_images_smaller_than_the_crop_are_trained_on(kernel, small_data, tmp_path):
    for path in small_data.folder.glob("[ai]*s/*.png"):
        Image.open(path).resize((30, 44)).save(path)
    _, metrics = train(kernel, small_data, tmp_path, epochs=1)
    assert np.isfinite(metrics[0]["val_mse"])


def test_bf16_learns_what_float32_does(kernel, small_data, tmp_path):
    """The same steps with 8 bits of mantissa: the losses agree to a few per cent, and fall."""
    (full, mixed) = (train(kernel, small_data, tmp_path / amp, epochs=2, amp=amp)[1]
                     for amp in ("off", "bf16"))
    for one, other in zip(full, mixed):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.05)
        assert other["train_loss"] != one["train_loss"]  # it was not float32
    assert mixed[1]["train_loss"] < mixed[0]["train_loss"]


def test_the_cosine_schedule_rises_and_falls(kernel):
    values = [kernel.cosine_with_warm_up(step / 1000) for step in range(1001)]
    assert values[0] == 0 and values[30] == 1
    assert values[515] == pytest.approx(0.5, abs=0.01) and values[1000] == pytest.approx(0)
    assert all(a <= b for a, b in zip(values[:30], values[1:31]))
    assert all(a >= b for a, b in zip(values[30:], values[31:]))


def test_cosine_steps_with_every_batch(kernel, small_data, tmp_path):
    """Each of four steps has the rate of its middle: no step is wasted on a rate of 0."""
    _, metrics = train(kernel, small_data, tmp_path, schedule="cosine", epochs=2)
    assert [each["lr"] for each in metrics] == pytest.approx(
        [2e-3 * kernel.cosine_with_warm_up(share) for share in (1.5 / 4, 3.5 / 4)])


def run_of(kernel, **changes):
    torch.manual_seed(0)
    settings = settings_for(
        kernel, **{"train_batch": 4, "ema": 0, "schedule": "plateau", **changes})
    run = kernel.Run(kernel.U2NETP(), settings, kernel.Machine(), 3, frozen_norms=False)
    run.model.train()
    return run


def batch_of(seed=0, count=4):
    generator = torch.Generator().manual_seed(seed)
    return {"img": torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1,
            "mask": torch.rand(count, 1, 64, 64, generator=generator),
            "path": [f"{seed}-{number}.png" for number in range(count)]}


def test_the_moving_average_has_its_half_life(kernel):
    """Of a jump in the weights, half has arrived after as many samples as the half-life says."""
    run = run_of(kernel, ema=40)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    with torch.no_grad():
        for tensor in kernel.float_tensors(run.model):
            tensor += 1
    for _ in range(10):
        run.update_average()
    for key, value in run.ema.state_dict().items():
        moved = 0.5 if value.is_floating_point() else 0
        assert torch.allclose(value - before[key], torch.full_like(value, moved), atol=1e-5), key


def test_gradients_are_clipped(kernel):
    run = run_of(kernel)
    batch = batch_of()
    batch["img"] *= 1000
    kernel.train_step(run, batch)
    norm = torch.stack([p.grad.norm() for p in run.model.parameters()]).norm()
    assert norm <= 1.0001


def test_a_step_that_is_not_finite_changes_no_weight(kernel, capsys):
    run = run_of(kernel, ema=8)
    kernel.train_step(run, batch_of(1))
    before = {k: v.clone() for k, v in run.model.named_parameters()}
    run.ema.load_state_dict(run.model.state_dict())  # an average that has arrived
    totals = run.totals.clone()
    poisoned = batch_of(2)
    poisoned["mask"][0, 0, 0, 0] = float("nan")
    for _ in range(2):
        kernel.check_losses(run, [(kernel.train_step(run, poisoned), ["b.png"])])
    for models in (run.model, run.ema):
        for key, value in models.named_parameters():
            assert torch.equal(value, before[key]), key
    assert torch.equal(run.totals, totals) and run.non_finite == 2
    assert capsys.readouterr().out.count("its step is skipped (b.png)") == 2
    kernel.check_losses(run, [(kernel.train_step(run, batch_of(3)), ["c.png"])])
    assert run.non_finite == 0
    assert not torch.equal(run.model.outconv.weight, before["outconv.weight"])


def test_a_step_that_is_not_finite_leaves_the_statistics_alone(kernel):
    """Trained norms take theirs from the crops: of the network and of its average."""
    run = run_of(kernel, ema=8)
    kernel.train_step(run, batch_of(1))
    poisoned = batch_of(2)
    poisoned["img"][0, 0, 0, 0] = float("inf")
    before = [each.clone() for each in run.model.buffers()]
    kernel.train_step(run, poisoned)
    assert all(map(torch.equal, run.model.buffers(), before))
    assert all(torch.isfinite(each).all() for each in run.ema.buffers())
    kernel.train_step(run, batch_of(3))
    assert not all(map(torch.equal, run.model.buffers(), before))


def test_a_large_prediction_size_validates_in_as_much_memory(
        kernel, small_data, tmp_path, monkeypatch):
    sizes, real = [], kernel.evaluate

    def noted(models, loader, *rest):
        sizes.append(loader.batch_size)
        return real(models, loader, *rest)

    set_module(kernel, monkeypatch, "evaluate", noted)
    train(kernel, small_data, tmp_path, epochs=1, train_batch=8, predict_size=160)
    assert sizes == [1]  # 8 crops of 64 pixels


def test_the_gradients_group_is_formed_before_the_loaders_look_at_shared_memory(
        kernel, small_data, tmp_path, monkeypatch):
    calls = []
    for name in ("data_parallel", "fitting_loader"):
        real = getattr(kernel, name)
        set_module(kernel, monkeypatch, name, lambda *arguments, name=name, real=real: (
            calls.append(name) or real(*arguments)))
    train(kernel, small_data, tmp_path, epochs=1)
    assert calls == ["data_parallel", "fitting_loader", "fitting_loader"]


@pytest.mark.parametrize("whose", ["attached", "own", "guarded"])
def test_an_attached_training_of_other_settings_is_left_alone(
        kernel, tmp_path, monkeypatch, capsys, whose):
    """And this run's own where another run may follow, as where one of two cards is lost."""
    if whose == "guarded":
        monkeypatch.setenv(kernel.REASON_VARIABLE, str(tmp_path))
    run, path = run_of(kernel), tmp_path / "first" / "last.pth"
    kernel.save(run, path.parent, {"lr": 0.1})
    out = tmp_path / ("second" if whose == "attached" else "first")
    if whose != "own":
        assert kernel.resume(run, path, out, {"lr": 1.0}) is False
        assert "is of another run (lr was " in capsys.readouterr().out
    else:
        with pytest.raises(kernel.UserError, match="is of another run .*remove the file"):
            kernel.resume(run, path, out, {"lr": 1.0})


def test_a_training_of_an_older_version_is_left_alone(kernel, tmp_path, capsys):
    path = tmp_path / "first" / "last.pth"
    kernel.save(run_of(kernel), path.parent, {"lr": 0.1})
    content = torch.load(path, weights_only=True)
    del content["training"]["frozen_norms"]
    torch.save(content, path)
    assert kernel.resume(run_of(kernel), path, tmp_path / "second", {"lr": 0.1}) is False
    assert "of another version of this script, without frozen_norms" in capsys.readouterr().out


def test_random_weights_are_never_the_best(kernel, small_data, tmp_path, monkeypatch):
    """A run that starts again would take them for some to start from."""
    errors = iter((0.1, *[0.2] * 99))
    set_module(kernel, monkeypatch, "evaluate", lambda models, *rest: {"": (0.5, next(errors))})
    train(kernel, small_data, tmp_path, epochs=None, hours=1e-6, ema=0)
    best = torch.load(tmp_path / "u2netp_best.pth", weights_only=True)
    assert best["val_mse"] == 0.2 and "recipe" in best


def test_weights_that_were_only_started_from_are_not_taken_for_trained_ones(
        kernel, small_data, tmp_path, monkeypatch):
    def no_room(run, batch):
        raise torch.OutOfMemoryError

    set_module(kernel, monkeypatch, "train_step", no_room)
    with pytest.raises(kernel.UserError, match="too little memory"):
        train(kernel, small_data, tmp_path, checkpoint="given.pth")
    assert kernel.read_checkpoint(tmp_path / "u2netp_best.pth").recipe is None


def test_three_losses_in_a_row_that_are_not_finite_end_the_run(kernel):
    """Whether they are looked at one by one, as on a CPU, or together."""
    for size in (1, 3):
        run = run_of(kernel)
        losses = [(torch.tensor(float("nan")), [name]) for name in ("a.png", "b.png", "c.png")]
        with pytest.raises(kernel.UserError, match="3 times in a row.*c.png"):
            for start in range(0, 3, size):
                kernel.check_losses(run, losses[start:start + size])
        assert run.non_finite == 3


@pytest.mark.parametrize("batch, advice", [
    (4, "too little memory for --train-batch 4 at --train-size 320; take --train-batch 2 or "
        "--train-size 224"),
    (1, "take --train-size 224")])
def test_too_little_memory_says_which_sizes_to_take(kernel, batch, advice):
    assert advice in kernel.memory_advice(batch, 320)


@pytest.mark.parametrize("owner, name", [("U2NETP", "forward"), ("JointAugment", "apply")])
def test_running_out_of_memory_is_an_error_of_the_settings(
        kernel, small_data, tmp_path, monkeypatch, owner, name):
    def no_room(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(getattr(kernel, owner), name, no_room)
    with pytest.raises(kernel.UserError, match="--train-batch 2 at --train-size 32; take --tr"):
        train(kernel, small_data, tmp_path)


def test_the_loss_scale_stays_one_without_fp16(kernel):
    run = run_of(kernel)
    poisoned = batch_of()
    poisoned["img"][0, 0, 0, 0] = float("inf")
    for batch in (batch_of(), poisoned, batch_of()):
        kernel.train_step(run, batch)
        assert run.scaler.get_scale() == 1


def test_confident_mistakes_have_a_gradient_in_bf16(kernel):
    """A logit of 12 is exactly 1 after a sigmoid in bf16 or fp16; in float32 it can be unlearnt."""
    model = kernel.U2NETP()
    with torch.no_grad():
        model.outconv.bias.fill_(12.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(torch.zeros(1, 3, 64, 64))
    assert outputs[0].dtype == torch.float32 and outputs[0].max() < 1
    outputs[0].mean().backward()
    assert model.outconv.bias.grad > 0


def test_both_candidates_are_validated_on_one_decoding(kernel, small_data, tmp_path, monkeypatch):
    opened, real = [], kernel.whole_pair
    set_module(kernel, monkeypatch, "whole_pair", lambda pairs, index: (
        opened.append(index) or real(pairs, index)))
    train(kernel, small_data, tmp_path, epochs=3, ema=8)
    assert len(opened) == 3 * 2 + 2  # 2 images an epoch, and the check after training


def test_skipped_validation_pairs_do_not_count_against_the_training_pairs(kernel, tmp_path):
    data = SimpleNamespace(train=write_pairs(tmp_path, 24, size=16),
                           val=write_pairs(tmp_path, 2, size=16, name="val"))
    (tmp_path / "images" / "train3.png").write_bytes(b"")
    settings = settings_for(kernel, epochs=1, train_batch=8)
    inputs = SimpleNamespace(
        out=tmp_path / "out", checkpoint=None, unfinished=None, kaggle_input=None)
    left_out = {f"val{number}.png": "broken" for number in range(3)}
    val = dataclasses.replace(kernel.read_pairs(data.val), skipped=left_out)
    kernel.train(kernel.U2NETP(), kernel.Splits(kernel.read_pairs(data.train), val), settings,
                 kernel.Machine(), inputs, kernel.StopWatch())
    assert len(pd.read_csv(tmp_path / "out" / "skipped.csv")) == 4


def test_workers_end_before_the_next_ones_start(kernel, small_data, tmp_path, monkeypatch):
    """While validation decodes, no worker of the training waits beside it."""
    counts, real = [], kernel.matte_mse

    def counted(outputs, target):
        counts.append(len(multiprocessing.active_children()))
        return real(outputs, target)

    set_module(kernel, monkeypatch, "matte_mse", counted)
    train(kernel, small_data, tmp_path, epochs=2, workers=2)
    assert max(counts) <= 2


def test_frozen_batch_norms_keep_their_statistics_and_learn_their_scale(
        kernel, small_data, tmp_path):
    torch.manual_seed(0)
    model = kernel.U2NETP().train()
    model(torch.rand(2, 3, 64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(kernel, small_data, tmp_path, model, epochs=1, checkpoint="given.pth", lr=1e-6)
    after = torch.load(tmp_path / "last.pth", weights_only=True)["model_state"]
    for key, value in before.items():
        moved = not torch.equal(value, after[key])
        is_statistic = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert moved is not is_statistic, key


def test_a_training_that_only_harms_ends_with_the_weights_it_started_from(
        kernel, small_data, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model, errors = kernel.U2NETP(), iter((0.1, 0.2, 0.3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_module(kernel, monkeypatch, "evaluate", lambda models, *rest: {"": (0.5, next(errors))})
    train(kernel, small_data, tmp_path, model, epochs=2, checkpoint="given.pth", ema=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    log = capsys.readouterr().out
    assert "Validation MSE before the first step: 0.100000" in log and "saved the best" not in log
    assert "WARNING" not in log
    assert "No epoch was better than the weights that the training started from" in log


def test_inverted_masks_are_warned_of(kernel, tmp_path, capsys):
    """By the error of the weights that the training starts from."""
    kernel.keep_best(run_of(kernel), tmp_path, 64, "", 0.8, epoch=0)
    assert "that is as of inverted masks; save them with 0 for" in capsys.readouterr().out


def test_an_unreadable_pair_is_skipped_counted_and_listed(kernel, tmp_path, capsys):
    data = SimpleNamespace(train=write_pairs(tmp_path, 24, size=16),
                           val=write_pairs(tmp_path, 2, size=16, name="val"))
    (tmp_path / "images" / "train3.png").write_bytes(b"")
    _, metrics = train(kernel, data, tmp_path / "out", epochs=2, train_batch=8)
    assert len(metrics) == 2
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert list(skipped.image_path) == [str(tmp_path / "images" / "train3.png")]
    assert "cannot be read as an image" in skipped.reason[0]
    assert "1 files cannot be read" in capsys.readouterr().out
    (tmp_path / "images" / "train4.png").write_bytes(b"")
    with pytest.raises(kernel.UserError, match="2 of 24 training pairs cannot be read"):
        train(kernel, data, tmp_path / "other", epochs=1, train_batch=8)


def test_each_step_takes_a_size_from_its_position(kernel, small_data, tmp_path, monkeypatch):
    seen = []
    apply = kernel.JointAugment.apply

    def noted(self, batch, photographs, device, size=None):
        seen.append(size)
        return apply(self, batch, photographs, device, size)

    monkeypatch.setattr(kernel.JointAugment, "apply", noted)
    train(kernel, small_data, tmp_path / "a", epochs=2, train_size=64, min_train_size=32)
    first, seen[:] = list(seen), []
    train(kernel, small_data, tmp_path / "b", epochs=2, train_size=64, min_train_size=32)
    assert seen == first and set(filter(None, first)) == {32, 64}
    run = run_of(kernel, train_size=320, min_train_size=200)
    run.steps_per_epoch = 10**6
    assert {kernel.crop_size(run) for run.batch in range(99)} == {320, 288, 256, 224}
