"""The scratch folder of decoded images: the same pixels with and without it, whatever happens."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from conftest import REAL, draw, set_module


@pytest.fixture
def cache(kernel, tmp_path):
    return kernel.open_cache(tmp_path / "cache", False)


@pytest.fixture
def pairs(kernel, tmp_path, cache):
    """A real cut-out, 1024 pixels wide."""
    with Image.open(sorted(REAL.glob("*.webp"))[0]) as image:
        image.convert("RGBA").resize((1024, 1024)).save(tmp_path / "a.png", compress_level=1)
    (tmp_path / "train.csv").write_text("image_path\na.png\n")
    return kernel.read_pairs(tmp_path / "train.csv", cache=cache)


def pixels(kernel, pairs, side=480):
    return [np.asarray(image).copy() for image in kernel.reduced_pair(pairs, 0, side)]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def files(cache):
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def decodings(kernel, monkeypatch):
    """A list that grows by one for each image that is decoded in full."""
    opened, real = [], kernel.open_layers

    def counted(*paths):
        opened.append(paths)
        return real(*paths)

    set_module(kernel, monkeypatch, "open_layers", counted)
    return opened


def test_an_image_is_decoded_once_and_loses_little(kernel, pairs, cache, monkeypatch):
    opened = decodings(kernel, monkeypatch)
    image, alpha = pixels(kernel, pairs)
    assert equal((image, alpha), pixels(kernel, pairs)) and len(opened) == 1
    (file,) = files(cache)
    assert 5_000 < file.stat().st_size < 100_000
    direct, exact = pixels(kernel, replace(pairs, cache=None))
    assert np.array_equal(alpha, exact)
    error = np.abs(image.astype(float) - direct)[alpha > 0]
    assert 0 < error.mean() < 3  # a JPEG's
    assert pixels(kernel, pairs, side=128)[0].shape == (128, 128, 3) and len(files(cache)) == 2


def test_a_composite_is_kept_as_it_is(kernel, pairs, cache, monkeypatch):
    fresh = [np.asarray(each) for each in kernel.whole_pair(replace(pairs, cache=None), 0)[:2]]
    opened = decodings(kernel, monkeypatch)
    for _ in range(2):
        image, alpha, unreadable = kernel.whole_pair(pairs, 0)
        assert equal(fresh, [np.asarray(image), np.asarray(alpha)]) and not unreadable
    assert len(opened) == 1
    draw(pairs.cache.folder.parent / "backdrop.png", np.full((9, 9, 3), 7, np.uint8))
    others = replace(pairs, photographs=(pairs.cache.folder.parent / "backdrop.png",))
    kernel.whole_pair(others, 0)
    assert len(opened) == 2 and len(files(cache)) == 2


def test_a_damaged_file_is_never_learnt_from(kernel, pairs, cache):
    whole = pixels(kernel, pairs)
    (file,) = files(cache)
    data = file.read_bytes()
    places = [0, 3, 4, 7, 8, 9, len(data) // 3, len(data) - 1]
    damaged = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1:] for at in places]
    damaged += [data[:length] for length in (0, 3, 8, 9, len(data) // 2, len(data) - 1)]
    for each in [*damaged, data + b"more"]:
        file.write_bytes(each)
        assert equal(pixels(kernel, pairs), whole)
        assert file.read_bytes() == data  # written anew


def test_an_image_that_has_changed_is_decoded_anew(kernel, pairs, tmp_path):
    before = pixels(kernel, pairs)
    stat = os.stat(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not equal(pixels(kernel, pairs), before)


def test_a_missing_image_is_said_as_ever(kernel, pairs, tmp_path):
    (tmp_path / "a.png").unlink()
    with pytest.raises(kernel.UserError, match="a.png: cannot be read as an image"):
        pixels(kernel, pairs)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_full_disk_ends_the_cache_and_not_the_training(
        kernel, pairs, cache, monkeypatch, capsys, at_once):
    """Whether there is too little room to begin with, or it runs out in mid-write."""
    expected = pixels(kernel, pairs, 96)
    if at_once:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**30))
        said = "less than 5 GiB are free"
    else:
        class Full:
            def __init__(self, file):
                self.file, self.name = file, file.name

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def write(self, data):
                self.file.write(data[:100])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        module = sys.modules[kernel.Cache.__module__]
        named = module.tempfile.NamedTemporaryFile
        monkeypatch.setattr(
            module.tempfile, "NamedTemporaryFile", lambda **more: Full(named(**more)))
        said = "No space left on device"
    before = files(cache)
    fresh = [pixels(kernel, pairs, side) for side in (64, 128, 64)]
    assert equal(fresh[0], fresh[2]) and files(cache) == before
    log = capsys.readouterr().out
    assert log.count("grows no more") == 1 and said in log
    assert equal(pixels(kernel, pairs, 96), expected)  # what is there still serves


def processes(count, work):
    """Run work(number) in so many forked processes at once; their exit codes."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(number,)) for number in range(count)]
    for process in started:
        process.start()
    return started


