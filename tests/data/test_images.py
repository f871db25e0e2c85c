"""Image files of every kind: what becomes of them, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

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


def test_more_pixels_than_the_bound_are_refused_before_they_are_decoded(kernel, tmp_path):
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    content = bytearray(png_bytes(tmp_path))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(kernel.UserError, match="60000x60000 pixels, more than the 150 million"):
        kernel.open_image(path, "L")
    assert kernel.declared_size(path) is None


# ---------------------------------------------------------------- masks of any encoding

Y, X = np.mgrid[:40, :50]
SOFT = np.rint(255 * np.clip((15 - np.hypot(Y - 20, X - 25)) / 6 + 0.5, 0, 1))  # float, 0..255
HARD = 255 * (SOFT > 127)


def palette(indices, *colours):
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([level for colour in colours for level in colour])
    return image


def coloured(mask, on, off=(0, 0, 0)):
    mixed = mask[..., None] / 255 * on + (1 - mask[..., None] / 255) * off
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def grey_of(levels, dtype):
    return Image.fromarray(np.rint(levels).astype(dtype))


MASKS = [  # name of the file, the image, the alpha that it means, levels that may be lost
    ("bits.png", grey_of(HARD, np.uint8).convert("1"), HARD, 0),
    ("bits.tif", grey_of(HARD, np.uint8).convert("1"), HARD, 0),
    ("8 bits 0 and 1.png", grey_of(HARD / 255, np.uint8), HARD, 0),
    ("8 bits 0 and 2.png", grey_of(HARD / 255 * 2, np.uint8), HARD, 0),
    ("8 bits 0 and 128.bmp", grey_of(HARD / 255 * 128, np.uint8), HARD, 0),
    ("16 bits 0 and 1.png", grey_of(HARD / 255, np.uint16), HARD, 0),
    ("16 bits 0 and 1.tif", grey_of(HARD / 255, np.uint16), HARD, 0),
    ("16 bits 0 to 255.png", grey_of(SOFT, np.uint16), SOFT, 0),
    ("10 in 16 bits.png", grey_of(SOFT / 255 * 1023, np.uint16), SOFT, 1),
    ("12 in 16 bits.tif", grey_of(SOFT / 255 * 4095, np.uint16), SOFT, 1),
    ("15 in 16 bits.tif", grey_of(SOFT / 255 * 32767, np.uint16), SOFT, 1),
    ("16 bits.png", grey_of(SOFT * 257, np.uint16), SOFT, 0),
    ("32 bits 0 and 1.tif", grey_of(HARD / 255, np.int32), HARD, 0),
    ("32 bits 0 to 255.tif", grey_of(SOFT, np.int32), SOFT, 0),
    ("32 bits 0 to 65535.tif", grey_of(SOFT * 257, np.int32), SOFT, 0),
    ("31 bits.tif", grey_of(SOFT / 255 * (2**31 - 1), np.int32), SOFT, 1),
    ("objects 1 to 3.tif", grey_of(HARD / 255 * (1 + X // 20), np.uint16), HARD, 0),
    ("float 0 to 1.tif", Image.fromarray(np.float32(SOFT / 255)), SOFT, 0),
    ("float resampled.tif", Image.fromarray(np.float32(SOFT / 255 * 1.06 - 0.03)), SOFT, 8),
    ("float 0 to 255.tif", Image.fromarray(np.float32(SOFT)), SOFT, 0),
    ("float with NaN.tif", Image.fromarray(np.float32(np.where(SOFT, SOFT / 255, np.nan))), SOFT,
     0),
    ("palette of 0 and 1.png", palette(HARD / 255, (0, 0, 0), (1, 1, 1)), HARD, 0),
    ("VOC palette.png", palette(HARD / 255, (0, 0, 0), (128, 0, 0)), HARD, 0),
    ("two classes.png", palette(HARD / 255 * (1 + X // 25), (0,) * 3, (128, 0, 0), (0, 128, 0)),
     HARD, 0),
    ("grey palette.gif", palette(SOFT, *((level,) * 3 for level in range(256))), SOFT, 0),
    ("red.png", coloured(HARD, (255, 0, 0)), HARD, 0),
    ("dark red.png", coloured(HARD, (128, 0, 0)), HARD, 0),
    ("soft red.png", coloured(SOFT, (255, 0, 0)), SOFT, 0),
    ("red.jpg", coloured(HARD, (255, 0, 0)).resize((400, 320), 0), HARD.repeat(8, 0).repeat(8, 1),
     90),
    ("blue in RGBA.png", coloured(HARD, (30, 60, 220)).convert("RGBA"), HARD, 0),
    ("viridis.png", coloured(HARD, (253, 231, 36), (68, 1, 84)), HARD, 0),
    ("several colours.png", Image.fromarray(np.uint8(HARD[..., None] // 255 * [220, 20, 60] * (
        X[..., None] < 25) + HARD[..., None] // 255 * [0, 0, 142] * (X[..., None] >= 25))), HARD,
     0),
    ("grey in RGB.png", coloured(SOFT, (255, 255, 255)), SOFT, 0),
    ("alpha.webp", Image.merge("RGBA", [Image.new("L", (50, 40), 9)] * 3 + [grey_of(SOFT, "u1")]),
     SOFT, 0),
    ("grey and alpha.png", Image.merge("LA", [Image.new("L", (50, 40), 9), grey_of(SOFT, "u1")]),
     SOFT, 0),
]


@pytest.mark.parametrize("name, image, expected, lost", MASKS, ids=[each[0] for each in MASKS])
def test_a_mask_of_any_encoding_means_the_same(kernel, tmp_path, name, image, expected, lost):
    options = {"lossless": True} if name.endswith("webp") else {}
    alpha = np.asarray(kernel.open_alpha(saved(tmp_path / name, image, **options)), float)
    assert np.abs(alpha - expected).max() <= lost


def tiff(path, planes, white=1):
    """A TIFF, uncompressed, of arrays uint16 [H,W], each a plane of its own"""
    height, width = planes[0].shape
    count, size = len(planes), planes[0].nbytes
    data = b"".join(plane.astype("<u2").tobytes() for plane in planes)
    offsets = [200 + size * number for number in range(count)]
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [16] * count), (259, 3, [1]),
               (262, 3, [2 if count == 3 else white]), (273, 4, offsets), (277, 3, [count]),
               (278, 4, [height]), (279, 4, [size] * count), (284, 3, [2 if count > 1 else 1])]
    head, tail = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), b""
    for tag, kind, values in entries:
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = 10 + 12 * len(entries) + 4 + len(tail)
            packed, tail = struct.pack("<I", place), tail + packed
        head += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    path.write_bytes((head + bytes(4) + tail).ljust(200, b"\0") + data)
    return path


def test_a_tiff_in_which_0_is_white_is_no_negative(kernel, tmp_path):
    path = tiff(tmp_path / "a.tif", [np.uint16(65535 - SOFT * 257)], white=0)
    assert np.array_equal(kernel.open_alpha(path), SOFT)
    assert np.array_equal(np.asarray(kernel.read_picture(path).rgb)[..., 1], SOFT)


def test_a_tiff_that_pillow_garbles_or_does_not_know_is_refused(kernel, tmp_path):
    """Planes of 16 bits, which it reads as 8; samples that it has no mode for."""
    path = tiff(tmp_path / "a.tif", [np.uint16(SOFT * 257)] * 3)
    with pytest.raises(kernel.UserError, match="planes of more than 8 bits, .*save it with 8 bits"):
        kernel.read_picture(path)
    path.write_bytes(path.read_bytes().replace(struct.pack("<HHIHH", 262, 3, 1, 2, 0),
                                               struct.pack("<HHIHH", 262, 3, 1, 5, 0)))
    with pytest.raises(kernel.UserError, match="it is a kind of TIFF that Pillow cannot decode; sa"):
        kernel.read_picture(path)


def test_many_colours_are_no_mask_but_for_a_mark(kernel, tmp_path):
    """As of a photograph in the wrong column; a few coloured pixels leave the grey as it is."""
    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    with pytest.raises(kernel.UserError, match="a.png: cannot be read as a mask .it has many col"):
        kernel.open_alpha(saved(tmp_path / "a.png", Image.fromarray(noise)))
    grey = np.repeat(noise[..., :1] // 2 + 60, 3, axis=2)
    grey[:16, :10] = noise[:16, :10]
    alpha = np.asarray(kernel.open_alpha(saved(tmp_path / "b.png", Image.fromarray(grey))))
    assert np.array_equal(alpha[16:], grey[16:, :, 0])


@pytest.mark.parametrize("levels", [
    np.uint8(SOFT), np.uint8(SOFT // 3), np.uint8(HARD), np.zeros((40, 50), np.uint8),
    np.full((40, 50), 200, np.uint8), np.uint8(SOFT // 60), np.uint8(255 - HARD // 2)])
def test_levels_of_8_bits_stay_as_they_are(kernel, tmp_path, levels):
    """Also faint ones: a network that sees nothing leaves a haze, which is not a set of labels."""
    for image in (Image.fromarray(levels), Image.fromarray(levels).convert("RGB")):
        assert np.array_equal(kernel.open_alpha(saved(tmp_path / "a.png", image)), levels)


@pytest.mark.parametrize("name, image, lost", [
    ("float.tif", Image.fromarray(np.float32(SOFT / 255)), 0),
    ("float of 255.tif", Image.fromarray(np.float32(SOFT)), 0),
    ("12 bits.tif", grey_of(SOFT / 255 * 4095, np.uint16), 1),
    ("16 bits.png", grey_of(SOFT * 257, np.uint16), 0), ("32.tif", grey_of(SOFT, np.int32), 0),
    ("lab.tif", ImageCms.applyTransform(
        grey_of(SOFT, "u1").convert("RGB"), ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")), 4),
])
def test_a_picture_of_any_depth_is_seen(kernel, tmp_path, name, image, lost):
    path = saved(tmp_path / name, image)
    for rgb in (kernel.read_picture(path).rgb, kernel.open_image(path, "RGB")):
        assert np.abs(np.asarray(rgb)[..., 0] - SOFT).max() <= lost


# ---------------------------------------------------------------- alpha, colours, profile


def test_what_a_file_hides_is_not_seen_and_its_alpha_comes_along(kernel, tmp_path):
    """The right half was erased, but its pixels are still there."""
    image = Image.new("RGB", (60, 40), (250, 250, 250))
    image.paste((200, 30, 30), (30, 0, 60, 40))
    image.putalpha(Image.fromarray(np.uint8(255 * (np.mgrid[:40, :60][1] < 30))))
    picture = kernel.read_picture(saved(tmp_path / "a.png", image))
    assert np.array_equal(picture.alpha, image.getchannel("A"))
    assert picture.rgb.getpixel((10, 10)) == (250, 250, 250)
    hidden = np.asarray(picture.rgb.crop((30, 0, 60, 40))).reshape(-1, 3)
    assert len(set(map(tuple, hidden))) == 1  # a plain backdrop, on which white is seen
    assert np.abs(hidden[0] - 250.0).max() > 100
    assert picture.colours.getpixel((50, 10)) == (200, 30, 30)
    predicted = np.full((40, 60), 0.5)
    assert kernel.with_own_alpha(predicted, picture).mean() == 0.25
    assert kernel.with_own_alpha(predicted, kernel.read_picture(image.convert("RGB"))).mean() == 0.5


@pytest.mark.parametrize("image, alpha", [
    (grey().convert("RGBA"), None), (grey().convert("RGB"), None), (grey(), None),
    (Image.merge("LA", [grey(), grey()]), LEVELS),
    (Image.merge("RGBA", [grey()] * 3 + [Image.new("L", (30, 20), 0)]), None),
    (palette(LEVELS > 60, (10, 20, 30), (200, 150, 100)), None),
])
def test_pictures_with_and_without_an_alpha(kernel, tmp_path, image, alpha):
    picture = kernel.read_picture(saved(tmp_path / "a.png", image))
    assert (picture.alpha is None) if alpha is None else np.array_equal(picture.alpha, alpha)
    if alpha is None:
        assert np.array_equal(picture.rgb, image.convert("RGB"))
    assert bool(picture.notes) is (image.mode == "RGBA" and image.getextrema()[3][1] == 0)


def profile(**columns):
    """sRGB's ICC profile with other primaries"""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack(">I", data[128:132])[0]):
        tag, at, _ = struct.unpack(">4sII", data[132 + 12 * number:144 + 12 * number])
        if tag.decode() in columns:
            data[at + 8:at + 20] = b"".join(
                struct.pack(">i", round(value * 65536)) for value in columns[tag.decode()])
    return bytes(data)


