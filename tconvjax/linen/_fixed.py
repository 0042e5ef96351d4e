"""Layers without parameters."""

from collections.abc import Callable, Sequence

import jax
from flax import linen as nn

from tconvjax import _layers as layers
from tconvjax._geometry import Ints, Padding, PaddingMode
from tconvjax._ops.alias_free import Window, check_design, filtered_activation
from tconvjax._ops.filters import blur_pool, check_aligned, hold, max_blur_pool
from tconvjax._ops.pooling import max_unpool
from tconvjax._ops.resize import bilinear_additive


class BlurPool(nn.Module):
    """Anti-aliased pooling, `tconvjax.blur_pool`; it has no parameters.

    Attributes:
      strides: as in `blur_pool`: one integer per spatial axis.
      filter_size: as in `blur_pool`.
      padding_mode: as in `blur_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> BlurPool((2, 2)).apply({}, jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 8, 8, 8)

    References:
      Zhang 2019, arXiv:1904.11486.
    """

    strides: Sequence[int]
    filter_size: int = 4
    padding_mode: PaddingMode = "reflect"

    def __post_init__(self) -> None:
        layers.fixed_options(
            "BlurPool",
            "strides",
            self.strides,
            self.padding_mode,
            filter_size=(self.filter_size, 1),
        )
        super().__post_init__()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `blur_pool(inputs)`."""
        return blur_pool(
            inputs, self.strides, filter_size=self.filter_size, padding_mode=self.padding_mode
        )


class MaxBlurPool(nn.Module):
    """Max-pooling without its aliasing, `tconvjax.max_blur_pool`; it has no parameters.

    With the default filter an image moves by half a pixel at stride 2; `aligned=True` with an odd filter keeps it.

    Attributes:
      strides: as in `max_blur_pool`: one integer per spatial axis.
      filter_size: as in `max_blur_pool`.
      padding_mode: as in `max_blur_pool`.
      aligned: as in `max_blur_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> MaxBlurPool((2, 2)).apply({}, jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 8, 8, 8)

    References:
      Zhang 2019, arXiv:1904.11486.
    """

    strides: Sequence[int]
    filter_size: int = 4
    padding_mode: PaddingMode = "reflect"
    aligned: bool = False

    def __post_init__(self) -> None:
        layers.fixed_options(
            "MaxBlurPool",
            "strides",
            self.strides,
            self.padding_mode,
            filter_size=(self.filter_size, 1),
        )
        check_aligned("MaxBlurPool", self.filter_size, aligned=self.aligned)
        super().__post_init__()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `max_blur_pool(inputs)`."""
        return max_blur_pool(
            inputs,
            self.strides,
            filter_size=self.filter_size,
            padding_mode=self.padding_mode,
            aligned=self.aligned,
        )


class Hold(nn.Module):
    """Fixed smoothing behind a layer that enlarges, `tconvjax.hold`; it has no parameters.

    Attributes:
      scale: as in `hold`: strides of the layer before, one per spatial axis.
      order: as in `hold`.
      padding_mode: as in `hold`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> Hold((2, 2)).apply({}, jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 16, 16, 8)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658; Kinoshita & Kiya 2020, arXiv:2002.02117.
    """

    scale: Sequence[int]
    order: int = 0
    padding_mode: PaddingMode = "replicate"

    def __post_init__(self) -> None:
        layers.fixed_options("Hold", "scale", self.scale, self.padding_mode, order=(self.order, 0))
        super().__post_init__()

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `hold(inputs)`; see there for `output_shape`."""
        return hold(
            inputs,
            self.scale,
            order=self.order,
            padding_mode=self.padding_mode,
            output_shape=output_shape,
        )


class BilinearAdditive(nn.Module):
    """Linear enlargement that adds channels, `tconvjax.bilinear_additive`; it has no parameters.

    Attributes:
      scale: as in `bilinear_additive`: one factor per spatial axis.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> BilinearAdditive((2, 2)).apply({}, jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 2)

    References:
      Wojna et al. 2019, arXiv:1707.05847.
    """

    scale: Sequence[int]

    def __post_init__(self) -> None:
        layers.fixed_options("BilinearAdditive", "scale", self.scale, "replicate")
        super().__post_init__()

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `bilinear_additive(inputs)`; see there for `output_shape`."""
        return bilinear_additive(inputs, self.scale, output_shape=output_shape)


class MaxUnpool(nn.Module):
    """Pixels put back where a pooling found them, `tconvjax.max_unpool`; it has no parameters.

    Attributes:
      strides: as in `max_pool`: one integer per spatial axis.
      window_shape: as in `max_pool`.
      padding: as in `max_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from tconvjax import max_pool
      >>> values, indices = max_pool(jax.numpy.zeros((1, 9, 9, 8)), (2, 2))  # 4 x 4
      >>> MaxUnpool((2, 2)).apply({}, values, indices, output_shape=(9, 9)).shape
      (1, 9, 9, 8)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.
    """

    strides: Sequence[int]
    window_shape: Ints | None = None
    padding: Padding = "VALID"

    def __post_init__(self) -> None:
        layers.unpool_options("MaxUnpool", self.strides, self.window_shape, self.padding)
        super().__post_init__()

    def __call__(
        self, inputs: jax.Array, indices: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `max_unpool(inputs, indices)`; see there for `output_shape`."""
        return max_unpool(
            inputs,
            indices,
            self.strides,
            window_shape=self.window_shape,
            padding=self.padding,
            output_shape=output_shape,
        )


class FilteredActivation(nn.Module):
    """A nonlinearity between two low-pass filters, `tconvjax.filtered_activation`; it has no parameters.

    Attributes:
      scale: as in `filtered_activation`: fine pixels per pixel, one factor per spatial axis.
      activation: maps every number on its own, such as `jax.nn.silu`.
      support: as in `filtered_activation`.
      window: as in `filtered_activation`.
      padding_mode: as in `filtered_activation`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = FilteredActivation((2, 2), activation=jax.nn.silu)
      >>> layer.apply({}, jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 16, 16, 8)

    References:
      Karras et al. 2021, arXiv:2106.12423; Lee et al. 2022, arXiv:2206.04658.
    """

    scale: Sequence[int]
    activation: Callable[[jax.Array], jax.Array]
    support: int = 6
    window: Window = "kaiser"
    padding_mode: PaddingMode = "replicate"

    def __post_init__(self) -> None:
        factors, *_ = layers.fixed_options(
            "FilteredActivation", "scale", self.scale, self.padding_mode, support=(self.support, 2)
        )
        options = self.activation, self.support, self.window, self.padding_mode
        check_design("FilteredActivation", factors, *options)
        super().__post_init__()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `filtered_activation(inputs)`."""
        return filtered_activation(
            inputs,
            self.scale,
            activation=self.activation,
            support=self.support,
            window=self.window,
            padding_mode=self.padding_mode,
        )
