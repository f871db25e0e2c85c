"""Which files of a folder are taken for images, and which row is whose."""

import os
import re
import unicodedata

import pytest
from PIL import Image

PHOTO = Image.effect_noise((30, 20), 60).convert("RGB")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def photo(path, kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.save(path, kind)
    return path


def relative(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_images_come_in_natural_order_and_nothing_else(kernel, tmp_path):
    for name in ("10.png", "2.png", "1.jpg", "a.b.PNG", "a2.png", "a10.png", "notes.txt",
                 ".hidden.png"):
        touch(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in kernel.list_images(tmp_path)]
    assert names == ["1.jpg", "2.png", "10.png", "a2.png", "a10.png", "a.b.PNG"]
    assert [path.stem for path in kernel.list_images(tmp_path, 1)] == ["1"]


def test_an_empty_folder_and_two_files_of_one_name_are_refused(kernel, tmp_path):
    with pytest.raises(kernel.UserError, match="no image"):
        kernel.list_images(tmp_path)
    touch(tmp_path / "1.png")
    touch(tmp_path / "1.jpg")
    with pytest.raises(kernel.UserError, match="1.jpg and 1.png are two images of one name"):
        kernel.list_images(tmp_path)


def sample(folder, *names):
    path = folder / "sample_submission.csv"
    path.write_text("filename,image_utf\n" + "".join(f"{name},x\n" for name in names))
    return path


def test_a_sample_submission_decides_names_and_order(kernel, small_data, capsys):
    csv = sample(small_data.folder, "a.b", "2.png", "007")
    tests = kernel.list_tests(small_data.test, csv)
    assert tests == [("a.b", small_data.test / "a.b.png"), ("2.png", small_data.test / "2.png"),
                     ("007", None)]
    said = capsys.readouterr().out
    assert "1 test images are in the sample submission but fit no single image" in said
    assert "007" in said and "left out: 10.png" in said
    assert len(kernel.list_tests(small_data.test, csv, 2)) == 2


@pytest.mark.parametrize("names, says", [
    (["x", "y"], "names no image of"), (["2", "2"], "names '2' twice")])
def test_a_sample_submission_of_something_else_is_refused(kernel, small_data, names, says):
    with pytest.raises(kernel.UserError, match=says):
        kernel.list_tests(small_data.test, sample(small_data.folder, *names))


@pytest.mark.parametrize("name, content, says", [
    ("IMG_2.HEIC", HEIC, "HEIC; .*pillow-heif"), ("a.heif", HEIC, "HEIC; .*pillow-heif"),
    ("a.pdf", b"%PDF-1.4\n", "a PDF document"), ("a.svg", b"<svg/>", "an SVG drawing"),
    ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript drawing"),
    ("a.mp4", b"\0\0\0\x20ftypisom\0\0", "a film"), ("a.mpg", b"\0\0\1\xba" + bytes(99), "a film"),
    ("a.txt", b"a cat", "not an image"), ("empty", b"", "an empty file"),
    ("a.zip", b"PK\3\4", "a zip archive"), ("a.h5", b"\x89HDF\r\n\x1a\n", "not an image"),
    ("a.grib", b"GRIB\0\0\0\1", "not an image"), ("a.npy", b"\x93NUMPY\1\0", "not an image"),
])
def test_what_is_no_image_is_counted_and_named(kernel, tmp_path, capsys, name, content, says):
    photo(tmp_path / "1.jpg")
    (tmp_path / name).write_bytes(content)
    for listing in (kernel.list_images, kernel.list_backdrops,
                    lambda _: [test.path for test in kernel.list_pictures([tmp_path], tmp_path)]):
        assert listing(tmp_path) == [tmp_path / "1.jpg"]
        said = capsys.readouterr().out
        assert re.search(rf"{tmp_path}: 1 left out: {name} \({says}", said)


@pytest.mark.parametrize("name, kind", [
    ("no suffix", "JPEG"), ("a.jpg_large", "JPEG"), ("a.jpg!d", "JPEG"), ("a.php?id=3", "PNG"),
    ("a.jfif", "JPEG"), ("a.PNG", "PNG"), ("a.dat", "WEBP"), ("a.v2", "TIFF"), ("wrong.gif", "PNG"),
    ("a.txt", "BMP")])
def test_an_image_is_known_by_its_content(kernel, tmp_path, capsys, name, kind):
    photo(tmp_path / name, kind)
    assert kernel.list_images(tmp_path) == [tmp_path / name] and not capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"x", HEIC, b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_image_is_one_by_its_suffix(kernel, tmp_path, content):
    """So that it keeps its row, and is named with the reason."""
    (tmp_path / "1.png").write_bytes(content)
    assert kernel.list_images(tmp_path) == [tmp_path / "1.png"]


@pytest.mark.parametrize("name", [
    "Thumbs.db", ".DS_Store", "desktop.ini", "._1.jpg", ".hidden/2.jpg", "__MACOSX/._1.jpg",
    "__MACOSX/2.jpg", "@eaDir/2.jpg", "Icon\r"])
def test_what_a_system_leaves_is_passed_over_in_silence(kernel, tmp_path, capsys, name):
    photo(tmp_path / "1.jpg")
    photo(tmp_path / name)
    assert kernel.list_images(tmp_path) == kernel.list_backdrops(tmp_path) == [tmp_path / "1.jpg"]
    assert not capsys.readouterr().out


def test_linked_folders_are_followed_once(kernel, tmp_path):
    folder = tmp_path / "photos"
    photo(folder / "1.jpg")
    photo(folder / "sub" / "2.jpg")
    photo(tmp_path / "more" / "3.jpg")
    (folder / "a link").symlink_to("../more")
    (folder / "a second").symlink_to("../more")
    (folder / "again").symlink_to("sub")  # and the folder itself comes first
    (folder / "sub" / "loop").symlink_to("..")
    (tmp_path / "more" / "back").symlink_to(folder)
    assert relative(kernel.list_backdrops(folder), folder) == ["1.jpg", "a link/3.jpg", "sub/2.jpg"]
    assert [test.name for test in kernel.list_pictures([folder], tmp_path)] == [
        "1", "a link/3", "sub/2"]


def test_what_cannot_be_opened_is_named(kernel, tmp_path, capsys):
    photo(tmp_path / "1.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert kernel.list_images(tmp_path) == [tmp_path / "1.jpg"]
    said = capsys.readouterr().out
    assert "gone.jpg (a link to nowhere)" in said and "pipe.jpg (not a file)" in said


@pytest.mark.parametrize("inner", ["orig_1024", "images", "a/b/c"])
def test_a_folder_with_nothing_but_a_folder_of_images_means_that(kernel, tmp_path, capsys, inner):
    first = photo(tmp_path / inner / "1.jpg")
    touch(tmp_path / "__MACOSX" / "1.jpg")
    (tmp_path / "licences").mkdir()
    assert kernel.list_tests(tmp_path) == [("1", first)]
    csv = sample(tmp_path, "1")
    assert kernel.list_tests(tmp_path, csv) == [("1", first)]
    assert "its images are in" in capsys.readouterr().out
    photo(tmp_path / "other" / "2.jpg")
    with pytest.raises(kernel.UserError, match="no image in this folder; .*other in it hold some"):
        kernel.list_tests(tmp_path)


def test_images_beside_folders_of_images_are_taken_alone(kernel, tmp_path, capsys):
    photo(tmp_path / "1.jpg")
    photo(tmp_path / "more" / "2.jpg")
    assert [test.name for test in kernel.list_tests(tmp_path)] == ["1"]
    assert "1 left out: more (a folder" in capsys.readouterr().out


def test_backdrops_may_lie_in_folders_and_share_their_names(kernel, tmp_path):
    for name in ("1.jpg", "1.png", "a/1.jpg", "b/c/1.jpg", "0001.webp"):
        photo(tmp_path / name, "PNG")
    assert relative(kernel.list_backdrops(tmp_path), tmp_path) == [
        "1.jpg", "1.png", "0001.webp", "a/1.jpg", "b/c/1.jpg"]
    (tmp_path / "none").mkdir()
    with pytest.raises(kernel.UserError, match="there is no image"):
        kernel.list_backdrops(tmp_path / "none")


def test_pictures_keep_their_suffix_where_two_have_one_name(kernel, tmp_path):
    for name in ("a/x.jpg", "a/x.png", "a/y.jpg", "b/x.jpg"):
        photo(tmp_path / name, "PNG")

    def names(*places):
        return [test.name for test in kernel.list_pictures(
            [tmp_path / place for place in places], tmp_path / "out")]

    assert names("a") == ["x.jpg", "x.png", "y"]
    assert names("a/x.jpg", "a/x.jpg") == ["x"]
    assert names("a", "b") == ["a/x.jpg", "a/x.png", "a/y", "b/x"]
    assert names("b/x.jpg", "a/x.jpg", "b/../a", "a/y.jpg") == ["b/x", "a/x.jpg", "a/x.png", "a/y"]
    for name in ("c/1.jpg", "c/1.webp", "c/1.jpg.webp", "c/1"):
        photo(tmp_path / name)
    assert names("c") == ["1", "1.jpg", "1.jpg.webp", "1.webp"]


def test_results_are_left_out_wherever_they_lie(kernel, tmp_path, capsys):
    """By the place of this run's, also when their owner has changed them; by what is in others."""
    photo(tmp_path / "1.jpg")
    photo(tmp_path / "outputs" / "cutouts" / "1.png")
    kernel.save_result(PHOTO, tmp_path / "older" / "masks" / "1.png")
    photo(tmp_path / "older" / "mine.png")
    tests = kernel.list_pictures([tmp_path], tmp_path / "outputs")
    assert [test.name for test in tests] == ["1", "older/mine"]
    assert "2 left out: older/masks/1.png, outputs/cutouts/1.png (results of an" in (
        capsys.readouterr().out)
    kernel.list_pictures([tmp_path / "older" / "masks" / "1.png"], tmp_path / "out")  # by its name
    with pytest.raises(kernel.UserError, match="cutouts/1.png: would be replaced by a result"):
        kernel.list_pictures([tmp_path / "outputs" / "cutouts" / "1.png"], tmp_path / "outputs")


def test_a_link_to_itself_is_left_out(kernel, tmp_path, capsys):
    photo(tmp_path / "1.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "loop").symlink_to("loop")
    assert kernel.list_images(tmp_path) == kernel.list_backdrops(tmp_path) == [tmp_path / "1.jpg"]
    assert "2 left out: loop, loop.jpg (a link to nowhere)" in capsys.readouterr().out
    (tmp_path / "train.csv").write_text("image_path\n")
    assert kernel.discover(tmp_path)["train_csv"] == [tmp_path / "train.csv"]
    (tmp_path / "none").mkdir()
    tests = kernel.list_pictures(
        [tmp_path / name for name in ("loop.jpg", "1.jpg", "none")], tmp_path / "out")
    assert tests == [("1", tmp_path / "1.jpg"), (str(tmp_path / "loop.jpg"), None)]
    assert "none: there is no picture" in capsys.readouterr().out
    with pytest.raises(kernel.UserError, match="loop.jpg: there is no such picture"):
        kernel.list_pictures([tmp_path / "loop.jpg"], tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="names have no other encoding there")
def test_a_name_in_another_encoding_has_a_printable_row(kernel, tmp_path):
    path = tmp_path / os.fsdecode("кот.jpg".encode("cp1251"))
    photo(path)
    for tests in (kernel.list_tests(tmp_path), kernel.list_pictures([tmp_path], tmp_path / "out")):
        assert tests == [(r"\xea\xee\xf2", path)]


DECOMPOSED = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize("files, rows, expected", [
    ([DECOMPOSED + ".png", "cat.png"], ["café", "cat"], [0, 1]),
    ([DECOMPOSED + ".png"], ["café.png"], [0]), (["café.png"], [DECOMPOSED], [0]),
    (["1.png", "2.png"], ["0001", "0002"], [0, 1]), (["0001.png", "0010.png"], ["10", "1"], [1, 0]),
    (["img_01.png"], ["img_1"], [0]), (["1.png"], ["orig_1024/1.png"], [0]),
    (["1.png"], [r"orig_1024\1.png"], [0]), (["1.png", "2.png"], ["a/2", "a/1"], [1, 0]),
    (["1.jpg"], ["1.png"], [0]), (["Cat.JPG"], ["cat.jpg"], [0]), (["7.png"], ["7.0"], [0]),
    (["a.b.png", "a.png"], ["a", "a.b"], [1, 0]), (["a.b.png", "c.png"], ["a.jpg", "c"], [None, 1]),
    (["1.png", "01.png"], ["001", "1"], [1, 0]), (["1.png", "01.png", "c.png"], ["001", "c"],
                                                   [None, 2]),
    (["1.png", "c.png"], ["01", "001", "c"], [None, None, 1]),
    (["1.png", "c.png"], ["a/1", "b/1", "c"], [None, None, 1]),
    (["1", "1.png"], ["1", "1.png"], [0, 1]), (["1.jpg", "1.png"], ["1.png"], [1]),
    ([DECOMPOSED + ".png", "café.png"], ["café", DECOMPOSED], [1, 0]),
])
def test_rows_find_their_images_where_only_one_is_meant(
        kernel, tmp_path, files, rows, expected):
    paths = [photo(tmp_path / "orig_1024" / name, "PNG") for name in files]
    if len(set(os.listdir(tmp_path / "orig_1024"))) < len(files):
        pytest.skip("names that look the same are the same on this disk")
    csv = sample(tmp_path, *rows)
    assert kernel.list_tests(tmp_path / "orig_1024", csv) == [
        (row, None if index is None else paths[index]) for row, index in zip(rows, expected)]


def test_a_row_that_two_files_fit_is_refused(kernel, tmp_path):
    for name in ("1.jpg", "1.png"):
        photo(tmp_path / "orig_1024" / name)
    with pytest.raises(kernel.UserError, match="1.jpg and 1.png are two images of one name"):
        kernel.list_tests(tmp_path / "orig_1024", sample(tmp_path, "1"))
