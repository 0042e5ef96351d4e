"""How often `measure` sees a grid in photographs: where there is none, and where one was planted.

    python -m experiments.published.grids FOLDER --figure power.png

FOLDER holds photographs without grids, PNG files in RGB. Crops are taken at random places, one photograph after the
other. A planted pattern is added before rounding, with its fraction of a level drawn.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import tconvjax

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
QUALITIES = (None, 95, 85, 75)  # None is PNG
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#64748b")
DASHES = ("-", "--", "-.", ":", "-", "--")


class Grid(NamedTuple):
    """A square wave along y·rows + x·columns, of root mean square 1."""

    y: int
    x: int
    period: int
    orientation: str


GRIDS = {
    "board of 2": Grid(1, 1, 2, "board"),
    "columns of 2": Grid(0, 1, 2, "columns"),
    "rows of 2": Grid(1, 0, 2, "rows"),
    "columns of 4": Grid(0, 1, 4, "columns"),
    "rows of 4": Grid(1, 0, 4, "rows"),
    "columns of 8": Grid(0, 1, 8, "columns"),
}


def crops(
    photographs: Sequence[np.ndarray], count: int, size: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields crops at random places, of one photograph after the other."""
    random = np.random.default_rng(seed)
    for i in range(count):
        photo = photographs[i % len(photographs)]
        y, x = (int(random.integers(n - size + 1)) for n in photo.shape[:2])
        yield photo[y : y + size, x : x + size]


def planted(crop: np.ndarray, grid: str, level: float, quality: int | None) -> np.ndarray:
    """Returns a crop with a grid, and what JPEG leaves of it."""
    random = np.random.default_rng(0)
    y, x, period, _ = GRIDS[grid]
    rows, columns = np.indices((*crop.shape[:2], 1))[:2]
    wave = np.where((y * rows + x * columns) % period < period // 2, level, -level)
    pixels = np.floor(crop + wave + random.random(crop.shape))
    found = np.clip(pixels, 0, 255).astype(np.uint8)
    return found if quality is None else jpeg(found, quality)


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Returns what JPEG leaves of a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def share(count: int, total: int) -> str:
    """Returns a share with its 95 % interval (Wilson)."""
    z, p = 1.96, count / total
    middle, half = p + z * z / 2 / total, z * sqrt(p * (1 - p) / total + (z / 2 / total) ** 2)
    low, high = ((middle + s * half) / (1 + z * z / total) for s in (-1, 1))
    return f"{count}/{total} = {p:.3f} ({max(low, 0):.3f} to {high:.3f})"


def is_named(found: Any, grid: str) -> bool:
    """Whether a grid is found, with its period and orientation."""
    return (found.verdict, found.period, found.orientation) == ("pattern", *GRIDS[grid][2:])


def draw(path: Path, power: Mapping[tuple[str, int | None], Sequence[float]]) -> None:
    """Draws the power over the level of the pattern, a panel for each kind of file."""
    figure = Figure(figsize=(10, 3.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(QUALITIES), sharey=True)
    for ax, quality in zip(panels, QUALITIES, strict=True):
        for grid, color, dash in zip(GRIDS, COLORS, DASHES, strict=False):
            ax.plot(LEVELS, power[grid, quality], dash, marker="o", color=color, label=grid)
        ax.axhline(0.95, color="k", linewidth=0.5)
        ax.set(xscale="log", xlabel="grey levels (rms)", ylim=(-0.03, 1.03))
        ax.set_xticks(LEVELS, [f"{level:g}" for level in LEVELS])
        ax.minorticks_off()
        ax.set_title("PNG" if quality is None else f"JPEG {quality}")
    panels[0].set_ylabel("found, with period and orientation")
    panels[-1].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def _print_sets(photos: Sequence[np.ndarray], options: argparse.Namespace) -> None:
    """Prints how many sets show a grid, at a quarter of the levels."""
    levels = [level / 4 for level in LEVELS[:4]]
    print("\nsets of 64", *levels, sep=" | ")
    for grid in GRIDS:
        counts = []
        for level in levels:
            named = 0
            for i in range(options.sets):
                plain = crops(photos, 64, options.size, options.seed + 100 + i)
                found = tconvjax.measure([planted(c, grid, level, None) for c in plain])
                named += is_named(found, grid)
            counts.append(f"{named}/{options.sets}")
        print(grid, *counts, sep=" | ", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints false alarms and power."""
    parser = argparse.ArgumentParser(prog="python -m experiments.published.grids", description=__doc__)  # fmt: skip
    parser.add_argument("folder", type=Path, help="of photographs, PNG files")
    parser.add_argument("--clean", type=int, default=350, help="crops without a grid (350)")
    parser.add_argument("--crops", type=int, default=60, help="crops for each planted grid (60)")
    parser.add_argument("--sets", type=int, default=4, help="sets of 64 for each grid (4)")
    parser.add_argument("--size", type=int, default=160, help="of a crop in pixels (160)")
    parser.add_argument("--seed", type=int, default=2000, help="of the places (2000)")
    parser.add_argument("--figure", type=Path, help="PNG file to draw the power to")
    options = parser.parse_args(arguments)
    size = options.size
    files = [_read(path) for path in sorted(options.folder.glob("*.png"))]
    photos = [photo for photo in files if min(photo.shape[:2]) >= size]
    if not photos:
        print(f"{options.folder}: holds no PNG file of {size} x {size} pixels or more.", file=sys.stderr)  # fmt: skip
        return 2
    print(f"{len(photos)} photographs, crops of {size} x {size}")
    clean = [tconvjax.measure(c) for c in crops(photos, options.clean, size, options.seed)]
    for verdict in ("pattern", "undecided"):
        print(f"clean, {verdict}: {share(sum(m.verdict == verdict for m in clean), len(clean))}")
    power: dict[tuple[str, int | None], list[float]] = {}
    for quality in QUALITIES:
        print("\nPNG" if quality is None else f"\nJPEG {quality}", *LEVELS, sep=" | ", flush=True)
        if quality:
            coded = [jpeg(c, quality) for c in crops(photos, options.crops, size, options.seed + 1)]
            false = sum(tconvjax.measure(c).verdict == "pattern" for c in coded)
            print(f"clean, pattern: {share(false, len(coded))}")
        for grid in GRIDS:
            power[grid, quality] = [
                float(np.mean([
                    is_named(tconvjax.measure(planted(c, grid, level, quality)), grid)
                    for c in crops(photos, options.crops, size, options.seed + 2)
                ]))
                for level in LEVELS
            ]  # fmt: skip
            print(grid, *(f"{p:.2f}" for p in power[grid, quality]), sep=" | ", flush=True)
    if options.figure:
        draw(options.figure, power)
    if options.sets:
        _print_sets(photos, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
