"""Layers that are two layers elsewhere: a resize-convolution and a sub-pixel convolution.

    ours            PyTorch                                   ONNX
    ResizeConv      Upsample, perhaps a pad, Conv1d to 3d     Resize, Conv
    SubpixelConv    Conv2d, PixelShuffle                      Conv, DepthToSpace

The numbers are the same for 'nearest' and 'linear' by whole factors with half-pixel centers. Peers have other
enlargements, too: those are refused.
"""

from math import prod
from typing import Any

from tconvjax import _geometry as geo
from tconvjax.interop._converted import Converted, as_converted, forward_kernel

MODES = {"linear": 1, "bilinear": 2, "trilinear": 3}  # PyTorch's 'linear' along so many axes
UPSAMPLE = r"Upsample|Upsampling(Nearest|Bilinear)2d"  # names of classes of PyTorch
PAD = r"(Zero|Reflection|Replication|Circular)Pad[123]d"
BORDERS = {"Zero": "zeros", "Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}  # fmt: skip


def enlargement(
    who: str, rank: int, scale_factor: Any, mode: str, *, align_corners: bool | None = None
) -> dict[str, Any]:
    """Returns scale and method of a resize-convolution from PyTorch's arguments; raises for what it does not have."""
    choices = ("nearest", "nearest-exact", *(name for name, axes in MODES.items() if axes == rank))
    if mode not in choices or align_corners:
        raise ValueError(
            f"{who}: a resize-convolution over {rank} axes enlarges by {', '.join(map(repr, choices))} with "
            f"align_corners=False; got mode={mode!r}, align_corners={align_corners}. Use tconvjax.resize, which has "
            "these, in front of the converted convolution."
        )
    many = isinstance(scale_factor, tuple | list)
    factors = tuple(scale_factor) if many else (scale_factor,) * rank
    numbers = all(isinstance(f, int | float) and f >= 1 and f == int(f) for f in factors)
    if not numbers or len(factors) != rank:
        raise ValueError(
            f"{who}: a resize-convolution enlarges by whole factors, one for all axes or one per axis; got "
            f"scale_factor={scale_factor} for {rank} axes. Use tconvjax.resize in front of the converted convolution."
        )
    method = "linear" if mode in MODES else "nearest"
    return {"scale": tuple(int(f) for f in factors), "method": method}


def mode_of(who: str, c: Converted) -> str:
    """Returns PyTorch's mode for the method of a resize-convolution; by whole factors 'area' is 'nearest'."""
    method = c.arguments.get("method", "nearest")
    if method not in {"nearest", "area", "linear"}:
        raise ValueError(
            f"{who}: method must be 'nearest', 'area' or 'linear', since peers compute the others in another way; got "
            f"method={method!r}."
        )
    rank = c.parameters["kernel"].ndim - 2
    names = {axes: name for name, axes in MODES.items()}
    return "nearest" if method != "linear" else names.get(rank, "linear")


def padded(who: str, pad: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a convolution with the border of a pad of PyTorch, whose last axis comes first."""
    name = type(pad).__name__
    border = BORDERS[name.partition("Pad")[0]]
    numbers = geo.ints(who, "padding", pad.padding, minimum=0)
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))[::-1]
    if options["padding"] not in (0, (0,) * len(pairs), "VALID"):
        raise ValueError(
            f"{who}: one border must serve the convolution; got {name}({pad.padding}) in front of one with padding="
            f"{options['padding']!r}. Pad once."
        )
    return options | {"padding": pairs, "padding_mode": border}


def factors_of(who: str, c: Converted) -> tuple[int, ...]:
    """Returns the factor of each axis."""
    return geo.per_axis(who, "scale", c.arguments["scale"], c.parameters["kernel"].ndim - 2)


def convolution_of(c: Converted) -> Converted:
    """Returns the plain convolution inside a resize-convolution or a sub-pixel convolution, with the kernel in use."""
    left_out = ("scale", "order", "method", "mask")
    parameters = {**c.parameters, "kernel": forward_kernel(c)}
    arguments = {n: v for n, v in c.arguments.items() if n not in left_out}
    arguments["out_features"] = parameters["kernel"].shape[-1]
    return Converted("Conv", arguments, parameters)


def subpixel_parts(who: str, c: Converted, orders: tuple[str, ...]) -> tuple[Converted, Converted]:
    """Returns a SubpixelConv as a convolution and a shuffle, in order 'CRD' if the peer does not have its own."""
    scale, order = factors_of(who, c), c.arguments.get("order", "CRD")
    groups = c.arguments.get("feature_group_count", 1)
    conv = convolution_of(c)
    if order not in orders:
        if groups > 1:
            raise ValueError(
                f"{who}: channels in order 'DCR' cannot be sorted for a shuffle in order 'CRD' across groups; got "
                f"feature_group_count={groups}."
            )
        parameters = {
            n: v.reshape(*v.shape[:-1], prod(scale), -1).swapaxes(-1, -2).reshape(v.shape)
            for n, v in conv.parameters.items()
        }
        conv, order = Converted("Conv", conv.arguments, parameters), "CRD"
    return conv, Converted("pixel_shuffle", {"scale": scale, "order": order}, {})


def joined(who: str, first: Converted, second: Converted) -> Converted:
    """Returns a resize-convolution or a sub-pixel convolution, from its two parts; raises for other pairs."""
    conv = next((c for c in (first, second) if c.layer == "Conv"), None)
    other = second if conv is first else first
    kinds = (first.layer, second.layer)
    if conv is None or kinds not in {("resize", "Conv"), ("Conv", "pixel_shuffle")}:
        raise ValueError(
            f"{who}: two nodes are one layer if they enlarge and convolve, or convolve and shuffle; got "
            f"{' and '.join(kinds)}. Convert them one by one."
        )
    options = {n: v for n, v in conv.options.items() if n != "strides"}
    rank = conv.parameters["kernel"].ndim - 2
    factors, strides = other.arguments.get("scale", ()), conv.arguments["strides"]
    # What is no whole factor, 'nearest' or half-pixel 'linear' has more arguments.
    extra = other.arguments.keys() - {"scale", "method", "order"}
    if set(strides) != {1} or len(factors) != rank or extra:
        raise ValueError(
            f"{who}: one layer enlarges by whole factors, by 'nearest' or by 'linear' with half-pixel centers, and "
            f"convolves with strides 1, along the same axes; got {other.arguments}, strides={strides}. Convert the "
            "nodes one by one."
        )
    name = "ResizeConv" if kinds[0] == "resize" else "SubpixelConv"
    parameters = conv.parameters
    return as_converted(
        who, name, parameters["kernel"], parameters.get("bias"), options | other.arguments
    )
