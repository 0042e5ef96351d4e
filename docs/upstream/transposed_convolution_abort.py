"""A transposed convolution aborts the process: stride > 1, padded on neither side, on a CPU.

Component: XLA's algebraic simplifier, which exchanges the image and the kernel of a zero-inserted convolution and then
fails its own check of the shape. Versions: jax and jaxlib 0.10.1 (seen in 0.10.2 and 0.12.0, too), platform cpu, one
device.

Expected output:
    (2, 4, 9, 1)
Observed output:
    F algebraic_simplifier.cc:585] Check failed: computation->Accept(this) is OK (INVALID_ARGUMENT: Window dimensions
    do not match RHS shape: RHS shape: f32[2,3,1,4] Window: { dimensions { size: 2 ..  dimensions { size: 1 ..
    Aborted (status 134)
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def paint(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """Inserts zeros along both axes; the first, of stride 2, is not padded, the second is padded fully."""
    kernel = jnp.flip(kernel, (0, 1)).swapaxes(-1, -2)
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        y,
        kernel,
        (1, 1),
        [(0, 0), (8, 8)],
        lhs_dilation=(2, 2),
        rhs_dilation=(1, 2),
        dimension_numbers=numbers,
    )


if __name__ == "__main__":
    print(paint(jnp.ones((2, 3, 1, 4)), jnp.ones((2, 5, 1, 4))).shape)
