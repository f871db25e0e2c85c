"""Progress, by steps or by time; what the machine decides; resumption of both."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from conftest import set_module, write_pairs
from test_loop import run_of, settings_for, train


def card(gib, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda device: SimpleNamespace(total_memory=gib * 2**30))
    return SimpleNamespace(device=SimpleNamespace(type="cuda"))


def test_a_cpu_trains_as_the_notebook_does(kernel):
    settings = kernel.decided(kernel.Settings(), kernel.Machine())
    assert (settings.train_batch, settings.lr, settings.epochs, settings.schedule) == (
        4, 1e-4, 5, "plateau")


@pytest.mark.parametrize("gib, size, processes, batch, lr", [
    (80, 320, "1", 16, 2e-4), (14.6, 320, "2", 16, 2e-4 * math.sqrt(2)),
    (14.6, 512, "1", 9, 1.5e-4), (0.5, 320, "1", 1, 5e-5)])
def test_a_card_takes_what_its_memory_holds_and_a_rate_that_suits_it(
        kernel, monkeypatch, gib, size, processes, batch, lr):
    set_module(kernel, monkeypatch, "all_gather", lambda items: items)
    monkeypatch.setenv("WORLD_SIZE", processes)
    machine = card(gib, monkeypatch)
    settings = kernel.decided(kernel.Settings(train_size=size), machine)
    assert settings.train_batch == batch and settings.lr == pytest.approx(lr)
    named = kernel.decided(kernel.Settings(train_batch=3, lr=0.0), machine)
    assert (named.train_batch, named.lr) == (3, 0.0)


@pytest.mark.parametrize("changes, on_kaggle, epochs, schedule", [
    ({}, False, 5, "plateau"), ({}, True, None, "cosine"), ({"epochs": 3}, True, 3, "plateau"),
    ({"hours": 2.0}, False, None, "cosine"),
    ({"epochs": 3, "schedule": "cosine"}, True, 3, "cosine"),
    ({"hours": 2.0, "schedule": "plateau"}, True, None, "plateau")])
def test_time_decides_where_it_is_asked_to_and_on_kaggle(
        kernel, changes, on_kaggle, epochs, schedule):
    settings = kernel.decided(kernel.Settings(**changes), kernel.Machine(), on_kaggle)
    assert (settings.epochs, settings.schedule) == (epochs, schedule)


def test_epochs_and_hours_exclude_each_other(kernel):
    with pytest.raises(ValueError, match="--hours, --epochs"):
        kernel.check_settings(kernel.Settings(epochs=1, hours=1.0))


# ---------------------------------------------------------------- by time


@pytest.fixture
def clock(kernel, monkeypatch):
    """A clock that steps and validations alone move: `step` and `validation` seconds each."""
    clock = SimpleNamespace(now=1000.0, step=lambda: 2.0, validation=20.0)

    def train_step(run, batch):
        run.set_rate()
        clock.now += clock.step()
        return torch.tensor(0.5)

    def evaluate(models, *rest):
        clock.now += clock.validation
        return {name: (0.5, 1 / clock.now) for name in models}

    set_module(kernel, monkeypatch, "train_step", train_step)
    set_module(kernel, monkeypatch, "evaluate", evaluate)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


@pytest.mark.parametrize("rows, check_every", [(8, 16), (40, 16), (300, 16), (8, 1)])
def test_a_training_by_time_ends_on_time_with_its_rate(
        kernel, tmp_path, clock, rows, check_every):
    """Also where an epoch has fewer steps than lie between two looks of a card."""
    data = SimpleNamespace(train=write_pairs(tmp_path, rows, size=16),
                           val=write_pairs(tmp_path, 2, size=16, name="val"))
    _, metrics = train(kernel, data, tmp_path / "out", epochs=None, hours=300 / 3600, train_batch=4,
                       schedule="auto", check_every=check_every, ema=0)
    spent = clock.now - 1000 - clock.validation  # before the first step
    assert 300 <= spent <= 300 + clock.validation + check_every * clock.step()
    assert metrics[-1]["lr"] < 0.05 * 2e-3 and max(each["lr"] for each in metrics) > 1e-3


def test_the_time_limit_less_the_reserve_is_the_budget_on_kaggle(
        kernel, small_data, tmp_path, clock, monkeypatch):
    set_module(kernel, monkeypatch, "STARTED", 1000.0)
    stop = kernel.StopWatch(0.1, lambda val_seconds: 60 + 5 * val_seconds)
    _, metrics = train(kernel, small_data, tmp_path, epochs=None, schedule="auto", stop=stop,
                       on_kaggle=True, check_every=16, ema=0)
    reserve = 60 + 5 * clock.validation / 2  # two validation images
    ended = clock.now - 1000
    assert 360 - reserve <= ended <= 360 - reserve + 2 * clock.validation
    assert metrics[-1]["lr"] < 0.1 * 2e-3


def test_a_slow_hour_does_not_cut_the_schedule_off(kernel, small_data, tmp_path, clock):
    """Steps that become ten times as slow: the rate still ends with the time."""
    clock.step = lambda: 20.0 if clock.now > 1100 else 2.0
    _, metrics = train(kernel, small_data, tmp_path, epochs=None, hours=300 / 3600,
                       schedule="auto", ema=0)
    assert metrics[-1]["lr"] < 0.1 * 2e-3 and 1300 <= clock.now < 1380


def test_several_sessions_are_one_curve(kernel, small_data, tmp_path, clock, monkeypatch):
    """The seconds spent lie in last.pth; a session's time limit ends the session alone."""
    set_module(kernel, monkeypatch, "STARTED", 1000.0)
    with pytest.raises(AssertionError):  # `finished` is False
        train(kernel, small_data, tmp_path, epochs=None, hours=300 / 3600, schedule="auto",
              stop=kernel.StopWatch(100 / 3600))
    first = clock.now - 1000
    state = torch.load(tmp_path / "last.pth", weights_only=True)["training"]
    assert state["budget"] == 300 and 75 < state["spent"] < 150 and 0.25 < state["progress"] < 0.5
    clock.now = 50_000.0
    _, metrics = train(kernel, small_data, tmp_path, epochs=None, hours=300 / 3600,
                       schedule="auto")
    assert 300 < first + clock.now - 50_000 < 380 and metrics[-1]["lr"] < 0.1 * 2e-3


