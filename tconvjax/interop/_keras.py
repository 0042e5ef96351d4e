"""Keras: its layers as layers of this library."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax.interop._checks import as_numpy, compare, described, is_own
from tconvjax.interop._converted import Converted, as_converted, spatial_rank, split

PACKAGES = ("keras", "tf_keras", "tensorflow")


def from_keras(layer: Any) -> Converted:
    """Converts a built layer of Keras: `Conv1DTranspose` to `Conv3DTranspose`, `Conv1D` to `Conv3D`.

    Both layers run, and must compute the same. A mixed precision becomes the `dtype` of the layer. Constraints and
    regularizers are dropped: they act in training alone.

    Args:
      layer: a layer of either data format; its kernel is channels last in both.

    Returns:
      A 'ConvTranspose' or a 'Conv'.

    Raises:
      TypeError: for a layer of another class, subclasses and wrappers included.
      ValueError: for a layer that is not built, has an activation, or computes other numbers.

    Example:
      >>> class Conv1DTranspose:  # as keras.layers.Conv1DTranspose(3, 5, strides=2, padding="same", output_padding=0)
      ...     kernel, bias = np.zeros((5, 3, 8)), np.zeros(3)
      ...     strides, padding, output_padding, dilation_rate, activation = (2,), "same", (0,), (1,), None
      >>> from_keras(Conv1DTranspose()).arguments["padding"]  # keeps 2n − 1 of 2n + 3 pixels
      ((2, 2),)
    """
    who = "from_keras"
    called = callable(layer)
    if not is_own(type(layer), r"Conv[123]D(Transpose)?", PACKAGES, called=called):
        raise TypeError(
            f"{who}: layer must be a Conv1D to Conv3D or a Conv1DTranspose to Conv3DTranspose of Keras itself; got "
            f"{described(layer)}. Build the plain layer, with the weights in use, for a subclass or a wrapper."
        )
    name = type(layer).__name__
    if getattr(layer, "kernel", None) is None:
        raise ValueError(
            f"{who}: a layer has weights once it is built; got {name} without. Call it on an image."
        )
    activation = getattr(layer.activation, "__name__", layer.activation)
    if activation not in (None, "linear"):
        raise ValueError(
            f"{who}: an activation is no part of a layer here; got activation={activation!r}. Set it to None in Keras "
            "and apply the function behind the converted layer."
        )
    patched = [n for n in ("call", "convolution_op") if n in getattr(layer, "__dict__", {})]
    if patched or getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            f"{who}: a layer must compute what its class says; got {name} with {patched or 'quantized weights'}. Build "
            "the plain layer, with the weights in use."
        )
    kernel = as_numpy(who, "kernel", layer.kernel)
    bias = None if layer.bias is None else as_numpy(who, "bias", layer.bias)
    rank = spatial_rank(who, kernel)
    dilation = geo.per_axis(who, "dilation_rate", layer.dilation_rate, rank)
    extent = geo.kernel_extent(kernel.shape[:-2], dilation)
    causal = layer.padding == "causal"
    options: dict[str, Any] = {
        "strides": layer.strides,
        "padding": ((extent[0] - 1, 0),) if causal else layer.padding.upper(),
        "kernel_dilation": dilation,
    }
    dtype = getattr(layer, "compute_dtype", None)
    if dtype is not None and jnp.dtype(dtype) != kernel.dtype:
        options["dtype"] = jnp.dtype(dtype)
    options["feature_group_count"] = getattr(layer, "groups", 1)
    if not name.endswith("Transpose"):
        converted = as_converted(who, "Conv", kernel, bias, options)
        return _compare(who, layer, converted) if called else converted
    if options["feature_group_count"] != 1:
        raise ValueError(
            f"{who}: a transposed convolution of Keras has no groups; got groups={layer.groups}."
        )
    options["transpose_kernel"] = True
    if layer.output_padding is not None:
        extra = geo.per_axis(who, "output_padding", layer.output_padding, rank, minimum=0)
        options["padding"] = tuple(
            split(e - e % 2 - op) if layer.padding == "same" else (0, -op)
            for e, op in zip(extent, extra, strict=True)
        )
    converted = as_converted(who, "ConvTranspose", kernel, bias, options)
    return _compare(who, layer, converted) if called else converted


def _compare(who: str, layer: Any, converted: Converted) -> Converted:
    """Returns the converted layer, after a comparison with its source unless that cannot run on a CPU."""
    if layer.data_format == "channels_last":
        return compare(who, layer, layer, converted)
    from keras import backend

    if (
        backend.backend() == "tensorflow"
    ):  # its convolutions run channels last alone: keras-team/keras#23650
        return converted
    first = lambda x: np.moveaxis(np.asarray(layer(np.moveaxis(x, -1, 1))), 1, -1)
    return compare(who, layer, first, converted)
