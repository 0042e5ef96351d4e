"""How each face reaches XLA: the same numbers by different programs.

A lowering is one function per face, `f(lhs, rhs, call)`, for a single problem: the canonical layout of
`tconvjax._faces` without its stack axis,

    x  (batch, *big, in)        w  (*kernel_size, in // groups, out)        y  (batch, *small, out)

    phase              convolutions of stride 1 between the small image and the phases of the big one; no zeros
    matmul             patches times matrix; to paint, products and their overlap-add, its adjoint
    planes             patches along all axes but two, convolution along these
    elementwise        shifted images times one number per channel, for depthwise convolutions
    dilated            `lax.conv_general_dilated` for all three; the transpose inserts zeros (lhs_dilation)
    linear_transpose   the definition: JAX's own transpose of the forward convolution

XLA's partitioner gives wrong numbers or aborts on a convolution whose image is split in space over several devices
(docs/upstream/convolution_space_and_features.py). Its products are right and exchange borders. So where the compiler
may split arrays, a CPU takes `matmul` for every implementation but `elementwise`, which has no convolution either; an
accelerator keeps its convolutions if the mesh is known, and their images whole in space.

Every lowering is valid for every geometry. `auto` picks one per face, platform, geometry and shapes by the cost model
of `tconvjax._lowerings.cost`.
"""

from tconvjax._lowerings import phase
from tconvjax._lowerings.elementwise import ELEMENTWISE
from tconvjax._lowerings.native import DILATED, LINEAR_TRANSPOSE
from tconvjax._lowerings.patches import MATMUL, PLANES
from tconvjax._lowerings.protocol import Lowering

LOWERINGS: dict[str, Lowering] = {
    "phase": phase.PHASE,
    "matmul": MATMUL,
    "planes": PLANES,
    "elementwise": ELEMENTWISE,
    "dilated": DILATED,
    "linear_transpose": LINEAR_TRANSPOSE,
}
