"""What both writers, `to_torch` and `to_onnx`, read from a layer."""

from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax._geometry import Pairs
from tconvjax.interop._converted import Converted, kernel_in_use, split
from tconvjax.interop._flax import read

LARGE = 1 << 20  # pixels of an axis on which any layer has output


def written(who: str, layer: Any, layers: tuple[str, ...]) -> Converted:
    """Returns the layer that is to be written, or refuses one that computes in another dtype than its kernel's."""
    c = layer if isinstance(layer, Converted) else read(who, layer)
    if c.layer not in layers:
        raise TypeError(f"{who}: layer must be one of {', '.join(layers)}; got {c.layer}.")
    for name in ("dtype", "preferred_element_type"):
        dtype, kernel = c.arguments.get(name), c.parameters.get("kernel")
        if dtype is not None and kernel is not None and jnp.dtype(dtype) != kernel.dtype:
            raise ValueError(
                f"{who}: elsewhere a layer computes in the dtype of its kernel; got {name}={jnp.dtype(dtype)} with a "
                f"kernel of {kernel.dtype}. Cast the parameters, and leave {name} out."
            )
    return c


def same_layer(who: str, c: Converted, again: Converted) -> None:
    """Raises unless what was written, when it is read again, is the layer that was given."""
    (facts, *arrays), (others, *copies) = (_canonical(who, layer) for layer in (c, again))
    pairs = zip(arrays, copies, strict=True)
    if facts != others or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        raise ValueError(
            f"{who}: what is written must be what was given; got {facts}, and {others} when it is read again, or "
            "another kernel or bias. Please report this layer."
        )


def _canonical(who: str, c: Converted) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns what fixes the numbers of a layer, whatever words it is described in: facts, kernel and bias."""
    place = crops(who, c) if c.layer == "ConvTranspose" else boundary(who, c)
    groups, scale = (c.arguments.get(n, 1) for n in ("feature_group_count", "scale"))
    facts = (c.layer, *sizes(c), groups, scale, place)
    return facts, forward_kernel(c), c.parameters.get("bias", np.zeros(0))


def sizes(c: Converted) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns kernel size, strides and dilation, one integer per axis."""
    k = c.parameters["kernel"].shape[:-2]
    strides, dilation = (c.arguments.get(n, 1) for n in ("strides", "kernel_dilation"))
    per_axis = partial(geo.per_axis, c.layer, rank=len(k))
    return k, per_axis("strides", strides), per_axis("kernel_dilation", dilation)


def crops(who: str, c: Converted) -> Pairs:
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


def boundary(who: str, c: Converted) -> tuple[str, str | Pairs]:
    """Returns the boundary and the padding of a plain convolution, in pairs unless it depends on the image."""
    mode, padding = c.arguments.get("padding_mode", "zeros"), c.arguments["padding"]
    k, strides, dilation = sizes(c)
    extent = geo.kernel_extent(k, dilation)
    if "input_dilation" in c.arguments:
        raise ValueError(
            f"{who}: elsewhere a convolution has strides or zeros between its pixels, not both; got strides={strides}, "
            f"input_dilation={c.arguments['input_dilation']}. Use two layers."
        )
    if padding in ("CIRCULAR", "REFLECT"):  # Flax's
        return padding.lower(), tuple(split(e - 1) for e in extent)
    if padding == "CAUSAL":
        return mode, tuple((e - 1, 0) for e in extent)
    pads = geo.resolve_padding(who, padding, len(k))
    if pads == "VALID":
        return mode, ((0, 0),) * len(k)
    if isinstance(pads, str) and set(strides) == {1}:
        return mode, tuple(split(e - 1, lower=pads == "SAME_LOWER") for e in extent)
    return mode, pads


def forward_kernel(c: Converted) -> np.ndarray:
    """Returns the kernel in use, that of the forward convolution if the layer is transposed."""
    kernel = kernel_in_use(c.layer, c.parameters["kernel"], c.arguments)
    if c.layer != "ConvTranspose" or c.arguments.get("transpose_kernel", False):
        return kernel
    *k, per_group, last = kernel.shape
    groups = c.arguments.get("feature_group_count", 1)
    kernel = np.flip(kernel, tuple(range(len(k)))).reshape(*k, per_group, groups, last // groups)
    return kernel.swapaxes(-1, -3).reshape(*k, last // groups, per_group * groups)


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """Moves `(*kernel_size, b, a)` to `(a, b, *kernel_size)`."""
    return np.ascontiguousarray(kernel.transpose(-1, -2, *range(kernel.ndim - 2)))


def subpixel_parts(who: str, c: Converted) -> tuple[Converted, Converted]:
    """Returns the convolution and the 'CRD' shuffle of a SubpixelConv."""
    scale, order = c.arguments["scale"], c.arguments.get("order", "CRD")
    groups = c.arguments.get("feature_group_count", 1)
    parameters = {**c.parameters, "kernel": forward_kernel(c)}
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
    arguments = {n: v for n, v in c.arguments.items() if n not in ("scale", "order", "mask")}
    arguments["out_features"] = parameters["kernel"].shape[-1]
    shuffle = Converted("pixel_shuffle", {"scale": scale, "order": "CRD"}, {})
    return Converted("Conv", arguments, parameters), shuffle


def square(who: str, c: Converted) -> int:
    """Returns the factor of a shuffle that has one for two axes."""
    scale = tuple(c.arguments["scale"])
    if len(scale) != 2 or len(set(scale)) != 1:
        raise ValueError(
            f"{who}: elsewhere a shuffle has one factor for two axes; got scale={scale}."
        )
    return scale[0]
