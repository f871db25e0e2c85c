"""Scripts as processes of their own, forked from one that has imported torch already.

A start of the script costs four seconds of imports; here it costs none. What a user's own start
does is tested by test_main.py, with `subprocess`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "torchvision.transforms.functional", "pandas", "torch.distributed.run",
     "torch._dynamo", "PIL.ImageDraw", "tqdm"])
TESTS = str(Path(__file__).resolve().parent)


def as_script(script, arguments, cwd, environment, out, err):
    """Run a script in this process as `python script` would, its output in out and err."""
    for path, stream in ((out, 1), (err or out, 2)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    ours = (TESTS, os.path.dirname(TESTS))
    sys.path = [os.path.dirname(script), *filter(None, [environment.get("PYTHONPATH")]),
                *(path for path in sys.path if path and path not in ours)]
    sys.argv = [script, *arguments]
    multiprocessing.set_start_method(None, force=True)  # the system's own, not this server's
    runpy.run_path(script, run_name="__main__")


class Started:
    """A started script, in the terms of subprocess.Popen; its standard error goes where its output
    goes, to be read from `stdout` as it comes."""

    def __init__(self, script, *arguments, cwd, environment=None):
        self.folder = tempfile.TemporaryDirectory()
        fifo = os.path.join(self.folder.name, "output")
        os.mkfifo(fifo)
        self.process = begin(script, arguments, cwd, environment, fifo, None)
        self.stdout = open(fifo)

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def communicate(self, timeout=120):
        """(the rest of the output, None) once it has ended"""
        text = self.stdout.read()
        self.process.join(timeout)
        assert self.process.exitcode is not None, "still running"
        return text, None


def begin(script, arguments, cwd, environment, out, err):
    environment = environment or {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = SERVER.Process(target=as_script, args=(
        str(script), [str(each) for each in arguments], str(cwd), environment, out, err))
    process.start()
    return process


def run_forked(script, *arguments, cwd, environment=None, timeout=280):
    """The finished script, as a subprocess.CompletedProcess with its text."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (os.path.join(folder, name) for name in ("out", "err"))
        for path in (out, err):
            open(path, "w").close()
        process = begin(script, arguments, cwd, environment, out, err)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(str(script), timeout)
        return subprocess.CompletedProcess(
            [str(script), *arguments], process.exitcode, Path(out).read_text(),
            Path(err).read_text())
