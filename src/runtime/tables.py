"""Text tables: read as strangers write them, written whole or not at all."""

import re
from difflib import get_close_matches

import pandas as pd

from src.runtime.console import UserError
from src.runtime.files import replacing

SEPARATORS = ",;\t"


def read_table(csv_path, limit=None):
    """The first `limit` rows of a table, all text, '' for what is missing.

    The separator is a comma, a semicolon or a tab. Raises UserError, naming the file, for one that
    cannot be read.
    """
    try:
        with open(csv_path, encoding="utf-8-sig") as file:
            header = file.readline()
        table = pd.read_csv(csv_path, sep=max(SEPARATORS, key=header.count), nrows=limit, dtype=str,
                            encoding="utf-8-sig", keep_default_na=False, skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise UserError(f"{csv_path}: is empty") from None
    except UnicodeDecodeError:
        raise UserError(f"{csv_path}: is not UTF-8 text; save it as a CSV in UTF-8") from None
    except (OSError, ValueError) as error:  # pandas' ParserError is a ValueError
        raise UserError(f"{csv_path}: cannot be read as a table ({error})") from None
    missing = table.fillna("").isin(["nan", "NaN", "None"])
    return table.fillna("").mask(missing, "")


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
    with replacing(path) as part:
        pd.DataFrame(rows, columns=columns).to_csv(part, index=False)
