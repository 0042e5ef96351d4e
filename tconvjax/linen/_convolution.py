"""Layers of one kernel."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from tconvjax import _layers as layers
from tconvjax._arguments import Implementation
from tconvjax._geometry import Ints, Padding, PaddingConvention, PaddingMode
from tconvjax._ops.resize import Method
from tconvjax._ops.resize_conv import ResizeConvImplementation
from tconvjax._ops.subpixel import Order

default_bias_init = jax.nn.initializers.zeros


class ConvTranspose(nn.Module):
    """Transposed convolution, `tconvjax.conv_transpose` with parameters `kernel` and `bias`.

    Attributes:
      features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax: write (3, 3) for images.
      strides: output pixels per input pixel; an int serves all axes, None is 1.
      padding: of the forward convolution, as in `conv_transpose`; or Flax's 'CIRCULAR'; or, for one
        axis, 'CAUSAL': output pixels depend on no later input, and there are s for each.
      kernel_dilation: as in `conv_transpose`; None is 1.
      use_bias: adds one value per output channel.
      mask: an array of the shape of the kernel, which multiplies it at every call.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: by default `initializers.variance_scaling_transpose(strides)`, which keeps the variance; Flax's
        default is `jax.nn.initializers.lecun_normal()`.
      bias_init: zeros by default.
      transpose_kernel: as in `conv_transpose`.
      promote_dtype: Flax's hook, `f(x, kernel, bias, dtype=dtype)`.
      preferred_element_type: as in `conv_transpose`.
      padding_mode: as in `conv_transpose`.
      output_padding: as in `conv_transpose`.
      feature_group_count: as in `conv_transpose`.
      padding_convention: as in `conv_transpose`.
      implementation: as in `conv_transpose`.
      balanced: replaces the kernel by `analysis.balance(kernel)` at every call, so that constants come out constant at
        every step of training; for undilated, unmasked kernels of at least the size of the strides.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = ConvTranspose(3, (4, 4), 2, padding=1)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 32, 32, 3), (4, 4, 8, 3))
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = None
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = None
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    transpose_kernel: bool = False
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    output_padding: Ints | None = None
    feature_group_count: int = 1
    padding_convention: PaddingConvention = "forward"
    implementation: Implementation = "auto"
    balanced: bool = False

    def __post_init__(self) -> None:
        spec = spec_of(self, layers.CONV_TRANSPOSE, None)
        integers = spec.kernel_size, spec.options["strides"], spec.options["kernel_dilation"]
        layers.check_balanced("ConvTranspose", *integers, self.mask, balanced=self.balanced)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `conv_transpose(inputs, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, layers.CONV_TRANSPOSE, inputs, output_shape=output_shape)


class Conv(nn.Module):
    """Convolution, `tconvjax.conv` with parameters `kernel` and `bias`.

    Attributes:
      features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax: write (3, 3) for images.
      strides: input pixels per output pixel; an int serves all axes, None is 1.
      padding: as in `conv`; or Flax's 'CIRCULAR', 'REFLECT' and, for one axis, 'CAUSAL'.
      input_dilation: inserts `input_dilation − 1` zeros between input pixels; None is 1. `ConvTranspose` does the same
        without multiplying zeros.
      kernel_dilation: as in `conv`; None is 1.
      feature_group_count: as in `conv`.
      use_bias: adds one value per output channel.
      mask: an array of the shape of the kernel, which multiplies it at every call.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      promote_dtype: Flax's hook, `f(x, kernel, bias, dtype=dtype)`.
      conv_general_dilated: Flax's hook: what computes in place of `jax.lax.conv_general_dilated`, called as Flax does;
        by default nothing, and this library computes.
      conv_general_dilated_cls: Flax's other hook: makes the one above.
      preferred_element_type: as in `conv`.
      padding_mode: as in `conv`.
      implementation: as in `conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = Conv(8, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0].shape
      (1, 16, 16, 8)
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = 1
    padding: Padding = "SAME"
    input_dilation: Ints | None = 1
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    conv_general_dilated: layers.Hook | None = None
    conv_general_dilated_cls: Callable[[], layers.Hook] | None = None
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, layers.CONV)
        hook: Any = self.conv_general_dilated_cls or self.conv_general_dilated
        layers.check_hook("Conv", hook, self.implementation)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `conv(inputs, kernel) + bias`."""
        make = self.conv_general_dilated_cls
        hook = self.conv_general_dilated if make is None else make()
        hook = layers.check_hook("Conv", hook, self.implementation)
        if hook is None:
            return _apply(self, layers.CONV, inputs)
        options, operands = _operands(self, layers.CONV, inputs)
        return layers.hooked("Conv", hook, options, *operands)


class ResizeConv(nn.Module):
    """Resize-convolution, `tconvjax.resize_conv` with parameters `kernel` and `bias`.

    Attributes:
      features: channels of the output.
      kernel_size: one integer per spatial axis, on the enlarged image; an int is one axis, as in Flax: write (3, 3) for
        images.
      scale: output pixels per input pixel; an int serves all axes.
      method: as in `resize`.
      padding: as in `resize_conv`.
      kernel_dilation: as in `resize_conv`.
      feature_group_count: as in `resize_conv`.
      use_bias: adds one value per output channel.
      mask: an array of the shape of the kernel, which multiplies it at every call.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      promote_dtype: Flax's hook, `f(x, kernel, bias, dtype=dtype)`.
      preferred_element_type: as in `conv`.
      padding_mode: as in `resize_conv`.
      implementation: as in `resize_conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = ResizeConv(3, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)
    """

    features: int
    kernel_size: Ints
    scale: Ints
    method: Method = "nearest"
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: ResizeConvImplementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, layers.RESIZE_CONV)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `resize_conv(inputs, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, layers.RESIZE_CONV, inputs, output_shape=output_shape)


