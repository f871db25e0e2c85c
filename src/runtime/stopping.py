"""When a run ends before its work does: the time limit, and signals."""

import math
import os
import signal
import time

from src.runtime.console import log

STARTED_VARIABLE = "MAGICK_ALPHA_STARTED"  # relaunched processes count from the first one's start
STARTED = float(os.environ.get(STARTED_VARIABLE, time.time()))


class Interrupted(Exception):
    """The user or the system asked the run to end; args: the signal's number, and whether the same
    command goes on from there."""


class StopWatch:
    """The time limit and the signals that end a run early.

    time_limit: hours from the start of the process, None for no limit. reserve: seconds that a
    validation image takes -> seconds to reserve for the work after training. saves: whether the
    run keeps what it has done.
    """

    def __init__(self, time_limit=None, reserve=lambda val_seconds: 0.0, saves=False):
        self.reserve, self.saves = reserve, saves
        self.deadline = math.inf if time_limit is None else STARTED + 3600 * time_limit
        self.signal = None

    def listen(self):
        """From now on SIGTERM and SIGINT are remembered; the second one ends the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.remember)

    def remember(self, number, frame):
        self.signal = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        last = "the step and saving" if self.saves else "the image at hand"
        log(f"{signal.Signals(number).name}: finishing {last}; again to end at once")

    def guarded(self, items):
        """The items, until a signal comes: then Interrupted."""
        for item in items:
            if self.signal is not None:
                raise Interrupted(self.signal, self.saves)
            yield item

    def seconds_for_training(self, val_seconds):
        return self.deadline - time.time() - self.reserve(val_seconds)
