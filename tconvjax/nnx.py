"""Layers for Flax NNX: parameters and one call of the function of the same name.

Arguments are Flax's, in Flax's order, with Flax's names and defaults; ours follow, keyword-only. Parameters have Flax's
names and shapes. What differs: integers in the `padding` of `ConvTranspose` mean the padding of the forward convolution
(`padding_convention='dilated'` restores Flax's meaning); its default initializer keeps the variance of the input,
whatever the strides; `Conv` has neither `input_dilation`, for which there is `ConvTranspose`, nor Flax's hook
`conv_general_dilated`; the paddings 'CIRCULAR' and 'CAUSAL' are refused.
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
from tconvjax.ops.convolution import canonical_precision, conv, conv_transpose
from tconvjax.ops.lowerings import IMPLEMENTATIONS, Implementation
from tconvjax.ops.resize import (
    METHODS,
    RESIZE_CONV_IMPLEMENTATIONS,
    Method,
    ResizeConvImplementation,
    resize_conv,
)

default_kernel_init = jax.nn.initializers.lecun_normal()
default_bias_init = jax.nn.initializers.zeros
NO_METADATA: Mapping[str, Any] = MappingProxyType({})
LARGE = (1 << 30,)  # pixels of an axis on which any layer has output

# Attributes that a layer hands to its function.
SHARED_OPTIONS = (
    "padding",
    "kernel_dilation",
    "feature_group_count",
    "precision",
    "preferred_element_type",
    "implementation",
)
CONV_OPTIONS = ("strides", *SHARED_OPTIONS)
TRANSPOSE_OPTIONS = (
    *CONV_OPTIONS,
    "output_padding",
    "transpose_kernel",
    "padding_convention",
)
RESIZE_OPTIONS = ("scale", "method", *SHARED_OPTIONS)


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
      ValueError, TypeError: at construction, for what every call of `conv_transpose` would refuse.

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
        who, rank = "ConvTranspose", len(kernel_size) if isinstance(kernel_size, Sequence) else 1
        self.in_features, self.out_features = in_features, out_features
        self.kernel_size = geo.per_axis(who, "kernel_size", kernel_size, rank)
        self.strides = geo.per_axis(who, "strides", 1 if strides is None else strides, rank)
        self.padding = geo.resolve_padding(who, padding, rank)
        self.kernel_dilation = geo.per_axis(
            who, "kernel_dilation", 1 if kernel_dilation is None else kernel_dilation, rank
        )
        self.output_padding = output_padding
        self.feature_group_count = feature_group_count
        self.transpose_kernel = transpose_kernel
        self.padding_convention = padding_convention
        self.precision = canonical_precision(who, precision)
        self.preferred_element_type = preferred_element_type
        self.implementation = geo.choice(who, "implementation", implementation, IMPLEMENTATIONS)
        geo.conv_transpose_geometry(  # refuses now what every call would refuse
            who,
            LARGE * rank,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            output_padding=output_padding,
            kernel_dilation=self.kernel_dilation,
            padding_convention=padding_convention,
        )
        shape = _kernel_shape(self, who, transpose_kernel=transpose_kernel)
        keep_variance = initializers.variance_scaling_transpose(
            self.strides, transpose_kernel=transpose_kernel, feature_group_count=feature_group_count
        )
        _create(
            self,
            shape,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init or keep_variance,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, x: jax.Array, *, output_shape: Sequence[int] | None = None) -> jax.Array:
        """Returns `conv_transpose(x, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, conv_transpose, x, TRANSPOSE_OPTIONS, output_shape=output_shape)


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
      ValueError, TypeError: at construction, for what every call of `conv` would refuse.

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
        who, rank = "Conv", len(kernel_size) if isinstance(kernel_size, Sequence) else 1
        self.in_features, self.out_features = in_features, out_features
        self.kernel_size = geo.per_axis(who, "kernel_size", kernel_size, rank)
        self.strides = geo.per_axis(who, "strides", 1 if strides is None else strides, rank)
        self.padding = geo.resolve_padding(who, padding, rank)
        self.kernel_dilation = geo.per_axis(
            who, "kernel_dilation", 1 if kernel_dilation is None else kernel_dilation, rank
        )
        self.feature_group_count = feature_group_count
        self.precision = canonical_precision(who, precision)
        self.preferred_element_type = preferred_element_type
        self.implementation = geo.choice(who, "implementation", implementation, IMPLEMENTATIONS)
        shape = _kernel_shape(self, who)
        _create(
            self,
            shape,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `conv(x, kernel) + bias`."""
        return _apply(self, conv, x, CONV_OPTIONS)


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
      implementation: as in `resize_conv`.

    Raises:
      ValueError, TypeError: at construction, for what every call of `resize_conv` would refuse.

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
        implementation: ResizeConvImplementation = "auto",
    ) -> None:
        who, rank = "ResizeConv", len(kernel_size) if isinstance(kernel_size, Sequence) else 1
        self.in_features, self.out_features = in_features, out_features
        self.kernel_size = geo.per_axis(who, "kernel_size", kernel_size, rank)
        self.scale = geo.per_axis(who, "scale", scale, rank)
        self.method = geo.choice(who, "method", method, METHODS)
        self.padding = geo.resolve_padding(who, padding, rank)
        self.kernel_dilation = geo.per_axis(
            who, "kernel_dilation", 1 if kernel_dilation is None else kernel_dilation, rank
        )
        self.feature_group_count = feature_group_count
        self.precision = canonical_precision(who, precision)
        self.preferred_element_type = preferred_element_type
        self.implementation = geo.choice(
            who, "implementation", implementation, RESIZE_CONV_IMPLEMENTATIONS
        )
        shape = _kernel_shape(self, who)
        _create(
            self,
            shape,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `resize_conv(x, kernel) + bias`."""
        return _apply(self, resize_conv, x, RESIZE_OPTIONS)


def _kernel_shape(module: Any, who: str, *, transpose_kernel: bool = False) -> tuple[int, ...]:
    groups = geo.positive_int(who, "feature_group_count", module.feature_group_count)
    features = (module.in_features, module.out_features)
    geo.ints(who, "(in_features, out_features)", features, minimum=1)
    if any(n % groups for n in features):
        raise ValueError(
            f"{who}: feature_group_count must divide in_features and out_features; got "
            f"feature_group_count={groups}, in_features={features[0]}, out_features={features[1]}."
        )
    source, target = reversed(features) if transpose_kernel else features
    return (*module.kernel_size, source // groups, target)


def _create(
    module: Any,
    kernel_shape: tuple[int, ...],
    *,
    use_bias: bool,
    mask: jax.Array | None,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    kernel_init: Initializer,
    bias_init: Initializer,
    promote_dtype: Callable[..., Any],
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any],
    bias_metadata: Mapping[str, Any],
) -> None:
    """Gives a layer its parameters, in Flax's order of random draws."""
    who = type(module).__name__
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise ValueError(
            f"{who}: mask must have the shape of the kernel; got {jnp.shape(mask)}, kernel {kernel_shape}."
        )
    module.use_bias, module.param_dtype = use_bias, param_dtype
    module.dtype, module.promote_dtype = dtype, promote_dtype
    module.mask = nnx.data(None if mask is None else jnp.asarray(mask))
    kernel = kernel_init(rngs.params(), kernel_shape, param_dtype)
    module.kernel = nnx.Param(kernel, **kernel_metadata)
    module.bias = nnx.data(None)
    if use_bias:
        bias = bias_init(rngs.params(), (module.out_features,), param_dtype)
        module.bias = nnx.Param(bias, **bias_metadata)


def _apply(
    module: Any,
    function: Callable[..., jax.Array],
    x: jax.Array,
    options: tuple[str, ...],
    **at_call: Any,
) -> jax.Array:
    """Returns `function(x, masked kernel) + bias`, all in the dtype of the computation."""
    kernel = module.kernel[...]
    if module.mask is not None:
        kernel = kernel * module.mask
    bias = None if module.bias is None else module.bias[...]
    x, kernel, bias = module.promote_dtype((x, kernel, bias), dtype=module.dtype)
    y = function(x, kernel, **{name: getattr(module, name) for name in options}, **at_call)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
