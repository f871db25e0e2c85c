"""What is said reaches any console, whatever is in a file's name."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from src.runtime.console import UserError, log, printable

NAME = os.fsdecode("кот.png".encode("cp1251")) if os.name != "nt" else "\udcea\udcee\udcf2.png"
SAY = f"""
import sys
from src.runtime.console import UserError, accept_any_letter, log, progress
accept_any_letter()
log({NAME!r} + " йогурт")
print({NAME!r}, file=sys.stderr)
for _ in progress(range(2), "read"):
    log("…")
raise UserError({NAME!r} + " йогурт")
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp1251", "utf-8", "latin-1"])
def test_a_log_is_printed_on_any_console(encoding):
    done = subprocess.run([sys.executable, "-c", SAY], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert r"\xea\xee\xf2.png ".encode() in done.stdout
    assert done.stderr.splitlines()[-1].startswith(rb"src.runtime.console.UserError: \xea\xee\xf2")
    assert b"UnicodeEncodeError" not in done.stderr and len(done.stdout.splitlines()) == 3
    if encoding in ("cp1251", "utf-8"):
        assert "йогурт".encode(encoding) in done.stdout


def test_a_run_without_a_console_works():
    """`2>&- >&-`, and Windows' pythonw"""
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" 2>&- >&-', sys.executable, SAY.replace(
        "raise UserError", "sys.exit(7) or UserError")], cwd=ROOT)
    assert done.returncode == 7


def test_only_what_no_file_can_hold_is_replaced(capsys):
    assert printable(NAME) == r"\xea\xee\xf2.png"
    assert printable("йогурт 🐈 \\xea") == "йогурт 🐈 \\xea"
    assert str(UserError(f"{NAME}: is no image")) == r"\xea\xee\xf2.png: is no image"
    log(NAME)
    assert capsys.readouterr().out == "\\xea\\xee\\xf2.png\n"
