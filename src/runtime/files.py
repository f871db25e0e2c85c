"""Results that are never half written: a temporary name first, then moved into place."""

import hashlib
import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np


@contextmanager
def replacing(path):
    """Yields a temporary path beside `path`, and moves the file written there into place.

    When the block raises, the temporary file goes and an older `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, however long the name is, and another one in each process and thread.
    part = path.with_name(f"{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename == str(part):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def entry_kind(entry):
    """"folder", "file", or "" for any other thing that an entry of os.scandir leads to, as a link
    to nowhere or to itself"""
    with suppress(OSError):
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    return ""


def digest(arrays):
    """A short text that tells one sequence of arrays from another."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()[:12]
