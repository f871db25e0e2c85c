"""What the machine decides: crops in a step, learning rate, length; and the pace."""

import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from conftest import set_module
from test_loop import settings_for, train

CARD = SimpleNamespace(device=SimpleNamespace(type="cuda"))


def test_a_cpu_trains_as_the_notebook_does(kernel):
    settings = kernel.decided(kernel.Settings(), None, kernel.Machine())
    assert (settings.train_batch, settings.lr, settings.epochs, settings.schedule) == (
        4, 1e-4, 5, "plateau")


@pytest.mark.parametrize("room, processes, batch, lr", [
    (99, "1", 16, 2e-4), (99, "2", 16, 2e-4 * math.sqrt(2)), (8, "1", 8, 1e-4 * math.sqrt(2)),
    (0, "1", 1, 5e-5)])
def test_a_card_takes_what_fits_and_a_rate_that_suits_it(
        kernel, monkeypatch, room, processes, batch, lr):
    set_module(kernel, monkeypatch, "fits", lambda model, batch, *rest: batch <= room)
    set_module(kernel, monkeypatch, "merged", lambda items: items)
    monkeypatch.setenv("WORLD_SIZE", processes)
    settings = kernel.decided(kernel.Settings(), None, CARD)
    assert settings.train_batch == batch and settings.lr == pytest.approx(lr)
    named = kernel.decided(kernel.Settings(train_batch=3, lr=0.0), None, CARD)
    assert (named.train_batch, named.lr) == (3, 0.0)


class Crowded(torch.nn.Conv2d):
    """A network that has room for ten images."""

    def forward(self, images):
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return [super().forward(images)]