def test_the_largest_progress_counts_in_all_processes(kernel, monkeypatch):
    run = run_of(kernel, schedule="cosine", epochs=None, hours=1.0)
    run.start_clock(kernel.StopWatch())
    set_module(kernel, monkeypatch, "all_gather", lambda items: [
        *items, (0.75, False, False, False)])
    assert not kernel.look(run, kernel.StopWatch(), None)
    run.set_rate()
    assert run.progress == 0.75
    assert run.rate == pytest.approx(2e-3 * kernel.cosine_with_warm_up(0.75))


def test_a_signal_in_any_process_saves_and_ends_all(kernel, monkeypatch):
    run, saved = run_of(kernel, schedule="plateau"), []
    set_module(kernel, monkeypatch, "all_gather", lambda items: [
        *items, (0.0, False, True, False)])
    with pytest.raises(kernel.Interrupted):
        kernel.look(run, kernel.StopWatch(), lambda: saved.append(True))
    assert saved == [True]


def test_the_epochs_line_tells_what_limits(kernel, small_data, tmp_path, capsys):
    train(kernel, small_data, tmp_path, epochs=2)
    first, last = [line for line in capsys.readouterr().out.splitlines() if "Epoch " in line]
    for words in (" samples/s, ", "% of the time without data, ", " s, to end about "):
        assert words in first
    assert "to end" not in last  # it has ended


def test_waits_are_the_time_without_data(kernel):
    def slow(count):
        for number in range(count):
            time.sleep(0.02)
            yield number

    waits = []
    for _ in kernel.noting_waits(slow(5), waits):
        time.sleep(0.05)
    assert len(waits) == 5 and all(0.02 <= wait < 0.05 for wait in waits)


def test_validation_comes_every_so_many_samples(kernel, small_data, tmp_path):
    _, metrics = train(kernel, small_data, tmp_path, epochs=4, epoch_samples=2)
    assert len(pd.DataFrame(metrics)) == 4


@pytest.mark.parametrize("has_it, amp, dtype", [
    (True, "auto", torch.bfloat16), (False, "auto", None), (False, "bf16", torch.bfloat16),
    (True, "off", None)])
def test_a_cpu_takes_bf16_where_it_has_it(kernel, monkeypatch, has_it, amp, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert kernel.machine_for(torch.device("cpu"), amp, 0).dtype is dtype


def test_settings_that_were_filled_in_stay(kernel):
    settings = replace(settings_for(kernel), epochs=None, hours=1.0)
    decided = kernel.decided(settings, kernel.Machine())
    assert kernel.decided(decided, kernel.Machine()) == decided


@pytest.mark.parametrize("content", [b"torn", [1, 2]])
def test_an_attached_file_that_is_no_training_is_left_alone(kernel, tmp_path, capsys, content):
    path = tmp_path / "attached" / "last.pth"
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert not kernel.resume(None, path, tmp_path / "out", {"seed": 1})
    assert "the training begins anew" in capsys.readouterr().out
    with pytest.raises(kernel.UserError, match="last.pth"):
        kernel.resume(None, path, path.parent, {"seed": 1})
