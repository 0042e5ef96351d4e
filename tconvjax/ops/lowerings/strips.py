"""Kernel gradients in strips: the sum over pixels, about a thousand summands at a time.

On a CPU a product whose contracted axis is much longer than its caches loses half its speed or more, and the patches of
a whole batch outgrow the memory that is quickly given. Strips lie along the leading spatial axis and keep the batch,
whose images are neighbors in memory there.

Where that axis may be spread over several devices, the sum is taken at once: to cut strips from a spread axis the
compiler would gather it.
"""

from dataclasses import replace
from math import prod

import jax
from jax import lax

from tconvjax.geometry import Geometry
from tconvjax.ops.boundary import pad_axis
from tconvjax.ops.lowerings.protocol import Face, Options

# Pixels of the small image, all images together. 4096 are as fast at once as in strips; 16384 take up to four times as
# long, and in strips of 512 to 2048 the time hardly differs.
WHOLE = 4096
STRIP = 1024


def in_strips(correlate: Face) -> Face:
    """Returns a correlate that, on a CPU, sums over strips of the small image, one after another."""

    def run(x: jax.Array, y: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
        known = all(isinstance(n, int) for n in (*x.shape, *y.shape, *geometry.offset))
        if options.platform != "cpu" or options.spread or not known:
            return correlate(x, y, geometry, options)
        n = geometry.small[0]
        pixels = y.shape[0] * prod(geometry.small)
        parts = -(-pixels // STRIP) if pixels > WHOLE else 1
        count = next((c for c in range(parts, n) if n % c == 0), n) if parts > 1 else 1
        if count == 1:
            return correlate(x, y, geometry, options)
        s, rows = geometry.strides[0], n // count
        window = s * (rows - 1) + geometry.extent[0]
        x = pad_axis(x, 1, *geometry.padding[0])
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
