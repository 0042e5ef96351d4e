"""ONNX: its nodes as layers, and layers as its nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax.interop._checks import as_numpy, check_round_trip, described, writable
from tconvjax.interop._composite import convolution_of, factors_of, joined, mode_of, subpixel_parts
from tconvjax.interop._converted import (
    LAYERS,
    SHUFFLES,
    Converted,
    Foreign,
    as_converted,
    as_shuffle,
    boundary,
    channels_first,
    channels_last,
    crops,
    forward_kernel,
    in_sequence,
    sizes,
    spatial_rank,
    split,
    square,
)
from tconvjax.interop._flax import as_layer
from tconvjax.interop._resize import RESIZING, UPSAMPLING, as_resize, as_upsample

# Operators and their attributes that the converters know.
SHUFFLING = ("blocksize", "mode")
CONVOLVING = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
ATTRIBUTES = {
    "ConvTranspose": (*CONVOLVING, "output_padding", "output_shape"),
    "Conv": CONVOLVING,
    "DepthToSpace": SHUFFLING,
    "SpaceToDepth": SHUFFLING,
    "Resize": RESIZING,
    "Upsample": UPSAMPLING,
}
ORDERS = ("DCR", "CRD")
FLOATING: dict[int, Any] = {1: np.float32, 10: np.float16, 11: np.float64, 16: jnp.bfloat16}
AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def from_onnx(
    node: Any,
    initializers: Mapping[str, Any] | None = None,
    *,
    spatial_shape: tuple[int, ...] | None = None,
) -> Converted:
    """Converts a node of ONNX, or two that are one layer here: Resize and Conv, Conv and DepthToSpace.

    Args:
      node: a `NodeProto`, or a mapping with 'op_type', 'attributes' (a mapping) and 'inputs' (names): `ConvTranspose`,
        `Conv`, `DepthToSpace`, `SpaceToDepth`, `Resize` or `Upsample`; or a sequence of two nodes.
      initializers: arrays, `TensorProto`s or nodes `Constant` by name, the weights of the node among them.
      spatial_shape: spatial shape of the input; needed if the attribute `output_shape` fixes the size of the output.

    Returns:
      A 'ConvTranspose', a 'Conv', the name of a shuffle or 'resize'; of two nodes a 'ResizeConv' or a 'SubpixelConv'. A
      'resize' whose scales or sizes the graph computes takes `scale` or `output_shape` at the call.

    Raises:
      TypeError: for an object that is no node, such as a whole model.
      ValueError: for another operator or attribute, a missing weight, `output_shape` without `spatial_shape`, two nodes
        that are no layer, or a Resize that runtimes or `resize` do not agree about.

    Example:
      >>> attributes = {"auto_pad": "SAME_UPPER", "strides": [2]}
      >>> node = {"op_type": "ConvTranspose", "attributes": attributes, "inputs": ["x", "w"]}
      >>> from_onnx(node, {"w": np.zeros((8, 3, 5))}).arguments["padding"]
      ((1, 2),)

    References:
      The operators of ONNX, opset 22.
    """
    who = "from_onnx"
    if isinstance(node, Sequence) and not isinstance(node, str) and len(node) == 2:
        (*_, outputs), (_, _, inputs, _) = (_parts(who, part) for part in node)
        if outputs and inputs[:1] != outputs:
            raise ValueError(
                f"{who}: the second node must read the first; got outputs {outputs}, then inputs {inputs}. Convert "
                "the nodes one by one."
            )
        return joined(who, *(from_onnx(part, initializers) for part in node))
    kind, attributes, inputs, _ = _parts(who, node)
    if kind in ("Resize", "Upsample"):
        return _enlargement(who, kind, attributes, inputs, initializers or {})
    if kind in ("DepthToSpace", "SpaceToDepth"):
        name = SHUFFLES[kind == "SpaceToDepth"]
        order = geo.choice(who, "mode", attributes.get("mode", "DCR"), ORDERS)
        return as_shuffle(name, attributes["blocksize"], order)
    weights = dict(initializers or {})
    missing = [name for name in inputs[1:] if name and name not in weights]
    if missing:
        raise ValueError(
            f"{who}: weights must be among the initializers; got no {missing}, only {sorted(weights)[:8]}. Weights "
            "that the graph computes must be evaluated first."
        )
    if not 2 <= len(inputs) <= 3 or not inputs[1]:
        raise ValueError(
            f"{who}: inputs must be an image, a weight and perhaps a bias; got {inputs}."
        )
    kernel = channels_last(_array(who, inputs[1], weights[inputs[1]]))
    bias = _array(who, inputs[2], weights[inputs[2]]) if inputs[2:] and inputs[2] else None
    k, rank = kernel.shape[:-2], spatial_rank(who, kernel)
    _refuse_attributes(who, k, attributes)
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
        return as_converted(who, "Conv", kernel, bias, options)

    extra = geo.per_axis(
        who, "output_padding", attributes.get("output_padding", 0), rank, minimum=0
    )
    extent = geo.kernel_extent(k, dilation)
    output_shape = attributes.get("output_shape") or None
    if output_shape is not None and spatial_shape is None:
        raise ValueError(
            f"{who}: what output_shape crops depends on the size of the input; got "
            f"output_shape={tuple(output_shape)}. Give spatial_shape."
        )
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # Crops from the full output to `output_shape`; auto_pad crops to s·n, for any n.
        n_in = spatial_shape or (0,) * rank
        n_out = output_shape or [s * n for s, n in zip(strides, n_in, strict=True)]
        totals = tuple(
            s * (n - 1) + op + e - m
            for s, n, op, e, m in zip(strides, n_in, extra, extent, n_out, strict=True)
        )
        if output_shape is None and min(totals) < 0:  # as in microsoft/onnxruntime#10086 and #11927
            raise ValueError(
                f"{who}: auto_pad needs kernels that reach across a stride, as runtimes disagree about others; got "
                f"auto_pad={auto_pad!r}, kernel_shape={k}, dilations={dilation}, strides={strides}. Give pads."
            )
        cropped = tuple(split(total, lower=auto_pad != "SAME_UPPER") for total in totals)
    else:
        cropped = padding["NOTSET"] if auto_pad == "NOTSET" else ((0, 0),) * rank
    options["padding"] = tuple((lo, hi - op) for (lo, hi), op in zip(cropped, extra, strict=True))
    return as_converted(who, "ConvTranspose", kernel, bias, options | {"transpose_kernel": True})


def to_onnx(layer: Any) -> Foreign:
    """Converts a layer to a node of ONNX: operator, attributes, and its inputs 'W' and 'B'.

    Args:
      layer: `Converted`, or an NNX layer that `from_flax` takes.

    Returns:
      'ConvTranspose', 'Conv', 'DepthToSpace' or 'SpaceToDepth', with the attributes for `onnx.helper.make_node`. A
      'SubpixelConv' and a 'ResizeConv' become a 'Sequential': its arguments are two results of this kind, nodes one
      behind the other, Conv and
      DepthToSpace, or Resize, with inputs 'x', '' (no region) and 'scales', and Conv.

    Raises:
      TypeError: for a layer of another kind.
      ValueError: for what ONNX does not have: negative pads, `output_padding >= max(strides, dilations)`, other
        boundaries than zeros, shuffles with two factors, methods of a resize-convolution other than 'nearest', 'area'
        and 'linear'.

    Example:
      >>> arguments = {"kernel_size": (5,), "strides": (2,), "padding": "SAME", "transpose_kernel": True}
      >>> to_onnx(Converted("ConvTranspose", arguments, {"kernel": np.zeros((5, 3, 8))})).arguments["pads"]
      (1, 2)
    """
    who = "to_onnx"
    c = writable(who, as_layer(who, layer), (*LAYERS, *SHUFFLES))
    if c.layer in SHUFFLES:
        name = "DepthToSpace" if c.layer == "pixel_shuffle" else "SpaceToDepth"
        return Foreign(name, {"blocksize": square(who, c), "mode": c.arguments["order"]}, {})
    if c.layer == "SubpixelConv":
        return _nodes(who, c, *map(to_onnx, subpixel_parts(who, c, ORDERS)))
    if c.layer == "ResizeConv":
        return _nodes(who, c, _resize_node(who, c), to_onnx(convolution_of(c)))
    k, strides, dilation = sizes(c)
    groups = c.arguments.get("feature_group_count", 1)
    attributes = {"kernel_shape": k, "strides": strides, "dilations": dilation, "group": groups}
    if c.layer == "ConvTranspose":
        mode, cropped = "zeros", crops(who, c)
        extra = tuple(max(0, -hi) for _, hi in cropped)
        pads: Any = tuple((lo, max(0, hi)) for lo, hi in cropped)
        attributes["output_padding"] = extra
    else:
        (mode, pads), extra = boundary(who, c), (0,)
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
    state = {"W": channels_first(forward_kernel(c))}
    if "bias" in c.parameters:
        state["B"] = c.parameters["bias"]
    node = {"op_type": c.layer, "attributes": attributes, "inputs": ["x", *state]}
    check_round_trip(who, c, from_onnx(node, state))
    return Foreign(c.layer, attributes, state)


def _resize_node(who: str, c: Converted) -> Foreign:
    """Returns the Resize in front of the convolution; 'nearest' as PyTorch writes it."""
    scales = np.array([1, 1, *factors_of(who, c)], np.float32)
    mode = mode_of(who, c)
    asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    half_pixel = {"coordinate_transformation_mode": "half_pixel"}
    attributes = (
        {"mode": "nearest"} | asymmetric if mode == "nearest" else {"mode": "linear"} | half_pixel
    )
    return Foreign("Resize", attributes, {"scales": scales})


def _nodes(who: str, c: Converted, *parts: Foreign) -> Foreign:
    """Returns nodes one behind the other, which are the layer when they are read again."""
    foreign = in_sequence(*parts)
    nodes = []
    for i, part in foreign.arguments.items():
        first = ["x", ""] if part.name == "Resize" else ["x"]
        inputs = [*first, *(f"{i}.{name}" for name in part.state)]
        nodes.append({"op_type": part.name, "attributes": part.arguments, "inputs": inputs})
    check_round_trip(who, c, from_onnx(nodes, foreign.state))
    return foreign


def _enlargement(
    who: str,
    kind: str,
    attributes: dict[str, Any],
    inputs: list[str],
    initializers: Mapping[str, Any],
) -> Converted:
    """Returns a Resize or an Upsample; its scales or sizes are an attribute, initializers, or computed by the graph."""
    values = [
        _tensor(who, n, initializers[n]).ravel().tolist() if n in initializers else None
        for n in inputs
    ]
    if kind == "Upsample" or len(inputs) == 2:  # opset 10 has scales where opset 11 has a region
        return as_upsample(who, attributes, attributes.get("scales", values[1] if values[1:] else None))  # fmt: skip
    values += [None] * (4 - len(values))
    if inputs[2] and inputs[3:] and values[2] == []:  # opset 11 has empty scales beside sizes
        values[2] = None
    return as_resize(who, attributes, values[2], values[3])


def _parts(who: str, node: Any) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """Returns operator, attributes and names of the inputs and outputs; raises for unknown operators or attributes."""
    if isinstance(node, Mapping):
        kind, domain = node.get("op_type"), node.get("domain", "")
        attributes, inputs = dict(node.get("attributes", {})), list(node.get("inputs", ()))
        outputs = list(node.get("outputs", ()))
    elif all(hasattr(node, name) for name in ("op_type", "attribute", "input")):
        value_by_type = {
            1: lambda a: a.f,
            2: lambda a: a.i,
            3: lambda a: a.s.decode(),
            6: lambda a: tuple(a.floats),
            7: lambda a: tuple(a.ints),
        }
        kind, domain, inputs = node.op_type, getattr(node, "domain", ""), list(node.input)
        outputs = list(getattr(node, "output", ()))
        attributes = {
            a.name: value_by_type[a.type](a) if a.type in value_by_type else a
            for a in node.attribute
        }
    else:
        raise TypeError(
            f"{who}: node must be a NodeProto or a mapping; got {described(node)}. Of onnx.load('model.onnx').graph as "
            f"g, convert the nodes g.node that are {', '.join(ATTRIBUTES)} one by one, with the initializers "
            "{t.name: t for t in g.initializer}."
        )
    if kind not in ATTRIBUTES or domain not in {"", "ai.onnx"}:
        raise ValueError(
            f"{who}: node must be one of {', '.join(ATTRIBUTES)}; got op_type={kind!r}"
            f"{f' of {domain!r}' if domain else ''}."
        )
    unknown = sorted(attributes.keys() - set(ATTRIBUTES[kind]))
    if unknown:
        raise ValueError(
            f"{who}: attributes of {kind} are {', '.join(ATTRIBUTES[kind])}; got {unknown}. Remove what leaves the "
            "numbers alone."
        )
    return kind, attributes, inputs, outputs


def _refuse_attributes(who: str, kernel_size: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """Raises unless the attributes of a convolution fit its kernel and each other."""
    geo.choice(who, "auto_pad", attributes.get("auto_pad", "NOTSET"), AUTO_PADS)
    kernel_shape = tuple(attributes.get("kernel_shape", kernel_size))
    if kernel_shape != kernel_size:
        raise ValueError(
            f"{who}: kernel_shape must be that of the weight; got kernel_shape={kernel_shape}, weight of {kernel_size}."
        )
    pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel_size)))
    conflict = any(pads) and attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if len(pads) != 2 * len(kernel_size) or min(pads) < 0 or conflict:
        raise ValueError(
            f"{who}: pads must be two numbers >= 0 per axis, and go without auto_pad; got pads={pads}, "
            f"auto_pad={attributes.get('auto_pad', 'NOTSET')!r}, kernel of {kernel_size}."
        )


def _array(who: str, name: str, value: Any) -> np.ndarray:
    """Returns a copy of an array of floating numbers."""
    tensor = _tensor(who, name, value, FLOATING)
    return as_numpy(who, name, tensor, value)


def _tensor(who: str, name: str, value: Any, dtypes: Mapping[int, Any] | None = None) -> np.ndarray:
    """Returns the numbers of an array, a TensorProto or a node Constant."""
    if getattr(value, "op_type", None) == "Constant":
        held = {a.name: a for a in value.attribute}
        if "value" not in held:
            raise ValueError(
                f"{who}: a Constant must hold a tensor as its attribute 'value'; got {sorted(held)} for {name}. Give "
                "the array."
            )
        value = held["value"].t
    if not hasattr(value, "raw_data"):
        return value if dtypes else np.asarray(value)
    dtypes = dtypes or FLOATING | {6: np.int32, 7: np.int64}
    dtype = dtypes.get(value.data_type)
    if dtype is None or (not value.raw_data and 0 not in value.dims):
        raise ValueError(
            f"{who}: a TensorProto must hold floating raw_data; got data_type={value.data_type}, "
            f"{len(value.raw_data)} bytes. Give the array that onnx.numpy_helper.to_array makes."
        )
    return np.frombuffer(value.raw_data, dtype).reshape(tuple(value.dims))
