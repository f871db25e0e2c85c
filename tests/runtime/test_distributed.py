"""Two processes under torchrun: same gradients, same weights, same files; no hang on a death."""

import ast
import os
import re
import signal
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from conftest import ROOT, load_modules, write_pairs
from forked import Started, run_forked
from src.runtime import distributed
from src.runtime.console import UserError

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
    return run_forked(torch.distributed.run.__file__, "--standalone", "--nproc-per-node=2", program,
                      *arguments, cwd=cwd, environment=environment, timeout=120)


GRADIENTS = """
import dataclasses, sys, torch
from pathlib import Path
from src.config import Settings
from src.runtime.distributed import (
    all_reduce, any_rank, average_tensors, end_process, join_group)
from src.runtime.hardware import Machine, prepare_machine
from src.runtime.processes import rank, world_size
from src.data.augment import JointAugment
from src.data.datasets import ShuffledEpochs, TrainingSet
from src.data.loading import make_loader
from src.data.pairs import read_pairs
from src.network.u2net import U2NETP
from src.training.loop import accumulate_gradients, train_step
from src.training.state import Run, decided

prepare_machine(0)
join_group()
machine = Machine(torch.device("cpu"))
batch = 4 // world_size()
model = U2NETP()
settings = dataclasses.replace(Settings(), train_size=32, train_batch=batch, ema=0, lr=1e-4)
settings = decided(settings, machine)
run = Run(model, settings, machine, 1, frozen_norms=False)
model.eval()  # batch norms aside: each process would normalise with its own crops
pairs = read_pairs(sys.argv[1])
loader = make_loader(TrainingSet(pairs, JointAugment(64), 0), batch, machine,
                     ShuffledEpochs(len(pairs), 0))
first = loader.dataset.augment.apply(next(iter(loader)), [], machine.device)
accumulate_gradients(run, first)
gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
model.train()
train_step(run, first)
average_tensors(run.statistics())
torch.save({"gradients": gradients, "state": model.state_dict(), "paths": first["path"]},
           Path(sys.argv[2]) / f"{world_size()}-{rank()}.pth")
if world_size() == 2:
    tensors = [torch.full((3,), float(rank())), torch.tensor(7 + rank())]
    for _ in range(2):
        average_tensors(tensors)
        assert tensors[0].tolist() == [0.5] * 3 and tensors[1].item() == 7 + rank()
    assert all_reduce(torch.ones(2).numpy() * (1 + rank())).tolist() == [3, 3]
    assert any_rank(rank() == 1, False) == [True, False]
end_process(0)
"""


def test_gradients_are_those_of_the_doubled_batch(data, tmp_path):
    """And statistics meet at their mean, numbers at their sum, flags at whether any is set."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    arguments = (data[1], tmp_path)
    done = torchrun(tmp_path / "gradients.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = run_forked(tmp_path / "gradients.py", *arguments, cwd=tmp_path,
                       environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert alone.returncode == 0
    one, first, second = (torch.load(tmp_path / f"{name}.pth") for name in ("1-0", "2-0", "2-1"))
    assert sorted(one["paths"]) == sorted(first["paths"] + second["paths"])
    largest = max(g.abs().max() for g in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        assert (first["gradients"][name] - gradient).abs().max() < 1e-5 * largest
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name])


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """(flags of a training in two processes, its finished run, its results)"""
    folder = tmp_path_factory.mktemp("two")
    flags = ("--mode", "train", *data, *FLAGS, "--workers", 2, "--gpus", 2, "--save-minutes", 1000)
    return flags, run_forked(SCRIPT, *flags, "--out", "out", cwd=folder), folder / "out"


def test_two_processes_write_what_one_writes(data, two, tmp_path):
    """Trained by two, predicted by two and by one; validated by two and here. A test image that
    cannot be read gives both the same exit status."""
    _, trained, out = two
    assert trained.returncode == 3, trained.stderr
    assert "PROBLEM with torn" in trained.stdout and "Traceback" not in trained.stderr
    assert trained.stdout.count("Epoch 1:") == 1
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.csv", "preview", "problems.csv", "submission.csv", "u2netp_best.pth",
        "validation.csv"]
    best = out / "u2netp_best.pth"
    alone = run_forked(SCRIPT, *data[4:], "--checkpoint", best, "--device", "cpu", "--out", "one",
                       cwd=tmp_path)
    assert alone.returncode == 3, alone.stderr
    assert (tmp_path / "one" / "submission.csv").read_bytes() == (
        out / "submission.csv").read_bytes()

    kernel = load_modules()
    model, machine = kernel.build_network(kernel.read_checkpoint(best)), kernel.Machine()
    loader = kernel.share_loader(kernel.ValidationSet(kernel.read_pairs(data[3]), 64), 1, machine)
    mse = kernel.evaluate({"": model}, loader, machine, kernel.StopWatch())[""][1]
    assert mse == pytest.approx(pd.read_csv(out / "metrics.csv").val_mse.min(), 1e-4)


# ---------------------------------------------------------------- one rule


def test_one_module_speaks_to_torch_distributed():
    """NCCL for gradients, gloo for the rest, is easy to keep where all of it is in one file."""
    speaking = [path.name for path in sorted((ROOT / "src").rglob("*.py"))
                if re.search(r"torch\.distributed|\bdist\.|DistributedDataParallel",
                             path.read_text("utf-8"))]
    assert speaking == ["distributed.py"]


def test_nccl_is_for_the_gradients_only():
    """Collectives take the default group, which is gloo, but for the one that tries the gradients'
    group; and the gradients' group is known to `data_parallel` and `tried_group` alone."""
    tree = ast.parse((ROOT / "src" / "runtime" / "distributed.py").read_text("utf-8"))
    users = set()
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and node.value == "nccl" or (
                    isinstance(node, ast.keyword) and "group" in (node.arg or "")):
                users.add(function.name)
    assert users == {"data_parallel", "tried_group"}
    opened = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
              and ast.unparse(node.func) == "dist.init_process_group"]
    assert [call.args[0].value for call in opened] == ["gloo"]


