"""A layer as data, which every converter returns or reads: its sizes, its padding and its arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tconvjax import _geometry as geo
from tconvjax._geometry import Pairs
from tconvjax._ops import phases
from tconvjax._ops.resize import resize
from tconvjax._ops.subpixel import pixel_shuffle, pixel_unshuffle

LAYERS = ("ConvTranspose", "Conv", "ResizeConv", "SubpixelConv")
SHUFFLES = ("pixel_shuffle", "pixel_unshuffle")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "resize": resize,
}

# Options of a layer besides its sizes. A converted layer omits an option of NEUTRAL that has the value there.
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
    "balanced": False,
}
PER_AXIS = ("strides", "scale", "output_padding", "input_dilation", "kernel_dilation")
LARGE = 1 << 20  # pixels per axis of an image that is large enough for every layer
OF_LAYERS = ("in_features", "out_features", "kernel_size", "use_bias", "mask", "dtype", "balanced")


@dataclass(frozen=True, eq=False)
class Converted:
    """A layer as data.

    Attributes:
      layer: name of a class of `tconvjax.nnx` and `tconvjax.linen`, or of a function:
        'pixel_shuffle', 'pixel_unshuffle' or 'resize'.
      arguments: keywords of that class in `tconvjax.nnx`, or of the function. Keywords with neutral values are omitted.
      parameters: `kernel` and, if the layer has one, `bias`; empty for a function. The kernel is the one in use: masked
        if there is a mask, balanced if `balanced` is among the arguments.

    Example:
      >>> from tconvjax.interop import from_torch
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
          **options: arguments of the layer that are added or replaced.
        """
        if self.layer in FUNCTIONS:
            return partial(FUNCTIONS[self.layer], **self.arguments | options)
        from flax import nnx

        from tconvjax import nnx as layers

        values = {name: jnp.asarray(v) for name, v in self.parameters.items()}
        defaults = {"param_dtype": values["kernel"].dtype, "rngs": nnx.Rngs(0)}
        layer = getattr(layers, self.layer)(**defaults | self.arguments | options)
        for name, value in values.items():
            getattr(layer, name)[...] = value
        return layer

    def to_linen(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the module of `tconvjax.linen` and its variables; a function has none.

        Args:
          **options: arguments of the layer that are added or replaced.
        """
        if self.layer in FUNCTIONS:
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


def in_sequence(*parts: Foreign) -> Foreign:
    """Returns layers of a peer one behind the other."""
    named = {str(i): part for i, part in enumerate(parts)}
    state = {f"{i}.{n}": v for i, part in named.items() for n, v in part.state.items()}
    return Foreign("Sequential", named, state)


def as_converted(
    who: str, layer: str, kernel: np.ndarray, bias: np.ndarray | None, options: dict[str, Any]
) -> Converted:
    """Returns a layer with the sizes of its kernel, without its neutral options."""
    spatial_rank(who, kernel)
    *k, per_group, last = kernel.shape
    groups, forward = options.get("feature_group_count", 1), options.get("transpose_kernel", False)
    for name in PER_AXIS:
        if options.get(name) is not None:
            least = int(name != "output_padding")
            options[name] = geo.per_axis(who, name, options[name], len(k), minimum=least)
    groups = geo.positive_int(who, "groups", groups)
    source, target = (last, per_group * groups) if forward else (per_group * groups, last)
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
        differs = neutral is None or value not in (neutral, (neutral,) * len(k))
        if value is not None and differs:
            arguments[name] = value
    kernel = kernel_in_use(who, kernel, arguments)
    if "mask" in arguments and not np.isin(arguments["mask"], (0, 1)).all():
        del arguments["mask"]  # the kernel contains it, and the layer must not multiply it twice
    if bias is None:
        return Converted(layer, {**arguments, "use_bias": False}, {"kernel": kernel})
    return Converted(layer, arguments, {"kernel": kernel, "bias": bias})


def spatial_rank(who: str, kernel: np.ndarray) -> int:
    """Returns the number of spatial axes of a kernel in any layout; raises if it has none."""
    if kernel.ndim < 3:
        raise ValueError(
            f"{who}: the kernel of a convolution has two axes of channels and at least one of space; got a kernel of "
            f"shape {kernel.shape}."
        )
    return kernel.ndim - 2


def as_shuffle(layer: str, factor: int, order: str) -> Converted:
    """Returns a shuffle of two axes by the same factor."""
    return Converted(layer, {"scale": (int(factor),) * 2, "order": order}, {})


def kernel_in_use(who: str, kernel: np.ndarray, arguments: Mapping[str, Any]) -> np.ndarray:
    """Returns the kernel in use: times the mask, and balanced, if the arguments have these."""
    if arguments.get("mask") is not None:
        kernel = kernel * np.asarray(arguments["mask"]).astype(kernel.dtype)
    if arguments.get("balanced", False):
        with jax.ensure_compile_time_eval():
            balanced = phases.balance(who, jnp.asarray(kernel), arguments["strides"])
        kernel = np.asarray(balanced).astype(kernel.dtype)
    return kernel


def channels_last(weight: np.ndarray) -> np.ndarray:
    """Moves `(a, b, *kernel_size)` to `(*kernel_size, b, a)`, for plain and transposed convolutions alike."""
    return weight.transpose(*range(2, weight.ndim), 1, 0) if weight.ndim > 1 else weight


def split(total: int, *, lower: bool = False) -> tuple[int, int]:
    """Splits the crop of 'SAME' in two; the odd pixel is at the high end, or with `lower` at the low end.

    A negative crop appends zeros, all of them at the high end.
    """
    low = (max(total, 0) + lower) // 2
    return low, total - low


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
    """Returns padding mode and padding of a plain convolution; the padding is a word if it depends on the image."""
    mode, padding = c.arguments.get("padding_mode", "zeros"), c.arguments["padding"]
    k, strides, dilation = sizes(c)
    extent = geo.kernel_extent(k, dilation)
    if "input_dilation" in c.arguments:
        raise ValueError(
            f"{who}: elsewhere a convolution has strides or zeros between its pixels, not both; got strides={strides}, "
            f"input_dilation={c.arguments['input_dilation']}. Use two layers."
        )
    if padding in ("CIRCULAR", "REFLECT"):  # words of Flax
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
    """Returns the kernel in use; for a transposed layer, the kernel of its forward convolution."""
    kernel = kernel_in_use(c.layer, c.parameters["kernel"], c.arguments)
    if c.layer != "ConvTranspose" or c.arguments.get("transpose_kernel", False):
        return kernel
    return exchanged(kernel, c.arguments.get("feature_group_count", 1))


def exchanged(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Returns a kernel reversed in space, its channels exchanged in each group: painted as it is, or flipped."""
    *k, per_group, last = kernel.shape
    kernel = np.flip(kernel, tuple(range(len(k)))).reshape(*k, per_group, groups, last // groups)
    return kernel.swapaxes(-1, -3).reshape(*k, last // groups, per_group * groups)


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """Moves `(*kernel_size, b, a)` to `(a, b, *kernel_size)`."""
    return np.ascontiguousarray(kernel.transpose(-1, -2, *range(kernel.ndim - 2)))


def square(who: str, c: Converted) -> int:
    """Returns the factor of a shuffle; raises unless it has two axes and one factor for both."""
    scale = tuple(c.arguments["scale"])
    if len(scale) != 2 or len(set(scale)) != 1:
        raise ValueError(
            f"{who}: elsewhere a shuffle has one factor for two axes; got scale={scale}."
        )
    return scale[0]
