from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from autoad.data import Picture, decode_image, decoding, load_image, load_mask, resize_image
from autoad.data.decoding import decode_mask, inspect_image
from autoad.errors import DatasetError, UnreadableImageError
from autoad.quiet import Quiet

PIXELS = np.random.default_rng(0).integers(0, 256, size=(9, 14, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True, "exact": True}),
    ],
)
@settings(max_examples=40, deadline=None)
@given(pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_lossless_formats_come_back_exactly(file_format: str, options: dict[str, object], pixels: np.ndarray) -> None:
    decoded = decode_image(encode(pixels, file_format, **options))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


def test_jpeg_comes_back_nearly() -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, 64).astype(np.uint8)[:, None, None], (64, 48, 3))
    decoded = decode_image(encode(np.ascontiguousarray(smooth), "JPEG", quality=95))
    assert decoded.shape == (64, 48, 3)
    assert np.abs(decoded.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_grey_has_three_equal_channels(file_format: str) -> None:
    grey = PIXELS[..., 0]
    decoded = decode_image(encode(np.ascontiguousarray(grey), file_format))
    assert np.array_equal(decoded, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_black_and_white(file_format: str) -> None:
    bits = PIXELS[..., 0] > 127
    decoded = decode_image(encode(Image.fromarray(bits), file_format))
    assert np.array_equal(decoded[..., 1], bits * 255)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_palette_is_looked_up(file_format: str) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3] + [0] * (253 * 3))
    expected = [[[10, 20, 30], [200, 100, 0]], [[1, 2, 3], [200, 100, 0]]]
    image.putdata([0, 1, 2, 1])
    assert decode_image(encode(image, file_format)).tolist() == expected


def test_transparency_lies_over_black() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 128)]
    for data in (encode(rgba), encode(rgba, "TIFF"), encode(rgba, "WEBP", lossless=True, exact=True)):
        decoded = decode_image(data)[0]
        assert decoded[0].tolist() == [200, 100, 50]
        assert decoded[1].tolist() == [0, 0, 0]
        assert np.abs(decoded[2].astype(int) - [100, 50, 25]).max() <= 1


def test_a_transparent_colour_and_a_transparent_palette_entry_are_black() -> None:
    red = np.array([[[255, 0, 0], [0, 9, 0]]], dtype=np.uint8)
    assert decode_image(encode(red, transparency=(255, 0, 0))).tolist() == [[[0, 0, 0], [0, 9, 0]]]
    palette = Image.fromarray(red).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    index = palette.getpixel((0, 0))
    for transparency in (index, bytes(0 if i == index else 255 for i in range(2))):
        assert decode_image(encode(palette, transparency=transparency)).tolist() == [[[0, 0, 0], [0, 9, 0]]]


