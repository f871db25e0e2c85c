"""Two processes under torchrun: same gradients, same weights, same files; no hang on a death."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from conftest import ROOT, load_modules, run_script, write_pairs

SCRIPT = ROOT / "kernel" / "main.py"
FLAGS = ("--train-size", 64, "--train-batch", 2, "--epochs", 2, "--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train, val = write_pairs(folder, 7), write_pairs(folder, 3, name="val")
    write_pairs(folder / "test", 5, size=40)
    (folder / "test" / "images" / "torn.png").write_bytes(b"no picture")
    return ("--train-csv", train, "--val-csv", val, "--test-root", folder / "test" / "images")


def torchrun(program, *arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(program), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
        text=True, timeout=120)


GRADIENTS = """
import dataclasses, sys, torch
from pathlib import Path
from src.config import Settings
from src.console import rank
from src.data import ShuffledEpochs, TrainingSet, make_loader
from src.pairs import read_pairs
from src.distributed import average_buffers, join_group, leave_group, world_size
from src.augment import JointAugment
from src.hardware import Machine, prepare_machine
from src.training import Run, accumulate_gradients, train_step
from src.u2netp import U2NETP

prepare_machine(0)
machine = Machine(join_group(torch.device("cpu")))
batch = 4 // world_size()
settings = dataclasses.replace(Settings(), train_size=64, train_batch=batch, ema=0)
model = U2NETP()
run = Run(model, settings, machine, 1)
model.eval()  # batch norms aside: each process would normalise with its own crops
pairs = read_pairs(sys.argv[1])
loader = make_loader(TrainingSet(pairs, JointAugment(64), 0), batch, machine,
                     ShuffledEpochs(len(pairs), 0))
first = next(iter(loader))
accumulate_gradients(run, first["img"], first["mask"])
gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
model.train()
train_step(run, first)
average_buffers(model)
torch.save({"gradients": gradients, "state": model.state_dict(), "paths": first["path"]},
           Path(sys.argv[2]) / f"{world_size()}-{rank()}.pth")
leave_group()
"""


def test_gradients_are_those_of_the_doubled_batch(data, tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    arguments = (data[1], tmp_path)
    done = torchrun(tmp_path / "gradients.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, "gradients.py", *map(str, arguments)], cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert alone.returncode == 0
    one, first, second = (torch.load(tmp_path / f"{name}.pth") for name in ("1-0", "2-0", "2-1"))
    assert sorted(one["paths"]) == sorted(first["paths"] + second["paths"])
    largest = max(g.abs().max() for g in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        assert (first["gradients"][name] - gradient).abs().max() < 1e-5 * largest
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name])


def test_two_processes_write_what_one_writes(data, tmp_path):
    """Trained by two, predicted by two and by one; validated by two and here. A test image that
    cannot be read gives both the same exit status."""
    trained = run_script(SCRIPT, "--mode", "train", *data, *FLAGS, "--gpus", 2, "--out", "two",
                         cwd=tmp_path)
    assert trained.returncode == 3, trained.stderr
    assert "BLANK MASK for torn" in trained.stdout and "Traceback" not in trained.stderr
    assert trained.stdout.count("Epoch 1:") == 1
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "metrics.csv", "preview", "submission.csv", "u2netp_best.pth"]
    best = tmp_path / "two" / "u2netp_best.pth"
    alone = run_script(SCRIPT, *data[4:], "--checkpoint", best, "--device", "cpu", "--out", "one",
                       cwd=tmp_path)
    assert alone.returncode == 3, alone.stderr
    one, two = ((tmp_path / name / "submission.csv").read_bytes() for name in ("one", "two"))
    assert one == two

    kernel = load_modules()
    model, machine = kernel.U2NETP(), kernel.Machine()
    model.load_state_dict(kernel.read_checkpoint(best).model_state)
    loader = kernel.share_loader(kernel.ValidationSet(kernel.read_pairs(data[3]), 64), 1, machine)
    mse = kernel.evaluate(model, loader, machine, kernel.StopWatch())[1]
    assert mse == pytest.approx(pd.read_csv(tmp_path / "two" / "metrics.csv").val_mse.min(), 1e-4)


def test_a_dead_rank_ends_the_run_with_its_error(data, tmp_path):
    broken = tmp_path / "broken"
    csv = write_pairs(broken, 7)
    (broken / "images" / "train3.png").write_bytes(b"no picture")
    done = run_script(SCRIPT, "--mode", "train", "--train-csv", csv, *data[2:], *FLAGS, "--gpus", 2,
                      "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "train3.png: cannot be read as an image" in done.stderr
