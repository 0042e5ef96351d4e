"""Figures of upsampling: what integers and weights predict, what images show. Needs the extra `plot`.

Each function draws into `ax`, or into a new figure of pyplot, and returns the axes: `plot.spectrum(images).figure` is
the figure, which `savefig` writes in any format. The color-blind tell the colors apart; in gray, numbers and lengths
say the same.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax import analysis
from tconvjax._geometry import Ints, Padding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#64748b"
CIRCLES = (ORANGE, BLUE, GREEN, PINK)  # Okabe & Ito
DRAWN = 64  # pixels of an axis
SHOWN = 16  # harmonics, and input pixels, of an axis that are marked one by one
FLOOR = 60  # decibels below the strongest power that are drawn

__all__ = [
    "center_map", "overlap_map", "phase_gains", "receptive_field", "repair", "spectrum",
]  # fmt: skip


def spectrum(
    images: ArrayLike,
    periods: int | Sequence[int] = (),
    *,
    power: bool = False,
    limits: tuple[float, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the mean power spectrum of images, zero frequency in the middle, harmonics of periods circled.

    A pattern of a fixed grid is bright inside of the circles. Images are Hann-windowed after their mean is removed.

    Args:
      images: `(*batch, height, width, channels)`, or one gray image `(height, width)`.
      periods: in pixels, each >= 2; up to four. Harmonics of periods above 16 are circled on the axes alone.
      power: whether `images` is a power spectrum instead, `(height, width)`, zero frequency in the middle.
      limits: range of the colors in dB, of the power per bin over the total, without a color bar: for spectra beside
        each other. By default 60 dB below the strongest power.
      ax: to draw into.

    Returns:
      The axes, in cycles per pixel.

    Raises:
      ValueError, TypeError: for arrays of another rank, negative power, a period below 2, or more than four.
      ImportError: without matplotlib.

    Example:
      >>> board = np.indices((32, 32)).sum(0) % 2
      >>> spectrum(board, [2]).get_xlabel()
      'cycles per pixel along the width'
    """
    who = "spectrum"
    x = np.asarray(images, np.float64)
    if power and (x.ndim != 2 or not (x >= 0).all()):
        raise ValueError(
            f"{who}: power must be (height, width) of numbers >= 0; got shape {x.shape}."
        )
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim < 3 or min(x.shape[-3:-1]) < 4 or 0 in x.shape:
        raise ValueError(
            f"{who}: images must be (*batch, height, width, channels) or (height, width) of 4 pixels or more; got "
            f"shape {x.shape}."
        )
    periods = [periods] if isinstance(periods, int) else periods
    periods = [geo.positive_int(who, "periods", period) for period in periods]
    if len(periods) > len(CIRCLES) or min(periods, default=2) < 2:
        raise ValueError(f"{who}: periods must be up to {len(CIRCLES)} integers >= 2; got {periods}.")  # fmt: skip
    height, width = x.shape[-3:-1]
    x = x.reshape(-1, height, width, x.shape[-1])
    middle = x[0, ..., 0] if power else np.fft.fftshift(_power(x))
    ax = _axes(ax, 5.4, 4.8)
    # An even size has half the sampling rate once; the picture shows it at both ends.
    repeated = [(0, 1 - n % 2) for n in (height, width)]
    scale = (middle.sum() if limits else middle.max()) or 1
    floor = limits[0] if limits else -FLOOR
    shown = np.pad(middle / scale, repeated, mode="wrap")
    decibels = 10 * np.log10(np.maximum(shown, 10 ** (floor / 10)))
    down, across = (0.5 + 0.5 / n * (1 - n % 2) for n in (height, width))
    low, high = limits or (None, None)
    extent = (-across, across, down, -down)
    picture = ax.imshow(decibels, cmap="gray", vmin=low, vmax=high, extent=extent)
    for i, period in enumerate(periods):
        ticks = [q / period for q in range(-(period // 2), period // 2 + 1)]
        points = [(u, v) for u in ticks for v in ticks if (u or v) and (period <= SHOWN or not u * v)]  # fmt: skip
        ax.plot(
            *zip(*points, strict=True), "o", mfc="none", color=CIRCLES[i], markersize=9 + 4 * i,
            label=f"period {period}", clip_on=False,
        )  # fmt: skip
    if not limits:
        ax.figure.colorbar(picture, ax=ax, label="mean power, dB", shrink=0.8)
    ax.set(xlabel="cycles per pixel along the width", ylabel="cycles per pixel along the height")
    what = "spectrum" if power else f"{len(x)} image{'s' * (len(x) != 1)}"
    ax.set_title(f"{what} of {height} x {width}", pad=14)
    if periods:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, fontsize=8)  # fmt: skip
    return ax


def overlap_map(
    input_shape: Sequence[int],
    kernel_size: Ints,
    strides: Ints = 1,
    *,
    padding: Padding = "SAME",
    output_padding: Ints | None = None,
    kernel_dilation: Ints = 1,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the number of taps of each output pixel of a transposed convolution, and the centers of the input pixels.

    An even picture has no checkerboard from overlap. One axis gives bars, more give a map of the first two.

    Args:
      input_shape: as in `analysis.overlap_map`, like all others but `ax`.
      kernel_size: an int serves all axes, likewise strides, output_padding and kernel_dilation.
      strides: as above.
      padding: as in `conv_transpose`.
      output_padding: as in `conv_transpose`.
      kernel_dilation: as in `conv_transpose`.
      ax: to draw into.

    Returns:
      The axes, in output pixels, the first 64 of each.

    Raises:
      ValueError, TypeError: as `analysis.overlap_map`.
      ImportError: without matplotlib.

    Example:
      >>> overlap_map((5, 5), 3, 2).get_title()
      'kernel 3 x 3, stride 2 x 2: 1 to 4 taps'

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003, figure 2.
    """
    who = "overlap_map"
    rank = len(geo.ints(who, "input_shape", input_shape, minimum=1))
    k, s, d = (
        geo.per_axis(who, name, value, rank)
        for name, value in {"kernel_size": kernel_size, "strides": strides, "kernel_dilation": kernel_dilation}.items()
    )  # fmt: skip
    geometry = geo.conv_transpose_geometry(
        who, tuple(input_shape), k, strides=s, padding=padding, output_padding=output_padding, kernel_dilation=d,
    )  # fmt: skip
    # The map of all axes is the product of those of each.
    counts = [
        analysis.overlap_map(
            (n,), (t,), (stride,), padding=(pair,), output_shape=(big,), kernel_dilation=(dilation,)
        )
        for n, t, stride, pair, big, dilation in zip(
            geometry.small, k, s, geometry.padding, geometry.big, d, strict=True
        )
    ]
    centers = [
        stride * np.arange(n) + (dilation * (t - 1)) / 2 - low
        for n, t, stride, dilation, low in zip(
            geometry.small, k, s, d, geometry.offset, strict=True
        )
    ]
    shown = counts[:2]
    taps = prod(int(c.min()) for c in shown), prod(int(c.max()) for c in shown)
    title = f"kernel {_by(k)}, stride {_by(s)}: {taps[0]} to {taps[1]} taps"
    title += " along two axes" if len(counts) > 2 else ""
    if max(map(len, shown)) > DRAWN:
        title += f", first {DRAWN} pixels"
    drawn = [c[:DRAWN] for c in shown]
    *down, across = (
        c[(c >= -0.5) & (c <= len(d) - 0.5)] for c, d in zip(centers, drawn, strict=False)
    )
    ax = _axes(ax, 4.8, 4.6 if down else 3.0)
    if not down:
        ax.bar(np.arange(len(drawn[0])), drawn[0], color=GRAY, width=0.9)
        ax.plot(across, np.full(len(across), -0.12), "^", color=ORANGE, label="input centers")
        ax.set(xlabel="output pixel", ylabel="taps", title=title)
        ax.set(xticks=_whole(len(drawn[0]) - 1), yticks=_whole(int(drawn[0].max())))
    else:
        image = ax.imshow(np.outer(*drawn), cmap="gray", vmin=0)
        if max(len(across), len(down[0])) <= 2 * SHOWN:  # more hide the map
            grid = np.meshgrid(across, down[0])
            ax.plot(*map(np.ravel, grid), ".", color=ORANGE, markersize=3, label="input centers")
        ax.figure.colorbar(image, ax=ax, label="taps", shrink=0.8, ticks=_whole(taps[1]))
        ax.set(xlabel="output column", ylabel="output row", title=title)
    if ax.lines:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    return ax


def phase_gains(
    kernel: ArrayLike, strides: Ints, *, transpose_kernel: bool = False, ax: "Axes | None" = None
) -> "Axes":
    """Draws what each phase of a transposed convolution answers to a constant, over the mean of the phases.

    The constant is the one that the kernel answers most to: the first singular vector of its gains. Equal cells are
    flat; their spread is the checkerboard that weights put on constants.

    Args:
      kernel: as in `analysis.phase_gains`, of one or two spatial axes.
      strides: one integer per spatial axis; an int serves all.
      transpose_kernel: as in `conv_transpose`.
      ax: to draw into.

    Returns:
      The axes: a cell, or a bar, for each phase.

    Raises:
      ValueError, TypeError: as `analysis.phase_gains`, and for three spatial axes or more.
      ImportError: without matplotlib.

    Example:
      >>> phase_gains(np.ones((3, 3, 1, 1)), 2).get_title()
      'gains 0.44 to 1.78 of their mean'

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    gains = np.asarray(analysis.phase_gains(kernel, strides, transpose_kernel=transpose_kernel))
    s = gains.shape[:-2]
    if len(s) > 2:
        raise ValueError(
            f"phase_gains: kernel must have one or two spatial axes; got {len(s)}. Draw a slice of it."
        )
    matrix = gains.reshape(prod(s), -1)
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    answers = left[:, 0] * values[0]
    mean, largest = answers.mean(), abs(answers).max(initial=0)
    has_mean = abs(mean) > 1e-6 * largest
    relative = answers / (mean if has_mean else largest or 1.0)
    relative, unit = relative.reshape(s), "their mean" if has_mean else "the largest"
    ax = _axes(ax, 4.2, 3.4)
    if len(s) == 1:
        ax.bar(np.arange(s[0]), relative, color=GRAY, width=0.9)
        ax.axhline(float(has_mean), color=ORANGE, linewidth=1)
        ax.set(xlabel="phase", ylabel=f"gain over {unit}", xticks=_whole(s[0] - 1))
    else:
        reach = max(abs(relative - has_mean).max(), 0.05)
        image = ax.imshow(relative, cmap="PuOr", vmin=has_mean - reach, vmax=has_mean + reach)
        ax.figure.colorbar(image, ax=ax, label=f"gain over {unit}", shrink=0.8)
        ax.set(xlabel="phase along the width", ylabel="phase along the height")
        ax.set(xticks=_whole(s[1] - 1), yticks=_whole(s[0] - 1))
        for p in np.ndindex(*s) if max(s) <= 8 else ():
            dark = abs(relative[p] - has_mean) > 0.6 * reach
            ax.text(p[1], p[0], f"{relative[p]:.2f}", ha="center", va="center", color="w" if dark else "k")  # fmt: skip
    ax.set_title(f"gains {relative.min():.2f} to {relative.max():.2f} of {unit}")
    return ax


def center_map(
    kernel_size: Ints,
    strides: Ints,
    padding: Padding = "SAME",
    *,
    kernel_dilation: Ints = 1,
    axis: int = 0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws where a transposed convolution puts the centers of the input pixels, against half-pixel alignment.

    Args:
      kernel_size: as in `analysis.center_map`, like strides, padding and kernel_dilation.
      strides: as above.
      padding: as above.
      kernel_dilation: as above.
      axis: the axis to draw.
      ax: to draw into.

    Returns:
      The axes, in output pixels: lines lead from input pixels to their centers, dots are those of half-pixel alignment.

    Raises:
      ValueError, TypeError: as `analysis.center_map`, and for an axis that there is not.
      ImportError: without matplotlib.

    Example:
      >>> center_map(3, 2).get_title()
      'output centers at 2i + 1, shift 0.5'
    """
    centers = analysis.center_map(kernel_size, strides, padding, kernel_dilation=kernel_dilation)
    if not 0 <= axis < len(centers.scale):
        raise ValueError(
            f"center_map: axis must be at least 0 and below {len(centers.scale)}; got {axis}."
        )
    scale, offset, shift = (v[axis] for v in (centers.scale, centers.offset, centers.shift))
    inputs = np.arange(5)
    ideal = scale * (inputs + 0.5) - 0.5
    ax = _axes(ax, 5.4, 2.4)
    for i in inputs:
        ax.plot([ideal[i], scale * i + offset], [1, 0], color=GRAY, linewidth=1, zorder=1)
    ax.plot(ideal, np.ones(5), "s", color=BLUE, markersize=12, label="input pixels")
    found: dict[str, Any] = {
        "color": ORANGE,
        "markersize": 8,
        "label": "their centers in the output",
    }
    ax.plot(scale * inputs + offset, np.zeros(5), "^", **found)
    aligned: dict[str, Any] = {
        "mfc": "none",
        "color": BLUE,
        "markersize": 9,
        "label": "half-pixel alignment",
    }
    ax.plot(ideal, np.zeros(5), "o", **aligned)
    sign = "-" if offset < 0 else "+"
    ax.set(xlabel="output pixel", yticks=[], ylim=(-0.5, 1.5))
    ax.set_title(f"output centers at {scale:g}i {sign} {abs(offset):g}, shift {shift:g}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3, frameon=False, fontsize=8)
    return ax


def receptive_field(
    input_shape: Sequence[int],
    layers: Sequence[analysis.Layer],
    *,
    axis: int = 0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws which input pixels each output pixel of stacked layers sees, along one axis.

    Args:
      input_shape: as in `analysis.receptive_field`.
      layers: as in `analysis.receptive_field`.
      axis: the axis to draw.
      ax: to draw into.

    Returns:
      The axes: a bar from the first to the last input pixel for each output pixel, the first 64.

    Raises:
      ValueError, TypeError: as `analysis.receptive_field`, and for an axis that there is not.
      ImportError: without matplotlib.

    Example:
      >>> layers = [analysis.Layer(4, 2, 1), analysis.Layer(3, transpose=False)]
      >>> receptive_field((8,), layers).get_title()
      'output pixels see 2 to 3 input pixels'
    """
    fields = analysis.receptive_field(input_shape, layers)
    if not 0 <= axis < len(fields):
        raise ValueError(
            f"receptive_field: axis must be at least 0 and below {len(fields)}; got {axis}."
        )
    first, stop = fields[axis].T
    sizes = stop - first
    title = f"output pixels see {sizes.min()} to {sizes.max()} input pixels"
    if len(sizes) > DRAWN:
        title += f", first {DRAWN}"
    first, sizes = first[:DRAWN], sizes[:DRAWN]
    ax = _axes(ax, 5.4, 3.2)
    colors = [ORANGE if n < sizes.max() else BLUE for n in sizes]
    ax.bar(np.arange(len(sizes)), sizes, bottom=first - 0.5, color=colors, width=0.8)
    ax.set(xlabel="output pixel", ylabel="input pixels", title=title)
    if len(set(colors)) > 1:
        ax.plot([], [], "s", color=BLUE, label=f"{sizes.max()} pixels")
        ax.plot([], [], "s", color=ORANGE, label="fewer")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)  # fmt: skip
    return ax


def repair(
    before: ArrayLike, after: ArrayLike, period: int = 2, *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the mean spectra of images before and after a repair, along the axis or diagonal that changes most.

    A pattern is a peak at a marked harmonic; a repair takes the peak away and leaves the rest.

    Args:
      before: `(*batch, height, width, channels)`, or `(height, width)`.
      after: of the same shape.
      period: in pixels, >= 2.
      ax: to draw into.

    Returns:
      The axes: power in dB over cycles per pixel.

    Raises:
      ValueError, TypeError: for shapes that differ, or a period below 2.
      ImportError: without matplotlib.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(4, 64, 64, 1))
      >>> repair(noise + np.indices((64, 64)).sum(0)[..., None] % 2, noise).get_title()
      'period 2, diagonal: -25 dB'
    """
    who = "repair"
    x, y = (np.asarray(a, np.float64) for a in (before, after))
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(
            f"{who}: before and after must have one shape, (*batch, height, width, channels) or (height, width); got "
            f"{x.shape} and {y.shape}."
        )
    if geo.positive_int(who, "period", period) < 2:
        raise ValueError(f"{who}: period must be at least 2; got {period}.")
    x, y = (a[..., None] if a.ndim == 2 else a for a in (x, y))
    if min(x.shape[-3:-1]) < 2 * period:
        raise ValueError(
            f"{who}: images must have at least two periods, {2 * period} pixels, along each axis; got shape {x.shape}."
        )
    height, width = (n // period * period for n in x.shape[-3:-1])
    powers = [_power(a.reshape(-1, *a.shape[-3:])[:, :height, :width]) for a in (x, y)]
    n = min(height, width)
    bins = np.arange(1, n // 2 + 1)
    lines = {
        "along the width": lambda p: p[0, bins * width // n],
        "along the height": lambda p: p[bins * height // n, 0],
        "diagonal": lambda p: p[bins * height // n, bins * width // n],
    }
    at = [q * n // period for q in range(1, period // 2 + 1)]
    loss = {
        name: max(
            (10 * np.log10(line(powers[0])[a - 1] / line(powers[1])[a - 1]) for a in at), key=abs
        )
        for name, line in lines.items()
    }
    name = max(loss, key=lambda name: abs(loss[name]))
    ax = _axes(ax, 5.4, 3.4)
    for power, style in zip(powers, (("-", ORANGE, "before"), ("--", BLUE, "after")), strict=True):
        dashes, color, label = style
        ax.plot(bins / n, 10 * np.log10(lines[name](power)), dashes, color=color, label=label)
    for a in at:
        ax.axvline(a / n, color=GRAY, linewidth=1, linestyle=":")
    ax.set(xlabel=f"cycles per pixel, {name}", ylabel="mean power, dB", xlim=(0, 0.51))
    ax.set_title(f"period {period}, {name}: {-loss[name]:+.0f} dB")
    ax.legend(frameon=False)
    return ax


def _power(x: np.ndarray) -> np.ndarray:
    """Returns the mean power spectrum of `(images, height, width, channels)`, Hann-windowed without their means."""
    height, width = x.shape[1:3]
    window = np.hanning(height + 1)[:-1, None] * np.hanning(width + 1)[:-1]
    centered = (x - x.mean((1, 2), keepdims=True)) * window[..., None]
    power: np.ndarray = (np.abs(np.fft.fft2(centered, axes=(1, 2))) ** 2).mean((0, 3))
    return power + np.finfo(float).tiny


def _axes(ax: "Axes | None", width: float, height: float) -> Any:
    """Returns the given axes, or those of a new figure of pyplot."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(
            'tconvjax.plot needs matplotlib. Run: pip install "tconvjax[plot]"'
        ) from None
    return pyplot.figure(figsize=(width, height), dpi=150, layout="constrained").add_subplot()


def _whole(largest: int) -> range:
    """Returns whole numbers for ticks, in ten steps at most."""
    return range(0, largest + 1, largest // 10 + 1)


def _by(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
