"""Spectra of a picture in which a grid stands out: flattened, weighed, projected onto directions.

The amplitude of natural spectra falls as 1/|f|; multiplied by |f| what is left is nearly white. For a sinusoid in
independent noise of variance s²(n), the statistic of the least variance is Σ r(n)/s²(n) exp(−2πi f n); s² is the local
mean square, and r is clipped at 3 s. So a sky counts in full and an edge hardly: this makes the null of photographs
that of noise. A strong grid in a part of the picture would be weighed down like edges, so that all of it is also
looked at with equal weights. The spectrum at the frequency f·(d1, d2) is that of a signal, of the sums along the
lines d1·i + d2·j.

A grid may also be in the local energy alone, whose mean is the same at all phases: what is sought there are lines of
the squared differences of the picture.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from tconvjax._measure.pictures import Picture

ZOOM = 4  # points of a spectrum per bin of its axis
CLIP = 3.0  # local standard deviations
RADIUS = {"picture": 4, "energy": 7}  # pixels of what is local
ROUNDING = {
    "picture": 1.0,
    "energy": 0.5,
}  # of a mean square that is taken for that of rounding, at least
MOST_ENERGY = 4.0  # of a squared difference over the local mean
ORDERS = (
    1,
    2,
)  # of differences: the first is blind to one mirror symmetry, the second to the other
SHORTEST = (
    16  # pixels along which differences are taken; as many of them to each power must be opaque
)


class Key(NamedTuple):
    """What a spectrum is of.

    Attributes:
      field: 'luma', 'chroma', 'plain', the luma with equal weights, or 'energy1' and 'energy2', of squared differences
        of that order.
      channel: of the orthonormal cosine transform over color.
      direction: of the frequencies, one of 0, 1 and −1 for each axis.
    """

    field: str
    channel: int
    direction: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Number of axes along which the pattern varies."""
        return sum(map(abs, self.direction))

    @property
    def is_energy(self) -> bool:
        """Whether the spectrum is of the local energy, not of the picture."""
        return self.field.startswith("energy")


class Spectrum(NamedTuple):
    """Spectrum along a direction, from frequency 0 to 1/2, and its value for a wave of height 1 per pixel."""

    values: np.ndarray
    gain: float


def spectra_of(picture: Picture) -> dict[Key, Spectrum]:
    """Returns the spectra of a picture."""
    x = picture.levels
    space, colors = x.shape[:-1], x.shape[-1]
    if picture.opaque is not None and picture.opaque.sum() < SHORTEST ** len(space):
        return {}
    opponent = fft.dct(x, axis=-1, norm="ortho") if colors > 1 else x
    window = _hann(space)
    if picture.opaque is not None:
        window = window * picture.opaque
    found: dict[Key, Spectrum] = {}
    for c in range(colors):
        r = _flattened(opponent[..., c])
        square = local_mean(r * r, RADIUS["picture"]) + ROUNDING["picture"]
        clipped = np.clip(r, -CLIP * np.sqrt(square), CLIP * np.sqrt(square))
        weights = {"chroma": window / square} if c else {"luma": window / square, "plain": window}
        for name, weight in weights.items():
            gain = float(weight.sum()) * colors**0.5
            for direction in directions(len(space)):
                values = _projected(clipped * weight, direction)
                found[Key(name, c, direction)] = Spectrum(values, gain)
    luma = opponent[..., 0] / colors**0.5
    for axis, order in itertools.product(range(len(space)), ORDERS):
        if space[axis] >= SHORTEST:
            direction = tuple(int(a == axis) for a in range(len(space)))
            energy = _energy(luma, picture.opaque, axis, order, direction)
            found[Key(f"energy{order}", 0, direction)] = energy
    return found


def _energy(
    luma: np.ndarray, opaque: np.ndarray | None, axis: int, order: int, direction: tuple[int, ...]
) -> Spectrum:
    """Returns the spectrum of squared differences, relative to their local mean."""
    energy = np.diff(luma, order, axis) ** 2
    relative = energy / (local_mean(energy, RADIUS["energy"]) + ROUNDING["energy"])
    relative = np.minimum(relative, MOST_ENERGY)
    window = _hann(energy.shape)
    if opaque is not None:
        n = opaque.shape[axis]
        for i in range(order + 1):
            window = window * opaque.take(range(i, n - order + i), axis)
    total = float(window.sum())
    mean = float((relative * window).sum()) / total if total else 0.0
    return Spectrum(_projected((relative - mean) * window, direction), total)


def directions(rank: int) -> list[tuple[int, ...]]:
    """Returns the directions of patterns: of images (1, 0), (0, 1), (1, 1) and (1, −1)."""
    every = [d for d in itertools.product((0, 1, -1), repeat=rank) if any(d)]
    one_sided = [d for d in every if next(c for c in d if c) > 0]
    return sorted(one_sided, key=lambda d: sum(map(abs, d)))


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return np.reshape(values, [-1 if a == axis else 1 for a in range(rank)])


def local_mean(x: np.ndarray, radius: int) -> np.ndarray:
    """Returns means over boxes, mirrored at the borders."""
    for axis, n in enumerate(x.shape):
        size = 2 * min(radius, (n - 1) // 2) + 1
        x = ndimage.uniform_filter1d(x, size, axis, mode="reflect")
    return x


def _flattened(x: np.ndarray) -> np.ndarray:
    """Multiplies the spectrum with 2|f|, by a cosine transform, in which borders do not leak."""
    square = sum(_along(np.arange(n) / n, a, x.ndim) ** 2 for a, n in enumerate(x.shape))
    flat: np.ndarray = fft.idctn(fft.dctn(x) * np.sqrt(square))
    return flat


def _hann(shape: Sequence[int]) -> np.ndarray:
    window = np.ones(())
    for axis, n in enumerate(shape):
        one = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
        window = window * _along(one, axis, len(shape))
    return window


def _projected(x: np.ndarray, direction: Sequence[int]) -> np.ndarray:
    """Returns the spectrum of a field at the frequencies f·direction, f from 0 to 1/2."""
    steps = [
        c * _along(np.arange(n), axis, x.ndim)
        for axis, (c, n) in enumerate(zip(direction, x.shape, strict=True))
        if c
    ]
    where = sum(steps, np.zeros((), int))
    where = np.broadcast_to(where - where.min(), x.shape)
    n = max(n for c, n in zip(direction, x.shape, strict=True) if c)
    size = ZOOM * 2 * -(-n // 2)
    spectrum: np.ndarray = fft.rfft(np.bincount(where.ravel() % size, x.ravel(), size))
    return spectrum
