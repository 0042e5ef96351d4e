"""Pooling that returns the places of its pixels, and the unpooling that puts them back."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from tconvjax import _sharding as sharding
from tconvjax._arguments import as_array, enlarged_shape, image_and_factors
from tconvjax._ops.subpixel import pixel_shuffle


class Pooled(NamedTuple):
    """The largest pixel of every window, and its phase p, counted along the last axis first."""

    values: jax.Array
    phases: jax.Array


def max_pool(x: ArrayLike, strides: Sequence[int]) -> Pooled:
    """Keeps the largest of every s pixels: `(*batch, *spatial, channels)` to `(*batch, *(spatial / s), channels)`.

    Args:
      x: real, channels last; any number of leading batch axes.
      strides: s >= 1, size of the windows, which do not overlap, one per spatial axis; fixes the rank.

    Returns:
      The values, and the phases for `max_unpool` as int32. Of equal pixels the first counts, and gets the gradient.

    Raises:
      ValueError: if an entry of `strides` does not divide its spatial axis.
      TypeError: for complex images, or strides that are not a sequence of integers.

    Example:
      >>> max_pool(jnp.array([1.0, 5, 7, 2])[:, None], (2,)).phases[:, 0]
      Array([1, 0], dtype=int32)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.

    PyTorch:
      `torch.nn.functional.max_pool2d(x, s, return_indices=True)`, whose indices count the pixels of the image.
    """
    who = "max_pool"
    image, factors = image_and_factors(who, x, "strides", strides)
    if jnp.issubdtype(image.dtype, jnp.complexfloating):
        raise TypeError(
            f"{who}: the largest pixel needs a real input; got dtype {image.dtype}. Take its absolute value first."
        )
    first = image.ndim - 1 - len(factors)
    spatial = image.shape[first:-1]
    if any(n % s for n, s in zip(spatial, factors, strict=True)):
        raise ValueError(
            f"{who}: strides must divide the spatial shape; got spatial shape {spatial}, strides={factors}. "
            "Crop or pad first."
        )
    small = (n // s for n, s in zip(spatial, factors, strict=True))
    shape = (*image.shape[:first], *small, image.shape[-1])
    return Pooled(*sharding.placed(lambda x: _largest(x, factors), image, shape=shape))


@partial(jax.jit, static_argnames="windows", inline=True)
def _largest(x: jax.Array, windows: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns the first of the largest pixels of every window, and its phase; axis by axis, so by few comparisons.

    The gradient of `x.max()` compares every pixel with the maximum. If a compiler rounds the two differently, none is
    equal, and the gradient is 0 / 0 (docs/upstream/gradient_of_max.py).
    """
    phases, unit = jnp.zeros(x.shape, jnp.int32), 1
    for axis, s in reversed([*enumerate(windows, x.ndim - 1 - len(windows))]):
        split = (*x.shape[:axis], x.shape[axis] // s, s, *x.shape[axis + 1 :])
        values, places = x.reshape(split), phases.reshape(split)
        x, phases = (lax.index_in_dim(a, 0, axis + 1, keepdims=False) for a in (values, places))
        for p in range(1, s):
            other, place = (
                lax.index_in_dim(a, p, axis + 1, keepdims=False) for a in (values, places)
            )
            stays = is_larger(x, other)
            x, phases = jnp.where(stays, x, other), jnp.where(stays, phases, place + p * unit)
        unit *= s
    return x, phases


def is_larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns where `a` is larger than `b`, or equal and first; NaN is larger than all."""
    return (a >= b) | lax.ne(a, a)


def max_unpool(x: ArrayLike, phases: ArrayLike, strides: Sequence[int]) -> jax.Array:
    """Puts pixels back where `max_pool` found them, among zeros.

    `(*batch, *spatial, channels)` to `(*batch, *(s · spatial), channels)`. The gradient goes to the same places, so it
    follows the content of images: the layer prefers no phase.

    Args:
      x: any dtype, channels last.
      phases: of `max_pool`, integers in [0, prod(strides)), of the shape of x.
      strides: as in `max_pool`.

    Returns:
      The enlarged images, dtype kept.

    Raises:
      ValueError: if phases have another shape than x.
      TypeError: for phases that are not integers, or strides that are not a sequence of integers.

    Example:
      >>> max_unpool(jnp.array([5.0, 7])[:, None], jnp.array([1, 0])[:, None], strides=(2,))[:, 0]
      Array([0., 5., 7., 0.], dtype=float32)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.

    PyTorch:
      `torch.nn.functional.max_unpool2d`.
    """
    who = "max_unpool"
    image, factors = image_and_factors(who, x, "strides", strides)
    places = as_array(who, "phases", phases)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise TypeError(
            f"{who}: phases must be integers, as max_pool returns; got dtype {places.dtype}."
        )
    if places.shape != image.shape:
        raise ValueError(
            f"{who}: phases must have the shape of x; got {places.shape}, x {image.shape}. "
            "Pool and unpool as many channels."
        )
    shape = enlarged_shape(who, image.shape, factors)

    def put_back(x: jax.Array, phases: jax.Array) -> jax.Array:
        if phases.dtype.itemsize < 4:  # which may not count as far as the phases
            phases = phases.astype(jnp.int32)
        every = lax.broadcasted_iota(phases.dtype, (*x.shape, prod(factors)), x.ndim)
        chosen = jnp.where(phases[..., None] == every, x[..., None], jnp.zeros((), x.dtype))
        channels = x.shape[-1] * prod(factors)
        return pixel_shuffle(chosen.reshape(*x.shape[:-1], channels), factors)

    return sharding.placed(put_back, image, places, shape=shape)
