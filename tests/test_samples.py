"""The drawn sample directories and the awkward files beside them."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError
from rdkit import Chem

from job_api.schemas import ResultStatus
from job_api.text import check_directory, check_relative_path
from tests.plugins.model import DrawnSamples
from uworker.demo.drawing import draw_structure
from uworker.demo.samples import Awkward, draw_awkward, draw_samples


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def awkward_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("awkward")


@pytest.fixture(scope="module")
def awkward(awkward_root: Path) -> dict[str, Awkward]:
    return draw_awkward(awkward_root)


# --- samples ---------------------------------------------------------------------------------------------------


def test_samples_are_the_same_bytes_each_time(samples: DrawnSamples, tmp_path: Path) -> None:
    draw_samples(tmp_path)
    assert contents(tmp_path) == contents(samples.root)


def test_only_the_named_images_are_written(samples: DrawnSamples) -> None:
    assert set(contents(samples.root)) == {f"{s.directory}/{s.image}" for s in samples.items}
    assert all(s.path == samples.root / s.directory / s.image for s in samples.items)


def test_samples_are_many_and_varied(samples: DrawnSamples) -> None:
    smiles = {s.smiles for s in samples.items}
    assert len({s.directory for s in samples.items}) >= 6
    assert len(smiles) >= 30
    assert all(Chem.MolFromSmiles(text) is not None for text in smiles)
    for part in ("@@", "/C=C/", "[N+]", "[Na+].", "*", "[Pb]", "[Y]", "#", "Br"):
        assert any(part in text for text in smiles), part


def test_samples_come_in_many_formats_and_kinds_of_pixels(samples: DrawnSamples) -> None:
    formats, modes = set(), set()
    for sample in samples.items:
        with Image.open(sample.path) as image:
            formats.add(image.format)
            modes.add(image.mode)
    assert formats >= {"PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"}
    assert modes >= {"L", "1", "RGB", "RGBA", "P", "CMYK", "I;16"}


def test_names_are_as_hard_as_real_ones_and_storable(samples: DrawnSamples) -> None:
    directories = {s.directory for s in samples.items}
    images = {s.image for s in samples.items}
    for part in ("(", "ö", "天", "'", " #", "%20", "&"):
        assert any(part in name for name in directories), part
    assert any(name.startswith("# ") for name in directories)
    for part in (" ", "+", "\n", '"', "Ü", ".PNG", "%", "?"):
        assert any(part in name for name in images), part
    assert max(name.count("/") for name in images) >= 4
    assert [check_directory(name) for name in directories] == list(directories)
    assert [check_relative_path(name) for name in images] == list(images)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows loaded libraries only on Linux")
def test_drawing_needs_no_library_of_the_desktop() -> None:
    script = (
        "from uworker.demo.drawing import draw_structure; draw_structure('OCc1ccccc1')\n"
        "for line in open('/proc/self/maps'): print(line.split()[-1])"
    )
    shown = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in shown.stdout.splitlines()}
    assert any(path.name.startswith("rdDepictor") for path in loaded)
    of_the_system = {path.name for path in loaded if "site-packages" not in path.parts}
    assert "libc.so.6" in of_the_system
    assert not {name for name in of_the_system if name.startswith(("libX", "libxcb", "libcairo"))}


def test_a_smiles_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot parse the SMILES 'C1CC'"):
        draw_structure("C1CC")


# --- awkward files ---------------------------------------------------------------------------------------------


def test_awkward_files_are_the_same_bytes_each_time(
    awkward_root: Path, awkward: dict[str, Awkward], tmp_path: Path
) -> None:
    assert draw_awkward(tmp_path) == awkward
    assert contents(tmp_path) == contents(awkward_root)
    assert set(awkward) == set(contents(awkward_root))


def test_awkward_files_expect_results_that_exist(awkward: dict[str, Awkward], samples: DrawnSamples) -> None:
    assert {a.status for a in awkward.values()} == {"blank", "unreadable", "unsupported", "too_large", "recognised"}
    assert {a.status for a in awkward.values()} <= {status.value for status in ResultStatus}
    known = {s.smiles for s in samples.items}
    for name, expected in awkward.items():
        assert (expected.smiles in known) == (expected.status == "recognised"), name


def test_blank_files_show_one_shade(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    for name in (name for name, a in awkward.items() if a.status == "blank"):
        with Image.open(awkward_root / name) as image:
            page = Image.new("RGBA", image.size, "white")
            shown = Image.alpha_composite(page, image.convert("RGBA")).convert("L")
        assert len(shown.getcolors() or []) == 1, name


def test_unreadable_files_cannot_be_decoded(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    for name in (name for name, a in awkward.items() if a.status == "unreadable"):
        with pytest.raises((OSError, SyntaxError)), Image.open(awkward_root / name) as image:
            image.load()


def test_unsupported_files_are_no_images(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    for name in (name for name, a in awkward.items() if a.status == "unsupported"):
        with pytest.raises(UnidentifiedImageError), Image.open(awkward_root / name):
            pass


def test_the_huge_png_is_small_on_disk_and_whole(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    content = (awkward_root / "huge.png").read_bytes()
    assert len(content) < 1_000_000
    # Not opened with Pillow: whether it refuses such a size is a setting that other code of this process may change.
    assert struct.unpack(">II", content[16:24]) == (20_000, 20_000)
    start = content.index(b"IDAT") + 4
    pixels = zlib.decompress(content[start:-16])
    assert len(pixels) == 20_000 * (1 + 20_000 // 8)


def test_deep_images_lie_where_eight_bits_do_not_reach(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    modes = {"16-bit grey.png": "I;16", "32-bit integers.tif": "I", "real numbers.tif": "F"}
    for name, mode in modes.items():
        with Image.open(awkward_root / name) as image:
            assert image.mode == mode
            pixels = np.asarray(image)
        assert awkward[name].status == "recognised"
        clipped = len(np.unique(np.clip(pixels, 0, 255).astype(np.uint8)))
        assert clipped < 4 < len(np.unique(pixels)), name


@pytest.mark.parametrize("name", ["animated.gif", "two pages.tif"])
def test_files_of_several_frames_show_the_molecule_first(
    awkward_root: Path, awkward: dict[str, Awkward], name: str
) -> None:
    with Image.open(awkward_root / name) as image:
        assert getattr(image, "n_frames", 1) == 2
        assert np.abs(np.asarray(image.convert("L"), int) - upright(awkward[name])).max() < 8


def test_the_turned_jpeg_is_upright_only_after_its_exif(awkward_root: Path, awkward: dict[str, Awkward]) -> None:
    expected = upright(awkward["turned.jpg"])
    with Image.open(awkward_root / "turned.jpg") as stored:
        assert stored.size == expected.shape  # width and height are swapped
        turned = ImageOps.exif_transpose(stored).convert("L")
    assert np.abs(np.asarray(turned, int) - expected).mean() < 3


def upright(expected: Awkward) -> np.ndarray[tuple[int, ...], np.dtype[np.int_]]:
    assert expected.smiles is not None
    return np.asarray(draw_structure(expected.smiles), int)
