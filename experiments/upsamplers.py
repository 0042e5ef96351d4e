"""The upsamplers and downsamplers of the literature under one call each: the axis along which experiments compare.

An entry is made of layers of `tconvjax.nnx` as its paper puts them together, with the constants of the paper. Where a
paper changes no features while enlarging, a convolution follows. `kernel_size` is that of the layer with weights.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments import plugins
from tconvjax import initializers, max_pool, max_unpool, pixel_unshuffle, resize, upfirdn
from tconvjax import nnx as tnn

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]  # of `tconvjax.conv`
Upsampler = Literal[
    "conv_transpose",  # keeps the variance of white images
    "conv_transpose_flax",  # with Flax's initializer, which does not
    "conv_transpose_icnr",
    "conv_transpose_balanced_init",
    "conv_transpose_balanced",  # at every call, so in training, too
    "conv_transpose_hold_0",  # Sugawara et al. 2018
    "conv_transpose_hold_1",  # Kinoshita & Kiya 2020
    "conv_transpose_hold_2",  # [1, 3, 3, 1] at scale 2, as StyleGAN2 does
    "large_context_conv_transpose",  # Agnihotri et al. 2024
    "zero_insertion_conv",
    "resize_conv",  # nearest
    "resize_conv_linear",
    "resize_conv_cubic",
    "resize_conv_binomial",
    "resize_conv_fourier",
    "conv_binomial",  # 1 x 1 and then [1, 3, 3, 1] at scale 2, as R3GAN does
    "subpixel_conv",
    "subpixel_conv_icnr",
    "bilinear_additive_conv",  # Wojna et al. 2019
    "pixel_conv_transpose",  # Gao et al. 2017
    "carafe_conv",  # Wang et al. 2019
    "dysample_conv",  # Liu et al. 2023
]
Downsampler = Literal["conv", "conv_hold", "average", "max_pool", "blur_pool", "max_blur_pool"]


class LayerArguments(NamedTuple):
    """The arguments from which an entry makes its layers, in the order of the layers of `tconvjax.nnx`."""

    in_features: int
    out_features: int
    kernel_size: tuple[int, ...]
    scale: tuple[int, ...]
    padding_mode: PaddingMode
    rngs: nnx.Rngs

    def layer(self, kind: Callable[..., nnx.Module], **options: Any) -> Any:
        """Returns a layer that enlarges (or, if a `Conv`, reduces) by the scale."""
        *shape, padding_mode, rngs = self
        return kind(*shape, padding_mode=padding_mode, rngs=rngs, **options)

    def conv(self) -> tnn.Conv:
        """Returns a convolution of stride 1."""
        return self._replace(scale=(1,) * len(self.scale)).layer(tnn.Conv)

    def then_hold(self, order: int) -> nnx.Module:
        """Returns a transposed convolution and a hold, which sees repeated pixels beyond a border of zeros."""
        around = "replicate" if self.padding_mode == "zeros" else self.padding_mode
        hold = tnn.Hold(self.scale, order=order, padding_mode=around)
        return nnx.Sequential(self.layer(tnn.ConvTranspose), hold)


class UnpoolConv(nnx.Module):
    """Pixels put back where a pooling found them, then a convolution.

    References:
      Badrinarayanan, Kendall & Cipolla 2015, arXiv:1511.00561.
    """

    def __init__(self, arguments: LayerArguments) -> None:
        self.scale = arguments.scale
        self.conv = arguments.conv()

    def __call__(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Enlarges `x` with `indices` of `max_pool`."""
        return self.conv(max_unpool(x, indices, strides=self.scale))


