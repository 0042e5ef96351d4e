"""Flax, NNX and Linen, this library's layers included."""

import copy
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tconvjax import _geometry as geo
from tconvjax.interop._checks import compare, described, is_own
from tconvjax.interop._converted import (
    LAYERS,
    NEUTRAL,
    OPTIONS,
    Converted,
    as_converted,
    as_numpy,
    spatial_rank,
)

OURS = ("tconvjax.nnx", "tconvjax.linen")
PACKAGES = ("flax.nnx.nn.linear", "flax.linen.linear", *OURS)

# Hooks of Flax's layers, and the modules of what stands there by default.
HOOKS = {
    "promote_dtype": ("flax.nnx.nn.dtypes", "flax.linen.dtypes"),
    "conv_general_dilated": (lax.conv_general_dilated.__module__,),
    "conv_general_dilated_cls": (),
}


def from_flax(layer: Any, variables: Mapping[str, Any] | None = None) -> Converted:
    """Converts a layer of Flax, NNX or Linen; a layer of `tconvjax.nnx` or `tconvjax.linen` is one, too.

    The kernel is the one that the layer uses: masked and, if `balanced=True`, balanced. A mask of zeros and ones and
    `balanced` stay among the arguments, so that training goes on as before. Both layers are run and compared.

    Args:
      layer: `ConvTranspose` or `Conv` of either library, `ResizeConv` or `SubpixelConv` of ours. A `Conv` with
        `input_dilation`, integers of padding and no strides becomes the 'ConvTranspose' that it is.
      variables: of a Linen module, `{"params": {"kernel": ..., "bias": ...}}` or what is inside "params".

    Returns:
      A layer of the same name, with `padding_convention='dilated'` for the integers of Flax's `ConvTranspose`.

    Raises:
      TypeError: for a layer of another class, subclasses and wrappers included.
      ValueError: for a Linen module without variables, hooks of Flax that are in use, and numbers that differ.

    Example:
      >>> from flax import nnx
      >>> flax_layer = nnx.ConvTranspose(8, 3, (4, 4), 2, padding=2, rngs=nnx.Rngs(0))
      >>> from_flax(flax_layer).to_nnx()(jnp.zeros((16, 16, 8))).shape
      (32, 32, 3)
    """
    return _read("from_flax", layer, variables)


def as_layer(who: str, layer: Any) -> Converted:
    """Returns the layer that a writer writes: one that is data already, or an NNX layer."""
    return layer if isinstance(layer, Converted) else _read(who, layer)


def _read(who: str, layer: Any, variables: Mapping[str, Any] | None = None) -> Converted:
    """Returns what `from_flax` does, for a converter of any name."""
    called = callable(layer)
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
    kernel, bias = (None if w is None else as_numpy(who, n, w) for n, w in weights.items())
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
    plain = not isinstance(options["padding"], str)
    plain &= options.get("padding_mode", "zeros") == "zeros"
    if name == "Conv" and plain and set(stretch) != {1} and set(options["strides"]) == {1}:
        name, options["strides"] = "ConvTranspose", options.pop("input_dilation")
        options["padding_convention"] = "dilated"
    converted = as_converted(who, name, kernel, bias, options)
    if not called:
        return converted
    given = {n: w for n, w in weights.items() if w is not None}
    return compare(who, layer, lambda x: _run(layer, given, x), converted)


def _weights(who: str, layer: Any, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns kernel and bias, None where the layer has none."""
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


def _run(layer: Any, weights: dict[str, Any], x: np.ndarray) -> Any:
    """Returns the output of a layer; ours is not compiled for its gradients, which takes longer than all the rest."""
    ours = is_own(type(layer), ".*", OURS, called=True)
    plain = "plain" if type(layer).__name__ == "ResizeConv" else "dilated"
    if hasattr(layer, "kernel"):
        layer = copy.copy(layer)
        if ours:
            layer.implementation = plain
        return layer(jnp.asarray(x))
    if ours:
        layer = layer.clone(implementation=plain)
    return layer.apply({"params": weights}, jnp.asarray(x))
