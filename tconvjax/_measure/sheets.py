"""Sheets of samples: where a picture is a grid of smaller ones, and their cutting."""

from collections.abc import Iterator, Sequence

import numpy as np

from tconvjax._measure.pictures import Picture

SMALLEST = 16  # pixels of a cell along an axis
NEAR = 24.0  # grey levels between a gutter, which JPEG blurs, and its color
MOST = 0.9  # part of a gutter that is near to its color
SEAM = 1.2  # step across every seam over the largest of the others
FEWEST = 3  # seams that count as a sheet

Cells = list[tuple[int, int]]  # from the first pixel to the one after the last, along an axis


def cells_of(picture: Picture) -> tuple[Cells, ...] | None:
    """Returns the cells of a sheet of samples along each axis; None if the picture is none.

    A sheet has gutters, straight bands of one color between cells of one size, or seams, lines at multiples of a size
    across which the picture changes more than anywhere else.
    """
    x = picture.levels
    if x.ndim != 3:
        return None
    found = _between_gutters(x)
    return _counted(found) if found else _counted(_between_seams(x))


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


def _between_gutters(x: np.ndarray) -> list[Cells] | None:
    """Returns the cells between gutters of one color; None without any between two cells."""
    bands = [_bands(x), _bands(x.swapaxes(0, 1))]
    if not any(
        start > 0 and stop < n
        for along, n in zip(bands, x.shape, strict=False)
        for start, stop in along
    ):
        return None
    cells: list[Cells] = []
    for along, n in zip(bands, x.shape, strict=False):
        edges = [0, *(e for band in along for e in band), n]
        parts = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        sizes = {b - a for a, b in parts}
        inner = {b - a for a, b in along if a > 0 and b < n}
        if not parts or max(sizes) - min(sizes) > 1 or (inner and max(inner) - min(inner) > 1):
            return None
        size = min(sizes)
        cells.append([(a, a + size) for a, _ in parts])
    return cells


def _bands(x: np.ndarray) -> list[tuple[int, int]]:
    """Returns the runs of rows that have one color, that of the plainest of them."""
    gray = x.mean(-1)
    color = np.median(gray, 1)
    plainest = color[np.argmin(abs(gray - color[:, None]).mean(1))]
    same = (abs(gray - plainest) <= NEAR).mean(1) >= MOST
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _between_seams(x: np.ndarray) -> list[Cells]:
    """Returns the cells between seams; the whole of an axis without any."""
    cells, seams = [], 0
    for axis in (0, 1):
        n = x.shape[axis]
        steps = abs(np.diff(x, axis=axis)).mean((1 - axis, 2))
        size = _size_between_seams(steps, n)
        seams += n // size - 1
        cells.append([(i, i + size) for i in range(0, n, size)])
    return cells if seams >= FEWEST else [[(0, n)] for n in x.shape[:2]]


def _size_between_seams(steps: np.ndarray, n: int) -> int:
    """Returns the smallest divisor of an axis at whose multiples pixels change most; else its length."""
    for size in range(SMALLEST, n // 2 + 1):
        if n % size:
            continue
        at = np.arange(size - 1, n - 1, size)
        others = np.delete(steps, at)
        if steps[at].min() > SEAM * others.max():
            return size
    return n
