"""Runs that end early: killed, stopped by a signal, out of time; and what comes after."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, draw, load_bundle, run_script, write_pairs

FLAGS = ("--mode", "train", "--train-size", 64, "--train-batch", 2, "--epochs", 2, "--lr", 1e-3,
         "--schedule", "cosine", "--ema", 8, "--save-minutes", 0.005)
SCRIPT = ROOT / "kernel" / "main.py"


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
    done = run_script(SCRIPT, *FLAGS, *data, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def start(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], cwd=folder,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


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
    a run with other settings, which must not touch what is there."""
    arguments = (*FLAGS, *data, "--workers", 2, "--out", "out")
    seed = random.randrange(10**6)
    print("random steps of seed", seed)  # shown when the test fails
    steps = random.Random(seed)
    process = start(tmp_path, *arguments)
    wait_for_batch(process, tmp_path / "out", steps.randint(1, 5))
    process.kill()
    process.communicate()

    monkeypatch.chdir(tmp_path)
    assert load_bundle().main([*map(str, arguments), "--lr", "1", "--limit", "4"]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "lr was 0.001 and is 1.0" in last
    assert "training rows was" in last and "epochs" not in last

    process = start(tmp_path, *arguments)
    wait_for_batch(process, tmp_path / "out", steps.randint(6, 10))
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" in text and "The same command goes on" in text
    assert "Traceback" not in text

    done = run_script(SCRIPT, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Continuing out/last.pth" in done.stdout
    assert_same(tmp_path / "out", uninterrupted)
    assert not (tmp_path / "out" / "last.pth").exists()  # the run is complete


def test_other_backgrounds_are_another_run(data, tmp_path, capfd, monkeypatch):
    """Validation errors before other backdrops cannot be compared."""
    monkeypatch.chdir(tmp_path)
    process = start(tmp_path, *FLAGS, *data, "--out", "out")
    wait_for_batch(process, tmp_path / "out", 1)
    process.kill()
    process.communicate()
    draw(tmp_path / "photographs" / "sky.png", np.zeros((99, 99, 3), np.uint8))
    assert load_bundle().main([*map(str, (*FLAGS, *data)), "--backgrounds", "photographs", "--out",
                               "out"]) == 2
    assert "backgrounds was None and is" in capfd.readouterr().err


def test_an_automatic_run_goes_on_where_it_was_killed(data, tmp_path):
    """Though by then there are weights of its own to predict with, or to start from."""
    flags = (*FLAGS[2:], *data, "--checkpoint", "start.pth", "--out", "out")
    bundle = load_bundle()
    torch.manual_seed(0)
    bundle.write_checkpoint(tmp_path / "start.pth", bundle.U2NETP().state_dict())
    process = start(tmp_path, *flags)
    wait_for_batch(process, tmp_path / "out", 7)
    process.kill()
    process.communicate()
    assert (tmp_path / "out" / "u2netp_best.pth").is_file()
    done = run_script(SCRIPT, *flags[:-4], "--out", "out", "--checkpoint", "start.pth",
                      cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Continuing out/last.pth" in done.stdout and "Epoch 2:" in done.stdout


def test_a_second_signal_ends_at_once(data, tmp_path):
    process = start(tmp_path, *FLAGS, *data, "--train-size", 512, "--out", "out")
    for line in process.stdout:
        if line.startswith("First val batch"):
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
    done = run_script(SCRIPT, *FLAGS, *data, "--epochs", 3000, "--time-limit", 45 / 3600, "--out",
                      "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Time limit: training ends in epoch" in done.stdout
    assert time.time() - began < 45
    assert len(pd.read_csv(tmp_path / "out" / "submission.csv")) == 2
    assert (tmp_path / "out" / "last.pth").exists()  # there is more to train


def test_the_reserve_grows_with_what_is_left_to_do(kernel):
    base = kernel.seconds_after_training(100, 100, 0.5)
    assert base > 1.5 * 100 * (3 * 0.5 + 2 * 0.5)
    assert kernel.seconds_after_training(100, 200, 0.5) > base
    assert kernel.seconds_after_training(100, 100, 1.0) > base
