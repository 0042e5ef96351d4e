"""Depthwise convolutions tap by tap: shifted images times one number per channel, fused into loops.

A matrix product of one row and one column is all overhead; here XLA adds up the taps in one pass over the image. Valid
for any number of channels per group, fast for few.
"""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _boundary as boundary
from tconvjax._arguments import Call, flip_and_swap
from tconvjax._lowerings import phase
from tconvjax._lowerings.protocol import Lowering
from tconvjax._lowerings.strips import in_columns

COLUMNS = 32  # pixels: XLA on CPU adds them up in registers; of 64, each took ten times as long (jaxlib 0.10.1)


def _terms(x: jax.Array, call: Call) -> list[jax.Array]:
    """Returns the pixels under each tap for each channel of a group, `(batch, *small, groups, 1)`; channels fastest."""
    geometry, g = call.geometry, call.geometry.feature_group_count
    x = x.reshape(*x.shape[:-1], g, x.shape[-1] // g)
    x = boundary.pad(x, (*geometry.padding, (0, 0)), "zeros")
    if call.platform == "cpu":
        # Without the barrier XLA fuses the padding and tests every tap of every pixel for the border.
        x = lax.optimization_barrier(x)
    images = [x]
    for axis in range(geometry.rank):
        s, d, n = geometry.strides[axis], geometry.kernel_dilation[axis], geometry.small[axis]
        images = [
            lax.slice_in_dim(image, d * a, d * a + s * (n - 1) + 1, s, axis=axis + 1)
            for image, a in product(images, range(geometry.kernel_size[axis]))
        ]
    return [image[..., i : i + 1] for image in images for i in range(image.shape[-1])]


def _gather(x: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    geometry, g = call.geometry, call.geometry.feature_group_count
    x, w = (a.astype(call.dtype) for a in (x, w))
    images = _terms(x, call)
    ones = (1,) * (geometry.rank + 1)
    numbers = w.reshape(len(images), *ones, g, w.shape[-1] // g)
    terms = [image * number for image, number in zip(images, numbers, strict=True)]
    shape = (x.shape[0], *geometry.small, w.shape[-1])
    return _sum(terms).reshape(shape) if terms else jnp.zeros(shape, x.dtype)


def _sum(terms: list[jax.Array]) -> jax.Array:
    """Adds halves: the rounding of many terms grows with the depth of the tree, not with their number."""
    half = len(terms) // 2
    return _sum(terms[:half]) + _sum(terms[half:]) if half else terms[0]


def _correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    geometry, g = call.geometry, call.geometry.feature_group_count
    x, y = (a.astype(call.dtype) for a in (x, y))
    if call.platform == "cpu":
        # Without the barrier XLA slices y anew inside the loop that adds up a column.
        y = lax.optimization_barrier(y)
    small = y.reshape(*y.shape[:-1], g, y.shape[-1] // g)
    # In two steps: XLA on CPU splits the results of a sum among its threads, not the summands.
    rows = [(image * small).sum(geometry.rank) for image in _terms(x, call)]
    shape = (*geometry.kernel_size, x.shape[-1] // g, y.shape[-1])
    if not rows:
        return jnp.zeros(shape, x.dtype)
    return jnp.stack(rows).sum(range(1, geometry.rank + 1)).reshape(shape)


def _paint_stride_one(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    """Paints at stride 1 by gathering with the reversed kernel."""
    w = flip_and_swap(w, call.geometry.rank, call.geometry.feature_group_count)
    return _gather(y, w, replace(call, geometry=call.geometry.exchanged))


def _paint(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    return phase.paint(y, w, call, lowering=_STRIDE_ONE, separate=True)


_STRIDE_ONE = Lowering(_gather, _paint_stride_one, _correlate)
ELEMENTWISE = Lowering(_gather, _paint, in_columns(_correlate, COLUMNS))
