"""Image files of every kind: what becomes of them, and what is refused."""

import numpy as np
import pytest
from PIL import Image

LEVELS = np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8) * 4


def saved(path, image, **options):
    image.save(path, **options)
    return path


def grey(**size):
    return Image.fromarray(LEVELS)


def rotated_jpeg(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    return saved(path, grey().convert("RGB"), exif=exif, quality=100, subsampling=0)


def palette_with_transparency(path):
    image = Image.fromarray((LEVELS > 60).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 150, 100])
    return saved(path, image, transparency=0)


def animated(path):
    return saved(path, grey().convert("RGB"), save_all=True,
                 append_images=[Image.new("RGB", (30, 20))] * 2)


@pytest.mark.parametrize("name, make, expected, tolerance", [
    ("rgb.png", lambda p: saved(p, grey().convert("RGB")), LEVELS, 0),
    ("grey_alpha.png", lambda p: saved(p, grey().convert("LA")), LEVELS, 0),
    ("sixteen.png", lambda p: saved(p, Image.fromarray(LEVELS.astype(np.uint16) * 257)), LEVELS, 0),
    ("one_bit.png", lambda p: saved(p, grey().point(lambda v: 255 * (v > 60)).convert("1")),
     np.where(LEVELS > 60, 255, 0), 0),
    ("cmyk.jpg", lambda p: saved(p, grey().convert("RGB").convert("CMYK"), quality=100), LEVELS, 6),
    ("cmyk.tif", lambda p: saved(p, grey().convert("RGB").convert("CMYK")), LEVELS, 1),
    ("rotated.jpg", rotated_jpeg, np.rot90(LEVELS, -1), 3),
    ("animated.gif", animated, LEVELS, 2), ("animated.png", animated, LEVELS, 0),
    ("a.webp", lambda p: saved(p, grey().convert("RGB"), lossless=True), LEVELS, 0),
])
def test_kinds_of_images(kernel, tmp_path, name, make, expected, tolerance):
    path = make(tmp_path / name)
    pixels = np.asarray(kernel.open_image(path, "RGB"))
    assert pixels.shape == (*expected.shape, 3)
    assert np.abs(pixels[..., 1].astype(int) - expected).max() <= tolerance
    assert kernel.declared_size(path) == expected.shape[::-1]
    assert np.abs(np.asarray(kernel.open_alpha(path)).astype(int) - expected).max() <= tolerance


def test_a_palette_keeps_its_colours_and_its_transparency(kernel, tmp_path):
    path = palette_with_transparency(tmp_path / "palette.png")
    assert set(map(tuple, np.asarray(kernel.open_image(path, "RGB")).reshape(-1, 3))) == {
        (10, 20, 30), (200, 150, 100)}
    assert np.array_equal(kernel.open_alpha(path), np.where(LEVELS > 60, 255, 0))


@pytest.mark.parametrize("image, expected", [
    (Image.merge("RGBA", [Image.new("L", (30, 20), 9)] * 3 + [grey()]), LEVELS),
    (Image.merge("LA", [Image.new("L", (30, 20), 9), grey()]), LEVELS),
    (grey().convert("RGBA"), LEVELS), (grey().convert("RGB"), LEVELS),
    (grey().point(lambda v: v > 60), np.where(LEVELS > 60, 255, 0)),
    (Image.new("L", (30, 20), 0), np.zeros_like(LEVELS)),
])
def test_forms_of_an_alpha(kernel, tmp_path, image, expected):
    assert np.array_equal(kernel.open_alpha(saved(tmp_path / "a.png", image)), expected)


@pytest.mark.parametrize("size", [(1, 1), (33, 2000), (8000, 6000)])
def test_sizes(kernel, tmp_path, size):
    path = saved(tmp_path / "a.png", Image.new("L", size, 7), compress_level=1)
    assert kernel.open_image(path, "L").size == kernel.declared_size(path) == size


def test_damaged_exif_does_not_make_an_image_unreadable(kernel, tmp_path):
    path = saved(tmp_path / "a.jpg", grey(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert kernel.open_image(path, "L").size == kernel.declared_size(path) == (30, 20)


def png_bytes(tmp_path):
    return saved(tmp_path / "whole.png", grey()).read_bytes()


@pytest.mark.parametrize("content", [
    b"", b"a text", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused(kernel, tmp_path, content):
    path = tmp_path / "no.png"
    path.write_bytes(content)
    with pytest.raises(kernel.UserError, match="no.png: cannot be read as an image") as refusal:
        kernel.open_image(path, "RGB")
    assert "\n" not in str(refusal.value) and kernel.declared_size(path) is None


def test_a_truncated_image_is_refused_but_tells_its_size(kernel, tmp_path):
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, Image.effect_noise((300, 200), 80))
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(kernel.UserError, match=f"{name}: cannot be read"):
            kernel.open_image(path, "RGB")
        assert kernel.declared_size(path) == (300, 200)


def test_more_pixels_than_the_bound_are_refused_before_they_are_decoded(kernel, tmp_path):
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    content = bytearray(png_bytes(tmp_path))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(kernel.UserError, match="60000x60000 pixels, more than the 150 million"):
        kernel.open_image(path, "L")
    assert kernel.declared_size(path) is None
