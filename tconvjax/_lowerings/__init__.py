"""How each face reaches XLA: the same numbers by different programs.

A lowering is one function per face, `f(lhs, rhs, call)`, for a single problem: the canonical layout of
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
