"""Writes one directory of image files that go wrong, or nearly: what real collections hold besides good images."""

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, features

from uworker.demo.drawing import draw_structure
from uworker.demo.molecules import MOLECULES

_TOO_LARGE_PIXELS = 20_000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Awkward:
    """What a worker should say of an awkward file: a result status (`schemas.ResultStatus`), and the SMILES if any."""

    status: str
    smiles: str | None = None


def draw_awkward(root: Path) -> dict[str, Awkward]:
    """Write the awkward files into `root`; the readable ones show molecules that the samples show too.

    HEIC and AVIF are written where this machine has their encoders.

    Returns:
        Image path relative to `root` -> what a worker should say of it.
    """
    root.mkdir(parents=True, exist_ok=True)
    awkward = dict.fromkeys(_write_blank(root), Awkward("blank"))
    awkward |= dict.fromkeys(_write_unreadable(root), Awkward("unreadable"))
    awkward |= dict.fromkeys(_write_unsupported(root), Awkward("unsupported"))
    _write_huge_png(root / "huge.png")
    awkward["huge.png"] = Awkward("too_large")
    awkward |= {image: Awkward("recognised", MOLECULES[molecule]) for image, molecule in _write_deep(root).items()}
    awkward |= {image: Awkward("recognised", MOLECULES[molecule]) for image, molecule in _write_wrapped(root).items()}
    return awkward


def _write_blank(root: Path) -> list[str]:
    """Write images that decode well and show nothing."""
    blank = {
        "white.png": Image.new("L", (300, 200), 255),
        "uniform grey.png": Image.new("RGB", (300, 200), (128, 128, 128)),
        "one pixel.png": Image.new("L", (1, 1), 0),
        "white on transparent.png": Image.new("RGBA", (300, 200), (255, 255, 255, 0)),
    }
    # White ink on a transparent page: only its alpha tells it from the page.
    blank["white on transparent.png"].paste((255, 255, 255, 255), (50, 90, 250, 110))
    for name, image in blank.items():
        image.save(root / name)
    return list(blank)


def _write_unreadable(root: Path) -> list[str]:
    """Write files that are images by their first bytes, or nothing at all, and cannot be decoded."""
    png, jpeg = (_encoded(_picture("warfarin"), file_format) for file_format in ("PNG", "JPEG"))
    flipped = bytearray(png)
    # Eight bytes of the compressed pixels, soon after their start, where no decoder can go on.
    start = png.index(b"IDAT") + 24
    flipped[start : start + 8] = bytes(byte ^ 0xFF for byte in flipped[start : start + 8])
    unreadable = {
        "zero bytes.png": b"",
        "random bytes.png": b"".join(hashlib.sha256(bytes([n])).digest() for n in range(64)),
        "truncated.png": png[: len(png) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "bits flipped.png": bytes(flipped),
    }
    for name, content in unreadable.items():
        root.joinpath(name).write_bytes(content)
    return list(unreadable)


def _write_unsupported(root: Path) -> list[str]:
    """Write files of other kinds than raster images."""
    unsupported = {
        "text.png": "Figure 3 could not be extracted from page 12.\n",
        "error page.png": "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not Found</body></html>\n",
        "vector.svg": '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60">'
        '<path d="M10 10L80 50" stroke="black"/></svg>\n',
        "page.pdf": "%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n"
        "<</Type/Pages/Kids[]/Count 0>>\nendobj\ntrailer\n<</Root 1 0 R>>\n%%EOF\n",
    }
    for name, content in unsupported.items():
        root.joinpath(name).write_text(content, encoding="utf-8")
    return list(unsupported)


def _write_huge_png(path: Path) -> None:
    """Write a valid white 1-bit PNG of 20,000 x 20,000 pixels, 50 KB on disk, row by row: decoded it takes 400 MB."""
    compressor = zlib.compressobj(1)
    row = b"\0" + b"\xff" * (_TOO_LARGE_PIXELS // 8)
    pixels = b"".join(compressor.compress(row * 100) for _ in range(_TOO_LARGE_PIXELS // 100)) + compressor.flush()
    header = struct.pack(">IIBBBBB", _TOO_LARGE_PIXELS, _TOO_LARGE_PIXELS, 1, 0, 0, 0, 0)
    with path.open("wb") as file:
        file.write(_PNG_SIGNATURE)
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _write_deep(root: Path) -> dict[str, str]:
    """Write images of more than 8 bits a pixel, over whose range DECIMER itself would cut off at 255.

    Returns:
        Image -> molecule.
    """
    grey16, grey32, real = (np.asarray(_picture(m)) for m in ("aspirin", "ibuprofen", "paracetamol"))
    # A faint scan: nothing is darker than a third of the range, so that all of it lies above 255.
    Image.fromarray((0x5000 + grey16.astype(np.uint32) * 176).astype(np.uint16)).save(root / "16-bit grey.png")
    Image.fromarray(grey32.astype(np.int32) * 257).save(root / "32-bit integers.tif")
    Image.fromarray(real.astype(np.float32) / 255).save(root / "real numbers.tif")
    return {
        "16-bit grey.png": "aspirin",
        "32-bit integers.tif": "ibuprofen",
        "real numbers.tif": "paracetamol",
    }


def _write_wrapped(root: Path) -> dict[str, str]:
    """Write images in rarer wrappings: more than one frame, turned, other colours, other formats.

    Returns:
        Image -> molecule, that of the first frame and the right way up.
    """
    written = {"animated.gif": "caffeine", "two pages.tif": "warfarin", "turned.jpg": "morphine", "CMYK.jpg": "glucose"}
    _picture("caffeine").save(root / "animated.gif", save_all=True, append_images=[_picture("aspirin")], duration=500)
    _picture("warfarin").save(root / "two pages.tif", save_all=True, append_images=[_picture("metformin")])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored a quarter turn to the left of upright
    _picture("morphine").transpose(Image.Transpose.ROTATE_90).save(root / "turned.jpg", exif=exif, quality=90)
    _picture("glucose").convert("CMYK").save(root / "CMYK.jpg", quality=90)
    written["lossy.webp"] = "cholesterol"
    _picture("cholesterol").save(root / "lossy.webp", quality=70)
    if features.check("avif"):
        written["phone.avif"] = "dopamine"
        _picture("dopamine").save(root / "phone.avif")
    if pillow_heif.libheif_info()["encoders"]:
        written["phone.heic"] = "serotonin"
        pillow_heif.from_pillow(_picture("serotonin")).save(root / "phone.heic")
    return written


def _picture(molecule: str) -> Image.Image:
    return draw_structure(MOLECULES[molecule])


def _encoded(picture: Image.Image, file_format: str) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, file_format)
        return file.getvalue()
