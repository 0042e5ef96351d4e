"""Phases: a strided convolution as convolutions of stride 1 between the small image and the phases of the big one.

Along an axis, the pixels `q` of the big image with one value of `(q + p) mod s` are a phase. They all meet the small
image through the same taps, `a = a₀ + s'j` for s' = s / gcd(s, d), so no zeros are inserted or multiplied. In the
convolutions of stride 1 the small image takes the place of the big one, and the phases become features:

    face of the whole    of its parts
    paint                gather        parts are concatenated: depth to space
    gather               paint         space to depth; parts are added
    correlate            correlate     parts are taps of the kernel, concatenated

Neighboring phases with equally many taps share one part (`_geometry.PhaseRange`): without dilation at most two along
an axis, because k taps on s phases are ceil(k/s) or floor(k/s) for each.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from math import gcd, prod

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _boundary as boundary
from tconvjax._arguments import Call
from tconvjax._boundary import pad_axis
from tconvjax._geometry import (
    Geometry,
    Grid,
    PhaseRange,
    grid_of,
    part_geometry,
    parts,
    ranges_per_axis,
)
from tconvjax._lowerings import cost
from tconvjax._lowerings.native import DILATED, integer_padding
from tconvjax._lowerings.patches import MATMUL, PLANES
from tconvjax._lowerings.protocol import Lowering


def paint(
    y: jax.Array,
    w: jax.Array,
    call: Call,
    *,
    lowering: Lowering | None = None,
    separate: bool = False,
) -> jax.Array:
    """The transposed convolution: every part gathers from the small image.

    Args:
      y: the small image.
      w: kernel.
      call: resolved.
      lowering: of all parts; None takes the best of `PARTS` for each.
      separate: makes every phase a part of its own.
    """
    geometry, outer_pads = integer_padding(call.geometry)
    grid, g, i = grid_of(geometry), geometry.feature_group_count, w.shape[-2]

    def part(ranges: tuple[PhaseRange, ...]) -> jax.Array:
        counts = tuple(c.size for c in ranges)
        if not all(c.taps for c in ranges):
            return jnp.zeros((y.shape[0], *grid.cells, g, *counts, i), call.dtype)
        inner, kernel = (
            replace(call, geometry=part_geometry(geometry, grid, ranges)),
            _part_kernel(w, ranges, geometry),
        )
        part_lowering = lowering or _best("gather", y, kernel, inner)
        out = part_lowering.gather(y, kernel, inner)
        return out.reshape(*out.shape[:-1], g, *counts, i)

    out = _assembled(part, ranges_per_axis(geometry, separate=separate), axis=-1 - geometry.rank)
    x = _to_space(out, geometry, grid)
    return boundary.fold(x, call.geometry.big, outer_pads, "zeros") if outer_pads else x


def gather(x: jax.Array, w: jax.Array, call: Call) -> jax.Array:
    """The convolution: every part paints the small image, and the results are added."""
    geometry, pads = integer_padding(call.geometry)
    x = boundary.pad(x, pads, "zeros") if pads else x
    deep = _to_depth(x, geometry, grid_of(geometry))
    out = []
    for ranges, inner in parts(geometry):
        image, kernel = _part_image(deep, ranges, geometry), _part_kernel(w, ranges, geometry)
        lowering = _best("paint", image, kernel, replace(call, geometry=inner))
        out.append(lowering.paint(image, kernel, replace(call, geometry=inner)))
    return reduce(jnp.add, out)


def correlate(x: jax.Array, y: jax.Array, call: Call) -> jax.Array:
    """The kernel gradient: every part correlates some taps."""
    geometry, pads = integer_padding(call.geometry)
    x = boundary.pad(x, pads, "zeros") if pads else x
    grid = grid_of(geometry)
    deep = _to_depth(x, geometry, grid)
    g, rank = geometry.feature_group_count, geometry.rank
    i, o = x.shape[-1] // g, y.shape[-1] // g
    rows = tuple(-(-k // n) for k, n in zip(geometry.kernel_size, grid.phase_counts, strict=True))

    def part(ranges: tuple[PhaseRange, ...]) -> jax.Array:
        taps, counts = tuple(c.taps for c in ranges), tuple(c.size for c in ranges)
        if not all(taps):
            return jnp.zeros((*rows, g, *counts, i, o), call.dtype)
        inner = replace(call, geometry=part_geometry(geometry, grid, ranges))
        image = _part_image(deep, ranges, geometry)
        out = _best("correlate", y, image, inner).correlate(y, image, inner)
        # (taps, o, g · counts · i) -> (taps, g, counts, i, o)
        out = jnp.flip(out, range(rank)).reshape(*taps, o, g, *counts, i)
        out = jnp.moveaxis(out, rank, -1)
        for axis, (row, t) in enumerate(zip(rows, taps, strict=True)):
            out = pad_axis(out, axis, 0, row - t)
        return out

    ranges_by_tap = [
        tuple(sorted(c, key=lambda c: c.tap)) for c in ranges_per_axis(geometry, separate=False)
    ]
    out = _assembled(part, ranges_by_tap, axis=-2 - rank)
    # (rows, g, phases, i, o) -> (row, phase, row, phase, .., i, g, o)
    interleaved = (axis for a in range(rank) for axis in (a, rank + 1 + a))
    out = out.transpose(*interleaved, 2 * rank + 1, rank, 2 * rank + 2)
    tap_counts = (row * n for row, n in zip(rows, grid.phase_counts, strict=True))
    out = out.reshape(*tap_counts, i, g * o)
    return out[tuple(slice(k) for k in geometry.kernel_size)]


PHASE = Lowering(gather, paint, correlate)
PARTS = {"matmul": MATMUL, "planes": PLANES, "dilated": DILATED}  # the names of `cost.PARTS`


def _best(face: str, lhs: jax.Array, rhs: jax.Array, call: Call) -> Lowering:
    """Returns the lowering that `cost` expects to be fastest for a part."""
    return PARTS[cost.choose(face, call.geometry, lhs.shape, rhs.shape, call.platform, cost.PARTS)]


def _part_kernel(w: jax.Array, ranges: tuple[PhaseRange, ...], geometry: Geometry) -> jax.Array:
    """Returns the kernel of a part: `(*taps, out // groups, groups · phases · in // groups)`, taps reversed."""
    rank, g = geometry.rank, geometry.feature_group_count
    for axis, c in enumerate(ranges):
        step = geometry.strides[axis] // gcd(geometry.strides[axis], geometry.kernel_dilation[axis])
        stop = c.tap + c.taps * step
        w = lax.slice_in_dim(w, c.tap, min(stop, w.shape[2 * axis]), axis=2 * axis)
        if w.shape[2 * axis] < stop - c.tap:
            w = pad_axis(w, 2 * axis, 0, stop - c.tap - w.shape[2 * axis])
        w = w.reshape(*w.shape[: 2 * axis], c.taps, step, *w.shape[2 * axis + 1 :])
        w = lax.slice_in_dim(w, 0, c.size, axis=2 * axis + 1)
    i, o = w.shape[-2:]
    # (taps, phases, .., in // groups, groups, out // groups)
    w = w.reshape(*w.shape[:-1], g, o // g)
    w = w.transpose(
        *range(0, 2 * rank, 2), 2 * rank + 2, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank
    )
    w = jnp.flip(w, range(rank))
    return w.reshape(*w.shape[: rank + 1], g * prod(c.size for c in ranges) * i)


def _part_image(deep: jax.Array, ranges: tuple[PhaseRange, ...], geometry: Geometry) -> jax.Array:
    """Returns the phases of a part as features: `(batch, *cells, groups · phases · in // groups)`."""
    first = geometry.rank + 2
    for axis, c in enumerate(ranges, start=first):
        deep = lax.slice_in_dim(deep, c.first, c.first + c.size, axis=axis)
    return deep.reshape(*deep.shape[: first - 1], prod(deep.shape[first - 1 :]))


def _assembled(
    part: Callable[[tuple[PhaseRange, ...]], jax.Array],
    ranges_per_axis: list[tuple[PhaseRange, ...]],
    axis: int,
) -> jax.Array:
    """Returns the parts of all combinations of ranges, concatenated along the axes from `axis` on."""
    if not ranges_per_axis:
        return part(())
    head, *tail = ranges_per_axis
    rows = [_assembled(partial(_prepended, part, c), tail, axis + 1) for c in head]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis)


def _prepended(
    part: Callable[[tuple[PhaseRange, ...]], jax.Array],
    first: PhaseRange,
    rest: tuple[PhaseRange, ...],
) -> jax.Array:
    return part((first, *rest))


def _to_space(deep: jax.Array, geometry: Geometry, grid: Grid) -> jax.Array:
    """(batch, *cells, groups, *phases, in // groups) -> (batch, *big, in)."""
    r = geometry.rank
    interleaved = (axis for a in range(r) for axis in (1 + a, 2 + r + a))
    x = deep.transpose(0, *interleaved, 1 + r, 2 + 2 * r)
    pixels = (n * m for n, m in zip(grid.cells, grid.phase_counts, strict=True))
    x = x.reshape(deep.shape[0], *pixels, deep.shape[1 + r] * deep.shape[-1])
    pads = [(0, 0, 0)]
    for axis in range(r):
        g, s, p = grid.spacing[axis], geometry.strides[axis], geometry.offset[axis]
        start = s * grid.first[axis] - p
        stop = geometry.big[axis] - start - (s * grid.cells[axis] - (g - 1))
        pads.append((start, stop, g - 1))
    if all(pad == (0, 0, 0) for pad in pads):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [*pads, (0, 0, 0)])


def _to_depth(x: jax.Array, geometry: Geometry, grid: Grid) -> jax.Array:
    """Adjoint of `_to_space`, and its inverse where every pixel is reached."""
    r, groups = geometry.rank, geometry.feature_group_count
    for axis in range(r):
        g, s, p = grid.spacing[axis], geometry.strides[axis], geometry.offset[axis]
        start = p - s * grid.first[axis]
        stop = s * grid.cells[axis] - start - geometry.big[axis]
        x = pad_axis(x, axis + 1, start, stop)
        x = lax.slice_in_dim(x, 0, s * grid.cells[axis], g, axis=axis + 1)
    split = (n for cell in zip(grid.cells, grid.phase_counts, strict=True) for n in cell)
    x = x.reshape(x.shape[0], *split, groups, x.shape[-1] // groups)
    return x.transpose(0, *range(1, 2 * r, 2), 1 + 2 * r, *range(2, 2 * r + 1, 2), 2 + 2 * r)
