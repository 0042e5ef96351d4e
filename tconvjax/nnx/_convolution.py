"""Layers of one kernel."""

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

from tconvjax import _layers as layers
from tconvjax._arguments import Implementation
from tconvjax._geometry import Ints, Padding, PaddingConvention, PaddingMode
from tconvjax._ops.convolution import conv_transpose
from tconvjax._ops.resize import Method
from tconvjax._ops.resize_conv import ResizeConvImplementation, resize_conv
from tconvjax._ops.subpixel import Order, subpixel_conv

default_bias_init = jax.nn.initializers.zeros
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class ConvTranspose(nnx.Module):
    """Transposed convolution, `tconvjax.conv_transpose` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      strides: output pixels per input pixel; an int serves all axes, None is 1.
      padding: of the forward convolution, as in `conv_transpose`; or Flax's 'CIRCULAR'.
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
      padding_mode: as in `conv_transpose`.
      output_padding: as in `conv_transpose`.
      feature_group_count: as in `conv_transpose`.
      padding_convention: as in `conv_transpose`.
      implementation: as in `conv_transpose`.
      balanced: puts `analysis.balance(kernel)` in the place of the kernel at every call, so that constants come out
        constant however long the layer is trained; for undilated, unmasked kernels of at least the size of the strides.

    Raises:
      ValueError, TypeError: at construction, for what every call would refuse.

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
        padding_mode: PaddingMode = "zeros",
        output_padding: Ints | None = None,
        feature_group_count: int = 1,
        padding_convention: PaddingConvention = "forward",
        implementation: Implementation = "auto",
        balanced: bool = False,
    ) -> None:
        spec = layers.spec(
            "ConvTranspose",
            conv_transpose,
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            padding_mode=padding_mode,
            output_padding=output_padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            transpose_kernel=transpose_kernel,
            padding_convention=padding_convention,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        _create(
            self,
            spec,
            in_features,
            out_features,
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
        layers.check_balanced("ConvTranspose", spec, mask, balanced=balanced)
        self.balanced = balanced

    def __call__(self, x: jax.Array, *, output_shape: Sequence[int] | None = None) -> jax.Array:
        """Returns `conv_transpose(x, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, conv_transpose, x, output_shape=output_shape)


class Conv(nnx.Module):
    """Convolution, `tconvjax.conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      strides: input pixels per output pixel; an int serves all axes, None is 1.
      padding: as in `conv`; or Flax's 'CIRCULAR', 'REFLECT' and, for one axis, 'CAUSAL'.
      input_dilation: inserts `input_dilation − 1` zeros between input pixels; None is 1. `ConvTranspose` does the same
        without multiplying zeros.
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
      padding_mode: as in `conv`.
      implementation: as in `conv`.

    Raises:
      ValueError, TypeError: at construction, for what every call would refuse.

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
        input_dilation: Ints | None = 1,
        kernel_dilation: Ints | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        padding_mode: PaddingMode = "zeros",
        implementation: Implementation = "auto",
    ) -> None:
        spec = layers.spec(
            "Conv",
            layers.strided_conv,
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            padding_mode=padding_mode,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        _create(
            self,
            spec,
            in_features,
            out_features,
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
        return _apply(self, layers.strided_conv, x)


class ResizeConv(nnx.Module):
    """Resize-convolution, `tconvjax.resize_conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis, on the enlarged image; an int is one axis, as in Flax.
      scale: output pixels per input pixel; an int serves all axes.
      method: as in `resize`.
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
      padding_mode: as in `resize_conv`.
      implementation: as in `resize_conv`.

    Raises:
      ValueError, TypeError: at construction, for what every call would refuse.

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
        kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        padding_mode: PaddingMode = "zeros",
        implementation: ResizeConvImplementation = "auto",
    ) -> None:
        spec = layers.spec(
            "ResizeConv",
            resize_conv,
            in_features,
            out_features,
            kernel_size,
            scale=scale,
            method=method,
            padding=padding,
            padding_mode=padding_mode,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        _create(
            self,
            spec,
            in_features,
            out_features,
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
        return _apply(self, resize_conv, x)


class SubpixelConv(nnx.Module):
    """Sub-pixel convolution, `tconvjax.subpixel_conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output; the kernel has `prod(scale)` times as many.
      kernel_size: one integer per spatial axis, on the small image; an int is one axis, as in Flax.
      scale: output pixels per input pixel; an int serves all axes.
      order: as in `subpixel_conv`.
      padding: as in `subpixel_conv`.
      kernel_dilation: as in `subpixel_conv`.
      feature_group_count: as in `subpixel_conv`.
      use_bias: whether to add one value per channel of the kernel: output channels times phases, as a convolution
        before the shuffle does.
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
      padding_mode: as in `subpixel_conv`.
      implementation: as in `subpixel_conv`.

    Raises:
      ValueError, TypeError: at construction, for what every call would refuse.

    Example:
      >>> from flax import nnx
      >>> layer = SubpixelConv(8, 3, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    References:
      Shi et al. 2016, arXiv:1609.05158.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        scale: Ints,
        *,
        order: Order = "CRD",
        padding: Padding = "SAME",
        kernel_dilation: Ints | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        padding_mode: PaddingMode = "zeros",
        implementation: Implementation = "auto",
    ) -> None:
        spec = layers.spec(
            "SubpixelConv",
            subpixel_conv,
            in_features,
            out_features,
            kernel_size,
            scale=scale,
            order=order,
            padding=padding,
            padding_mode=padding_mode,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
        )
        _create(
            self,
            spec,
            in_features,
            out_features,
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
        """Returns `subpixel_conv(x, kernel) + bias`."""
        return _apply(self, subpixel_conv, x)


class Upsample(nnx.Module):
    """Learned upsampling by whole factors with a switch between its kinds, for ablations.

    Whatever the method, `(*batch, *spatial, in_features)` becomes `(*batch, *(scale · spatial), out_features)`, and the
    parameters are those of the one layer inside, `layer`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: of the layer; an int is one axis, as in Flax. On the output's grid for 'conv_transpose' and the
        resizing methods, on the input's for 'subpixel_conv'.
      scale: output pixels per input pixel; an int serves all axes.
      method: 'conv_transpose', 'subpixel_conv', or a method of `resize` for a resize-convolution.
      order: as in `subpixel_conv`, and for this method alone; None is 'CRD'.
      padding_mode: of the layer, whose padding is 'SAME'.
      **options: other keywords of the layer, such as `use_bias`, `dtype` or `kernel_init`; in Linen, which has no
        such arguments, the mapping `options`.
      rngs: of which `params` is used.

    Raises:
      ValueError, TypeError: at construction, for what every call would refuse.

    Example:
      >>> from flax import nnx
      >>> layer = Upsample(8, 3, (3, 3), 2, method="nearest", rngs=nnx.Rngs(0))
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
        method: layers.UpsampleMethod = "conv_transpose",
        order: Order | None = None,
        padding_mode: PaddingMode = "zeros",
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        name, own = layers.upsampler("Upsample", kernel_size, scale, method, order, options)
        self.layer = globals()[name](
            in_features,
            out_features,
            kernel_size,
            scale,
            padding_mode=padding_mode,
            rngs=rngs,
            **own,
            **options,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the enlarged images."""
        return self.layer(x)


def _create(
    module: Any,
    spec: layers.Spec,
    in_features: int,
    out_features: int,
    *,
    use_bias: bool,
    mask: jax.Array | None,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    kernel_init: Initializer | None,
    bias_init: Initializer,
    promote_dtype: Callable[..., Any],
    rngs: nnx.Rngs,
    kernel_metadata: Mapping[str, Any],
    bias_metadata: Mapping[str, Any],
) -> None:
    """Gives a layer its options as attributes and its parameters, in Flax's order of random draws."""
    who = type(module).__name__
    layers.check_parameters(who, mask, spec.kernel_shape, dtype, param_dtype)
    for name, value in spec.options.items():
        setattr(module, name, value)
    module.in_features, module.out_features = in_features, out_features
    module.kernel_size, module.kernel_shape = spec.kernel_size, spec.kernel_shape
    module.use_bias, module.param_dtype = use_bias, param_dtype
    module.dtype, module.promote_dtype = dtype, promote_dtype
    module.mask = nnx.data(None if mask is None else jnp.asarray(mask))
    init = kernel_init or spec.kernel_init
    module.kernel = nnx.Param(
        init(rngs.params(), spec.kernel_shape, param_dtype), **kernel_metadata
    )
    module.bias = nnx.data(None)
    if use_bias:
        bias = bias_init(rngs.params(), spec.bias_shape, param_dtype)
        module.bias = nnx.Param(bias, **bias_metadata)


def _apply(
    module: Any, function: Callable[..., jax.Array], x: jax.Array, **at_call: Any
) -> jax.Array:
    """Returns `function(x, effective kernel) + bias`, all in the dtype of the computation."""
    x = layers.image(type(module).__name__, x)
    options = {name: getattr(module, name) for name in layers.option_names(function)}
    kernel = layers.effective_kernel(module, options, module.kernel[...])
    bias = None if module.bias is None else module.bias[...]
    x, kernel, bias = module.promote_dtype((x, kernel, bias), dtype=module.dtype)
    return layers.apply(function, options | at_call, x, kernel, bias)
