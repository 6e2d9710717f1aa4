"""Pixels: every kind of image file, scaled by its real range, broken ones named at once."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_files import fill, grey, load, parquet, png, refuse, tree
from stagecost.data.config import DataConfig
from stagecost.data.decoding import MIXED_SIZE, Pixels, read_pixels
from stagecost.data.encoded import FORMATS, Images
from stagecost.data.images import ImageFormat
from stagecost.export import pictures


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def decode(*files: bytes, **options: Any) -> Pixels:
    images = Images(lambda rows: [files[row] for row in rows], "file {}".format, str)
    return read_pixels(images, np.arange(len(files)), **options)


def read(*pictures: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    return decode(*(encoded(picture, kind) for picture in pictures), **options).array


# -- channels and size ------------------------------------------------------------------------


def test_channels_and_size_follow_the_images() -> None:
    dark, colour = Image.new("L", (10, 10), 7), Image.new("RGB", (10, 10), (1, 2, 3))
    assert read(dark, dark).shape == (2, 1, 10, 10)
    both = read(dark, dark, colour)
    assert both.shape == (3, 3, 10, 10)
    assert both[0, :, 0, 0].tolist() == [7, 7, 7]
    assert both[2, :, 0, 0].tolist() == [1, 2, 3]
    assert read(colour, dark)[1, :, 0, 0].tolist() == [7, 7, 7]
    assert read(dark, dark.resize((10, 11))).shape == (2, 1, MIXED_SIZE, MIXED_SIZE)
    assert read(dark.resize((9, 11)), dark.resize((9, 11))).shape == (2, 1, MIXED_SIZE, MIXED_SIZE)
    assert read(dark.resize((64, 64)), dark, colour).shape == (3, 3, MIXED_SIZE, MIXED_SIZE)
    assert (read(dark.resize((9, 11)), colour)[1, 2] == 3).all()
    assert read(colour, channels=1, size=5).shape == (1, 1, 5, 5)


def test_resize_by_the_short_side_and_crop_the_middle() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # the middle third is all that is left
    assert (read(Image.fromarray(wide), size=10) == 200).all()
    assert (read(Image.fromarray(wide.T), size=10) == 200).all()


def test_large_images_are_decoded_by_threads() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 130, 130), dtype=np.uint8)
    assert (read(*map(Image.fromarray, pixels))[:, 0] == pixels).all()


# -- modes ------------------------------------------------------------------------------------


def palette(*colours: int, transparency: bytes | None = None) -> bytes:
    picture = Image.fromarray(np.tile(np.arange(2, dtype=np.uint8), (4, 2)))
    picture.putpalette(list(colours))
    return encoded(picture, **({} if transparency is None else {"transparency": transparency}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("1", (4, 4), 1)), [255]),
        (encoded(Image.new("L", (4, 4), 9)), [9]),
        (encoded(Image.new("L", (4, 4), 9), transparency=9), [255]),  # one grey level is transparent
        (encoded(Image.new("LA", (4, 4), (9, 255))), [9]),
        (encoded(Image.new("LA", (4, 4), (9, 0))), [255]),  # transparent, on white
        (encoded(Image.new("LA", (4, 4), (0, 51))), [204]),
        (encoded(Image.new("RGB", (4, 4), (1, 2, 3))), [1, 2, 3]),
        (encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), [255] * 3),
        (encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255))), [1, 2, 3]),
        (encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 0))), [255] * 3),
        (encoded(Image.new("RGBA", (4, 4), (255, 0, 100, 51))), [255, 204, 224]),
        (palette(10, 20, 30, 1, 1, 1), [10, 20, 30]),
        (palette(10, 20, 30, 1, 1, 1, transparency=b"\x00\xff"), [255] * 3),
        (encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF"), [255] * 3),
        (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
        (encoded(Image.new("YCbCr", (4, 4), (128, 128, 128)), "JPEG"), [128] * 3),
        (encoded(Image.new("RGB", (4, 4), (7, 8, 9)), "GIF"), [7, 8, 9]),
        (encoded(Image.new("RGB", (4, 4), (7, 8, 9)), "BMP"), [7, 8, 9]),
        (encoded(Image.new("RGB", (4, 4), (7, 8, 9)), "PPM"), [7, 8, 9]),
        (encoded(Image.new("RGB", (4, 4), (7, 8, 9)), "WEBP", lossless=True), [7, 8, 9]),
        (encoded(Image.fromarray(np.full((4, 4), 0x8001, np.uint16))), [0x80]),
        (encoded(Image.fromarray(np.full((4, 4), 77, np.uint16))), [77]),
    ],
)
def test_modes(content: bytes, expected: list[int]) -> None:
    assert decode(content).array[0, :, 0, 0].tolist() == expected


def test_camera_held_sideways() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    seen = decode(encoded(Image.fromarray(pixels), exif=exif)).array[0, 0]
    assert seen.tolist() == np.rot90(pixels, -1).tolist()


def test_the_note_may_stand_behind_the_pixels_or_be_xmp() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(pixels), exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    before_end = content.index(b"IEND") - 4
    late = content[:start] + content[end:before_end] + content[start:end] + content[before_end:]
    note = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF>'
        b"</x:xmpmeta>"
    )
    xmp = encoded(Image.fromarray(pixels), "JPEG", xmp=note, quality=100)
    for one in (late, xmp):
        seen = decode(one).array[0, 0].astype(int)
        assert np.abs(seen - np.rot90(pixels, -1)).max() < 8


def test_a_clear_value_of_16_bits_is_white() -> None:
    pixels = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    seen = decode(encoded(Image.fromarray(pixels), transparency=3000)).array[0, 0]
    expected = np.rint(pixels / 65535 * 255)
    expected[0, 3] = 255
    assert seen.tolist() == expected.tolist()


@settings(max_examples=40)
@given(
    pixels=arrays.arrays(np.uint8, (3, 3, 4)),
    indexed=st.booleans(),
)
def test_transparency_is_laid_on_white(pixels: np.ndarray, indexed: bool) -> None:
    picture = Image.fromarray(pixels, "RGBA") if not indexed else Image.fromarray(pixels[..., ::2], "LA")
    alpha = pixels[..., -1:] / 255 if not indexed else pixels[..., 2:3] / 255
    colour = pixels[..., :3] if not indexed else pixels[..., :1]
    expected = (colour * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)
    assert np.abs(read(picture)[0] - expected).max() <= 1.5


# -- more than 8 bits -------------------------------------------------------------------------

DEEP = {
    "16 bits": (np.uint16, 65535, "PNG"),
    "16 bits, TIFF": (np.uint16, 65535, "TIFF"),
    "12 bits of 16": (np.uint16, 4095, "PNG"),
    "10 bits of 16": (np.uint16, 1023, "TIFF"),
    "8 bits of 16": (np.uint16, 255, "PNG"),
    "8 bits of 32": (np.int32, 255, "TIFF"),
    "20 bits of 32": (np.int32, 2**20 - 1, "TIFF"),
    "whole numbers as floats": (np.float32, 4095, "TIFF"),
}


@pytest.mark.parametrize("name", DEEP)
@settings(max_examples=12)
@given(data=st.data())
def test_the_range_is_that_of_the_values(name: str, data: st.DataObject) -> None:
    kind, highest, suffix = DEEP[name]
    values = data.draw(arrays.arrays(np.int64, (3, 4, 4), elements=st.integers(0, highest)))
    values[-1, -1, -1] = highest
    pixels = decode(*(encoded(Image.fromarray(image.astype(kind)), suffix) for image in values))
    assert pixels.levels == (0, highest)
    assert np.abs(pixels.array[:, 0] - values * (255 / highest)).max() <= 0.5


@settings(max_examples=40)
@given(
    values=arrays.arrays(np.float32, (2, 3, 3), elements=st.floats(0, 1, width=16)),
    scale=st.sampled_from([1e-3, 1, 7.5, 1e6]),
    offset=st.sampled_from([0, -0.5]),
)
def test_fractions_and_negative_values(values: np.ndarray, scale: float, offset: float) -> None:
    values = ((values + np.float32(offset)) * np.float32(scale)).astype(np.float32)
    values[0, 0, 0], values[1, 0, 0] = (1 + offset) * scale, 0.3 * scale
    pixels = decode(*(encoded(Image.fromarray(image), "TIFF") for image in values))
    low, high = pixels.levels
    assert low <= values.min()
    assert values.max() <= high
    assert high - low <= 2.0001 * (
        values.max() - min(values.min(), 0)
    )  # at least half of the levels are used
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(pixels.array.reshape(-1)[order].astype(int)) >= 0).all()


def half(number: int, high: int, kind: Any) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, high // 5, (16, 16))
    pixels[:, 8 * (number % 2) : 8 * (number % 2) + 8] += high // 2
    return Image.fromarray(pixels.astype(kind))


def ink(number: int, colour: int) -> Image.Image:
    pixels = np.full((16, 16, 4), colour, np.uint8)
    pixels[..., 3] = 0
    pixels[:, 8 * (number % 2) : 8 * (number % 2) + 8, 3] = 255
    return Image.fromarray(pixels)


def halves(folder: Path, make: Callable[[int], Image.Image], kind: str = "PNG", count: int = 24) -> Path:
    for number in range(count):
        path = (
            folder / ("cat", "dog")[number % 2] / f"{number}.{ {'TIFF': 'tif'}.get(kind, kind.lower()) }"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        make(number).save(path, kind)
    return folder


@pytest.mark.parametrize(
    ("make", "kind", "brighter"),
    [
        (lambda n: half(n, 65535, np.uint16), "PNG", 1),
        (lambda n: half(n, 4095, np.uint16), "PNG", 1),
        (lambda n: half(n, 255, np.uint16), "PNG", 1),
        (lambda n: half(n, 255, np.int32), "TIFF", 1),
        (lambda n: Image.fromarray(np.asarray(half(n, 1000, np.float32)) / np.float32(1000)), "TIFF", 1),
        (lambda n: ink(n, 0), "PNG", -1),
        (lambda n: ink(n, 0).quantize(4), "PNG", -1),
        (lambda n: ink(n, 0).convert("LA"), "PNG", -1),
        (lambda n: ink(n, 0), "WEBP", -1),
    ],
)
def test_halves_differ(
    tmp_path: Path, make: Callable[[int], Image.Image], kind: str, brighter: int
) -> None:
    split = load(halves(tmp_path, make, kind), splits=["all"]).splits["all"]
    for image, target in zip(split.images.double(), split.targets.tolist(), strict=True):
        inked, other = (image[:, :, 8 * side : 8 * side + 8].mean() for side in (target, 1 - target))
        assert brighter * (inked - other) > 60


def test_all_alike_is_refused(tmp_path: Path) -> None:
    white = halves(tmp_path / "white", lambda n: ink(n, 255))
    refuse("all 17 train images of white are alike, .*transparent pixels are laid on white", white)
    refuse("are alike", halves(tmp_path / "black", lambda n: Image.new("I;16", (8, 8), 0)))
    same = halves(tmp_path / "same", lambda n: Image.fromarray(grey(3, 3)))
    refuse("are alike", same)
    like = load(halves(tmp_path / "good", lambda n: half(n, 255, np.uint8))).format
    judged = load(same, splits=["test"], like=like)
    assert any("all 5 test images of same are alike" in text for text in judged.warnings)
    flat = halves(
        tmp_path / "flat", lambda n: Image.new("L", (8, 8), 50 * (n % 2))
    )  # flat, but not alike
    assert load(flat).format.std[0] > 0.05


def raw_png(depth: int, kind: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG file of 4×4 pixels as Pillow does not write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0))
    head += b"".join(chunk(name.encode(), content) for name, content in chunks.items() if content)
    pixels = chunk(b"IDAT", zlib.compress(4 * (b"\0" + row)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def deep_colours(value: int, notes: bytes = b"", clear: bytes = b"") -> bytes:
    """Colours of 16 bits, with a camera's notes, and with a colour that is clear."""
    return raw_png(16, 2, struct.pack(">12H", *[value, value // 2, 0] * 4), eXIf=notes, tRNS=clear)


@pytest.mark.parametrize(
    ("depth", "row", "seen"),
    [
        (1, b"\x50", [0, 255, 0, 255]),
        (2, b"\x1b", [0, 255, 170, 255]),
        (4, b"\x12\x31", [255, 34, 51, 255]),
    ],
)
def test_a_clear_value_of_few_bits_is_white(
    depth: int, row: bytes, seen: list[int], tmp_path: Path
) -> None:
    content = raw_png(depth, 0, row, tRNS=b"\0\1")
    assert decode(content).array[0, 0].tolist() == [seen] * 4
    (tmp_path / "a.png").write_bytes(content)
    spec = {"size": 4, "channels": 1, "interpolation": "bicubic"}
    assert pictures.read(spec, str(tmp_path / "a.png"))[0].tolist() == [seen] * 4


def test_a_clear_colour_of_16_bits_is_refused() -> None:
    content = deep_colours(60000, clear=struct.pack(">3H", 60000, 30000, 0))
    assert "its clear colour has 16 bits" in decode(content).broken[0]
    with pytest.raises(ValueError, match="its clear colour has 16 bits"):
        pictures.widen_clear_value(Image.open(io.BytesIO(content)))


def test_colours_of_16_bits() -> None:
    assert decode(deep_colours(65535)).array[0, :, 0, 0].tolist() == [255, 127, 0]
    with pytest.raises(ValueError, match=r"colours of 16 bits .* convert them to colours of 8 bits"):
        decode(deep_colours(4095), deep_colours(300))
    upright = Image.Exif()
    upright[0x0112] = 1
    with pytest.raises(ValueError, match=r"colours of 16 bits .* convert them to colours of 8 bits"):
        decode(*(deep_colours(value, upright.tobytes()[6:]) for value in (4095, 300)))


def test_values_of_32_bits_without_a_sign() -> None:
    high = encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF")
    assert decode(high).levels == (-5, -4)
    sign = struct.pack("<HHIHH", 339, 3, 1, 2, 0)  # SampleFormat: whole numbers with a sign
    assert high.count(sign) == 1
    unsigned = high.replace(sign, struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert "it has values from 2^31 on" in decode(unsigned).broken[0]


def test_a_white_zero_of_16_bits_is_refused() -> None:
    """Pillow turns it over with 8 bits alone."""
    deep, usual = Image.fromarray(np.full((4, 4), 60_000, np.uint16)), Image.new("L", (4, 4), 200)
    content, other = (encoded(picture, "TIFF", tiffinfo={0x0106: 0}) for picture in (deep, usual))
    assert "its zero is white" in decode(content).broken[0]
    assert decode(other).array[0, 0, 0].tolist() == [200] * 4


def test_no_program_reads_a_picture(tmp_path: Path) -> None:
    """Pillow has Ghostscript read an EPS file; a runner reads the formats of training."""
    assert pictures.FORMATS == FORMATS
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    assert "cannot identify" in decode((tmp_path / "a.eps").read_bytes()).broken[0]
    spec = {"size": 4, "channels": 3, "interpolation": "bicubic"}
    with pytest.raises(SystemExit, match="cannot identify"):
        pictures.read(spec, str(tmp_path / "a.eps"))


def test_values_beyond_the_training_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    halves(folder / "train", lambda n: half(n, 4095, np.uint16))
    halves(folder / "test", lambda n: half(n, 65535, np.uint16))
    bundle = load(folder)
    assert bundle.format.levels == (0, 4095)
    assert "test has brighter or darker pixels than the training images: cut off" in bundle.warnings
    assert ImageFormat.from_json(bundle.format.to_json()) == bundle.format
    shallow = load(halves(tmp_path / "8", lambda n: half(n, 255, np.uint8)))
    assert shallow.format.levels is None
    judged = load(folder, splits=["test"], like=shallow.format)
    assert any("had none: scaled from 0 … 65535" in text for text in judged.warnings)


# -- what cannot be decoded -------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "no image": b"not an image",
    "cut off": png(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))[:-300],
    "a JPEG that is cut off": encoded(Image.effect_noise((40, 40), 90), "JPEG")[:-300],
    "NaN": encoded(Image.fromarray(np.full((6, 6), np.nan, np.float32)), "TIFF"),
    "infinite": encoded(Image.fromarray(np.full((6, 6), np.inf, np.float32)), "TIFF"),
    "a bomb": encoded(Image.new("1", (10000, 10000)), "TIFF", compression="group4"),
    "a header of other sizes": png(np.zeros((6, 6), np.uint8)).replace(
        struct.pack(">II", 6, 6), struct.pack(">II", 9400, 9300)
    ),
    "another program's": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named(tmp_path: Path, name: str) -> None:
    folder = tree(tmp_path / "set", {"cat": 4, "dog": 4})
    (folder / "dog" / "002.png").write_bytes(BROKEN[name])
    line = refuse(
        r"1 image cannot be decoded: .*dog/002\.png \(.+\): replace or remove it, .*--skip-broken",
        folder,
    )
    assert "BytesIO" not in line


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        tree(tmp_path / split, {"cat": count, "dog": count})
        (tmp_path / split / "cat" / "000.png").write_bytes(b"?")
        (tmp_path / split / "dog" / "101.png").unlink()
        (tmp_path / split / "dog" / "101.png").symlink_to("nowhere")
    line = refuse("^6 images cannot be decoded: ", tmp_path)
    assert "train/cat/000.png (cannot identify image file)" in line
    assert "test/dog/101.png (there is no such file)" in line
    bundle = load(tmp_path, skip_broken=True)
    assert {name: len(split) for name, split in bundle.splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 4,
    }
    assert [len(bundle.kept[name].index) for name in ("train", "val", "test")] == [10, 4, 4]
    assert [len(bundle.chosen[name].index) for name in ("train", "val", "test")] == [12, 6, 6]
    assert "train: 10 images" in bundle.summary()
    assert any(text.startswith("left out 6 images that cannot") for text in bundle.warnings)


def test_the_images_that_are_left_are_the_same(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"cat": 10, "dog": 10})
    whole = load(folder)
    (folder / "cat" / "003.png").write_bytes(b"?")
    rest = load(folder, skip_broken=True)
    for name, split in whole.splits.items():
        then = [image.numpy().tobytes() for image in split.images]
        now = [image.numpy().tobytes() for image in rest.splits[name].images]
        assert now == [image for image in then if image != grey(0, 3).tobytes()]
        assert len(rest.splits[name].targets) == len(now)
    assert rest.format.class_names == whole.format.class_names


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_any_good_image(tmp_path: Path, split: str) -> None:
    for name in ("train", "test"):
        fill(tmp_path / name / "cat", 0, 3)
        fill(tmp_path / name / "dog", 1, 3)
    for path in (tmp_path / split).glob("*/*"):
        path.write_bytes(b"?")
    refuse(
        f"6 images cannot be decoded: .* no {split} image is left",
        DataConfig(str(tmp_path), skip_broken=True),
    )


def test_many_broken_images(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", [0, 1] * 50, pictures=[*[b"?"] * 90, *map(png, [grey(0, 1)] * 10)]
    )
    line = refuse("^90 images cannot be decoded: image 2 of ", path.parent)
    assert "… (90 in all)" in line
    assert line.count("cannot identify") >= 3