def test_a_batch_fits_when_a_quarter_more_has_room(kernel):
    model = Crowded(3, 1, 3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert kernel.fits(model, 8, 32, kernel.Machine())
    assert not kernel.fits(model, 9, 32, kernel.Machine())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.weight.grad is None


@pytest.mark.parametrize("changes, on_kaggle, epochs, schedule", [
    ({}, False, 5, "plateau"), ({}, True, None, "cosine"), ({"epochs": 3}, True, 3, "plateau"),
    ({"hours": 2.0}, False, None, "cosine"),
    ({"epochs": 3, "schedule": "cosine"}, True, 3, "cosine"),
    ({"hours": 2.0, "schedule": "plateau"}, True, None, "plateau")])
def test_time_decides_where_it_is_asked_to_and_on_kaggle(
        kernel, changes, on_kaggle, epochs, schedule):
    settings = kernel.decided(kernel.Settings(**changes), None, kernel.Machine(), on_kaggle)
    assert (settings.epochs, settings.schedule) == (epochs, schedule)


def test_epochs_and_hours_exclude_each_other(kernel):
    with pytest.raises(ValueError, match="--hours, --epochs"):
        kernel.check_settings(kernel.Settings(epochs=1, hours=1.0))


def test_the_pace_knows_what_waited(kernel):
    pace = kernel.Pace()

    def slow(count):
        for number in range(count):
            time.sleep(0.02)
            yield number

    for _ in pace.timed(slow(20)):
        time.sleep(0.01)
    before = pace.now()
    time.sleep(0.05)  # a validation, which does not count
    assert pace.now() == before
    for _ in pace.timed(slow(3)):
        time.sleep(0.06)
    step, wait = pace.since((0.0, 0.0, 0))
    assert pace.steps == 23 and wait >= 0.02 and step >= wait + 0.01
    last_step, last_wait = pace.since(before)
    assert last_wait >= 0.02 and last_step >= last_wait + 0.06
    assert pace.settled[2] == 16


def pace_of(kernel, step, wait, **more):
    """A pace of a minute's steps, all alike."""
    pace = kernel.Pace(**more)
    pace.settled = (10.0, 5.0, 16)
    steps = round(300 / step)
    pace.seconds, pace.waited, pace.steps = 10 + steps * step, 5 + steps * wait, 16 + steps
    return pace


def planned(kernel, pace, seconds, done=100, between=0.0):
    """The plan for so many seconds after the margin"""
    seconds /= sys.modules[kernel.Pace.__module__].MARGIN
    run = SimpleNamespace(pace=pace, steps_per_epoch=50, step=done)
    return kernel.planned_steps(run, seconds, between)


def test_the_plan_fills_the_time(kernel):
    assert planned(kernel, pace_of(kernel, 0.1, 0.0), 1000) == pytest.approx(100 + 10_000, abs=2)
    # Ten seconds of validation after every fifty steps of five seconds together
    with_validation = planned(kernel, pace_of(kernel, 0.1, 0.0), 1500, between=10)
    assert with_validation == pytest.approx(100 + 1500 / 0.3, abs=2)


def test_the_plan_foresees_that_cached_images_come_faster(kernel):
    """900 steps of the first pass at 0.5 s, all others as fast as device or loader allow."""
    fast = pace_of(kernel, 0.5, 0.4, cached_step=0.02, steps_per_pass=1000)
    assert planned(kernel, fast, 1000) == pytest.approx(1000 + 550 / 0.1, abs=3)
    loader = pace_of(kernel, 0.5, 0.4, cached_step=0.2, steps_per_pass=1000)
    assert planned(kernel, loader, 1000) == pytest.approx(1000 + 550 / 0.2, abs=3)
    none = pace_of(kernel, 0.5, 0.4, steps_per_pass=1000)
    assert planned(kernel, none, 1000) == pytest.approx(100 + 1000 / 0.5, abs=3)
    assert planned(kernel, fast, 100) == pytest.approx(100 + 100 / 0.5, abs=3)


def test_no_plan_before_the_pace_is_known(kernel):
    assert planned(kernel, kernel.Pace(), 1000) is None
    early = pace_of(kernel, 0.1, 0.0)
    early.seconds = early.settled[0] + 60
    assert planned(kernel, early, 10**6) is None  # two minutes are measured,
    assert planned(kernel, early, 600) is not None  # less of a short training


def test_a_training_by_time_ends_with_its_schedule_in_time(kernel, small_data, tmp_path, capsys):
    hours, began = 0.003, time.monotonic()
    _, metrics = train(kernel, small_data, tmp_path, epochs=None, hours=hours, epoch_samples=24,
                       schedule="auto", train_size=64)
    seconds = time.monotonic() - began
    assert 0.4 * 3600 * hours < seconds < 2.5 * 3600 * hours  # two busy cores
    assert metrics[-1]["lr"] < 1e-9 < metrics[0]["lr"]
    log = capsys.readouterr().out
    assert "Training as long as the time allows" in log and log.count("Planned: ") == 1


def test_a_plan_is_kept_by_whoever_goes_on(kernel):
    settings = kernel.decided(replace(settings_for(kernel), epochs=None, hours=1.0), None,
                              kernel.Machine())
    first, second = (kernel.Run(kernel.U2NETP(), settings, kernel.Machine(), 7, False)
                     for _ in range(2))
    assert first.scheduler.lr_lambdas[0](10**6) == 1
    first.plan(321)
    second.load_state_dict(first.state_dict())
    assert second.total_steps == 321 and second.scheduler.lr_lambdas[0](321) == pytest.approx(0)


def test_the_epochs_line_tells_what_limits(kernel, small_data, tmp_path, capsys):
    train(kernel, small_data, tmp_path, epochs=2, train_size=32)
    first, last = [line for line in capsys.readouterr().out.splitlines() if "Epoch " in line]
    for words in (" samples/s, ", "% of the time waiting for data, ", " s, to end about "):
        assert words in first
    assert "to end" not in last  # it has ended


def test_validation_comes_every_so_many_samples(kernel, small_data, tmp_path):
    _, metrics = train(kernel, small_data, tmp_path, epochs=4, epoch_samples=2, train_size=32)
    assert len(pd.DataFrame(metrics)) == 4
    (tmp_path / "last.pth").unlink(missing_ok=True)


@pytest.mark.parametrize("has_it, amp, dtype", [
    (True, "auto", torch.bfloat16), (False, "auto", None), (False, "bf16", torch.bfloat16),
    (True, "off", None)])
def test_a_cpu_takes_bf16_where_it_has_it(kernel, monkeypatch, has_it, amp, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert kernel.machine_for(torch.device("cpu"), amp, 0).dtype is dtype
