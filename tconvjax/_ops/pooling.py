"""Pooling that returns the indices of its pixels, and the unpooling that puts them back."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import as_array, image_and_factors
from tconvjax._geometry import Ints, Padding
from tconvjax._ops.subpixel import pixel_shuffle


class Pooled(NamedTuple):
    """The largest pixel of every window, and its index in the image, rows times width plus column in two axes."""

    values: jax.Array
    indices: jax.Array


def max_pool(
    x: ArrayLike,
    strides: Sequence[int],
    *,
    window_shape: Ints | None = None,
    padding: Padding = "VALID",
) -> Pooled:
    """Keeps the largest pixel of every window: `(*batch, *spatial, channels)` to `(*batch, *new_spatial, channels)`.

    `new = (n + low + high − window) // s + 1` pixels per axis: pixels that fill no window are dropped.

    Args:
      x: real, channels last; any number of leading batch axes.
      strides: s >= 1, input pixels per output pixel, one per spatial axis; fixes the rank.
      window_shape: pixels of a window; an int serves all axes, None is strides, so that windows do not overlap.
      padding: as in `conv`, of pixels that are smaller than all others; smaller than the window.

    Returns:
      The values, and the indices for `max_unpool`, int32 in [0, prod(spatial)), the last axis counting first. Of equal
      pixels the first counts, and gets the gradient.

    Raises:
      ValueError: if an image holds no window, or a window no pixel.
      TypeError: for complex images, or strides that are not a sequence of integers.

    Example:
      >>> max_pool(jnp.array([1.0, 5, 7, 2, 9])[:, None], (2,)).indices[:, 0]  # the last pixel fills no window
      Array([1, 2], dtype=int32)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.

    PyTorch:
      `torch.nn.functional.max_pool2d(x, window_shape, s, padding, return_indices=True)`.
    """
    who = "max_pool"
    image, factors = image_and_factors(who, x, "strides", strides)
    if jnp.issubdtype(image.dtype, jnp.complexfloating):
        raise TypeError(
            f"{who}: the largest pixel needs a real input; got dtype {image.dtype}. Take its absolute value first."
        )
    first = image.ndim - 1 - len(factors)
    geometry = _windows(who, image.shape[first:-1], factors, window_shape, padding)
    shape = (*image.shape[:first], *geometry.small, image.shape[-1])
    geo.fits(who, geometry.big, geo.LARGEST)
    return Pooled(*sharding.placed(lambda x: _largest(x, geometry), image, shape=shape))


def _windows(
    who: str,
    big: tuple[int, ...],
    strides: tuple[int, ...],
    window_shape: Ints | None,
    padding: Padding,
) -> geo.Geometry:
    """Returns the windows of a large image as those of a convolution."""
    window = _window(who, strides, window_shape)
    geometry = geo.conv_geometry(who, big, window, strides=strides, padding=padding)
    pairs = zip(geometry.padding, window, strict=True)
    if any(isinstance(p, int) and p >= k for pair, k in pairs for p in pair):
        raise ValueError(
            f"{who}: padding must be smaller than the window, so that every window holds a pixel; got "
            f"padding={padding!r}, window_shape={window}, spatial shape {big}. Pad less."
        )
    return geometry


def _window(who: str, strides: tuple[int, ...], window_shape: Ints | None) -> tuple[int, ...]:
    if window_shape is None:
        return strides
    return geo.per_axis(who, "window_shape", window_shape, len(strides))


@partial(jax.jit, static_argnames="geometry", inline=True)
def _largest(x: jax.Array, geometry: geo.Geometry) -> tuple[jax.Array, jax.Array]:
    """Returns the first of the largest pixels of every window, and its index; axis by axis, so by few comparisons.

    The gradient of `x.max()` compares every pixel with the maximum. If a compiler rounds the two differently, none is
    equal, and the gradient is 0 / 0 (docs/upstream/gradient_of_max.py).
    """
    first = x.ndim - 1 - geometry.rank
    index = jnp.zeros(x.shape, jnp.int32)
    for axis, m in enumerate(geometry.big, start=first):
        index = index * m + lax.broadcasted_iota(jnp.int32, x.shape, axis)
    for i in reversed(range(geometry.rank)):
        axis, n, k, s = first + i, geometry.small[i], geometry.kernel_size[i], geometry.strides[i]
        low, high = geometry.padding[i]
        high = max(high, 0) if isinstance(high, int) else k - 1  # of a symbolic size
        pads = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        padded = lax.pad(x, jnp.zeros((), x.dtype), pads)
        places = lax.pad(index, jnp.int32(-1), pads)  # no pixel
        for a in range(k):
            end = a + s * (n - 1) + 1
            other, place = (lax.slice_in_dim(v, a, end, s, axis) for v in (padded, places))
            if a == 0:
                x, index = other, place
                continue
            stays = is_larger(x, other)
            if (low, high) != (0, 0):
                stays = (stays & (index >= 0)) | (place < 0)
            x, index = jnp.where(stays, x, other), jnp.where(stays, index, place)
    return x, index


def is_larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns where `a` is larger than `b`, or equal and first; NaN is larger than all."""
    return (a >= b) | lax.ne(a, a)


