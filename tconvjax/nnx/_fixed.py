"""Layers without parameters."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from tconvjax import _layers as layers
from tconvjax._geometry import Ints, Padding, PaddingMode
from tconvjax._ops.alias_free import Window, check_design, filtered_activation
from tconvjax._ops.filters import blur_pool, check_aligned, hold, max_blur_pool
from tconvjax._ops.pooling import max_unpool
from tconvjax._ops.resize import bilinear_additive


class BlurPool(nnx.Module):
    """Anti-aliased pooling, `tconvjax.blur_pool`; it has no parameters.

    Args:
      strides: as in `blur_pool`: one integer per spatial axis.
      filter_size: as in `blur_pool`.
      padding_mode: as in `blur_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> BlurPool((2, 2))(jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 8, 8, 8)

    References:
      Zhang 2019, arXiv:1904.11486.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        filter_size: int = 4,
        padding_mode: PaddingMode = "reflect",
    ) -> None:
        self.strides, self.filter_size, self.padding_mode = layers.fixed_options(
            "BlurPool", "strides", strides, padding_mode, filter_size=(filter_size, 1)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `blur_pool(inputs)`."""
        return blur_pool(
            inputs, self.strides, filter_size=self.filter_size, padding_mode=self.padding_mode
        )


class MaxBlurPool(nnx.Module):
    """Max-pooling without its aliasing, `tconvjax.max_blur_pool`; it has no parameters.

    With the default filter an image moves by half a pixel at stride 2; `aligned=True` with an odd filter keeps it.

    Args:
      strides: as in `max_blur_pool`: one integer per spatial axis.
      filter_size: as in `max_blur_pool`.
      padding_mode: as in `max_blur_pool`.
      aligned: as in `max_blur_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> MaxBlurPool((2, 2))(jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 8, 8, 8)

    References:
      Zhang 2019, arXiv:1904.11486.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        filter_size: int = 4,
        padding_mode: PaddingMode = "reflect",
        aligned: bool = False,
    ) -> None:
        self.strides, self.filter_size, self.padding_mode = layers.fixed_options(
            "MaxBlurPool", "strides", strides, padding_mode, filter_size=(filter_size, 1)
        )
        check_aligned("MaxBlurPool", self.filter_size, aligned=aligned)
        self.aligned = aligned

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns `max_blur_pool(inputs)`."""
        return max_blur_pool(
            inputs,
            self.strides,
            filter_size=self.filter_size,
            padding_mode=self.padding_mode,
            aligned=self.aligned,
        )


class Hold(nnx.Module):
    """Fixed smoothing behind a layer that enlarges, `tconvjax.hold`; it has no parameters.

    Args:
      scale: as in `hold`: strides of the layer before, one per spatial axis.
      order: as in `hold`.
      padding_mode: as in `hold`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from tconvjax.nnx import ConvTranspose
      >>> model = nnx.Sequential(ConvTranspose(8, 3, (4, 4), 2, rngs=nnx.Rngs(0)), Hold((2, 2)))
      >>> model(jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 3)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658; Kinoshita & Kiya 2020, arXiv:2002.02117.
    """

    def __init__(
        self,
        scale: Sequence[int],
        *,
        order: int = 0,
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        self.scale, self.order, self.padding_mode = layers.fixed_options(
            "Hold", "scale", scale, padding_mode, order=(order, 0)
        )

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


class BilinearAdditive(nnx.Module):
    """Linear enlargement that adds channels, `tconvjax.bilinear_additive`; it has no parameters.

    Args:
      scale: as in `bilinear_additive`: one factor per spatial axis.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> BilinearAdditive((2, 2))(jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 32, 32, 2)

    References:
      Wojna et al. 2019, arXiv:1707.05847.
    """

    def __init__(self, scale: Sequence[int]) -> None:
        self.scale, _ = layers.fixed_options("BilinearAdditive", "scale", scale, "replicate")

    def __call__(
        self, inputs: jax.Array, *, output_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """Returns `bilinear_additive(inputs)`; see there for `output_shape`."""
        return bilinear_additive(inputs, self.scale, output_shape=output_shape)


class MaxUnpool(nnx.Module):
    """Pixels put back where a pooling found them, `tconvjax.max_unpool`; it has no parameters.

    Args:
      strides: as in `max_pool`: one integer per spatial axis.
      window_shape: as in `max_pool`.
      padding: as in `max_pool`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> from tconvjax import max_pool
      >>> values, indices = max_pool(jax.numpy.zeros((1, 9, 9, 8)), (2, 2))  # 4 x 4
      >>> MaxUnpool((2, 2))(values, indices, output_shape=(9, 9)).shape
      (1, 9, 9, 8)

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        window_shape: Ints | None = None,
        padding: Padding = "VALID",
    ) -> None:
        self.strides, self.window_shape, self.padding = layers.unpool_options(
            "MaxUnpool", strides, window_shape, padding
        )

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


class FilteredActivation(nnx.Module):
    """A nonlinearity between two low-pass filters, `tconvjax.filtered_activation`; it has no parameters.

    Args:
      scale: as in `filtered_activation`: fine pixels per pixel, one factor per spatial axis.
      activation: maps every number on its own, such as `jax.nn.silu`.
      support: as in `filtered_activation`.
      window: as in `filtered_activation`.
      padding_mode: as in `filtered_activation`.

    Raises:
      ValueError, TypeError: at construction, for arguments that every call would refuse.

    Example:
      >>> layer = FilteredActivation((2, 2), activation=jax.nn.silu)
      >>> layer(jax.numpy.zeros((1, 16, 16, 8))).shape
      (1, 16, 16, 8)

    References:
      Karras et al. 2021, arXiv:2106.12423; Lee et al. 2022, arXiv:2206.04658.
    """

    def __init__(
        self,
        scale: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array],
        support: int = 6,
        window: Window = "kaiser",
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        self.scale, self.support, self.padding_mode = layers.fixed_options(
            "FilteredActivation", "scale", scale, padding_mode, support=(support, 2)
        )
        check_design("FilteredActivation", self.scale, activation, support, window, padding_mode)
        self.activation, self.window = activation, window

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
