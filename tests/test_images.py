"""Image files and encoded images: whatever they hold becomes RGB uint8[h, w, 3], or is one clear
error.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from trimvla.launch.inspection.look import load_image
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import decode, encode
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.process import CameraConfig, ImageSource
from trimvla.runtime.errors import CameraError, ConfigError, ImageError, WireError
from trimvla.runtime.image_codec import decode_image
from trimvla.runtime.images import read_image
from trimvla.runtime.servers.packing import unpack

RAMP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21  # up to 64,491
COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
ORIENTATION = 0x0112


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def jpeg(orientation: int) -> bytes:
    """Its upper left quarter is white as it is stored."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    exif = Image.Exif()
    sink = io.BytesIO()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(sink, "jpeg", quality=95, exif=exif)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, name: str):
    image = read_image(saved(Image.fromarray(RAMP), tmp_path / name))
    expected = np.round(RAMP / 65535 * 255).astype(np.uint8)
    assert image.shape == (48, 64, 3) and (image == expected[..., None]).all()


@pytest.mark.parametrize(
    ("orientation", "white"),
    [
        (1, (0, 0)),
        (2, (0, 1)),
        (3, (1, 1)),
        (4, (1, 0)),
        (5, (0, 0)),
        (6, (0, 1)),
        (7, (1, 1)),
        (8, (1, 0)),
    ],
)
def test_the_orientation_is_applied(tmp_path: Path, orientation: int, white: tuple[int, int]):
    (tmp_path / "photo.jpg").write_bytes(jpeg(orientation))
    image = read_image(tmp_path / "photo.jpg")
    assert image.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    rows = image.shape[0] // 2
    columns = image.shape[1] // 2
    quarters = [
        [image[y * rows :, x * columns :][:rows, :columns].mean() for x in (0, 1)] for y in (0, 1)
    ]
    assert np.unravel_index(np.argmax(quarters), (2, 2)) == white


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("P", "png"), ("CMYK", "tif"), ("YCbCr", "tif"), ("RGB", "bmp")],
)
def test_other_colours_are_converted(tmp_path: Path, mode: str, suffix: str):
    image = Image.fromarray(COLOURS).convert(mode)
    found = read_image(saved(image, tmp_path / f"image.{suffix}"))
    assert (found == np.array(image.convert("RGB"))).all() and found.flags.writeable


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_over_black(tmp_path: Path, mode: str):
    image = Image.new(mode, (4, 2), (200, 100, 50, 0) if mode == "RGBA" else (200, 0))
    image.putpixel((0, 0), (200, 100, 50, 255) if mode == "RGBA" else (200, 255))
    found = read_image(saved(image, tmp_path / "image.png"))
    assert found[0, 0].tolist() == ([200, 100, 50] if mode == "RGBA" else [200] * 3)
    assert not found[:, 1:].any()


