"""`python kernel/main.py` as a user starts it: from an empty folder, with src/ out of reach."""

import shutil

import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, run_script
from forked import run_forked
from src.network.u2net import U2NET, U2NETP

QUICK = ("--train-size", 64, "--train-batch", 2, "--epochs", 1, "--workers", 0)


@pytest.fixture
def script(tmp_path):
    """A copy of the bundled script alone, in a folder of its own."""
    folder = tmp_path / "kernel copy"
    folder.mkdir()
    return shutil.copy(ROOT / "kernel" / "main.py", folder / "script.py")


@pytest.fixture
def start(script, tmp_path):
    """Runs the script with arguments in an empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()

    def run(*arguments, process=run_forked):
        return process(script, *arguments, cwd=folder)

    run.folder = folder
    return run


def check_submission(csv, folder):
    """What Kaggle would look at, with nothing of ours but the file."""
    import base64
    import io

    table = pd.read_csv(csv, dtype=str)
    assert list(table.columns) == ["filename", "image_utf"] and table.filename.is_unique
    sizes = {path.stem: Image.open(path).size for path in folder.iterdir()}
    for name, text in table.itertuples(index=False):
        mask = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", sizes[name])
    return list(table.filename)


def test_a_fresh_machine_sees_the_whole_story(start):
    done = start("--limit", 2, *QUICK, process=run_script)
    assert done.returncode == 0, done.stderr
    out = start.folder / "outputs"
    assert "DEMONSTRATION" in done.stdout and "outputs/demo" in done.stdout
    assert check_submission(out / "submission.csv", out / "demo" / "orig_1024") == ["1", "2"]
    assert sorted(p.name for p in out.iterdir()) == [
        "demo", "metrics.csv", "preview", "submission.csv", "u2netp_best.pth", "validation.csv"]
    assert sorted(p.name for p in (out / "preview").iterdir()) == [
        "submission.png", "validation.png"]
    assert "\r" not in done.stdout + done.stderr


def data_flags(data):
    return "--train-csv", data.train, "--val-csv", data.val, "--test-root", data.test


def test_train_then_predict_then_use_the_checkpoint(start, small_data):
    done = start("--mode", "train", *data_flags(small_data), *QUICK, "--out", "first")
    assert done.returncode == 0, done.stderr
    first = start.folder / "first"
    assert check_submission(first / "submission.csv", small_data.test) == ["2", "10", "a.b"]
    assert "DEMONSTRATION" not in done.stdout
    recipe = torch.load(first / "u2netp_best.pth", weights_only=True)["recipe"]
    assert recipe["predict_size"] in (64, 96)
    assert recipe["calibration"] in ("none", "notebook", "fitted")

    # auto: a checkpoint of this project is there, so nothing is trained
    done = start("--checkpoint", "first/u2netp_best.pth", "--test-root", small_data.test,
                 "--out", "second")
    assert done.returncode == 0, done.stderr
    second = start.folder / "second"
    assert (second / "submission.csv").read_bytes() == (first / "submission.csv").read_bytes()
    assert not (second / "metrics.csv").exists()


def test_weights_without_a_recipe_are_trained_on(start, small_data):
    """auto, with CSVs and a published checkpoint: start from it."""
    torch.save(U2NETP().state_dict(), start.folder / "u2netp.pth")
    done = start(*data_flags(small_data), *QUICK, "--limit", 2, "--checkpoint", "u2netp.pth",
                 "--calibration", "notebook")
    assert done.returncode == 0, done.stderr
    assert "random weights" not in done.stdout and "Epoch 1:" in done.stdout
    assert len(pd.read_csv(start.folder / "outputs" / "submission.csv")) == 2
    best = torch.load(start.folder / "outputs" / "u2netp_best.pth", weights_only=True)
    assert best["recipe"]["calibration"] == "notebook"


def test_the_large_network_trains_and_predicts(start, small_data):
    """The checkpoint decides which network it is."""
    torch.manual_seed(0)
    torch.save(U2NET().state_dict(), start.folder / "u2net.pth")
    done = start("--checkpoint", "u2net.pth", "--mode", "train", *data_flags(small_data), *QUICK,
                 "--limit", 2, "--preview", 0, "--ema", 0, "--out", "first")
    assert done.returncode == 0, done.stderr
    state = torch.load(start.folder / "first" / "u2netp_best.pth", weights_only=True)["model_state"]
    assert sum(t.numel() for t in state.values() if t.is_floating_point()) > 44_009_869
    done = start("--checkpoint", "first/u2netp_best.pth", "--test-root", small_data.test,
                 "--limit", 2, "--out", "second")
    assert done.returncode == 0, done.stderr
    first, second = (start.folder / name / "submission.csv" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_training_that_fails_says_so_and_keeps_its_best_weights(start, small_data):
    """Elsewhere than on Kaggle no prediction hides it."""
    torch.manual_seed(0)
    torch.save(U2NETP().state_dict(), start.folder / "u2netp.pth")
    done = start("--checkpoint", "u2netp.pth", "--mode", "train", *data_flags(small_data), *QUICK,
                 "--epochs", 4, "--lr", 1e30, "--out", "out")
    out = start.folder / "out"
    assert done.returncode == 2 and "not finite" in done.stderr
    state = torch.load(out / "u2netp_best.pth", weights_only=True)["model_state"]
    assert all(torch.isfinite(each).all() for each in state.values())
    assert not (out / "submission.csv").exists()


def test_bad_input_is_one_sentence_and_status_2(start):
    """As a process; test_bad_input.py has the many cases, in this one."""
    done = start("--train-csv", "nowhere.csv", process=run_script)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "--train-csv nowhere.csv" in last
    assert "Traceback" not in done.stderr