def test_any_number_of_processes_may_want_the_same_file(kernel, pairs, cache):
    """Two ranks and their workers, all at the same moment."""
    expected = pixels(kernel, replace(pairs, cache=kernel.Cache(cache.folder, is_full=True)))
    barrier = multiprocessing.get_context("fork").Barrier(6)

    def work(number):
        barrier.wait(30)
        os._exit(0 if equal(pixels(kernel, pairs), expected) else 1)

    started = processes(6, work)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 6 and len(files(cache)) == 1


def test_the_loaders_workers_say_once_that_the_disk_is_full(kernel, pairs, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))

    def work(number):
        pixels(kernel, pairs, 64 + 32 * number)
        os._exit(0)

    for process in processes(4, work):
        process.join(60)
    assert capfd.readouterr().out.count("grows no more") == 1
    assert pairs.cache.is_full.value


def test_a_killed_process_leaves_no_half_file(kernel, pairs, cache):
    def work(number):
        for side in range(64, 6400):
            pixels(kernel, pairs, side)

    (process,) = processes(1, work)
    deadline = time.monotonic() + 60
    while len(files(cache)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    kept = [path for path in files(cache) if path.suffix != ".part"]
    assert len(kept) >= 2
    for path in kept:
        kernel.unpacked(path.read_bytes())


def test_a_folder_that_cannot_be_written(kernel, pairs, tmp_path, monkeypatch, capsys):
    """Named, it is an error; where nobody named it, decoding goes on, to the same pixels."""
    expected = pixels(kernel, pairs)
    (tmp_path / "file").write_text("")
    with pytest.raises(kernel.UserError, match="--cache .*file.*: cannot be written"):
        kernel.open_cache(tmp_path / "file" / "below", False)
    monkeypatch.setattr(sys.modules[kernel.Cache.__module__].tempfile, "tempdir",
                        str(tmp_path / "file"))
    unwritable = kernel.open_cache(None, False)
    assert "cannot be written" in capsys.readouterr().out
    assert equal(pixels(kernel, replace(pairs, cache=unwritable)), expected)
    assert kernel.open_cache(type(tmp_path)("off"), True) is None


def test_a_long_path_is_no_trouble(kernel, cache, tmp_path):
    folder = tmp_path
    while len(str(folder)) < 300:
        folder = folder / ("long" * 10)
    draw(folder / "a.png", np.dstack([np.indices((70, 90))[0].astype(np.uint8)] * 4))
    (folder / "train.csv").write_text("image_path\na.png\n")
    pairs = kernel.read_pairs(folder / "train.csv", cache=cache)
    assert equal(pixels(kernel, pairs, 64), pixels(kernel, pairs, 64)) and len(files(cache)) == 1
