"""Power over the radius of frequency: a profile, a distance, and a classifier of two sets."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax.metrics import _arrays as arrays

NEWTON_STEPS = 20
STEP_LENGTHS = 0.5 ** np.arange(8)
LEAST_SPREAD = (
    1e-3  # in dB: rings are divided by their spread, or by this where images agree better
)


class Detectability(NamedTuple):
    """Accuracy of a classifier of two sets, and a score that is 1 for sets that it cannot separate."""

    accuracy: jax.Array
    cloaking: jax.Array


def radial_spectrum(images: ArrayLike) -> jax.Array:
    """Returns the mean power of a set of images over rings of equal frequency.

    Ring r holds the frequencies of r to r + 1 periods per image (per shorter side, if the sides differ), from the mean
    in ring 0 out to the corner of the spectrum, where a checkerboard is. The highest frequency of an even size
    counts with both signs, so that the rings are centered. Power is `|X|²/(H·W)`, so white noise has its variance times
    the channels in every ring. The mean over angles dilutes isolated peaks: see `band_contrast`.

    Args:
      images: `(*batch, height, width, channels)`; all batch axes form one set. No window is applied: the jump between
        opposite borders leaks into all rings.

    Returns:
      Shape `(rings,)`, in squared units of the images: for N x N pixels `floor(√2·(N // 2)) + 1` rings; differentiable.

    Raises:
      ValueError, TypeError: for an empty set, or arrays that are not real images.

    Example:
      >>> noise = jax.random.normal(jax.random.key(0), (500, 8, 8, 1))
      >>> print(jnp.round(radial_spectrum(2 * noise), 0))
      [4. 4. 4. 4. 4. 4.]

    References:
      Durall, Keuper & Keuper 2020, arXiv:2003.01826; rings as in Schwarz, Liao & Geiger 2021, arXiv:2111.02447.
    """
    return _rings(_power("radial_spectrum", images).mean(0, keepdims=True))[0]


def log_spectral_distance(images_a: ArrayLike, images_b: ArrayLike) -> jax.Array:
    """Returns the distance of two sets in dB: the root mean square over rings of `10·log10(P_a/P_b)`.

    P is `radial_spectrum` without ring 0, which holds the brightness. Sees any loss or excess of power at any
    frequency, with a period or without; blind to its place in the image, and to a single peak among many frequencies.

    Args:
      images_a: `(*batch, height, width, channels)`.
      images_b: of the same height, width and channels; any number of images.

    Returns:
      A scalar >= 0; differentiable. 0 for equal spectra; two halves of the real images give the value by chance. Power
      below the rounding of the pixels counts as rounding.

    Raises:
      ValueError, TypeError: for images of different shape, single pixels, or an empty set.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 500, 16, 16, 1))
      >>> print(f"{log_spectral_distance(a, b):.1f} {log_spectral_distance(2 * a, b):.1f}")  # 6 dB = factor 2
      0.2 6.0

    References:
      Schwarz, Liao & Geiger 2021, arXiv:2111.02447, show the ratio by rings; Durall et al. 2020, arXiv:2003.01826.
    """
    a, b = _two_sets("log_spectral_distance", images_a, images_b)
    level_a, level_b = (_decibel(jnp.mean(p, 0), jnp.mean(floor, 0)) for p, floor in (a, b))
    return arrays.root(jnp.mean((level_a - level_b) ** 2))


def detectability(images_a: ArrayLike, images_b: ArrayLike, *, ridge: float = 1.0) -> Detectability:
    """Returns the accuracy with which a logistic regression on spectra separates new images of two sets.

    Its features are each image's rings of `radial_spectrum` in dB, without ring 0, standardized. The images at even
    places of both sets train a regression that is tested on those at odd places, and the reverse, so shuffle sorted
    sets before. Both sets weigh the same, whatever their sizes. Deterministic; sees any difference of spectra,
    artifact or not, also in their spread, to which `log_spectral_distance` is blind. Blind to the place in the image.

    Args:
      images_a: `(*batch, height, width, channels)`, at least 2 images, better several per ring.
      images_b: of the same height, width and channels.
      ridge: penalty λ > 0 of `Σ loss + λ|w|²/2`, which keeps the weights finite for separable sets.

    Returns:
      `accuracy`: mean over both sets of the share classified correctly, in [0, 1]; null 0.5. `cloaking`:
      `1 − |2·accuracy − 1|`, 1 for inseparable sets; an accuracy below 0.5 lowers it, too. The values by chance:
      `null(lambda x: detectability(x[:n], x[n:]), both, draw=lambda key, _: jax.random.permutation(key, both))`.

    Raises:
      ValueError, TypeError: for images of different shape, single pixels, or fewer than 2 images in a set.

    Example:
      >>> a, b = jax.random.normal(jax.random.key(0), (2, 100, 16, 16, 1))
      >>> print(f"{detectability(a, 1.2 * b).accuracy:.2f}")
      0.97

    References:
      The cloaking score of Jung & Keuper 2021, arXiv:2012.03110, on held-out images.
    """
    who = "detectability"
    geo.positive(who, "ridge", ridge)
    a, b = (_decibel(rings, floor) for rings, floor in _two_sets(who, images_a, images_b))
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"{who}: each set must hold at least 2 images, to train on and to hold out; got {len(a)} and {len(b)}."
        )
    shares = []
    for train, test in ((0, 1), (1, 0)):
        log_odds = _logistic_regression(a[train::2], b[train::2], ridge)
        # A tie counts half.
        shares.append(
            [(1 + sign * jnp.sign(log_odds(x[test::2]))) / 2 for sign, x in ((1, a), (-1, b))]
        )
    right = [jnp.concatenate(folds).mean() for folds in zip(*shares, strict=True)]
    accuracy = (right[0] + right[1]) / 2
    return Detectability(accuracy, 1 - jnp.abs(2 * accuracy - 1))


def _power(who: str, images: ArrayLike) -> jax.Array:
    """Power spectra of a set, summed over channels: `(images, height, width)`."""
    x = arrays.one_set(who, arrays.real_images(who, images))
    return jnp.sum(jnp.abs(jnp.fft.fft2(x, axes=(1, 2), norm="ortho")) ** 2, -1)


def _rings(power: jax.Array) -> jax.Array:
    """Means over rings of frequency: `(images, height, width)` to `(images, rings)`."""
    height, width = power.shape[-2:]
    v, h = (np.minimum(np.arange(n), n - np.arange(n)) for n in (height, width))
    shorter = min(height, width)
    radius = np.hypot(v[:, None] * (shorter / height), h * (shorter / width))
    ring = np.floor(radius + 1e-9).astype(int).ravel()  # a whole radius stays whole
    times = np.outer(1 + (2 * v == height), 1 + (2 * h == width)).ravel()
    weights = times / np.bincount(ring, times)[ring]
    flat = power.reshape(len(power), -1) * jnp.asarray(weights, power.dtype)[None]
    return jnp.zeros((len(power), ring.max() + 1), power.dtype).at[:, ring].add(flat)


def _two_sets(
    who: str, images_a: ArrayLike, images_b: ArrayLike
) -> list[tuple[jax.Array, jax.Array]]:
    """For each of two sets: its images' rings without ring 0, and the power that rounding leaves in one."""
    named = {"images_a": images_a, "images_b": images_b}
    sets = [arrays.one_set(who, arrays.real_images(who, x, name=n)) for n, x in named.items()]
    a, b = (x.shape[1:] for x in sets)
    if a != b or max(a[:2]) < 2:
        raise ValueError(
            f"{who}: images of both sets must have the same height, width and channels and more than one pixel; got "
            f"{a} and {b}. Crop or resize both alike."
        )
    return [
        (_rings(_power(who, x))[:, 1:], arrays.rounding(x, (1, 2, 3))[:, None] * a[-1])
        for x in sets
    ]


