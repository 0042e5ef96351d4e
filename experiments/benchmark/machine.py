"""What this machine can do, measured by JAX in the same run, and the bound that follows for a layer.

The roofline (Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785): no program beats
`max(operations / peak, bytes / bandwidth)`. Small layers live in caches that are faster than the measured bandwidth, so
that a share above 1 is possible.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import records
from experiments.benchmark import timing

PRODUCT = 2048  # rows and columns of the matrices
COPIED = 2**26  # float32 values, 256 MiB: larger than caches


def measure(
    dtypes: tuple[str, ...], *, product: int = PRODUCT, copied: int = COPIED
) -> dict[str, Any]:
    """Returns the peak of a matrix product per dtype in GFLOP/s and the bandwidth of a copy in GB/s, best of several.

    Args:
      dtypes: of the matrices.
      product: rows and columns of the matrices.
      copied: values of float32 that the copy reads and writes.
    """
    peaks = {}
    for dtype in dtypes:
        a, b = (jax.random.normal(jax.random.key(i), (product,) * 2, dtype) for i in range(2))
        peaks[dtype] = 2 * product**3 / _best(jnp.dot, a, b) / 1e9
    return {
        "processor": records.processor(),
        "peak_gflops": peaks,
        "bandwidth_gb_s": 2 * 4 * copied / _adding(copied) / 1e9,
    }


def roofline(flops: float, traffic: float, gflops: float, gb_s: float) -> float:
    """Returns the least milliseconds of a program: operations and bytes over what the machine does per second."""
    return 1e3 * max(flops / (gflops * 1e9), traffic / (gb_s * 1e9))


def shares(
    entry: Mapping[str, Any], machine: Mapping[str, Any], flops: int, traffic: int
) -> dict[str, float]:
    """Returns useful GFLOP/s of the fastest sample, and its shares of the peak and of the roofline."""
    peak, seconds = machine["peak_gflops"][entry["dtype"]], entry["min_ms"] / 1e3
    bound = roofline(flops, traffic, peak, machine["bandwidth_gb_s"])
    return {
        "gflops": flops / seconds / 1e9,
        "peak_share": flops / seconds / 1e9 / peak,
        "roofline_ms": bound,
        "roofline_share": bound / entry["min_ms"],
    }


def _best(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Returns the seconds of the fastest of ten samples."""
    return _fastest(partial(jax.jit(function).lower(*arguments).compile(), *arguments))


def _adding(count: int) -> float:
    """Returns the seconds that it takes to read and write `count` values, in place: fresh memory costs page faults."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(count, jnp.float32)]

    def call() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    return _fastest(call)


def _fastest(call: Callable[[], jax.Array]) -> float:
    return min(timing.interleaved([timing.on_jax("machine", call)], 10, 2.0)["machine"].seconds)
