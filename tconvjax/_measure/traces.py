"""Traces that files and cameras leave in pictures: they are lines, too, and no layer has made them."""

from math import comb
from typing import NamedTuple

import numpy as np
from scipy import fft

from tconvjax._measure.fields import Key, local_mean
from tconvjax._measure.lines import Fractions, Table, heights
from tconvjax._measure.pictures import Picture

# Grey levels of lines that rounding leaves, in codecs and scalers of integers and of floats.
FAINT = 0.1, 1e-3
WHOLE = 1e-3  # grey levels between a whole number and what float32 makes of it
BUSY = 6.0  # squared differences over those of rounding where a picture changes
LEAST_BUSY = 0.02  # part of a picture
# Energy of the other phases over that of the least, and of the least over that of rounding.
UNEVEN, SMOOTH = 3.0, 4.0
LATTICE = 1e-4  # p-value of lines of the energy at multiples of 1/8
BLOCKS = 0.05  # part of the coefficients that vanish in the blocks of JPEG and not in others
VANISHES = 1.0  # grey levels; rounding leaves 0.3
LOOKED_AT = 256  # pixels along an axis where blocks are looked for
WEAK = 1.0  # grey levels that cameras and JPEG reach


class Traits(NamedTuple):
    """What a picture is made of.

    Attributes:
      whole: whether its values are whole grey levels.
      blocks: whether JPEG has compressed it.
      enlarged: factor and kind, 'nearest' or 'smooth', of an enlargement of the whole picture; None if there is none.
    """

    whole: bool
    blocks: bool
    enlarged: tuple[int, str] | None


def traits_of(picture: Picture) -> Traits:
    """Returns what a picture is made of."""
    x = picture.levels
    whole = bool((np.abs(x - np.rint(x)) < WHOLE).all())
    return Traits(whole, whole and x.ndim == 3 and _has_blocks(x.mean(-1)), _enlargement(x))


def _has_blocks(luma: np.ndarray) -> bool:
    """Whether more coefficients of the cosine transform vanish in 8 x 8 blocks at one place than at others.

    JPEG rounds them to multiples; most fine ones become 0.
    """
    n = min(*luma.shape, LOOKED_AT) // 8 * 8
    if n < 32:
        return False
    y, x = ((size - n) // 2 for size in luma.shape)
    luma = luma[y : y + n, x : x + n].astype(np.float32)
    cosines = fft.dct(np.eye(8, dtype=np.float32), axis=0, norm="ortho")
    rows, columns = np.indices((8, 8))
    fine = (rows + columns >= 4)[:, None]
    vanishing = []
    for a in range(8):
        part = luma[a : a + n - 8].reshape(-1, 8, n)
        down = cosines @ part  # of each column of each row of blocks
        for b in range(8):
            blocks = down[:, :, b : b + n - 8].reshape(*down.shape[:2], -1, 8) @ cosines.T
            vanishing.append(float((np.abs(blocks) < VANISHES).mean(where=fine)))
    return max(vanishing) - float(np.median(vanishing)) > BLOCKS


def _enlargement(x: np.ndarray) -> tuple[int, str] | None:
    """Finds the order of differences that vanish, up to rounding, in one phase and not in the others.

    Nearest pixels have no first difference inside of a cell, linear ones no second inside of a segment, and linear ones
    by 2, with centers between the samples, no third around every other pair.
    """
    luma = x.mean(-1)
    found = [_enlargement_along(np.moveaxis(luma, axis, 0)) for axis in range(luma.ndim)]
    return found[0] if all(found) else None


def _enlargement_along(luma: np.ndarray) -> tuple[int, str] | None:
    if len(luma) < 24:
        return None
    for order, kind in ((1, "nearest"), (2, "smooth"), (3, "smooth")):
        energy = np.diff(luma, order, 0) ** 2
        rounding = comb(2 * order, order) / 12
        busy = local_mean(energy, 4) > BUSY * rounding
        if busy.mean() <= LEAST_BUSY:
            continue
        for factor in (2, 3, 4, 8) if order < 3 else (2,):
            phases = [
                (energy[i::factor] * busy[i::factor]).sum() / max(busy[i::factor].sum(), 1)
                for i in range(factor)
            ]
            low, high = min(phases), max(phases)
            if high > UNEVEN * low and low < SMOOTH * rounding:
                return factor, kind
    return None


class Files:
    """What of the lines of a picture, or of a set, files and cameras have left."""

    def __init__(self, table: Table, at: Fractions, traits: Traits, lattice: float) -> None:
        """Takes note of lines; `lattice` is the p-value of those of the energy with period 8."""
        self._at, self._traits = at, traits
        self._jpeg = traits.blocks or (traits.whole and lattice < LATTICE)
        self._heights = {key: heights(key, lines, at) for key, lines in table.items()}

    def height(self, key: Key, period: int) -> float:
        """Returns the height of the strongest line of a period."""
        own = self._heights[key][self._at.period == period] if key in self._heights else ()
        return float(max(own, default=0.0))

    def reason(self, key: Key, period: int) -> str | None:
        """Returns what has left a comb: 'rounding', 'jpeg' or 'camera'; None if it is none of them."""
        top = self.height(key, period)
        if not key.is_energy and top < FAINT[not self._traits.whole]:
            return "rounding"
        if not self._traits.whole:
            return None  # no file
        if self._jpeg and self._is_of_blocks(key, period, top):
            return "jpeg"
        if key.field == "chroma" and top < WEAK:
            return "camera" if period == 2 and key.steps > 1 and not self._jpeg else "jpeg"
        if key.field != "chroma" and period == 2 and top < WEAK:
            red, green = (self.height(Key("chroma", c, key.direction), 2) for c in (1, 2))
            if green > max(top, 2 * red):  # half of the pixels of a Bayer pattern are green
                return "camera"
        return None

    def _is_of_blocks(self, key: Key, period: int, top: float) -> bool:
        enlarged = self._traits.enlarged
        if key.is_energy:
            own = enlarged is not None and enlarged[0] == period
            return period in (16, 32, 64) or (8 % period == 0 and not own)
        if key.field == "chroma" or 8 % period:
            return False
        blocks = self.height(key, 8) if key.steps == 1 else 0.0
        return top < (WEAK if period == 8 else min(WEAK, 2 * blocks))
