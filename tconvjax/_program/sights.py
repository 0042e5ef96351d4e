"""Sights: which pixels of an image the elements of a value depend on, along one axis of the image.

A sight is an array of integers `(3, *shape)`: the first and the last index of the image that an element depends on, and
a fingerprint of the way. Axes along which all elements see the same have size 1. Operations that move elements move
their sights; operations that combine elements join them.

The fingerprint is the program itself, run on the geometric sequence ROOT^i modulo PRIME, with a number of its own for
every tap. Where a shift of the image by n pixels shifts a value, the fingerprints of the value are multiplied by
ROOT^n. So it shows what an interval can hide: borders, phases, seams.
"""

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

Sight = np.ndarray
PRIME, ROOT = 2**31 - 1, 7  # the powers of 7 are all numbers but 0
FAR = 1 << 30
MOST_ELEMENTS = 1 << 24  # of a sight
NOTHING = np.array([FAR, -FAR, 0])  # what a constant sees: from FAR to -FAR, nothing


class Everywhere(Exception):
    """Raised where an operation reaches over the whole axis, or is not understood."""


def first_sight(shape: Sequence[int], axis: int) -> Sight:
    """Returns the sight of the image itself along one of its axes."""
    powers = [1]
    for _ in range(shape[axis] - 1):
        powers.append(powers[-1] * ROOT % PRIME)
    index = np.arange(shape[axis])
    place = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    return np.stack([index, index, np.array(powers)]).reshape(3, *place)


def nothing(shape: Sequence[int]) -> Sight:
    """Returns the sight of a constant."""
    return np.broadcast_to(NOTHING.reshape(3, *(1 for _ in shape)), (3, *shape))


def number(tap: int) -> int:
    """Returns the number by which the fingerprint of a tap is multiplied."""
    return pow(48271, tap + 1, PRIME)


def joined(sights: Iterable[Sight]) -> Sight:
    """Returns the sight of elements that depend on all of several elements; sizes of 1 serve all."""
    first, *others = sights
    if not others:
        return first
    low, high, mark = first
    mark = mark * number(0) % PRIME
    for tap, other in enumerate(others, start=1):
        _check(np.broadcast_shapes(low.shape, other.shape[1:]))
        low, high = np.minimum(low, other[0]), np.maximum(high, other[1])
        mark = (mark + other[2] * number(tap)) % PRIME
    return np.stack([low, high, mark])


def swept(sight: Sight, axes: Iterable[int]) -> Sight:
    """Returns the sight of a sum over axes, which keep size 1.

    Raises:
      Everywhere: if the sum joins what the whole axis of the image holds.
    """
    axes = [axis for axis in axes if sight.shape[1 + axis] > 1]
    if not axes:
        return sight
    low, high, mark = sight
    for axis in axes:
        numbers = np.array([number(tap) for tap in range(mark.shape[axis])])
        mark = (mark * _along(numbers, axis, mark.ndim) % PRIME).sum(axis, keepdims=True) % PRIME
    out = np.stack(
        [low.min(tuple(axes), keepdims=True), high.max(tuple(axes), keepdims=True), mark]
    )
    check_local([sight], out)
    return out


def accumulated(sight: Sight, axis: int, *, reverse: bool) -> Sight:
    """Returns the sight of running sums along an axis; raises Everywhere as `swept`."""
    if sight.shape[1 + axis] == 1:
        return sight
    turned = np.flip(sight, 1 + axis) if reverse else sight
    low, high, mark = turned
    numbers = _along(np.array([number(tap) for tap in range(mark.shape[axis])]), axis, mark.ndim)
    out = np.stack(
        [
            np.minimum.accumulate(low, axis),
            np.maximum.accumulate(high, axis),
            (mark * numbers % PRIME).cumsum(axis) % PRIME,
        ]
    )
    check_local([sight], out)
    return np.flip(out, 1 + axis) if reverse else out


def check_local(before: Sequence[Sight], after: Sight) -> None:
    """Raises Everywhere if an element sees all that there is, and no element before did."""
    low, high = (
        min(int(s[0].min()) for s in before),
        max(int(s[1].max()) for s in before),
    )
    longest = max(int((s[1] - s[0]).max()) for s in before)
    if longest < high - low and ((after[0] <= low) & (after[1] >= high)).any():
        raise Everywhere(f"joins all {high - low + 1} pixels")


def tapped(sight: Sight, axis: int, taps: np.ndarray, numbers: np.ndarray | None = None) -> Sight:
    """Returns the sight of windows along an axis: `taps[o]` are the indices that output o reads, -1 for none.

    Args:
      sight: what is read, of full size along the axis.
      axis: axis of the value.
      taps: `(outputs, taps)`.
      numbers: numbers of the taps for the fingerprint, `(outputs, taps)`; by default one for each tap.
    """
    padded = np.concatenate([sight, nothing(_with(sight.shape[1:], axis, 1))], 1 + axis)
    out = None
    for tap in range(taps.shape[1]):
        read = padded.take(taps[:, tap], 1 + axis)
        factor = number(tap) if numbers is None else _along(numbers[:, tap], axis, sight.ndim - 1)
        read[2] = read[2] * factor % PRIME
        if out is None:
            _check(read.shape[1:])
            out = read
        else:
            np.minimum(out[0], read[0], out=out[0])
            np.maximum(out[1], read[1], out=out[1])
            out[2] = (out[2] + read[2]) % PRIME
    return nothing(_with(sight.shape[1:], axis, len(taps))) if out is None else out


