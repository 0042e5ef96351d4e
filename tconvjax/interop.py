"""Layers of PyTorch, Keras, Flax and ONNX as layers of this library, and back: arguments and weights together.

The peers describe the same layers. They differ in where the kernel keeps its channels, and in what their numbers say
about the pixels that are cropped from the full output of `s(n − 1) + d(k − 1) + 1` pixels:

    peer       kernel, transposed            kernel, plain                 crops (low, high) of a transposed convolution
    PyTorch    (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     (p, p − output_padding)
    ONNX       (in, out/g, *kernel_size)     (out, in/g, *kernel_size)     pads per side, auto_pad or output_shape
    Keras      (*kernel_size, out, in)       (*kernel_size, in/g, out)     'valid' or 'same', and output_padding
    Flax       (*kernel_size, in, out)       (*kernel_size, in/g, out)     extent − 1 − pads of the dilated image
    ours       (*kernel_size, out/g, in)     (*kernel_size, in/g, out)     padding; a negative crop appends zeros

The kernels of the first three are painted as they are, here with `transpose_kernel=True`; only axes move. Flax's is
painted flipped, and stays as it is. Images are channels last here, whatever the peer does.

No peer is imported: a layer is known by its attributes, and weights are arrays, mappings of arrays or safetensors
files. Nothing is ever unpickled.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tconvjax import geometry as geo
from tconvjax.geometry import Ints, Pairs
from tconvjax.ops import subpixel
from tconvjax.ops.lowerings import flip_and_swap

LAYERS = ("ConvTranspose", "Conv", "ResizeConv", "SubpixelConv")
SHUFFLES = ("pixel_shuffle", "pixel_unshuffle")
LARGE = 1 << 20  # pixels of an axis on which any layer has output

# What a layer says about itself besides its sizes; the values of the second part go without saying.
OPTIONS = ("strides", "scale", "method", "order", "padding", "mask", "dtype", "precision")
NEUTRAL: dict[str, Any] = {
    "padding_mode": "zeros",
    "output_padding": 0,
    "input_dilation": 1,
    "kernel_dilation": 1,
    "feature_group_count": 1,
    "transpose_kernel": False,
    "padding_convention": "forward",
    "preferred_element_type": None,
    "implementation": "auto",
}
PER_AXIS = ("strides", "scale", "output_padding", "input_dilation", "kernel_dilation")
OF_LAYERS = ("in_features", "out_features", "kernel_size", "use_bias", "mask", "dtype")
TORCH: dict[str, Any] = {  # PyTorch's arguments and defaults
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "groups": 1,
    "dilation": 1,
    "padding_mode": "zeros",
    "transposed": True,
}


@dataclass(frozen=True, eq=False)
class Converted:
    """A layer as data.

    Attributes:
      layer: name of a class of `tconvjax.nnx` and `tconvjax.linen`, or 'pixel_shuffle' or 'pixel_unshuffle'.
      arguments: keywords of that class in `tconvjax.nnx`, or of the function; neutral ones are left out.
      parameters: `kernel` and, if there is one, `bias`; none for a function.

    Example:
      >>> weight = np.zeros((8, 3, 4, 4))  # of torch.nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1, bias=False)
      >>> converted = from_torch({"weight": weight}, stride=2, padding=1)
      >>> converted.to_nnx()(jnp.zeros((16, 16, 8))).shape
      (32, 32, 3)
    """

    layer: str
    arguments: dict[str, Any]
    parameters: dict[str, np.ndarray]

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of the function: the layer is `conv_transpose(x, kernel, **options) + bias`, and so on."""
        return {name: v for name, v in self.arguments.items() if name not in OF_LAYERS}

    def to_nnx(self, **options: Any) -> Any:
        """Returns the layer of `tconvjax.nnx` with its parameters, or the function with its arguments.

        Args:
          **options: further arguments of the layer, or other values of those that it has.
        """
        if self.layer in SHUFFLES:
            return partial(getattr(subpixel, self.layer), **self.arguments | options)
        from flax import nnx

        from tconvjax import nnx as layers

        values = {name: jnp.asarray(v) for name, v in self.parameters.items()}
        defaults = {"param_dtype": values["kernel"].dtype, "rngs": nnx.Rngs(0)}
        layer = getattr(layers, self.layer)(**defaults | self.arguments | options)
        for name, value in values.items():
            getattr(layer, name)[...] = value
        return layer

    def to_linen(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the module of `tconvjax.linen` and its variables, or the function with its arguments and none.

        Args:
          **options: further arguments of the layer, or other values of those that it has.
        """
        if self.layer in SHUFFLES:
            return self.to_nnx(**options), {}
        from tconvjax import linen as layers

        values = {name: jnp.asarray(v) for name, v in self.parameters.items()}
        arguments = {"param_dtype": values["kernel"].dtype} | self.arguments | options
        del arguments["in_features"]
        arguments["features"] = arguments.pop("out_features")
        return getattr(layers, self.layer)(**arguments), {"params": values}


class Foreign(NamedTuple):
    """A layer of a peer as data.

    Attributes:
      name: of the peer's class or operator.
      arguments: of its constructor, or attributes of the operator; those of 'Sequential' are its layers by name.
      state: the weights, with the peer's names and layouts.
    """

    name: str
    arguments: dict[str, Any]
    state: dict[str, np.ndarray]


def from_torch(
    source: Any,
    *,
    stride: Ints = 1,
    padding: str | Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    transposed: bool = True,
    upscale_factor: int | None = None,
    prefix: str = "",
) -> Converted:
    """Converts a layer of PyTorch: same numbers, channels last.

    Args:
      source: a module (`ConvTranspose1d` to `3d`, `Conv1d` to `3d`, `PixelShuffle`, `PixelUnshuffle` or
        `Sequential(Conv2d, PixelShuffle)`), which brings its arguments; or a state dict or the path of a safetensors
        file, which need those below, with PyTorch's names, defaults and meanings.
      stride: an int serves all axes.
      padding: ints; for a plain convolution also 'same' or 'valid'.
      output_padding: of a transposed convolution.
      groups: of the channels.
      dilation: of the kernel.
      padding_mode: of a plain convolution.
      transposed: whether the weights are those of a transposed convolution.
      upscale_factor: of the `PixelShuffle` behind a plain convolution, which makes `transposed` False.
      prefix: what precedes 'weight' and 'bias' in the state dict, as 'decoder.up.'.

    Returns:
      A 'ConvTranspose', a 'Conv', a 'SubpixelConv' or the name of a shuffle.

    Raises:
      TypeError: for a source of another kind.
      ValueError: for arguments beside a module, missing weights, or a file that would have to be unpickled.

    Example:
      >>> state = {"up.weight": np.zeros((8, 3, 4, 4)), "up.bias": np.zeros(3)}
      >>> for name, value in from_torch(state, prefix="up.", stride=2, padding=1).arguments.items():
      ...     print(f"{name}={value}", end=" ")
      in_features=8 out_features=3 kernel_size=(4, 4) strides=(2, 2) padding=1 transpose_kernel=True
    """
    who = "from_torch"
    given: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
        "padding_mode": padding_mode,
        "transposed": transposed,
    }
    if isinstance(source, Mapping | str | os.PathLike):
        weight, bias = _state(who, source, prefix)
        given["transposed"] &= upscale_factor is None
    else:
        if (given, upscale_factor, prefix) != (TORCH, None, ""):
            extra = {n: v for n, v in given.items() if v != TORCH[n]} or "upscale_factor or prefix"
            raise ValueError(
                f"{who}: a module brings its own arguments and weights; got {extra} beside "
                f"{type(source).__name__}. Leave them out, or give the state dict."
            )
        for name, factor in zip(SHUFFLES, ("upscale_factor", "downscale_factor"), strict=True):
            if hasattr(source, factor):
                return _shuffle(name, getattr(source, factor), "CRD")
        layer, *rest = source if hasattr(source, "__iter__") else [source]
        upscale_factor = getattr(rest[0], "upscale_factor", None) if rest else None
        known = all(hasattr(layer, n) for n in ("weight", "bias", *TORCH))
        if not known or len(rest) != (upscale_factor is not None):
            raise TypeError(
                f"{who}: source must be a convolution, a pixel shuffle or Sequential(Conv2d, PixelShuffle) of PyTorch, "
                f"a state dict or the path of a safetensors file; got {type(source).__name__}. Convert the layers of a "
                "model one by one."
            )
        given = {name: getattr(layer, name) for name in TORCH}
        weight, bias = layer.weight, layer.bias

    kernel, pads = _channels_last(_numpy(weight)), given["padding"]
    options = {
        "strides": given["stride"],
        "padding": pads.upper() if isinstance(pads, str) else pads,
        "padding_mode": given["padding_mode"],
        "kernel_dilation": given["dilation"],
        "feature_group_count": given["groups"],
    }
    if upscale_factor is not None:
        s = geo.per_axis(who, "stride", options.pop("strides"), kernel.ndim - 2)
        if given["transposed"] or s != (1, 1):
            raise ValueError(
                f"{who}: before a pixel shuffle there must be a plain convolution over two axes with stride 1; got "
                f"transposed={given['transposed']}, stride={s}. Convert the two layers one by one."
            )
        options |= {"scale": (upscale_factor,) * 2, "order": "CRD"}
        return _converted(who, "SubpixelConv", kernel, bias, options)
    if not given["transposed"]:
        return _converted(who, "Conv", kernel, bias, options)
    options |= {"output_padding": given["output_padding"], "transpose_kernel": True}
    return _converted(who, "ConvTranspose", kernel, bias, options)


def from_keras(layer: Any) -> Converted:
    """Converts a built layer of Keras: `Conv1DTranspose` to `Conv3DTranspose`, `Conv1D` to `Conv3D`.

    Args:
      layer: of either data format; its kernel is channels last in both.

    Returns:
      A 'ConvTranspose' or a 'Conv'.

    Raises:
      TypeError: for a layer of another class.
      ValueError: for a layer that has not been built, or has an activation.

    Example:
      >>> class Conv1DTranspose:  # as keras.layers.Conv1DTranspose(3, 5, strides=2, padding="same", output_padding=0)
      ...     kernel, bias = np.zeros((5, 3, 8)), np.zeros(3)
      ...     strides, padding, output_padding, dilation_rate, activation = (2,), "same", (0,), (1,), None
      >>> from_keras(Conv1DTranspose()).arguments["padding"]  # 2n − 1 of the 2n + 3 pixels are kept
      ((2, 2),)
    """
    who = "from_keras"
    name = _class_name(layer, r"Conv[123]D(Transpose)?")
    if name is None:
        raise TypeError(
            f"{who}: layer must be a Conv1D to Conv3D or a Conv1DTranspose to Conv3DTranspose; got "
            f"{type(layer).__name__}."
        )
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
    kernel = _numpy(layer.kernel)
    rank = kernel.ndim - 2
    dilation = geo.per_axis(who, "dilation_rate", layer.dilation_rate, rank)
    extent = geo.kernel_extent(kernel.shape[:-2], dilation)
    causal = layer.padding == "causal"
    options: dict[str, Any] = {
        "strides": layer.strides,
        "padding": ((extent[0] - 1, 0),) if causal else layer.padding.upper(),
        "kernel_dilation": dilation,
    }
    if not name.endswith("Transpose"):
        options["feature_group_count"] = layer.groups
        return _converted(who, "Conv", kernel, layer.bias, options)
    options["transpose_kernel"] = True
    if layer.output_padding is not None:
        extra = geo.per_axis(who, "output_padding", layer.output_padding, rank, minimum=0)
        options["padding"] = tuple(
            _split(e - e % 2 - op) if layer.padding == "same" else (0, -op)
            for e, op in zip(extent, extra, strict=True)
        )
    return _converted(who, "ConvTranspose", kernel, layer.bias, options)


def from_flax(layer: Any, variables: Mapping[str, Any] | None = None) -> Converted:
    """Converts a layer of Flax, NNX or Linen; a layer of `tconvjax.nnx` or `tconvjax.linen` is one, too.

    Args:
      layer: `ConvTranspose` or `Conv` of either library, `ResizeConv` or `SubpixelConv` of ours. A `Conv` with
        `input_dilation`, integers of padding and no strides becomes the 'ConvTranspose' that it is.
      variables: of a Linen module, `{"params": {"kernel": ..., "bias": ...}}` or what is inside "params".

    Returns:
      A layer of the same name, with `padding_convention='dilated'` for the integers of Flax's `ConvTranspose`.

    Raises:
      TypeError: for a layer of another class.
      ValueError: for a Linen module without variables.

    Example:
      >>> from flax import nnx
      >>> flax_layer = nnx.ConvTranspose(8, 3, (4, 4), 2, padding=2, rngs=nnx.Rngs(0))
      >>> from_flax(flax_layer).to_nnx()(jnp.zeros((16, 16, 8))).shape
      (32, 32, 3)
    """
    who = "from_flax"
    name = _class_name(layer, "|".join(LAYERS))
    if name is None:
        raise TypeError(
            f"{who}: layer must be one of {', '.join(LAYERS)}; got {type(layer).__name__}."
        )
    if variables is not None:
        weights = variables.get("params", variables)
    elif hasattr(layer, "kernel"):
        weights = {"kernel": layer.kernel, "bias": layer.bias}
    else:
        raise ValueError(
            f"{who}: a Linen module has its weights in variables; got {name} alone. Give them, too."
        )
    kernel, bias = _numpy(weights["kernel"]), weights.get("bias")
    options = {n: getattr(layer, n) for n in (*OPTIONS, *NEUTRAL) if hasattr(layer, n)}
    rank = kernel.ndim - 2
    if "strides" in options:
        options["strides"] = geo.per_axis(who, "strides", options["strides"] or 1, rank)
    if name == "ConvTranspose" and not isinstance(options["padding"], str):
        options.setdefault("padding_convention", "dilated")
    stretch = geo.per_axis(who, "input_dilation", options.get("input_dilation") or 1, rank)
    plain = not isinstance(options["padding"], str)
    plain &= options.get("padding_mode", "zeros") == "zeros"
    if name == "Conv" and plain and set(stretch) != {1} and set(options["strides"]) == {1}:
        name, options["strides"] = "ConvTranspose", options.pop("input_dilation")
        options["padding_convention"] = "dilated"
    return _converted(who, name, kernel, bias, options)


def from_onnx(
    node: Any,
    initializers: Mapping[str, Any] | None = None,
    *,
    spatial_shape: tuple[int, ...] | None = None,
) -> Converted:
    """Converts a node of ONNX: `ConvTranspose`, `Conv`, `DepthToSpace` or `SpaceToDepth`.

    Args:
      node: a `NodeProto`, or a mapping with 'op_type', 'attributes' (a mapping) and 'inputs' (names).
      initializers: arrays or `TensorProto`s by name; those of the node's weight and bias are used.
      spatial_shape: of the input; needed where the attribute `output_shape` fixes the size of the output.

    Returns:
      A 'ConvTranspose', a 'Conv' or the name of a shuffle.

    Raises:
      ValueError: for another operator, a missing weight, or `output_shape` without `spatial_shape`.

    Example:
      >>> attributes = {"auto_pad": "SAME_UPPER", "strides": [2]}
      >>> node = {"op_type": "ConvTranspose", "attributes": attributes, "inputs": ["x", "w"]}
      >>> from_onnx(node, {"w": np.zeros((8, 3, 5))}).arguments["padding"]
      ((1, 2),)

    References:
      The operators of ONNX, opset 22.
    """
    who = "from_onnx"
    kind, attributes, inputs = _node(node)
    if kind in ("DepthToSpace", "SpaceToDepth"):
        name = SHUFFLES[kind == "SpaceToDepth"]
        return _shuffle(name, attributes["blocksize"], attributes.get("mode", "DCR"))
    if kind not in ("ConvTranspose", "Conv"):
        raise ValueError(
            f"{who}: node must be a ConvTranspose, Conv, DepthToSpace or SpaceToDepth; got op_type={kind!r}."
        )
    weights = dict(initializers or {})
    missing = [name for name in inputs[1:] if name and name not in weights]
    if missing:
        raise ValueError(
            f"{who}: weights must be among the initializers; got no {missing}, only {sorted(weights)[:8]}. Weights "
            "that the graph computes must be evaluated first."
        )
    kernel = _channels_last(_numpy(weights[inputs[1]]))
    bias = weights[inputs[2]] if len(inputs) > 2 and inputs[2] else None
    k, rank = kernel.shape[:-2], kernel.ndim - 2
    strides = geo.per_axis(who, "strides", attributes.get("strides", 1), rank)
    dilation = geo.per_axis(who, "dilations", attributes.get("dilations", 1), rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    padding: Any = {
        "SAME_UPPER": "SAME",
        "NOTSET": tuple(zip(pads[:rank], pads[rank:], strict=True)),
    }
    auto_pad = attributes.get("auto_pad", "NOTSET")
    options: dict[str, Any] = {
        "strides": strides,
        "padding": padding.get(auto_pad, auto_pad),
        "kernel_dilation": dilation,
        "feature_group_count": attributes.get("group", 1),
    }
    if kind == "Conv":
        return _converted(who, "Conv", kernel, bias, options)

    extra = geo.per_axis(
        who, "output_padding", attributes.get("output_padding", 0), rank, minimum=0
    )
    extent = geo.kernel_extent(k, dilation)
    sizes = attributes.get("output_shape") or None
    if sizes is not None and spatial_shape is None:
        raise ValueError(
            f"{who}: what output_shape crops depends on the size of the input; got output_shape={tuple(sizes)}. Give "
            "spatial_shape."
        )
    if sizes is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # What is left to crop for the size wanted, which is s·n where auto_pad asks for it.
        n_in = spatial_shape or (0,) * rank
        n_out = sizes or [s * n for s, n in zip(strides, n_in, strict=True)]
        totals = tuple(
            s * (n - 1) + op + e - m
            for s, n, op, e, m in zip(strides, n_in, extra, extent, n_out, strict=True)
        )
        if sizes is None and min(totals) < 0:
            raise ValueError(
                f"{who}: auto_pad needs kernels that reach across a stride, as runtimes disagree about others; got "
                f"auto_pad={auto_pad!r}, kernel_shape={k}, dilations={dilation}, strides={strides}. Give pads."
            )
        crops = tuple(_split(total, lower=auto_pad != "SAME_UPPER") for total in totals)
    else:
        crops = padding["NOTSET"] if auto_pad == "NOTSET" else ((0, 0),) * rank
    options["padding"] = tuple((lo, hi - op) for (lo, hi), op in zip(crops, extra, strict=True))
    return _converted(who, "ConvTranspose", kernel, bias, options | {"transpose_kernel": True})


def to_torch(layer: Any) -> Foreign:
    """Converts a layer to PyTorch: `torch.nn.<name>(**arguments)` and its state dict, in NumPy.

    Args:
      layer: `Converted`, or an NNX layer that `from_flax` takes.

    Returns:
      The class in `torch.nn`, its arguments and its state. A 'SubpixelConv' is a 'Sequential', whose arguments are two
      layers of this kind.

    Raises:
      TypeError: for a layer of another kind.
      ValueError: for what PyTorch cannot say: crops other than `(p, p − output_padding)` with `output_padding <
        max(stride, dilation)`, as of 'SAME' for odd `k − s`; a padding that depends on the size of the input; other
        boundaries than zeros in a transposed convolution; shuffles that are not square and 'CRD'.

    Example:
      >>> arguments = {"kernel_size": (4, 4), "strides": (2, 2), "padding": "SAME", "transpose_kernel": True}
      >>> name, arguments, state = to_torch(Converted("ConvTranspose", arguments, {"kernel": np.zeros((4, 4, 3, 8))}))
      >>> name, arguments["padding"], arguments["output_padding"], state["weight"].shape
      ('ConvTranspose2d', (1, 1), (0, 0), (8, 3, 4, 4))
    """
    who = "to_torch"
    c = _written(who, layer, ("ConvTranspose", "Conv", "SubpixelConv", *SHUFFLES))
    if c.layer in SHUFFLES:
        names = {"pixel_shuffle": "PixelShuffle", "pixel_unshuffle": "PixelUnshuffle"}
        factor = "upscale_factor" if c.layer == "pixel_shuffle" else "downscale_factor"
        if c.arguments["order"] != "CRD":
            raise ValueError(
                f"{who}: PyTorch shuffles in order 'CRD'; got order={c.arguments['order']!r}."
            )
        return Foreign(names[c.layer], {factor: _square(who, c)}, {})
    if c.layer == "SubpixelConv":
        parts = {str(i): to_torch(part) for i, part in enumerate(_subpixel_parts(who, c))}
        return Foreign("Sequential", parts, {f"0.{n}": v for n, v in parts["0"].state.items()})
    k, strides, dilation = _sizes(c)
    if len(k) > 3:
        raise ValueError(f"{who}: PyTorch's convolutions have 1 to 3 axes; got kernel_size={k}.")
    special: dict[str, Any] = {}
    if c.layer == "ConvTranspose":
        crops = _crops(who, c)
        padding: Any = tuple(lo for lo, _ in crops)
        special["output_padding"] = extra = tuple(lo - hi for lo, hi in crops)
        limits = tuple(max(pair) for pair in zip(strides, dilation, strict=True))
        if min(padding) < 0 or any(not 0 <= op < n for op, n in zip(extra, limits, strict=True)):
            raise ValueError(
                f"{who}: PyTorch crops p >= 0 pixels in front and p - output_padding behind, 0 <= output_padding < "
                f"max(stride, dilation); got padding={c.arguments['padding']!r} with kernel_size={k}, "
                f"strides={strides}, kernel_dilation={dilation}, which crops {crops}. Choose a padding of that form."
            )
    else:
        special["padding_mode"], pads = _boundary(who, c)
        same = tuple(_split(e - 1) for e in geo.kernel_extent(k, dilation))
        if not isinstance(pads, str) and all(lo == hi >= 0 for lo, hi in pads):
            padding = tuple(lo for lo, _ in pads)
        elif pads == same and set(strides) == {1}:
            padding = "same"
        else:
            raise ValueError(
                f"{who}: PyTorch pads both ends alike, or 'same' with stride 1; got padding={c.arguments['padding']!r} "
                f"with kernel_size={k}, strides={strides}. Pad the image in front of the layer."
            )
    kernel, bias = _forward_kernel(c), c.parameters.get("bias")
    groups = c.arguments.get("feature_group_count", 1)
    features = (kernel.shape[-2] * groups, kernel.shape[-1])
    source, target = features[::-1] if c.layer == "ConvTranspose" else features
    arguments = {
        "in_channels": source,
        "out_channels": target,
        "kernel_size": k,
        "stride": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": bias is not None,
        **special,
    }
    weight = _channels_first(kernel)
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return Foreign(f"{c.layer}{len(k)}d", arguments, state)


def to_onnx(layer: Any) -> Foreign:
    """Converts a layer to a node of ONNX: operator, attributes, and its inputs 'W' and 'B'.

    Args:
      layer: `Converted`, or an NNX layer that `from_flax` takes.

    Returns:
      'ConvTranspose', 'Conv', 'DepthToSpace' or 'SpaceToDepth', with attributes that `onnx.helper.make_node` takes.

    Raises:
      TypeError: for a layer of another kind.
      ValueError: for what ONNX cannot say: negative pads, `output_padding >= max(strides, dilations)`, other boundaries
        than zeros, shuffles that are not square.

    Example:
      >>> arguments = {"kernel_size": (5,), "strides": (2,), "padding": "SAME", "transpose_kernel": True}
      >>> to_onnx(Converted("ConvTranspose", arguments, {"kernel": np.zeros((5, 3, 8))})).arguments["pads"]
      (1, 2)
    """
    who = "to_onnx"
    c = _written(who, layer, ("ConvTranspose", "Conv", *SHUFFLES))
    if c.layer in SHUFFLES:
        name = "DepthToSpace" if c.layer == "pixel_shuffle" else "SpaceToDepth"
        return Foreign(name, {"blocksize": _square(who, c), "mode": c.arguments["order"]}, {})
    k, strides, dilation = _sizes(c)
    groups = c.arguments.get("feature_group_count", 1)
    attributes = {"kernel_shape": k, "strides": strides, "dilations": dilation, "group": groups}
    if c.layer == "ConvTranspose":
        mode, crops = "zeros", _crops(who, c)
        extra = tuple(max(0, -hi) for _, hi in crops)
        pads: Any = tuple((lo, max(0, hi)) for lo, hi in crops)
        attributes["output_padding"] = extra
    else:
        (mode, pads), extra = _boundary(who, c), (0,)
    fits = all(op < max(s, d) for op, s, d in zip(extra, strides, dilation, strict=False))
    if isinstance(pads, str):
        attributes["auto_pad"] = "SAME_UPPER" if pads == "SAME" else pads
    else:
        attributes["pads"] = tuple(lo for lo, _ in pads) + tuple(hi for _, hi in pads)
        fits &= min(attributes["pads"]) >= 0
    if mode != "zeros" or not fits:
        raise ValueError(
            f"{who}: ONNX pads with zeros, not with negative numbers of them, and adds fewer pixels than max(strides, "
            f"dilations) behind; got padding={c.arguments['padding']!r}, padding_mode={mode!r} with kernel_size={k}, "
            f"strides={strides}, which gives {attributes}. Choose another padding."
        )
    state = {"W": _channels_first(_forward_kernel(c))}
    if "bias" in c.parameters:
        state["B"] = c.parameters["bias"]
    return Foreign(c.layer, attributes, state)


# --- Reading ----------------------------------------------------------------------------------------------------------


def _converted(
    who: str, layer: str, kernel: np.ndarray, bias: Any, options: dict[str, Any]
) -> Converted:
    """Returns a layer whose sizes are those of its kernel, without the options that go without saying."""
    *k, per_group, last = kernel.shape
    groups, forward = options.get("feature_group_count", 1), options.get("transpose_kernel", False)
    for name in PER_AXIS:
        if options.get(name) is not None:
            options[name] = geo.per_axis(who, name, options[name], len(k), minimum=0)
    source, target = (last, per_group * groups) if forward else (per_group * groups, last)
    bias = None if bias is None else _numpy(bias)
    if last % groups or (bias is not None and bias.shape != (target,)):
        raise ValueError(
            f"{who}: groups and bias must fit the channels of the kernel; got {groups} groups and "
            f"{'no bias' if bias is None else f'a bias of shape {bias.shape}'} for {source} input and {target} output "
            "channels. Is the convolution transposed, or is it not?"
        )
    arguments: dict[str, Any] = {
        "in_features": source,
        "out_features": target // prod(options["scale"]) if layer == "SubpixelConv" else target,
        "kernel_size": tuple(k),
    }
    for name in (*OPTIONS, *NEUTRAL):
        value, neutral = options.get(name), NEUTRAL.get(name)
        said = neutral is None or value not in (neutral, (neutral,) * len(k))
        if value is not None and said:
            arguments[name] = value
    if bias is None:
        return Converted(layer, {**arguments, "use_bias": False}, {"kernel": kernel})
    return Converted(layer, arguments, {"kernel": kernel, "bias": bias})


def _shuffle(layer: str, factor: int, order: str) -> Converted:
    return Converted(layer, {"scale": (int(factor),) * 2, "order": order}, {})


def _class_name(layer: Any, pattern: str) -> str | None:
    """Returns the name of the class, or of the first one above it, that has the pattern."""
    names = (cls.__name__ for cls in type(layer).__mro__)
    return next((name for name in names if re.fullmatch(pattern, name)), None)


def _numpy(value: Any) -> np.ndarray:
    """Returns a copy of an array, a torch tensor, a parameter of Flax or Keras or a TensorProto of ONNX."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        is_bfloat16 = str(value.dtype) == "torch.bfloat16"  # unknown to NumPy
        value = value.float().numpy().astype(jnp.bfloat16) if is_bfloat16 else value.numpy()
    elif hasattr(value, "raw_data"):
        dtypes: dict[int, Any] = {1: np.float32, 10: np.float16, 11: np.float64, 16: jnp.bfloat16}
        dtype = dtypes.get(value.data_type)
        if dtype is None or not value.raw_data:
            raise ValueError(
                f"from_onnx: a TensorProto must hold floating raw_data; got data_type={value.data_type}, "
                f"{len(value.raw_data)} bytes. Give the array that onnx.numpy_helper.to_array makes."
            )
        value = np.frombuffer(value.raw_data, dtype).reshape(tuple(value.dims))
    elif hasattr(value, "get_value"):
        value = value.get_value()
    return np.array(value)


def _channels_last(weight: np.ndarray) -> np.ndarray:
    """Moves `(a, b, *kernel_size)` to `(*kernel_size, b, a)`, for plain and transposed convolutions alike."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _channels_first(kernel: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(kernel.transpose(-1, -2, *range(kernel.ndim - 2)))


def _split(total: int, *, lower: bool = False) -> tuple[int, int]:
    """Splits the crop of 'SAME', the odd pixel at the high end or the `lower` one; a negative crop appends zeros."""
    low = (max(total, 0) + lower) // 2
    return low, total - low


def _state(who: str, source: Any, prefix: str) -> tuple[Any, Any]:
    """Returns weight and bias from a state dict or a safetensors file."""
    if not isinstance(source, Mapping):
        path = Path(source)
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{who}: weights are read from safetensors files, never unpickled; got {path.name!r}. In PyTorch, "
                "safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes one."
            )
        try:
            from safetensors.numpy import load_file
        except ImportError:
            raise ValueError(
                f"{who}: safetensors files need the package safetensors; got {path.name!r}. Install "
                "tconvjax[export]."
            ) from None
        source = load_file(path)
    if f"{prefix}weight" not in source:
        found = sorted(name for name in source if name.endswith("weight"))[:8]
        raise ValueError(
            f"{who}: prefix + 'weight' must be a name in the state dict; got prefix={prefix!r}, weights {found}."
        )
    return source[f"{prefix}weight"], source.get(f"{prefix}bias")


def _node(node: Any) -> tuple[str, dict[str, Any], list[str]]:
    """Returns operator, attributes and names of the inputs of a node of ONNX."""
    if isinstance(node, Mapping):
        return node["op_type"], dict(node["attributes"]), list(node.get("inputs", ()))
    read = {
        1: lambda a: a.f,
        2: lambda a: a.i,
        3: lambda a: a.s.decode(),
        7: lambda a: tuple(a.ints),
    }
    attributes = {a.name: read[a.type](a) for a in node.attribute if a.type in read}
    return node.op_type, attributes, list(node.input)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _written(who: str, layer: Any, layers: tuple[str, ...]) -> Converted:
    c = layer if isinstance(layer, Converted) else from_flax(layer)
    if c.layer not in layers:
        raise TypeError(f"{who}: layer must be one of {', '.join(layers)}; got {c.layer}.")
    return c


def _sizes(c: Converted) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns kernel size, strides and dilation, one integer per axis."""
    k = c.parameters["kernel"].shape[:-2]
    strides, dilation = (c.arguments.get(n, 1) for n in ("strides", "kernel_dilation"))
    per_axis = partial(geo.per_axis, c.layer, rank=len(k))
    return k, per_axis("strides", strides), per_axis("kernel_dilation", dilation)


def _crops(who: str, c: Converted) -> Pairs:
    """Returns the pixels (low, high) that a transposed convolution crops from its full output."""
    if c.arguments.get("padding_mode", "zeros") != "zeros":
        raise ValueError(
            f"{who}: transposed convolutions elsewhere have zeros around; got padding_mode="
            f"{c.arguments['padding_mode']!r}."
        )
    k = c.parameters["kernel"].shape[:-2]
    names = ("strides", "padding", "output_padding", "kernel_dilation", "padding_convention")
    options = {name: c.arguments[name] for name in names if name in c.arguments}
    return geo.conv_transpose_geometry(who, (LARGE,) * len(k), k, **options).padding


def _boundary(who: str, c: Converted) -> tuple[str, str | Pairs]:
    """Returns the boundary and the padding of a plain convolution, in pairs unless it depends on the image."""
    mode, padding = c.arguments.get("padding_mode", "zeros"), c.arguments["padding"]
    k, strides, dilation = _sizes(c)
    extent = geo.kernel_extent(k, dilation)
    if "input_dilation" in c.arguments:
        raise ValueError(
            f"{who}: elsewhere a convolution has strides or zeros between its pixels, not both; got strides={strides}, "
            f"input_dilation={c.arguments['input_dilation']}. Use two layers."
        )
    if padding in ("CIRCULAR", "REFLECT"):  # Flax's
        return padding.lower(), tuple(_split(e - 1) for e in extent)
    if padding == "CAUSAL":
        return mode, tuple((e - 1, 0) for e in extent)
    pads = geo.resolve_padding(who, padding, len(k))
    if pads == "VALID":
        return mode, ((0, 0),) * len(k)
    if isinstance(pads, str) and set(strides) == {1}:
        return mode, tuple(_split(e - 1, lower=pads == "SAME_LOWER") for e in extent)
    return mode, pads


def _forward_kernel(c: Converted) -> np.ndarray:
    """Returns the kernel in use, that of the forward convolution if the layer is transposed."""
    kernel = c.parameters["kernel"]
    if "mask" in c.arguments:
        kernel = kernel * np.asarray(c.arguments["mask"], kernel.dtype)
    if c.layer == "ConvTranspose" and not c.arguments.get("transpose_kernel", False):
        groups = c.arguments.get("feature_group_count", 1)
        kernel = np.asarray(flip_and_swap(jnp.asarray(kernel), kernel.ndim - 2, groups))
    return kernel


def _subpixel_parts(who: str, c: Converted) -> tuple[Converted, Converted]:
    """Returns the convolution and the 'CRD' shuffle of a SubpixelConv."""
    scale, order = c.arguments["scale"], c.arguments.get("order", "CRD")
    groups = c.arguments.get("feature_group_count", 1)
    parameters = c.parameters
    if order == "DCR":
        if groups > 1:
            raise ValueError(
                f"{who}: channels in order 'DCR' cannot be sorted for a shuffle in order 'CRD' across groups; got "
                f"feature_group_count={groups}."
            )
        phases = prod(scale)
        parameters = {
            n: v.reshape(*v.shape[:-1], phases, -1).swapaxes(-1, -2).reshape(v.shape)
            for n, v in parameters.items()
        }
    arguments = {n: v for n, v in c.arguments.items() if n not in ("scale", "order")}
    arguments["out_features"] = parameters["kernel"].shape[-1]
    shuffle = Converted("pixel_shuffle", {"scale": scale, "order": "CRD"}, {})
    return Converted("Conv", arguments, parameters), shuffle


def _square(who: str, c: Converted) -> int:
    scale = tuple(c.arguments["scale"])
    if len(scale) != 2 or len(set(scale)) != 1:
        raise ValueError(
            f"{who}: elsewhere a shuffle has one factor for two axes; got scale={scale}."
        )
    return scale[0]