def wrong(name: str, in_features: int, kernel_size: int, scale: int, rank: int) -> str:
    """Returns why an entry cannot have these features and sizes along each axis, and nothing if it can."""
    if plugins.is_name(name):
        try:
            _own(name)
        except ValueError as error:
            return str(error)
    if name == "pixel_conv_transpose" and (rank, scale) != (2, 2):
        return f"'{name}' doubles images and nothing else; got scale {scale}, rank {rank}"
    if name == "pixel_conv_transpose" and kernel_size % 2 == 0:
        return f"'{name}' needs an odd kernel size; got {kernel_size}"
    if name == "bilinear_additive_conv" and in_features % scale**rank:
        return f"'{name}' needs a multiple of {scale**rank} features to add; got {in_features}"
    if "balanced" in name and kernel_size < scale:
        return f"'{name}' needs a tap in every phase; got kernel size {kernel_size}, scale {scale}"
    return ""


def upsampler(
    name: str,
    in_features: int,
    out_features: int,
    kernel_size: Sequence[int],
    scale: Sequence[int],
    *,
    padding_mode: PaddingMode = "zeros",
    rngs: nnx.Rngs,
) -> Any:
    """Returns a module that enlarges `(batch, *spatial, in_features)` by `scale`; see `wrong`.

    Args:
      name: an `Upsampler`; 'unpool_conv', whose module takes the indices of a pooling, too; or `module:function`, which
        takes all that follows, as this function and the layers of `tconvjax.nnx` do.
      in_features: channels of the input.
      out_features: channels of the result.
      kernel_size: of the layer with weights, one entry per spatial axis.
      scale: factors, one per spatial axis.
      padding_mode: of everything with weights.
      rngs: of the weights.
    """
    arguments = LayerArguments(
        in_features, out_features, tuple(kernel_size), tuple(scale), padding_mode, rngs
    )
    if name in _UPSAMPLERS:
        return _UPSAMPLERS[name](arguments)
    *shape, _, _ = arguments
    return _own(name)(*shape, padding_mode=padding_mode, rngs=rngs)


def _own(name: str) -> Callable[..., nnx.Module]:
    """Returns an upsampler of a user.

    Raises:
      ValueError: if there is none, or it does not take what `upsampler` gives it.
    """
    make = plugins.find(name, "an upsampler")
    takes = inspect.signature(make)
    try:
        takes.bind(1, 1, (1,), (2,), padding_mode="zeros", rngs=None)
    except TypeError:
        given = "(in_features, out_features, kernel_size, scale, *, padding_mode, rngs)"
        raise ValueError(f"{name} must take {given}; it takes {takes}") from None
    return make


def downsampler(
    name: str, features: int, kernel_size: Sequence[int], scale: Sequence[int], rngs: nnx.Rngs
) -> Any:
    """Returns a module that divides the spatial shape of `(batch, *spatial, features)` by `scale`.

    Args:
      name: a `Downsampler`.
      features: channels of input and result.
      kernel_size: of the layer with weights, if any.
      scale: factors, one per spatial axis.
      rngs: of the weights.
    """
    arguments = LayerArguments(features, features, tuple(kernel_size), tuple(scale), "zeros", rngs)
    return _DOWNSAMPLERS[name](arguments)


def average_pool(x: jax.Array, scale: tuple[int, ...]) -> jax.Array:
    """Returns the means of blocks of `scale` pixels."""
    phases = pixel_unshuffle(x, scale)
    return phases.reshape(*phases.shape[:-1], x.shape[-1], -1).mean(-1)


def _icnr(w: LayerArguments) -> nnx.Module:
    return w.layer(tnn.ConvTranspose, kernel_init=initializers.icnr_transpose(w.scale))


def _balanced_init(w: LayerArguments) -> nnx.Module:
    return w.layer(tnn.ConvTranspose, kernel_init=initializers.balanced_transpose(w.scale))


def _zero_insertion(w: LayerArguments) -> nnx.Module:
    insert = partial(upfirdn, filter=np.ones((1,) * len(w.scale), np.float32), up=w.scale)
    return nnx.Sequential(insert, w.conv())


