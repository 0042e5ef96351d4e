"""Pictures of the command line, by matplotlib where it is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tconvjax.analysis import CenterMap

INK = "#c2410c"


def overlap(path: Path, overlaps: Sequence[np.ndarray], centers: CenterMap, title: str) -> None:
    """Draws how many taps paint each output pixel, with the centers of the input pixels, of the first two axes."""
    figure, axes = _figure(4.8, 3.0 if len(overlaps) == 1 else 4.6)
    last = len(overlaps[:2]) - 1
    across = overlaps[last]
    places = np.arange(len(across) // centers.scale[last] + 1) * centers.scale[last]
    inside = (places + centers.offset[last])[places + centers.offset[last] <= len(across) - 0.5]
    if len(overlaps) == 1:
        axes.bar(np.arange(len(across)), across, color="#64748b", width=0.9)
        axes.plot(inside, np.full(len(inside), -0.12), "^", color=INK, label="input centers")
        axes.set(xlabel="output pixel", ylabel="taps", title=title)
        axes.set(xticks=_whole(len(across) - 1), yticks=_whole(across.max()))
    else:
        image = axes.imshow(np.outer(overlaps[0], across), cmap="gray", vmin=0)
        down = np.arange(len(overlaps[0]) // centers.scale[0] + 1) * centers.scale[0]
        down = down + centers.offset[0]
        grid = np.meshgrid(inside, down[down <= len(overlaps[0]) - 0.5])
        axes.plot(*map(np.ravel, grid), ".", color=INK, markersize=3, label="input centers")
        figure.colorbar(image, label="taps", shrink=0.8, ticks=_whole(image.get_array().max()))
        axes.set(xlabel="output column", ylabel="output row", title=title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    _save(figure, path)


def spectrum(path: Path, images: np.ndarray, periods: Sequence[int]) -> None:
    """Draws the mean power spectrum of `(images, height, width, channels)`, zero frequency in the middle.

    The harmonics of each period are circled.
    """
    figure, axes = _figure(5.4, 4.8)
    height, width = images.shape[1:3]
    centered = images - images.mean((1, 2), keepdims=True)
    window = np.hanning(height + 1)[:-1, None] * np.hanning(width + 1)[:-1]
    power = abs(np.fft.fft2(centered * window[..., None], axes=(1, 2))) ** 2
    # Half the sampling rate, which even sizes have once, is shown at both ends.
    both = [(0, 1 - n % 2) for n in (height, width)]
    power = np.pad(np.fft.fftshift(power.mean((0, 3))), both, mode="wrap")
    decibels = 10 * np.log10(np.maximum(power, np.max(power) * 1e-6 + 1e-30))
    down, across = (0.5 + 0.5 / n * (1 - n % 2) for n in (height, width))
    picture = axes.imshow(decibels, cmap="gray", extent=(-across, across, down, -down))
    for i, period in enumerate(periods):
        ticks = [q / period for q in range(-(period // 2), period // 2 + 1)]
        points = [(u, v) for u in ticks for v in ticks if u or v]
        color = ("#c2410c", "#2563eb", "#16a34a", "#9333ea")[i % 4]
        axes.plot(
            *zip(*points, strict=True), "o", mfc="none", color=color, markersize=9 + 4 * i,
            label=f"period {period}", clip_on=False,
        )  # fmt: skip
    figure.colorbar(picture, label="mean power, dB", shrink=0.8)
    axes.set(xlabel="cycles per pixel along the width", ylabel="cycles per pixel along the height")
    axes.set_title(f"{len(images)} images of {height} x {width}", pad=14)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def _whole(most: int) -> range:
    """Ticks at whole numbers, ten at most."""
    return range(0, most + 1, most // 10 + 1)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            '--picture needs matplotlib. Run: pip install "tconvjax[experiments]"'
        ) from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"--picture must end in .png; got {path}.")
    figure.savefig(path)
