"""Resizing an axis to any size: where every output pixel looks, and the weights of the pixels there.

Places and weights follow from sizes alone, so they are computed once, on the host, in float64; an array only sees a sum
of a few of its pixels per output pixel. Whole factors have a faster program of equal result in `resize`.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NearestMode = Literal["round_prefer_ceil", "round_prefer_floor", "floor", "ceil"]
MANY = 32  # taps; beyond, a loop over them takes long to compile


class Rule(NamedTuple):
    """The conventions of a resize; see `resize`."""

    method: str
    antialias: bool = True
    align_corners: bool = False
    half_pixel_centers: bool = True
    exclude_outside: bool = True
    cubic_coeff_a: float = -0.5
    nearest_mode: str = "round_prefer_ceil"

    @property
    def usual(self) -> bool:
        """Whether only `method` differs from the defaults that whole factors have a program for."""
        return self._replace(antialias=True) == Rule(self.method)


class Ratio(NamedTuple):
    """A resize of one axis to `size` pixels, by `scale`; None is the ratio of the sizes."""

    size: int
    scale: float | None = None


def keys(d: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The cubic kernel of Keys 1981, for d < 2."""
    return np.where(
        d < 1, ((a + 2) * d - (a + 3)) * d**2 + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    )


# Radius in pixels and kernel, a function of the distance; `a` is the free parameter of 'cubic'.
KERNELS: dict[str, tuple[int, Callable[[np.ndarray, float], np.ndarray]]] = {
    "linear": (1, lambda d, _: 1 - d),
    "cubic": (2, keys),
    "lanczos3": (3, lambda d, _: np.sinc(d) * np.sinc(d / 3)),
    "lanczos5": (5, lambda d, _: np.sinc(d) * np.sinc(d / 5)),
}


def resample(x: jax.Array, axis: int, ratio: Ratio, rule: Rule) -> jax.Array:
    """Resizes one axis; the dtype is kept, and no pixel without weight is read."""
    n = x.shape[axis]
    if rule.method == "fourier":
        waves = jnp.asarray(_waves(n, ratio, rule).T, x.dtype)
        return jnp.moveaxis(jnp.tensordot(x, waves, (axis, 0), precision="highest"), -1, axis)
    index, weights = taps(n, ratio, rule)

    def take(places: np.ndarray) -> jax.Array:
        return jnp.take(x, places, axis, mode="clip")

    if rule.method == "nearest":
        return take(index[:, 0])
    around = [1] * x.ndim
    around[axis] = -1
    if weights.shape[1] > MANY:
        windows = take(index.ravel()) * jnp.asarray(weights.reshape(around), x.dtype)
        m, t = index.shape
        return windows.reshape(*x.shape[:axis], m, t, *x.shape[axis + 1 :]).sum(axis + 1)
    y: jax.Array = jnp.zeros((), x.dtype)
    for i, w in zip(index.T, weights.T, strict=True):
        if w.any():
            y += take(i) * jnp.asarray(w.reshape(around), x.dtype)
    return y


@lru_cache(maxsize=256)
def taps(n: int, ratio: Ratio, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels that every output pixel reads, and their weights of sum 1: two arrays `(size, taps)`."""
    if rule.method == "nearest":
        index = _nearest(n, ratio, rule)[:, None]
        return np.clip(index, 0, n - 1), np.ones(index.shape)
    if rule.method == "area":
        o = np.arange(ratio.size)
        first, stop = o * n // ratio.size, -(-(o + 1) * n // ratio.size)
        index = first[:, None] + np.arange(max(stop - first))
        weights = (index < stop[:, None]).astype(float)
    else:
        radius, kernel = KERNELS[rule.method]
        place = positions(n, ratio, rule)[:, None]
        step = n / ratio.size if ratio.scale is None else 1 / ratio.scale
        stretch = max(step, 1.0) if rule.antialias else 1.0
        first = np.floor(place - radius * stretch).astype(np.int64) + 1
        index = first + np.arange(int(np.ceil(2 * radius * stretch)) + 1)
        distance = abs(index - place) / stretch
        weights = np.where(distance < radius, kernel(distance, rule.cubic_coeff_a), 0.0)
    if rule.exclude_outside:
        weights = np.where((index >= 0) & (index < n), weights, 0.0)
    index = np.where(weights == 0, np.clip(first.reshape(-1, 1), 0, n - 1), index)
    return np.clip(index, 0, n - 1), weights / weights.sum(1, keepdims=True)


def positions(n: int, ratio: Ratio, rule: Rule) -> np.ndarray:
    """Returns where every output pixel looks, in input pixels from the center of the first."""
    numerator, denominator = _positions(n, ratio, rule)
    return numerator / denominator


def _positions(n: int, ratio: Ratio, rule: Rule) -> tuple[np.ndarray, int]:
    """The positions as fractions, of integers wherever the scale is one, so that ties are exact."""
    m, scale = ratio
    o = np.arange(m)
    if rule.align_corners:
        return o * (n - 1), max(m - 1, 1)
    over: float = n
    under: int = m
    if scale is not None:
        simple = Fraction(scale).limit_denominator(1 << 16)
        exact = float(simple) == scale
        over, under = (simple.denominator, simple.numerator) if exact else (1 / scale, 1)
    if rule.half_pixel_centers:
        return (2 * o + 1) * over - under, 2 * under
    return o * over, under


def _nearest(n: int, ratio: Ratio, rule: Rule) -> np.ndarray:
    p, q = _positions(n, ratio, rule)
    index = {
        "round_prefer_ceil": lambda: (2 * p + q) // (2 * q),
        "round_prefer_floor": lambda: -((q - 2 * p) // (2 * q)),
        "floor": lambda: p // q,
        "ceil": lambda: -(-p // q),
    }[rule.nearest_mode]()
    return index.astype(np.int64)


def _waves(n: int, ratio: Ratio, rule: Rule) -> np.ndarray:
    """The Fourier series of the periodic image, read at the positions; cut to what the result holds if antialiased."""
    size = min(n, ratio.size) if rule.antialias else n
    k = np.arange(-(size // 2), size // 2 + 1)
    share = np.where(2 * abs(k) == size, 0.5, 1.0)  # size/2 and −size/2 are one frequency
    first = np.exp(2j * np.pi * np.outer(positions(n, ratio, rule), k) / n) * share / n
    return (first @ np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / n)).real