def test_a_transparent_palette_colour_is_over_black(tmp_path: Path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    found = read_image(saved(image, tmp_path / "image.png", transparency=0))
    assert found[0].tolist() == [[0, 0, 0], [0, 255, 0]]


def png(width: int, height: int) -> bytes:
    """A header that asks for this many pixels, and nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


COLOUR_IMAGE = Image.fromarray(COLOURS)
OTHER = Image.fromarray(COLOURS[::-1])
TWO: dict[str, object] = {"save_all": True, "append_images": [OTHER]}
SAVED: dict[str, tuple[Image.Image, dict[str, object]]] = {
    "floats": (Image.fromarray(COLOURS[..., 0].astype(np.float32)), {"format": "TIFF"}),
    "32-bit integers": (Image.fromarray(RAMP.astype(np.int32)), {"format": "TIFF"}),
    "several frames": (COLOUR_IMAGE, {"format": "TIFF", **TWO}),
    "animation": (COLOUR_IMAGE, {"format": "GIF", **TWO}),
    "animated PNG": (COLOUR_IMAGE, {"format": "PNG", **TWO}),
    "PostScript": (COLOUR_IMAGE, {"format": "EPS"}),
    "cut off": (COLOUR_IMAGE, {"format": "PNG"}),
}


def broken(directory: Path, kind: str) -> Path:
    """A file, or what is none, that cannot become an image."""
    path = directory / "image"
    contents = {
        "too large": png(5_000, 5_000),
        "far too large": png(30_000, 30_000),
        "text": b"no image",
        "empty": b"",
    }
    if kind in SAVED:
        image, options = SAVED[kind]
        saved(image, path, **options)
    if kind == "cut off":
        os.truncate(path, path.stat().st_size - 2000)
    elif kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    return path


KINDS = {
    "floats": "8 or 16 bits a channel, got TIFF of Pillow's mode 'F'",
    "32-bit integers": "8 or 16 bits a channel, got TIFF of Pillow's mode 'I'",
    "several frames": "expected one image, got TIFF with 2",
    "animation": "expected one image, got GIF with 2",
    "animated PNG": "expected one image, got PNG with 2",
    "cut off": "expected an image, got: ",
    "too large": "expected at most 16777216 pixels, got 5000 x 5000",
    "far too large": "expected an image, got: Image size (900000000 pixels) exceeds limit",
    "text": "expected an image, got: none of PNG, JPEG",
    "empty": "expected an image, got: none of PNG, JPEG",
    "PostScript": "expected an image, got: none of PNG, JPEG",
    "directory": "expected an image file, got something else there",
    "pipe": "expected an image file, got something else there",
    "absent": "expected an image file, got nothing there",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_one_clear_error_wherever_a_file_is_read(tmp_path: Path, kind: str):
    path = broken(tmp_path, kind)
    readers = {
        ImageError: read_image,
        ConfigError: load_image,
        CameraError: lambda path: ImageSource(CameraConfig(kind="image", where=str(path))),
    }
    for error, read in readers.items():
        with pytest.raises(error) as got:
            read(path)
        words = str(got.value)
        assert str(path) in words and KINDS[kind] in words and "\n" not in words


def test_the_camera_process_reads_an_image_as_it_is_meant(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(jpeg(6))
    source = ImageSource(CameraConfig(kind="image", where=str(tmp_path / "photo.jpg")))
    before = source.read().copy()
    assert before.shape == (64, 48, 3)
    (tmp_path / "photo.jpg").write_bytes(b"another, half written")
    assert (source.read() == before).all(), "a file that is replaced changes nothing"
    with pytest.raises(CameraError, match=r"photo\.jpg: expected an image"):
        camera.run(
            CameraConfig(kind="image", where=str(tmp_path / "photo.jpg")),
            tmp_path,
            threading.Event(),
        )


def test_images_in_messages_are_read_alike():
    assert decode_image(jpeg(3), "jpeg")[30:, 40:].mean() > 250
    sink = io.BytesIO()
    Image.fromarray(RAMP).save(sink, "png")
    assert (decode_image(sink.getvalue(), "png")[..., 1] == np.round(RAMP / 65535 * 255)).all()
    message = {"__image__": True, "format": "jpeg", "data": jpeg(3), "shape": [48, 64, 3]}
    found = unpack(msgspec.msgpack.encode(message))
    assert np.asarray(found)[30:, 40:].mean() > 250


def test_a_frame_whose_orientation_contradicts_its_header_is_refused():
    color = topic("front/color")
    name, header, _ = encode(color, Frame("front", 1, COLOURS), "jpeg")

    def parts(payload: bytes) -> list[bytes]:
        fields = msgspec.json.decode(header) | {"payload_size": len(payload)}
        return [name, msgspec.json.encode(fields), payload]

    upright = decode(color, parts(jpeg(3)))
    assert isinstance(upright, Frame) and upright.image[30:, 40:].mean() > 250
    with pytest.raises(WireError, match=r"expected 64 x 48 pixels, got \(48, 64\) once upright"):
        decode(color, parts(jpeg(6)))
