"""Phases: a strided convolution as convolutions of stride 1 between the small image and the phases of the big one.

Along an axis, the pixels `q` of the big image with one value of `(q + p) mod s` are a phase. All of them meet the small
image through the same taps, `a = a₀ + s'j` for s' = s / gcd(s, d), so nothing is inserted between pixels and nothing is
multiplied by zero. In the convolutions of stride 1 the small image is the big one, and the phases are its features:

    face of the whole    of its parts
    paint                gather        parts beside one another: depth to space
    gather               paint         space to depth; parts are added
    correlate            correlate     parts are the kernel's taps, beside one another

Neighboring phases with equally many taps share one part (`geometry.phases`): without dilation at most two along an
axis, because k taps on s phases are ceil(k/s) or floor(k/s) for each.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _boundary as boundary
from tconvjax._boundary import pad_axis
from tconvjax._geometry import Geometry, Phases, phases
from tconvjax._lowerings.native import integer_padding
from tconvjax._lowerings.protocol import Lowering, Options

Pick = Callable[[str, Geometry, jax.Array, jax.Array, Options], Lowering]


class _Grid(NamedTuple):
    """How the big image falls into cells of s pixels; one entry per axis."""

    cells: tuple[int, ...]
    first: tuple[int, ...]  # number of the first cell: pixel q lies in cell (q + p) // s
    spacing: tuple[int, ...]  # g = gcd(s, d): every g-th pixel is reached
    phases: tuple[int, ...]  # s / g of them in a cell


def through(pick: Pick, *, apart: bool = False) -> Lowering:
    """Returns the lowering that splits every face into parts and hands them to the lowering that `pick` returns.

    Args:
      pick: `(face, geometry, lhs, rhs, options)` of a part to its lowering.
      apart: every phase is a part of its own.
    """

    def paint(y: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
        geometry, beyond = integer_padding(geometry)
        grid = _grid(geometry)
        i = w.shape[-2]

        def part(chosen: tuple[Phases, ...]) -> jax.Array:
            counts = tuple(c.phases for c in chosen)
            if not all(c.taps for c in chosen):
                shape = (y.shape[0], *grid.cells, geometry.feature_group_count, *counts, i)
                return jnp.zeros(shape, options.preferred_element_type)
            inner, kernel = _inner(geometry, grid, chosen), _part_of(w, chosen, geometry)
            out = pick("gather", inner, y, kernel, options).gather(y, kernel, inner, options)
            return out.reshape(*out.shape[:-1], geometry.feature_group_count, *counts, i)

        out = _beside(part, _classes(geometry, apart=apart), axis=-1 - geometry.rank)
        return boundary.fold(_to_space(out, geometry, grid), geometry.big, beyond, "zeros")

    def gather(x: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
        geometry, pads = integer_padding(geometry)
        grid = _grid(geometry)
        deep = _to_depth(boundary.pad(x, pads, "zeros"), geometry, grid)
        out = []
        for chosen, inner in parts(geometry, apart=apart):
            image, kernel = _part_of_image(deep, chosen, geometry), _part_of(w, chosen, geometry)
            lowering = pick("paint", inner, image, kernel, options)
            out.append(lowering.paint(image, kernel, inner, options))
        return reduce(jnp.add, out)

    def correlate(x: jax.Array, y: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
        geometry, pads = integer_padding(geometry)
        grid = _grid(geometry)
        deep = _to_depth(boundary.pad(x, pads, "zeros"), geometry, grid)
        g = geometry.feature_group_count
        i, o = x.shape[-1] // g, y.shape[-1] // g
        rows = tuple(-(-k // n) for k, n in zip(geometry.kernel_size, grid.phases, strict=True))

        def part(chosen: tuple[Phases, ...]) -> jax.Array:
            taps, counts = tuple(c.taps for c in chosen), tuple(c.phases for c in chosen)
            if not all(taps):
                shape = (*rows, g, *counts, i, o)
                return jnp.zeros(shape, options.preferred_element_type)
            inner, image = _inner(geometry, grid, chosen), _part_of_image(deep, chosen, geometry)
            out = pick("correlate", inner, y, image, options).correlate(y, image, inner, options)
            # (taps, o, g · counts · i) -> (taps, g, counts, i, o)
            out = jnp.flip(out, range(geometry.rank)).reshape(*taps, o, g, *counts, i)
            out = jnp.moveaxis(out, geometry.rank, -1)
            for axis, (row, t) in enumerate(zip(rows, taps, strict=True)):
                out = pad_axis(out, axis, 0, row - t)
            return out

        by_tap = [tuple(sorted(c, key=lambda c: c.tap)) for c in _classes(geometry, apart=apart)]
        out = _beside(part, by_tap, axis=-2 - geometry.rank)
        # (rows, g, phases, i, o) -> (row, phase, row, phase, .., i, g, o)
        r = geometry.rank
        out = out.transpose(
            *(axis for a in range(r) for axis in (a, r + 1 + a)), 2 * r + 1, r, 2 * r + 2
        )
        whole = (row * n for row, n in zip(rows, grid.phases, strict=True))
        out = out.reshape(*whole, i, g * o)
        return out[tuple(slice(k) for k in geometry.kernel_size)]

    return Lowering(gather, paint, correlate)


def parts(
    geometry: Geometry, *, apart: bool = False
) -> Iterator[tuple[tuple[Phases, ...], Geometry]]:
    """Yields the phases that share a part, and its geometry; phases that no tap meets have none."""
    grid = _grid(geometry)
    for chosen in product(*_classes(geometry, apart=apart)):
        if all(c.taps for c in chosen):
            yield chosen, _inner(geometry, grid, chosen)


def _classes(geometry: Geometry, *, apart: bool) -> list[tuple[Phases, ...]]:
    return [
        phases(*axis, apart=apart)
        for axis in zip(
            geometry.kernel_size, geometry.strides, geometry.kernel_dilation, strict=True
        )
    ]


def _grid(geometry: Geometry) -> _Grid:
    first = tuple(p // s for p, s in zip(geometry.offset, geometry.strides, strict=True))
    cells = tuple(
        (m - 1 + p) // s - lo + 1
        for m, p, s, lo in zip(geometry.big, geometry.offset, geometry.strides, first, strict=True)
    )
    spacing = tuple(
        gcd(s, d) for s, d in zip(geometry.strides, geometry.kernel_dilation, strict=True)
    )
    inside = tuple(s // g for s, g in zip(geometry.strides, spacing, strict=True))
    return _Grid(cells, first, spacing, inside)


def _inner(geometry: Geometry, grid: _Grid, chosen: tuple[Phases, ...]) -> Geometry:
    """Returns the geometry of a part: from the small image (as the big one) to the cells, kernel reversed.

    Cell m of a phase reads pixel `m + first − shift − d'j` through its tap j, for d' = d / gcd(s, d).
    """
    taps = tuple(c.taps for c in chosen)
    dilation = tuple(d // g for d, g in zip(geometry.kernel_dilation, grid.spacing, strict=True))
    offset = tuple(
        c.shift + d * (c.taps - 1) - lo
        for c, d, lo in zip(chosen, dilation, grid.first, strict=True)
    )
    ones = (1,) * geometry.rank
    return Geometry(
        geometry.small, grid.cells, taps, ones, dilation, offset, geometry.feature_group_count
    )


def _part_of(w: jax.Array, chosen: tuple[Phases, ...], geometry: Geometry) -> jax.Array:
    """Returns the kernel of a part: `(*taps, out // groups, groups · phases · in // groups)`, taps reversed."""
    rank, g = geometry.rank, geometry.feature_group_count
    for axis, c in enumerate(chosen):
        step = geometry.strides[axis] // gcd(geometry.strides[axis], geometry.kernel_dilation[axis])
        stop = c.tap + c.taps * step
        w = lax.slice_in_dim(w, c.tap, min(stop, w.shape[2 * axis]), axis=2 * axis)
        w = pad_axis(w, 2 * axis, 0, stop - c.tap - w.shape[2 * axis])
        w = w.reshape(*w.shape[: 2 * axis], c.taps, step, *w.shape[2 * axis + 1 :])
        w = lax.slice_in_dim(w, 0, c.phases, axis=2 * axis + 1)
    i, o = w.shape[-2:]
    w = w.reshape(
        *w.shape[:-1], g, o // g
    )  # (taps, phases, .., in // groups, groups, out // groups)
    w = w.transpose(
        *range(0, 2 * rank, 2), 2 * rank + 2, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank
    )
    w = jnp.flip(w, range(rank))
    return w.reshape(*w.shape[: rank + 1], g * prod(c.phases for c in chosen) * i)


def _part_of_image(deep: jax.Array, chosen: tuple[Phases, ...], geometry: Geometry) -> jax.Array:
    """Returns the phases of a part as features: `(batch, *cells, groups · phases · in // groups)`."""
    first = geometry.rank + 2
    for axis, c in enumerate(chosen, start=first):
        deep = lax.slice_in_dim(deep, c.first, c.first + c.phases, axis=axis)
    return deep.reshape(*deep.shape[: first - 1], prod(deep.shape[first - 1 :]))


def _beside(
    part: Callable[[tuple[Phases, ...]], jax.Array], classes: list[tuple[Phases, ...]], axis: int
) -> jax.Array:
    """Returns the parts of all combinations of classes, laid beside one another along the axes from `axis` on."""
    if not classes:
        return part(())
    head, *tail = classes
    rows = [_beside(partial(_prepended, part, c), tail, axis + 1) for c in head]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis)


def _prepended(
    part: Callable[[tuple[Phases, ...]], jax.Array], first: Phases, rest: tuple[Phases, ...]
) -> jax.Array:
    return part((first, *rest))


def _to_space(deep: jax.Array, geometry: Geometry, grid: _Grid) -> jax.Array:
    """(batch, *cells, groups, *phases, in // groups) -> (batch, *big, in)."""
    r = geometry.rank
    order = (axis for a in range(r) for axis in (1 + a, 2 + r + a))
    x = deep.transpose(0, *order, 1 + r, 2 + 2 * r)
    pixels = (n * m for n, m in zip(grid.cells, grid.phases, strict=True))
    x = x.reshape(deep.shape[0], *pixels, deep.shape[1 + r] * deep.shape[-1])
    for axis in range(r):
        g, s, p = grid.spacing[axis], geometry.strides[axis], geometry.offset[axis]
        start = s * grid.first[axis] - p
        stop = geometry.big[axis] - start - (s * grid.cells[axis] - (g - 1))
        x = pad_axis(x, axis + 1, start, stop, interior=g - 1)
    return x


def _to_depth(x: jax.Array, geometry: Geometry, grid: _Grid) -> jax.Array:
    """Adjoint of `_to_space`, and its inverse where every pixel is reached."""
    r, groups = geometry.rank, geometry.feature_group_count
    for axis in range(r):
        g, s, p = grid.spacing[axis], geometry.strides[axis], geometry.offset[axis]
        start = p - s * grid.first[axis]
        stop = s * grid.cells[axis] - start - geometry.big[axis]
        x = pad_axis(x, axis + 1, start, stop)
        x = lax.slice_in_dim(x, 0, s * grid.cells[axis], g, axis=axis + 1)
    split = (n for cell in zip(grid.cells, grid.phases, strict=True) for n in cell)
    x = x.reshape(x.shape[0], *split, groups, x.shape[-1] // groups)
    return x.transpose(0, *range(1, 2 * r, 2), 1 + 2 * r, *range(2, 2 * r + 1, 2), 2 + 2 * r)
