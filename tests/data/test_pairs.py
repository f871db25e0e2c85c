"""Which rows of which table become pairs, and where their files are found."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import draw, set_module, write_pairs


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
    (b"image_path,alpha_path\na,b,c,d\na\n", "has 4 values for its 2 columns"),
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
    ("image_path,alpha_path\n{a},{b},\n", "utf-8"),
    ("sep=;\r\nimage_path ; alpha_path\r\n{a} ; {b}\r\n", "utf-16"),
    ('"image_path"\t"alpha_path"\n"1"\t"{a}"\t"{b}"\n', "utf-8"),
    ("image_path,mask_path\n{a},{b}\n", "utf-8"), ("image_path,Mask\n{a},{b}\n", "utf-8"),
    ("alpha;image_path\n{b};{a}\n", "utf-8"), ("mask,alpha_path,image_path\n1,{b},{a}\n", "utf-8"),
])
def test_dialects(kernel, small_data, text, encoding):
    csv = table(small_data.folder, text.format(a="images/train0.png", b="alphas/train0.png"),
                encoding)
    pairs = kernel.read_pairs(csv)
    assert len(pairs) == 1 and all(map(os.path.isfile, pairs[0]))
    assert [os.path.basename(os.path.dirname(path)) for path in pairs[0]] == ["images", "alphas"]


@pytest.mark.parametrize("path", [r"{}\{}", r".\{}\{}", "./{}/{}", r"{}//{}", r"data\{}\{}"])
def test_paths_of_windows_are_relative_too(kernel, small_data, path):
    rows = ",".join(path.format(folder, "train0.png") for folder in ("images", "alphas"))
    pairs = kernel.read_pairs(table(small_data.folder, f"image_path,alpha_path\r\n{rows}\r\n"))
    assert all(map(os.path.isfile, pairs[0]))


@pytest.mark.skipif(os.sep == "\\", reason="there it separates")
def test_a_backslash_in_a_name_is_taken_to_the_letter_first(kernel, tmp_path):
    for name in ("a\\1.png", "a/1.png"):
        draw(tmp_path / name, np.zeros((4, 4, 4), np.uint8))
    assert kernel.read_pairs(table(tmp_path, "image_path\na\\1.png\n"))[0][0].endswith("a\\1.png")


def test_a_column_mask_without_file_names_is_none_of_alphas(kernel, small_data):
    csv = table(small_data.folder, "image_path,mask\nimages/train0.png,0.5\n")
    assert kernel.read_pairs(csv)[0][1] == ""


@pytest.mark.parametrize("levels, says", [
    ([0, 0, 0], "all 3 alphas .* are empty: .* 255 for the subject"),
    ([255, 255, 255], "WARNING: all 3 alphas .* are full"),
    ([3, 0, 90], "WARNING: all 3 alphas .* have no level above 90 of 255"),
    ([2, 255, 0], "WARNING: 1 of 3 alphas .* have no level above 31 of 255"),
    ([0, 255, 0], ""), ([255, 255, 128], ""), ([130, 0, 0], ""),
])
@pytest.mark.parametrize("are_cutouts", [False, True])
def test_alphas_that_teach_nothing_are_noticed(
        kernel, tmp_path, capsys, levels, says, are_cutouts):
    for number, level in enumerate(levels):
        alpha = np.full((4, 4), level, np.uint8)
        alpha[0] = min(level, 3)
        alpha[0, 0] = level if level == 255 and 0 not in levels else alpha[0, 0]
        if "full" in says or not level:
            alpha[:] = level
        draw(tmp_path / f"{number}.png", np.stack([alpha // 2] * 3 + [alpha], axis=-1))
        draw(tmp_path / f"{number}_a.png", alpha)
    row = "{0}.png\n" if are_cutouts else "{0}.png,{0}_a.png\n"
    pairs = kernel.read_pairs(table(
        tmp_path, "image_path" + ",alpha_path" * (not are_cutouts) + "\n" + "".join(
            row.format(number) for number in range(len(levels)))))
    if "empty" in says:
        with pytest.raises(kernel.UserError, match=says):
            kernel.check_alphas(pairs)
    else:
        kernel.check_alphas(pairs)
        said = capsys.readouterr().out
        assert re.search(says, said) if says else "WARNING" not in said


def test_alphas_are_looked_at_all_over_the_table_and_unreadable_ones_passed_over(
        kernel, tmp_path, capsys):
    csv = write_pairs(tmp_path, 100, size=4)
    for number in range(99):
        draw(tmp_path / "alphas" / f"train{number}.png", np.zeros((4, 4), np.uint8))
    draw(tmp_path / "alphas" / "train99.png", np.full((4, 4), 255, np.uint8))
    (tmp_path / "alphas" / "train0.png").write_bytes(b"x")
    kernel.check_alphas(kernel.read_pairs(csv))
    with pytest.raises(kernel.UserError, match="all 31 alphas"):
        kernel.check_alphas(kernel.read_pairs(csv, 99))
    assert "WARNING" not in capsys.readouterr().out


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
    assert "2 duplicate rows (kept)" in capsys.readouterr().out


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


def test_a_csv_may_lie_in_another_data_set_than_its_images(kernel, tmp_path, monkeypatch):
    """/kaggle/input/datasets/me/splits and /kaggle/input/datasets/author/magick"""
    images = write_pairs(tmp_path / "datasets" / "author" / "magick", 2, size=8)
    csv = tmp_path / "datasets" / "me" / "splits" / "train.csv"
    csv.parent.mkdir(parents=True)
    images.rename(csv)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kernel.UserError, match="image_path: images/train0.png is neither"):
        kernel.read_pairs(csv)
    roots = kernel.mounted_folders(tmp_path)
    pairs = kernel.read_pairs(csv, roots=roots)
    assert all(os.path.isfile(path) for path in pairs[1])


def test_validation_looks_at_the_same_few_hundred(kernel, tmp_path, monkeypatch, capsys):
    set_module(kernel, monkeypatch, "MOST_HELD_OUT", 5)
    csv = write_pairs(tmp_path, 12, size=8)
    inputs = SimpleNamespace(train_csv=None, val_csv=csv, backgrounds=None, kaggle_input=None,
                             out=tmp_path / "out")
    settings = kernel.Settings(cache=Path("off"))
    chosen = kernel.find_splits(inputs, settings, False).val
    assert len(chosen) == 5 and "5 of 12 validation rows" in capsys.readouterr().out
    header, *rows = csv.read_text().splitlines()
    csv.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert set(kernel.find_splits(inputs, settings, False).val.images) == set(chosen.images)


@pytest.mark.parametrize("with_photographs", [True, False])
def test_cut_outs_without_a_photograph_are_warned_of(
        kernel, tmp_path, capsys, with_photographs):
    disc = Image.new("RGBA", (16, 16), (200, 20, 20, 0))
    disc.paste((200, 20, 20, 255), (4, 4, 12, 12))
    for number in range(4):
        disc.save(tmp_path / f"{number}.png")
    csv = tmp_path / "train.csv"
    csv.write_text("image_path\n0.png\n1.png\n2.png\n3.png\n")
    (tmp_path / "photographs").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photographs" / "a.jpg")
    inputs = SimpleNamespace(
        train_csv=csv, val_csv=None, kaggle_input=None, out=tmp_path / "out",
        backgrounds=tmp_path / "photographs" if with_photographs else None)
    splits = kernel.find_splits(inputs, kernel.Settings(cache=Path("off")), True)
    assert len(splits.train.photographs) == with_photographs
    assert ("on painted backdrops only" in capsys.readouterr().out) is not with_photographs


def test_a_folder_without_backdrops_costs_no_prediction(kernel, tmp_path):
    """As after a training that this very folder has ended."""
    (tmp_path / "backdrops").mkdir()
    inputs = SimpleNamespace(train_csv=None, val_csv=None, kaggle_input=None,
                             out=tmp_path / "out", backgrounds=tmp_path / "backdrops")
    settings = kernel.Settings(cache=Path("off"))
    assert kernel.find_splits(inputs, settings, False) == (None, None)
