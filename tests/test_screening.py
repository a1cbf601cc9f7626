"""Files that decode, files that do not, and what an engine gets to see of them."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from job_api.schemas import ResultStatus
from tests.plugins.model import DrawnSamples
from uworker import screening
from uworker.demo.samples import draw_awkward
from uworker.screening import screen


@pytest.fixture(autouse=True)
def as_in_a_recogniser() -> Iterator[None]:
    with warnings.catch_warnings():
        screening.silence_warnings()
        yield


def drawn(mode: str = "L", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A page with a dark bar in its upper left quarter."""
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).rectangle((5, 5, 20, 10), fill=0)
    return image.convert(mode)


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_every_awkward_file_gets_its_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = {image: awkward.status for image, awkward in draw_awkward(tmp_path).items()}
    capfd.readouterr()
    found = {image: screen(tmp_path.joinpath(image).read_bytes()) for image in expected}
    assert {image: screened.status or "recognised" for image, screened in found.items()} == expected
    for image, screened in found.items():
        assert (screened.pixels is None) == (expected[image] != "recognised"), image
        assert (screened.error_message is None) == (expected[image] == "recognised"), image
    assert capfd.readouterr() == ("", "")


def test_every_sample_decodes_to_rgb(samples: DrawnSamples) -> None:
    for sample in samples.items:
        screened = screen(sample.path.read_bytes())
        assert screened.pixels is not None, sample
        assert screened.pixels.dtype == np.uint8
        assert screened.pixels.shape == (screened.height, screened.width, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "F"])
