"""What is found under /kaggle/input, and how little of it is looked at."""

import os
from itertools import repeat

import pytest

PAIRS, SAMPLE, INDEX = "image_path,alpha_path\n", "filename,image_utf\n", "page_id\tsubject\n"


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("layout", [
    "{slug}", "competitions/{slug}", "datasets/someone/{slug}", "datasets/someone/{slug}/v2/all"])
def test_every_layout_of_kaggle(kernel, tmp_path, layout):
    def at(slug):
        return tmp_path / layout.format(slug=slug)

    train, val = put(at("pairs") / "train.csv", PAIRS), put(at("pairs") / "val.csv", PAIRS)
    sample = put(at("comp") / "sample_submission.csv", SAMPLE)
    test = put(at("comp") / "test_dataset" / "orig_1024" / "1.png").parent
    weights = put(tmp_path / "models/me/matting/pytorch/default/1/u2netp_alpha.pth")
    found = kernel.discover(tmp_path)
    assert found == {"train_csv": [train], "val_csv": [val], "test_root": [test],
                     "sample_csv": [sample], "checkpoint": [weights], "unfinished": [],
                     "backgrounds": []}


def test_our_own_tables_are_never_data(kernel, tmp_path):
    """An earlier session's output, attached: image_path is their first column, too."""
    for name, columns in {"validation": "image_path,mse,sad,backdrop",
                          "skipped": "image_path,reason", "problems": "filename,reason",
                          "val_old": "image_path,mse,sad,gradient",
                          "metrics": "epoch,train_loss,val_mse,lr"}.items():
        put(tmp_path / "notebooks/me/magick-alpha" / f"{name}.csv", columns + "\n")
    last = put(tmp_path / "notebooks/me/magick-alpha/last.pth")
    found = kernel.discover(tmp_path)
    assert found == {kind: [last] if kind == "unfinished" else [] for kind in found}


def test_backdrops_are_found_and_ones_of_ones_own_come_first(kernel, tmp_path):
    put(tmp_path / "a" / "weights" / "u2netp_alpha.pth")
    shipped = put(tmp_path / "a" / "weights" / "backdrops" / "1.jpg").parent
    assert kernel.discover(tmp_path)["backgrounds"] == [shipped]
    own = put(tmp_path / "z" / "deep" / "backdrops" / "1.jpg").parent
    assert kernel.discover(tmp_path)["backgrounds"] == [own, shipped]


def test_tables_are_told_by_their_columns(kernel, tmp_path):
    put(tmp_path / "a" / "train.csv", "id,label\n")  # another table of a usual name
    put(tmp_path / "a" / "test.csv", PAIRS)
    put(tmp_path / "a" / "submission.csv", SAMPLE)  # another kernel's result
    pairs = put(tmp_path / "a" / "magick_pairs.csv", "\ufeffalpha_path;image_path;more\n")
    val = put(tmp_path / "a" / "fold0_valid.csv", PAIRS)
    index = put(tmp_path / "z" / "index.tsv", INDEX)
    found = kernel.discover(tmp_path)
    assert found["train_csv"] == [pairs, index] and found["val_csv"] == [val]
    assert found["sample_csv"] == []


def test_usual_names_come_first_then_the_shallowest_then_the_alphabet(kernel, tmp_path):
    expected = [put(tmp_path / "a" / "deep" / "train.csv", PAIRS),
                put(tmp_path / "b" / "my_train.csv", PAIRS),
                put(tmp_path / "a" / "others.csv", PAIRS),
                put(tmp_path / "b" / "others.csv", PAIRS),
                put(tmp_path / "a" / "index.tsv", INDEX)]
    assert kernel.discover(tmp_path)["train_csv"] == expected
    names = ("u2netp_best.pth", "u2netp_alpha.pth", "a_u2netp.pth", "a.pt")
    weights = [put(tmp_path / name) for name in reversed(names)]
    assert kernel.discover(tmp_path)["checkpoint"] == weights[::-1]


def test_a_table_and_a_folder_beside_many_loose_images_are_found(kernel, tmp_path):
    for number in range(3000):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{number:05}.png").touch()
    train = put(tmp_path / "data" / "train.csv", PAIRS)
    test = put(tmp_path / "data" / "orig_1024" / "1.png").parent
    found = kernel.discover(tmp_path)
    assert (found["train_csv"], found["test_root"]) == ([train], [test])


def test_images_are_not_looked_at_one_by_one(kernel, tmp_path, monkeypatch):
    """A folder's listing says enough of them; and it ends after MOST_ENTRIES."""
    class Entry:
        name = "1.png"

        def is_dir(self):
            raise AssertionError("an image was looked at")

    class Endless:
        def __init__(self, folder):
            pass

        def __enter__(self):
            return repeat(Entry())

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Endless)
    assert not any(kernel.discover(tmp_path).values())


def test_an_earlier_sessions_output_is_found(kernel, tmp_path):
    """Attached as an input: its unfinished training, and its best weights before the shipped."""
    output = tmp_path / "notebooks" / "me" / "magick-alpha"
    last, best = put(output / "last.pth"), put(output / "u2netp_best.pth")
    put(output / "submission.csv", SAMPLE)
    shipped = put(tmp_path / "weights" / "u2netp_alpha.pth")
    found = kernel.discover(tmp_path)
    assert found["unfinished"] == [last] and found["checkpoint"] == [best, shipped]
    assert found["sample_csv"] == []


def test_a_folder_that_may_not_be_read_is_passed_over(kernel, tmp_path, monkeypatch):
    put(tmp_path / "a" / "x.csv", PAIRS)
    train, real = put(tmp_path / "b" / "train.csv", PAIRS), os.scandir

    def refusing(folder):
        if str(folder).endswith("/a"):
            raise PermissionError
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert kernel.discover(tmp_path)["train_csv"] == [train]
