"""Tables: what a row of a stranger's means; written whole or not at all."""

import pandas as pd
import pytest

from src.runtime.console import UserError
from src.runtime.tables import read_table, write_table

ROWS = [["a 1.png", "b.png"], ["ж,.png", ""]]


@pytest.mark.parametrize("text, encoding", [
    ("image,alpha\na 1.png,b.png\n\"ж,.png\",\n", "utf-8"),
    ("image,alpha\r\na 1.png,b.png\r\n\"ж,.png\",\r\n", "utf-8-sig"),
    ("image,alpha\ra 1.png,b.png\r\"ж,.png\",\r", "utf-8"),
    ("image\talpha\r\na 1.png\tb.png\r\nж,.png\t\r\n", "utf-16"),
    ("sep=;\nimage;alpha\na 1.png;b.png\nж,.png;\n", "utf-8"),
    ('"sep=;"\r\n"image";"alpha"\r\n"a 1.png";"b.png"\r\n"ж,.png";""\r\n', "utf-8-sig"),
    ("sep=,\nimage,alpha\na 1.png,b.png\n\"ж,.png\",\n", "utf-8"),
    ("\n\n image | alpha \n\n a 1.png | b.png \n\n ж,.png | \n\n", "utf-8"),
    ('"image", "alpha"\n"a 1.png", "b.png"\n"ж,.png", ""\n', "utf-8"),
    ("image;alpha\na 1.png;b.png;\nж,.png;;\n", "utf-8"),  # separators at the end of the rows,
    ("image;alpha;;\na 1.png;b.png;;\nж,.png;;;\n", "utf-8"),  # of all lines
    ("image;alpha;\na 1.png;b.png\nж,.png\n", "utf-8"),  # of the header alone
    ('"image";"alpha"\n"1";"a 1.png";"b.png"\n"2";"ж,.png";\n', "utf-8"),  # R
    ("image\talpha\ncat\ta 1.png\tb.png\ndog\tж,.png\t\n", "utf-8"),
    ("image;alpha\na 1.png;b.png\nж,.png", "utf-8"),
])
def test_a_row_means_the_columns_that_the_header_names(tmp_path, text, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    table = read_table(path)
    assert list(table.columns) == ["image", "alpha"] and table.to_numpy().tolist() == ROWS
    assert read_table(path, 1).to_numpy().tolist() == ROWS[:1]


@pytest.mark.parametrize("text", [
    "image\na.png\nb.png\n", "image\na.png,\nb.png,\n", "image\na.png;\nb.png;\n",
    "image\r\na.png\t\r\nb.png\t\r\n", "image,\na.png\nb.png\n", "image\n1,a.png\n2,b.png\n"])
def test_a_table_of_one_column(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"image": ["a.png", "b.png"]}


def test_columns_without_and_with_the_same_name(tmp_path):
    (tmp_path / "t.csv").write_text(",image,x,x\n0,a.png,1,2\n1,nan,3,4\n")
    assert read_table(tmp_path / "t.csv").to_dict("list") == {
        "": ["0", "1"], "image": ["a.png", "nan"], "x": ["1", "3"], "x.3": ["2", "4"]}


@pytest.mark.parametrize("content, says", [
    (b"", "is empty"), (b"\r\n\r\n", "is empty"), (b"\xff\xfea", "not UTF-8"),
    ("image,alpha\nж.png,b\n".encode("cp1251"), "not UTF-8 text; save it as a CSV in UTF-8"),
    (b"image,alpha\nmy, photo.png,b.png\n",
     "has 3 values for its 2 columns in the row 'my,photo.png,b.png'; put quotes"),
    (b"image,alpha\n1,a.png,b.png\n1,c.png,d.png\n", "put quotes"),  # no row names: the same twice
])
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content, says):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"t.csv: .*{says}"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("rows", ['"b,c.png\nd.png,e.png\n', 'd.png,"e.png', '"b.png\n\n\n'])
def test_a_quote_that_is_not_closed_is_named_with_what_follows(tmp_path, rows):
    """It would swallow the rest of the table."""
    (tmp_path / "t.csv").write_text("image,alpha\na.png,b.png\n" + rows)
    with pytest.raises(UserError, match="t.csv: a quote before '[be].*' is never closed"):
        read_table(tmp_path / "t.csv")


def test_a_name_in_another_encoding_is_written(tmp_path):
    write_table(tmp_path / "t.csv", [("\udcea.png", "no image", 1)], ["name", "reason", "count"])
    assert (tmp_path / "t.csv").read_text() == "name,reason,count\n\\xea.png,no image,1\n"


def test_a_full_disk_leaves_the_older_table(tmp_path, monkeypatch):
    """And a run without rows leaves none that an earlier one wrote."""
    path = tmp_path / "metrics.csv"
    write_table(path, [{"epoch": 1}])

    def full(table, part, **options):
        part.write_text("epo")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError):
            write_table(path, [{"epoch": 1}, {"epoch": 2}])
    assert path.read_text() == "epoch\n1\n"
    assert list(tmp_path.iterdir()) == [path]
    write_table(path, [])
    assert not path.exists()
