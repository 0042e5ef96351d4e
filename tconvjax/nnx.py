"""Layers for Flax NNX: parameters and one call of the function of the same name.

Arguments are Flax's, in Flax's order, with Flax's names and defaults; ours follow, keyword-only. Parameters have Flax's
names and shapes. Two things differ on purpose: integers in the `padding` of `ConvTranspose` mean the padding of the
forward convolution (`padding_convention='dilated'` restores Flax's meaning), and its default initializer keeps the
variance of the input, whatever the strides.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from tconvjax import geometry as geo
from tconvjax import initializers
from tconvjax.geometry import Ints, Padding, PaddingConvention
from tconvjax.ops.convolution import Implementation, conv, conv_transpose
from tconvjax.ops.resize import METHODS, Method, resize_conv

default_kernel_init = jax.nn.initializers.lecun_normal()
default_bias_init = jax.nn.initializers.zeros
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class ConvTranspose(nnx.Module):
    """Transposed convolution, `tconvjax.conv_transpose` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      strides: output pixels per input pixel; an int serves all axes, None is 1.
      padding: of the forward convolution, as in `conv_transpose`.
      kernel_dilation: as in `conv_transpose`; None is 1.
      use_bias: whether to add one value per output channel.
      mask: multiplied with the kernel at every call; of its shape.
      dtype: of the computation; by default that to which input and parameters promote.
      param_dtype: of the parameters.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: by default `initializers.variance_scaling_transpose(strides)`, which keeps the variance; Flax's own
        is `jax.nn.initializers.lecun_normal()`.
      bias_init: zeros by default.
      transpose_kernel: as in `conv_transpose`.
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv_transpose`.
      rngs: of which `params` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
      output_padding: as in `conv_transpose`.
      feature_group_count: as in `conv_transpose`.
      padding_convention: as in `conv_transpose`.
      implementation: as in `conv_transpose`.

    Raises:
      ValueError, TypeError: at construction, as `conv_transpose`.

    Example:
      >>> from flax import nnx
      >>> layer = ConvTranspose(8, 3, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    PyTorch:
      `torch.nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        strides: Ints | None = None,
        *,
        padding: Padding = "SAME",
        kernel_dilation: Ints | None = None,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        transpose_kernel: bool = False,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        output_padding: Ints | None = None,
        feature_group_count: int = 1,
        padding_convention: PaddingConvention = "forward",
        implementation: Implementation = "auto",
    ) -> None:
        k, s, d = _geometry("ConvTranspose", kernel_size, strides, kernel_dilation)
        shape = _kernel_shape(
            "ConvTranspose",
            k,
            in_features,
            out_features,
            feature_group_count,
            transpose_kernel=transpose_kernel,
        )
        self.options: dict[str, Any] = {
            "strides": s,
            "padding": geo.resolve_padding("ConvTranspose", padding, len(k)),
            "kernel_dilation": d,
            "output_padding": output_padding,
            "feature_group_count": feature_group_count,
            "transpose_kernel": transpose_kernel,
            "padding_convention": padding_convention,
            "precision": precision,
            "preferred_element_type": preferred_element_type,
            "implementation": implementation,
        }
        self.dtype, self.promote_dtype = dtype, promote_dtype
        kernel_init = kernel_init or initializers.variance_scaling_transpose(
            s, transpose_kernel=transpose_kernel, feature_group_count=feature_group_count
        )
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype), **kernel_metadata)
        self.bias = _bias(use_bias, bias_init, out_features, param_dtype, rngs, bias_metadata)
        self.mask = _mask("ConvTranspose", mask, shape)

    def __call__(self, x: jax.Array, *, output_shape: Sequence[int] | None = None) -> jax.Array:
        """Returns `conv_transpose(x, kernel) + bias`; see there for `output_shape`."""
        x, kernel, bias = _promoted(self, x)
        y = conv_transpose(x, kernel, output_shape=output_shape, **self.options)
        return y if bias is None else y + _along_last_axis(bias, y.ndim)


class Conv(nnx.Module):
    """Convolution, `tconvjax.conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      strides: input pixels per output pixel; an int serves all axes, None is 1.
      padding: as in `conv`.
      kernel_dilation: as in `conv`; None is 1.
      feature_group_count: as in `conv`.
      use_bias: whether to add one value per output channel.
      mask: multiplied with the kernel at every call; of its shape.
      dtype: of the computation; by default that to which input and parameters promote.
      param_dtype: of the parameters.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv`.
      rngs: of which `params` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
      implementation: as in `conv`.

    Raises:
      ValueError, TypeError: at construction, as `conv`.

    Example:
      >>> from flax import nnx
      >>> layer = Conv(3, 8, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 32, 32, 3))).shape
      (1, 16, 16, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        strides: Ints | None = 1,
        *,
        padding: Padding = "SAME",
        kernel_dilation: Ints | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        implementation: Implementation = "auto",
    ) -> None:
        k, s, d = _geometry("Conv", kernel_size, strides, kernel_dilation)
        shape = _kernel_shape("Conv", k, in_features, out_features, feature_group_count)
        self.options: dict[str, Any] = {
            "strides": s,
            "padding": geo.resolve_padding("Conv", padding, len(k)),
            "kernel_dilation": d,
            "feature_group_count": feature_group_count,
            "precision": precision,
            "preferred_element_type": preferred_element_type,
            "implementation": implementation,
        }
        self.dtype, self.promote_dtype = dtype, promote_dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype), **kernel_metadata)
        self.bias = _bias(use_bias, bias_init, out_features, param_dtype, rngs, bias_metadata)
        self.mask = _mask("Conv", mask, shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `conv(x, kernel) + bias`."""
        x, kernel, bias = _promoted(self, x)
        y = conv(x, kernel, **self.options)
        return y if bias is None else y + _along_last_axis(bias, y.ndim)