def test_grey_with_alpha_lies_over_black() -> None:
    grey_alpha = np.array([[[80, 255], [80, 0]]], dtype=np.uint8)
    assert decode_image(encode(Image.fromarray(grey_alpha))).tolist() == [[[80] * 3, [0] * 3]]


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    decoded = decode_image(encode(cyan, file_format)).reshape(-1, 3)
    assert np.abs(decoded.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@settings(max_examples=40, deadline=None)
@given(grey=hnp.arrays(np.uint16, st.tuples(st.integers(1, 8), st.integers(1, 8))))
def test_sixteen_bit_grey_uses_the_full_range(file_format: str, grey: np.ndarray) -> None:
    decoded = decode_image(encode(grey, file_format))
    assert np.array_equal(decoded[..., 2], np.rint(grey.astype(np.float64) / 257))


def test_32_bit_grey_uses_the_full_range() -> None:
    grey = np.array([[-5, 0, 2**30, 2**31 - 1]], dtype=np.int32)
    assert decode_image(encode(grey, "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(("full", "others"), [(1.0, 0.5), (255.0, 100.0), (65535.0, 300.0)])
def test_float_grey_takes_the_first_range_that_fits(full: float, others: float) -> None:
    grey = np.array([[full, others, -1.0, np.nan, np.inf]], dtype=np.float32)
    expected = [255, round(others / full * 255), 0, 0, 0]
    assert decode_image(encode(grey, "TIFF"))[0, :, 0].tolist() == expected


def test_float_grey_of_unknown_range_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match=r"float values up to 1e\+06"):
        decode_image(encode(np.full((2, 2), 1e6, dtype=np.float32), "TIFF"))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    # Upright, the picture has one white corner, top left; this is how a turned camera stores it.
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode_image(encode(np.ascontiguousarray(store(upright)), file_format, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 8


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encode(PIXELS, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff\xff" * 5)
    assert np.array_equal(decode_image(data), PIXELS)


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "PNG"])
def test_the_first_frame_is_taken(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 200)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data).tolist() == [[[10] * 3] * 8] * 8


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(file_format: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    data = encode(noise, file_format)
    with pytest.raises(UnreadableImageError, match=r"truncated|is no PNG"):
        decode_image(data[: int(kept * len(data))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am no picture", "is no PNG, JPEG, BMP, TIFF or WebP picture"),
        (encode(PIXELS, "GIF"), "is no PNG, JPEG, BMP, TIFF or WebP picture"),
        (b"\x89PNG\r\n\x1a\n", "is damaged or truncated"),
    ],
)
def test_other_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(data)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_damage_never_raises_anything_else(position: int, value: int) -> None:
    for file_format in ("PNG", "JPEG", "TIFF"):
        data = bytearray(encode(PIXELS, file_format))
        data[position % len(data)] = value
        with contextlib.suppress(UnreadableImageError):
            assert decode_image(bytes(data)).shape[2] == 3


def test_a_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9 * 14)
    assert decode_image(encode(PIXELS)).shape == PIXELS.shape
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9 * 14 - 1)
    truncated = encode(PIXELS)[:60]  # the header only: decoding it would complain of something else
    with pytest.raises(UnreadableImageError, match="14 x 9 pixels but at most 125"):
        decode_image(truncated)


@pytest.mark.parametrize("side", [9_700, 20_000])
def test_sizes_around_pillows_own_limits(side: int) -> None:
    # 94 million pixels make Pillow warn, 400 million make it raise; both are ours to decide.
    header = bytearray(encode(PIXELS)[:60])
    header[16:24] = side.to_bytes(4) * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4)
    expected = "truncated" if side * side <= decoding.MAX_PIXELS else "more than 100,000,000 pixels"
    with pytest.raises(UnreadableImageError, match=expected):
        decode_image(bytes(header))


def test_warnings_filters_survive_many_threads() -> None:
    before = list(warnings.filters)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff\xff" * 5  # makes Pillow warn
    data = encode(PIXELS, exif=exif)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(decode_image, [data] * 64))
    assert all(np.array_equal(image, PIXELS) for image in decoded)
    assert warnings.filters == before


def test_what_one_thread_ignores_stays_ignored_when_another_is_done() -> None:
    """As a backbone is traced, which warns of much, while pictures are decoded."""
    before = list(warnings.filters)
    first, second = Quiet(module=r"PIL\."), Quiet()
    first.__enter__()
    with second:
        first.__exit__()
        warnings.warn("of no interest", FutureWarning, stacklevel=1)
    assert warnings.filters == before
    with pytest.raises(FutureWarning):
        warnings.warn("again of interest", FutureWarning, stacklevel=1)


@settings(max_examples=40, deadline=None)
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
)
def test_load_is_resize_of_decode(pixels: np.ndarray, height: int, width: int) -> None:
    data = encode(pixels)
    loaded = load_image(data, (height, width))
    assert loaded.shape == (height, width, 3)
    assert np.array_equal(loaded, resize_image(decode_image(data), (height, width)))


def test_resize_is_antialiased_bilinear() -> None:
    # Each output pixel of a 1-D halving is a triangle over four inputs: weights 1, 3, 3, 1 of 8.
    row = np.random.default_rng(2).integers(0, 256, size=32)
    image = np.repeat(np.repeat(row[None, :, None], 4, axis=0), 3, axis=2).astype(np.uint8)
    resized = resize_image(image, (4, 16))
    expected = np.array([row[2 * i - 1 : 2 * i + 3] @ [1, 3, 3, 1] / 8 for i in range(1, 15)])
    assert np.abs(resized[0, 1:15, 0] - expected).max() <= 1


