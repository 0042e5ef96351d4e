"""How each face reaches XLA: the same numbers by different programs.

A lowering is one function per face, `f(lhs, rhs, geometry, options)`, for a single problem: the canonical layout of
`tconvjax.ops.faces` without its stack axis,

    x  (batch, *big, in)        w  (*kernel_size, in // groups, out)        y  (batch, *small, out)

    dilated            `lax.conv_general_dilated` for all three; the transpose inserts zeros (lhs_dilation)
    linear_transpose   the definition: JAX's own transposition of the forward convolution
    matmul             patches times matrix; the overlap-add of the transpose is the adjoint of patch extraction

`auto` picks one per face, platform and geometry, in `choose`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax.geometry import Geometry, Pairs
from tconvjax.ops import boundary, sharding
from tconvjax.ops.boundary import pad_axis

Implementation = Literal["auto", "matmul", "dilated", "linear_transpose"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
# References that reach the user's program as JAX's own operations, without a primitive of ours.
PLAIN = ("dilated", "linear_transpose")


class Options(NamedTuple):
    """What every lowering hands on to XLA's products."""

    precision: lax.PrecisionLike
    preferred_element_type: jnp.dtype


Lowering = Callable[[jax.Array, jax.Array, Geometry, Options], jax.Array]


def compute(
    face: str,
    lhs: jax.Array,
    rhs: jax.Array,
    platform: str | None,
    implementation: str,
    *,
    geometry: Geometry,
    dtype: jnp.dtype,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Runs a face on stacked operands in plain JAX; half precision accumulates in float32."""
    # Ours, whatever promotion the caller allows in their own code.
    with jax.numpy_dtype_promotion("standard"):
        operand_dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
        wide = jnp.promote_types(operand_dtype, dtype)
    options = Options(precision, accumulator(wide))
    if implementation == "auto":
        implementation = choose(face, geometry, platform)
    one = LOWERINGS[implementation][face]

    def run(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return one(lhs, rhs, geometry, options)

    lhs, rhs = lhs.astype(operand_dtype), rhs.astype(operand_dtype)
    if lhs.shape[0] == 1:
        out = run(lhs[0], rhs[0])[None]
    elif platform == "cpu":
        # One problem after another: the grouped convolution that `vmap` over kernels would make is several times
        # slower on a CPU than its parts.
        out = lax.map(lambda operands: run(*operands), (lhs, rhs))
    else:
        out = jax.vmap(run)(lhs, rhs)
    return out.astype(dtype)


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which sums of `dtype` are taken: float32 for half precision."""
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if half else jnp.dtype(dtype)


def choose(face: str, geometry: Geometry, platform: str | None) -> str:
    """Returns the lowering that 'auto' stands for.

    On a CPU, XLA computes kernel gradients, groups, three-dimensional and zero-inserted convolutions by slow
    generic loops, so these go through a matrix product. Elsewhere the native convolution does all three faces.
    """
    if platform != "cpu":
        return "dilated"
    plain = geometry.rank <= 2 and geometry.feature_group_count == 1
    if face == "gather" and plain:
        return "dilated"
    if face == "paint" and plain and prod(geometry.strides) == 1:
        return "dilated"
    return "matmul"


# dilated: one convolution of XLA's per face.


def _dimension_numbers(rank: int, lhs: str, rhs: str) -> lax.ConvDimensionNumbers:
    """Dimension numbers with spatial axes between the first and the two (one) last letters."""
    space = "".join(chr(ord("0") + axis) for axis in range(rank))
    return lax.conv_dimension_numbers(
        (1,) * (rank + 2),
        (1,) * (rank + 2),
        (lhs.replace("*", space), rhs.replace("*", space), f"N{space}C"),
    )


def _roomy(geometry: Geometry) -> Geometry:
    """Adds one pixel to the end of the big image along axes on which XLA would abort the process.

    With an axis of stride > 1 that is padded on neither side, XLA's algebraic simplifier on CPU may exchange image and
    kernel of a zero-inserted convolution and then fail its own shape check (seen in jaxlib 0.10.1, 0.10.2 and 0.12.0).
    """
    spare = (
        int(s > 1 and p == e - 1 and m == s * (n - 1) + 2 - e)
        for s, p, e, m, n in zip(
            geometry.strides,
            geometry.offset,
            geometry.extent,
            geometry.big,
            geometry.small,
            strict=True,
        )
    )
    return replace(geometry, big=tuple(m + r for m, r in zip(geometry.big, spare, strict=True)))


def _dilated_gather(x: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    geometry, pads = _integer_padding(geometry)
    x = boundary.pad(x, pads, "zeros")
    roomy = _roomy(geometry)  # for the transpose that JAX may make of this
    for axis, (m, r) in enumerate(zip(geometry.big, roomy.big, strict=True), start=1):
        x = pad_axis(x, axis, 0, r - m)
    # Pixels that no window reaches may stay: a negative padding is for crops alone, and ONNX has none.
    pads = tuple(
        (lo, hi if hi >= 0 else min(hi + s - 1, 0))
        for (lo, hi), s in zip(roomy.padding, geometry.strides, strict=True)
    )
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        pads,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
        **options._asdict(),
    )


def _integer_padding(geometry: Geometry) -> tuple[Geometry, Pairs]:
    """Splits off the padding where it depends on a symbolic size, which XLA's convolution does not take."""
    pads = geometry.padding
    if all(isinstance(p, int) for pair in pads for p in pair):
        return geometry, ((0, 0),) * geometry.rank
    big = tuple(m + lo + hi for m, (lo, hi) in zip(geometry.big, pads, strict=True))
    return replace(geometry, big=big, offset=(0,) * geometry.rank), pads


def _dilated_paint(y: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    geometry, beyond = _integer_padding(geometry)
    roomy = _roomy(geometry)
    pads = tuple(
        (e - 1 - lo, e - 1 - hi) for e, (lo, hi) in zip(geometry.extent, roomy.padding, strict=True)
    )
    out = lax.conv_general_dilated(
        y,
        flip_and_swap(w, geometry.rank, geometry.feature_group_count),
        (1,) * geometry.rank,
        pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=_dimension_numbers(geometry.rank, "N*C", "*IO"),
        feature_group_count=geometry.feature_group_count,
        **options._asdict(),
    )
    for axis, (m, r) in enumerate(zip(geometry.big, roomy.big, strict=True), start=1):
        out = pad_axis(out, axis, 0, m - r)
    return boundary.fold(out, geometry.big, beyond, "zeros")


def _dilated_correlate(
    x: jax.Array, y: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    geometry, pads = _integer_padding(geometry)
    x = boundary.pad(x, pads, "zeros")
    # The batch is contracted like a feature, the small image is the kernel: strides and dilation change places. Groups
    # lie side by side as features: `batch_group_count`, which says the same of x as it is and which JAX's own gradient
    # of a grouped convolution uses, gives wrong numbers where the batch is sharded over one axis of a mesh that has
    # others (jaxlib 0.10.1 and 0.12.0).
    g = geometry.feature_group_count
    groups = jnp.moveaxis(x.reshape(*x.shape[:-1], g, x.shape[-1] // g), -2, 0)
    out = lax.conv_general_dilated(
        groups.reshape(-1, *groups.shape[2:]),
        y,
        geometry.kernel_dilation,
        geometry.padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=_dimension_numbers(geometry.rank, "C*N", "I*O"),
        feature_group_count=g,
        **options._asdict(),
    )
    return jnp.moveaxis(out, 0, -2)


# linear_transpose: the definition.


def _transposed_paint(
    y: jax.Array, w: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    y, w = (a.astype(options.preferred_element_type) for a in (y, w))
    in_features = w.shape[-2] * geometry.feature_group_count
    x = sharding.like(y, (y.shape[0], *geometry.big, in_features), y.dtype)
    (out,) = jax.linear_transpose(lambda x: _dilated_gather(x, w, geometry, options), x)(y)
    return out


def _transposed_correlate(
    x: jax.Array, y: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    x, y = (a.astype(options.preferred_element_type) for a in (x, y))
    in_features = x.shape[-1] // geometry.feature_group_count
    w = sharding.like(x, (*geometry.kernel_size, in_features, y.shape[-1]), x.dtype)
    (out,) = jax.linear_transpose(lambda w: _dilated_gather(x, w, geometry, options), w)(y)
    return out


# matmul: patches times matrix. Groups are a batch axis of the product; batch and space stay axes of their own, so that
# their shards and symbolic sizes do.


def _matmul_gather(x: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    patches, kernel = extract_patches(x, geometry), _taps(w, geometry)
    out = jnp.einsum(
        "...tgi,tigo->...go", _grouped(patches, x, geometry), kernel, **options._asdict()
    )
    return out.reshape(*out.shape[:-2], w.shape[-1])


def _matmul_paint(y: jax.Array, w: jax.Array, geometry: Geometry, options: Options) -> jax.Array:
    g = geometry.feature_group_count
    grouped = y.reshape(*y.shape[:-1], g, y.shape[-1] // g)
    painted = jnp.einsum("...go,tigo->...tgi", grouped, _taps(w, geometry), **options._asdict())
    return overlap_add(
        painted.reshape(*y.shape[:-1], *geometry.kernel_size, w.shape[-2] * g), geometry
    )


def _matmul_correlate(
    x: jax.Array, y: jax.Array, geometry: Geometry, options: Options
) -> jax.Array:
    g = geometry.feature_group_count
    patches = _grouped(extract_patches(x, geometry), x, geometry)
    grouped = y.reshape(*y.shape[:-1], g, y.shape[-1] // g)
    out = jnp.einsum("...tgi,...go->tigo", patches, grouped, **options._asdict())
    return out.reshape(*geometry.kernel_size, x.shape[-1] // g, y.shape[-1])


def _taps(w: jax.Array, geometry: Geometry) -> jax.Array:
    g = geometry.feature_group_count
    return w.reshape(prod(geometry.kernel_size), w.shape[-2], g, w.shape[-1] // g)


def _grouped(patches: jax.Array, x: jax.Array, geometry: Geometry) -> jax.Array:
    g, taps = geometry.feature_group_count, prod(geometry.kernel_size)
    return patches.reshape(x.shape[0], *geometry.small, taps, g, x.shape[-1] // g)


def extract_patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns what every tap sees, `(batch, *big, c)` -> `(batch, *small, *kernel_size, c)`.

    One axis after the other, so the number of operations is the sum of the kernel sizes, not their product.
    """
    no_pad = (0, 0, 0)
    pads = [no_pad, *((lo, hi, 0) for lo, hi in geometry.padding), no_pad]
    x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    rank = geometry.rank
    for axis in reversed(range(rank)):
        s, d, n = geometry.strides[axis], geometry.kernel_dilation[axis], geometry.small[axis]
        taps = [
            lax.slice_in_dim(x, d * a, d * a + s * (n - 1) + 1, s, axis=axis + 1)
            for a in range(geometry.kernel_size[axis])
        ]
        x = jnp.stack(taps, axis=rank + 1)
    return x


def overlap_add(patches: jax.Array, geometry: Geometry) -> jax.Array:
    """Adjoint of `extract_patches`: adds `(batch, *small, *kernel_size, c)` up to `(batch, *big, c)`.

    At dilation 1, s neighboring taps fill s neighboring pixels of every cell, so ceil(k/s) blocks are added instead of
    k combs.
    """
    rank = geometry.rank
    x = patches
    for axis in range(rank):
        k, s = geometry.kernel_size[axis], geometry.strides[axis]
        d, n, p = geometry.kernel_dilation[axis], geometry.small[axis], geometry.offset[axis]
        tap_axis = rank + 1  # the taps of `axis`; those before it are summed already
        width = s if d == 1 else 1
        blocks = -(-k // width)
        x = pad_axis(x, tap_axis, 0, blocks * width - k)
        cells = []
        for j in range(blocks):
            block = lax.slice_in_dim(x, j * width, (j + 1) * width, axis=tap_axis)
            cell = jnp.moveaxis(block, tap_axis, axis + 2)
            cell = cell.reshape(*cell.shape[: axis + 1], n * width, *cell.shape[axis + 3 :])
            # Pixel s·i + d·j·width + r − p, for r < width, is where entry width·i + r lands.
            start = d * j * width - p
            stop = geometry.big[axis] - start - (s * (n - 1) + width)
            cells.append(pad_axis(cell, axis + 1, start, stop, interior=s - 1 if width == 1 else 0))
        x = reduce(jnp.add, cells)
    return x


def flip_and_swap(w: jax.Array, rank: int, groups: int) -> jax.Array:
    """Turns a convolution's kernel into its transpose's and back: axes reversed, channels swapped per group.

    `(*kernel_size, in // groups, out)` becomes `(*kernel_size, out // groups, in)`.
    """
    w = jnp.flip(w, tuple(range(rank)))
    *k, i, o = w.shape
    split = w.reshape(*k, i, groups, o // groups)
    return jnp.swapaxes(split, -3, -1).reshape(*k, o // groups, groups * i)


LOWERINGS: dict[str, dict[str, Lowering]] = {
    "dilated": {
        "gather": _dilated_gather,
        "paint": _dilated_paint,
        "correlate": _dilated_correlate,
    },
    "linear_transpose": {
        "gather": _dilated_gather,
        "paint": _transposed_paint,
        "correlate": _transposed_correlate,
    },
    "matmul": {
        "gather": _matmul_gather,
        "paint": _matmul_paint,
        "correlate": _matmul_correlate,
    },
}
