"""Bytes of a file -> the RGB image that an engine may see, or why not. Imported in recogniser processes only.

DECIMER answers every array with some SMILES, so what shows no structure must be told apart before. The decoders are
Pillow's and libheif's; only formats with a signature of their own that are common for pictures are let in, which keeps
out PostScript (it starts Ghostscript) and formats that any bytes would pass for.
"""

import codecs
import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from job_api.schemas import ResultStatus
from uworker.engines import Pixels

DEFAULT_MAX_PIXELS = 64_000_000
BLANK_SPAN = 8
"""Highest difference, of 255, between the brightest and the darkest value of a channel that is still blank."""

_WANTED_FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "DIB", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM")
_MULTIPLE = frozenset({"PNG", "GIF", "TIFF", "WEBP", "AVIF", "HEIF", "MPO"})
_OTHER_KINDS = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "an office document"),
    (b"VjCD", "a ChemDraw document"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"{\\rtf", "an RTF document"),
    (b"8BPS", "a Photoshop document"),
)
_MARKUP = re.compile(rb"^(?:\xef\xbb\xbf)?\s*<(?:\?xml|!doctype|!--|[a-z])", re.IGNORECASE)
_WHITE_IS_ZERO = 0
_PHOTOMETRIC_TAG = 262

pillow_heif.register_heif_opener()
Image.init()
# Pillow trips over the name of a format that it was built without.
_FORMATS = [name for name in _WANTED_FORMATS if name in Image.OPEN]
# Sizes are judged here, from the header. All the formats above decode to the size that their header says.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Screened:
    """A file as an engine may see it: `pixels`, or the status that it gets without being recognised.

    Attributes:
        status: None where there are pixels.
        pixels: uint8[height, width, 3] as seen: turned as EXIF says, on white.
        width: Columns as stored in the file; None where its header cannot be read. Likewise `height`.
        frames: Frames or pages of the file; `pixels` are the first.
        error_message: The reason, where there is a status.
    """

    status: ResultStatus | None
    pixels: Pixels | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    error_message: str | None = None


def silence_warnings() -> None:
    """Silence Pillow's warnings on odd files. Filters belong to the process: a recogniser does this once, at start."""
    warnings.simplefilter("ignore")


def screen(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Screened:
    """Decode the bytes of a file. Raises nothing: whatever a decoder thinks of them is an answer.

    Args:
        data: The whole file.
        max_pixels: Most pixels of a square as wide as the image's longer side. Engines paste an image onto such a
            square, so a thin strip costs them as much as the square does. Judged from the header, before decoding.
    """
    if not data:
        return Screened(ResultStatus.UNREADABLE, error_message="the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        return _judge_unidentified(data, "no decoder knows these bytes as an image")
    except Exception as error:  # noqa: BLE001 (decoders raise anything on hostile bytes)
        return _judge_unidentified(data, _reason(error))
    with image:
        return _screen_opened(image, data, max_pixels)


def _screen_opened(image: Image.Image, data: bytes, max_pixels: int) -> Screened:
    width, height = image.size
    if max(width, height) ** 2 > max_pixels:
        message = f"{width} x {height} pixels; its longer side may have at most {int(max_pixels**0.5)}"
        return Screened(ResultStatus.TOO_LARGE, width=width, height=height, error_message=message)
    frames = _count_frames(data) if image.format in _MULTIPLE else 1
    try:
        image.load()
        pixels = _to_rgb(_turn(image), white_is_zero=_is_white_zero(image))
        span = int(np.ptp(pixels, axis=(0, 1)).max())
    except Exception as error:  # noqa: BLE001 (as above)
        return Screened(ResultStatus.UNREADABLE, None, width, height, frames, _reason(error))
    if span <= BLANK_SPAN:
        return Screened(ResultStatus.BLANK, None, width, height, frames, "the image is of one colour")
    return Screened(None, pixels, width, height, frames)


def _count_frames(data: bytes) -> int | None:
    """Count the frames with a decoder of its own, since a broken later frame must not spoil the first."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 (as above; the first frame's decoding says what is wrong)
        return None


def _turn(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 (a damaged EXIF block says nothing about how to turn the image)
        return image


def _to_rgb(image: Image.Image, *, white_is_zero: bool) -> Pixels:
    """Return uint8[height, width, 3]: deep greys scaled to 8 bit, transparency on white, any colour model as RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _scale_to_8_bit(np.asarray(image), image.info.get("transparency"))
        if white_is_zero:
            grey = 255 - grey
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _scale_to_8_bit(values: npt.NDArray[np.generic], transparent: object = None) -> npt.NDArray[np.uint8]:
    """Map the range of `values`, of any number type, onto 0..255.

    White become uniform arrays, also those that would be with 8 bits, what is no number, and the `transparent` value.
    """
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if isinstance(transparent, int):
        finite &= numbers != transparent
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 0.0)
    if low >= 0 and high - low <= high * BLANK_SPAN / 255:
        # Paper with the noise of a scanner, which would be spread out to ink.
        low = high
    # Halved first: the difference of two float32 extremes is finite in float64, of two float64 extremes it is not.
    span = high / 2 - low / 2
    scaled = (numbers / 2 - low / 2) / span * 255 if span > 0 else np.full(numbers.shape, 255.0)
    return np.rint(np.where(finite, scaled, 255)).astype(np.uint8)


def _is_white_zero(image: Image.Image) -> bool:
    # Pillow turns such TIFFs round itself for up to 8 bits only.
    return image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO


def _judge_unidentified(data: bytes, reason: str) -> Screened:
    kind = _kind_of(data)
    if kind is None:
        return Screened(ResultStatus.UNREADABLE, error_message=reason)
    return Screened(ResultStatus.UNSUPPORTED, error_message=f"the file is {kind}, not an image")


def _kind_of(data: bytes) -> str | None:
    """Name what bytes that are no image look like; None for garbage and for damaged images."""
    for signature, kind in _OTHER_KINDS:
        if data.startswith(signature):
            return kind
    head = data[:4096]
    if _MARKUP.match(head):
        return "SVG" if b"<svg" in head.lower() else "HTML" if b"<html" in head.lower() else "XML or HTML"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text"
    try:
        # The head may end within a character, which is no fault unless the file ends there too.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(data) <= len(head))
    except UnicodeDecodeError:
        return None
    return "plain text" if all(character.isprintable() or character in "\t\r\n\f" for character in text) else None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
