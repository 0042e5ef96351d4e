"""Kernel gradients in strips: the sum over pixels, some of the summands at a time.

On a CPU a convolution whose contracted axis is much longer than its caches loses half its speed or more, and the
patches of a whole batch outgrow the memory that is quickly given. Strips lie along the leading spatial axis and keep
the batch, whose images are neighbors in memory there.

Where that axis may be spread over several devices, the sum is taken at once: to cut strips from a spread axis the
compiler would gather it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import NamedTuple

import jax
from jax import lax

from tconvjax.geometry import Geometry
from tconvjax.ops.boundary import pad_axis
from tconvjax.ops.lowerings.protocol import Face, Options


class Limits(NamedTuple):
    """Pixels of the small image, all images together."""

    whole: int  # up to here, the sum is taken at once
    strip: int  # beyond, so many at a time


UNLIMITED = Limits(sys.maxsize, sys.maxsize)


def in_strips(correlate: Face, limits: Callable[[jax.Array, jax.Array, Geometry], Limits]) -> Face:
    """Returns a correlate that, on a CPU, sums over strips of the small image, one after another.

    Args:
      correlate: the face.
      limits: of the operands and their geometry.
    """

    def run(x: jax.Array, y: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
        known = all(isinstance(n, int) for n in (*x.shape, *y.shape, *geometry.offset))
        if options.platform != "cpu" or options.spread or not known:
            return correlate(x, y, geometry, options)
        n = geometry.small[0]
        pixels = y.shape[0] * prod(geometry.small)
        whole, strip_pixels = limits(x, y, geometry)
        if pixels <= whole:
            return correlate(x, y, geometry, options)
        least = max(strip_pixels * n // pixels, 1)
        # The last strip is filled up with zeros: as few as twice the length can spare.
        rows = min(range(least, min(2 * least, n) + 1), key=lambda r: -n % r)
        count, spare, s = -(-n // rows), -n % rows, geometry.strides[0]
        window = s * (rows - 1) + geometry.extent[0]
        low, high = geometry.padding[0]
        x, y = pad_axis(x, 1, low, high + s * spare), pad_axis(y, 1, 0, spare)
        strip = replace(
            geometry,
            big=(window, *geometry.big[1:]),
            small=(rows, *geometry.small[1:]),
            offset=(0, *geometry.offset[1:]),
        )

        def of_strip(i: jax.Array) -> jax.Array:
            return correlate(
                lax.dynamic_slice_in_dim(x, i * s * rows, window, axis=1),
                lax.dynamic_slice_in_dim(y, i * rows, rows, axis=1),
                strip,
                options,
            )

        return lax.map(of_strip, jax.numpy.arange(count)).sum(0)

    return run
