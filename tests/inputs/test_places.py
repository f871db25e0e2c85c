"""Finding things locally and in Kaggle's folders, and saying what is missing."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, draw
from forked import run_forked


def find(kernel, kaggle, *arguments):
    return kernel.find_inputs(kernel.parse_settings(list(map(str, arguments))), kaggle)


NO_KAGGLE = Path("/nonexistent/kaggle/input")


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_flags_name_the_inputs(kernel, small_data, empty_folder):
    inputs = find(kernel, NO_KAGGLE, "--train-csv", small_data.train, "--test-root",
                  small_data.test, "--out", "here")
    assert (inputs.train_csv, inputs.test_root) == (small_data.train, small_data.test)
    assert (inputs.val_csv, inputs.out, inputs.kaggle_input) == (None, Path("here"), None)
    assert not kernel.is_empty(inputs)


def test_the_notebooks_places_are_defaults(kernel, empty_folder):
    assert kernel.is_empty(find(kernel, NO_KAGGLE))
    touch(Path("data/splits/train.csv"))
    touch(Path("data/splits/val.csv"))
    Path("data/test_dataset/orig_1024").mkdir(parents=True)
    inputs = find(kernel, NO_KAGGLE)
    assert inputs.train_csv == Path("data/splits/train.csv")
    assert inputs.test_root == Path("data/test_dataset/orig_1024")
    assert inputs.out == Path("outputs")


@pytest.mark.parametrize("place", ["weights/", ""])
def test_weights_beside_the_script_are_found_whatever_its_folder(tmp_path, place):
    """And what is wrong with them is said."""
    script, weights = tmp_path / "main.py", tmp_path / place / "u2netp_alpha.pth"
    shutil.copy(ROOT / "kernel" / "main.py", script)
    touch(weights).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    draw(tmp_path / "photo.png", np.zeros((9, 9, 3), np.uint8))
    done = run_forked(script, "photo.png", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{weights}: is a Git LFS pointer, not the weights; run `git lfs pull`" in done.stderr


@pytest.mark.parametrize("flag", ["--train-csv", "--val-csv", "--test-root", "--checkpoint"])
def test_a_path_that_is_not_there_is_refused(kernel, empty_folder, flag):
    with pytest.raises(kernel.UserError, match=f"{flag} nowhere"):
        find(kernel, NO_KAGGLE, flag, "nowhere")


@pytest.mark.parametrize("mode", ["auto", "train", "predict"])
def test_the_best_checkpoint_of_an_earlier_run_goes_first(kernel, empty_folder, tmp_path, mode):
    best = touch(Path("outputs/u2netp_best.pth"))
    assert find(kernel, NO_KAGGLE, "--mode", mode).checkpoint == best
    attached = touch(tmp_path / "input" / "weights" / "u2netp_alpha.pth").parents[1]
    assert find(kernel, attached, "--mode", mode, "--out", "outputs").checkpoint == best
    named = touch(Path("other.pth"))
    assert find(kernel, NO_KAGGLE, "--checkpoint", named).checkpoint == named


def test_photographs_see_the_shipped_weights(kernel, empty_folder):
    best, photo = touch(Path("outputs/u2netp_best.pth")), touch(Path("photo.jpg"))
    shipped = ROOT / "kernel" / "weights" / "u2netp_alpha.pth"
    assert find(kernel, NO_KAGGLE, photo).checkpoint == shipped
    assert find(kernel, NO_KAGGLE, photo, "--checkpoint", best).checkpoint == best
    assert find(kernel, NO_KAGGLE).checkpoint == best


@pytest.mark.parametrize("name, content, flag", [
    ("validation.csv", "image_path,alpha_path", "--val-csv"),
    ("submission.csv", "filename,image_utf", "--sample-csv"),
    ("problems.csv", "problem,owner", None)])
def test_tables_of_others_are_not_replaced(kernel, small_data, tmp_path, name, content, flag):
    path = tmp_path / name
    path.write_text(f"{content}\nx,y\n")
    flags = [flag, path] if flag else []
    settings = kernel.parse_settings(list(map(str, [
        "--test-root", small_data.test, "--out", tmp_path, *flags])))
    with pytest.raises(kernel.UserError, match=f"{name}: is (no result of|an input of)"):
        kernel.check_tables(kernel.find_inputs(settings, NO_KAGGLE))
    path.write_text("filename,image_utf,reason,mse\nx,y\n")
    inputs = kernel.find_inputs(settings, NO_KAGGLE)
    kernel.check_tables(replace(inputs, val_csv=None, sample_csv=None))


def test_kaggles_folders_are_taken_and_flags_override(kernel, tmp_path, empty_folder, capsys):
    root = tmp_path / "input"
    for name in ("one", "two"):
        touch(root / name / "train.csv").write_text("image_path,alpha_path\n")
    (root / "matting" / "orig_1024").mkdir(parents=True)
    inputs = find(kernel, root)
    assert inputs.train_csv == root / "one" / "train.csv"
    assert (inputs.out, inputs.kaggle_input) == (Path("/kaggle/working"), root)
    said = capsys.readouterr().out
    assert f"{root / 'one' / 'train.csv'} is taken; there is also" in said
    assert "--set train_csv=PATH" in said and "test_root" not in said
    other = find(kernel, root, "--train-csv", root / "two" / "train.csv")
    assert other.train_csv == root / "two" / "train.csv" and not capsys.readouterr().out


def test_a_missing_test_folder_on_kaggle_lists_what_is_there(kernel, tmp_path, empty_folder):
    touch(tmp_path / "input" / "some-dataset" / "readme.txt")
    inputs = find(kernel, tmp_path / "input")
    with pytest.raises(kernel.UserError, match="orig_1024 .* which holds some-dataset"):
        kernel.check_complete(inputs, training=True)


@pytest.mark.parametrize("training, given, flag", [
    (True, ["test_root"], "--train-csv or --checkpoint"),
    (False, ["test_root"], "--checkpoint"), (False, ["train_csv"], "--test-root"),
])
def test_what_is_missing_is_named_with_its_flag(
        kernel, small_data, empty_folder, training, given, flag):
    paths = {"test_root": small_data.test, "train_csv": small_data.train}
    arguments = [x for name in given for x in ("--" + name.replace("_", "-"), paths[name])]
    # The checkout ships a checkpoint; the script alone does not.
    inputs = replace(find(kernel, NO_KAGGLE, *arguments), checkpoint=None)
    with pytest.raises(kernel.UserError, match=flag):
        kernel.check_complete(inputs, training)