class ResizeConv(nnx.Module):
    """Resize-convolution, `tconvjax.resize_conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis, on the enlarged image; an int is one axis, as in Flax.
      scale: output pixels per input pixel; an int serves all axes.
      method: 'nearest' or 'linear', as in `resize`.
      padding: as in `resize_conv`.
      kernel_dilation: as in `resize_conv`.
      feature_group_count: as in `resize_conv`.
      use_bias: whether to add one value per output channel.
      mask: multiplied with the kernel at every call; of its shape.
      dtype: of the computation; by default that to which input and parameters promote.
      param_dtype: of the parameters.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv`.
      rngs: of which `params` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.

    Raises:
      ValueError, TypeError: at construction, as `resize_conv`.

    Example:
      >>> from flax import nnx
      >>> layer = ResizeConv(8, 3, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        scale: Ints,
        *,
        method: Method = "nearest",
        padding: Padding = "SAME",
        kernel_dilation: Ints | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        k, _, d = _geometry("ResizeConv", kernel_size, 1, kernel_dilation)
        shape = _kernel_shape("ResizeConv", k, in_features, out_features, feature_group_count)
        self.options: dict[str, Any] = {
            "scale": geo.per_axis("ResizeConv", "scale", scale, len(k)),
            "method": geo.choice("ResizeConv", "method", method, METHODS),
            "padding": geo.resolve_padding("ResizeConv", padding, len(k)),
            "kernel_dilation": d,
            "feature_group_count": feature_group_count,
            "precision": precision,
            "preferred_element_type": preferred_element_type,
        }
        self.dtype, self.promote_dtype = dtype, promote_dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype), **kernel_metadata)
        self.bias = _bias(use_bias, bias_init, out_features, param_dtype, rngs, bias_metadata)
        self.mask = _mask("ResizeConv", mask, shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `resize_conv(x, kernel) + bias`."""
        x, kernel, bias = _promoted(self, x)
        y = resize_conv(x, kernel, **self.options)
        return y if bias is None else y + _along_last_axis(bias, y.ndim)


def _geometry(
    who: str, kernel_size: Ints, strides: Ints | None, kernel_dilation: Ints | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    rank = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
    k = geo.per_axis(who, "kernel_size", kernel_size, rank)
    s = geo.per_axis(who, "strides", 1 if strides is None else strides, rank)
    d = geo.per_axis(
        who, "kernel_dilation", 1 if kernel_dilation is None else kernel_dilation, rank
    )
    return k, s, d


def _kernel_shape(
    who: str,
    kernel_size: tuple[int, ...],
    in_features: int,
    out_features: int,
    groups: int,
    *,
    transpose_kernel: bool = False,
) -> tuple[int, ...]:
    groups = geo.positive_int(who, "feature_group_count", groups)
    features = geo.ints(who, "in_features, out_features", (in_features, out_features), 1)
    if any(n % groups for n in features):
        raise ValueError(
            f"{who}: feature_group_count must divide in_features and out_features; got "
            f"feature_group_count={groups}, in_features={in_features}, out_features={out_features}."
        )
    if transpose_kernel:
        return (*kernel_size, out_features // groups, in_features)
    return (*kernel_size, in_features // groups, out_features)


def _bias(
    use_bias: bool,  # noqa: FBT001
    init: Initializer,
    features: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    metadata: Mapping[str, Any],
) -> nnx.Param[jax.Array] | None:
    if not use_bias:
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), (features,), dtype), **metadata)


def _mask(who: str, mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    if mask is not None and mask.shape != shape:
        raise ValueError(
            f"{who}: mask must have the shape of the kernel; got {mask.shape}, kernel {shape}."
        )
    return nnx.data(mask)


def _promoted(module: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns input, masked kernel and bias in the dtype of the computation."""
    kernel = module.kernel[...]
    if module.mask is not None:
        kernel = kernel * module.mask
    bias = None if module.bias is None else module.bias[...]
    x, kernel, bias = module.promote_dtype((x, kernel, bias), dtype=module.dtype)
    return x, kernel, bias


def _along_last_axis(bias: jax.Array, ndim: int) -> jax.Array:
    return bias.reshape((1,) * (ndim - 1) + (-1,))
