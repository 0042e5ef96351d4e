"""The three faces of a convolution as JAX primitives, closed under differentiation.

A convolution is trilinear in a big image x, a kernel w and a small image y:

    T(x, w, y) = Σ x[s·o + d·a − p] · w[a] · y[o]

    gather    (x, w) -> y    ∂T/∂y    the convolution
    paint     (y, w) -> x    ∂T/∂x    the transposed convolution
    correlate (x, y) -> w    ∂T/∂w    the kernel gradient

Each face is bilinear, and its derivative in either operand is one of the other two with the *same* `Geometry`, so
forward and reverse mode of every order stay among the three. All three take one canonical layout:

    x  (stack, batch, *big, in)        w  (stack, *kernel_size, in // groups, out)        y  (stack, batch, *small, out)

`stack` counts independent problems: `vmap` over both operands at once (many seeds, many kernels) becomes a longer
stack. `vmap` over one operand folds into the letter that this operand shares with the result: `batch` for the two
images, `in` for x and w, `out` for w and y.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tconvjax import _sharding as sharding
from tconvjax._arguments import PLAIN, Call, accumulator
from tconvjax._geometry import Geometry
from tconvjax._lowerings import LOWERINGS, cost
from tconvjax._lowerings.protocol import Face

# Operands and result of each face, by role.
FACES = {
    "gather": (("x", "w"), "y"),
    "paint": (("y", "w"), "x"),
    "correlate": (("x", "y"), "w"),
}
# The letters of each role: (axis, whether groups split it).
LETTERS = {
    "x": {"stack": (0, False), "batch": (1, False), "in": (-1, True)},
    "w": {"stack": (0, False), "in": (-2, False), "out": (-1, True)},
    "y": {"stack": (0, False), "batch": (1, False), "out": (-1, True)},
}


def run(face: str, image: jax.Array, kernel: jax.Array, call: Call) -> jax.Array:
    """Computes a face of an image, with any number of batch axes, and a kernel."""
    batch = image.shape[: -call.geometry.rank - 1]
    image, kernel = image.reshape(1, prod(batch), *image.shape[len(batch) :]), kernel[None]
    if not jax.sharding.get_abstract_mesh().empty:
        image, kernel = sharding.varying_alike(image, kernel)
    if call.implementation in PLAIN:
        spread = sharding.mesh_of(image, kernel) is not None
        # 'matmul' is JAX's own operations, too.
        plain = replace(call, implementation="matmul") if spread else call
        out = compute(face, image, kernel, replace(plain, spread=spread))
    else:
        out = bind(face, image, kernel, call)
    return out.reshape(*batch, *out.shape[2:])


def bind(face: str, lhs: jax.Array, rhs: jax.Array, call: Call) -> jax.Array:
    """Computes one face of the form, on operands in the canonical layout."""
    result: jax.Array = _PRIMITIVES[face].bind(lhs, rhs, call=call)
    return result


def compute(face: str, lhs: jax.Array, rhs: jax.Array, call: Call) -> jax.Array:
    """Runs a face on operands in the canonical layout in plain JAX; half precision accumulates in float32."""
    # Whatever promotion the caller allows in their own code.
    with jax.numpy_dtype_promotion("standard"):
        operand_dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
        wide_dtype = accumulator(jnp.promote_types(operand_dtype, call.dtype))
    mesh = sharding.mesh_of(lhs, rhs) if call.spread else None
    lhs, rhs = lhs.astype(operand_dtype), rhs.astype(operand_dtype)
    wide_call = replace(call, dtype=wide_dtype, mesh=mesh)
    name = call.implementation
    if call.spread and name != "elementwise" and (call.platform == "cpu" or mesh is None):
        name = "matmul"
    elif name == "auto":
        name = cost.choose(face, call.geometry, lhs.shape[1:], rhs.shape[1:], call.platform)
    lowered: Face = getattr(LOWERINGS[name], face)
    if lhs.shape[0] == 1:
        out = lowered(lhs[0], rhs[0], wide_call)[None]
    elif call.platform == "cpu":
        # One problem after another: `vmap` over kernels would make one grouped convolution, which is several times
        # slower on a CPU than its parts.
        out = lax.map(lambda pair: lowered(pair[0], pair[1], wide_call), (lhs, rhs))
    else:
        out = jax.vmap(lambda lhs, rhs: lowered(lhs, rhs, wide_call))(lhs, rhs)
    return out.astype(call.dtype)


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
    call: Call,
) -> tuple[jax.Array, int]:
    geometry = call.geometry
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
    left, right = (
        _fold(mapped[role], *place(role)) if role in mapped else operand
        for role, operand in zip(roles, operands, strict=True)
    )
    out = bind(face, left, right, call)
    lhs, rhs = (
        mapped[role].shape[1:] if role in mapped else operand.shape
        for role, operand in zip(roles, operands, strict=True)
    )
    axis, groups = place(result)
    return _unfold(out, axis, groups, n, result_shape(face, lhs, rhs, geometry)[axis]), 0


def _transpose(
    face: str, operand: int, cotangent: jax.Array, lhs: Any, rhs: Any, *, call: Call
) -> jax.Array:
    """Cotangent of one operand: the face whose result has its role, of the two other arrays."""
    roles, result = FACES[face]
    given = dict(zip(roles, (lhs, rhs), strict=True)) | {result: cotangent}
    role = roles[operand]
    target = given[role].aval
    back, (inputs, _) = next((f, spec) for f, spec in FACES.items() if spec[1] == role)
    lhs, rhs = (given[name] for name in inputs)
    return bind(back, lhs, rhs, replace(call, dtype=target.dtype))


def _define(face: str) -> Primitive:
    primitive = Primitive(f"tconv_{face}")

    def abstract(lhs: Any, rhs: Any, *, call: Call) -> Any:
        shape = result_shape(face, lhs.shape, rhs.shape, call.geometry)
        weak = lhs.weak_type and rhs.weak_type
        return lhs.update(shape=shape, dtype=call.dtype, weak_type=weak)

    def lower(
        platform: str | None, context: mlir.LoweringRuleContext, *operands: Any, call: Call
    ) -> Any:
        resolved = replace(call, platform=platform, spread=_spreads(context))
        run = partial(compute, face, call=resolved)
        return mlir.lower_fun(run, multiple_results=False)(context, *operands)

    def eager(*operands: jax.Array, **params: Any) -> Any:
        return primitive.bind(*operands, **params)

    # JAX marks its own primitives so. Without it `jax.debug_nans` looks for an operation inside, and finds this one.
    eager._apply_primitive = True  # type: ignore[attr-defined]
    eager.__qualname__ = primitive.name  # for the error of `jax.debug_nans`
    compiled = jax.jit(eager, static_argnames="call")

    def apply(*operands: jax.Array, **params: Any) -> Any:
        # Under `disable_jit` JAX's own operations are compiled, too.
        with jax.disable_jit(disable=False):
            return compiled(*operands, **params)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(apply)
    ad.defbilinear(primitive, partial(_transpose, face, 0), partial(_transpose, face, 1))
    batching.primitive_batchers[primitive] = partial(_batch, face)
    mlir.register_lowering(primitive, partial(lower, None))
    mlir.register_lowering(primitive, partial(lower, "cpu"), platform="cpu")
    return primitive


def _spreads(context: mlir.LoweringRuleContext) -> bool:
    """Whether the compiler may split the arrays of a program over devices.

    It may not on one device, nor inside `shard_map` over all axes of the mesh.
    """
    devices: Any = context.module_context.axis_context
    mesh = getattr(devices, "mesh", None)
    if mesh is None:
        return bool(getattr(devices, "num_devices", jax.device_count()) > 1)
    return prod(n for name, n in mesh.shape.items() if name not in devices.manual_axes) > 1


_PRIMITIVES = {face: _define(face) for face in FACES}
