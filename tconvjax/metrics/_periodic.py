"""Patterns that repeat with a period: of the mean, of the spectrum, of the variance."""

from collections.abc import Callable
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._geometry import Ints
from tconvjax.metrics import _arrays as arrays


class Orientations(NamedTuple):
    """One value for each orientation: patterns that vary along the width, along the height, along both."""

    horizontal: jax.Array
    vertical: jax.Array
    diagonal: jax.Array


def phase_mean_fraction(images: ArrayLike, period: Ints) -> jax.Array:
    """Returns the part of each image's variance that repeats exactly with the period, in [0, 1].

    The variance of the phase means over the variance of the pixels; by Parseval the share of the AC power that lies
    exactly on the stride harmonics. White noise scores `(Πs − 1)/(H·W − 1)` on average. The harmonics of period 2 are
    among those of period 4. Blind to patterns whose sign changes over the image: read it beside `band_contrast`.

    For a difference from a target, `images − reference`, it is the periodic part of the *error*: content cancels, so no
    other metric is as sensitive where there is a target.

    Args:
      images: `(*batch, *spatial, channels)`.
      period: in pixels, >= 2; an int stands for two spatial axes, a sequence fixes the rank.

    Returns:
      One value per image, shape `batch`, in float32 or wider; differentiable.

    Raises:
      ValueError, TypeError: for a period below 2, or images smaller than one period.

    Example:
      >>> board = jnp.indices((8, 8)).sum(0) % 2
      >>> float(phase_mean_fraction(board[..., None], 2))
      1.0

    References:
      The stride harmonics of Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003, as a statistic.
    """
    x, s = arrays.whole_periods("phase_mean_fraction", images, period)
    space = _space(x, len(s))
    floor = arrays.rounding(x, (*space, -1)) * 4 * x.shape[-1]
    x = arrays.centered(x, space)
    periodic = jnp.mean(_phase_means(x, s) ** 2, axis=space).sum(-1)
    total = jnp.mean(x**2, axis=space).sum(-1)
    return jnp.minimum(arrays.ratio(periodic, total, floor), 1)


