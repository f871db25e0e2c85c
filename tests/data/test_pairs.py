"""Which rows of which table become pairs, and where their files are found."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from conftest import draw, write_pairs


def rewrite(csv, prefix):
    table = pd.read_csv(csv)
    for column in table:
        table[column] = [os.path.join(prefix, name) for name in table[column]]
    table.to_csv(csv, index=False)


def test_paths_may_be_relative_to_the_csv(kernel, small_data):
    pairs = kernel.read_pairs(small_data.train)
    assert len(pairs) == 4 and all(map(os.path.isfile, pairs[3]))


def test_paths_may_be_absolute(kernel, small_data):
    rewrite(small_data.train, small_data.folder)
    assert kernel.read_pairs(small_data.train)[0][0] == str(
        small_data.folder / "images" / "train0.png")


def test_absolute_paths_may_stand_beside_relative_ones(kernel, small_data):
    table = pd.read_csv(small_data.train)
    table.loc[0] = [str(small_data.folder / path) for path in table.loc[0]]
    table.to_csv(small_data.train, index=False)
    pairs = kernel.read_pairs(small_data.train)
    assert all(os.path.isfile(path) for index in range(4) for path in pairs[index])


def test_paths_may_be_relative_to_the_working_folder(kernel, small_data, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "train.csv"
    elsewhere.parent.mkdir()
    shutil.move(small_data.train, elsewhere)
    monkeypatch.chdir(small_data.folder)
    assert os.path.isfile(kernel.read_pairs(elsewhere)[0][0])


def test_paths_may_be_relative_to_a_folder_above_the_csv(kernel, small_data):
    splits = small_data.folder / "splits" / "fold0"
    splits.mkdir(parents=True)
    shutil.move(small_data.train, splits / "train.csv")
    assert os.path.isfile(kernel.read_pairs(splits / "train.csv")[0][0])


def test_limit_takes_the_first_rows(kernel, small_data):
    pairs = kernel.read_pairs(small_data.train, limit=2)
    assert [os.path.basename(pairs[i][0]) for i in range(2)] == ["train0.png", "train1.png"]
    assert len(pairs) == 2


@pytest.mark.parametrize("text, named", [
    (b"", "is empty"), (b"image_path,alpha_path\n", "no rows"), (b"\n\n", "is empty"),
    (b"image,alpha_path\na,b\n", "no column image_path.*rename image to image_path"),
    (b"Image Path,alpha_path\na,b\n", "rename Image Path to image_path"),
    (b"image_path,alphapath\na,b\n", "rename alphapath to alpha_path"),
    (b"x,y\na,b\n", "no column image_path; it has x, y$"),
    (b"image_path,alpha_path\nx.png,y.png\n", "x.png is neither in"),
    (b"image_path,alpha_path\na,b,c,d\na\n", "cannot be read as a table|neither"),
    (b"image_path,alpha_path\n\xff\xfe\x00,b\n", "not UTF-8"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8|no column"),
])
def test_a_csv_that_cannot_work_is_refused(kernel, tmp_path, text, named):
    csv = tmp_path / "train.csv"
    csv.write_bytes(text)
    with pytest.raises(kernel.UserError, match=named) as refusal:
        kernel.read_pairs(csv)
    assert str(csv) in str(refusal.value) and "\n" not in str(refusal.value)


def table(folder, text, encoding="utf-8"):
    csv = folder / "some.csv"
    csv.write_bytes(text.encode(encoding))
    return csv


@pytest.mark.parametrize("text, encoding", [
    ("image_path;alpha_path\n{a};{b}\n", "utf-8"), ("image_path\talpha_path\n{a}\t{b}\n", "utf-8"),
    ("image_path,alpha_path\n{a},{b}\n", "utf-8-sig"),
    ("id, alpha_path, image_path\n1, {b}, {a}\n", "utf-8"),
    ("image_path,alpha_path\r\n{a},{b}\r\n\r\n", "utf-8"),
    ('image_path,alpha_path\n"{a}","{b}"\n', "utf-8"),
])
def test_dialects(kernel, small_data, text, encoding):
    csv = table(small_data.folder, text.format(a="images/train0.png", b="alphas/train0.png"),
                encoding)
    pairs = kernel.read_pairs(csv)
    assert len(pairs) == 1 and all(map(os.path.isfile, pairs[0]))


@pytest.mark.parametrize("there", [
    r"C:\Users\me\magick", r"\\server\share", "/home/me/magick", "/kaggle/input/magick/v1"])
def test_paths_of_another_machine_are_found_by_their_last_parts(
        kernel, small_data, capsys, there):
    slash = "\\" if "\\" in there else "/"
    rows = [slash.join([there, folder, f"train{i}.png"]) for i in range(4)
            for folder in ("images", "alphas")]
    csv = table(small_data.folder, "image_path,alpha_path\n" + "".join(
        f"{rows[2 * i]},{rows[2 * i + 1]}\n" for i in range(4)))
    pairs = kernel.read_pairs(csv)
    assert pairs[3] == tuple(str(small_data.folder / part / "train3.png")
                             for part in ("images", "alphas"))
    assert "is taken for" in capsys.readouterr().out


def test_two_columns_that_lead_to_one_file_are_refused(kernel, tmp_path):
    draw(tmp_path / "1.png", np.zeros((4, 4, 3), np.uint8))
    csv = table(tmp_path, "image_path,alpha_path\nC:/a/images/1.png,C:/a/alphas/1.png\n")
    with pytest.raises(kernel.UserError, match="lead to the same file"):
        kernel.read_pairs(csv)


def test_an_index_of_magick_names_cut_outs(kernel, tmp_path):
    draw(tmp_path / "images" / "0a" / "0abc.png", np.zeros((4, 4, 4), np.uint8))
    csv = tmp_path / "index.tsv"
    csv.write_text("page_id\tsubject\n0abc\ta cat, sitting\n1def\ta dog\n")
    pairs = kernel.read_pairs(csv)
    assert pairs[0] == (str(tmp_path / "images/0a/0abc.png"), "")
    assert pairs[1] == (str(tmp_path / "images/1d/1def.png"), "")


def test_repeated_rows_count_as_often(kernel, small_data, capsys):
    row = "images/train0.png,alphas/train0.png\n"
    csv = table(small_data.folder, "image_path,alpha_path\n" + 3 * row)
    assert len(kernel.read_pairs(csv)) == 3
    assert "2 rows come more than once" in capsys.readouterr().out


def test_rows_without_an_image_are_left_out_and_without_an_alpha_are_cut_outs(kernel, small_data):
    csv = table(small_data.folder, "image_path,alpha_path\n,alphas/train0.png\n"
                "nan,alphas/train0.png\nimages/train1.png,NaN\n")
    pairs = kernel.read_pairs(csv)
    assert len(pairs) == 1 and pairs[0][1] == ""


def test_a_split_is_by_image_and_does_not_depend_on_the_order(kernel, tmp_path):
    csv = write_pairs(tmp_path, 40, size=4)
    rows = pd.read_csv(csv)
    pd.concat([rows, rows]).sample(frac=1, random_state=1).to_csv(csv, index=False)
    train, val = kernel.split_off(kernel.read_pairs(csv))
    assert len(train) == 76 and len(val) == 4 and len(set(val.images)) == 2
    assert kernel.shared_images(train, val) == 0 and kernel.shared_images(train, train) == 38
    rows.iloc[::-1].to_csv(csv, index=False)
    assert set(kernel.split_off(kernel.read_pairs(csv))[1].images) == set(val.images)


def test_a_single_image_cannot_be_split(kernel, tmp_path):
    with pytest.raises(kernel.UserError, match="--val-csv"):
        kernel.split_off(kernel.read_pairs(write_pairs(tmp_path, 1, size=4)))


def test_magick_sized_csvs_open_quickly_and_without_an_object_a_row(kernel, tmp_path):
    """140,000 rows: two arrays, a few dozen bytes a row, nothing for workers to copy."""
    draw(tmp_path / "a.png", np.zeros((4, 4, 4), np.uint8))
    csv = tmp_path / "magick.csv"
    csv.write_text("image_path\na.png\n" + "".join(
        f"images/{i % 256:02x}/{i:032x}.png\n" for i in range(140_000)))
    pairs = kernel.read_pairs(csv)
    assert len(pairs) == 140_001
    assert pairs.images.dtype.kind == pairs.alphas.dtype.kind == "S"
    assert pairs.images.nbytes + pairs.alphas.nbytes < 40e6
    assert pairs[140_000][0].endswith(f"{139_999:032x}.png")
