"""Initializers that depend on the stride, in JAX's form `init(key, shape, dtype)`.

Initializers of transposed convolutions make kernels in the layouts of `conv_transpose`, by default in the one that it
paints flipped; their laws hold for the painted kernel.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import DTypeLike

from tconvjax import _geometry as geo
from tconvjax._geometry import Ints
from tconvjax._ops import phases
from tconvjax._ops.subpixel import ORDERS, Order

Distribution = Literal["truncated_normal", "normal", "uniform"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


def variance_scaling_transpose(
    strides: Ints,
    scale: float = 1.0,
    distribution: Distribution = "truncated_normal",
    *,
    transpose_kernel: bool = False,
    feature_group_count: int = 1,
    per_phase: bool = False,
) -> Initializer:
    """Draws kernels of a transposed convolution that keep the variance of a white input.

    An output pixel sums `in/groups · Πk/Πs` products on average, the effective fan-in. Initializers that count
    `in · Πk` lose a factor Πs of variance per layer.

    Args:
      strides: of the layer; an int serves all axes.
      scale: output variance for unit input variance, > 0.
      distribution: 'truncated_normal', 'normal' or 'uniform', as in `jax.nn.initializers.variance_scaling`.
      transpose_kernel: the kernel is `(*kernel_size, out // groups, in)`, as in `conv_transpose`.
      feature_group_count: groups of the layer.
      per_phase: gives a tap of phase p the variance `scale / (in/groups · n_p)`, n_p the taps of that phase, so that
        all phases of the output have the variance `scale`, not only their mean. No change if strides divide the kernel
        size. Where k < s, phases without taps stay empty and the others have the variance `scale`.

    Returns:
      `init(key, shape, dtype)` for kernels of `tconvjax.conv_transpose`.

    Raises:
      ValueError, TypeError: for a scale, distribution or number of groups out of range; at the call of `init`, for
        strides that do not match the kernel.

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
    who = "variance_scaling_transpose"
    geo.positive(who, "scale", scale)
    geo.choice(who, "distribution", distribution, DISTRIBUTIONS)
    geo.positive_int(who, "feature_group_count", feature_group_count)

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        s = phases.per_spatial_axis(who, "strides", strides, shape)
        base = jax.nn.initializers.variance_scaling(
            scale * prod(s) * (feature_group_count if transpose_kernel else 1),
            "fan_in",
            distribution,
            in_axis=-1 if transpose_kernel else -2,
            out_axis=-2 if transpose_kernel else -1,
        )
        kernel = base(key, shape, dtype, out_sharding=out_sharding)
        if not per_phase:
            return kernel
        geo.fits(who, s, geo.MOST_COUNTS)
        k = tuple(shape[:-2])
        counts = phases.tap_counts(k, s)[phases.of_taps(k, s)]  # symmetric, so painted or not
        factors = (prod(k) / prod(s) / counts) ** 0.5
        return kernel * jnp.asarray(factors, kernel.dtype)[..., None, None]

    return init