def band_contrast(
    images: ArrayLike, period: int, *, radius: int = 1, surround: int = 4
) -> Orientations:
    """Returns the contrast of the power of a set of images around the harmonics of a period, in dB.

    Power spectra, Hann-windowed after removing the mean, are averaged over images and channels. The mean power within
    `radius` bins of a harmonic is divided by the median over the ring up to `surround` bins; harmonics that belong to
    this period and to no shorter one are averaged by orientation. White noise gives 0 dB, up to the spread of the
    average: 0.5 dB for 64 images of 32 pixels. Sees patterns with changing sign, which `phase_mean_fraction` does not;
    confounded by edges and texture along the axes, so the diagonal is the cleanest.

    Args:
      images: `(*batch, height, width, channels)`; all batch axes form one set.
      period: in pixels, >= 2.
      radius: half-width of the band, in frequency bins, >= 0.
      surround: half-width of the ring around it; reduced to half the distance of two harmonics in small images.

    Returns:
      `horizontal`: patterns that vary along the width; `vertical`: along the height; `diagonal`: along both.
      0 for images without variance.

    Raises:
      ValueError, TypeError: for a period below 2, or images too small to leave a ring around the band.

    Example:
      >>> noise = jax.random.normal(jax.random.key(0), (64, 16, 16, 1))
      >>> contrast = band_contrast(noise.at[:, :, ::2].add(1.0), 2)  # stripes of one pixel
      >>> bool(contrast.horizontal > 6), bool(abs(contrast.vertical) < 3), bool(abs(contrast.diagonal) < 3)
      (True, True, True)

    References:
      The peaks of Frank et al. 2020, arXiv:2003.08685, measured against their surroundings.
    """
    who = "band_contrast"
    x, (s, _) = arrays.whole_periods(who, images, geo.positive_int(who, "period", period))
    height, width = x.shape[-3:-1]
    radius = geo.ints(who, "radius", (radius,), 0)[0]
    surround = min(geo.positive_int(who, "surround", surround), min(height, width) // (2 * s))
    if surround <= radius:
        raise ValueError(
            f"{who}: images need more than {2 * s * (radius + 1) - 1} pixels per axis for period {s} and "
            f"radius={radius}; got {height} x {width} (cropped to the period). Use larger images or radius=0."
        )
    x = arrays.one_set(who, x)
    window = np.hanning(height + 1)[None, :-1, None, None] * np.hanning(width + 1)[:-1, None]
    rounding = arrays.rounding(x) * float((window**2).sum())  # power below it counts as rounding
    windowed = arrays.centered(x, (1, 2)) * jnp.asarray(window, x.dtype)
    power = jnp.mean(jnp.abs(jnp.fft.fft2(windowed, axes=(1, 2))) ** 2, axis=(0, 3))

    bins = np.arange(-surround, surround + 1)
    ring = np.maximum(abs(bins)[:, None], abs(bins)) > radius

    def contrast(harmonics: list[tuple[int, int]]) -> jax.Array:
        ratios = []
        for v, h in harmonics:
            patch = power[
                (v * height // s + bins)[:, None] % height, (h * width // s + bins) % width
            ]
            band = jnp.maximum(jnp.mean(patch[~ring]), rounding)
            around = jnp.maximum(jnp.median(patch[ring]), rounding)
            ratios.append(band / around)
        return 10 * jnp.log10(jnp.stack(ratios).mean())

    return _by_orientation(s, contrast)


def coherence(images: ArrayLike, period: int) -> Orientations:
    """Returns the part of a set's power on the harmonics of a period that is the same in all images, in [0, 1].

    `|mean_m X_m|² / mean_m |X_m|²` over the images' spectra X_m, both summed over the harmonics that belong to this
    period and to no shorter one, by orientation, and over channels. 1 is one fixed pattern: a bias, or a layer's
    response to a constant. A low value with a high `band_contrast` is a pattern that follows the content. Strength does
    not count, so it finds a replica far too weak for the others. Images must share one origin: crops at random offsets
    cancel. Blind to strength, and in a set of one image, which gives 1.

    Args:
      images: `(*batch, height, width, channels)`; all batch axes form one set of M images.
      period: in pixels, >= 2.

    Returns:
      As `band_contrast`; differentiable. 1 for a single image, 0 for images without power there. Independent images
      whose sign is random give 1/M on average; their 95 % point is 3.84/M for period 2 and one channel.

    Raises:
      ValueError, TypeError: for a period below 2, no image, or images smaller than one period.

    Example:
      >>> noise = jax.random.normal(jax.random.key(0), (64, 16, 16, 1))
      >>> weak = coherence(noise.at[:, :, ::2].add(0.2), 2)  # 1 % of the variance
      >>> bool(weak.horizontal > 0.5), bool(weak.vertical < 0.1)
      (True, True)

    References:
      The magnitude-squared coherence of signal analysis, here of images with their common origin.
    """
    who = "coherence"
    x, (s, _) = arrays.whole_periods(who, images, geo.positive_int(who, "period", period))
    x = arrays.one_set(who, x)
    # A spectrum on the harmonics is the spectrum of the phase means, which average the rounding of pixels.
    floor = arrays.rounding(x) * x.shape[-1] * s**2 / prod(x.shape[1:3])
    spectra = jnp.fft.fft2(
        _phase_means(arrays.centered(x, (1, 2)), (s, s)), axes=(1, 2), norm="ortho"
    )
    common = jnp.sum(jnp.abs(spectra.mean(0)) ** 2, -1)
    power = jnp.sum(jnp.mean(jnp.abs(spectra) ** 2, 0), -1)

    def share(harmonics: list[tuple[int, int]]) -> jax.Array:
        bins = tuple(np.array(harmonics).T)
        return jnp.minimum(arrays.ratio(common[bins].sum(), power[bins].sum(), floor), 1)

    return _by_orientation(s, share)


def cyclic_variance_depth(images: ArrayLike, period: Ints) -> jax.Array:
    """Returns the inequality of the phases of a period in roughness: spread over mean of the squared Laplacian.

    `std_p V_p / mean_p V_p`, where V_p is the mean squared Laplacian of the pixels of phase p. Sees interpolation that
    keeps some pixels and averages others, and tap counts that differ (a kernel that the stride does not divide), though
    mean and spectrum show no peak. White noise enlarged twice along one axis: 1 by `[1, 2, 1]`, 0 by `[1, 1]` and
    `[1, 3, 3, 1]`, whose phases mirror each other, as `cyclic_difference_depth` sees. Blind to patterns of the mean.

    Args:
      images: `(*batch, *spatial, channels)`; differences across the border are left out.
      period: in pixels, >= 2; an int stands for two spatial axes, a sequence fixes the rank.

    Returns:
      One value per image, shape `batch`, in `[0, sqrt(Πs − 1)]`; differentiable. White noise is not at 0, as a spread
      cannot be negative: at 32 pixels 0.067 for period 2, 0.177 for period 4; see `null`.

    Raises:
      ValueError, TypeError: for a period below 2, or images smaller than two periods.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (4, 64, 1))
      >>> between = (x + jnp.roll(x, -1, 1)) / 2
      >>> enlarged = jnp.stack([x, between], 2).reshape(4, 128, 1)  # 'linear', aligned at the corners
      >>> cyclic_variance_depth(enlarged, (2,)).round(4)
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Gallagher, Detection of linear and cubic interpolation in JPEG compressed images, CRV 2005.
    """
    x, s = arrays.whole_periods("cyclic_variance_depth", images, period, periods=2)
    axes = _space(x, len(s))
    laplacian = sum(_second_difference(x, axis) for axis in axes)
    inside = np.zeros(x.shape[axes[0] : -1], bool)
    inside[(slice(1, -1),) * len(s)] = True
    return _depth(jnp.sum(laplacian**2, -1), inside, s, _floor(x, axes))


def cyclic_difference_depth(images: ArrayLike, period: Ints) -> jax.Array:
    """Returns the inequality of steps between neighbors over a period: spread over mean of squared differences.

    `std_p D_p / mean_p D_p`, where D_p is the mean squared difference of neighbors along an axis at phase p of that
    axis; the mean over the axes. Sees what mirror symmetry hides from `cyclic_variance_depth`: white noise enlarged
    twice by `[1, 1]` ('nearest') gives 1, by `[1, 3, 3, 1]` ('linear', aligned at the edges) 0.6; but by `[1, 2, 1]` 0.
    So a resize-convolution is flat in its means, not free of traces. Sees the blocks of JPEG at period 8. Blind to
    patterns of the mean.

    Args:
      images: `(*batch, *spatial, channels)`; differences across the border are left out.
      period: in pixels, >= 2; an int stands for two spatial axes, a sequence fixes the rank.

    Returns:
      One value per image, shape `batch`, in `[0, sqrt(max(s) − 1)]`; differentiable. White noise of 32 pixels: 0.026
      for period 2; see `null`.

    Raises:
      ValueError, TypeError: for a period below 2, or images smaller than two periods.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
      >>> cyclic_difference_depth(x.repeat(2, 1).repeat(2, 2), 2)
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      The neighboring-pixel relations of Tan et al. 2024, arXiv:2312.10461, as a statistic.
    """
    x, s = arrays.whole_periods("cyclic_difference_depth", images, period, periods=2)
    axes = _space(x, len(s))
    depths = []
    for axis, p in zip(axes, s, strict=True):
        others = tuple(a for a in axes if a != axis)
        power = jnp.sum(_first_difference(x, axis) ** 2, -1).mean(others)
        inside = np.arange(x.shape[axis]) < x.shape[axis] - 1
        depths.append(_depth(power, inside, (p,), _floor(x, axes)))
    return jnp.stack(depths).mean(0)


def checkerboard_coefficient(images: ArrayLike) -> jax.Array:
    """Returns the part of each image's roughness at the highest frequency, in [0, 1]; for period 2 only.

    The compact Laplacian L, minus the wide one W that skips every second pixel, `⟨x, (L − W) x⟩ / ⟨x, L x⟩`. With
    `4 sin²(θ/2)` and `sin²θ` for the two along an axis, the difference is `4 sin⁴(θ/2)`, so over the power spectrum
    `Σ P Σ_d sin⁴(θ_d/2) / Σ P Σ_d sin²(θ_d/2)`. A checkerboard and stripes of one pixel score 1, white noise 0.75, only
    very smooth images near 0. Every high frequency counts, artifact or not: subtract the value of real images.
    Blind to periods above 2.

    Args:
      images: `(*batch, height, width, channels)`, taken as periodic: their opposite borders are neighbors.

    Returns:
      One value per image, shape `batch`; 0 for images without variance; differentiable.

    Raises:
      ValueError, TypeError: for images smaller than two pixels along an axis.

    Example:
      >>> board = jnp.indices((8, 8)).sum(0) % 2
      >>> float(checkerboard_coefficient(board[..., None]))
      1.0

    References:
      The checkerboard coefficient of Hopman et al. 2025, arXiv:2408.06821, for periodic images.
    """
    x, s = arrays.whole_periods("checkerboard_coefficient", images, 2)
    axes = _space(x, len(s))
    power = lambda y: jnp.mean(y**2, axis=axes).sum(-1)
    highest, rough = (
        jnp.stack([power(difference(x, axis)) for axis in axes]).sum(0)
        for difference in (_second_difference, _first_difference)
    )
    return jnp.minimum(arrays.ratio(highest / 4, rough, _floor(x, axes)), 1)


def _space(x: jax.Array, rank: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - rank - 1, x.ndim - 1))


def _floor(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Power that rounding of the pixels may leave in a difference, summed over channels, for each image."""
    return 4 * x.shape[-1] * arrays.rounding(x, (*axes, -1))


def _phase_means(x: Any, s: tuple[int, ...]) -> Any:
    """Means over the pixels of each phase: `(*batch, *spatial, channels)` to `(*batch, *s, channels)`."""
    first = x.ndim - len(s) - 1
    cells = [part for n, p in zip(x.shape[first:-1], s, strict=True) for part in (n // p, p)]
    split = x.reshape(*x.shape[:first], *cells, x.shape[-1])
    return split.mean(tuple(range(first, first + 2 * len(s), 2)))


def _first_difference(x: jax.Array, axis: int) -> jax.Array:
    """Differences to the next pixel; the first pixel follows the last."""
    return jnp.roll(x, -1, axis) - x


def _second_difference(x: jax.Array, axis: int) -> jax.Array:
    return jnp.roll(x, -1, axis) - 2 * x + jnp.roll(x, 1, axis)


def _depth(power: jax.Array, inside: np.ndarray, s: tuple[int, ...], floor: jax.Array) -> jax.Array:
    """Spread over mean of the phase means of `power`, `(*batch, *spatial)`, over the pixels that are `inside`."""
    # NumPy averages the mask: XLA folds means of large constants for minutes (jax-ml/jax#21300).
    mask = inside.astype(power.dtype).reshape((1,) * (power.ndim - len(s)) + inside.shape)
    part = _phase_means((power * mask)[..., None], s)[..., 0]
    whole = jnp.asarray(_phase_means(mask[..., None], s)[..., 0])
    means, axes = part / whole, tuple(range(-len(s), 0))
    relative = arrays.ratio(
        means, means.mean(axes, keepdims=True), jnp.expand_dims(floor, axes), otherwise=1
    )
    return arrays.root(jnp.mean((relative - 1) ** 2, axis=axes))


def _by_orientation(s: int, value: Callable[[list[tuple[int, int]]], jax.Array]) -> Orientations:
    """Applies `value` to the harmonics (vertical, horizontal) that belong to period s and to no shorter one."""
    own = [(v, h) for v, h in product(range(s), repeat=2) if gcd(v, h, s) == 1]
    return Orientations(
        value([q for q in own if q[0] == 0]),
        value([q for q in own if q[1] == 0]),
        value([q for q in own if q[0] and q[1]]),
    )
