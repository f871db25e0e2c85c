"""What the user reads: log lines, progress bars, and errors that are one sentence."""

import sys

from tqdm import tqdm


class UserError(Exception):
    """Bad input or an impossible request.

    Its text is one sentence that names the file, the column or the flag, and the way out.
    """


def log(text=""):
    """Print a line without tearing a progress bar apart, at once even into a pipe."""
    tqdm.write(text)
    sys.stdout.flush()


class WholeLines:
    """A text stream for a log file: what tqdm overwrites on a terminal becomes lines of their own."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self):
        self.stream.flush()


def progress(iterable, title, total=None):
    """The iterable behind a progress bar; in a log file it is a line a minute."""
    if sys.stderr.isatty():
        return tqdm(iterable, desc=title, total=total, leave=False, dynamic_ncols=True)
    return tqdm(iterable, desc=title, total=total, file=WholeLines(sys.stderr), ascii=True,
                ncols=80, mininterval=60, maxinterval=60, delay=60)