P3 = profile(rXYZ=(.51512, .2412, -.00105), gXYZ=(.29198, .69225, .04189),
             bXYZ=(.1571, .06657, .78407))
SRGB = profile()
TINTED = Image.fromarray(np.uint8(np.stack([LEVELS + 30, LEVELS, 255 - LEVELS], axis=-1)))


@pytest.mark.parametrize("name, options", [
    ("a.jpg", {"quality": 100}), ("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})])
def test_the_network_sees_srgb_and_a_cut_out_keeps_the_profile(kernel, tmp_path, name, options):
    path = saved(tmp_path / name, TINTED, icc_profile=P3, **options)
    picture = kernel.read_picture(path)
    assert picture.profile == P3
    assert np.array_equal(picture.colours, Image.open(path).convert("RGB"))
    expected = ImageCms.profileToProfile(
        picture.colours, ImageCms.ImageCmsProfile(io.BytesIO(P3)), ImageCms.createProfile("sRGB"))
    assert np.array_equal(picture.rgb, expected)
    assert np.abs(np.float32(picture.rgb) - picture.colours).max() > 10
    assert np.array_equal(kernel.open_image(path, "RGB"), expected)
    assert np.array_equal(kernel.open_image(path, "RGBA").convert("RGB"), expected)


@pytest.mark.parametrize("data", [SRGB, b"", b"nonsense", P3[:200], b"\0" * 500])
def test_srgb_and_broken_profiles_leave_colours_alone(kernel, tmp_path, data):
    path = saved(tmp_path / "a.jpg", TINTED, icc_profile=data, quality=95)
    picture = kernel.read_picture(path)
    assert np.array_equal(picture.rgb, Image.open(path)) and picture.rgb.mode == "RGB"
    assert np.array_equal(picture.rgb, picture.colours)
    assert picture.profile == (data if data == SRGB else None)


def test_a_profile_of_other_colours_than_the_images_is_ignored(kernel, tmp_path):
    path = saved(tmp_path / "a.jpg", TINTED.convert("CMYK"), icc_profile=P3)
    picture = kernel.read_picture(path)
    assert picture.profile is None and np.array_equal(picture.rgb, Image.open(path).convert("RGB"))


def test_without_littlecms_colours_stay_as_they_are(kernel, tmp_path, monkeypatch):
    def absent(*_):
        raise ImportError

    kernel.transform_to_srgb.cache_clear()
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", absent)
    picture = kernel.read_picture(saved(tmp_path / "a.png", TINTED, icc_profile=P3))
    kernel.transform_to_srgb.cache_clear()
    assert picture.profile == P3 and np.array_equal(picture.rgb, TINTED)


# ---------------------------------------------------------------- what is on its side


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("name, options", [
    ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"}), ("a.jpg", {"quality": 100}),
    ("a.png", {}), ("a.webp", {"lossless": True})])
def test_an_orientation_is_applied_once(kernel, tmp_path, name, options, value):
    exif = Image.Exif()
    exif[0x0112] = value
    stored = grey().transpose({1: 0, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[value]) if (
        value > 1) else grey()  # Transpose's numbers; 6 and 8 undo each other
    path = saved(tmp_path / name, stored, exif=exif, **options)
    for image in (kernel.open_image(path, "RGB"), kernel.read_picture(path).rgb):
        assert image.size == kernel.declared_size(path) == (30, 20)
        assert np.abs(np.float32(image)[..., 0] - LEVELS).max() <= 3


@pytest.mark.parametrize("size", [(30, 20), (20, 20)])
@pytest.mark.parametrize("of_mask", ["unturned", "upright", "upright with EXIF", "with EXIF"])
def test_a_mask_stands_like_its_image(kernel, tmp_path, size, of_mask):
    """The photo says that it is to be turned; its mask was drawn before or after that."""
    stored = grey().resize(size)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = saved(tmp_path / "a.jpg", stored.convert("RGB"), exif=exif, quality=100, subsampling=0)
    mask = stored if of_mask in ("unturned", "with EXIF") else stored.transpose(
        Image.Transpose.ROTATE_270)
    path = saved(tmp_path / "m.png", mask, **({"exif": exif} if "EXIF" in of_mask else {}))
    image, alpha = kernel.open_pair(photo, path)
    assert image.size == alpha.size == size[::-1]
    if size == (30, 20) or of_mask in ("upright", "with EXIF"):  # else nothing tells it
        assert np.abs(np.float32(image)[..., 0] - np.float32(alpha)).max() <= 3


def test_a_mask_of_another_shape_is_refused_with_the_reason(kernel, tmp_path):
    photo = rotated_jpeg(tmp_path / "a.jpg")
    path = saved(tmp_path / "m.png", Image.new("L", (30, 10)))
    with pytest.raises(kernel.UserError, match="m.png: is 30x10, .*20x30, turned upright by its E"):
        kernel.open_pair(photo, path)
    image, alpha = kernel.open_pair(photo, saved(path, Image.new("L", (10, 15), 9)))
    assert image.size == alpha.size == (20, 30)


# ---------------------------------------------------------------- sound pixels, damaged files

NOISE = Image.effect_noise((300, 200), 80)


def cut(path, count, image=NOISE, **options):
    path.write_bytes(saved(path, image, **options).read_bytes()[:-count])
    return path


@pytest.mark.parametrize("name, options", [
    ("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.bmp", {}), ("a.tif", {}),
    ("a.gif", {}), ("a.ppm", {})])
def test_the_decodable_part_of_a_picture_is_used_and_noted(kernel, tmp_path, name, options):
    path = cut(tmp_path / name, 6000, **options)
    picture = kernel.read_picture(path)
    part = np.asarray(picture.rgb)[:100, :, 0]
    whole = np.asarray(Image.open(saved(tmp_path / f"whole{name}", NOISE, **options)).convert("L"))
    assert picture.rgb.size == kernel.declared_size(path) == (300, 200)
    if name in ("a.jpg", "a.png", "a.gif") and not options:
        assert np.array_equal(part, whole[:100])
    assert (part == whole[:100]).any()
    assert picture.problem.startswith("is incomplete (") and picture.notes == ()
    for read in (lambda: kernel.open_image(path, "RGB"), lambda: kernel.open_alpha(path)):
        with pytest.raises(kernel.UserError, match=f"{name}: is incomplete"):
            read()  # to learn from


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("count", [1, 2])
def test_a_jpeg_without_its_end_marker_has_all_its_pixels(kernel, tmp_path, count, options):
    path = cut(tmp_path / "a.jpg", count, **options)
    whole = np.asarray(Image.open(saved(tmp_path / "whole.jpg", NOISE, **options)))
    picture = kernel.read_picture(path)
    assert picture.notes == ("is incomplete: it lacks its end, though no pixel",)
    assert picture.problem == ""
    assert np.array_equal(np.asarray(picture.rgb)[..., 0], whole)
    assert np.array_equal(kernel.open_image(path, "L"), whole)


@pytest.mark.parametrize("name, keep", [("a.png", 60), ("a.jpg", 400), ("a.webp", 5000),
                                        ("a.png", 33), ("a.bmp", 60)])
def test_a_file_of_which_nothing_decodes_is_refused(kernel, tmp_path, name, keep):
    path = saved(tmp_path / name, NOISE.convert("RGB"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(kernel.UserError, match=f"{name}: cannot be read as an image"):
        kernel.read_picture(path)


def chunk(tag, data, crc=None):
    crc = zlib.crc32(tag + data) if crc is None else crc
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", crc)


@pytest.mark.parametrize("extra", [
    chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 * 2**20))),
    chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(2**20 - 1))) * 70,
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 * 2**20))),
    chunk(b"tEXt", b"a\0b", crc=1), chunk(b"iCCP", b"x\0\0nonsense"), chunk(b"gAMA", bytes(4), crc=7),
    chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
])
def test_metadata_cost_no_picture(kernel, tmp_path, extra):
    """And their limits in a library neither: 1 MB for a text, 64 MB for all."""
    whole = png_bytes(tmp_path)
    path = tmp_path / "a.png"
    path.write_bytes(whole[:33] + extra + whole[33:])
    assert np.array_equal(kernel.open_image(path, "L"), LEVELS)
    assert kernel.read_picture(path).notes == () and kernel.declared_size(path) == (30, 20)


