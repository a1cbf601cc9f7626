"""What DECIMER does to an image before its model sees it, bit for bit, but in grey and without TensorFlow.

The steps are those of `DECIMER.pre_process.decode_image` in decimer 2.8, which end in a resize of TensorFlow's. Each
sum of that resize is taken here in TensorFlow's order and in float32, so that the last bit is the same as well. Where
TensorFlow is built to round a product and its sum at once, which on x86 it is not, last bits may differ.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from uworker.engines import EngineError, Pixels

INPUT_PIXELS = 512
"""Side of the square that the model sees."""
MAX_SQUARE_PIXELS = 2**29 - 1
"""Most pixels of the white square around the ink; of more, TensorFlow decodes no PNG, and the package raises."""

_WHITE = 255
_LIGHTEST_INK = 200
_CONTRAST, _BRIGHTNESS = 1.8, 1.6
_MARGIN = 1.2
_RADIUS = np.float32(1.5)
_TWICE_VARIANCE = 0.5
_MEANS = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATIONS = np.array([0.229, 0.224, 0.225], np.float32)
_SIZES_KEPT = 128
# So many values of output are summed up at a time: what a core keeps near.
_CHUNK_VALUES = 65_536

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class NoInk(EngineError):
    """Nothing in an image is dark enough to be a structure; the package cannot cut it out, and raises."""


class SquareTooLarge(EngineError):
    """The white square around an image would be larger than TensorFlow decodes."""


def preprocess(pixels: Pixels) -> Floats:
    """Return what DECIMER's model gets of uint8[height, width, 3]: f32[512, 512, 3], normalised as for ImageNet.

    Raises:
        NoInk: there is nothing to see, as in an image that is light blue all over, or has no pixels.
        SquareTooLarge: its ink is more than 19,309 pixels wide or high.
    """
    if not pixels.size:
        raise NoInk("the image has no pixels")
    ink = _cut_out(_enlarge(_to_grey(pixels)))
    return _normalise(_shrink(np.asarray(ImageEnhance.Brightness(ink).enhance(_BRIGHTNESS))))


def _to_grey(pixels: Pixels) -> Image.Image:
    """Stretch an image so that its darkest value is 0, make it grey, and raise the contrast.

    The package stretches the alpha channel too, which is 255 all over. So the brightest value is always that, and an
    image that is white all over becomes black. It also has OpenCV take red for blue.
    """
    darkest = int(pixels.min())
    stretched = np.zeros(256, np.uint8)
    stretched[darkest:] = np.linspace(0, 255, num=256 - darkest, dtype=np.uint8)
    grey = cv2.cvtColor(cv2.LUT(np.ascontiguousarray(pixels), stretched), cv2.COLOR_BGR2GRAY)
    return ImageEnhance.Contrast(Image.fromarray(grey)).enhance(_CONTRAST)


def _enlarge(image: Image.Image) -> Image.Image:
    """Enlarge an image that is smaller than the model's square until its longer side is as long.

    Or a pixel shorter, where the ratio of the sides is a little too low as a float.
    """
    longest = max(image.size)
    if longest >= INPUT_PIXELS:
        return image
    ratio = INPUT_PIXELS / longest
    size = (int(image.width * ratio), int(image.height * ratio))
    if image.width == image.height:
        size = (INPUT_PIXELS, INPUT_PIXELS)
    return image.resize(size, resample=Image.Resampling.LANCZOS)


def _cut_out(image: Image.Image) -> Image.Image:
    """Cut off the borders without ink.

    Raises:
        NoInk: there is none.
    """
    is_ink = np.asarray(image) <= _LIGHTEST_INK
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise NoInk("nothing in the image is dark enough to be a structure")
    return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


# --- TensorFlow's resize ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spans:
    """What each pixel of the output is a weighted sum of, along one axis.

    Attributes:
        starts: The first pixel of the input, int[512].
        weights: Of that and the following ones, f32[512, n]; 0 where there are fewer than n.
    """

    starts: npt.NDArray[np.int64]
    weights: Floats

    def touching(self, begin: int, end: int) -> slice:
        """Say which pixels of the output have one of those from `begin` to `end` in their sums."""
        touching = (self.starts < end) & (self.starts + self.weights.shape[1] > begin)
        first, last = np.flatnonzero(touching)[[0, -1]]
        return slice(int(first), int(last) + 1)

    def part(self, wanted: slice) -> "_Spans":
        return _Spans(self.starts[wanted], self.weights[wanted])


@lru_cache(maxsize=_SIZES_KEPT)
def _spans_of(size: int) -> _Spans:
    """Weigh the pixels as TensorFlow's ScaleAndTranslate does, with a Gaussian kernel of radius 1.5 and sigma 0.5.

    The kernel is as wide as what it averages, and cut off at the edges. In float32 but for the exponential.
    """
    half, scale = np.float32(0.5), np.float32(1) / (np.float32(INPUT_PIXELS) / np.float32(size))
    reach = _RADIUS * scale
    centres = (np.arange(INPUT_PIXELS, dtype=np.float32) + half) * scale
    starts = np.clip(np.ceil(centres - reach - half).astype(np.int64), 0, size - 1)
    ends = np.clip(np.floor(centres + reach - half).astype(np.int64), 0, size - 1) + 1
    sources = starts[:, np.newaxis] + np.arange((ends - starts).max())
    distances = np.abs((sources.astype(np.float32) + half - centres[:, np.newaxis]) * (np.float32(1) / scale))
    weights = np.exp(-(distances * distances).astype(np.float64) / _TWICE_VARIANCE).astype(np.float32)
    weights[(distances >= _RADIUS) | (sources >= ends[:, np.newaxis])] = 0
    totals = np.zeros(INPUT_PIXELS, np.float32)
    for column in weights.T:
        totals += column
    return _Spans(starts, weights * (np.float32(1) / totals)[:, np.newaxis])


def _shrink(ink: Grey) -> Floats:
    """Put grey ink, uint8[height, width], into the middle of a white square and resize that to f32[512, 512].

    The square itself is never made: far from the ink, the sums are those of white alone.
    """
    height, width = ink.shape
    size = max(int(_MARGIN * max(height, width)), INPUT_PIXELS)
    if size * size > MAX_SQUARE_PIXELS:
        raise SquareTooLarge(f"a square of {size} x {size} pixels is more than TensorFlow decodes")
    top, left = (size - height) // 2, (size - width) // 2
    spans = _spans_of(size)
    rows, columns = spans.touching(top, top + height), spans.touching(left, left + width)
    down, across = spans.part(rows), spans.part(columns)
    # What the sums of the touched pixels reach over: the ink, and some white around it.
    begin_y, begin_x = int(down.starts[0]), int(across.starts[0])
    taps = spans.weights.shape[1]
    end_y, end_x = (min(int(part.starts[-1]) + taps, size) for part in (down, across))
    window = np.full((end_y - begin_y, end_x - begin_x), _WHITE, np.float32)
    window[top - begin_y : top - begin_y + height, left - begin_x : left - begin_x + width] = ink

    shrunk = _white(spans)
    columns_left = np.ascontiguousarray(_sum_up(window, down, begin_y).T)
    shrunk[rows, columns] = _sum_up(columns_left, across, begin_x).T
    return shrunk


def _white(spans: _Spans) -> Floats:
    """Return what becomes of a square that is white all over: 255 but for the last bits, f32[512, 512]."""
    column = np.zeros(INPUT_PIXELS, np.float32)
    for weights in spans.weights.T:
        column += weights * np.float32(_WHITE)
    shades, shade_of_row = np.unique(column, return_inverse=True)
    lines = np.zeros((shades.size, INPUT_PIXELS), np.float32)
    for weights in spans.weights.T:
        lines += weights * shades[:, np.newaxis]
    return lines[shade_of_row]


def _sum_up(lines: Floats, spans: _Spans, begin: int) -> Floats:
    """Sum up the lines f32[n, length], the first of which is number `begin`, to one for each span.

    From the first to the last, and the product is rounded before it is added: TensorFlow's order.
    """
    count, length = spans.starts.size, lines.shape[1]
    sums = np.zeros((count, length), np.float32)
    step = max(_CHUNK_VALUES // length, 1)
    product = np.empty((step, length), np.float32)
    for first in range(0, count, step):
        chunk = slice(first, min(first + step, count))
        part = product[: chunk.stop - chunk.start]
        for tap, weights in enumerate(spans.weights[chunk].T):
            # Beyond the last line a weight is 0, and any line will do.
            np.take(lines, spans.starts[chunk] - begin + tap, axis=0, out=part, mode="clip")
            part *= weights[:, np.newaxis]
            sums[chunk] += part
    return sums


def _normalise(grey: Floats) -> Floats:
    """Return f32[512, 512, 3], each channel normalised by the mean and the deviation that it has in ImageNet."""
    grey = grey / np.float32(255)
    channels = np.empty((*grey.shape, 3), np.float32)
    for channel, (mean, deviation) in enumerate(zip(_MEANS, _DEVIATIONS, strict=True)):
        np.divide(grey - mean, deviation, out=channels[:, :, channel])
    return channels
