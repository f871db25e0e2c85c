"""Names for files that Pillow cannot decode, told by their first bytes."""

import re
from contextlib import suppress

from PIL import Image

with suppress(ImportError):  # with it Pillow reads what telephones write
    from pillow_heif import register_heif_opener
    register_heif_opener()

MADE_BY = "MAGICK alpha"  # the text "Software" of the PNGs that this script writes
# Formats that Pillow knows, but cannot decode by itself or would have to draw
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Pillow takes these for TIFF files, and finds a small preview in them
RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".dng", ".erf", ".kdc", ".nef", ".nrw", ".orf", ".pef",
                ".raw", ".rw2", ".sr2", ".srw")
RAW_PHOTO = "a raw photo; develop it into a JPEG"
SIGNATURES = (  # of the first bytes, in lower case
    (rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
     "HEIC; convert it to JPEG or PNG, or `pip install pillow-heif`"),
    (rb".{4}ftypavi[fs]", "AVIF; convert it to JPEG or PNG, or take Pillow 11.3 or newer"),
    (rb".{4}ftyp(crx )", RAW_PHOTO),
    (rb".{4}ftyp|.{4}moov|\x1a\x45\xdf\xa3|riff.{4}avi |\0\0\x01[\xb3\xba]", "a film"),
    (rb"%pdf", "a PDF document"), (rb"%!ps|\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg",
     "an SVG drawing"),
    (rb"\s*(<!doctype html|<html)", "a web page"),
    (rb"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (rb"ii\*\0|mm\0\*", "a kind of TIFF that Pillow cannot decode; save it with 8 bits a channel"),
    (rb"pk\x03\x04", "a zip archive"), (rb"$", "an empty file"),
)


def is_result(path):
    """Whether a file is a picture that this script has written."""
    with suppress(Exception), Image.open(path) as image:
        return image.format == "PNG" and image.info.get("Software") == MADE_BY
    return False


def image_suffixes():
    """The file name suffixes, in lower case, of the formats that Pillow decodes."""
    return {suffix for suffix, name in Image.registered_extensions().items()
            if name not in NO_PIXELS} - set(RAW_SUFFIXES)


def kind_without_pixels(path):
    """"a PDF document" or another name of what a file is that Pillow cannot decode, with the way
    out where there is one; "not an image" for what is unknown. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(1000).lower()
    if str(path).lower().endswith(RAW_SUFFIXES):
        return RAW_PHOTO
    return next((kind for signature, kind in SIGNATURES
                 if re.match(signature, start, re.DOTALL)), "not an image")


def image_or_kind(path):
    """"" for a file that Pillow knows as an image, whatever its name, else what it is instead."""
    try:
        with Image.open(path) as image:
            known = image.format not in NO_PIXELS and not str(path).lower().endswith(RAW_SUFFIXES)
        return "" if known else kind_without_pixels(path)
    except Image.UnidentifiedImageError:
        return kind_without_pixels(path)
    except OSError as error:
        return error.strerror or ""
    except Exception:  # a damaged image is one: reading it says what is wrong
        return ""
