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
from tconvjax._geometry import Ints, Padding, PaddingConvention, PaddingMode, Pairs, StringPadding
from tconvjax._ops.resize import Method
from tconvjax._ops.resize_conv import ResizeConvImplementation
from tconvjax._ops.subpixel import Order

default_bias_init = jax.nn.initializers.zeros
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class _Layer(nnx.Module):
    """One kernel, one bias, and the resolved options of one function, as attributes to read."""

    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None
    mask: jax.Array | None
    in_features: int
    out_features: int
    kernel_size: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    padding: StringPadding | Pairs
    padding_mode: PaddingMode
    kernel_dilation: tuple[int, ...]
    feature_group_count: int
    use_bias: bool
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    preferred_element_type: DTypeLike | None
    promote_dtype: Callable[..., Any]
    implementation: str

    def _create(self, kind: layers.Kind, arguments: Mapping[str, Any]) -> None:
        """Resolves the arguments of a constructor, given by name, and draws parameters in Flax's order."""
        given = dict(arguments)
        who, param_dtype = type(self).__name__, given["param_dtype"]
        features = given["in_features"], given["out_features"]
        options = {name: given[name] for name in kind.option_names}
        spec = layers.spec(who, kind, *features, given["kernel_size"], **options)
        mask = given["mask"]
        layers.check_parameters(who, mask, spec.kernel_shape, given["dtype"], param_dtype)
        for name, value in spec.options.items():
            setattr(self, name, value)
        self.in_features, self.out_features = features
        self.kernel_size, self.kernel_shape = spec.kernel_size, spec.kernel_shape
        self.use_bias, self.param_dtype = given["use_bias"], param_dtype
        self.dtype, self.promote_dtype = given["dtype"], given["promote_dtype"]
        self.mask = nnx.data(None if mask is None else jnp.asarray(mask))
        params, init = given["rngs"].params, given["kernel_init"] or spec.kernel_init
        kernel = init(params(), spec.kernel_shape, param_dtype)
        self.kernel = nnx.Param(kernel, **given["kernel_metadata"])
        self.bias = nnx.data(None)
        if self.use_bias:
            bias = given["bias_init"](params(), spec.bias_shape, param_dtype)
            self.bias = nnx.Param(bias, **given["bias_metadata"])

    def _apply(self, kind: layers.Kind, x: jax.Array, **at_call: Any) -> jax.Array:
        """Returns `function(x, effective kernel) + bias`, all in the dtype of the computation."""
        options, operands = self._operands(kind, x)
        return layers.apply(kind, options | at_call, *operands)

    def _operands(self, kind: layers.Kind, x: jax.Array) -> tuple[dict[str, Any], Any]:
        """Returns the options of the function, and image, kernel and bias in the dtype of the computation."""
        x = layers.image(type(self).__name__, x)
        options = {name: getattr(self, name) for name in kind.option_names}
        kernel = layers.effective_kernel(self, options, self.kernel[...])
        bias = None if self.bias is None else self.bias[...]
        return options, self.promote_dtype((x, kernel, bias), dtype=self.dtype)


class ConvTranspose(_Layer):
    """Transposed convolution, `tconvjax.conv_transpose` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
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
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv_transpose`.
      rngs: `rngs.params()` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
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
      >>> from flax import nnx
      >>> layer = ConvTranspose(8, 3, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    PyTorch:
      `torch.nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)`.
    """

    strides: tuple[int, ...]
    output_padding: tuple[int, ...] | None
    transpose_kernel: bool
    padding_convention: PaddingConvention
    balanced: bool

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
        self._create(layers.CONV_TRANSPOSE, locals())
        integers = self.kernel_size, self.strides, self.kernel_dilation
        layers.check_balanced("ConvTranspose", *integers, mask, balanced=balanced)
        self.balanced = balanced

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `conv_transpose(inputs, kernel) + bias`; see there for `output_shape`."""
        return self._apply(layers.CONV_TRANSPOSE, inputs, output_shape=output_shape)


class Conv(_Layer):
    """Convolution, `tconvjax.conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
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
      conv_general_dilated: Flax's hook: what computes in place of `jax.lax.conv_general_dilated`, called as Flax does;
        by default nothing, and this library computes.
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv`.
      rngs: `rngs.params()` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
      padding_mode: as in `conv`.
      implementation: as in `conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from flax import nnx
      >>> layer = Conv(3, 8, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 32, 32, 3))).shape
      (1, 16, 16, 8)
    """

    strides: tuple[int, ...]
    input_dilation: tuple[int, ...]
    conv_general_dilated: layers.Hook

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
        conv_general_dilated: layers.Hook = lax.conv_general_dilated,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        padding_mode: PaddingMode = "zeros",
        implementation: Implementation = "auto",
    ) -> None:
        self._create(layers.CONV, locals())
        layers.check_hook("Conv", conv_general_dilated, implementation)
        self.conv_general_dilated = conv_general_dilated

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Returns `conv(inputs, kernel) + bias`, under Explicit axes with a sharding of the user's."""
        hook = layers.check_hook("Conv", self.conv_general_dilated, self.implementation)
        if hook is not None:
            options, (x, kernel, bias) = self._operands(layers.CONV, inputs)
            return layers.hooked("Conv", hook, options, x, kernel, bias, out_sharding=out_sharding)
        return layers.placed(self._apply(layers.CONV, inputs), out_sharding)


class ResizeConv(_Layer):
    """Resize-convolution, `tconvjax.resize_conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
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
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv`.
      rngs: `rngs.params()` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
      padding_mode: as in `resize_conv`.
      implementation: as in `resize_conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from flax import nnx
      >>> layer = ResizeConv(8, 3, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)
    """

    scale: tuple[int, ...]
    method: Method

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
        self._create(layers.RESIZE_CONV, locals())

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `resize_conv(inputs, kernel) + bias`; see there for `output_shape`."""
        return self._apply(layers.RESIZE_CONV, inputs, output_shape=output_shape)


