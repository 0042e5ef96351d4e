"""How each face reaches XLA: the same numbers by different programs.

A lowering is one function per face, `f(lhs, rhs, geometry, options)`, for a single problem: the canonical layout of
`tconvjax._faces` without its stack axis,

    x  (batch, *big, in)        w  (*kernel_size, in // groups, out)        y  (batch, *small, out)

    phase              convolutions of stride 1 between the small image and the phases of the big one; no zeros
    matmul             patches times matrix; the overlap-add of the transpose is the adjoint of patch extraction
    planes             patches along all axes but two, convolution along these
    elementwise        shifted images times one number per channel, for depthwise convolutions
    dilated            `lax.conv_general_dilated` for all three; the transpose inserts zeros (lhs_dilation)
    linear_transpose   the definition: JAX's own transposition of the forward convolution

Where the compiler may split arrays over several devices, it must not see a convolution whose image is split in space:
XLA's partitioner then gives wrong numbers or aborts (docs/upstream/convolution_space_and_features.py). Its products are
right and exchange borders, so a CPU takes `matmul` whatever was asked, unless `elementwise`, which has no convolution
either; an accelerator keeps its convolutions, of images that are whole in space, where it knows the mesh.

Each is valid for every geometry. `auto` picks one per face, platform, geometry and shapes by the cost model of
`tconvjax._lowerings.cost`.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from tconvjax import _sharding as sharding
from tconvjax._geometry import Geometry
from tconvjax._lowerings import cost, phase
from tconvjax._lowerings.elementwise import ELEMENTWISE
from tconvjax._lowerings.native import DILATED, LINEAR_TRANSPOSE
from tconvjax._lowerings.patches import MATMUL, PLANES
from tconvjax._lowerings.protocol import Face, Lowering, Options
from tconvjax._lowerings.protocol import flip_and_swap as flip_and_swap

Implementation = Literal[
    "auto", "phase", "matmul", "planes", "elementwise", "dilated", "linear_transpose"
]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
# References that reach the user's program as JAX's own operations, without a primitive of ours.
PLAIN = ("dilated", "linear_transpose")


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
    spread: bool = False,
) -> jax.Array:
    """Runs a face on stacked operands in plain JAX; half precision accumulates in float32.

    `spread` says whether the compiler may split the operands over several devices.
    """
    # Ours, whatever promotion the caller allows in their own code.
    with jax.numpy_dtype_promotion("standard"):
        operand_dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
        wide = jnp.promote_types(operand_dtype, dtype)
    mesh = sharding.mesh_of(lhs, rhs) if spread else None
    options = Options(precision, accumulator(wide), platform, spread, mesh)
    if spread and implementation != "elementwise" and (platform == "cpu" or mesh is None):
        implementation = "matmul"
    elif implementation == "auto":
        shapes = lhs.shape[1:], rhs.shape[1:]
        implementation = cost.choose(face, geometry, *shapes, platform)
    one: Face = getattr(LOWERINGS[implementation], face)

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


def _of_part(
    face: str, geometry: Geometry, lhs: jax.Array, rhs: jax.Array, options: Options
) -> Lowering:
    """Returns the lowering for a part of stride 1 of a phase decomposition."""
    name = cost.choose(face, geometry, lhs.shape, rhs.shape, options.platform, cost.PARTS)
    return LOWERINGS[name]


LOWERINGS: dict[str, Lowering] = {
    "phase": phase.through(_of_part),
    "matmul": MATMUL,
    "planes": PLANES,
    "elementwise": ELEMENTWISE,
    "dilated": DILATED,
    "linear_transpose": LINEAR_TRANSPOSE,
}
