"""The three faces of a convolution as JAX primitives, closed under differentiation.

A convolution is trilinear in a big image x, a kernel w and a small image y:

    T(x, w, y) = Σ x[s·o + d·a − p] · w[a] · y[o]

    gather    (x, w) -> y    ∂T/∂y    the convolution
    paint     (y, w) -> x    ∂T/∂x    the transposed convolution
    correlate (x, y) -> w    ∂T/∂w    the kernel gradient

Each face is bilinear, and its derivative in either operand is one of the other two with the *same* `Geometry`, so
forward and reverse mode of every order stay among the three. All three take one canonical layout:

    x  (stack, batch, *big, in)        w  (stack, *kernel_size, in // groups, out)        y  (stack, batch, *small, out)

`stack` counts independent problems: `vmap` over every operand at once (many seeds, many kernels) becomes a longer
stack. `vmap` over one operand folds into the letter that this operand shares with the result, which is `batch` for the
two images, `in` for x and w, and `out` for w and y.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tconvjax import _lowerings as lowerings
from tconvjax import _sharding as sharding
from tconvjax._geometry import Geometry

# Operands and result of each face, by role.
FACES = {
    "gather": (("x", "w"), "y"),
    "paint": (("y", "w"), "x"),
    "correlate": (("x", "y"), "w"),
}
# Where a role keeps each letter: (axis, whether groups split it).
LETTERS = {
    "x": {"stack": (0, False), "batch": (1, False), "in": (-1, True)},
    "w": {"stack": (0, False), "in": (-2, False), "out": (-1, True)},
    "y": {"stack": (0, False), "batch": (1, False), "out": (-1, True)},
}


def bind(
    face: str,
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    geometry: Geometry,
    dtype: jnp.dtype,
    precision: tuple[jax.lax.Precision, jax.lax.Precision] | None,
    implementation: str,
) -> jax.Array:
    """Computes one face of the form; `dtype` is that of the result."""
    result: jax.Array = _PRIMITIVES[face].bind(
        lhs,
        rhs,
        geometry=geometry,
        dtype=jnp.dtype(dtype),
        precision=precision,
        implementation=implementation,
    )
    return result


def result_shape(
    face: str, lhs: tuple[int, ...], rhs: tuple[int, ...], geometry: Geometry
) -> tuple[int, ...]:
    """Returns the shape of a face's result in the canonical layout."""
    if face == "gather":
        return (*lhs[:2], *geometry.small, rhs[-1])
    if face == "paint":
        return (*lhs[:2], *geometry.big, rhs[-2] * geometry.feature_group_count)
    return (lhs[0], *geometry.kernel_size, lhs[-1] // geometry.feature_group_count, rhs[-1])


def _fold(array: jax.Array, axis: int, groups: int) -> jax.Array:
    """Merges the leading axis into `axis`, inside the groups: (n, .., g·c, ..) -> (.., g·n·c, ..)."""
    n, *rest = array.shape
    axis %= len(rest)
    split = array.reshape(n, *rest[:axis], groups, rest[axis] // groups, *rest[axis + 1 :])
    return jnp.moveaxis(split, 0, axis + 1).reshape(*rest[:axis], n * rest[axis], *rest[axis + 1 :])


def _unfold(array: jax.Array, axis: int, groups: int, n: int, size: int) -> jax.Array:
    """Undoes `_fold`: (.., g·n·c, ..) -> (n, .., g·c, ..), where g·c is `size`."""
    shape = array.shape
    axis %= len(shape)
    split = array.reshape(*shape[:axis], groups, n, size // groups, *shape[axis + 1 :])
    return jnp.moveaxis(split, axis + 1, 0).reshape(n, *shape[:axis], size, *shape[axis + 1 :])


def _batch(
    face: str,
    operands: Sequence[jax.Array],
    dims: Sequence[int | None],
    *,
    geometry: Geometry,
    **params: Any,
) -> tuple[jax.Array, int]:
    roles, result = FACES[face]
    mapped = {
        role: jnp.moveaxis(operand, dim, 0)
        for role, operand, dim in zip(roles, operands, dims, strict=True)
        if dim is not None  # not mapped
    }
    if len(mapped) == 2:
        letter = "stack"
    else:
        (role,) = mapped
        (letter,) = (LETTERS[role].keys() & LETTERS[result].keys()) - {"stack"}

    def place(role: str) -> tuple[int, int]:
        axis, grouped = LETTERS[role][letter]
        return axis, geometry.feature_group_count if grouped else 1

    n = next(iter(mapped.values())).shape[0]
    folded = [
        _fold(mapped[role], *place(role)) if role in mapped else operand
        for role, operand in zip(roles, operands, strict=True)
    ]
    out = bind(face, *folded, geometry=geometry, **params)
    lhs, rhs = (
        mapped[role].shape[1:] if role in mapped else operand.shape
        for role, operand in zip(roles, operands, strict=True)
    )
    axis, groups = place(result)
    return _unfold(out, axis, groups, n, result_shape(face, lhs, rhs, geometry)[axis]), 0


def _transpose(
    face: str, operand: int, cotangent: jax.Array, lhs: Any, rhs: Any, *, dtype: Any, **params: Any
) -> jax.Array:
    """Cotangent of one operand: the face that results in its role, fed with the two other arrays."""
    del dtype
    roles, result = FACES[face]
    given = dict(zip(roles, (lhs, rhs), strict=True)) | {result: cotangent}
    role = roles[operand]
    target = given[role].aval
    back, (needs, _) = next((f, spec) for f, spec in FACES.items() if spec[1] == role)
    return bind(back, *(given[need] for need in needs), dtype=target.dtype, **params)


def _define(face: str) -> Primitive:
    primitive = Primitive(f"tconv_{face}")

    def abstract(lhs: Any, rhs: Any, *, geometry: Geometry, dtype: Any, **_: Any) -> Any:
        shape = result_shape(face, lhs.shape, rhs.shape, geometry)
        return lhs.update(shape=shape, dtype=dtype, weak_type=False)

    def lower(
        platform: str | None, context: mlir.LoweringRuleContext, *args: Any, **params: Any
    ) -> Any:
        def run(lhs: jax.Array, rhs: jax.Array, *, implementation: str, **rest: Any) -> jax.Array:
            return lowerings.compute(
                face,
                lhs,
                rhs,
                platform,
                implementation,
                spread=sharding.spreads(context.module_context.axis_context),
                **rest,
            )

        return mlir.lower_fun(run, multiple_results=False)(context, *args, **params)

    def one(*operands: jax.Array, **params: Any) -> Any:
        return primitive.bind(*operands, **params)

    # The mark of JAX's own primitives. Without it `jax.debug_nans` looks for the operation inside, which is this one.
    one._apply_primitive = True  # type: ignore[attr-defined]
    one.__qualname__ = primitive.name  # what the error of `jax.debug_nans` says
    compiled = jax.jit(one, static_argnames=_PARAMS)

    def apply(*operands: jax.Array, **params: Any) -> Any:
        with jax.disable_jit(
            disable=False
        ):  # one operation compiles even where functions are not compiled
            return compiled(*operands, **params)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(apply)
    ad.defbilinear(primitive, partial(_transpose, face, 0), partial(_transpose, face, 1))
    batching.primitive_batchers[primitive] = partial(_batch, face)
    mlir.register_lowering(primitive, partial(lower, None))
    mlir.register_lowering(primitive, partial(lower, "cpu"), platform="cpu")
    return primitive


_PARAMS = ("geometry", "dtype", "precision", "implementation")
_PRIMITIVES = {face: _define(face) for face in FACES}
