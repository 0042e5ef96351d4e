"""Patches times matrix: taps become channels, and the convolution becomes a product.

Along an axis, `unroll` collects for every pixel of the small image the k pixels under its taps; `overlap_add` is its
adjoint. `matmul` unrolls all axes. `planes` unrolls all but the last two, which stay a convolution of XLA's: the form
for three axes and more, where a CPU's convolution is a slow generic loop.

Groups are a batch axis of the product. Batch and space stay axes of their own, so they keep their shards and symbolic
sizes.
"""

from dataclasses import replace
from functools import reduce
from math import prod

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax._arguments import Call
from tconvjax._boundary import pad_axis
from tconvjax._geometry import Geometry
from tconvjax._lowerings import native
from tconvjax._lowerings.protocol import Lowering
from tconvjax._lowerings.strips import UNLIMITED, Limits, in_strips


def unroll(x: jax.Array, axis: int, geometry: Geometry, taps_axis: int) -> jax.Array:
    """Returns the pixels under the taps along one spatial axis: `big` becomes `small`, the taps a new `taps_axis`.

    At dilation 1, s neighboring taps lie on the s neighboring pixels of a cell, so if s divides k, k/s blocks are taken
    instead of k combs.
    """
    k, s = geometry.kernel_size[axis], geometry.strides[axis]
    d, n = geometry.kernel_dilation[axis], geometry.small[axis]
    width = s if d == 1 and k % s == 0 else 1
    x = pad_axis(x, axis + 1, *geometry.padding[axis])
    taps = []
    for start in range(0, d * k, d * width):
        if width == 1:
            tap = lax.slice_in_dim(x, start, start + s * (n - 1) + 1, s, axis=axis + 1)
            taps.append(jnp.expand_dims(tap, taps_axis))
        else:
            cells = lax.slice_in_dim(x, start, start + s * n, axis=axis + 1)
            cells = cells.reshape(*x.shape[: axis + 1], n, s, *x.shape[axis + 2 :])
            taps.append(jnp.moveaxis(cells, axis + 2, taps_axis))
    return jnp.concatenate(taps, taps_axis)