def picture_with_mask(folder: Path, mask: np.ndarray | bytes, name: str = "m.png", label: str = "cut") -> Picture:
    path = folder / name
    path.write_bytes(mask if isinstance(mask, bytes) else encode(mask, path.suffix[1:].upper().replace("JPG", "JPEG")))
    return Picture(folder / "p.png", "0" * 64, label, path)


def test_masks_of_normals_and_of_unmarked_defects(tmp_path: Path) -> None:
    normal = load_mask(Picture(tmp_path / "p.png", "0"), (3, 5))
    assert normal is not None
    assert normal.shape == (3, 5)
    assert not normal.any()
    assert load_mask(Picture(tmp_path / "p.png", "0", "cut"), (3, 5)) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
def test_any_nonzero_pixel_is_defective(tmp_path: Path, dtype: type) -> None:
    mask = np.array([[0, 1, 0], [0, 0, 2]]).astype(dtype)
    loaded = load_mask(picture_with_mask(tmp_path, mask), (2, 3))
    assert loaded is not None
    assert loaded.tolist() == [[False, True, False], [False, False, True]]


def test_colour_and_palette_masks(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 90])
    palette.putpixel((1, 0), 1)
    for data in (encode(palette), encode(np.array([[[0, 0, 0], [0, 0, 1]]], dtype=np.uint8))):
        loaded = load_mask(picture_with_mask(tmp_path, data), (1, 2))
        assert loaded is not None
        assert loaded.tolist() == [[False, True]]


def test_jpeg_masks_are_cut_at_half(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[5:20, 7:18] = 255
    loaded = load_mask(picture_with_mask(tmp_path, encode(mask, "JPEG", quality=90), "m.jpg"), (32, 32))
    assert loaded is not None
    assert np.array_equal(loaded, mask > 0)


@settings(max_examples=40, deadline=None)
@given(
    mask=hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans()),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_no_defect_vanishes_and_none_appears(mask: np.ndarray, height: int, width: int) -> None:
    resized = decoding._resize_mask(mask, (height, width))
    assert resized.shape == (height, width)
    assert resized.any() == mask.any()
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    # Each region is seen by a cell that overlaps it, and no marked cell overlaps none.
    ys, xs = (np.arange(n + 1) * old / n for n, old in zip((height, width), mask.shape, strict=True))
    seen = set()
    for y, x in zip(*np.nonzero(resized), strict=True):
        rows = slice(int(ys[y]), int(np.ceil(ys[y + 1])))
        columns = slice(int(xs[x]), int(np.ceil(xs[x + 1])))
        here = set(np.unique(regions[rows, columns])) - {0}
        assert here
        seen |= here
    assert seen == set(range(1, count + 1))


def test_a_large_defect_is_resized_by_nearest() -> None:
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[10:50, 20:60] = True
    assert np.array_equal(decoding._resize_mask(mask, (32, 32)), mask[1::2, 1::2])


def test_an_unreadable_mask_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"m\.png of .*p\.png must be readable"):
        load_mask(picture_with_mask(tmp_path, b"nonsense"), (4, 4))


def test_inspecting_is_what_decoding_finds(tmp_path: Path, write_picture, write_mask) -> None:
    files = [write_picture(tmp_path / f"{kind}.x", format=kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")]
    files += [write_mask(tmp_path / "mask.png"), write_mask(tmp_path / "empty.png", empty=True)]
    files.append(write_mask(tmp_path / "faint.jpg", empty=True))
    for path in files:
        data = path.read_bytes()
        for given_as in (data, memoryview(data)):
            found = inspect_image(given_as)
            marked = decode_mask(data)
            assert (found.size, found.fault, found.marks) == (marked.shape, None, bool(marked.any()))
    for data in (b"", b"x", files[0].read_bytes()[:-60]):
        found = inspect_image(data)
        assert (found.size, found.marks) == (None, None)
        assert found.fault is not None
        assert found.fault.startswith("is ")


def test_float_values_beyond_a_pictures_are_still_a_mask(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 7), 1e6, np.float32)).save(tmp_path / "a.tif")
    found = inspect_image((tmp_path / "a.tif").read_bytes())
    assert (found.size, found.marks) == ((5, 7), True)
    assert "float values" in str(found.fault)