class SubpixelConv(nn.Module):
    """Sub-pixel convolution, `tconvjax.subpixel_conv` with parameters `kernel` and `bias`.

    Attributes:
      features: channels of the output; the kernel has `prod(scale)` times as many.
      kernel_size: one integer per spatial axis, on the small image; an int is one axis, as in Flax: write (3, 3) for
        images.
      scale: output pixels per input pixel; an int serves all axes.
      order: as in `subpixel_conv`.
      padding: as in `subpixel_conv`.
      kernel_dilation: as in `subpixel_conv`.
      feature_group_count: as in `subpixel_conv`.
      use_bias: adds one value per output of the kernel (output channels times phases) before the shuffle.
      mask: an array of the shape of the kernel, which multiplies it at every call.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      promote_dtype: Flax's hook, `f(x, kernel, bias, dtype=dtype)`.
      preferred_element_type: as in `conv`.
      padding_mode: as in `subpixel_conv`.
      implementation: as in `subpixel_conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = SubpixelConv(3, (3, 3), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)

    References:
      Shi et al. 2016, arXiv:1609.05158.
    """

    features: int
    kernel_size: Ints
    scale: Ints
    order: Order = "CRD"
    padding: Padding = "SAME"
    kernel_dilation: Ints | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: jax.Array | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = default_bias_init
    promote_dtype: Callable[..., Any] = promote_dtype
    preferred_element_type: DTypeLike | None = None
    padding_mode: PaddingMode = "zeros"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _refuse(self, layers.SUBPIXEL_CONV)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `subpixel_conv(inputs, kernel) + bias`; see there for `output_shape`."""
        return _apply(self, layers.SUBPIXEL_CONV, inputs, output_shape=output_shape)


def stream(
    layer: Conv | ConvTranspose, variables: Any, x: jax.Array, state: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Runs a causal layer on the next chunk of a signal: `(*batch, n, in)` to its output and the state behind it.

    The chunks of a signal, of any lengths, give bitwise what the whole gives as one chunk, and up to rounding
    `layer.apply(variables, x)`.

    Args:
      layer: with one spatial axis and padding='CAUSAL'.
      variables: of the layer alone, `{"params": {"kernel": ..., "bias": ...}}`.
      x: the next pixels; for a `Conv` with strides a multiple of them.
      state: of the chunk before; None at the beginning.

    Returns:
      As `causal_conv` and `causal_conv_transpose`, with the bias of the layer.

    Raises:
      ValueError: for a layer that is not causal; else as `causal_conv`.
      TypeError: if `layer` is neither a `Conv` nor a `ConvTranspose` of this module.

    Example:
      >>> layer, x = ConvTranspose(4, 16, 8, padding="CAUSAL"), jnp.zeros((1, 5, 8))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, state = stream(layer, variables, x)
      >>> more, state = stream(layer, variables, x[:, :2], state)
      >>> y.shape, more.shape
      ((1, 40, 4), (1, 16, 4))
    """
    if not isinstance(layer, Conv | ConvTranspose):
        raise TypeError(
            f"stream: layer must be a Conv or ConvTranspose of tconvjax.linen; got {type(layer).__name__}. "
            "For NNX: tconvjax.nnx.stream."
        )
    layers.refuse_hook("stream", layer)
    transpose = isinstance(layer, ConvTranspose)
    kind = layers.CONV_TRANSPOSE if transpose else layers.CONV
    spec = spec_of(layer, kind, layers.image(type(layer).__name__, x).shape[-1])
    params = nn.meta.unbox(variables)["params"]
    kernel = layers.effective_kernel(layer, spec.options, params["kernel"])
    x, kernel, bias = layer.promote_dtype(x, kernel, params.get("bias"), dtype=layer.dtype)
    return layers.stream(transpose, spec.kernel_size, spec.options, x, kernel, bias, state)