def _decibel(power: jax.Array, floor: jax.Array) -> jax.Array:
    return 10 * jnp.log10(jnp.maximum(power, floor))


def _logistic_regression(
    a: jax.Array, b: jax.Array, ridge: float
) -> Callable[[jax.Array], jax.Array]:
    """Returns the log odds of belonging to `a`, not `b`, fitted with equal weight of both: `(n, features)` to `(n,)`.

    Newton's method on a convex function; each step takes the best of some lengths, so that the loss never grows.
    """
    x = jnp.concatenate([a, b])
    sign = jnp.concatenate([jnp.ones(len(a), x.dtype), -jnp.ones(len(b), x.dtype)])
    weight = jnp.where(sign > 0, len(x) / (2 * len(a)), len(x) / (2 * len(b))).astype(x.dtype)
    mean = x.mean(0, keepdims=True)
    spread = jnp.maximum(x.std(0, keepdims=True), LEAST_SPREAD)
    standard = lambda x: jnp.concatenate([(x - mean) / spread, jnp.ones((len(x), 1), x.dtype)], 1)
    z = standard(x)
    penalty = jnp.append(jnp.full(x.shape[1], ridge, x.dtype), 0)  # the last one is the intercept

    def loss(w: jax.Array) -> jax.Array:
        margin = sign * arrays.product(z, w)
        return jnp.sum(weight * jax.nn.softplus(-margin)) + jnp.sum(penalty * w**2) / 2

    def newton(w: jax.Array, _: None) -> tuple[jax.Array, None]:
        wrong = jax.nn.sigmoid(-sign * arrays.product(z, w))
        gradient = penalty * w - arrays.product(weight * sign * wrong, z)
        curvature = arrays.product((weight * wrong * (1 - wrong))[None] * z.T, z) + jnp.diag(
            penalty
        )
        step = jnp.linalg.solve(curvature, gradient)
        tries = w[None] - STEP_LENGTHS[:, None].astype(x.dtype) * step[None]
        return tries[jnp.argmin(jax.vmap(loss)(tries))], None

    w, _ = jax.lax.scan(newton, jnp.zeros_like(penalty), length=NEWTON_STEPS)
    return lambda x: arrays.product(standard(x), w)
