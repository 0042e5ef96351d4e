"""Published upsamplers made of several layers."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import Initializer, glorot_uniform, lecun_normal, normal, zeros
from jax.typing import DTypeLike

from tconvjax import _layers as layers
from tconvjax._geometry import Ints, PaddingMode
from tconvjax._ops.adaptive import carafe, dysample
from tconvjax._ops.subpixel import pixel_conv_transpose
from tconvjax.nnx._convolution import Conv, ConvTranspose


class PixelConvTranspose(nnx.Module):
    """Pixel transposed convolution, `tconvjax.pixel_conv_transpose` with parameters `kernel_0` to `kernel_2`, `bias`.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: of the first two kernels, two integers; the third has 3 x 3 taps, as published.
      padding_mode: as in `pixel_conv_transpose`.
      use_bias: adds one value per output channel.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: of all kernels; `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.
      rngs: `rngs.params()` is used.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = PixelConvTranspose(8, 3, (3, 3), rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    References:
      Gao et al. 2017, arXiv:1705.06820.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        *,
        padding_mode: PaddingMode = "zeros",
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        rngs: nnx.Rngs,
    ) -> None:
        shapes = layers.pixel_kernel_shapes(
            "PixelConvTranspose", in_features, out_features, kernel_size, padding_mode
        )
        layers.check_parameters("PixelConvTranspose", None, (), dtype, param_dtype)
        self.in_features, self.out_features = in_features, out_features
        self.kernel_size, self.padding_mode = shapes[0][:2], padding_mode
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        init = kernel_init or lecun_normal()
        for i, shape in enumerate(shapes):
            setattr(self, f"kernel_{i}", nnx.Param(init(rngs.params(), shape, param_dtype)))
        self.bias = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype))

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `pixel_conv_transpose(inputs, kernels) + bias`; see there for `output_shape`."""
        bias = None if self.bias is None else self.bias[...]
        kernels = [getattr(self, f"kernel_{i}")[...] for i in range(3)]
        inputs, bias, *kernels = nnx.nn.dtypes.promote_dtype(
            (inputs, bias, *kernels), dtype=self.dtype
        )
        y = pixel_conv_transpose(
            inputs,
            kernels,
            padding_mode=self.padding_mode,
            precision=self.precision,
            output_shape=output_shape,
        )
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class LargeContextConvTranspose(nnx.Module):
    """The sum of a large and a small transposed convolution: the large one gives context, the small one detail.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: the size of the large kernel, 7 or 11 along each axis as published; an int is one axis, as in Flax:
        write (3, 3) for images.
      strides: the strides of both; an int serves all axes.
      small_kernel_size: the size of the small kernel; as even or odd as the large one, so that both have the same
        center.
      **options: other keywords of `ConvTranspose`, such as `dtype` or `kernel_init`, for both layers; a bias belongs to
        the large one alone.
      rngs: `rngs.params()` is used.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = LargeContextConvTranspose(8, 3, (7, 7), 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    References:
      Agnihotri, Grabinski & Keuper 2024, arXiv:2311.17524.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Ints,
        strides: Ints | None = None,
        *,
        small_kernel_size: Ints = 3,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        large, small = layers.large_and_small(
            "LargeContextConvTranspose", kernel_size, small_kernel_size, options
        )
        features = in_features, out_features
        self.large = ConvTranspose(*features, large, strides, rngs=rngs, **options)
        self.small = ConvTranspose(
            *features, small, strides, rngs=rngs, **options | {"use_bias": False}
        )

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns the sum of both layers; of a size as `conv_transpose` takes it."""
        return self.large(inputs, output_shape=output_shape) + self.small(
            inputs, output_shape=output_shape
        )


class Carafe(nnx.Module):
    """Content-aware reassembly of features: `tconvjax.carafe` with kernels from two convolutions.

    `compress`, a 1 x 1 convolution, and `encode` give `prod(scale)` kernels per input pixel, shuffled in the order
    'CRD' and normalized by a softmax. Channels are not mixed.

    Args:
      in_features: channels of the input, and of the output.
      scale: output pixels per input pixel, one factor per spatial axis.
      window: as in `carafe`.
      encoder_kernel_size: of `encode`, along every axis.
      compressed_features: channels between the two.
      padding_mode: as in `carafe`.
      **options: keywords of `Conv`, such as `dtype`, for both layers.
      rngs: `rngs.params()` is used.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = Carafe(8, (2, 2), rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 8)

    References:
      Wang et al. 2019, arXiv:1905.02188.
    """

    def __init__(
        self,
        in_features: int,
        scale: Sequence[int],
        *,
        window: Ints = 5,
        encoder_kernel_size: int = 3,
        compressed_features: int = 64,
        padding_mode: PaddingMode = "zeros",
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        self.scale, self.window, self.padding_mode = layers.carafe_options(
            "Carafe", scale, window, padding_mode
        )
        rank, taps = len(self.scale), prod(self.window)
        self.compress = Conv(
            in_features,
            compressed_features,
            (1,) * rank,
            rngs=rngs,
            **{"kernel_init": glorot_uniform()} | options,
        )
        self.encode = Conv(
            compressed_features,
            taps * prod(self.scale),
            (encoder_kernel_size,) * rank,
            rngs=rngs,
            **{"kernel_init": normal(1e-3)} | options,
        )

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `carafe(inputs, kernels)`; see there for `output_shape`."""
        compressed = layers.continued(
            "Carafe", self.compress(inputs), self.scale, output_shape, "zeros"
        )
        logits = layers.shuffled(self.encode(compressed), self.scale, output_shape)
        return carafe(
            inputs,
            jax.nn.softmax(logits),
            scale=self.scale,
            window=self.window,
            padding_mode=self.padding_mode,
            output_shape=output_shape,
        )


class DySample(nnx.Module):
    """Dynamic upsampling: `tconvjax.dysample` with offsets from a 1 x 1 convolution of the input.

    Offsets are `offset(x) / 4`, or `sigmoid(scope(x)) · offset(x) / 2`, shuffled in the order 'CRD'; the first spatial
    axis comes first. Channels are not mixed.

    Args:
      in_features: channels of the input, and of the output.
      scale: output pixels per input pixel, one factor per spatial axis.
      groups: of consecutive channels, each with offsets of its own; divides `in_features`.
      dynamic_scope: computes the reach of the offsets by a second convolution.
      **options: keywords of `Conv`, such as `dtype`, for the layer `offset`.
      rngs: `rngs.params()` is used.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = DySample(8, (2, 2), rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 8)

    References:
      Liu et al. 2023, arXiv:2308.15085.
    """

    def __init__(
        self,
        in_features: int,
        scale: Sequence[int],
        *,
        groups: int = 4,
        dynamic_scope: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        self.scale, self.groups = layers.dysample_options("DySample", in_features, scale, groups)
        rank = len(self.scale)
        shape = in_features, groups * rank * prod(self.scale), (1,) * rank
        self.offset = Conv(*shape, rngs=rngs, **{"kernel_init": normal(1e-3)} | options)
        self.scope = nnx.data(None)
        if dynamic_scope:
            scope_options: dict[str, Any] = {"kernel_init": zeros, "use_bias": False}
            self.scope = Conv(*shape, rngs=rngs, **options | scope_options)

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `dysample(inputs, offsets)`; see there for `output_shape`."""
        around = layers.continued("DySample", inputs, self.scale, output_shape, "replicate")
        scope = 0.25 if self.scope is None else 0.5 * jax.nn.sigmoid(self.scope(around))
        offsets = layers.shuffled(self.offset(around) * scope, self.scale, output_shape)
        offsets = offsets.reshape(*offsets.shape[:-1], self.groups, len(self.scale))
        return dysample(inputs, offsets, scale=self.scale, output_shape=output_shape)
