"""Pictures of the command line; matplotlib draws them."""

import importlib
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tconvjax.analysis import CenterMap

INK = "#c2410c"
DRAWN = 64  # pixels of an axis


def check(path: Path | None) -> None:
    """Raises unless a picture can be drawn to the path; commands call it before any work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise ValueError(f"--picture must end in .png; got {path}.")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--picture must be a file in a folder that exists; got {path}.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--picture must be a file that can be written; got {path}.")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ImportError('--picture needs matplotlib. Run: pip install "tconvjax[plot]"') from None


def overlap(
    path: Path,
    overlaps: Sequence[np.ndarray],
    centers: CenterMap,
    inputs: Sequence[int],
    title: str,
) -> None:
    """Draws the number of taps of each output pixel, and the centers of the input pixels.

    The picture shows the first two axes, and the first pixels of a long one.
    """
    figure, axes = _figure(4.8, 3.0 if len(overlaps) == 1 else 4.6)
    if max(map(len, overlaps[:2])) > DRAWN:
        title += f", first {DRAWN} pixels"
    counts = [overlap[:DRAWN] for overlap in overlaps[:2]]
    *down, across = (
        [c for c in scale * np.arange(n) + offset if -0.5 <= c <= len(drawn) - 0.5]
        for n, scale, offset, drawn in zip(
            inputs, centers.scale, centers.offset, counts, strict=False
        )
    )
    if not down:
        axes.bar(np.arange(len(counts[0])), counts[0], color="#64748b", width=0.9)
        axes.plot(across, np.full(len(across), -0.12), "^", color=INK, label="input centers")
        axes.set(xlabel="output pixel", ylabel="taps", title=title)
        axes.set(xticks=_whole(len(counts[0]) - 1), yticks=_whole(counts[0].max()))
    else:
        image = axes.imshow(np.outer(*counts), cmap="gray", vmin=0)
        grid = np.meshgrid(across, down)
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
    # An even size has half the sampling rate once; the picture shows it at both ends.
    repeated = [(0, 1 - n % 2) for n in (height, width)]
    power = np.pad(np.fft.fftshift(power.mean((0, 3))), repeated, mode="wrap")
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
    axes.set_title(f"{len(images)} image{'s' * (len(images) != 1)} of {height} x {width}", pad=14)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def _whole(largest: int) -> range:
    """Returns whole numbers for ticks, in ten steps at most."""
    return range(0, largest + 1, largest // 10 + 1)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    buffer = BytesIO()  # a failure to draw must not leave half a file
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())
