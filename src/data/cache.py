"""A scratch folder of decoded images, so that each file is decoded in full once."""

import hashlib
import io
import multiprocessing
import os
import shutil
import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from PIL import Image

from src.runtime.console import UserError, log

KAGGLE_TEMP = Path("/kaggle/temp")  # is not kept, unlike /kaggle/working
KEPT_FREE = 5 * 2**30  # bytes of the disk that are left to others
# Measured on reduced cut-outs: WebP of equal error is a quarter smaller, but takes 2.4 ms to decode
# where a JPEG takes 0.7, and 8 to 12 ms to encode where that takes 0.5.
LOSSY = {"format": "JPEG", "quality": 90}
LOSSLESS = {"format": "PNG", "compress_level": 1}
CACHE_HEADER = struct.Struct("<II")  # CRC-32, bytes of the image; then the image and the alpha


class Cache:
    """Images and alphas, one small file for both, that any number of processes fill and read.

    A file is named after its sources' paths, sizes and modification times. So an image that
    has changed is decoded anew, and one that was cut off or altered here fails its checksum and is
    written again. When the disk fills up nothing more is written, which is said once.
    """

    def __init__(self, folder, is_full=False):
        self.folder = folder
        self.is_full = multiprocessing.Value("b", is_full)  # shared with the loader's workers

    def get(self, sources, form):
        """(RGB image, L alpha), None where there are none, or damaged ones.

        sources: the files that they are made of; form: what else they depend on, any text.
        """
        with suppress(OSError, ValueError):
            return unpacked(self.path(sources, form).read_bytes())

    def put(self, sources, form, image, alpha, encoding):
        """(RGB image, L alpha) encoded and decoded again, as `get` will give them, so that the
        pixels do not depend on the cache's state. encoding: LOSSY or LOSSLESS, for the image."""
        data = packed(image, alpha, encoding)
        with suppress(OSError):  # one of the sources has gone since it was read
            self.write(self.path(sources, form), data)
        return unpacked(data)

    def path(self, sources, form):
        """Where the images of these sources lie. Raises OSError when one of them is missing."""
        stats = [(os.fspath(each), os.stat(each)) for each in sources]
        parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        name = hashlib.sha256(os.fsencode(repr((parts, form)))).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    def write(self, path, data):
        """Put the data at the path, whole or not at all, if the disk has room."""
        if self.is_full.value:
            return
        part = None
        try:
            if shutil.disk_usage(self.folder).free < KEPT_FREE + len(data):
                raise OSError(0, f"less than {KEPT_FREE // 2**30} GiB are free")
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
                part.write(data)
            os.replace(part.name, path)
        except OSError as error:
            if part:
                Path(part.name).unlink(missing_ok=True)
            self.close(error.strerror)

    def close(self, reason):
        """Write nothing more, and say so, in all workers together once."""
        with self.is_full.get_lock():
            if not self.is_full.value:
                log(f"The cache {self.folder} grows no more ({reason}); other images are decoded "
                    "anew each time")
            self.is_full.value = True


def open_cache(wanted, on_kaggle):
    """The `Cache` for `--cache`: a folder, None for the usual place, Path("off") for none (None).

    Raises UserError when a folder that was named cannot be written. Where the usual place cannot
    be, nothing is kept.
    """
    if wanted == Path("off"):
        return None
    folder = wanted or (KAGGLE_TEMP if on_kaggle else Path(tempfile.gettempdir())) / "magick_alpha"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Cache(folder)
    except OSError as error:
        if wanted:
            raise UserError(f"--cache {wanted}: cannot be written ({error.strerror}); name another "
                            "folder, or off") from None
        log(f"{folder} cannot be written ({error.strerror}): images are decoded anew each time; "
            "name another folder with --cache")
        return Cache(folder, is_full=True)


def packed(image, alpha, encoding):
    """The bytes of an RGB image and an L alpha of its size; see `unpacked`."""
    buffer = io.BytesIO()
    image.save(buffer, **encoding)
    body = buffer.getvalue() + zlib.compress(alpha.tobytes(), 1)
    return CACHE_HEADER.pack(zlib.crc32(body, buffer.tell()), buffer.tell()) + body


def unpacked(data):
    """(RGB image, L alpha) of what `packed` gave. Raises ValueError when the data are damaged."""
    checksum, length = CACHE_HEADER.unpack_from(data.ljust(CACHE_HEADER.size))
    body = data[CACHE_HEADER.size:]
    if checksum != zlib.crc32(body, length):
        raise ValueError("damaged")
    image = Image.open(io.BytesIO(body[:length]))
    image.load()
    return image, Image.frombytes("L", image.size, zlib.decompress(body[length:]))
