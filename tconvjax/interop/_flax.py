"""Flax: layers of NNX and Linen, this library's own among them."""

import copy
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tconvjax import _geometry as geo
from tconvjax.interop._checks import as_numpy, compare, described, is_own
from tconvjax.interop._converted import (
    LAYERS,
    NEUTRAL,
    OPTIONS,
    Converted,
    as_converted,
    spatial_rank,
)

OURS = ("tconvjax.nnx", "tconvjax.linen")
PACKAGES = ("flax.nnx.nn.linear", "flax.linen.linear", *OURS)

# Libraries for JAX with layers of the same names, and how their weights become kernels.
OTHERS = {
    "equinox": (
        "Equinox",
        "kernel = jnp.moveaxis(weight, (0, 1), (-1, -2)), bias = bias.ravel(), the same integers of padding",
    ),
    "haiku": (
        "Haiku",
        "kernel has the axes (*kernel_size, in_features // groups, out_features); compare both on an image",
    ),
}

# Hooks of Flax's layers, and the modules that define their default values.
HOOKS = {
    "promote_dtype": ("flax.nnx.nn.dtypes", "flax.linen.dtypes"),
    "conv_general_dilated": (lax.conv_general_dilated.__module__,),
    "conv_general_dilated_cls": (),
}


def from_flax(layer: Any, variables: Mapping[str, Any] | None = None) -> Converted:
    """Converts a layer of Flax, NNX or Linen, or of `tconvjax.nnx` or `tconvjax.linen`.

    The kernel is the one in use: masked and, if `balanced=True`, balanced. A mask of zeros and ones and `balanced` stay
    among the arguments, so that training goes on as before. Both layers run, and must compute the same.

    Args:
      layer: `ConvTranspose` or `Conv` of Flax or of ours, `ResizeConv` or `SubpixelConv` of ours. A `Conv` with
        `input_dilation`, integers of padding and no strides is a transposed convolution and becomes a 'ConvTranspose'.
      variables: variables of a Linen module, `{"params": {"kernel": ..., "bias": ...}}` or the inner mapping alone.

    Returns:
      A layer of the same name. From Flax's `ConvTranspose` with integers of padding, it has
      `padding_convention='dilated'`.

    Raises:
      TypeError: for a layer of another class, subclasses, wrappers and those of Equinox and Haiku included.
      ValueError: for a Linen module without variables, a layer with hooks, and layers that compute different numbers.

    Example:
      >>> from flax import nnx
      >>> flax_layer = nnx.ConvTranspose(8, 3, (4, 4), 2, padding=2, rngs=nnx.Rngs(0))
      >>> from_flax(flax_layer).to_nnx()(jnp.zeros((16, 16, 8))).shape
      (32, 32, 3)
    """
    return _read("from_flax", layer, variables)


def as_layer(who: str, layer: Any) -> Converted:
    """Returns a converted layer as it is, and an NNX layer as a converted one; for converters to other peers."""
    return layer if isinstance(layer, Converted) else _read(who, layer)


def _read(who: str, layer: Any, variables: Mapping[str, Any] | None = None) -> Converted:
    """Returns the converted layer, with the name of any converter in error messages."""
    called = callable(layer)
    library = type(layer).__module__.partition(".")[0]
    if library in OTHERS:
        name, layout = OTHERS[library]
        raise TypeError(
            f"{who}: {name} is no part of Flax; got {described(layer)}. Build the layer of tconvjax.nnx with the same "
            f"sizes, and set its kernel and bias: {layout}."
        )
    if not is_own(type(layer), "|".join(LAYERS), PACKAGES, called=called):
        raise TypeError(
            f"{who}: layer must be one of {', '.join(LAYERS)} of Flax or tconvjax itself; got {described(layer)}. "
            "Convert the layers of a model one by one; build the plain layer for a subclass or a wrapper."
        )
    name = type(layer).__name__
    for hook, modules in HOOKS.items():
        function = getattr(layer, hook, None)
        if function is not None and getattr(function, "__module__", None) not in modules:
            raise ValueError(
                f"{who}: a layer here has no hooks; got {hook}={described(function)}. Build the layer without it if "
                "that leaves its numbers alone."
            )
    weights = _weights(who, layer, variables)
    kernel, bias = (None if w is None else _array(who, n, w) for n, w in weights.items())
    assert kernel is not None
    options = {n: getattr(layer, n) for n in (*OPTIONS, *NEUTRAL) if hasattr(layer, n)}
    rank = spatial_rank(who, kernel)
    if "strides" in options:
        options["strides"] = geo.per_axis(who, "strides", options["strides"] or 1, rank)
    if isinstance(options["padding"], str):
        options["padding"] = options["padding"].upper()
    elif name == "ConvTranspose":
        options.setdefault("padding_convention", "dilated")
    stretch = geo.per_axis(who, "input_dilation", options.get("input_dilation") or 1, rank)
    zeros = not isinstance(options["padding"], str)
    zeros &= options.get("padding_mode", "zeros") == "zeros"
    if name == "Conv" and zeros and set(stretch) != {1} and set(options["strides"]) == {1}:
        name, options["strides"] = "ConvTranspose", options.pop("input_dilation")
        options["padding_convention"] = "dilated"
    converted = as_converted(who, name, kernel, bias, options)
    if not called:
        return converted
    params = {n: w for n, w in weights.items() if w is not None}
    return compare(who, layer, lambda x: _run(layer, params, x), converted)


def _weights(who: str, layer: Any, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns kernel and bias; the bias is None if the layer has none."""
    if hasattr(layer, "kernel"):
        if variables is not None:
            raise ValueError(
                f"{who}: variables are those of a Linen module; got some beside {described(layer)}, which has its own."
            )
        return {"kernel": layer.kernel, "bias": layer.bias}
    if variables is None:
        raise ValueError(
            f"{who}: a Linen module has its weights in variables; got {type(layer).__name__} alone. Give them, too."
        )
    weights = variables.get("params", variables)
    names = {"kernel", "bias"} if layer.use_bias else {"kernel"}
    if set(weights) != names:
        raise ValueError(
            f"{who}: variables of this module must be {sorted(names)}; got {sorted(map(str, weights))}. Give those of "
            "this layer alone."
        )
    return {"kernel": weights["kernel"], "bias": weights.get("bias")}


def _run(layer: Any, params: dict[str, Any], x: np.ndarray) -> Any:
    """Returns the output of a layer; a layer of ours uses the lowering that compiles in the shortest time."""
    ours = is_own(type(layer), ".*", OURS, called=True)
    plain = "plain" if type(layer).__name__ == "ResizeConv" else "dilated"
    if hasattr(layer, "kernel"):
        layer = copy.copy(layer)
        if ours:
            layer.implementation = plain
        return layer(jnp.asarray(x))
    if ours:
        layer = layer.clone(implementation=plain)
    return layer.apply({"params": params}, jnp.asarray(x))


def _array(who: str, name: str, value: Any) -> np.ndarray:
    """Returns a copy of an array, a variable of NNX, or a value that Linen boxes with the names of its axes."""
    value = value.unbox() if hasattr(value, "unbox") else value
    array = value.get_value() if hasattr(value, "get_value") else value
    return as_numpy(who, name, array, value)
