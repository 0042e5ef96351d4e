"""The gradient of a maximum is not a number where the compiler computes its argument twice, with two roundings.

Component: JAX's derivative of `reduce_max`, which divides by the number of elements that equal the maximum; that they
differ is XLA's CPU compiler without LLVM's optimizer, which fuses a product with a sum in one of two places. Versions:
jax and jaxlib 0.10.1, platform cpu.

Expected output:
    not finite: 0 of 256 tangents
Observed output:
    not finite: 61 of 256 tangents
"""

import jax
import jax.numpy as jnp


def not_finite() -> tuple[int, int]:
    """Returns how many tangents of a maximum over four pixels are not finite, and how many there are."""
    x = jax.random.normal(jax.random.key(0), (256, 4))

    def largest(x: jax.Array) -> jax.Array:
        y = 0.1 * x + 0.7 * jnp.roll(x, 1, 0) + 0.3 * jnp.roll(x, 2, 0)
        return y.reshape(64, 2, 2, 4).transpose(0, 3, 1, 2).reshape(64, 4, 4).max(-1)

    along = lambda x: jax.jvp(largest, (x,), (jnp.ones_like(x),))[1]
    tangents = jax.jit(along, compiler_options={"xla_backend_optimization_level": 0})(x)
    return int((~jnp.isfinite(tangents)).sum()), tangents.size


if __name__ == "__main__":
    print("not finite: {} of {} tangents".format(*not_finite()))
