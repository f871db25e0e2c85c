"""Text tables: read as strangers write them, written whole or not at all."""

import codecs
import csv
import io
import re
from difflib import get_close_matches
from itertools import chain, islice

from src.runtime.console import UserError, printable
from src.runtime.files import replacing

SEPARATORS = ",;\t|"
ROWS_TO_COMPARE = 20  # at least, which tell row names from values
END = "\ue000"  # a last line, which a quote that is not closed swallows
csv.field_size_limit(2**31 - 1)  # a mask is one field


def read_table(csv_path, limit=None):
    """The first `limit` rows of a table, a DataFrame of text without spaces around it, '' for what
    is missing. A row means the columns that the header names.

    Text: UTF-8 or UTF-16, with any line ends. The separator is a comma, a semicolon, a tab or a
    bar; a first line `sep=;` names it. A separator at the end of each row, and row names without a
    name of their own, as R writes them, are no columns. Raises UserError, naming the file and the
    row, for a table that cannot be read.
    """
    try:
        with open_text(csv_path) as file:
            rows, header = parsed(file, limit, csv_path)
    except UnicodeError:
        raise UserError(f"{csv_path}: is not UTF-8 text; save it as a CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{csv_path}: cannot be read as a table ({error})") from None
    import pandas as pd  # 0.4 s, which a photo need not wait for
    return pd.DataFrame(rows, columns=header, dtype=str)


def open_text(path, errors="strict"):
    """A text file in UTF-8, or in UTF-16 if it begins with that byte order mark; its line ends are
    kept."""
    with open(path, "rb") as file:
        start = file.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return open(path, encoding=encoding, errors=errors, newline="")


def parsed(file, limit, csv_path):
    """(rows, header) of an open table, lists of text; see read_table."""
    header, separator = read_header(file)
    if not header:
        raise UserError(f"{csv_path}: is empty")
    lines = csv.reader(chain(file, [END]), delimiter=separator, skipinitialspace=True)
    rows = [[value.strip() for value in row] for row in islice(
        filter(any, lines), limit and max(limit, ROWS_TO_COMPARE))]
    if rows and END in rows[-1][-1] and rows[-1] != [END]:
        start = rows[-1][-1].split("\n")[0]
        raise UserError(f"{csv_path}: a quote before {start[:80]!r} is never closed")
    rows = [row for row in rows if row != [END]]
    width, most = len(header), max(map(len, rows), default=0)
    if width == 1:  # then it names no separator
        rows = [[row[0].rstrip(SEPARATORS), *row[1:]] for row in rows]
    if most > width and not any(map(any, (row[width:] for row in rows))):
        most = width  # separators at the end
    if most == width + 1 and are_row_names([row[0] for row in rows if len(row) == most]) and (
            {len(row) for row in rows} == {most}):
        rows, most = [row[1:] for row in rows], width
    if most > width:
        longest = next(row for row in rows if any(row[width:]))
        raise UserError(
            f"{csv_path}: has {len(longest)} values for its {width} columns in the row "
            f"{separator.join(longest)[:80]!r}; put quotes around a value that holds a "
            f"{separator!r}")
    return [(row + [""] * width)[:width] for row in rows[:limit]], header


def read_header(file):
    """(the names of the columns, the separator) of an open table, whose rows follow."""
    line = next((line for line in file if line.strip()), "")
    named = re.fullmatch(r'"?sep=(.)"?[,;\t|]*', line.strip("\r\n "))
    if named:
        line = next((line for line in file if line.strip()), "")
    separator = named[1] if named else max(SEPARATORS, key=line.count)
    names = next(csv.reader(io.StringIO(line), delimiter=separator, skipinitialspace=True), [])
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    return [f"{name}.{number}" if name in names[:number] else name
            for number, name in enumerate(names)], separator


def are_row_names(values):
    """Whether values before the first column are R's row names: numbers, or several words that are
    all different, and no paths."""
    return len(set(values)) == len(values) and (
        all(map(str.isdecimal, values)) or
        len(values) > 1 and not any(re.search(r"[/\\.]", value) for value in values))


def near_name(wanted, columns):
    """The column that was probably meant, None when there is none."""
    shapes = {re.sub(r"[^a-z]", "", str(column).lower()): column for column in columns}
    matches = get_close_matches(re.sub(r"[^a-z]", "", wanted), shapes, 1)
    return shapes[matches[0]] if matches else None


def no_column(wanted, columns):
    """The end of an error message about a table that lacks a column."""
    near = near_name(wanted, columns)
    hint = f"; rename {near} to {wanted}" if near else ""
    return f"no column {wanted}; it has {', '.join(map(str, columns))}{hint}"


def write_table(path, rows, columns=None):
    """Write rows, tuples or dicts, as a CSV; without any, remove what an earlier run wrote."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    import pandas as pd
    table = pd.DataFrame(rows, columns=columns)
    with replacing(path) as part:
        table.map(lambda each: printable(each) if isinstance(each, str) else each).to_csv(
            part, index=False)
