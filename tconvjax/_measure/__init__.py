"""`measure`: is there a grid in these pictures?

A grid is a set of lines of the spectrum at multiples of 1/period: `fields` makes spectra in which they stand out,
`lines` tests them against their neighborhood, `traces` knows what files and cameras leave, `verdict` judges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from tconvjax import _geometry as geo
from tconvjax._measure import sheets
from tconvjax._measure.fields import Key, Spectrum, spectra_of
from tconvjax._measure.lines import Fractions, Table, above, fractions, pooled, table_of, usual
from tconvjax._measure.measurement import Measurement, measurement
from tconvjax._measure.pictures import Picture, pictures_of
from tconvjax._measure.traces import Traits, traits_of
from tconvjax._measure.verdict import judged

PERIODS = range(2, 65)
# Least p-value by which a table counts in a set: those of single pictures, so that none alone makes a pattern of the
# set, and those of sums over all pictures of one shape, in which a grid of fixed phase adds up.
EACH, TOGETHER = 1e-3, 1e-30
LARGEST = 1 << 22  # pixels that are measured at once; a larger picture is a set of its parts
PART = 1024
KEPT = 64  # pictures that `plot` shows


def measure(
    images: Any,
    *,
    reference: Any = None,
    periods: Sequence[int] | None = None,
    tile: int | Sequence[int] | None = None,
) -> Measurement:
    """Says whether there is a grid in pictures: a checkerboard, stripes, what upsampling leaves.

    A grid is a set of lines in the spectrum at multiples of 1/period, of the picture itself or of its local contrast.
    Each is tested against its neighborhood in the same spectrum, after edges and textures are weighed down, so that
    photographs have the statistics of noise; the error is shared among all periods and directions. Lines that JPEG,
    cameras and rounding leave are told apart. Of a set, pictures count each by itself and, where they are of one size,
    added up; they count as independent, which crops of one photograph and frames of a video are not.

    Args:
      images: a picture `(height, width)` or `(height, width, channels)`, a batch `(batch, height, width, channels)`, a
        signal `(length,)`, volumes `(batch, depth, height, width, channels)`, or a sequence of arrays of any sizes and
        one number of axes of space; a list of lists is a sequence of signals. Two and four channels have alpha, in the
        range of the colors, and transparent pixels do not count. Integers of 8 and 16 bits have the range of their
        type; floats are in [0, 1], [−1, 1] or [0, 255], the first that holds all but some overshoot, or their own range
        is 255 grey levels.
      reference: clean pictures of the same kind, real ones for instance: what they have is no pattern.
      periods: in pixels, each from 2 to 64; all of them by default.
      tile: height and width of the cells of a sheet of samples, to cut; an int serves both. By default a single picture
        is cut where gutters or seams show that it is a sheet; the size of the whole picture cuts nothing.

    Returns:
      The verdict, a sentence, and the numbers behind it; for a set also those of each picture.

    Raises:
      ValueError, TypeError: for arrays of other shapes, without pixels, with values that are not finite; periods or
        tiles out of range.

    Example:
      >>> noise = np.random.default_rng(0).normal(128, 5, (64, 64))
      >>> found = measure((noise + 4 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8))
      >>> found.verdict, found.period, found.orientation
      ('pattern', 2, 'board')
      >>> measure(noise.astype(np.uint8)).verdict
      'clean'
    """
    who = "measure"
    shown = _periods(who, periods)
    given = pictures_of(who, images)
    clean = None if reference is None else pictures_of(who, reference, "reference")
    return measured(given, clean, periods=shown, tile=_tile(who, tile))


def measured(
    pictures: Iterable[Picture],
    reference: Iterable[Picture] | None = None,
    *,
    periods: Sequence[int] = PERIODS,
    tile: Sequence[int] | None = None,
) -> Measurement:
    """Measures pictures, as `measure` does, one at a time."""
    at = fractions(periods)
    of_reference = None if reference is None else _Set(at, _cut(reference, tile)[0], None)
    given, size = _cut(pictures, tile)
    return _Set(at, given, of_reference).measurement(size)


def _periods(who: str, periods: Sequence[int] | None) -> Sequence[int]:
    if periods is None:
        return PERIODS
    every = [periods] if isinstance(periods, int) else list(periods)
    given = sorted({geo.positive_int(who, "periods", p) for p in every})
    if not given or given[0] < 2 or given[-1] > PERIODS[-1]:
        raise ValueError(
            f"{who}: periods must be at least one integer from 2 to {PERIODS[-1]}; got {periods!r}."
        )
    return given


def _tile(who: str, tile: int | Sequence[int] | None) -> tuple[int, ...] | None:
    found = None if tile is None else geo.per_axis(who, "tile", tile, 2)
    if found and min(found) < sheets.SMALLEST:
        raise ValueError(f"{who}: tile must be at least {sheets.SMALLEST} pixels; got {found}.")
    return found


def _cut(
    pictures: Iterable[Picture], tile: Sequence[int] | None
) -> tuple[Iterable[Picture], tuple[int, ...] | None]:
    """Returns the cells of sheets, and their size; a single picture may show that it is one."""
    if tile is not None:
        return (c for p in pictures for c in _cells(p, tile)), tuple(tile)
    pictures = iter(pictures)
    first = list(islice(pictures, 2))
    if len(first) == 1 and (cells := sheets.cells_of(first[0])):
        size = tuple(along[0][1] - along[0][0] for along in cells)
        found = list(sheets.cut(first[0], cells))
        if found:
            return found, size
    return chain(first, pictures), None


def _cells(picture: Picture, tile: Sequence[int]) -> Iterable[Picture]:
    space = picture.levels.shape[:-1]
    if len(space) != 2 or any(t > n for t, n in zip(tile, space, strict=True)):
        raise ValueError(
            f"measure: tile must be at most the height and width of a picture; got {tuple(tile)}, {picture.name} of "
            f"shape {space}."
        )
    if tuple(tile) == space:
        return [picture]
    found = sheets.cells_of(picture)  # it knows the gutters
    fits = found and all(a[0][1] - a[0][0] == t for a, t in zip(found, tile, strict=True))
    return sheets.cut(picture, found if found and fits else sheets.tiled(space, tile))


class _Set:
    """Lines of pictures, each by itself, and of the sums of those of one shape."""

    def __init__(
        self, at: Fractions, pictures: Iterable[Picture], reference: "_Set | None"
    ) -> None:
        self._at, self._reference = at, reference
        self._usual = usual(reference._tables) if reference else {}
        self._kept: list[Picture] = []
        self._tables: list[Table] = []
        self._traits: list[Traits] = []
        self._sums: dict[tuple[int, ...], dict[Key, Spectrum]] = {}
        self._each: list[Measurement] = []
        for picture in pictures:
            self._add(picture)
        if not self._tables:
            raise ValueError(
                "measure: there must be a picture, and of sheets a cell, of more than one color; got none."
            )

    def _add(self, picture: Picture) -> None:
        rank = picture.levels.ndim - 1
        first = (self._kept or (self._reference._kept if self._reference else None) or [picture])[0]
        if rank != first.levels.ndim - 1:
            raise ValueError(
                "measure: all images, and those of the reference, must have as many axes of space as the first; got "
                f"{first.levels.ndim - 1} and {rank} of {picture.name}."
            )
        parts = _parts(picture)
        spectra = [spectra_of(part) for part in parts]
        for part, found in zip(parts, spectra, strict=True):
            old = self._sums.setdefault(part.levels.shape, {})
            for key, new in found.items():
                so_far = old.get(key, Spectrum(np.zeros(()), 0.0))
                old[key] = Spectrum(so_far.values + new.values, so_far.gain + new.gain)
        tables = [self._lines(one) for one in spectra]
        table = pooled(tables, TOGETHER) if len(tables) > 1 else tables[0]
        traits = traits_of(parts[0])
        self._tables.append(table)
        self._traits.append(traits)
        if len(self._kept) < KEPT:
            self._kept.append(picture)
        referred = self._reference is not None
        one = judged(table, self._at, traits)
        self._each.append(measurement(one, [picture], referred=referred, path=picture.name))

    def _lines(self, spectra: dict[Key, Spectrum]) -> Table:
        table = table_of(spectra, self._at)
        if self._reference is None:
            return table
        return above(table, self._usual, self._at)

    def measurement(self, tile: tuple[int, ...] | None) -> Measurement:
        """Returns the answer for all pictures."""
        of_reference = None if self._reference is None else self._reference.measurement(None)
        rest: dict[str, Any] = {"tile": tile, "reference": of_reference}
        if len(self._each) == 1:
            (one,) = self._each
            return replace(one, images=(one,), **rest)
        traits = Traits(*(_most(values) for values in zip(*self._traits, strict=True)))
        sums = [self._lines(spectra) for spectra in self._sums.values()]
        together = judged(pooled(sums, TOGETHER), self._at, traits)
        each = judged(pooled(self._tables, EACH), self._at, traits)
        found = each if each.verdict == "pattern" != together.verdict else together
        referred = self._reference is not None
        return measurement(found, self._kept, referred=referred, images=tuple(self._each), **rest)


def _most(values: Sequence[Any]) -> Any:
    """Returns the value that more than half of the pictures have; None without one."""
    best = max(set(values), key=values.count)
    return best if values.count(best) > len(values) / 2 else None


def _parts(picture: Picture) -> list[Picture]:
    """Returns a picture that is not too large, or parts of it."""
    space = picture.levels.shape[:-1]
    if np.prod(space) <= LARGEST:
        return [picture]
    size = [min(PART, n) for n in space]
    starts = np.ndindex(*(n // t for n, t in zip(space, size, strict=True)))
    at = [
        tuple(slice(i * t, (i + 1) * t) for i, t in zip(start, size, strict=True))
        for start in starts
    ]
    return [
        Picture(
            picture.levels[place],
            None if picture.opaque is None else picture.opaque[place],
            picture.name,
        )
        for place in at
    ]
