"""Kaggle, as far as it goes without an account: what the official client sends, and the run in a
place that looks like Kaggle's, without a network."""

import base64
import http.server
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import build
from conftest import ROOT, draw, load_bundle, set_module, write_pairs

# The client, with nothing changed but the address it takes for a local Kaggle.
CLIENT = """
import sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.LOCAL] = sys.argv.pop(1)
from kaggle.cli import main
sys.exit(main())
"""


@pytest.fixture
def kaggle_stub():
    """A server on the loopback that notes requests: .requests is [(path, body)], .port"""

    class Stub(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.path, body))
            answer, status = server.answers.get("/" + self.path.rsplit("/", 1)[-1], {}), 200
            if self.path.endswith("/GetDatasetStatus"):
                status = 404  # there is no such dataset yet
            if "Upload" in self.path and self.command == "POST":
                answer = {"token": "t", "createUrl": f"http://localhost:{server.port}/upload"}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_PUT = do_GET = do_POST

        def log_message(self, *details):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.requests, server.answers, server.port = [], {}, server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def repository(tmp_path):
    """A copy of what build.py and a push need, with the names filled in."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "kernel" / "weights", folder / "kernel" / "weights")
    shutil.copy(ROOT / "kernel-metadata.json", folder)
    assert build.main(["--username", "some-one", "--competition", "matting-2026"], folder) == 0
    return folder


def client(stub, repository, *arguments):
    pytest.importorskip("kaggle", reason="the official client is not installed")
    environment = {
        **os.environ, "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "some-one",
        "KAGGLE_KEY": "0", "KAGGLE_CONFIG_DIR": str(repository)}
    return subprocess.run(
        [sys.executable, "-c", CLIENT, f"http://localhost:{stub.port}", *arguments],
        cwd=repository, env=environment, capture_output=True, text=True, timeout=120)


def test_a_push_sends_the_bundle_and_the_settings(kaggle_stub, repository):
    done = client(kaggle_stub, repository, "kernels", "push", "-p", ".")
    assert done.returncode == 0 and "successfully pushed" in done.stdout, done.stdout + done.stderr
    (path, body), = kaggle_stub.requests
    sent = json.loads(body)
    assert path.endswith("/SaveKernel")
    assert sent.pop("text") == (ROOT / "kernel" / "main.py").read_text(encoding="utf-8")
    assert {key: value for key, value in sent.items() if value not in ([], None)} == {
        "slug": "some-one/magick-alpha", "newTitle": "MAGICK alpha", "language": "python",
        "kernelType": "script", "isPrivate": True, "enableGpu": True, "enableTpu": False,
        "enableInternet": False, "machineShape": "NvidiaTeslaT4",
        "datasetDataSources": ["some-one/magick-alpha-weights"],
        "competitionDataSources": ["matting-2026"]}


def test_the_weights_become_a_dataset(kaggle_stub, repository):
    folder = repository / "kernel" / "weights"
    done = client(kaggle_stub, repository, "datasets", "create", "-p", "kernel/weights",
                  "--dir-mode", "zip")
    assert done.returncode == 0, done.stdout + done.stderr
    files = {path.name: path.read_bytes() for path in folder.iterdir()
             if path.name != "dataset-metadata.json" and path.is_file()}
    started = [json.loads(body) for path, body in kaggle_stub.requests
               if path.endswith("UploadFile") or path.endswith("BlobUpload")]
    assert {each["name"] for each in started} == {*files, "backdrops.zip"} > {"u2netp_alpha.pth"}
    uploads = [body for path, body in kaggle_stub.requests if path == "/upload"]
    (zipped,) = [body for body in uploads if body not in files.values()]
    names = {path.name for path in (folder / "backdrops").iterdir()}
    assert set(zipfile.ZipFile(io.BytesIO(zipped)).namelist()) == names and len(names) == 26
    assert len(uploads) == len(files) + 1
    created = [json.loads(body) for path, body in kaggle_stub.requests
               if path.endswith("/CreateDataset")]
    assert created[-1]["ownerSlug"] == "some-one" and created[-1]["slug"] == "magick-alpha-weights"
    assert created[-1]["licenseName"] == "apache-2.0" and created[-1]["isPrivate"] is True


MANUAL = ROOT / "kernel" / "README.md"


def commands(document):
    """The command lines of Kaggle's client in a document, their words"""
    lines = (line.strip() for line in document.read_text("utf-8").splitlines())
    return [shlex.split(line) for line in lines if line.startswith("kaggle ")]


