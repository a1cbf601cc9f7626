"""Draws a structural formula as a picture, with RDKit's coordinates and Pillow's ink.

RDKit's own drawing modules are kept out: they load libXrender, libXext, libX11 and libexpat, which its wheel does not
bring and a bare Debian does not have.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem
from rdkit.Chem import rdDepictor

_ABBREVIATIONS = {"*": "R", "Pb": "Ph"}
"""Drawn instead of an element: journals write Ph where DECIMER reads Pb."""
_OVERSAMPLING = 3
_ANGSTROM_PER_BOND = 1.5

Point = npt.NDArray[np.float64]


def draw_structure(smiles: str, *, bond_pixels: int = 36) -> Image.Image:
    """Draw a molecule in black on white.

    Args:
        smiles: What to draw; several fragments stand side by side.
        bond_pixels: Length of a bond, which sets the size of the picture.

    Returns:
        An 8-bit grey picture ("L"), the same pixels each time.

    Raises:
        ValueError: RDKit cannot parse the SMILES.
    """
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"cannot parse the SMILES {smiles!r}")
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    rdDepictor.Compute2DCoords(molecule)
    Chem.WedgeMolBonds(molecule, molecule.GetConformer())
    return _Drawing(molecule, bond_pixels).finish()


@dataclass(frozen=True)
class _Piece:
    """A part of an atom's label: its text, its size and how far it is lowered, both in units of the font's size."""

    text: str
    size: float = 1.0
    lowered: float = 0.0


class _Drawing:
    """One molecule on an oversized canvas."""

    def __init__(self, molecule: Chem.Mol, bond_pixels: int) -> None:
        self._molecule = molecule
        self._bond = bond_pixels * _OVERSAMPLING
        angstrom = molecule.GetConformer().GetPositions()[:, :2] * (1.0, -1.0)
        margin = 0.9 * self._bond
        self._points: Point = (angstrom - angstrom.min(axis=0)) * (self._bond / _ANGSTROM_PER_BOND) + margin
        width, height = np.ceil((self._points.max(axis=0) + margin) / _OVERSAMPLING).astype(int)
        self._size = (int(width), int(height))
        self._canvas = Image.new("L", (self._size[0] * _OVERSAMPLING, self._size[1] * _OVERSAMPLING), 255)
        self._draw = ImageDraw.Draw(self._canvas)
        self._stroke = round(0.055 * self._bond)

    def finish(self) -> Image.Image:
        """Draw the bonds, then the labels over them, and shrink to size."""
        for bond in self._molecule.GetBonds():
            self._draw_bond(bond)
        for atom in self._molecule.GetAtoms():
            self._draw_label(atom)
        return self._canvas.resize(self._size, Image.Resampling.BOX)

    def _draw_bond(self, bond: Chem.Bond) -> None:
        start, end = self._points[bond.GetBeginAtomIdx()], self._points[bond.GetEndAtomIdx()]
        direction, order = bond.GetBondDir(), bond.GetBondType()
        across = _across(start, end) * self._bond
        if direction == Chem.BondDir.BEGINWEDGE:
            self._draw.polygon([tuple(start), tuple(end + 0.1 * across), tuple(end - 0.1 * across)], fill=0)
        elif direction == Chem.BondDir.BEGINDASH:
            for share in np.linspace(0.15, 1.0, 7):
                middle, half = start + share * (end - start), 0.11 * share * across
                self._line(middle - half, middle + half)
        elif order == Chem.BondType.DOUBLE and bond.IsInRing():
            inward = across * np.sign(across @ (self._ring_centre(bond) - start))
            shortened = 0.12 * (end - start)
            self._line(start, end)
            self._line(start + shortened + 0.16 * inward, end - shortened + 0.16 * inward)
        elif order == Chem.BondType.DOUBLE:
            self._line(start + 0.08 * across, end + 0.08 * across)
            self._line(start - 0.08 * across, end - 0.08 * across)
        else:
            self._line(start, end)
            if order == Chem.BondType.TRIPLE:
                self._line(start + 0.15 * across, end + 0.15 * across)
                self._line(start - 0.15 * across, end - 0.15 * across)

    def _line(self, start: Point, end: Point) -> None:
        self._draw.line([tuple(start), tuple(end)], fill=0, width=self._stroke)

    def _ring_centre(self, bond: Chem.Bond) -> Point:
        """Return the centre of the smallest ring that a bond belongs to."""
        rings = self._molecule.GetRingInfo()
        shared = [
            list(atoms)
            for atoms, bonds in zip(rings.AtomRings(), rings.BondRings(), strict=True)
            if bond.GetIdx() in bonds
        ]
        centre: Point = self._points[min(shared, key=len)].mean(axis=0)
        return centre

    def _draw_label(self, atom: Chem.Atom) -> None:
        pieces, anchor = self._label(atom)
        if not pieces:
            return
        size = 0.46 * self._bond
        fonts = [ImageFont.load_default(size * piece.size) for piece in pieces]
        widths = [font.getlength(piece.text) for font, piece in zip(fonts, pieces, strict=True)]
        x, y = self._points[atom.GetIdx()]
        left = x - sum(widths[:anchor]) - widths[anchor] / 2
        box = (left - 0.1 * size, y - 0.6 * size, left + sum(widths) + 0.1 * size, y + 0.6 * size)
        self._draw.rectangle(box, fill=255)
        for piece, font, width in zip(pieces, fonts, widths, strict=True):
            # Anchored on the baseline, which lies below the middle of a capital letter.
            self._draw.text((left, y + (0.36 + piece.lowered) * size), piece.text, fill=0, font=font, anchor="ls")
            left += width

    def _label(self, atom: Chem.Atom) -> tuple[list[_Piece], int]:
        """Return an atom's label and which piece of it stands on the atom; a carbon in a chain has none."""
        symbol, charge = atom.GetSymbol(), atom.GetFormalCharge()
        if symbol == "C" and charge == 0 and atom.GetDegree() > 0:
            return [], 0
        hydrogens = atom.GetTotalNumHs()
        beside = [_Piece("H")] if hydrogens else []
        if hydrogens > 1:
            beside.append(_Piece(str(hydrogens), 0.7, 0.15))
        element = _Piece(_ABBREVIATIONS.get(symbol, symbol))
        sign = [_Piece(("+" if charge > 0 else "-") * abs(charge), 0.8, -0.3)] if charge else []
        place = self._points[atom.GetIdx()][0]
        bonds_leave_right = sum(self._points[n.GetIdx()][0] - place for n in atom.GetNeighbors()) > 0.1 * self._bond
        if bonds_leave_right and beside:
            return [*beside, element, *sign], len(beside)
        return [element, *beside, *sign], 0


def _across(start: Point, end: Point) -> Point:
    """Return the unit vector at right angles to the line from `start` to `end`."""
    along = (end - start) / np.hypot(*(end - start))
    return np.array([-along[1], along[0]])
