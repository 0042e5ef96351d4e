"""Periodic arrays, as tiles.

A tile stands for what a linear operation makes of constants. Its first axis counts probes, constants in one channel
each; the others are the axes of an array, which away from its borders has at index i what the tile has at i modulo the
tile's length. Length 1 is a constant, the full length anything.
"""

from collections.abc import Iterable, Sequence
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

MOST_ELEMENTS = 1 << 25  # of a tile
MOST_PERIOD = 64  # that is looked for
MOST_FLOPS = 4e9  # of one operation on a tile before its probes are mixed to fewer
FEW_PROBES = 16


class Unread(Exception):
    """Raised where a tile cannot stand for an array."""


class Part(NamedTuple):
    """A part of an axis that a reshape moves as a whole.

    Attributes:
      axis: axis before the reshape.
      size: number of indices.
      parent: size of that axis.
    """

    axis: int
    size: Any
    parent: Any


def parts(old: Sequence[Any], new: Sequence[Any]) -> list[list[Part]]:
    """Returns the parts of which a reshape makes each new axis, slow ones first; axes of size 1 have none.

    Raises:
      Unread: if it cuts an axis unevenly.
    """
    rest = [Part(axis, n, n) for axis, n in enumerate(old) if n != 1]
    groups: list[list[Part]] = []
    for need in new:
        groups.append([])
        while need != 1:
            if need == 0 or not rest:
                raise Unread
            axis, size, parent = rest.pop(0)
            if need % size == 0:  # symbolic sizes included
                groups[-1].append(Part(axis, size, parent))
                need //= size
            elif size % need == 0:
                groups[-1].append(Part(axis, need, parent))
                rest.insert(0, Part(axis, size // need, parent))
                need = 1
            else:
                raise Unread
    return groups


def expanded(tile: np.ndarray, axis: int, size: Any) -> np.ndarray:
    """Repeats a tile to the full size of an axis."""
    n = tile.shape[axis]
    if n == size:
        return tile
    if not isinstance(size, int) or tile.size // n * size > MOST_ELEMENTS:
        raise Unread
    return np.take(tile, np.arange(size) % n, axis)


def repeated(tile: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Repeats a tile to multiples of its lengths."""
    if prod(lengths) > MOST_ELEMENTS:
        raise Unread
    return np.tile(tile, [n // m for n, m in zip(lengths, tile.shape, strict=True)])


def matched(*tiles: np.ndarray, apart: int | None = None) -> list[np.ndarray]:
    """Repeats tiles to common periods; along the axis `apart` they stay as they are."""
    lengths = [np.lcm.reduce(sizes).item() for sizes in zip(*(t.shape for t in tiles), strict=True)]
    return [
        repeated(t, [t.shape[a] if a == apart else n for a, n in enumerate(lengths)]) for t in tiles
    ]


def shortened(tile: np.ndarray, axis: int, *, exact: bool = False) -> np.ndarray:
    """Returns a tile of full length cut to its period, if it has one: away from its ends, or `exact` everywhere."""
    n = tile.shape[axis]
    x = np.moveaxis(tile, axis, 0)
    bound = 1e-5 * abs(x).max(initial=0)
    for period in range(1, min(n // 2, MOST_PERIOD) + 1):
        start = 0 if exact else min(n // 4, (n - 2 * period) // 2)
        stop = n - start
        if (abs(x[start + period : stop] - x[start : stop - period]) <= bound).all():
            return np.moveaxis(x[start + (np.arange(period) - start) % period], 0, axis)
    return tile


def reshaped(tile: np.ndarray, old: Sequence[Any], new: Sequence[Any]) -> np.ndarray:
    """Follows a tile through a reshape."""
    groups = parts(old, new)
    sizes: list[list[Any]] = [[] for _ in old]
    for part in (part for group in groups for part in group):
        sizes[part.axis].append(part.size)
    lengths = [tile.shape[0]]
    for axis, digits in enumerate(sizes):
        if isinstance(old[axis], int) and tile.shape[1 + axis] > old[axis]:  # less than a period
            tile = expanded(tile, 1 + axis, old[axis])
        periods = _split(tile.shape[1 + axis], digits)
        if periods is None:
            tile = expanded(tile, 1 + axis, prod(digits))
            periods = digits
        lengths += periods
    tile = tile.reshape(lengths)
    for axis, group in enumerate(groups, 1):
        digits = [part.size for part in group]
        if not digits:
            tile = np.expand_dims(tile, axis)
        while len(digits) > 1:  # join the two fast ones
            fast = digits.pop()
            at = axis + len(digits)
            slow_period, period = tile.shape[at - 1 : at + 1]
            if slow_period > 1 or fast % period:
                tile = expanded(tile, at, fast)
            tile = tile.reshape(*tile.shape[: at - 1], -1, *tile.shape[at + 1 :])
            digits[-1] *= fast
    if len(tile) == 1:  # entries of a stack may be constants
        for axis, size in enumerate(new, 1):
            if tile.shape[axis] == size:
                tile = shortened(tile, axis)
    return tile


def _split(period: int, sizes: Sequence[Any]) -> list[int] | None:
    """Returns the periods along the parts of an axis, None where only the whole axis can be split."""
    periods: list[int] = []
    for i, size in reversed(list(enumerate(sizes))):
        if i == 0 or (isinstance(size, int) and period <= size and size % period == 0):
            periods.insert(0, period)
            period = 1
        elif period == 1:
            periods.insert(0, 1)
        elif isinstance(size, int) and period % size == 0:
            periods.insert(0, size)
            period //= size
        else:
            return None
    return periods


def sliced(tile: np.ndarray, axis: int, start: int, stride: int = 1) -> np.ndarray:
    """Follows a tile through a slice that begins at `start`, negative in a pad."""
    period = tile.shape[axis]
    length = period // gcd(period, stride)
    return np.take(tile, (start + stride * np.arange(length)) % period, axis)


def dilated(tile: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """Puts `factor − 1` zeros behind every entry of a tile."""
    shape = list(tile.shape)
    shape[axis] *= factor
    wide = np.zeros(shape, tile.dtype)
    wide[(slice(None),) * axis + (slice(None, None, factor),)] = tile
    return wide


def reversed_tile(tile: np.ndarray, axis: int, size: Any) -> np.ndarray:
    """Follows a tile through a reversal of an axis of a given size."""
    period = tile.shape[axis]
    if period == 1:
        return tile
    if not isinstance(size, int):
        raise Unread
    return np.take(tile, (size - 1 - np.arange(period)) % period, axis)


def probed(tile: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Gives every channel along an axis a probe of its own."""
    if size * size * (tile.size // tile.shape[axis]) > MOST_ELEMENTS:
        raise Unread
    wide = expanded(tile, axis, size)
    shape = [1] * tile.ndim
    shape[0] = shape[axis] = size
    return wide * np.eye(size, dtype=tile.dtype).reshape(shape)


def fewer(tile: np.ndarray, flops: float) -> np.ndarray:
    """Mixes the probes of a tile to a few random ones, if an operation on them is too long."""
    if flops <= MOST_FLOPS or tile.shape[0] <= FEW_PROBES:
        return tile
    mix = np.random.default_rng(0).normal(size=(FEW_PROBES, tile.shape[0]))
    return np.tensordot(mix.astype(tile.dtype) / FEW_PROBES**0.5, tile, 1)


class Steps(NamedTuple):
    """A convolution along each axis: `y[a] = Σ_o x[(s·a + d·o − low) / t] w[o]`, over whole quotients.

    Attributes:
      t: dilation of the image.
      s: strides.
      d: dilation of the kernel.
      low: padding before the first pixel.
    """

    t: tuple[int, ...]
    s: tuple[int, ...]
    d: tuple[int, ...]
    low: tuple[int, ...]


def convolved(
    tile: np.ndarray, kernel: np.ndarray, steps: Steps, groups: int, *, mixed: bool
) -> tuple[np.ndarray, bool]:
    """Convolves a tile `(probes, *batch, *space, channels)`; returns whether the result is mixed, too.

    Args:
      tile: tile; without channels mixed, one that stands for a probe in each channel.
      kernel: `(*kernel_size, channels // groups, features)`.
      steps: geometry.
      groups: number of groups of features.
      mixed: whether the probes of the tile are separate.
    """
    *k, fan, features = kernel.shape
    rank, channels = len(k), fan * groups
    space = tile.shape[-1 - rank : -1]
    index: Any
    index, inside = _reads(space, k, steps)  # (*out, *k) of each axis
    alone = not mixed and (tile.shape[-1] == 1 or prod(space) == 1)
    if alone:
        batch = tile.shape[: -1 - rank]
        scale = tile.reshape(*batch, prod(space), -1).max(-2) if prod(space) == 1 else None
        mask = tile[..., 0] if scale is None else np.ones((*batch, *space), tile.dtype)
        read = mask[(..., *index)] * inside  # (1, *batch, *out, *k)
        folded = np.tensordot(read, kernel, rank)  # (1, *batch, *out, fan, features)
        if groups == channels == features:  # one kernel for each channel
            out = folded[..., 0, :]
            return (out if scale is None else out * _spread(scale, rank)), False
        out = np.moveaxis(folded, -2, 0)  # (fan, 1, *batch, *out, features)
        if groups > 1:
            if channels * out.size > MOST_ELEMENTS:
                raise Unread
            wide = np.zeros((groups, *out.shape), out.dtype)
            size = features // groups
            for g in range(groups):
                wide[g, ..., g * size : (g + 1) * size] = out[..., g * size : (g + 1) * size]
            out = wide.reshape(channels, *out.shape[1:])
        out = out[:, 0]
        if scale is not None:
            full = np.broadcast_to(scale[0], (*scale.shape[1:-1], channels))
            out = out * np.moveaxis(full, -1, 0).reshape(
                channels, *scale.shape[1:-1], *(1,) * (rank + 1)
            )
        return out, True
    if not mixed:
        tile = probed(tile, tile.ndim - 1, channels)
    tile = expanded(tile, tile.ndim - 1, channels)
    out_space = index[0].shape[:rank] if rank else ()
    work = 2.0 * prod(k) * prod(out_space) / prod(steps.t) * fan * features
    tile = fewer(tile, work * tile.shape[0])
    result = np.zeros(
        (*tile.shape[: -1 - rank], *out_space, features), np.result_type(tile, kernel)
    )
    if result.size > MOST_ELEMENTS:
        raise Unread
    size = features // groups
    for tap in np.ndindex(*k):
        at = (..., *tap)
        if not inside[at].any():
            continue
        read = tile[(..., *(i[at] for i in index), slice(None))] * inside[at][..., None]
        for g in range(groups):
            result[..., g * size : (g + 1) * size] += (
                read[..., g * fan : (g + 1) * fan] @ kernel[tap][:, g * size : (g + 1) * size]
            )
    return result, True


def _spread(scale: np.ndarray, rank: int) -> np.ndarray:
    return scale.reshape(*scale.shape[:-1], *(1,) * rank, scale.shape[-1])


def _reads(
    space: Sequence[int], k: Sequence[int], steps: Steps
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the index along each axis of a tile that each output reads with each tap, and whether it is a pixel."""
    rank = len(k)
    axes = []
    for p, n, t, s, d, low in zip(space, k, *steps, strict=True):
        period = t * p
        out = np.arange(period // gcd(s, period))
        j = (s * out[:, None] + d * np.arange(n) - low) % period
        axes.append((j // t, j % t == 0))
    index, inside = [], np.ones((1,) * (2 * rank), bool)
    lengths = [a.shape[0] for a, _ in axes]
    for i, (a, pixel) in enumerate(axes):
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = a.shape
        index.append(np.broadcast_to(a.reshape(shape), (*lengths, *k)))
        inside = inside & pixel.reshape(shape)
    return index, np.broadcast_to(inside, (*lengths, *k))


def share(tile: np.ndarray, space: Iterable[int]) -> float:
    """Returns the share of the energy of a tile on the harmonics of its periods along axes of the array."""
    axes = tuple(1 + axis for axis in space)
    mean = tile.mean(axes, keepdims=True)
    energy = float((abs(tile) ** 2).sum(dtype=np.float64))
    return float((abs(tile - mean) ** 2).sum(dtype=np.float64)) / energy if energy > 0 else 0.0