LIKE_NCCL = """
import sys
import torch
import torch.distributed as dist

# On these machines cards are pretended: the second group ever made refuses host tensors and all but
# what DDP asks of it, as NCCL does; a run must not notice.
from src import main
real_group, real_gather = dist.new_group, dist.all_gather_object
made = []
def new_group(*arguments, **named):
    made.append(real_group(*arguments, **named))
    return made[-1]
def refusing(name):
    real = getattr(dist, name)
    def collective(*arguments, **named):
        if named.get("group") in made and name != "all_reduce":
            raise RuntimeError("No backend type associated with device type cpu")
        return real(*arguments, **named)
    return collective
dist.new_group = new_group
for name in ("all_reduce", "all_gather_object", "broadcast", "barrier", "gather_object"):
    setattr(dist, name, refusing(name))
status = main.main(sys.argv[1:])
print("groups made:", len(made))
sys.exit(status)
"""


def test_a_prediction_makes_no_group_for_gradients(data, tmp_path):
    (tmp_path / "like_nccl.py").write_text(LIKE_NCCL)
    best = tmp_path / "best.pth"
    kernel = load_modules()
    kernel.write_checkpoint(best, kernel.U2NETP().state_dict(), recipe={"predict_size": 64})
    done = torchrun(tmp_path / "like_nccl.py", *data[2:], "--checkpoint", best, "--device", "cpu",
                    "--out", "out", "--mode", "predict", "--workers", 0, cwd=tmp_path)
    assert done.stdout.count("groups made: 0") == 2, done.stderr
    assert "by calibration" in done.stdout  # which died of a CPU tensor over NCCL


# ---------------------------------------------------------------- starting


def test_each_process_takes_its_card_before_it_touches_cuda(monkeypatch):
    """No tensor, and so no context, on card 0 by rank 1."""
    kernel, calls = load_modules(), []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", str(device))))
    real = torch.ones

    def ones(*arguments, device, **named):
        calls.append(("ones", str(device)))
        return real(*arguments, **named)

    monkeypatch.setattr(torch, "ones", ones)
    for name in ("auto", "cuda"):
        assert kernel.choose_device(name) == torch.device("cuda:1")
        assert calls == [("set", "cuda:1"), ("ones", "cuda:1")]
        calls.clear()


@pytest.mark.parametrize("gpus, device, says", [
    (3, "auto", "--gpus 3: this machine has 2"), (3, "cuda", "--gpus 3: this machine has 2"),
    (2, "cuda:1", "--device cuda:1 is one card")])
def test_more_cards_than_there_are_is_one_sentence(monkeypatch, capfd, gpus, device, says):
    kernel = load_modules()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert kernel.main(["--gpus", str(gpus), "--device", device]) == 2
    error = capfd.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1


def launched_with(monkeypatch, outcome, guarded=False):
    """(what relaunch returns, the arguments and environment that torchrun got)"""
    seen = {}

    def run(arguments):
        seen.update(arguments=arguments, threads=os.environ.get("OMP_NUM_THREADS"))
        if outcome:
            raise outcome

    for name in ("OMP_NUM_THREADS", distributed.STARTED_VARIABLE, distributed.REASON_VARIABLE):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed.torchrun, "main", run)
    return distributed.relaunch(None, "auto", guarded), seen


