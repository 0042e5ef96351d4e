"""The pattern of images: what their spectra hold near the harmonics of a period, against the surroundings."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PATCH = 64  # pixels of a patch along an axis
RADIUS, SURROUND = 1, 4  # bins of a band and of the ring around it, as in `metrics.band_contrast`


class Bands:
    """Power of images near the harmonics of a pattern, in units of its surroundings in the first images.

    Attributes:
      axes: axes of the images with a period.
      tones: for each the windowed waves `(patches, s, bins, pixels)`: of the band, and of the band with its ring.
      weight: 1 / (number of values · power of the surroundings), for each image, harmonic, patch and channel.
      pattern: power near the harmonics beyond that of the surroundings, mean over pixels, in units of y².
    """

    def __init__(self, y: jax.Array, period: dict[int, int]) -> None:
        self.axes = tuple(sorted(period))
        s = [period[axis] for axis in self.axes]
        surround = min([SURROUND, *(y.shape[a] // (2 * p) for a, p in zip(self.axes, s, strict=True))])  # fmt: skip
        if surround <= RADIUS:
            raise ValueError(
                f"repair: the output must have at least {2 * (RADIUS + 1)} periods along each axis; got shape "
                f"{y.shape}, periods {s} along axes {self.axes}. Give larger images."
            )
        self.tones = [
            [_tones(y.shape[a], p, half) for a, p in zip(self.axes, s, strict=True)]
            for half in (RADIUS, surround)
        ]
        band, around = self._powers(y)
        # What rounding leaves counts as no power.
        floor = 1e-3 * jnp.median(around) + jnp.finfo(y.dtype).eps ** 2 * jnp.mean(y**2) + 1e-30
        self.weight = 1 / ((around + floor) * around.size * prod(2 * RADIUS + 1 for _ in s))
        bins = (2 * RADIUS + 1) ** len(s)
        # By Parseval, all bins of a Hann window of n pixels hold 3/8 n² of the mean power; its squares sum to 3/8 n.
        scale = prod(8 / 3 * np.sum(np.abs(waves[0, 0, 0]) ** 2) ** 2 for waves in self.tones[0])
        beyond = jnp.maximum(band - around, 0).sum(-1)  # over harmonics
        self.pattern = float(jnp.mean(beyond) * bins / scale)

    def spectrum(self, y: jax.Array, tones: Sequence[Any]) -> jax.Array:
        """Returns the windowed spectra near harmonics: `(*bins, *rest, *patches, harmonics without 0)`."""
        z = y.astype(np.promote_types(y.dtype, np.complex64))
        for done, (axis, waves) in enumerate(reversed(list(zip(self.axes, tones, strict=True)))):
            waves = jnp.asarray(waves, z.dtype)
            z = jnp.tensordot(waves, z, (3, axis + 3 * done), precision="highest")
        n = len(self.axes)
        patches, harmonics, bins = (range(i, 3 * n, 3) for i in range(3))
        z = z.transpose(*bins, *range(3 * n, z.ndim), *patches, *harmonics)
        return z.reshape(*z.shape[: z.ndim - n], -1)[..., 1:]

    def penalty(self, y: jax.Array, weight: jax.Array, tones: Any) -> jax.Array:
        """Returns the mean contrast of images, a quadratic form; 1 is as much power as around the harmonics."""
        z = self.spectrum(y, tones)
        same = weight.reshape((1,) * (z.ndim - weight.ndim) + weight.shape)
        return jnp.sum((z.real**2 + z.imag**2) * same)

    def contrast(self, y: jax.Array) -> float:
        """Returns the contrast in dB: mean over images of the strongest harmonic."""
        band, around = self._powers(y)
        inside = tuple(range(int(0 not in self.axes), band.ndim - 1))  # axis 0 may count images
        floor = jnp.finfo(y.dtype).eps ** 2 * jnp.mean(y**2) + 1e-30
        ratio = (band.mean(inside) + floor) / (around.mean(inside) + floor)
        return float(jnp.mean(10 * jnp.log10(ratio.max(-1))))

    def _powers(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mean power of the band and the median of the ring around it."""
        z = jax.jit(self.spectrum)(y, self.tones[1])
        n = len(self.axes)
        power = jnp.abs(z) ** 2
        grid = np.indices(power.shape[:n]) - np.array(power.shape[:n]).reshape(-1, *[1] * n) // 2
        ring = np.abs(grid).max(0) > RADIUS
        power = power.reshape(-1, *power.shape[n:])
        return power[~ring.ravel()].mean(0), jnp.median(power[ring.ravel()], 0)


def _tones(n: int, s: int, half: int) -> np.ndarray:
    """Returns Hann-windowed waves `(patches, s, 2·half + 1, n)` at bins around the harmonics of a patch."""
    patch = min(n, max(PATCH, 8 * s)) // s * s
    window = np.hanning(patch + 1)[:-1]
    starts = range(0, n - patch + 1, max(1, patch // 2))
    bins = np.arange(s)[:, None] * (patch // s) + np.arange(-half, half + 1)
    waves = np.zeros((len(starts), *bins.shape, n), np.complex64)
    for i, start in enumerate(starts):
        phase = np.outer(bins.ravel(), np.arange(patch)) / patch
        wave = window * np.exp(-2j * np.pi * phase)
        waves[i, ..., start : start + patch] = wave.reshape(*bins.shape, patch)
    return waves