def overlap_add(patches: jax.Array, axis: int, geometry: Geometry, taps_axis: int) -> jax.Array:
    """Adjoint of `unroll`: adds the values along `taps_axis` onto the big image.

    At dilation 1, s neighboring taps fill s neighboring pixels of every cell, so ceil(k/s) blocks are added instead of
    k combs.
    """
    k, s = geometry.kernel_size[axis], geometry.strides[axis]
    d, n, p = geometry.kernel_dilation[axis], geometry.small[axis], geometry.offset[axis]
    width = s if d == 1 else 1
    blocks = -(-k // width)
    patches = pad_axis(patches, taps_axis, 0, blocks * width - k)
    cells = []
    for j in range(blocks):
        block = lax.slice_in_dim(patches, j * width, (j + 1) * width, axis=taps_axis)
        cell = jnp.moveaxis(block, taps_axis, axis + 2)
        cell = cell.reshape(*cell.shape[: axis + 1], n * width, *cell.shape[axis + 3 :])
        # Entry width·i + r lands on pixel s·i + d·j·width + r − p, for r < width.
        start = d * j * width - p
        stop = geometry.big[axis] - start - (s * (n - 1) + width)
        cells.append(pad_axis(cell, axis + 1, start, stop, interior=s - 1 if width == 1 else 0))
    return reduce(jnp.add, cells)


# matmul


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns `(batch, *small, taps, in)`, by as many slices as the kernel sizes add up to."""
    for axis in reversed(range(geometry.rank)):
        x = unroll(x, axis, geometry, taps_axis=geometry.rank + 1)
    return x.reshape(*x.shape[: geometry.rank + 1], prod(geometry.kernel_size), x.shape[-1])


def _matmul_gather(x: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    patches, kernel = _patches(x, call.geometry), _by_taps(w)
    g = call.geometry.feature_group_count
    if g == 1:
        return jnp.einsum("...p,po->...o", _flat(patches), _flat(kernel, 0), **call.product_options)
    patches, kernel = _split(patches, g), _split(kernel, g)
    out = jnp.einsum("...tgi,tigo->...go", patches, kernel, **call.product_options)
    return _flat(out)


def _matmul_paint(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    geometry, kernel = call.geometry, _by_taps(w)
    g = geometry.feature_group_count
    if g == 1:
        x = jnp.einsum("...o,po->...p", y, _flat(kernel, 0), **call.product_options)
    else:
        kernel = _split(kernel, g)
        x = jnp.einsum("...go,tigo->...tgi", _split(y, g), kernel, **call.product_options)
    x = x.reshape(*y.shape[:-1], *geometry.kernel_size, g * w.shape[-2])
    for axis in range(geometry.rank):
        x = overlap_add(x, axis, geometry, taps_axis=geometry.rank + 1)
    return x


def _matmul_correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    geometry = call.geometry
    patches, g = _patches(x, geometry), geometry.feature_group_count
    rows, columns = y.shape[-1] // g, patches.shape[-2] * patches.shape[-1] // g
    # XLA on CPU is up to twice as fast if the smaller side of the result is its rows.
    fewer = isinstance(rows, int) and isinstance(columns, int) and rows < columns
    if g == 1:
        patches = _flat(patches)
        if fewer:
            out = _kept_as_written(
                jnp.einsum("...o,...p->op", y, patches, **call.product_options), y
            ).T
        else:
            out = _kept_as_written(
                jnp.einsum("...p,...o->po", patches, y, **call.product_options), y
            )
    else:
        patches, y = _split(patches, g), _split(y, g)
        if fewer:
            out = jnp.einsum("...go,...tgi->otgi", y, patches, **call.product_options)
            out = out.transpose(1, 3, 2, 0)
        else:
            out = jnp.einsum("...tgi,...go->tigo", patches, y, **call.product_options)
    return out.reshape(*geometry.kernel_size, x.shape[-1] // g, rows * g)


def _kept_as_written(product: jax.Array, operand: jax.Array) -> jax.Array:
    """Keeps XLA on CPU from transposing a product of mixed dtypes, which it cannot run (seen in jaxlib 0.10.1).

    Without the barrier: "Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32".
    """
    return lax.optimization_barrier(product) if product.dtype != operand.dtype else product


def _by_taps(w: jax.Array) -> jax.Array:
    """(*kernel_size, i, o) -> (taps, i, o)."""
    return w.reshape(prod(w.shape[:-2]), *w.shape[-2:])


def _split(x: jax.Array, groups: int) -> jax.Array:
    """(.., g·c) -> (.., g, c)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _flat(x: jax.Array, axis: int = -2) -> jax.Array:
    """Merges two axes, `axis` and the one behind it."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


# Bytes of patches: beyond WHOLE every call allocates memory from the system; between strips of 2 and 8 MB the time
# hardly differs.
WHOLE = 2**24
STRIP = 2**22


def _limits(x: jax.Array, _: jax.Array, geometry: Geometry) -> Limits:
    taps = prod(geometry.kernel_size)
    if taps == 1:  # patches are the image itself: strips would save no copy
        return UNLIMITED
    pixel = max(1, x.dtype.itemsize * taps * x.shape[-1])
    return Limits(WHOLE // pixel, max(1, STRIP // pixel))


MATMUL = Lowering(_matmul_gather, _matmul_paint, in_strips(_matmul_correlate, _limits))


# planes: unroll the leading axis, move its pixels into the batch, and repeat until two axes are left.


def _slabs(x: jax.Array, geometry: Geometry) -> jax.Array:
    """(batch, big_0, *rest, g·i) -> (batch · small_0, *rest, g·k_0·i)."""
    g, k, n = geometry.feature_group_count, geometry.kernel_size[0], geometry.small[0]
    x = _split(x, g)
    x = unroll(x, 0, geometry, taps_axis=x.ndim - 1)
    return x.reshape(x.shape[0] * n, *x.shape[2:-3], g * k * x.shape[-1])


def _slab_kernel(w: jax.Array) -> jax.Array:
    """(k_0, *rest, i, o) -> (*rest, k_0·i, o)."""
    w = jnp.moveaxis(w, 0, -3)
    return w.reshape(*w.shape[:-3], w.shape[-3] * w.shape[-2], w.shape[-1])


def _planes_gather(x: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    geometry = call.geometry
    if geometry.rank <= 2:
        return native.gather(x, w, call)
    slabs, kernel = _slabs(x, geometry), _slab_kernel(w)
    out = _planes_gather(slabs, kernel, replace(call, geometry=geometry.plane))
    return out.reshape(x.shape[0], geometry.small[0], *out.shape[1:])


def _planes_paint(y: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    geometry = call.geometry
    if geometry.rank <= 2:
        return native.paint(y, w, call)
    planes = y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])
    out = _planes_paint(planes, _slab_kernel(w), replace(call, geometry=geometry.plane))
    g, k, i = geometry.feature_group_count, geometry.kernel_size[0], w.shape[-2]
    slabs = out.reshape(*y.shape[:2], *out.shape[1:-1], g, k, i)
    out = overlap_add(slabs, 0, geometry, taps_axis=slabs.ndim - 2)
    return out.reshape(*out.shape[:-2], g * i)


def _planes_correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    geometry = call.geometry
    if geometry.rank <= 2:
        return native.correlate(x, y, call)
    planes = y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])
    out = _planes_correlate(_slabs(x, geometry), planes, replace(call, geometry=geometry.plane))
    k = geometry.kernel_size[0]
    out = out.reshape(*out.shape[:-2], k, out.shape[-2] // k, out.shape[-1])
    return jnp.moveaxis(out, -3, 0)


PLANES = Lowering(_planes_gather, _planes_paint, _planes_correlate)
