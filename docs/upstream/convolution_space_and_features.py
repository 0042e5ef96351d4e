"""A convolution is a multiple of itself: image split in space, kernel split in features, on a mesh of two axes.

Component: XLA's SPMD partitioner. Versions: jax and jaxlib 0.10.1, platform cpu, eight devices of one process.

Where the partitioner finds both operands split, it lays the kernel's windows over the devices that share the space of
the image and adds up the partial results over all devices, those included that hold copies.

Expected output:
    relative error 0.0 (at most 1e-6)
Observed output, with the sum over "a", which has four devices, taken of copies:
    relative error 3.0

A kernel that is whole on every device gives the right numbers: pass `P()` for `P(None, None, None, "a")`. Related: on a
mesh of one axis, a kernel larger than one device's part of the image gives wrong numbers, too, and paddings that crop
abort the process in `PartitionedHlo::ReshardAsWindowedInput`.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def relative_error() -> float:
    """Returns the largest error of the split convolution, as a part of the largest value."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 8))

    @jax.jit
    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    want = np.asarray(conv(x, kernel))
    got = np.asarray(
        conv(
            jax.device_put(x, NamedSharding(mesh, P(None, None, "b"))),
            jax.device_put(kernel, NamedSharding(mesh, P(None, None, None, "a"))),
        )
    )
    return float(abs(got - want).max() / abs(want).max())


if __name__ == "__main__":
    print("relative error", relative_error())
