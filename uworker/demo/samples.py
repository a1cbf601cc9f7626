"""Draws directories of sample images whose SMILES is known, with names and formats as hard as real ones.

The layout is that of the first corpus, `Name (Author Year)/output/sequence_01_left.png`; the images and molecules
are this project's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from uworker.demo.awkward import Awkward, draw_awkward
from uworker.demo.drawing import draw_structure
from uworker.demo.molecules import MOLECULES

__all__ = ["MOLECULES", "Awkward", "Sample", "draw_awkward", "draw_samples"]

Pixels = Literal["grey", "coloured", "1-bit", "transparent", "palette", "CMYK", "16-bit"]

# Directory -> (image below it, molecule, kind of pixels). The format is the one that the image's name says.
_LAYOUT: dict[str, list[tuple[str, str, Pixels]]] = {
    "Plain (Jones 2001)": [
        ("output/sequence_01_left.png", "aspirin", "grey"),
        ("output/sequence_01_right.png", "ibuprofen", "grey"),
        ("output/sequence_02_left.png", "paracetamol", "grey"),
        ("output/sequence_02_right.png", "metformin", "grey"),
        ("output/sequence_03_left.png", "diazepam", "coloured"),
        ("output/sequence_03_right.png", "warfarin", "grey"),
    ],
    "Größe & Söhne (Müller 2019)": [
        ("output/sequence_01_left.png", "caffeine", "grey"),
        ("output/sequence_01_right.png", "nicotine", "transparent"),
        ("output/Übersicht links.png", "morphine", "grey"),
        ("output/sequence_03_left.jpg", "quinine", "grey"),
        ("output/sequence_04_left.PNG", "erlotinib", "grey"),
    ],
    "天然物化学 (田中 2021)": [
        ("output/図1 左.png", "glucose", "grey"),
        ("output/図1 右.png", "cholesterol", "grey"),
        ("output/sequence_02_left.webp", "testosterone", "grey"),
        ("output/sequence_02_right.png", "artemisinin", "palette"),
        ("output/sequence_03_left.png", "aspirin", "grey"),
    ],
    "Structure d'alcaloïdes (O'Brien 2004)": [
        ("output/sequence_01_left.bmp", "menthol", "grey"),
        ("output/page 1 + 2.png", "limonene", "grey"),
        ('output/it\'s "quoted".png', "vanillin", "grey"),
        ("output/sequence_02_left.tif", "capsaicin", "coloured"),
    ],
    "# Notes on heterocycles (Smith 1998)": [
        ("output/sequence_01_left.png", "pyridine", "grey"),
        ("output/sequence_01_right.png", "thiophene", "1-bit"),
        ("output/sequence_02_left.gif", "furfural", "grey"),
        ("output/# commented.png", "indole", "grey"),
        ("output/sequence_03_left.png", "benzothiazole", "16-bit"),
    ],
    "Issue #7 of 12 (Ng 2015)": [
        ("output/sequence_01_left.png", "dopamine", "grey"),
        ("output/line one\nline two.png", "serotonin", "grey"),
        ("output/sequence_02_left.jpg", "tryptophan", "CMYK"),
        ("output/sequence_02_right.png", "caffeine", "grey"),
    ],
    "100%20pure (Lee 2010)": [
        ("output/sequence_01%20left.png", "acetylcholine", "grey"),
        ("output/50% yield?.png", "sodium benzoate", "grey"),
        ("output/sequence_02_left.png", "lactic acid", "grey"),
        ("output/sequence_02_right.png", "substituted phenol", "grey"),
        ("output/sequence_03_left.png", "benzanilide, abbreviated", "grey"),
        ("output/sequence_03_right.png", "substituted anisole", "grey"),
    ],
    "Nested (de la Cruz 2023)": [
        ("cover.png", "penicillin G", "grey"),
        ("output/part 1/sequence_01_left.png", "ciprofloxacin", "grey"),
        ("output/part 1/deep/sequence_01_left.png", "bromhexine", "grey"),
        ("output/part 1/deep/deeper/still deeper/sequence_01_left.png", "resveratrol", "grey"),
        ("output/part 2/sequence_01_left.png", "menadione", "grey"),
        ("output/part 2/sequence_02_left.png", "thymine", "grey"),
        ("output/part 2/sequence_03_left.png", "adenine", "grey"),
    ],
}


@dataclass(frozen=True)
class Sample:
    """One drawn image: its directory, its path below that, what it shows, and where it lies."""

    directory: str
    image: str
    smiles: str
    path: Path


def draw_samples(root: Path) -> list[Sample]:
    """Draw the sample directories below `root` and nothing else there; the same bytes each time.

    Returns:
        The images in the order of their directories, then of their drawing.
    """
    samples = []
    for directory, images in _LAYOUT.items():
        for image, molecule, pixels in images:
            smiles = MOLECULES[molecule]
            path = root / directory / image
            path.parent.mkdir(parents=True, exist_ok=True)
            _CONVERSIONS[pixels](draw_structure(smiles)).save(path, quality=90)  # the lossless formats ignore it
            samples.append(Sample(directory, image, smiles, path))
    return samples


def _transparent(picture: Image.Image) -> Image.Image:
    ink = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    ink.putalpha(ImageOps.invert(picture))
    return ink


def _sixteen_bit(picture: Image.Image) -> Image.Image:
    """Black and white only: DECIMER itself cuts 16-bit values off at 255, and this looks the same to it."""
    return Image.fromarray(np.where(np.asarray(picture) < 128, 0, 0xFFFF).astype(np.uint16))


# How an 8-bit grey picture becomes one of other pixels that looks the same.
_CONVERSIONS: dict[Pixels, Callable[[Image.Image], Image.Image]] = {
    "grey": lambda picture: picture,
    "coloured": lambda picture: ImageOps.colorize(picture, black="navy", white="white"),
    "1-bit": lambda picture: picture.convert("1", dither=Image.Dither.NONE),
    "transparent": _transparent,
    "palette": lambda picture: picture.convert("RGB").quantize(16),
    "CMYK": lambda picture: picture.convert("RGB").convert("CMYK"),
    "16-bit": _sixteen_bit,
}
