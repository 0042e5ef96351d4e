"""The kernel gradient of a grouped convolution is wrong: batch split over one axis of a mesh of two.

Component: XLA's SPMD partitioner, `batch_group_count`, which JAX's rule for the kernel gradient uses. Versions: jax and
jaxlib 0.10.1, platform cpu, eight devices of one process.

Expected output:
    relative error 0.0 (at most 1e-6)
Observed output:
    relative error 1.0
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def relative_error() -> float:
    """Returns the largest error of the gradient from a split batch, as a part of the largest value."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (4, 8, 6, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 6))

    @jax.jit
    @jax.grad
    def gradient(kernel: jax.Array, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=2
        )
        return jnp.sum(jnp.sin(y))

    want = np.asarray(gradient(kernel, x))
    got = np.asarray(gradient(kernel, jax.device_put(x, NamedSharding(mesh, P("a")))))
    return float(abs(got - want).max() / abs(want).max())


if __name__ == "__main__":
    print("relative error", relative_error())