def icnr(scale: Ints, base: Initializer | None = None, order: Order = "CRD") -> Initializer:
    """Draws kernels of `subpixel_conv` that start as nearest upsampling of a convolution: no checkerboard at first.

    All phases get the same draw W_0 of `base`, so that the layer is `resize(conv(x, W_0), scale)` before training.

    Args:
      scale: of the layer; an int serves all axes.
      base: draws W_0, of shape `(*kernel_size, in // groups, out)`; by default `jax.nn.initializers.lecun_normal()`.
      order: channel order of the layer. The wrong one has the artifacts of random kernels, except for a single output
        channel. With groups, the phases of 'DCR' read channels of their own, and only 'CRD' keeps the law.

    Returns:
      `init(key, shape, dtype)` for kernels `(*kernel_size, in // groups, out · prod(scale))`.

    Raises:
      ValueError: for an unknown order; at the call of `init`, if the product of `scale` does not divide the last axis.
      TypeError: at the call of `init`, for a scale that is not of integers.

    Example:
      >>> kernel = icnr(2)(jax.random.key(0), (3, 3, 8, 12))  # 12 = 3 · (2 · 2)
      >>> bool((kernel[..., 0] == kernel[..., 3]).all())  # both are phases of output channel 0
      True

    References:
      Aitken et al. 2017, arXiv:1707.02937.

    PyTorch:
      `torch.nn.PixelShuffle` is 'CRD', TensorFlow's `depth_to_space` 'DCR'.
    """
    geo.choice("icnr", "order", order, ORDERS)

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        count = prod(phases.per_spatial_axis("icnr", "scale", scale, shape))
        if shape[-1] % count != 0:
            raise ValueError(
                f"icnr: prod(scale) must divide the last axis of the kernel, out · prod(scale); got kernel shape "
                f"{tuple(shape)}, scale={scale} (product {count}). Make the last axis a multiple of {count}."
            )
        drawn = (base or lecun_normal())(key, (*shape[:-1], shape[-1] // count), dtype)
        kernel = jnp.repeat(drawn, count, -1) if order == "CRD" else jnp.tile(drawn, count)
        return _placed(kernel, out_sharding)

    return init


def icnr_transpose(
    strides: Ints, base: Initializer | None = None, *, transpose_kernel: bool = False
) -> Initializer:
    """Draws kernels of a transposed convolution that start as nearest upsampling after stride 1.

    `w[a] = W_0[floor(a/s)]` on the painted kernel, with W_0 of size `ceil(k/s)`. If strides divide the kernel size, the
    layer is `conv_transpose(x, W_0)` and then nearest upsampling, before any crop, and constants stay constant. If not,
    the last copies are cropped, and phases differ; `balanced_transpose(strides, icnr_transpose(strides))` repairs them.

    Args:
      strides: of the layer; an int serves all axes.
      base: draws W_0, of shape `(*ceil(k/s), ..)` with the channel axes of the kernel; by default
        `variance_scaling_transpose(1, transpose_kernel=transpose_kernel)`, whose fan-in is the layer's effective one.
      transpose_kernel: the kernel is `(*kernel_size, out // groups, in)`, as in `conv_transpose`.

    Returns:
      `init(key, shape, dtype)` for kernels of `tconvjax.conv_transpose`.

    Raises:
      ValueError, TypeError: at the call of `init`, for strides that do not match the kernel.

    Example:
      >>> kernel = icnr_transpose(2)(jax.random.key(0), (4, 1, 1))[:, 0, 0]
      >>> (kernel[::2] == kernel[1::2]).tolist()  # two draws, painted on two pixels each
      [True, True]

    References:
      Aitken et al. 2017, arXiv:1707.02937, for sub-pixel convolutions.
    """
    drawing = base or variance_scaling_transpose(1, transpose_kernel=transpose_kernel)

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        s = phases.per_spatial_axis("icnr_transpose", "strides", strides, shape)
        k, channels = shape[:-2], shape[-2:]
        cells = tuple(-(-n // t) for n, t in zip(k, s, strict=True))
        drawn = drawing(key, (*cells, *channels), dtype)
        held = phases.painted(drawn, transpose_kernel=transpose_kernel)
        for axis, (n, stride) in enumerate(zip(k, s, strict=True)):
            held = jnp.repeat(held, min(stride, n), axis)
        cropped = held[tuple(slice(n) for n in k)]
        kernel = phases.painted(cropped, transpose_kernel=transpose_kernel)
        return _placed(kernel, out_sharding)

    return init


def balanced_transpose(
    strides: Ints, base: Initializer | None = None, *, transpose_kernel: bool = False
) -> Initializer:
    """Draws kernels of a transposed convolution that keep a constant constant, for every k >= s.

    A draw of `base` goes through the projection of `analysis.balance`, the smallest change that makes all phase gains
    equal. The projection keeps `1 − (Πs − 1)/Πk` of the variance of independent weights, nearly all unless k is close
    to s; at k = s the layer is nearest upsampling of a 1x1 convolution.

    Args:
      strides: of the layer; an int serves all axes.
      base: draws the kernel in the layer's layout; by default
        `variance_scaling_transpose(strides, transpose_kernel=transpose_kernel)`.
      transpose_kernel: the kernel is `(*kernel_size, out // groups, in)`, as in `conv_transpose`.

    Returns:
      `init(key, shape, dtype)` for kernels of `tconvjax.conv_transpose`.

    Raises:
      ValueError: at the call of `init`, for k < s, where phases have no taps to balance.
      TypeError: at the call of `init`, for strides that are not integers.

    Example:
      >>> kernel = balanced_transpose(2)(jax.random.key(0), (3, 1, 1))[:, 0, 0]
      >>> bool(jnp.isclose(kernel[0] + kernel[2], kernel[1]))  # the gains of both phases
      True

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658, for the condition.
    """
    drawing = base or variance_scaling_transpose(strides, transpose_kernel=transpose_kernel)

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        s = phases.per_spatial_axis("balanced_transpose", "strides", strides, shape)
        kernel = phases.balance("balanced_transpose", drawing(key, shape, dtype), s)
        return _placed(kernel, out_sharding)

    return init


def bilinear(strides: Ints) -> Initializer:
    """Makes the kernels of linear interpolation, as in FCN: `w[a] = Π (1 − |a − (k − 1)/2| / s)`.

    The kernel size must be `2s − s mod 2` along every axis; then constants keep their value and polynomials of degree 1
    come out without ripple. Output channel o of a group enlarges input channel `o mod in // groups` of that group: for
    as many outputs as inputs its own, in a depthwise layer the only input. Channels are not mixed, and nothing is
    random.

    Args:
      strides: of the layer; an int serves all axes.

    Returns:
      `init(key, shape, dtype)` for kernels `(*kernel_size, in // groups, out)` of `tconvjax.conv_transpose`; also for
      those of `transpose_kernel=True` with as many outputs as inputs. The key is not used.

    Raises:
      ValueError: at the call of `init`, for any other kernel size, or if `in // groups` does not divide `out`.
      TypeError: at the call of `init`, for strides that are not integers.

    Example:
      >>> bilinear(2)(jax.random.key(0), (4, 1, 1))[:, 0, 0]
      Array([0.25, 0.75, 0.75, 0.25], dtype=float32)

    References:
      Long, Shelhamer & Darrell 2015, arXiv:1411.4038.
    """

    def init(
        key: jax.Array,  # noqa: ARG001
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        s = phases.per_spatial_axis("bilinear", "strides", strides, shape)
        k, (source, target) = tuple(shape[:-2]), shape[-2:]
        linear_size = tuple(2 * t - t % 2 for t in s)
        if k != linear_size:
            raise ValueError(
                f"bilinear: kernel_size must be 2·strides − strides mod 2; got kernel_size={k}, strides={s}. "
                f"Use kernel_size={linear_size}."
            )
        if target % source != 0:
            raise ValueError(
                f"bilinear: in // groups must divide out, as every output enlarges one input; got kernel shape "
                f"{tuple(shape)}. Mix channels in another layer."
            )
        tents = phases.outer(
            [1 - abs(np.arange(n) - (n - 1) / 2) / t for n, t in zip(k, s, strict=True)]
        )
        copies = np.tile(np.eye(source), target // source)
        kernel = jnp.asarray(
            tents[..., None, None] * copies, jax.dtypes.canonicalize_dtype(dtype or float)
        )
        return _placed(kernel, out_sharding)

    return init


def _placed(kernel: jax.Array, out_sharding: Any) -> jax.Array:
    """Returns a kernel with the sharding `out_sharding`, if there is one."""
    return kernel if out_sharding is None else jax.sharding.reshard(kernel, out_sharding)