SERVICES = [  # of the manual's commands, in its order
    ("datasets create", "/CreateDataset"), ("datasets status", "/GetDatasetStatus"),
    ("datasets version", "/CreateDatasetVersion"), ("kernels push", "/SaveKernel"),
    ("kernels logs", "/kernels/logs/stream"), ("kernels status", "/GetKernelSessionStatus"),
    ("kernels output", "/ListKernelSessionOutput"),
    ("competitions submit", "/StartSubmissionUpload"),
    ("competitions submit", "/CreateCodeSubmission")]


def test_the_readmes_commands_are_the_manuals():
    short, full = commands(ROOT / "README.md"), commands(MANUAL)
    assert short and [words for words in full if words in short] == short


def test_the_manuals_commands_reach_kaggle(kaggle_stub, repository):
    """Each as it is typed, with the names filled in; the stub has no kernel to tell of, so only
    the request counts."""
    assert [" ".join(words[1:3]) for words in commands(MANUAL)] == [name for name, _ in SERVICES]
    shutil.copytree(ROOT / "kernel", repository / "kernel", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.json"))
    (repository / "kaggle-output").mkdir()
    (repository / "kaggle-output" / "submission.csv").write_text("filename,image_utf\n")
    for words, (_, service) in zip(commands(MANUAL), SERVICES):
        kaggle_stub.requests.clear()
        names = {"SLUG": "matting-2026", "VERSION": "1"}
        done = client(kaggle_stub, repository, *(
            names.get(word, word.replace("NAME/", "some-one/")) for word in words[1:]))
        assert "usage:" not in done.stderr, done.stderr
        paths = [path for path, _ in kaggle_stub.requests]
        assert any(service in path for path in paths), (words, paths, done.stdout, done.stderr)


@pytest.mark.parametrize("answer, says", [
    ({"versionNumber": 1, "url": "u"}, "Kernel version 1 successfully pushed"),
    ({"versionNumber": 1, "url": "u", "invalidDatasetSources": ["some-one/magick-alpha-weights"]},
     "The following are not valid dataset sources"),
    ({"error": "no"}, "Kernel push error")])
def test_a_push_reads_as_the_manual_says(kaggle_stub, repository, answer, says):
    kaggle_stub.answers["/SaveKernel"] = answer
    done = client(kaggle_stub, repository, "kernels", "push", "-p", ".")
    assert done.returncode == 0 and says in done.stdout, done.stdout + done.stderr
    assert says in " ".join(MANUAL.read_text("utf-8").split())


def test_placeholders_are_named_until_they_are_filled(tmp_path, repository, capsys):
    for name in ("kernel-metadata.json", "kernel/weights/dataset-metadata.json"):
        shutil.copy(ROOT / name, repository / name)
    assert build.main([], repository) == 0
    said = capsys.readouterr().out
    assert said.count("USERNAME is still to be filled in") == 2
    assert "COMPETITION is still to be filled in before a push: python build.py --comp" in said
    assert build.main(["--username", "me"], repository) == 0
    assert capsys.readouterr().out.count("still to be filled in") == 1
    assert build.main(["--competition", ""], repository) == 0
    assert capsys.readouterr().out == ""
    metadata = json.loads((repository / "kernel-metadata.json").read_text())
    assert (metadata["id"], metadata["competition_sources"]) == ("me/magick-alpha", [])
    assert build.main(["--username", "other"], repository) == 0
    assert json.loads((repository / "kernel-metadata.json").read_text())["dataset_sources"] == [
        "other/magick-alpha-weights"]
    with pytest.raises(SystemExit):
        build.main(["--username", "a/b"], repository)


def test_the_committed_metadata_is_what_kaggle_needs():
    metadata = json.loads((ROOT / "kernel-metadata.json").read_text())
    assert (ROOT / metadata["code_file"]).is_file()
    assert metadata["is_private"] and metadata["enable_gpu"] and not metadata["enable_internet"]
    dataset = json.loads((ROOT / "kernel/weights/dataset-metadata.json").read_text())
    assert dataset["id"] in metadata["dataset_sources"]
    assert 6 <= len(dataset["title"]) <= 50 and 20 <= len(dataset["subtitle"]) <= 80


# ---------------------------------------------------------------- the run

QUICK = {"train_size": "64", "train_batch": "2", "epochs": "1"}
RESULTS = {"metrics.csv", "preview", "submission.csv", "u2netp_best.pth",
           "validation.csv"}
# SIOCSIFFLAGS with IFF_UP (netdevice(7)): a new namespace's loopback is down.
LOOPBACK_UP = ("import fcntl, socket, struct; "
               "fcntl.ioctl(socket.socket(), 0x8914, struct.pack(\"16sh\", b\"lo\", 1))")
# /kaggle is a file system of the namespace's own; the input is bound read-only into it.
KAGGLE_RUN = """
mount --make-rprivate / && mount -t tmpfs tmpfs /kaggle &&
mkdir /kaggle/input /kaggle/working /kaggle/src &&
mount --bind "$1" /kaggle/input && mount -o remount,bind,ro /kaggle/input &&
mount --bind "$2" /kaggle/working && cp "$3" /kaggle/src/script.py && cd /kaggle/working &&
eval "$5" && KAGGLE_KERNEL_RUN_TYPE=Batch exec "$4" /kaggle/src/script.py
"""


def can_make_namespaces():
    """Whether this user may; an empty /kaggle is made as the place to mount over."""
    try:
        Path("/kaggle").mkdir(exist_ok=True)
        tried = subprocess.run(
            ["unshare", "-n", "-m", "sh", "-c", "mount -t tmpfs tmpfs /kaggle"],
            capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


@pytest.fixture(scope="session")
def namespaces():
    existed = Path("/kaggle").exists()
    if not can_make_namespaces():
        pytest.skip("this user may not make network and mount namespaces")
    yield
    if not existed:
        Path("/kaggle").rmdir()


def kaggle_input(folder, *, pairs=False, weights=None):
    """A tree as Kaggle mounts it: a competition, a data set of pairs, a data set of weights."""
    rng = np.random.default_rng(0)
    test = folder / "competitions" / "matting" / "test_dataset" / "orig_1024"
    for name in ("1", "2"):
        draw(test / f"{name}.png", rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    (test.parents[1] / "sample_submission.csv").write_text("filename,image_utf\n2,x\n1,x\n")
    if pairs:
        write_pairs(folder / "datasets" / "someone" / "pairs", 4, 64)
        write_pairs(folder / "datasets" / "someone" / "pairs", 2, 64, "val")
    if weights:
        recipe = {"predict_size": 64, "flip": False, "refine": True, "calibration": "none"}
        torch.manual_seed(0)
        target = folder / "datasets" / "me" / "weights" / weights
        load_bundle().write_checkpoint(
            target, load_bundle().U2NETP().state_dict(),
            **({"recipe": recipe} if weights == "u2netp_alpha.pth" else {}))
    return folder


def kaggle_run(root, out, before="true", change=("", ""), **settings):
    """The finished run of a script built with these settings, in a place like Kaggle's.

    before: what the shell does there first; change: a text of the script and what replaces it.
    """
    out.mkdir()
    script = out.with_suffix(".py")
    script.write_text(build.bundle(ROOT, [
        build.parse_setting(f"{name}={text}") for name, text in {**QUICK, **settings}.items()
        if text]).replace(*change))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        ["unshare", "-n", "-m", "-u", "sh", "-c", KAGGLE_RUN, "sh", root, out, script,
         sys.executable, before], env=environment, capture_output=True, text=True, timeout=200)


# Seconds reserved after training, so that tests need not wait
SHORT_RESERVE = ("+ prediction) + 30\n", "+ prediction) + 4\n")


def run_with_an_epoch(root, out, seconds, before="true", **settings):
    """(finished `kaggle_run`, its --time-limit): `seconds`, or twice as long where the cores are
    too busy for an epoch."""
    for limit in (seconds / 3600, 2 * seconds / 3600):
        shutil.rmtree(out, ignore_errors=True)
        done = kaggle_run(root, out, before, SHORT_RESERVE, time_limit=str(limit), **settings)
        if "Epoch 1:" in done.stdout:
            break
    return done, str(limit)


def check_run(done, out, says):
    """A run that ended well, said so in lines a log can hold, and left the whole submission."""
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(out / "submission.csv", dtype=str)
    assert list(table.filename) == ["2", "1"]
    assert base64.b64decode(table.image_utf[0]).startswith(b"\x89PNG")
    assert says in done.stdout and "/kaggle/input/competitions/matting" in done.stdout
    assert "\r" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "Python 3" in done.stdout and "torch 2" in done.stdout
    assert "wrote /kaggle/working/submission.csv" in done.stdout


def test_weights_that_are_attached_are_fine_tuned(tmp_path, namespaces):
    """And an image that cannot be read does not cost the submission."""
    root = kaggle_input(tmp_path / "input", pairs=True, weights="u2netp.pth")
    (root / "competitions/matting/test_dataset/orig_1024/1.png").write_bytes(b"torn")
    out = tmp_path / "working"
    done = kaggle_run(root, out)
    check_run(done, out, "Epoch 1:")
    assert "random weights" not in done.stdout and "validation MSE" in done.stdout
    assert "PROBLEM with 1:" in done.stdout
    problems = pd.read_csv(out / "problems.csv", dtype=str)
    assert list(problems.filename) == ["1"] and "cannot be read" in problems.reason[0]


def test_two_processes_need_no_name_and_no_network(tmp_path, namespaces):
    """A host whose own name nobody resolves, and nothing but the loopback; training that the time
    decides, as it does there unless --epochs does."""
    root, out = kaggle_input(tmp_path / "input", pairs=True), tmp_path / "working"
    before = f"hostname nowhere.invalid && {shlex.quote(sys.executable)} -c '{LOOPBACK_UP}'"
    done, _ = run_with_an_epoch(root, out, 30, before, gpus="2", device="cpu", epochs="",
                                epoch_samples="40")
    check_run(done, out, "random weights")
    assert "going on with one" not in done.stdout and "Epoch 1:" in done.stdout
    assert "cosine schedule" in done.stdout and "validation MSE" in done.stdout
    assert "Training until " in done.stdout
    # Decoded images are not among them.
    assert {path.name for path in out.iterdir()} - {"last.pth"} == RESULTS


def test_a_report_that_fails_does_not_cost_the_submission(tmp_path, namespaces):
    root, out = kaggle_input(tmp_path / "input", weights="u2netp_alpha.pth"), tmp_path / "working"
    name = "def write_report(out, count, scores, shown, tests, problems):\n"
    done = kaggle_run(root, out, change=(name, name + "    1 / 0\n"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The report is not complete: division by zero" in done.stdout
    assert list(pd.read_csv(out / "submission.csv", dtype=str).filename) == ["2", "1"]


def test_training_goes_on_in_the_next_session(tmp_path, namespaces):
    """The first version runs out of time; its output, attached read-only, is continued. Without a
    validation CSV, of which its validation.csv is none."""
    root = kaggle_input(tmp_path / "input", pairs=True)
    (root / "datasets/someone/pairs/val.csv").unlink()
    settings = {"mode": "train", "epochs": "2000", "save_minutes": "1000"}
    first, limit = run_with_an_epoch(root, tmp_path / "first", 18, **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Time limit: training ends in epoch" in first.stdout
    attached = root / "notebooks" / "me" / "magick-alpha"
    shutil.copytree(tmp_path / "first", attached)
    before = torch.load(attached / "last.pth", weights_only=True)["training"]
    second = kaggle_run(root, tmp_path / "second", change=SHORT_RESERVE, time_limit=limit,
                        **settings)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Continuing /kaggle/input/notebooks/me/magick-alpha/last.pth" in second.stdout
    after = pd.read_csv(tmp_path / "second" / "metrics.csv")
    reached = torch.load(tmp_path / "second" / "last.pth", weights_only=True)["training"]
    assert (reached["epoch"], reached["batch"]) > (before["epoch"], before["batch"])
    assert after.val_mse[0] == pytest.approx(before["metrics"][0]["val_mse"])
    assert len(pd.read_csv(tmp_path / "second" / "submission.csv")) == 2
    assert (tmp_path / "second" / "u2netp_best.pth").is_file()


STEP = "def train_step(run, batch):\n"
SECOND_RANK = "os.environ.get('RANK') == '1'"
KILLED_ONCE = (STEP, STEP + """    if run.epoch == 2 and not Path('killed').exists():
        Path('killed').touch()
        os.kill(os.getpid(), 15)
""")
LOST = (STEP, STEP + f"    if run.epoch == 2 and {SECOND_RANK}:\n"
        "        raise RuntimeError('NCCL error: unhandled cuda error')\n")
TWO, ONCE = {"gpus": "2", "device": "cpu"}, {"time_limit": "0.9"}  # too late to start again


def test_a_run_that_fails_is_followed_by_a_prediction(tmp_path, namespaces):
    """With the best weights of this run; status 0."""
    root, out = kaggle_input(tmp_path / "input", pairs=True), tmp_path / "working"
    done = kaggle_run(root, out, f"{shlex.quote(sys.executable)} -c '{LOOPBACK_UP}'", LOST,
                      epochs="2", **TWO, **ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run starts again" not in done.stdout
    after = done.stdout.split("THE RUN HAS FAILED")[1]
    assert "--mode predict --device cpu" in after
    assert "  checkpoint: /kaggle/working/u2netp_best.pth" in after
    table = pd.read_csv(out / "problems.csv")
    assert list(table.filename) == ["the run"]
    assert "NCCL error: unhandled cuda error" in table.reason[0]
    masks = pd.read_csv(out / "submission.csv", dtype=str)
    assert list(masks.filename) == ["2", "1"]


def test_a_run_that_is_killed_once_goes_on(tmp_path, namespaces):
    """From its last save, in two processes; also after a SIGTERM that the run itself had not."""
    root, out = kaggle_input(tmp_path / "input", pairs=True), tmp_path / "working"
    done = kaggle_run(root, out, f"{shlex.quote(sys.executable)} -c '{LOOPBACK_UP}'", KILLED_ONCE,
                      epochs="2", **TWO)
    check_run(done, out, "the run starts again")
    assert "Continuing /kaggle/working/last.pth: epoch 2" in done.stdout
    assert "THE RUN HAS FAILED" not in done.stdout and not (out / "problems.csv").exists()


STARTS = "def run(settings, failure=\"\"):\n"


@pytest.mark.parametrize("status, others, left, ends_with", [
    # of the first run; of those after it; what it leaves
    (1, ["again 0"], [], 0), (1, ["again 1", "after 0"], [], 0), (2, ["after 0"], [], 0),
    (2, ["after 2"], [], 2), (137, ["again 137", "after 139"], [], 139),
    (137, ["again 1", "after 1"], ["u2netp_best.pth"], 0),
    (137, ["again 1", "after 1"], ["last.pth"], 0), (137, [], ["submission.csv"], 0)])
@pytest.mark.parametrize("is_new", [True, False])
def test_what_follows_a_failed_run(
        kernel, tmp_path, monkeypatch, status, others, left, ends_with, is_new):
    """Once more unless the input was bad, then a prediction; status 0 for what is worth keeping, of
    this run alone."""
    waiting = list(others if is_new or not left else ["again 137", "after 139"])

    def follows(name):
        def run(*_):
            (wanted, code), waiting[:] = waiting[0].split(), waiting[1:]
            assert name == wanted
            return int(code)
        return run

    set_module(kernel, monkeypatch, "attempt", follows("again"))
    set_module(kernel, monkeypatch, "run_after", follows("after"))
    for name in left:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, None if is_new else (1, 1))
    settings = kernel.Settings(out=tmp_path)
    assert kernel.end_well(settings, status) == (ends_with if is_new or not left else 139)
    assert not waiting


def test_a_failed_run_is_followed_by_none_that_would_be_late_or_unwanted(
        kernel, tmp_path, monkeypatch):
    def unwanted(*_):
        raise AssertionError

    set_module(kernel, monkeypatch, "attempt", unwanted)
    set_module(kernel, monkeypatch, "run_after", lambda reason: 0)
    settings = kernel.Settings(out=tmp_path, time_limit=0.5)
    assert kernel.end_well(settings, 137) == 0
    set_module(kernel, monkeypatch, "was_asked_to_end", lambda: True)
    set_module(kernel, monkeypatch, "run_after", unwanted)
    assert kernel.end_well(settings, 143) == 143


def test_a_run_that_hangs_is_ended_in_time(kernel, tmp_path, monkeypatch, capsys):
    """So is the prediction after it; what there is then is kept."""
    (tmp_path / "input").mkdir()
    (tmp_path / "u2netp_best.pth").write_text("")
    set_module(kernel, monkeypatch, "KAGGLE_INPUT", tmp_path / "input")
    set_module(kernel, monkeypatch, "STARTED", time.time())
    set_module(kernel, monkeypatch, "OVERTIME_SECONDS", 2)
    set_module(kernel, monkeypatch, "relaunch", lambda *_: time.sleep(99))
    set_module(kernel, monkeypatch, "run_after", lambda reason: time.sleep(99))
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    os.utime(tmp_path / "u2netp_best.pth", (time.time() + 9, time.time() + 9))
    try:
        assert kernel.main(["--out", str(tmp_path), "--time-limit", "0.001"]) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert "The prediction has failed: the time is up" in capsys.readouterr().out


def test_a_prediction_after_a_failed_run_takes_the_best_weights(kernel, tmp_path, capsys):
    """The first with a recipe; else those of last.pth; what cannot be used is passed over."""
    state = kernel.U2NETP().state_dict()
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    kernel.write_checkpoint(tmp_path / "odd.pth", state, recipe="x")
    kernel.write_checkpoint(tmp_path / "start.pth", state)
    kernel.write_checkpoint(tmp_path / "ours.pth", state, recipe={"predict_size": 64})
    kernel.write_checkpoint(tmp_path / "last.pth", state, training={})
    last = tmp_path / "last.pth"
    paths = [tmp_path / f"{name}.pth" for name in ("gone", "sparse", "odd", "start", "ours")]
    assert kernel.best_there_is(paths, last).path == paths[4]
    assert kernel.best_there_is(paths[:4], last).path == last
    assert kernel.best_there_is(paths[:4], tmp_path / "none").path == paths[3]
    assert kernel.best_there_is(paths[:3], tmp_path / "none") is None
    assert "gone" not in capsys.readouterr().out


def test_what_made_a_run_fail_does_not_fail_the_prediction(tmp_path, namespaces):
    """Settings that cannot work, and weights of which the first in line are torn."""
    root = kaggle_input(tmp_path / "input", pairs=True, weights="u2netp_alpha.pth")
    (root / "datasets/me/weights/u2netp_best.pth").write_bytes(b"torn")
    out = tmp_path / "working"
    done = kaggle_run(root, out, backgrounds="/kaggle/input/nowhere", cache="/kaggle/input/cache",
                      amp="fp16", mode="train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(pd.read_csv(out / "submission.csv", dtype=str).filename) == ["2", "1"]
    assert "Left out: " in done.stdout and "starts again" not in done.stdout


def test_a_continued_training_that_fails_is_kept_for_the_next_session(tmp_path, namespaces):
    root = kaggle_input(tmp_path / "input", weights="u2netp_alpha.pth")
    attached = root / "notebooks" / "me" / "magick-alpha"
    attached.mkdir(parents=True)
    shutil.move(root / "datasets/me/weights/u2netp_alpha.pth", attached / "u2netp_best.pth")
    shutil.copy(attached / "u2netp_best.pth", attached / "last.pth")
    done = kaggle_run(root, tmp_path / "second", change=(
        STARTS, STARTS + "    failure or 1 / 0\n"), **ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("last.pth", "u2netp_best.pth"):
        assert (tmp_path / "second" / name).read_bytes() == (attached / name).read_bytes()
    assert "  checkpoint: /kaggle/working/u2netp_best.pth" in done.stdout


def test_an_error_that_one_picture_causes_costs_that_picture(tmp_path, namespaces):
    """Two runs meet it; the second goes on with the other picture."""
    root, out = kaggle_input(tmp_path / "input", weights="u2netp_alpha.pth"), tmp_path / "working"
    draw(root / "competitions/matting/test_dataset/orig_1024/1.png",
         np.full((77, 77, 3), 9, np.uint8))
    head = "def to_uint8(alpha):\n"
    done = kaggle_run(root, out, change=(
        head, head + "    if alpha.shape == (77, 77):\n        raise ValueError('odd')\n"),
                      mode="predict", **ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "THE RUN HAS FAILED: ValueError: odd" in done.stdout
    table = pd.read_csv(out / "problems.csv")
    assert list(table.filename) == ["the run", "1"]
    assert table.reason[1] == "cannot be predicted (ValueError: odd)"
    assert list(pd.read_csv(out / "submission.csv", dtype=str).filename) == ["2", "1"]


NO_NETWORK = """
import runpy, socket, sys
def refused(*arguments):
    raise OSError("the network was asked for")
socket.create_connection = socket.getaddrinfo = refused
real = socket.socket.connect
socket.socket.connect = lambda self, address: (
    real(self, address) if self.family == socket.AF_UNIX else refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_asks_for_no_network(tmp_path):
    """The same, where namespaces are not allowed: sockets blocked inside the process."""
    if can_make_namespaces():
        pytest.skip("shown in a namespace without a network")
    root = kaggle_input(tmp_path / "input", weights="u2netp_alpha.pth")
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, ROOT / "kernel" / "main.py", "--test-root",
         root / "competitions/matting/test_dataset/orig_1024", "--checkpoint",
         root / "datasets/me/weights/u2netp_alpha.pth", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "out" / "submission.csv")) == 2
