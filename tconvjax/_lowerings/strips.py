"""Kernel gradients in strips: the sum over pixels, some of the summands at a time.

On a CPU one of XLA's two libraries slows down with the length of the sum, and the patches of a whole batch outgrow the
memory that is fast to allocate. A strip is as many images as a limit admits, or rows: of one image if it exceeds the
limit, of all images with `by_rows`.

Where arrays may be split over several devices, the sum is taken at once: the compiler would gather a split axis before
it cuts strips from it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _sharding as sharding
from tconvjax._arguments import Call
from tconvjax._boundary import pad_axis
from tconvjax._geometry import Geometry
from tconvjax._lowerings.protocol import Face


class Limits(NamedTuple):
    """Pixels of the small image, all images together."""

    whole: int  # up to this many, the sum is taken at once
    strip: int  # beyond, about this many at a time
    by_rows: bool = False  # rows of all images, so that a strip holds the whole batch


UNLIMITED = Limits(sys.maxsize, sys.maxsize)


def in_strips(correlate: Face, limits: Callable[[jax.Array, jax.Array, Geometry], Limits]) -> Face:
    """Returns a correlate that sums over strips on a CPU, one after another.

    Args:
      correlate: the face, of one sum.
      limits: `(x, y, geometry)` to the limits of a strip.
    """

    def run(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
        if not _can_cut(x, y, call):
            return correlate(x, y, call)
        geometry = call.geometry
        whole, strip, by_rows = limits(x, y, geometry)
        batch, image = y.shape[0], prod(geometry.small)
        if batch * image <= whole:
            return correlate(x, y, call)
        if by_rows:
            return _sum_along(0, -(-batch * image // strip), correlate, x, y, call)

        def correlate_images(x: jax.Array, y: jax.Array) -> jax.Array:
            if image > whole:
                return _sum_along(0, -(-image // strip), correlate, x, y, call)
            return correlate(x, y, call)

        count = -(-batch // max(1, strip // image))
        images = -(-batch // count)
        # The last strip is filled up with images of zeros.
        x, y = (pad_axis(a, 0, 0, count * images - batch) for a in (x, y))
        cut = [a.reshape(count, images, *a.shape[1:]) for a in (x, y)]
        return _sum_terms(lambda part: correlate_images(*part), cut, _zeros(x, y, call))

    return run


def in_columns(correlate: Face, most: int) -> Face:
    """Returns a correlate that sums over strips of at most `most` pixels along the last axis on a CPU."""

    def run(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
        if not _can_cut(x, y, call):
            return correlate(x, y, call)
        last = call.geometry.rank - 1
        count = -(-call.geometry.small[last] // most)
        return _sum_along(last, count, correlate, x, y, call)

    return run


def _can_cut(x: jax.Array, y: jax.Array, call: Call) -> bool:
    known = all(isinstance(n, int) for n in (*x.shape, *y.shape, *call.geometry.offset))
    return call.platform == "cpu" and not call.spread and known


def _sum_terms(term: Callable[[Any], jax.Array], parts: Any, start: jax.Array) -> jax.Array:
    """Adds one term after another: only one is in memory at a time."""
    return lax.scan(lambda total, part: (total + term(part), None), start, parts)[0]


def _zeros(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    """Returns a kernel gradient of zeros, to add to."""
    channels = x.shape[-1] // call.geometry.feature_group_count, y.shape[-1]
    zeros = jnp.zeros((*call.geometry.kernel_size, *channels), call.dtype)
    return sharding.varying_alike(zeros, x, y)[0]


def _sum_along(
    axis: int,
    count: int,
    correlate: Face,
    x: jax.Array,
    y: jax.Array,
    call: Call,
) -> jax.Array:
    """Sums over at least `count` strips along a spatial axis; the last is filled up with zeros."""
    geometry = call.geometry
    n, s = geometry.small[axis], geometry.strides[axis]
    most = -(-n // count)
    pixels = min(range(-(-most // 2), most + 1), key=lambda p: (-n % p, -p))
    count, spare, window = -(-n // pixels), -n % pixels, s * (pixels - 1) + geometry.extent[axis]
    if count == 1:
        return correlate(x, y, call)
    low, high = geometry.padding[axis]
    x, y = pad_axis(x, 1 + axis, low, high + s * spare), pad_axis(y, 1 + axis, 0, spare)
    part = replace(
        geometry,
        big=(*geometry.big[:axis], window, *geometry.big[axis + 1 :]),
        small=(*geometry.small[:axis], pixels, *geometry.small[axis + 1 :]),
        offset=(*geometry.offset[:axis], 0, *geometry.offset[axis + 1 :]),
    )

    def correlate_strip(i: jax.Array) -> jax.Array:
        return correlate(
            lax.dynamic_slice_in_dim(x, i * s * pixels, window, axis=1 + axis),
            lax.dynamic_slice_in_dim(y, i * pixels, pixels, axis=1 + axis),
            replace(call, geometry=part),
        )

    return _sum_terms(correlate_strip, jnp.arange(count), _zeros(x, y, call))