def _resized(method: str) -> Callable[[LayerArguments], nnx.Module]:
    return lambda w: w.layer(tnn.ResizeConv, method=method)


def _conv_binomial(w: LayerArguments) -> nnx.Module:
    one = w._replace(kernel_size=(1,) * len(w.scale)).conv()
    return nnx.Sequential(one, partial(resize, scale=w.scale, method="binomial"))


def _bilinear_additive(w: LayerArguments) -> nnx.Module:
    conv = w._replace(in_features=w.in_features // prod(w.scale)).conv()
    return nnx.Sequential(tnn.BilinearAdditive(w.scale), conv)


def _pixel(w: LayerArguments) -> nnx.Module:
    i, o, k, _, padding_mode, rngs = w
    return tnn.PixelConvTranspose(i, o, k, padding_mode=padding_mode, rngs=rngs)


def _carafe(w: LayerArguments) -> nnx.Module:
    carafe = tnn.Carafe(w.in_features, w.scale, padding_mode=w.padding_mode, rngs=w.rngs)
    return nnx.Sequential(carafe, w.conv())


def _dysample(w: LayerArguments) -> nnx.Module:
    groups = 4 if w.in_features % 4 == 0 else 1
    dysample = tnn.DySample(w.in_features, w.scale, groups=groups, rngs=w.rngs)
    return nnx.Sequential(dysample, w.conv())


_UPSAMPLERS: dict[str, Callable[[LayerArguments], nnx.Module]] = {
    "conv_transpose": lambda w: w.layer(tnn.ConvTranspose),
    "conv_transpose_flax": lambda w: w.layer(
        tnn.ConvTranspose, kernel_init=nnx.initializers.lecun_normal()
    ),
    "conv_transpose_icnr": _icnr,
    "conv_transpose_balanced_init": _balanced_init,
    "conv_transpose_balanced": lambda w: w.layer(tnn.ConvTranspose, balanced=True),
    "conv_transpose_hold_0": lambda w: w.then_hold(0),
    "conv_transpose_hold_1": lambda w: w.then_hold(1),
    "conv_transpose_hold_2": lambda w: w.then_hold(2),
    "large_context_conv_transpose": lambda w: w.layer(tnn.LargeContextConvTranspose),
    "zero_insertion_conv": _zero_insertion,
    "resize_conv": _resized("nearest"),
    "resize_conv_linear": _resized("linear"),
    "resize_conv_cubic": _resized("cubic"),
    "resize_conv_binomial": _resized("binomial"),
    "resize_conv_fourier": _resized("fourier"),
    "conv_binomial": _conv_binomial,
    "subpixel_conv": lambda w: w.layer(tnn.SubpixelConv),
    "subpixel_conv_icnr": lambda w: w.layer(
        tnn.SubpixelConv, kernel_init=initializers.icnr(w.scale)
    ),
    "bilinear_additive_conv": _bilinear_additive,
    "pixel_conv_transpose": _pixel,
    "carafe_conv": _carafe,
    "dysample_conv": _dysample,
    "unpool_conv": UnpoolConv,
}


def _conv_hold(w: LayerArguments) -> nnx.Module:
    # For gradients: the adjoint of a hold behind a transposed convolution is a hold in front of a strided one.
    return nnx.Sequential(tnn.Hold(w.scale), w.layer(tnn.Conv))


def _average(w: LayerArguments) -> nnx.Module:
    return nnx.Sequential(partial(average_pool, scale=w.scale))


_DOWNSAMPLERS: dict[str, Callable[[LayerArguments], nnx.Module]] = {
    "conv": lambda w: w.layer(tnn.Conv),
    "conv_hold": _conv_hold,
    "average": _average,
    "max_pool": lambda w: nnx.Sequential(lambda x: max_pool(x, w.scale).values),
    "blur_pool": lambda w: tnn.BlurPool(w.scale),
    "max_blur_pool": lambda w: tnn.MaxBlurPool(w.scale),
}
