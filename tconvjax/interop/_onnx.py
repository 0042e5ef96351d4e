"""ONNX."""

from collections.abc import Mapping
from typing import Any

from tconvjax import _geometry as geo
from tconvjax.interop._checks import described, same_layer, writable
from tconvjax.interop._converted import (
    SHUFFLES,
    Converted,
    Foreign,
    as_converted,
    as_numpy,
    as_shuffle,
    boundary,
    channels_first,
    channels_last,
    crops,
    forward_kernel,
    sizes,
    spatial_rank,
    split,
    square,
)
from tconvjax.interop._flax import as_layer

# Operators and the attributes that are understood.
SHUFFLING = ("blocksize", "mode")
CONVOLVING = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
ATTRIBUTES = {
    "ConvTranspose": (*CONVOLVING, "output_padding", "output_shape"),
    "Conv": CONVOLVING,
    "DepthToSpace": SHUFFLING,
    "SpaceToDepth": SHUFFLING,
}
ORDERS = ("DCR", "CRD")
AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


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
      TypeError: for another object than a node, such as a whole model.
      ValueError: for another operator or attribute, a missing weight, or `output_shape` without `spatial_shape`.

    Example:
      >>> import numpy as np
      >>> attributes = {"auto_pad": "SAME_UPPER", "strides": [2]}
      >>> node = {"op_type": "ConvTranspose", "attributes": attributes, "inputs": ["x", "w"]}
      >>> from_onnx(node, {"w": np.zeros((8, 3, 5))}).arguments["padding"]
      ((1, 2),)

    References:
      The operators of ONNX, opset 22.
    """
    who = "from_onnx"
    kind, attributes, inputs = _parts(who, node)
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
    kernel = channels_last(as_numpy(who, inputs[1], weights[inputs[1]]))
    bias = as_numpy(who, inputs[2], weights[inputs[2]]) if inputs[2:] and inputs[2] else None
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
    wanted = attributes.get("output_shape") or None
    if wanted is not None and spatial_shape is None:
        raise ValueError(
            f"{who}: what output_shape crops depends on the size of the input; got output_shape={tuple(wanted)}. Give "
            "spatial_shape."
        )
    if wanted is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # What is left to crop for the size wanted, which is s·n where auto_pad asks for it.
        n_in = spatial_shape or (0,) * rank
        n_out = wanted or [s * n for s, n in zip(strides, n_in, strict=True)]
        totals = tuple(
            s * (n - 1) + op + e - m
            for s, n, op, e, m in zip(strides, n_in, extra, extent, n_out, strict=True)
        )
        if wanted is None and min(totals) < 0:
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
      'ConvTranspose', 'Conv', 'DepthToSpace' or 'SpaceToDepth', with attributes that `onnx.helper.make_node` takes.

    Raises:
      TypeError: for a layer of another kind.
      ValueError: for what ONNX cannot say: negative pads, `output_padding >= max(strides, dilations)`, other boundaries
        than zeros, shuffles that are not square.

    Example:
      >>> import numpy as np
      >>> arguments = {"kernel_size": (5,), "strides": (2,), "padding": "SAME", "transpose_kernel": True}
      >>> to_onnx(Converted("ConvTranspose", arguments, {"kernel": np.zeros((5, 3, 8))})).arguments["pads"]
      (1, 2)
    """
    who = "to_onnx"
    c = writable(who, as_layer(who, layer), ("ConvTranspose", "Conv", *SHUFFLES))
    if c.layer in SHUFFLES:
        name = "DepthToSpace" if c.layer == "pixel_shuffle" else "SpaceToDepth"
        return Foreign(name, {"blocksize": square(who, c), "mode": c.arguments["order"]}, {})
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
    same_layer(who, c, from_onnx(node, state))
    return Foreign(c.layer, attributes, state)


def _parts(who: str, node: Any) -> tuple[str, dict[str, Any], list[str]]:
    """Returns operator, attributes and names of the inputs of a node of ONNX, or refuses what is not understood."""
    if isinstance(node, Mapping):
        kind, domain = node.get("op_type"), node.get("domain", "")
        attributes, inputs = dict(node.get("attributes", {})), list(node.get("inputs", ()))
    elif all(hasattr(node, name) for name in ("op_type", "attribute", "input")):
        read = {
            1: lambda a: a.f,
            2: lambda a: a.i,
            3: lambda a: a.s.decode(),
            7: lambda a: tuple(a.ints),
        }
        kind, domain, inputs = node.op_type, getattr(node, "domain", ""), list(node.input)
        attributes = {a.name: read[a.type](a) if a.type in read else a for a in node.attribute}
    else:
        raise TypeError(
            f"{who}: node must be a NodeProto or a mapping; got {described(node)}. Convert the nodes of a graph one by "
            "one."
        )
    if kind not in ATTRIBUTES or domain not in {"", "ai.onnx"}:
        raise ValueError(
            f"{who}: node must be a ConvTranspose, Conv, DepthToSpace or SpaceToDepth; got op_type={kind!r}"
            f"{f' of {domain!r}' if domain else ''}."
        )
    unknown = sorted(attributes.keys() - set(ATTRIBUTES[kind]))
    if unknown:
        raise ValueError(
            f"{who}: attributes of {kind} are {', '.join(ATTRIBUTES[kind])}; got {unknown}. Remove what leaves the "
            "numbers alone."
        )
    return kind, attributes, inputs


def _refuse_attributes(who: str, kernel_size: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """Raises unless the attributes of a convolution fit its kernel and each other."""
    geo.choice(who, "auto_pad", attributes.get("auto_pad", "NOTSET"), AUTO_PADS)
    stated = tuple(attributes.get("kernel_shape", kernel_size))
    if stated != kernel_size:
        raise ValueError(
            f"{who}: kernel_shape must be that of the weight; got kernel_shape={stated}, weight of {kernel_size}."
        )
    pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel_size)))
    conflict = any(pads) and attributes.get("auto_pad", "NOTSET") != "NOTSET"
    if len(pads) != 2 * len(kernel_size) or min(pads) < 0 or conflict:
        raise ValueError(
            f"{who}: pads must be two numbers >= 0 per axis, and go without auto_pad; got pads={pads}, "
            f"auto_pad={attributes.get('auto_pad', 'NOTSET')!r}, kernel of {kernel_size}."
        )
