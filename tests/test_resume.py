"""Runs that end early: killed, stopped by a signal, out of time; and what comes after."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import REAL, ROOT, draw, load_bundle, write_pairs
from forked import Started, run_forked

FLAGS = ("--mode", "train", "--train-size", 64, "--train-batch", 2, "--epochs", 2, "--lr", 1e-3,
         "--schedule", "cosine", "--ema", 8, "--save-minutes", 0.005)
SCRIPT = ROOT / "kernel" / "main.py"
LIMIT = 36  # seconds


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train, val = write_pairs(folder, 12), write_pairs(folder, 2, name="val")
    write_pairs(folder / "test", 2, size=40)
    return ("--train-csv", train, "--val-csv", val, "--test-root", folder / "test" / "images")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """The results of the same command, run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_forked(SCRIPT, *FLAGS, *data, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def batches_done(out):
    """Position in last.pth, in batches from the start; -1 before there is one."""
    path = out / "last.pth"
    if not path.exists():
        return -1
    state = torch.load(path, weights_only=True)["training"]
    return (state["epoch"] - 1) * 6 + state["batch"]


def wait_for_batch(process, out, count):
    while process.poll() is None and batches_done(out) < count:
        time.sleep(0.1)
    assert process.poll() is None, process.stdout.read()


def assert_same(out, uninterrupted):
    for name in ("metrics.csv", "submission.csv", "u2netp_best.pth"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_stopped_twice_it_ends_in_the_same_bits(
        data, uninterrupted, tmp_path, monkeypatch, capfd):
    """kill -9 at a random step, then a signal at another, of two epochs of six batches; in between
    runs with other settings and other backdrops, which must not touch what is there."""
    arguments = (*FLAGS, *data, "--workers", 2, "--out", "out")
    seed = random.randrange(10**6)
    print("random steps of seed", seed)  # shown when the test fails
    steps = random.Random(seed)
    process = Started(SCRIPT, *arguments, cwd=tmp_path)
    wait_for_batch(process, tmp_path / "out", steps.randint(1, 5))
    process.kill()
    process.communicate()

    monkeypatch.chdir(tmp_path)
    assert load_bundle().main([*map(str, arguments), "--lr", "1", "--limit", "4"]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "lr was 0.001 and is 1.0" in last
    assert "the training rows are others" in last and "epochs" not in last
    # Validation errors before other backdrops cannot be compared.
    draw(tmp_path / "photographs" / "sky.png", np.zeros((99, 99, 3), np.uint8))
    assert load_bundle().main([*map(str, arguments), "--backgrounds", "photographs"]) == 2
    assert "the backgrounds are others" in capfd.readouterr().err

    process = Started(SCRIPT, *arguments, cwd=tmp_path)
    wait_for_batch(process, tmp_path / "out", steps.randint(6, 10))
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" in text and "The same command goes on" in text
    assert "Traceback" not in text

    done = run_forked(SCRIPT, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Continuing out/last.pth" in done.stdout
    assert_same(tmp_path / "out", uninterrupted)
    assert not (tmp_path / "out" / "last.pth").exists()  # the run is complete


def test_a_prediction_that_is_stopped_promises_nothing(data, tmp_path, monkeypatch, capsys):
    kernel = load_bundle()
    weights, tests = tmp_path / "w.pth", Path(data[data.index("--test-root") + 1])
    kernel.write_checkpoint(weights, kernel.U2NETP().state_dict(), recipe={"predict_size": 64})
    real = kernel.StopWatch.listen
    monkeypatch.setattr(kernel.StopWatch, "listen", lambda stop: (
        real(stop), os.kill(os.getpid(), signal.SIGTERM)))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        status = kernel.main(["--test-root", str(tests), "--checkpoint", str(weights),
                              "--out", str(tmp_path / "out"), "--device", "cpu"])
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before):
            signal.signal(number, handler)
    said = capsys.readouterr().out
    assert status == 128 + signal.SIGTERM and "Stopped. The same command begins anew." in said
    assert "SIGTERM: finishing the image at hand; again to end at once" in said


def test_an_automatic_run_goes_on_where_it_was_killed(data, tmp_path):
    """Though by then there are weights of its own to predict with, or to start from."""
    flags = (*FLAGS[2:], *data, "--checkpoint", "start.pth", "--out", "out")
    bundle = load_bundle()
    torch.manual_seed(0)
    bundle.write_checkpoint(tmp_path / "start.pth", bundle.U2NETP().state_dict())
    process = Started(SCRIPT, *flags, cwd=tmp_path)
    wait_for_batch(process, tmp_path / "out", 7)
    process.kill()
    process.communicate()
    assert (tmp_path / "out" / "u2netp_best.pth").is_file()
    done = run_forked(SCRIPT, *flags[:-4], "--out", "out", "--checkpoint", "start.pth",
                      cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Continuing out/last.pth" in done.stdout and "Epoch 2:" in done.stdout


def test_a_second_signal_ends_at_once(data, tmp_path):
    process = Started(SCRIPT, *FLAGS, *data, "--train-size", 384, "--out", "out", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Training "):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    for line in process.stdout:
        if "again to end at once" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_the_time_limit_leaves_a_complete_submission(data, tmp_path):
    """3000 epochs do not fit; what was promised for the end of the time is there."""
    began = time.time()
    done = run_forked(SCRIPT, *FLAGS, *data, "--epochs", 3000, "--time-limit", LIMIT / 3600,
                      "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Time limit: training ends in epoch" in done.stdout
    assert time.time() - began < LIMIT
    assert len(pd.read_csv(tmp_path / "out" / "submission.csv")) == 2
    assert (tmp_path / "out" / "last.pth").exists()  # there is more to train


def test_the_reserve_is_enough_for_what_comes_after_training(tmp_path, monkeypatch):
    """Of a real run, on images of 512 pixels: enough, and not many times too much."""
    kernel, seen = load_bundle(), {}
    real_reserve, real_train = kernel.seconds_after_training, kernel.train

    def reserve(*arguments):
        seen["reserve"] = real_reserve(*arguments)
        return seen["reserve"]

    def train(*arguments):
        metrics = real_train(*arguments)
        seen["ended"] = time.monotonic()
        return metrics

    monkeypatch.setattr(kernel, "seconds_after_training", reserve)
    monkeypatch.setattr(kernel, "train", train)
    tests = tmp_path / "tests"
    tests.mkdir()
    for path in REAL.glob("val_*.jpg"):
        shutil.copy(path, tests)
    assert kernel.main([
        "--mode", "train", "--train-csv", str(REAL / "val.csv"), "--val-csv", str(REAL / "val.csv"),
        "--test-root", str(tests), "--train-size", "64", "--epochs", "2", "--time-limit", "1",
        "--workers", "0", "--out", str(tmp_path / "out")]) == 0
    needed = time.monotonic() - seen["ended"]
    print(f"reserved {seen['reserve']:.1f} s, needed {needed:.1f} s")  # shown when it fails
    half_a_minute = 30
    assert needed < seen["reserve"] < 10 * needed + half_a_minute


def test_the_reserve_grows_with_what_is_left_to_do(kernel):
    base = kernel.seconds_after_training(100, 100, 1, 0.5)
    assert base > 1.5 * 100 * (3 * 0.5 + 2 * 0.5)
    assert kernel.seconds_after_training(100, 200, 1, 0.5) > base
    assert kernel.seconds_after_training(100, 100, 24, 0.5) > base
    assert kernel.seconds_after_training(100, 100, 1, 1.0) > base
