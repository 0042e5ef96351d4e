"""Published upsamplers made of several layers."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import lax
from jax.nn.initializers import Initializer, glorot_uniform, lecun_normal, normal, zeros
from jax.typing import DTypeLike

from tconvjax import _layers as layers
from tconvjax._geometry import Ints, PaddingMode
from tconvjax._ops.adaptive import carafe, dysample
from tconvjax._ops.subpixel import pixel_conv_transpose
from tconvjax.linen._convolution import Conv, ConvTranspose


class PixelConvTranspose(nn.Module):
    """Pixel transposed convolution, `tconvjax.pixel_conv_transpose` with parameters `kernel_0` to `kernel_2`, `bias`.

    Attributes:
      features: channels of the output.
      kernel_size: of the first two kernels, two integers; the third has 3 x 3 taps, as published.
      padding_mode: as in `pixel_conv_transpose`.
      use_bias: adds one value per output channel.
      dtype: the dtype of the computation; by default input and parameters are promoted together.
      param_dtype: the dtype of the parameters.
      precision: the precision of the products, as in `jax.lax.conv_general_dilated`.
      kernel_init: of all kernels; `jax.nn.initializers.lecun_normal()` by default.
      bias_init: zeros by default.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = PixelConvTranspose(3, (3, 3))
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)

    References:
      Gao et al. 2017, arXiv:1705.06820.
    """

    features: int
    kernel_size: Ints
    padding_mode: PaddingMode = "zeros"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = zeros

    def __post_init__(self) -> None:
        self._shapes(1)
        layers.check_parameters("PixelConvTranspose", None, (), self.dtype, self.param_dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `pixel_conv_transpose(inputs, kernels) + bias`; see there for `output_shape`."""
        init = self.kernel_init or lecun_normal()
        shapes = self._shapes(layers.image("PixelConvTranspose", inputs).shape[-1])
        kernels = [
            self.param(f"kernel_{i}", init, shape, self.param_dtype)
            for i, shape in enumerate(shapes)
        ]
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        inputs, bias, *kernels = nn.dtypes.promote_dtype(inputs, bias, *kernels, dtype=self.dtype)
        y = pixel_conv_transpose(
            inputs,
            kernels,
            padding_mode=self.padding_mode,
            precision=self.precision,
            output_shape=output_shape,
        )
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    @nn.nowrap  # the constructor calls it, too, without a scope
    def _shapes(self, in_features: int) -> list[tuple[int, ...]]:
        return layers.pixel_kernel_shapes(
            "PixelConvTranspose", in_features, self.features, self.kernel_size, self.padding_mode
        )


