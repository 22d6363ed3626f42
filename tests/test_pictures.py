"""Every way a file can store a picture comes out as the same RGB; every file that is no such picture is refused."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from dftrack.data import upright
from dftrack.data.pictures import decode, encode_jpeg, encode_png
from dftrack.data.upright import MAX_PIXELS, PictureError

Pixels = NDArray[np.uint8]


def scene(height: int = 48, width: int = 64) -> Pixels:
    """(H, W, 3): smooth, different in each channel and corner, so that a turn, a swap or a clip shows."""
    y, x = np.mgrid[:height, :width]
    red, green = 40 + 180 * x / width, 30 + 200 * y / height
    return np.stack([red, green, 128 + 60 * np.sin((x + y) / 20)], axis=-1).astype(np.uint8)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def png_of(width: int, height: int, bits: int, color: int, body: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: an opinion on 16-bit files that is not Pillow's."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def difference(left: Pixels, right: Pixels) -> float:
    assert left.shape == right.shape, f"{left.shape} is not {right.shape}"
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_lossless_file_comes_out_exactly(kind: str) -> None:
    content = stored(Image.fromarray(scene()), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (decode(content) == scene()).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_comes_out_nearly(options: dict[str, object]) -> None:
    assert difference(decode(stored(Image.fromarray(scene()), "JPEG", quality=95, **options)), scene()) < 2


def test_a_picture_is_squeezed_into_the_square_and_its_ends_stay() -> None:
    small = decode(encode_png(scene(48, 96)), 24)
    assert small.shape == (24, 24, 3)
    assert small.dtype == np.uint8
    blocks = scene(48, 96).reshape(24, 2, 24, 4, 3).mean(axis=(1, 3))  # an independent reduction
    assert difference(small, blocks.astype(np.uint8)) < 3, "the square does not show the whole picture"


def test_a_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in values)
    out = decode(png_of(64, 48, 16, 0, body))
    expected = np.round(values.astype(float) / 257)
    assert np.abs(out[..., 0] - expected).max() <= 1
    assert (out[..., 0] == out[..., 2]).all()
    white = (out == 255).mean()
    assert white < 0.01, f"{white:.0%} of the picture is white: it was clipped"


def test_a_16_bit_grey_that_names_a_clear_value_shows_white_there() -> None:
    values = np.full((2, 2), 1000, ">u2")
    values[0, 0] = 4000
    content = png_of(2, 2, 16, 0, b"".join(b"\0" + row.tobytes() for row in values), _clear(struct.pack(">H", 4000)))
    out = decode(content)
    assert out[0, 0].tolist() == [255] * 3
    assert out[1, 1].tolist() == [4] * 3


def _clear(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))


def test_a_16_bit_colour_is_scaled() -> None:
    values = (scene().astype(">u2") * 257).astype(">u2")
    out = decode(png_of(64, 48, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    assert difference(out, scene()) <= 1


def test_a_palette_comes_out_in_colour() -> None:
    quantised = Image.fromarray(scene()).quantize(200)
    out = decode(stored(quantised, "PNG"))
    assert (out == np.asarray(quantised.convert("RGB"))).all()
    assert difference(out, scene()) < 8


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((0, 0), 0)
    out = decode(stored(image, "PNG", transparency=0))
    assert out[0, 0].tolist() == [255, 255, 255]
    assert out[1, 1].tolist() == [10, 200, 10]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white_in_proportion(mode: str) -> None:
    image = Image.new(mode, (3, 1), (0, 0, 0, 255)[-len(mode) :] if mode == "RGBA" else (0, 255))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (0, 0, 0, alpha) if mode == "RGBA" else (0, alpha))
    out = decode(stored(image, "PNG"))
    assert out[0, :, 0].tolist() == [0, 127, 255], f"{mode}: {out[0, :, 0].tolist()}"


def test_a_transparent_webp_lies_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (decode(stored(image, "WEBP", lossless=True, exact=True)) == 255).all()


def test_a_cmyk_jpeg_is_not_a_negative() -> None:
    out = decode(stored(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95))
    assert difference(out, scene()) < 3, "a CMYK picture comes out in wrong colours"


def test_grey_and_1_bit_become_rgb() -> None:
    grey = Image.fromarray(scene()[..., 0])
    assert (decode(stored(grey, "PNG")) == scene()[..., :1]).all()
    bits = Image.fromarray(np.eye(8, dtype=bool))
    assert (decode(stored(bits, "PNG"))[..., 1] == np.eye(8) * 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_carried_out(orientation: int) -> None:
    upright = scene()
    turned = {  # how a camera stores the upright scene under each orientation (EXIF 2.3, by NumPy alone)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(Image.fromarray(np.ascontiguousarray(turned[orientation])), "PNG", exif=exif)
    out = decode(content)
    assert out.shape == upright.shape
    assert (out == upright).all(), f"orientation {orientation} comes out turned or mirrored"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("told", ["exif", "xmp"])
def test_every_format_and_both_ways_tell_the_orientation(kind: str, told: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict[str, object] = {"exif": exif} if told == "exif" else {"xmp": packet}
    if told == "xmp" and kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet.decode())
        options = {"pnginfo": text}
    if kind != "PNG":
        options |= {"quality": 95}
    out = decode(stored(Image.fromarray(np.ascontiguousarray(np.rot90(scene(), 1))), kind, **options))
    assert difference(out, scene()) < 3, f"{told} of a {kind} file is passed over"


JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "4:1:1": ("RGB", {"subsampling": "4:1:1"}),
    "grey": ("L", {}),
    "without a colour transform": ("RGB", {"keep_rgb": True}),
    "CMYK": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "with restart markers": ("RGB", {"restart_marker_blocks": 3}),
    "at quality 5": ("RGB", {"quality": 5}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize(("height", "width", "orientation"), [(48, 48, 1), (37, 51, 1), (37, 51, 6), (1, 9, 1)])
def test_a_jpeg_has_the_bits_that_pillow_gives_it(kind: str, height: int, width: int, orientation: int) -> None:
    mode, options = JPEGS[kind]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation > 1:
        exif[0x0112] = orientation
    content = stored(Image.fromarray(pixels).convert(mode), "JPEG", exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(decode(content), expected)
    np.testing.assert_array_equal(decode(content, 48), expected.resize((48, 48), Image.Resampling.BILINEAR))
    decode(content)[0, 0] = 0  # whoever asked may write on it


def test_small_jpegs_do_not_go_through_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (stored(Image.fromarray(scene(side, side)), "JPEG") for side in (48, 1100))
    loaded: list[tuple[int, int]] = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image.size) or real(image))
    decode(small), decode(small, 48), decode(small, 20)
    assert not loaded
    decode(large)
    assert loaded[0] == (1100, 1100), "a large one would lie in memory twice"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of broken EXIF
def test_a_damaged_jpeg_is_judged_as_by_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(content: bytes) -> bytes | str:
        try:
            return decode(content).tobytes()
        except PictureError as error:
            return error.message

    rng = np.random.default_rng(3)
    whole = [
        stored(Image.fromarray(scene(40, 56)).convert(mode), "JPEG", **options) for mode, options in JPEGS.values()
    ]
    damaged = []
    for content in whole * 40:
        bad = bytearray(content)
        for place in rng.integers(2, len(bad), rng.integers(1, 4)):
            bad[place] = rng.integers(0, 256)
        cut, gap = (int(place) for place in rng.integers(2, len(content), 2))
        damaged += [bytes(bad), content[:cut], content[:gap] + content[gap + 3 :], content + b"more"]
    found = [outcome(content) for content in damaged]
    monkeypatch.setattr(upright, "_plain_jpeg", lambda content: None)
    expected = [outcome(content) for content in damaged]
    assert found == expected
    assert {type(one) for one in expected} == {bytes, str}, "some can be read, some cannot"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of broken EXIF
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    content = stored(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(content).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_another_format_is_refused_whatever_its_name_and_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(stored(Image.fromarray(scene()), kind))
    with pytest.raises(PictureError, match=f"not a JPEG, PNG or WebP picture but {kind}"):
        decode(path)


def test_text_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="not a JPEG, PNG or WebP"):
        decode(b"hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError, match="0 bytes"):
        decode(tmp_path / "empty.png")
    with pytest.raises(PictureError, match="No such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(PictureError, match="null"):
        decode(Path("a\0b.png"))
    with pytest.raises(PictureError, match="directory"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="not a regular file"):
        decode(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = stored(Image.fromarray(noise), kind)
    with pytest.raises(PictureError) as caught:
        decode(content[: int(len(content) * share)])
    assert "\n" not in caught.value.message


def test_a_truncated_progressive_jpeg_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = stored(Image.fromarray(noise), "JPEG", progressive=True)
    with pytest.raises(PictureError, match="truncated"):
        decode(content[: len(content) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of broken EXIF
def test_damaged_bytes_are_refused_or_read_but_never_raise_anything_else() -> None:
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [stored(noise, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    files += [stored(noise.quantize(16), "PNG", transparency=3), stored(noise.convert("I;16"), "PNG")]
    for content in files:
        for _ in range(120):
            bad = bytearray(content)
            for place in rng.integers(0, len(bad), rng.integers(1, 6)):
                bad[place] = rng.integers(0, 256)
            try:
                out = decode(bytes(bad), 16)
            except PictureError:
                continue
            assert out.shape == (16, 16, 3)


def bomb_png(side: int) -> bytes:
    return png_of(side, side, 8, 0, b"\0" * 1000)


def bomb_webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is that large: Pillow's reader takes memory for it on opening."""
    body = bytearray(stored(Image.new("RGBA", (8, 8), (1, 2, 3, 100)), "WEBP"))
    assert body[12:16] == b"VP8X"
    body[24:27], body[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    return bytes(body)


def bomb_jpeg(width: int, height: int) -> bytes:
    body = bytearray(stored(Image.new("RGB", (8, 8)), "JPEG"))
    frame = body.index(b"\xff\xc0")
    body[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(body)


@pytest.mark.parametrize(
    "content",
    [bomb_png(20_000), bomb_png(9_500), bomb_png(7_100), bomb_webp(16_000, 16_000), bomb_jpeg(20_000, 20_000)],
    ids=["png 400 Mpx", "png 90 Mpx", "png 50.4 Mpx", "webp 256 Mpx", "jpeg 400 Mpx"],
)
def test_a_decompression_bomb_is_refused_by_its_header(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PictureError, match="over the limit of 50 million"):
            decode(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e6, f"{peak / 1e6:.0f} MB were taken for a picture that is refused"


def test_a_large_picture_below_the_limit_is_read() -> None:
    side = 2500
    assert side * side < MAX_PIXELS
    content = png_of(side, side, 8, 0, (b"\0" + b"\x80" * side) * side)
    out = decode(content, 8)
    assert (out == 128).all()


def test_a_large_picture_is_converted_strip_by_strip_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (37, 29, 4), dtype=np.uint8))
    colours = noise.convert("RGB")
    deep = Image.fromarray(rng.integers(0, 65536, (37, 29), dtype=np.uint16))
    contents = [stored(image, "PNG") for image in (noise, noise.convert("LA"), colours, colours.convert("L"), deep)]
    contents += [stored(noise, "WEBP", lossless=True), stored(colours, "PNG", transparency=colours.getpixel((5, 20)))]
    contents += [stored(deep, "PNG", transparency=deep.getpixel((5, 20)))]
    contents += [stored(colours.quantize(32), "PNG", transparency=index) for index in (3, bytes(range(0, 256, 8)))]
    contents += [stored(colours.convert("L"), "PNG", transparency=colours.convert("L").getpixel((5, 20)))]
    at_once = [decode(content) for content in contents]
    monkeypatch.setattr("dftrack.data.upright.STRIP_PIXELS", 150)  # 5 rows; the last strip has 2
    for content, whole in zip(contents, at_once, strict=True):
        assert np.array_equal(decode(content), whole)


def test_what_is_encoded_is_decoded_again() -> None:
    assert (decode(encode_png(scene())) == scene()).all()
    assert (decode(encode_png(scene()[..., 0])) == scene()[..., :1]).all()
    assert difference(decode(encode_jpeg(scene(), 95)), scene()) < 3
    assert encode_jpeg(scene()) == encode_jpeg(scene()), "the same picture makes different bytes"


def test_a_jpeg_of_endless_scans_is_refused_and_an_honest_progressive_one_is_not() -> None:
    """Each scan of 23 bytes costs a pass over all pixels: a few kB kept a server busy for minutes."""
    target = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(target, "JPEG", progressive=True)
    honest = target.getvalue()
    assert decode(honest).shape == (64, 64, 3)
    last = honest[honest.rindex(b"\xff\xda") : -2]
    assert decode(honest[:-2] + 20 * last + honest[-2:]).shape == (64, 64, 3)
    with pytest.raises(PictureError, match="over 100 scans"):
        decode(honest[:-2] + 200 * last + honest[-2:])
    assert decode(honest + 200 * last).shape == (64, 64, 3), "what follows the end is not of the picture"