def test_every_mode_shows_the_same_picture(mode: str) -> None:
    base = drawn()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(base).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(base).astype(np.float32) / 255)
    else:
        image = base.convert(mode)
    screened = screen(encode(image, "TIFF"))
    assert screened.pixels is not None, screened
    assert np.array_equal(screened.pixels, np.asarray(drawn("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_narrow_range_of_deep_values_is_scaled_to_the_full_one(dtype: npt.DTypeLike) -> None:
    values: npt.NDArray[Any] = np.full((20, 30), 1100, dtype=dtype)
    values[5:10, 5:10] = 1000
    values[12:15, 5:10] = 1050
    screened = screen(encode(Image.fromarray(values), "TIFF"))
    assert screened.pixels is not None
    assert (screened.pixels[0, 0, 0], screened.pixels[7, 7, 1], screened.pixels[13, 7, 2]) == (255, 0, 128)


def test_numbers_that_are_none_count_as_white() -> None:
    values = np.full((20, 30), np.nan, dtype=np.float32)
    values[0, 0] = np.inf
    values[5:10, 5:10] = -3e38
    values[12:15, 5:10] = 3e38
    screened = screen(encode(Image.fromarray(values), "TIFF"))
    assert screened.pixels is not None
    assert (screened.pixels[0, 0, 0], screened.pixels[7, 7, 0], screened.pixels[13, 7, 0]) == (255, 0, 255)
    only_nan = np.full((20, 30), np.nan, dtype=np.float32)
    assert screen(encode(Image.fromarray(only_nan), "TIFF")).status == ResultStatus.BLANK


@pytest.mark.parametrize("white", [0, 1])
def test_a_deep_tiff_may_say_that_white_is_zero(white: int) -> None:
    values = np.asarray(drawn()).astype(np.uint16) * 257
    screened = screen(encode(Image.fromarray(values if white else ~values), "TIFF", tiffinfo={262: white}))
    assert screened.pixels is not None
    assert np.array_equal(screened.pixels, np.asarray(drawn("RGB")))


def test_transparency_is_white() -> None:
    ink = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (5, 5, 21, 11))
    palette = drawn("P")
    by_palette = screen(encode(palette, transparency=palette.getpixel((50, 30)))).pixels
    for pixels in (screen(encode(ink)).pixels, by_palette):
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(drawn("RGB")))


def test_exif_turns_the_picture_but_not_the_recorded_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    screened = screen(encode(drawn(), exif=exif))
    assert (screened.width, screened.height) == (60, 40)
    assert screened.pixels is not None
    assert np.array_equal(screened.pixels[:, :, 0], np.rot90(np.asarray(drawn()), -1))


def test_the_first_frame_counts_and_the_others_are_counted() -> None:
    others = [drawn().rotate(angle, fillcolor=255) for angle in (90, 180)]
    for file_format in ("GIF", "TIFF", "WEBP", "PNG"):
        screened = screen(encode(drawn("RGB"), file_format, save_all=True, append_images=others))
        assert screened.frames == 3, file_format
        assert screened.pixels is not None
        assert screened.pixels[7, 12].max() < 10
    assert screen(encode(drawn())).frames == 1


def test_a_damaged_later_frame_does_not_spoil_the_first() -> None:
    whole = encode(drawn("RGB"), "TIFF", save_all=True, append_images=[drawn("RGB")] * 3)
    screened = screen(whole[: len(whole) * 2 // 3])
    assert screened.pixels is not None


@pytest.mark.parametrize("noise", [0, screening.BLANK_SPAN])
def test_nearly_uniform_is_blank(noise: int) -> None:
    pixels = np.full((50, 50, 3), 240, dtype=np.uint8)
    pixels[::2] += noise
    assert screen(encode(Image.fromarray(pixels))).status == ResultStatus.BLANK
    pixels[0, 0] += 1 + screening.BLANK_SPAN - noise
    pixels[::2] = np.maximum(pixels[::2], 240)
    pixels[1, 1] = 240 - 1
    assert screen(encode(Image.fromarray(pixels))).status is None


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_paper_with_the_noise_of_a_scanner_is_blank(dtype: npt.DTypeLike) -> None:
    values: npt.NDArray[Any] = np.full((20, 30), 60_000, dtype=dtype)
    values[::2] -= 60_000 * screening.BLANK_SPAN // 255
    assert screen(encode(Image.fromarray(values), "TIFF")).status == ResultStatus.BLANK
    values[0, 0] -= 600
    assert screen(encode(Image.fromarray(values), "TIFF")).status is None


def test_what_is_transparent_of_a_deep_image_is_white() -> None:
    values = np.zeros((40, 60), dtype=np.uint16)
    values[5:11, 5:21] = 200
    values[20:22, 5:21] = 60_000
    screened = screen(encode(Image.fromarray(values), transparency=0))
    assert screened.pixels is not None
    assert (screened.pixels[0, 0, 0], screened.pixels[7, 7, 0], screened.pixels[21, 7, 0]) == (255, 0, 255)


def test_sizes_are_judged_by_the_square_of_the_longer_side() -> None:
    assert screen(encode(drawn(size=(100, 40))), max_pixels=10_000).status is None
    for size in ((101, 40), (40, 101)):
        screened = screen(encode(drawn(size=size)), max_pixels=10_000)
        assert screened.status == ResultStatus.TOO_LARGE
        assert (screened.width, screened.height) == size
        assert screened.error_message == f"{size[0]} x {size[1]} pixels; its longer side may have at most 100"


def test_a_file_cut_anywhere_is_judged_without_an_exception() -> None:
    for file_format in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "HEIF"):
        whole = encode(drawn("RGB"), file_format)
        for length in range(0, len(whole) - 1, max(len(whole) // 40, 1)):
            screened = screen(whole[:length])
            assert screened.status is None or screened.error_message, (file_format, length)


def test_flipped_bits_are_judged_without_an_exception() -> None:
    whole = encode(drawn("RGB"))
    seen = set()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x20
        seen.add(screen(bytes(damaged)).status)
    assert ResultStatus.UNREADABLE in seen


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"PK\x03\x04rest", "a zip archive or an office document"),
        (b"P6 is a protein\n", "plain text"),
        ("Größe ".encode() * 2000, "plain text"),
        (b"\xef\xbb\xbf  <?xml version='1.0'?><cml/>", "XML or HTML"),
        (b"\xff\xfeh\0i\0", "UTF-16 text"),
    ],
)
def test_other_kinds_of_files_are_named(data: bytes, kind: str) -> None:
    screened = screen(data)
    assert (screened.status, screened.error_message) == (
        ResultStatus.UNSUPPORTED,
        f"the file is {kind}, not an image",
    )
