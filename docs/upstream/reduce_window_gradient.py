"""The gradient of a sliding maximum is wrong: image split in space over one axis of a mesh of two.

Component: XLA's SPMD partitioner, `select_and_scatter`. Versions: jax and jaxlib 0.10.1, platform cpu, eight devices of
one process.

Expected output:
    relative error 0.0
Observed output:
    relative error 0.9999396204948425
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
    """Returns the largest error of the gradient from a split image, as a part of the largest value."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 8))

    @jax.jit
    @jax.grad
    def gradient(x: jax.Array) -> jax.Array:
        window, pads = (1, 2, 2, 1), [(0, 0), (0, 1), (0, 1), (0, 0)]
        y = lax.reduce_window(x, -jnp.inf, lax.max, window, (1,) * 4, pads)
        return jnp.sum(jnp.sin(y))

    want = np.asarray(gradient(x))
    got = np.asarray(gradient(jax.device_put(x, NamedSharding(mesh, P(None, "b")))))
    return float(abs(got - want).max() / abs(want).max())


if __name__ == "__main__":
    print("relative error", relative_error())