class Upsample(nn.Module):
    """Learned upsampling by whole factors with a switch between its kinds, for ablations.

    With every method, `(*batch, *spatial, in_features)` becomes `(*batch, *(scale · spatial), out_features)`, and the
    parameters belong to the one layer inside, `layer`.

    Attributes:
      features: channels of the output.
      kernel_size: the kernel size of the layer; an int is one axis, as in Flax: write (3, 3) for images. In output
        pixels for 'conv_transpose' and the resizing methods, in input pixels for 'subpixel_conv'.
      scale: output pixels per input pixel; an int serves all axes.
      method: 'conv_transpose', 'subpixel_conv', or a method of `resize` for a resize-convolution.
      order: as in `subpixel_conv`, and for this method alone; None is 'CRD'.
      padding_mode: of the layer, whose padding is 'SAME'.
      options: other keywords of the layer inside, such as `use_bias`, `dtype` or `kernel_init`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = Upsample(3, (3, 3), 2, method="nearest", options={"use_bias": False})
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))
      >>> y.shape, list(variables["params"]["layer"])
      ((1, 32, 32, 3), ['kernel'])
    """

    features: int
    kernel_size: Ints
    scale: Ints
    method: layers.UpsampleMethod = "conv_transpose"
    order: Order | None = None
    padding_mode: PaddingMode = "zeros"
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        self._layer(parent=None)
        self.options = FrozenDict(self.options)  # as hashable as any other layer
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns the enlarged images; for `output_shape` see the function of the layer inside."""
        return self._layer(name="layer")(inputs, output_shape=output_shape)

    @nn.nowrap  # the constructor calls it, too, without a scope
    def _layer(self, **place: Any) -> nn.Module:
        name, method_options = layers.upsampler(
            "Upsample", self.kernel_size, self.scale, self.method, self.order, self.options
        )
        return globals()[name](
            self.features,
            self.kernel_size,
            self.scale,
            padding_mode=self.padding_mode,
            **method_options,
            **self.options,
            **place,
        )


def spec_of(module: Any, kind: layers.Kind, in_features: int | None) -> layers.Spec:
    """Resolves the fields of a layer; None for channels of the input that are not known yet."""
    who = type(module).__name__
    options = {name: getattr(module, name) for name in kind.option_names}
    features = in_features, module.features
    resolved = layers.spec(who, kind, *features, module.kernel_size, out_name="features", **options)
    mask = module.mask if in_features else None  # without them the shape of the kernel is unknown
    layers.check_parameters(who, mask, resolved.kernel_shape, module.dtype, module.param_dtype)
    return resolved


def _refuse(module: Any, kind: layers.Kind) -> None:
    """Raises at construction for arguments that every call would refuse."""
    spec_of(module, kind, None)


def _apply(module: Any, kind: layers.Kind, x: jax.Array, **at_call: Any) -> jax.Array:
    """Returns `function(x, effective kernel) + bias`, all in the dtype of the computation."""
    options, operands = _operands(module, kind, x)
    return layers.apply(kind, options | at_call, *operands)


def _operands(module: Any, kind: layers.Kind, x: jax.Array) -> tuple[dict[str, Any], Any]:
    """Returns the options of the function, and image, kernel and bias in the dtype of the computation."""
    x = layers.image(type(module).__name__, x)
    spec = spec_of(module, kind, x.shape[-1])
    init = module.kernel_init or spec.kernel_init
    kernel = module.param("kernel", init, spec.kernel_shape, module.param_dtype)
    kernel = layers.effective_kernel(module, spec.options, kernel)
    bias = None
    if module.use_bias:
        bias = module.param("bias", module.bias_init, spec.bias_shape, module.param_dtype)
    return spec.options, module.promote_dtype(x, kernel, bias, dtype=module.dtype)
