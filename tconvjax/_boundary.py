"""Pixels beyond the border of an image, and the exact adjoint of reading them.

Along an axis 1 2 3 4, two pixels beyond each border:

    zeros       0 0 1 2 3 4 0 0
    circular    3 4 1 2 3 4 1 2
    reflect     3 2 1 2 3 4 3 2     the border pixel is not repeated
    replicate   1 1 1 2 3 4 4 4

`pad` appends these pixels; its adjoint `fold` adds every pixel beyond the border to the pixel that it repeats.
Both walk the same list of segments, so they cannot disagree. The last axis holds channels, the axes before it are
spatial. A negative padding crops, and its adjoint appends zeros.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax._geometry import PaddingMode, Pairs, known_at_least

# start and stop of source pixels, whether they are reversed, how often they are repeated
Segment = tuple[int, int, bool, int]


def check(who: str, spatial_shape: Sequence[int], pads: Pairs, mode: PaddingMode) -> None:
    """Raises unless the border can be made: enough pixels to repeat, and paddings of known size."""
    if mode == "zeros":
        return
    if not all(isinstance(p, int) for pair in pads for p in pair):
        raise ValueError(
            f"{who}: padding_mode={mode!r} needs a padding that does not depend on a symbolic size; got {pads}. "
            "Give padding as integers."
        )
    for n, (low, high) in zip(spatial_shape, pads, strict=True):
        # A symbolic axis must be known to hold the pixels that the border repeats once, and those cropped.
        read = max(low, high, 0) + (mode == "reflect") if mode != "replicate" else 1
        crop = -min(low, 0) - min(high, 0)
        if (
            not isinstance(n, int)
            and (low, high) != (0, 0)
            and not known_at_least(n, max(read, crop))
        ):
            raise ValueError(
                f"{who}: padding_mode={mode!r} needs symbolic sizes that are known to be at least "
                f"{max(read, crop)}; got {n}, padded by {(low, high)}. Declare it, as in "
                f"jax.export.symbolic_shape('h', constraints=['h >= {max(read, crop)}'])."
            )
    least = 2 if mode == "reflect" else 1
    short = [
        isinstance(n, int) and n < least and max(pair) > 0
        for n, pair in zip(spatial_shape, pads, strict=True)
    ]
    if any(short):
        raise ValueError(
            f"{who}: padding_mode={mode!r} needs at least {least} pixels along every padded axis; got spatial shape "
            f"{tuple(spatial_shape)} padded by {pads}. Use 'zeros' or 'replicate', or do not pad this axis."
        )


def pad(x: jax.Array, pads: Pairs, mode: PaddingMode) -> jax.Array:
    """Pads `(*batch, *spatial, channels)` by (low, high) pixels per spatial axis."""
    for axis, (low, high) in enumerate(pads, start=x.ndim - 1 - len(pads)):
        if mode == "zeros":
            x = pad_axis(x, axis, low, high)
        elif (low, high) != (0, 0):
            pieces = [
                _repeat(_slice(x, axis, start, stop, flipped), axis, copies)
                for start, stop, flipped, copies in _segments(x.shape[axis], low, high, mode)
            ]
            x = pad_axis(jnp.concatenate(pieces, axis), axis, min(low, 0), min(high, 0))
    return x


def cut(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Crops an image to spatial `sizes` at the high ends, or appends zeros there."""
    first = x.ndim - 1 - len(sizes)
    pads = ((0, m - n) for m, n in zip(sizes, x.shape[first:-1], strict=True))
    return pad(x, tuple(pads), "zeros")


def fold(y: jax.Array, shape: Sequence[int], pads: Pairs, mode: PaddingMode) -> jax.Array:
    """Adjoint of `pad`: from the padded image back to the spatial `shape`."""
    first = y.ndim - 1 - len(pads)
    for axis, n, (low, high) in zip(range(first, y.ndim - 1), shape, pads, strict=True):
        if mode == "zeros":
            y = pad_axis(y, axis, -low, -high)
        elif (low, high) != (0, 0):
            y = pad_axis(y, axis, max(-low, 0), max(-high, 0))
            position, parts = 0, []
            for start, stop, flipped, copies in _segments(n, low, high, mode):
                end = position + (stop - start) * copies
                part = _slice(y, axis, position, end, flipped)
                part = part if copies == 1 else part.sum(axis, keepdims=True)
                parts.append(pad_axis(part, axis, start, n - stop))
                position = end
            y = reduce(jnp.add, parts)
    return y


def pad_axis(x: jax.Array, axis: int, low: int, high: int, interior: int = 0) -> jax.Array:
    """Pads one axis with zeros, crops it where negative, and inserts `interior` zeros between pixels."""
    if (low, high, interior) == (0, 0, 0):
        return x
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (low, high, interior)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _segments(n: int, low: int, high: int, mode: PaddingMode) -> list[Segment]:
    """Returns the sources of a padded axis of n pixels, in order, before any crop."""
    before = list(_beyond(n, low, mode, high_end=False))
    return [*reversed(before), (0, n, False, 1), *_beyond(n, high, mode, high_end=True)]


def _beyond(n: int, amount: int, mode: PaddingMode, *, high_end: bool) -> Iterator[Segment]:
    """Yields the segments beyond one border, from the border outward; a symbolic n counts as large."""
    if amount <= 0:
        return
    if mode == "replicate":
        edge = n - 1 if high_end else 0
        yield edge, edge + 1, False, amount
        return
    rises = high_end == (mode == "circular")  # whether the source index rises on the way outward
    length = n if mode == "circular" else n - 1
    assert not isinstance(n, int) or length > 0, "refused by `check`"
    while amount > 0:
        size = min(amount, length) if isinstance(n, int) else amount
        if mode == "circular":
            start = 0 if rises else n - size
            yield start, start + size, False, 1
        else:
            start = 1 if rises else n - 1 - size
            yield start, start + size, rises != high_end, 1
            rises = not rises
        amount -= size


def _slice(x: jax.Array, axis: int, start: int, stop: int, flipped: bool) -> jax.Array:  # noqa: FBT001
    piece = lax.slice_in_dim(x, start, stop, axis=axis)
    return jnp.flip(piece, axis) if flipped else piece


def _repeat(x: jax.Array, axis: int, copies: int) -> jax.Array:
    shape = (*x.shape[:axis], copies * x.shape[axis], *x.shape[axis + 1 :])
    return x if copies == 1 else jnp.broadcast_to(x, shape)  # a segment of copies is one pixel
