"""From a JPEG, PNG or WebP file to an upright RGB picture, whatever way the file stores it."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dftrack.errors import DataError

DECODERS = (PIL.__version__, simplejpeg.__version__)  # others might decode otherwise
FORMATS = ("JPEG", "PNG", "WEBP")  # nothing else is opened, whatever a file is called
MAX_PIXELS = 50_000_000  # width x height by the header; checked before a pixel is decoded
MAX_SCANS = 100  # of one JPEG; an honest progressive one has about ten
_APP1 = b"\xff\xe1"  # begins EXIF and XMP, which may tell an orientation; no pixels can look like that
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
STRIP_PIXELS = 1 << 20  # of a large picture, converted at once
MAX_BYTES = 256 << 20  # of one file; the largest honest picture of MAX_PIXELS is smaller

_TURNS = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag
_STRANGERS = (  # how other formats begin, to name them in the refusal
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
)


class PictureError(DataError):
    """Why one file cannot be read as a picture; the message does not repeat the file's name."""


def decode_bytes(content: bytes, size: int | None, ground: str) -> NDArray[np.uint8]:
    """What `pictures.decode` promises, of the content of a file."""
    pixels = _plain_jpeg(content)
    if pixels is not None and (size is None or pixels.shape[:2] == (size, size)):
        return pixels
    image = Image.fromarray(pixels) if pixels is not None else _open(content)
    try:
        image = _upright(_to_rgb(image, ground), _orientation(image))
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PictureError(_one_line(error)) from error  # Pillow names broken files with all of these
    except MemoryError as error:
        raise PictureError(f"no memory to decode {image.width} x {image.height} pixels") from error


def _plain_jpeg(content: bytes) -> NDArray[np.uint8] | None:
    """(H, W, 3) of a small JPEG in colour or grey and in order that tells nothing of a camera; None of anything else.

    The bits of Pillow, which stands on the same library, in half the time: Pillow reads the header in Python, keeps 4
    bytes a pixel, and copies them while it holds the interpreter. What is not plain is Pillow's to judge.
    """
    if content[:2] != b"\xff\xd8" or _APP1 in content:
        return None
    _refuse_scans(content)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > STRIP_PIXELS or colours not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
    except Exception:  # damaged, or of a kind it does not know
        return None
    return pixels


def count_pixels(content: bytes) -> int:
    """Width x height of the picture that would be decoded, by its header; 0 if it would be refused at once."""
    try:
        if content[:4] == b"RIFF":  # Pillow's WebP reader allocates on opening
            width, height = _dimensions(content) or (0, 0)
            _refuse_large(width, height)
        else:
            width, height = _open(content).size
    except PictureError:
        return 0
    return width * height


def open_regular(path: Path) -> BinaryIO:
    """The file, to be read. Raises PictureError for a pipe or a device: whoever read it might wait for ever."""
    handle = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise PictureError("not a regular file but a pipe or a device")
    return handle


def read_bytes(path: Path) -> bytes:
    """The content of the file, refused over MAX_BYTES. Raises PictureError saying why it cannot be read."""
    try:
        with open_regular(path) as handle:
            content = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise PictureError(getattr(error, "strerror", None) or str(error)) from error
    if len(content) > MAX_BYTES:
        raise PictureError(f"over {MAX_BYTES >> 20} MiB")
    return content


def _open(content: bytes) -> Image.Image:
    """The picture behind `content`, its header read, no pixel decoded yet."""
    if not content:
        raise PictureError("empty file (0 bytes)")
    if content.startswith(b"\xff\xd8"):
        _refuse_scans(content)
    _refuse_large(*(_dimensions(content) or (0, 0)))  # before Pillow sees it: its WebP reader allocates on opening
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError(f"not a JPEG, PNG or WebP picture{_stranger(content)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"over the limit of {MAX_PIXELS // 10**6} million pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PictureError(_one_line(error)) from error
    _refuse_large(*image.size)  # what Pillow is going to decode is what counts in the end
    return image


def _refuse_scans(content: bytes) -> None:
    """Raise PictureError for a JPEG of many scans: each costs a pass over all pixels, and 23 bytes."""
    if content.count(b"\xff\xda") <= MAX_SCANS:  # so it is with every honest one; the walk takes a sixth of decoding
        return
    place, scans = 2, 0
    while found := _MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        if marker == 0xD9:  # the end: what follows is not of this picture
            return
        if marker in (0x01, 0xD8):  # these have no length
            continue
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise PictureError(f"a JPEG of over {MAX_SCANS} scans")
        place += max(2, int.from_bytes(content[place : place + 2], "big"))


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise PictureError(f"{width} x {height} pixels, over the limit of {limit} million")


def _dimensions(content: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a PNG, WebP or JPEG; None where it does not say."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR":
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_dimensions(content)
    if content[:2] == b"\xff\xd8":
        return next(_jpeg_frames(content), None)
    return None


def _webp_dimensions(content: bytes) -> tuple[int, int] | None:
    """Canvas size by the WebP container specification: extended, lossless and lossy bitstreams."""
    if len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = int.from_bytes(content[26:28], "little"), int.from_bytes(content[28:30], "little")
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_frames(content: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of each frame header (SOF marker) that stands before the first scan."""
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:  # start of scan
            return
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = content[place + 5 : place + 7], content[place + 7 : place + 9]
            yield int.from_bytes(width, "big"), int.from_bytes(height, "big")
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")


def _to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """Every mode these formats can come in, as RGB; `image` itself if it is that already.

    What takes several steps is done a strip of rows at a time: large pictures would need five times their memory.
    """
    image.load()
    if image.mode.startswith("I"):
        return _in_strips(image, _from_16_bit)
    if image.has_transparency_data:
        return _in_strips(image, lambda strip: _laid_on(ground, strip))
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, which looks at each pixel alone, of a picture of any size, as RGB."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(convert(strip), (0, top))
    return whole


def _laid_on(ground: str, image: Image.Image) -> Image.Image:
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, ground), over).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture: 0..65535 to 0..255. (Pillow's own conversion clips at 255: nearly all white.)"""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block, which fails in countless ways, says nothing about the pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _stranger(content: bytes) -> str:
    """What the bytes look like instead, where that is known."""
    for beginning, name in _STRANGERS:
        if content.startswith(beginning):
            return f" but {name} by its content"
    if content[4:8] == b"ftyp":
        return " but HEIC, AVIF or video by its content"
    return ""


def _one_line(error: BaseException) -> str:
    """Pillow's reason, fit for one line of a report."""
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return f"truncated or damaged: {text}"
