"""What a checkerboard leaves in images, and how far apart two sets of features are.

Images are channels last, `(*batch, height, width, channels)`, of any real dtype; energies are summed over channels, so
that a colored pattern is not averaged away. Images are cropped at their ends to multiples of the period. An image
without variance scores 0. Values are not calibrated against content: compare with real images of the same kind.
"""

from collections.abc import Sequence
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import geometry as geo
from tconvjax.geometry import Ints


class BandContrast(NamedTuple):
    """Power at a period over its surroundings, in dB, by the axis along which the pattern varies."""

    horizontal: jax.Array
    vertical: jax.Array
    diagonal: jax.Array


def phase_mean_fraction(images: ArrayLike, period: Ints) -> jax.Array:
    """Returns the part of each image's variance that repeats exactly with the period, in [0, 1].

    The variance of the phase means over the variance of the pixels; by Parseval the share of the AC power that lies
    exactly on the stride harmonics. White noise scores `(Πs − 1)/(H·W − 1)` on average. The harmonics of period 2 are
    among those of period 4. Blind to patterns whose sign changes over the image: read it beside `band_contrast`.

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
    x, s = _images("phase_mean_fraction", images, period)
    rank = len(s)
    first = x.ndim - rank - 1
    space = tuple(range(first, first + rank))
    scale = jnp.mean(x**2, axis=(*space, -1))
    for _ in range(2):  # twice, so that the rounding of the first mean does not pass for a pattern
        x = x - x.mean(space, keepdims=True)
    cells = [part for n, p in zip(x.shape[first:-1], s, strict=True) for part in (n // p, p)]
    phases = x.reshape(*x.shape[:first], *cells, x.shape[-1])
    phase_means = phases.mean(tuple(range(first, first + 2 * rank, 2)))
    periodic = jnp.mean(phase_means**2, axis=space).sum(-1)
    total = jnp.mean(x**2, axis=space).sum(-1)
    flat = total <= scale * x.shape[-1] * (8 * jnp.finfo(x.dtype).eps) ** 2
    return jnp.where(flat, 0, jnp.minimum(periodic / jnp.where(flat, 1, total), 1))


def band_contrast(
    images: ArrayLike, period: int, *, radius: int = 1, surround: int = 4
) -> BandContrast:
    """Returns how far a set of images stands out around the harmonics of a period, in dB.

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
    x, (s, _) = _images(
        "band_contrast", images, geo.positive_int("band_contrast", "period", period)
    )
    height, width = x.shape[-3:-1]
    radius = geo.ints("band_contrast", "radius", (radius,), 0)[0]
    surround = min(
        geo.positive_int("band_contrast", "surround", surround), min(height, width) // (2 * s)
    )
    if surround <= radius:
        raise ValueError(
            f"band_contrast: images need more than {2 * s * (radius + 1) - 1} pixels per axis for period {s} and "
            f"radius={radius}; got {height} x {width} (cropped to the period). Use larger images or radius=0."
        )
    x = x.reshape(-1, *x.shape[-3:])
    square = jnp.mean(x**2)
    for _ in range(2):  # see phase_mean_fraction
        x = x - x.mean((1, 2), keepdims=True)
    window = np.hanning(height + 1)[None, :-1, None, None] * np.hanning(width + 1)[:-1, None]
    spectrum = jnp.fft.fft2(x * jnp.asarray(window, x.dtype), axes=(1, 2))
    power = jnp.mean(jnp.abs(spectrum) ** 2, axis=(0, 3))
    # White noise of a few units in the last place of the pixels, which rounding alone may leave; below it no contrast
    # is read off.
    eps, tiny = jnp.finfo(x.dtype).eps, jnp.finfo(x.dtype).tiny
    rounding = (4 * eps) ** 2 * square * (window**2).sum() + tiny

    reach = np.arange(-surround, surround + 1)
    ring = np.maximum(abs(reach)[:, None], abs(reach)) > radius

    def contrast(harmonics: list[tuple[int, ...]]) -> jax.Array:
        ratios = []
        for v, h in harmonics:
            patch = power[
                (v * height // s + reach)[:, None] % height, (h * width // s + reach) % width
            ]
            band = jnp.maximum(jnp.mean(patch[~ring]), rounding)
            around = jnp.maximum(jnp.median(patch[ring]), rounding)
            ratios.append(band / around)
        return 10 * jnp.log10(jnp.stack(ratios).mean())

    own = [q for q in product(range(s), repeat=2) if gcd(*q, s) == 1]
    return BandContrast(
        contrast([q for q in own if q[0] == 0]),
        contrast([q for q in own if q[1] == 0]),
        contrast([q for q in own if q[0] and q[1]]),
    )


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> jax.Array:
    """Returns the squared Fréchet distance of two Gaussians fitted to sets of features.

    `|m_a − m_b|² + tr S_a + tr S_b − 2 tr (S_a^½ S_b S_a^½)^½`. Only called FID on features of the Inception network.
    Biased upwards by roughly 0.6·dim²/n for unit features: compare sets of equal size, beside two halves of real data.

    Args:
      features_a: `(samples, features)`, more samples than features for a meaningful covariance.
      features_b: the same number of features.

    Returns:
      A scalar >= 0 up to rounding, in squared units of the features.

    Raises:
      ValueError: unless both are two-dimensional with equal numbers of features and at least 2 samples.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (500, 4))
      >>> print(f"{frechet_distance(x, x + jnp.array([[3.0, 0, 0, 0]])):.2f}")
      9.00

    References:
      Heusel et al. 2017, arXiv:1706.08500.
    """
    a, b = _features("frechet_distance", features_a, features_b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = (jnp.atleast_2d(jnp.cov(f, rowvar=False)) for f in (a, b))
    values, vectors = jnp.linalg.eigh(cov_a)
    root_a = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
    cross = jnp.linalg.eigvalsh(root_a @ cov_b @ root_a)
    return (
        jnp.sum((mean_a - mean_b) ** 2)
        + jnp.trace(cov_a)
        + jnp.trace(cov_b)
        - 2 * jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))
    )


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> jax.Array:
    """Returns the unbiased squared maximum mean discrepancy with the kernel `(x·y/dim + 1)³`.

    Only called KID on features of the Inception network. Unbiased, so it may be slightly negative for equal
    distributions.

    Args:
      features_a: `(samples, features)`.
      features_b: the same number of features.

    Returns:
      A scalar.

    Raises:
      ValueError: unless both are two-dimensional with equal numbers of features and at least 2 samples.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 500, 4))
      >>> abs(float(kernel_distance(a, b))) < 0.1 < float(kernel_distance(a, b + 1))
      True

    References:
      Binkowski et al. 2018, arXiv:1801.01401.
    """
    a, b = _features("kernel_distance", features_a, features_b)

    def k(u: jax.Array, v: jax.Array) -> jax.Array:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def off_diagonal_mean(u: jax.Array) -> jax.Array:
        gram = k(u, u)
        return (gram.sum() - jnp.trace(gram)) / (len(u) * (len(u) - 1))

    return off_diagonal_mean(a) + off_diagonal_mean(b) - 2 * k(a, b).mean()