def window(
    size: int,
    outputs: int,
    taps: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    low: int = 0,
    up: int = 1,
) -> np.ndarray:
    """Returns the taps of a window over a padded axis with `up − 1` zeros between its elements."""
    places = stride * np.arange(outputs)[:, None] + dilation * np.arange(taps) - low
    inside = (places >= 0) & (places <= up * (size - 1)) & (places % up == 0)
    return np.where(inside, places // up, -1)


def selected(sight: Sight, axis: int, matrix: np.ndarray) -> Sight:
    """Returns the sight of products with a known matrix `(size, outputs)` along an axis.

    Weights below the rounding of the places from which a resize computes them count as 0.
    """
    strength = np.abs(np.asarray(matrix, np.float64))
    strength /= max(strength.max(), np.finfo(float).tiny)
    strength[strength <= 4 * len(matrix) * np.finfo(np.float32).eps] = 0
    support = strength > 0
    count = int(support.sum(0).max(initial=0))
    _check((count, *_with(sight.shape[1:], axis, matrix.shape[1])))
    order = np.argsort(~support, axis=0, kind="stable")[
        :count
    ].T  # first those that count, in order
    weights = np.take_along_axis(strength, order.T, 0).T
    taps = np.where(weights > 0, order, -1)
    # Rounding moves weights by less than a step, whose size divides no common weight.
    steps = np.rint(weights * 32.3).astype(int)
    numbers = np.vectorize(number, otypes=[int])(64 * np.arange(count) + steps)
    return tapped(sight, axis, taps, numbers)


def span(sight: Sight, axis: int) -> int:
    """Returns how far the pixels lie apart that are seen first, or last, along an axis."""
    if sight.shape[1 + axis] == 1:
        return 0
    others = tuple(i for i in range(sight.ndim - 1) if i != axis)
    low, high = sight[0].min(others), sight[1].max(others)
    seen = low <= high
    return max(int(np.ptp(low[seen])), int(np.ptp(high[seen]))) if seen.any() else 0


def full(sight: Sight, axis: int, size: int) -> Sight:
    """Returns a sight with an axis in its full size."""
    if sight.shape[1 + axis] == size:
        return sight
    return np.repeat(sight, size, 1 + axis)


def reduced(sight: Sight) -> Sight:
    """Returns a sight with size 1 for every axis along which it does not differ."""
    for axis in range(1, sight.ndim):
        if sight.shape[axis] > 1:
            first = sight.take([0], axis)
            if (sight == first).all():
                sight = first
    return sight


def reshaped(sight: Sight, old: Sequence[int], new: Sequence[int]) -> Sight:
    """Returns the sight of a reshaped value; axes that a sight does not use are never made whole."""
    sizes: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):  # the next axes with equal products
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (left := prod(old[first:i])) != (right := prod(new[second:j])):
            if left < right:
                i += 1
            else:
                j += 1
        if any(sight.shape[1 + axis] > 1 for axis in range(first, i)):
            for axis in range(first, i):
                sight = full(sight, axis, old[axis])
            sizes += new[second:j]
        else:
            sizes += [1] * (j - second)
        _check(sight.shape[1:])
    return reduced(sight.reshape(3, *sizes))


def concatenated(sights: Sequence[Sight | None], sizes: Sequence[int], axis: int) -> Sight:
    """Returns the sight of values in a row along an axis; None is a constant."""
    rank = next(s.ndim - 1 for s in sights if s is not None)
    parts = [
        full(nothing((1,) * rank) if s is None else s, axis, n)
        for s, n in zip(sights, sizes, strict=True)
    ]
    shape = np.broadcast_shapes(*(_with(p.shape[1:], axis, 1) for p in parts))
    _check(_with(shape, axis, sum(sizes)))
    whole = [
        np.broadcast_to(p, (3, *_with(shape, axis, n))) for p, n in zip(parts, sizes, strict=True)
    ]
    return reduced(np.concatenate(whole, 1 + axis))


def picked(sights: Sequence[Sight], ids: np.ndarray) -> Sight:
    """Returns the sight of elements in new places, from their indices in one or more flat values; -1 for none."""
    flat = np.concatenate([*(s.reshape(3, -1) for s in sights), NOTHING[:, None]], 1)
    return reduced(flat[:, ids])


def _along(numbers: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return numbers.reshape([-1 if i == axis else 1 for i in range(rank)])


def _with(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _check(shape: Sequence[int]) -> None:
    if prod(shape) > MOST_ELEMENTS:
        raise Everywhere("mixes axes of more elements than are followed")
