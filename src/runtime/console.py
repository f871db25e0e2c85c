"""What the user reads: log lines, progress bars, and errors that are one sentence."""

import os
import sys

from tqdm import tqdm

from src.runtime.processes import rank


class UserError(Exception):
    """Bad input or an impossible request.

    Its text is one sentence that names the file, the column or the flag, and the way out.
    """


def log(text=""):
    """Print a line without tearing a progress bar apart, at once even into a pipe; rank 0 only.

    Where the pipe's reader has gone (`| head`), the work goes on in silence.
    """
    if rank() == 0:
        try:
            tqdm.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class WholeLines:
    """A text stream for a log file: what tqdm overwrites on a terminal becomes whole lines."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self):
        self.stream.flush()


def progress(iterable, title, done=0, unit="batch"):
    """The iterable behind a progress bar; in a log file it is one line per minute.

    done: items that an earlier run has already processed.
    """
    bar = dict(desc=title, initial=done, total=done + len(iterable), unit=unit, disable=rank() > 0)
    if sys.stderr.isatty():
        return tqdm(iterable, leave=False, dynamic_ncols=True, **bar)
    return tqdm(iterable, file=WholeLines(sys.stderr), ascii=True, ncols=80, mininterval=60,
                maxinterval=60, delay=60, **bar)