def test_tolerance_of_damage_ends_with_the_picture(kernel, tmp_path):
    kernel.read_picture(cut(tmp_path / "a.jpg", 3000))
    with pytest.raises(OSError, match="truncated"):
        Image.open(tmp_path / "a.jpg").load()


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_the_first_frame_is_taken_and_said(kernel, tmp_path, name):
    frames = [NOISE.rotate(90 * number) for number in range(3)]
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:],
                 **({"lossless": True} if name.endswith("webp") else {}))
    picture = kernel.read_picture(path)
    assert picture.notes == ("has 3 frames or pages; the first is taken",)
    assert np.array_equal(np.asarray(picture.rgb)[..., 0], np.asarray(NOISE))


@pytest.mark.parametrize("content, kind", [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC; .*pillow-heif"),
    (b"%PDF-1.4\n", "a PDF document"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
     "a PostScript drawing"),
    (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    (b"<!DOCTYPE html><html></html>", "a web page"), (b"", "an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer; run `git lfs pull`"),
    (b"a text", "not an image")])
def test_a_refusal_says_what_the_file_is(kernel, tmp_path, content, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    says = rf"a.jpg: cannot be read as an image \(it is {kind}"
    with pytest.raises(kernel.UserError, match=says):
        kernel.read_picture(path)


def test_an_image_object_is_read_like_a_file(kernel):
    assert np.array_equal(kernel.read_picture(TINTED).rgb, TINTED)
    picture = kernel.read_picture(Image.merge("LA", [grey(), grey()]))
    assert np.array_equal(picture.alpha, LEVELS) and picture.rgb.mode == "RGB"


def test_a_palette_with_transparency_is_no_reason_to_warn(kernel, tmp_path, recwarn):
    image = palette(LEVELS > 60, (10, 20, 30), (200, 150, 100))
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 128]))
    picture = kernel.read_picture(path)
    assert np.array_equal(picture.alpha, np.where(LEVELS > 60, 128, 0))
    assert np.array_equal(kernel.open_image(path, "RGB"), image.convert("RGB"))
    assert np.array_equal(kernel.open_alpha(path), picture.alpha) and not recwarn.list
