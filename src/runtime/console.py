"""Log lines, progress bars, and errors of one sentence."""

import os
import re
import sys
from contextlib import suppress

from tqdm import tqdm

from src.runtime.processes import rank


def accept_any_letter():
    """Print letters that the console lacks as escapes, so that none ends the run."""
    sys.stdout, sys.stderr = (console or open(os.devnull, "w") for console in  # `2>&-`
                              (sys.stdout, sys.stderr))
    for console in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # a stand-in for a console may lack it
            console.reconfigure(errors="backslashreplace")


def printable(text):
    """The text with the bytes of a file name that are no UTF-8, which Python keeps as surrogates,
    as \\xNN: any file or console takes that."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", str(text))


class UserError(Exception):
    """Bad input or an impossible request.

    Its text is one sentence that names the file, the column or the flag, and the way out.
    """

    def __init__(self, sentence):
        super().__init__(printable(sentence))


def log(text=""):
    """Print a line without tearing a progress bar apart, at once even into a pipe; rank 0 only."""
    if rank() == 0:
        in_silence_without_reader(sys.stdout, tqdm.write, printable(text))
        in_silence_without_reader(sys.stdout, sys.stdout.flush)


def in_silence_without_reader(stream, write, *text):
    """write(*text); ignore a closed pipe (`| head`) and write nothing more to it."""
    try:
        write(*text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class WholeLines:
    """A text stream for a log file: what tqdm overwrites on a terminal becomes whole lines."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if text.strip():
            in_silence_without_reader(self.stream, self.stream.write, text.strip() + "\n")

    def flush(self):
        in_silence_without_reader(self.stream, self.stream.flush)


def progress(iterable, title, done=0, unit="batch"):
    """The iterable behind a progress bar; in a log file it is one line per minute.

    done: items that an earlier run has already processed.
    """
    bar = dict(desc=title, initial=done, total=done + len(iterable), unit=unit, disable=rank() > 0)
    if sys.stderr.isatty():
        return tqdm(iterable, leave=False, dynamic_ncols=True, **bar)
    return tqdm(iterable, file=WholeLines(sys.stderr), ascii=True, ncols=80, mininterval=60,
                maxinterval=60, delay=60, **bar)