class LargeContextConvTranspose(nn.Module):
    """The sum of a large and a small transposed convolution: the large one gives context, the small one detail.

    Attributes:
      features: channels of the output.
      kernel_size: the size of the large kernel, 7 or 11 along each axis as published; an int is one axis, as in Flax:
        write (3, 3) for images.
      strides: the strides of both; an int serves all axes.
      small_kernel_size: the size of the small kernel; as even or odd as the large one, so that both have the same
        center.
      options: other keywords of both layers.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = LargeContextConvTranspose(3, (7, 7), 2)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 3)

    References:
      Agnihotri, Grabinski & Keuper 2024, arXiv:2311.17524.
    """

    features: int
    kernel_size: Ints
    strides: Ints | None = None
    small_kernel_size: Ints = 3
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        self._pair()
        self.options = FrozenDict(self.options)  # as hashable as any other layer
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns the sum of both layers; of a size as `conv_transpose` takes it."""
        large, small = self._pair()
        return large(inputs, output_shape=output_shape) + small(inputs, output_shape=output_shape)

    @nn.nowrap  # as above
    def _pair(self) -> tuple[ConvTranspose, ConvTranspose]:
        large, small = layers.large_and_small(
            "LargeContextConvTranspose", self.kernel_size, self.small_kernel_size, self.options
        )
        place: dict[str, Any] = {"parent": None} if self.scope is None else {}
        shared = {**self.options, **place}
        return (
            ConvTranspose(self.features, large, self.strides, name="large", **shared),
            ConvTranspose(
                self.features, small, self.strides, name="small", **shared | {"use_bias": False}
            ),
        )


class Carafe(nn.Module):
    """Content-aware reassembly of features: `tconvjax.carafe` with kernels from two convolutions.

    `compress`, a 1 x 1 convolution, and `encode` give `prod(scale)` kernels per input pixel, shuffled in the order
    'CRD' and normalized by a softmax. Channels are not mixed.

    Attributes:
      scale: output pixels per input pixel, one factor per spatial axis.
      window: as in `carafe`.
      encoder_kernel_size: of `encode`, along every axis.
      compressed_features: channels between the two.
      padding_mode: as in `carafe`.
      options: other keywords of both layers.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = Carafe((2, 2))
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 8)

    References:
      Wang et al. 2019, arXiv:1905.02188.
    """

    scale: Sequence[int]
    window: Ints = 5
    encoder_kernel_size: int = 3
    compressed_features: int = 64
    padding_mode: PaddingMode = "zeros"
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        layers.carafe_options("Carafe", self.scale, self.window, self.padding_mode)
        self.options = FrozenDict(self.options)  # as hashable as any other layer
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `carafe(inputs, kernels)`; see there for `output_shape`."""
        scale, window, padding_mode = layers.carafe_options(
            "Carafe", self.scale, self.window, self.padding_mode
        )
        rank, taps = len(scale), prod(window)
        compressed = Conv(
            self.compressed_features,
            (1,) * rank,
            name="compress",
            **{"kernel_init": glorot_uniform(), **self.options},
        )(inputs)
        compressed = layers.continued("Carafe", compressed, scale, output_shape, "zeros")
        logits = Conv(
            taps * prod(scale),
            (self.encoder_kernel_size,) * rank,
            name="encode",
            **{"kernel_init": normal(1e-3), **self.options},
        )(compressed)
        return carafe(
            inputs,
            jax.nn.softmax(layers.shuffled(logits, scale, output_shape)),
            scale=scale,
            window=window,
            padding_mode=padding_mode,
            output_shape=output_shape,
        )


class DySample(nn.Module):
    """Dynamic upsampling: `tconvjax.dysample` with offsets from a 1 x 1 convolution of the input.

    Offsets are `offset(x) / 4`, or `sigmoid(scope(x)) · offset(x) / 2`, shuffled in the order 'CRD'; the first spatial
    axis comes first. Channels are not mixed.

    Attributes:
      scale: output pixels per input pixel, one factor per spatial axis.
      groups: of consecutive channels, each with offsets of its own; divides the channels.
      dynamic_scope: computes the reach of the offsets by a second convolution.
      options: other keywords of the layer `offset`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = DySample((2, 2))
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((1, 16, 16, 8)))[0].shape
      (1, 32, 32, 8)

    References:
      Liu et al. 2023, arXiv:2308.15085.
    """

    scale: Sequence[int]
    groups: int = 4
    dynamic_scope: bool = False
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        layers.dysample_options("DySample", None, self.scale, self.groups)
        self.options = FrozenDict(self.options)  # as hashable as any other layer
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `dysample(inputs, offsets)`; see there for `output_shape`."""
        features = layers.image("DySample", inputs).shape[-1]
        scale, groups = layers.dysample_options("DySample", features, self.scale, self.groups)
        rank = len(scale)
        shape = groups * rank * prod(scale), (1,) * rank
        around = layers.continued("DySample", inputs, scale, output_shape, "replicate")
        offsets = Conv(*shape, name="offset", **{"kernel_init": normal(1e-3), **self.options})(
            around
        )
        reach: Any = 0.25
        if self.dynamic_scope:
            scope_options: dict[str, Any] = {"kernel_init": zeros, "use_bias": False}
            reach = 0.5 * jax.nn.sigmoid(
                Conv(*shape, name="scope", **{**self.options, **scope_options})(around)
            )
        offsets = layers.shuffled(offsets * reach, scale, output_shape)
        offsets = offsets.reshape(*offsets.shape[:-1], groups, rank)
        return dysample(inputs, offsets, scale=scale, output_shape=output_shape)