def max_unpool(
    x: ArrayLike,
    indices: ArrayLike,
    strides: Sequence[int],
    *,
    window_shape: Ints | None = None,
    padding: Padding = "VALID",
    output_shape: Sequence[int] | None = None,
) -> jax.Array:
    """Puts pixels back where `max_pool` found them, among zeros.

    `(*batch, *spatial, channels)` to `(*batch, *(s(n − 1) + window − low − high), channels)`. The gradient goes to the
    same places, so it follows the content of images: the layer prefers no phase.

    Args:
      x: any dtype, channels last.
      indices: of `max_pool`, integers, of the shape of x. One that lies outside of its window puts nothing back; of
        several that are equal the last counts.
      strides: as in `max_pool`, like the two below.
      window_shape: see there.
      padding: see there.
      output_shape: spatial shape of the pooled image, if `max_pool` dropped pixels; the indices count its pixels.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: if indices have another shape than x, or for a size that `max_pool` does not map back.
      TypeError: for indices that are not integers, or strides that are not a sequence of integers.

    Example:
      >>> max_unpool(jnp.array([5.0, 7])[:, None], jnp.array([1, 2])[:, None], strides=(2,), output_shape=(5,))[:, 0]
      Array([0., 5., 7., 0., 0.], dtype=float32)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.

    PyTorch:
      `torch.nn.functional.max_unpool2d(x, indices, window_shape, s, padding, output_size=output_shape)`.
    """
    who = "max_unpool"
    image, factors = image_and_factors(who, x, "strides", strides)
    places = as_array(who, "indices", indices)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise TypeError(
            f"{who}: indices must be integers, as max_pool returns; got dtype {places.dtype}."
        )
    if places.shape != image.shape:
        raise ValueError(
            f"{who}: indices must have the shape of x; got {places.shape}, x {image.shape}. "
            "Pool and unpool as many channels."
        )
    first = image.ndim - 1 - len(factors)
    geometry = geo.conv_transpose_geometry(
        who,
        image.shape[first:-1],
        _window(who, factors, window_shape),
        strides=factors,
        padding=padding,
        output_shape=output_shape,
    )
    geo.fits(who, geometry.big, geo.LARGEST)
    shape = (*image.shape[:first], *geometry.big, image.shape[-1])
    return sharding.placed(lambda x, i: _put_back(x, i, geometry), image, places, shape=shape)


@partial(jax.jit, static_argnames="geometry", inline=True)
def _put_back(x: jax.Array, indices: jax.Array, geometry: geo.Geometry) -> jax.Array:
    """Returns the large image, each pixel from the last of the windows that hold it whose index is its own.

    A window reaches as many cells of s pixels as it has strides, and every cell compares all its pixels at once: a
    scatter has no order on accelerators, and devices do not share it.
    """
    k, s, rank = geometry.kernel_size, geometry.strides, geometry.rank
    first = x.ndim - 1 - rank
    low = geometry.offset
    cells = [(m + p + r - 1) // r for m, p, r in zip(geometry.big, low, s, strict=True)]
    phases = np.indices(s).reshape(rank, *[1] * (x.ndim), -1)  # along the last axis of `shape`
    if indices.dtype.itemsize < 4:  # which may not count as far as the pixels
        indices = indices.astype(jnp.int32)
    shape = (*x.shape[:first], *cells, x.shape[-1], prod(s))
    own = jnp.zeros(shape, indices.dtype)
    for axis, (m, r, p) in enumerate(zip(geometry.big, s, low, strict=True)):
        cell = lax.broadcasted_iota(indices.dtype, shape, first + axis)
        own = own * m + r * cell + jnp.asarray(phases[axis] - p, indices.dtype)
    y = jnp.zeros(shape, x.dtype)
    for shifts in product(*(range((a - 1) // r, -1, -1) for a, r in zip(k, s, strict=True))):
        pads = [(0, 0, 0)] * x.ndim
        for axis, (c, n, j) in enumerate(zip(cells, x.shape[first:-1], shifts, strict=True)):
            pads[first + axis] = (j, c - n - j, 0)
        value = lax.pad(x, jnp.zeros((), x.dtype), pads)
        index = lax.pad(indices, jnp.asarray(-1).astype(indices.dtype), pads)
        held = [p + r * j < a for p, r, j, a in zip(phases, s, shifts, k, strict=True)]
        matches = (index[..., None] == own) & np.logical_and.reduce(held)
        y = jnp.where(matches, value[..., None], y)
    y = pixel_shuffle(y.reshape(*shape[:-2], shape[-2] * shape[-1]), s)
    ends = (m - r * c for m, r, c in zip(geometry.big, s, cells, strict=True))
    return boundary.pad(y, tuple((-p, p + e) for p, e in zip(low, ends, strict=True)), "zeros")