class SubpixelConv(_Layer):
    """Sub-pixel convolution, `tconvjax.subpixel_conv` with parameters `kernel` and `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output; the kernel has `prod(scale)` times as many.
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
      promote_dtype: Flax's hook, `f((x, kernel, bias), dtype=dtype)`.
      preferred_element_type: as in `conv`.
      rngs: `rngs.params()` is used.
      kernel_metadata: keywords of the kernel's `nnx.Param`.
      bias_metadata: keywords of the bias's `nnx.Param`.
      padding_mode: as in `subpixel_conv`.
      implementation: as in `subpixel_conv`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from flax import nnx
      >>> layer = SubpixelConv(8, 3, (3, 3), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    References:
      Shi et al. 2016, arXiv:1609.05158.
    """

    scale: tuple[int, ...]
    order: Order

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
        self._create(layers.SUBPIXEL_CONV, locals())

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `subpixel_conv(inputs, kernel) + bias`; see there for `output_shape`."""
        return self._apply(layers.SUBPIXEL_CONV, inputs, output_shape=output_shape)


def stream(
    layer: Conv | ConvTranspose, x: jax.Array, state: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Runs a causal layer on the next chunk of a signal: `(*batch, n, in)` to its output and the state behind it.

    The chunks of a signal, of any lengths, give bitwise what the whole gives as one chunk, and up to rounding
    `layer(x)`.

    Args:
      layer: with one spatial axis and padding='CAUSAL'.
      x: the next pixels; for a `Conv` with strides a multiple of them.
      state: of the chunk before; None at the beginning.

    Returns:
      As `causal_conv` and `causal_conv_transpose`, with the bias of the layer.

    Raises:
      ValueError: for a layer that is not causal; else as `causal_conv`.
      TypeError: if `layer` is neither a `Conv` nor a `ConvTranspose` of this module.

    Example:
      >>> from flax import nnx
      >>> layer = ConvTranspose(8, 4, 16, 8, padding="CAUSAL", rngs=nnx.Rngs(0))
      >>> y, state = stream(layer, jnp.zeros((1, 5, 8)))
      >>> more, state = stream(layer, jnp.zeros((1, 2, 8)), state)
      >>> y.shape, more.shape
      ((1, 40, 4), (1, 16, 4))
    """
    if not isinstance(layer, Conv | ConvTranspose):
        raise TypeError(
            f"stream: layer must be a Conv or ConvTranspose of tconvjax.nnx; got {type(layer).__name__}. "
            "For Linen: tconvjax.linen.stream."
        )
    layers.refuse_hook("stream", layer)
    transpose = isinstance(layer, ConvTranspose)
    kind = layers.CONV_TRANSPOSE if transpose else layers.CONV
    options, (x, kernel, bias) = layer._operands(kind, x)
    return layers.stream(transpose, layer.kernel_size, options, x, kernel, bias, state)


class Upsample(nnx.Module):
    """Learned upsampling by whole factors with a switch between its kinds, for ablations.

    With every method, `(*batch, *spatial, in_features)` becomes `(*batch, *(scale · spatial), out_features)`, and the
    parameters belong to the one layer inside, `layer`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: the kernel size of the layer; an int is one axis, as in Flax: write (3, 3) for images. In output
        pixels for 'conv_transpose' and the resizing methods, in input pixels for 'subpixel_conv'.
      scale: output pixels per input pixel; an int serves all axes.
      method: 'conv_transpose', 'subpixel_conv', or a method of `resize` for a resize-convolution.
      order: as in `subpixel_conv`, and for this method alone; None is 'CRD'.
      padding_mode: of the layer, whose padding is 'SAME'.
      **options: other keywords of the layer, such as `use_bias`, `dtype` or `kernel_init`; in Linen, which has no
        such arguments, the mapping `options`.
      rngs: `rngs.params()` is used.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

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
        name, method_options = layers.upsampler(
            "Upsample", kernel_size, scale, method, order, options
        )
        self.method = method
        self.layer = globals()[name](
            in_features,
            out_features,
            kernel_size,
            scale,
            padding_mode=padding_mode,
            rngs=rngs,
            **method_options,
            **options,
        )

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns the enlarged images; for `output_shape` see the function of the layer inside."""
        return self.layer(inputs, output_shape=output_shape)
