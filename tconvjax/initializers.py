"""Initializers that know the stride, in JAX's form `init(key, shape, dtype)`."""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import jax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from tconvjax import geometry as geo
from tconvjax.geometry import Ints

Distribution = Literal["truncated_normal", "normal", "uniform"]


def variance_scaling_transpose(
    strides: Ints,
    scale: float = 1.0,
    distribution: Distribution = "truncated_normal",
    *,
    transpose_kernel: bool = False,
    feature_group_count: int = 1,
) -> Initializer:
    """Draws kernels of a transposed convolution that keep the variance of a white input.

    An output pixel sums `in/groups · Πk/Πs` products on average, the effective fan-in. Initializers that count
    `in · Πk` lose a factor Πs of variance per layer.

    Args:
      strides: of the layer; an int serves all axes.
      scale: wanted output variance for unit input variance, > 0.
      distribution: 'truncated_normal', 'normal' or 'uniform', as in `jax.nn.initializers.variance_scaling`.
      transpose_kernel: the kernel is `(*kernel_size, out // groups, in)`, as in `conv_transpose`.
      feature_group_count: groups of the layer.

    Returns:
      `init(key, shape, dtype)` for kernels of `tconvjax.conv_transpose`.

    Raises:
      ValueError, TypeError: at the call of `init`, for strides that do not match the kernel.

    Example:
      >>> init = variance_scaling_transpose(2, distribution="normal")
      >>> kernel = init(jax.random.key(0), (4, 4, 64, 64))
      >>> print(f"{kernel.var() * 64 * 4:.2f}")  # taps per output pixel: 4 of the 16
      1.00

    References:
      Glorot & Bengio 2010, with the fan-in of Shi et al. 2016, arXiv:1609.07009.

    PyTorch:
      `torch.nn.ConvTranspose2d` draws from U(±√(groups/(out·Πk))), which counts neither `in` nor the strides.
    """

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        s = geo.per_axis("variance_scaling_transpose", "strides", strides, len(shape) - 2)
        base = jax.nn.initializers.variance_scaling(
            scale * prod(s) * (feature_group_count if transpose_kernel else 1),
            "fan_in",
            distribution,
            in_axis=-1 if transpose_kernel else -2,
            out_axis=-2 if transpose_kernel else -1,
        )
        return base(key, shape, dtype, out_sharding=out_sharding)

    return init