def test_two_cards_are_used_without_this_machines_name(monkeypatch):
    status, seen = launched_with(monkeypatch, None)
    assert status == 0 and "--nproc-per-node=2" in seen["arguments"]
    assert "--local-addr=127.0.0.1" in seen["arguments"]
    assert seen["threads"] == str(max(1, os.cpu_count() // 2))


def test_where_no_group_can_be_formed_one_card_does_the_work(monkeypatch, capsys):
    error = distributed.ChildFailedError.__new__(distributed.ChildFailedError)
    error.failures = {0: SimpleNamespace(exitcode=distributed.NO_GROUP_STATUS, timestamp=7)}
    for outcome in (error, RuntimeError("the rendezvous\nfailed"),
                    distributed.RendezvousError("no store")):
        status, _ = launched_with(monkeypatch, outcome)
        assert status is None
        assert "going on with one process and one card" in capsys.readouterr().out
    monkeypatch.setattr(distributed, "child_status", lambda command: 137)
    assert launched_with(monkeypatch, error, guarded=True)[0] == 137  # it may die, this one not


def test_a_start_that_is_refused_has_its_reason_too(monkeypatch):
    for name in ("RANK", distributed.REASON_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="this machine has 2") as caught:
        distributed.relaunch(5, "auto", guarded=True)
    distributed.first_to_end(2, str(caught.value))
    assert "this machine has 2" in distributed.noted_reason(2)
    assert not distributed.is_launched()  # what follows is the last run


@pytest.mark.parametrize("ends, status", [
    ([(7, 1), (7, -9)], 128 + 9),  # (second, exit code)
    ([(7, 1), (7, -15)], 1), ([(7, 1), (37, -9)], 1), ([(7, -11), (8, 1)], 128 + 11)])
def test_the_first_to_end_is_the_one_that_was_killed(ends, status):
    assert distributed.first_exit([SimpleNamespace(timestamp=second, exitcode=code)
                                   for second, code in ends]) == status


@pytest.mark.parametrize("status, words, reason", [
    (1, "ValueError: odd", "ValueError: odd"), (1, "", "a process ended with status 1"),
    (255, "", "a process ended with status 255"),
    (128 + 11, "", "a process was ended by SIGSEGV"),
    (128 + 9, "", "a process was ended by SIGKILL, as the system does when memory runs out"),
    (128 + 9, "process 0: lost", "a process was ended by SIGKILL, as the system does when memory "
     "runs out (process 0: lost)")])
def test_a_reason_blames_what_is_known(monkeypatch, tmp_path, status, words, reason):
    monkeypatch.setenv(distributed.REASON_VARIABLE, str(tmp_path))
    distributed.first_to_end(status, words)
    assert distributed.noted_reason(status) == reason


@pytest.mark.parametrize("guarded, status", [(True, 1), (False, 2)])
def test_an_error_of_the_system_is_bad_input_unless_it_may_pass(
        monkeypatch, tmp_path, capsys, guarded, status):
    kernel = load_modules()
    if guarded:
        monkeypatch.setenv(distributed.REASON_VARIABLE, str(tmp_path))
    assert kernel.report_end(ConnectionResetError(104, "Connection reset by peer"), False) == status
    assert capsys.readouterr().err == (
        "error: ConnectionResetError: Connection reset by peer\n")


def test_a_mistake_in_one_process_ends_both_in_order(data, tmp_path):
    """With its traceback and status 1, and without the interpreter's own end, which threads of
    gloo may abort."""
    (tmp_path / "mistaken.py").write_text(
        "import atexit, sys\nfrom src import main\nfrom src.runtime.processes import rank\n"
        "atexit.register(print, 'interpreter shutdown')\n"
        "real = main.score\n"
        "def score(*arguments):\n    rank() and 1 / 0\n    return real(*arguments)\n"
        "main.score = score\nmain.end_process(main.main(sys.argv[1:]))\n")
    done = torchrun(tmp_path / "mistaken.py", "--mode", "train", *data, *FLAGS, "--out", "out",
                    cwd=tmp_path)
    assert "ZeroDivisionError: division by zero" in done.stderr and "exitcode  : 1" in done.stderr
    assert "interpreter shutdown" not in done.stdout


def test_gradients_that_cannot_be_exchanged_end_in_no_group(data, tmp_path):
    """As where NCCL cannot start: both processes say so, one does the work."""
    (tmp_path / "failing.py").write_text(
        "import sys\nimport torch.distributed as dist\nfrom src import main\n"
        "def new_group(*arguments, **named):\n"
        "    raise RuntimeError('NCCL error: unhandled system error')\n"
        "dist.new_group = new_group\nsys.exit(main.main(sys.argv[1:]))\n")
    done = run_forked(tmp_path / "failing.py", "--mode", "train", *data, *FLAGS, "--gpus", 2,
                      "--epochs", 1, "--out", "out", cwd=tmp_path,
                      environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 3, done.stderr
    assert "cannot work with the others (NCCL error: unhandled system error)" in done.stdout
    assert "going on with one process" in done.stdout and "Epoch 1:" in done.stdout


@pytest.mark.parametrize("name", ["forward_sync_buffers", "broadcast_buffers"])
def test_buffers_are_not_sent_with_each_step_by_whichever_name(monkeypatch, name):
    """torch 2.13 has another name for it, and warns of the older one in each process."""
    seen = {}
    parallel = {"forward_sync_buffers": lambda module, forward_sync_buffers=None, **more: (
                    seen.update(forward_sync_buffers=forward_sync_buffers)),
                "broadcast_buffers": lambda module, broadcast_buffers=True, **more: (
                    seen.update(broadcast_buffers=broadcast_buffers))}[name]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "DistributedDataParallel", parallel)
    monkeypatch.setattr(distributed, "tried_group", lambda device: (None, ""))
    monkeypatch.setattr(distributed, "all_gather", lambda items: items)
    distributed.data_parallel(torch.nn.Linear(1, 1), torch.device("cpu"))
    assert seen == {name: False}


def test_cores_are_divided_by_the_processes(monkeypatch):
    kernel = load_modules()
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert kernel.worker_count(None) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert kernel.worker_count(None) == 2 and kernel.worker_count(7) == 7


# ---------------------------------------------------------------- ending


def test_an_error_of_the_user_is_said_once(data, tmp_path):
    done = run_forked(SCRIPT, "--mode", "train", *data[:4], "--test-root", "nowhere", *FLAGS,
                      "--gpus", 2, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("--test-root nowhere: there is no such folder") == 1
    assert "Traceback (most recent call last):\n  File \"" + str(SCRIPT) not in done.stderr


def test_a_dead_rank_ends_the_run_with_its_error(data, tmp_path):
    broken = tmp_path / "broken"
    csv = write_pairs(broken, 7)
    for number in range(3, 7):
        (broken / "images" / f"train{number}.png").write_bytes(b"no picture")
    done = run_forked(SCRIPT, "--mode", "train", "--train-csv", csv, *data[2:], *FLAGS, "--gpus", 2,
                      "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("validation pairs cannot be read, more than 5%") == 0
    assert done.stderr.count("training pairs cannot be read, more than 5%; the first: ") == 1
    assert "does not answer" not in done.stderr


ONE_RANK = """
import os, sys
import torch
from src import main
from src.training import loop
if os.environ.get("RANK") == "1":
    def accumulate(run, batch):
        {what}
    loop.accumulate_gradients = accumulate
sys.exit(main.main(sys.argv[1:]))
"""


def on_one_rank(data, folder, what):
    """The finished run of two processes, of which the second does something.

    Raises subprocess.TimeoutExpired long before a process gives up waiting for another.
    """
    (folder / "one_rank.py").write_text(ONE_RANK.format(what=what))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return run_forked(folder / "one_rank.py", "--mode", "train", *data, *FLAGS, "--gpus", 2,
                      "--out", "out", cwd=folder, environment=environment)


def test_out_of_memory_on_one_card_ends_all_with_advice(data, tmp_path):
    done = on_one_rank(data, tmp_path, "raise torch.OutOfMemoryError('injected')")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: the graphics card has too little memory") == 1
    assert "--train-batch 2 at --train-size 64; take --train-batch 1" in done.stderr


def test_a_killed_process_ends_the_run(data, tmp_path):
    done = on_one_rank(data, tmp_path, "os.kill(os.getpid(), 9)")
    assert done.returncode not in (0, 2), done.stderr


def test_a_signal_to_the_parent_saves_and_resumes_exactly(two, tmp_path):
    """torchrun passes it on to each process group, and so to the loader workers."""
    flags, _, whole = two
    process = Started(SCRIPT, *flags, "--out", "out", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Epoch 1:"):
            break
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "killed by signal" not in text
    done = run_forked(SCRIPT, *flags, "--out", "out", cwd=tmp_path)
    assert done.returncode == 3 and "Continuing out/last.pth" in done.stdout, done.stderr
    for name in ("metrics.csv", "submission.csv", "u2netp_best.pth"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