def _images(who: str, images: ArrayLike, period: Ints) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns floating images, cropped to multiples of the period, and the period per axis."""
    rank = len(period) if isinstance(period, Sequence) else 2
    s = geo.per_axis(who, "period", period, rank, minimum=2)
    x = jnp.asarray(images)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{who}: images must be real; got dtype {x.dtype}.")
    if x.ndim < rank + 1:
        raise ValueError(
            f"{who}: images must have shape (*batch, *spatial, channels) with {rank} spatial axes; got {x.shape}."
        )
    x = _at_least_float32(x)
    spatial = x.shape[-rank - 1 : -1]
    if any(n < p for n, p in zip(spatial, s, strict=True)) or prod(x.shape) == 0:
        raise ValueError(
            f"{who}: images must hold at least one period along every axis; got {spatial} pixels for period {s}."
        )
    crop = tuple(slice(n // p * p) for n, p in zip(spatial, s, strict=True))
    return x[(..., *crop, slice(None))], s


def _at_least_float32(x: jax.Array) -> jax.Array:
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)


def _features(who: str, *sets: ArrayLike) -> tuple[jax.Array, ...]:
    a, b = (jnp.asarray(f) for f in sets)
    if any(jnp.issubdtype(f.dtype, jnp.complexfloating) for f in (a, b)):
        raise TypeError(f"{who}: features must be real; got {a.dtype} and {b.dtype}.")
    a, b = (_at_least_float32(f) for f in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"{who}: features must be two arrays (samples >= 2, features) with equal numbers of features; got shapes "
            f"{a.shape} and {b.shape}."
        )
    return a, b
