"""Sheets of samples: where a picture is a grid of smaller ones, and their cutting."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from tconvjax._measure.pictures import Picture

SMALLEST = 16  # pixels of a cell along an axis
NEAR = 24.0  # grey levels between a gutter, which JPEG blurs, and its color
MOST = 0.9  # part of a gutter that is near to its color
SEAM = 1.2  # step across a seam over the largest of its neighborhood
AROUND = 6  # pixels on each side that are the neighborhood of a seam
ROUNDING = 0.5  # grey levels of a step that say nothing
SEAMS = 0.8  # part of the multiples of a size that are seams
FEWEST = 3  # seams that count as a sheet; of borders on a background twice as many
GUTTER = 4  # pixels before the first of cells on one background, or that a sheet is cropped by

Cells = list[tuple[int, int]]  # from the first pixel to the one after the last, along an axis


def cells_of(picture: Picture) -> tuple[Cells, ...] | None:
    """Returns the cells of a sheet of samples along each axis; None if the picture is none.

    A sheet has gutters, straight bands of one color between cells of one size, or seams, lines at multiples of a size
    across which the picture changes more than around them, or cells on one background.
    """
    if picture.levels.ndim != 3:
        return None
    gray = picture.levels.mean(-1)
    plain = _plain(gray), _plain(gray.T)
    bands = _bands(plain[0]), _bands(plain[1])
    found = _between_gutters(bands, gray.shape)
    if found:
        return _counted(found)
    return (
        _counted(_between_seams(gray))
        or _counted(_between_seams_in_a_frame(gray, bands))
        or _counted(_on_background(plain, gray.shape))
    )


def cut(picture: Picture, cells: Sequence[Cells]) -> Iterator[Picture]:
    """Yields the cells of a sheet, without those of one color."""
    for place in np.ndindex(*map(len, cells)):
        part = tuple(slice(*along[i]) for along, i in zip(cells, place, strict=True))
        levels = picture.levels[part]
        if np.ptp(levels) > 0:
            opaque = None if picture.opaque is None else picture.opaque[part]
            yield Picture(levels, opaque, f"{picture.name}[{', '.join(map(str, place))}]")


def tiled(shape: Sequence[int], tile: Sequence[int]) -> list[Cells]:
    """Returns the cells of a given size, from the first pixel on; what is left at the end belongs to none."""
    return [[(i, i + t) for i in range(0, n - t + 1, t)] for n, t in zip(shape, tile, strict=True)]


def _counted(cells: Sequence[Cells]) -> tuple[Cells, ...] | None:
    """A sheet has several cells, of a size that is worth looking at."""
    many = np.prod([len(along) for along in cells]) > 1
    return (
        tuple(cells)
        if many and all(along[0][1] - along[0][0] >= SMALLEST for along in cells)
        else None
    )


def _between_gutters(bands: Sequence[Cells], shape: Sequence[int]) -> list[Cells] | None:
    """Returns the cells between gutters of one color; None without any between two cells."""
    if not any(
        start > 0 and stop < n
        for along, n in zip(bands, shape, strict=True)
        for start, stop in along
    ):
        return None
    cells: list[Cells] = []
    for along, n in zip(bands, shape, strict=True):
        edges = [0, *(e for band in along for e in band), n]
        parts = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        sizes = {b - a for a, b in parts}
        inner = [b - a for a, b in along if a > 0 and b < n]
        cropped = GUTTER if len(inner) >= FEWEST else 1
        if not parts or max(sizes) - min(sizes) > cropped or (inner and np.ptp(inner) > 1):
            return None
        size = min(sizes)
        cells.append([(a, a + size) for a, _ in parts])
    return cells


def _plain(gray: np.ndarray) -> np.ndarray:
    """Whether each row has one color, that of the plainest of them."""
    color = np.median(gray, 1)
    plainest = color[np.argmin(abs(gray - color[:, None]).mean(1))]
    same: np.ndarray = (abs(gray - plainest) <= NEAR).mean(1) >= MOST
    return same


def _bands(plain: np.ndarray) -> Cells:
    """Returns the runs of rows that have one color."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], plain, [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _between_seams(gray: np.ndarray) -> list[Cells]:
    """Returns the cells between seams; the whole of both axes without enough of them."""
    seams = [_seams(abs(np.diff(gray, axis=axis)).mean(1 - axis)) for axis in (0, 1)]
    return _at_multiples(seams, gray.shape, SEAMS, FEWEST, 0)


def _between_seams_in_a_frame(gray: np.ndarray, bands: Sequence[Cells]) -> list[Cells]:
    """Returns the cells between seams inside of a frame of one color."""
    inside = []
    for along, n in zip(bands, gray.shape, strict=True):
        first = along[0][1] if along and along[0][0] == 0 else 0
        last = along[-1][0] if along and along[-1][1] == n else n
        inside.append((first, last) if last - first >= SMALLEST else (0, n))
    (top, bottom), (left, right) = inside
    cells = _between_seams(gray[top:bottom, left:right])
    return [
        [(a + start, b + start) for a, b in along]
        for along, start in zip(cells, (top, left), strict=True)
    ]


def _seams(steps: np.ndarray) -> np.ndarray:
    """Whether the step after each pixel but the last is larger than all of its neighborhood."""
    around = np.ones(2 * AROUND + 1, bool)
    around[AROUND] = False
    others = ndimage.maximum_filter(steps, footprint=around, mode="constant")
    found: np.ndarray = steps > SEAM * (others + ROUNDING)
    return found


def _on_background(plain: Sequence[np.ndarray], shape: Sequence[int]) -> list[Cells]:
    """Returns cells whose borders, and not all else, have the color of the background; else the whole of both axes."""
    borders = [rows[:-1] & rows[1:] for rows in plain]
    cells = _at_multiples(borders, shape, 1.0, 2 * FEWEST, GUTTER)
    busy = all(not p[a:b].all() for p, along in zip(plain, cells, strict=True) for a, b in along)
    return cells if busy else [[(0, n)] for n in shape]


def _at_multiples(
    borders: Sequence[np.ndarray], shape: Sequence[int], least: float, fewest: int, gutter: int
) -> list[Cells]:
    """Returns cells of the smallest size at whose multiples there are borders, at that part of them at least.

    Before the first there may be a gutter. Cells are square where one axis alone shows their size.
    """
    sizes, count = [], 0
    for border, n in zip(borders, shape, strict=True):
        every = (size for size in range(SMALLEST, n // 2 + 1) if n % size <= gutter)
        fits = lambda size, border=border, n=n: border[n % size + size - 1 :: size].mean() >= least
        sizes.append(next(filter(fits, every), n))
        count += n // sizes[-1] - 1
    if count < fewest:
        return [[(0, n)] for n in shape]
    square = min(sizes)
    sizes = [square if s == n and not n % square else s for s, n in zip(sizes, shape, strict=True)]
    return [
        [(i, i + size) for i in range(n % size, n, size)]
        for size, n in zip(sizes, shape, strict=True)
    ]
