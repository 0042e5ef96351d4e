"""What a layer is, apart from who holds its parameters: the one specification behind NNX and Linen.

A layer is a public function with its options fixed and its kernel learned. `spec` turns a layer's arguments, Flax's
words included, into the options of the function, canonical and hashable, and into the shape of the kernel; `apply` is
the call. The module sets only make parameters.

Flax's strings for borders mean, for a dilated kernel of extent e and strides s,

    'CIRCULAR', 'REFLECT'   of Conv            padding ((e − 1)//2, e//2) with this padding_mode
    'CAUSAL'                of Conv, one axis   padding (e − 1, 0)
    'CIRCULAR'              of ConvTranspose   padding (low, e − s − low) with padding_mode='circular', where low is
                                               max(e − s, 0)/2, rounded up for transpose_kernel and else down
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _arguments as arguments
from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax._arguments import IMPLEMENTATIONS, Bordered, Implementation, operator
from tconvjax._geometry import Ints, Padding, PaddingMode, Pairs
from tconvjax._ops import phases
from tconvjax._ops.adaptive import odd_window
from tconvjax._ops.convolution import conv, conv_transpose, gather
from tconvjax._ops.resize import METHODS, Method
from tconvjax._ops.resize_conv import RESIZE_CONV_IMPLEMENTATIONS, resize_conv
from tconvjax._ops.subpixel import ORDERS, pixel_shuffle, subpixel_conv
from tconvjax.initializers import variance_scaling_transpose

UpsampleMethod = Literal["conv_transpose", "subpixel_conv"] | Method
UPSAMPLE_METHODS = ("conv_transpose", "subpixel_conv", *METHODS)
LARGE = 1 << 30  # pixels of an axis on which any layer has output
PER_AXIS = ("strides", "scale", "kernel_dilation", "input_dilation")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "padding_mode": geo.PADDING_MODES,
    "padding_convention": geo.PADDING_CONVENTIONS,
    "method": METHODS,
    "order": ORDERS,
}


def strided_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Ints,
    padding: Padding,
    padding_mode: PaddingMode,
    input_dilation: Ints,
    kernel_dilation: Ints,
    feature_group_count: int,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    implementation: Implementation,
) -> jax.Array:
    """`tconvjax.conv` behind Flax's `input_dilation`, which inserts zeros between the pixels of the input."""
    x, kernel = arguments.operands("conv", x, kernel)
    small = arguments.spatial_shape("conv", x.shape, kernel)
    gaps = geo.per_axis("conv", "input_dilation", input_dilation, len(small))
    bordered = arguments.gathering(
        "conv",
        x,
        kernel,
        strides=strides,
        padding=padding,
        padding_mode=padding_mode,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
        spatial=tuple(r * (n - 1) + 1 for r, n in zip(gaps, small, strict=True)),
    )
    return _gather_zero_inserted(x, kernel, bordered, gaps)


@operator
def _gather_zero_inserted(
    x: jax.Array, kernel: jax.Array, bordered: Bordered, gaps: tuple[int, ...]
) -> jax.Array:
    for axis, r in enumerate(gaps, start=x.ndim - 1 - len(gaps)):
        x = boundary.pad_axis(x, axis, 0, 0, interior=r - 1)
    return gather(x, kernel, bordered)


class Spec(NamedTuple):
    """A resolved layer.

    Attributes:
      kernel_size: one integer per spatial axis.
      kernel_shape: of the parameter `kernel`.
      bias_shape: of the parameter `bias`.
      kernel_init: the default initializer.
      options: keywords of the layer's function, canonical and hashable.
    """

    kernel_size: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    kernel_init: Initializer
    options: dict[str, Any]


@functools.cache
def option_names(function: Callable[..., jax.Array]) -> tuple[str, ...]:
    """Returns the keywords of a function that its layer fixes: all but the shape that is chosen at the call."""
    parameters = inspect.signature(function).parameters.values()
    keywords = (p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
    return tuple(name for name in keywords if name != "output_shape")


def spec(
    who: str,
    function: Callable[..., jax.Array],
    in_features: int | None,
    out_features: int,
    kernel_size: Ints,
    *,
    out_name: str = "out_features",
    **options: Any,
) -> Spec:
    """Resolves the arguments of a layer, or refuses what every call would refuse.

    Args:
      who: name of the layer, for error messages.
      function: what the layer computes.
      in_features: channels of the input; None where they are not known yet.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      out_name: what the layer calls `out_features`.
      **options: every keyword of `function`, Flax's None and strings allowed.

    Raises:
      ValueError, TypeError: for a value or kind that the function refuses.
    """
    rank = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
    k = geo.per_axis(who, "kernel_size", kernel_size, rank)
    if not k:
        raise ValueError(f"{who}: kernel_size must have at least one spatial axis; got ().")
    for name in PER_AXIS:
        if name in options:
            value = options[name]
            absent = value is None and name != "scale"  # Flax's None
            options[name] = geo.per_axis(who, name, 1 if absent else value, rank)
    for name, allowed in CHOICES.items():
        if name in options:
            geo.choice(who, name, options[name], allowed)
    known = RESIZE_CONV_IMPLEMENTATIONS if function is resize_conv else IMPLEMENTATIONS
    geo.choice(who, "implementation", options["implementation"], known)
    options["precision"] = arguments.canonical_precision(who, options["precision"])
    inexact(who, "preferred_element_type", options["preferred_element_type"])
    if options.get("output_padding") is not None:
        options["output_padding"] = geo.per_axis(
            who, "output_padding", options["output_padding"], rank, minimum=0
        )
    _resolve_border(who, function, k, options)
    _refuse_geometry(who, function, k, options)
    groups = geo.positive_int(who, "feature_group_count", options["feature_group_count"])
    transpose_kernel = options.get("transpose_kernel", False)
    init = lecun_normal()
    if function is conv_transpose:
        init = variance_scaling_transpose(
            options["strides"],
            transpose_kernel=transpose_kernel,
            feature_group_count=groups,
        )
    features = {"in_features": in_features, out_name: out_features}
    source, target = _features(who, groups, features)
    if function is subpixel_conv:
        target *= prod(options["scale"])
    channels = (target // groups, source) if transpose_kernel else (source // groups, target)
    geo.fits(who, (*k, *channels))
    return Spec(k, (*k, *channels), (target,), init, options)


def apply(
    function: Callable[..., jax.Array],
    options: Mapping[str, Any],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """Returns `function(x, kernel) + bias`, for arrays of the dtype of the computation."""
    if bias is None:
        return function(x, kernel, **options)
    if function is subpixel_conv:  # a bias per phase, as that of a convolution before the shuffle
        rest = dict(options)
        scale, order = rest.pop("scale"), rest.pop("order")
        return pixel_shuffle(apply(conv, rest, x, kernel, bias), scale, order=order)
    y = function(x, kernel, **options)
    return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def inexact(who: str, name: str, dtype: DTypeLike | None) -> None:
    """Raises unless a dtype is floating, complex or left open."""
    try:
        good = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
        # Parameters may be stored in fewer bits, but not calculated with.
        few = good and dtype is not None and jnp.finfo(dtype).bits < 16 and name != "param_dtype"
    except TypeError:
        good, few = False, False
    if few:
        raise TypeError(f"{who}: {name} must have 16 bits or more; got {name}={dtype!r}.")
    if not good:
        raise TypeError(f"{who}: {name} must be a floating or complex dtype; got {name}={dtype!r}.")


def check_parameters(
    who: str,
    mask: ArrayLike | None,
    kernel_shape: tuple[int, ...],
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
) -> None:
    """Raises unless a mask has the shape of the kernel, and dtypes can hold parameters."""
    inexact(who, "dtype", dtype)
    inexact(who, "param_dtype", param_dtype)
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise ValueError(
            f"{who}: mask must have the shape of the kernel; got {jnp.shape(mask)}, kernel {kernel_shape}."
        )


def check_balanced(who: str, spec: Spec, mask: ArrayLike | None, *, balanced: bool) -> None:
    """Raises if the kernel of a transposed convolution shall be balanced and cannot be."""
    if not balanced:
        return
    k, s, d = spec.kernel_size, spec.options["strides"], spec.options["kernel_dilation"]
    if mask is not None or set(d) != {1} or any(a < b for a, b in zip(k, s, strict=True)):
        raise ValueError(
            f"{who}: balanced=True needs an undilated kernel without a mask, of at least the size of the strides; got "
            f"kernel_size={k}, strides={s}, kernel_dilation={d}, mask {'given' if mask is not None else 'None'}."
        )


def effective_kernel(module: Any, options: Mapping[str, Any], kernel: jax.Array) -> jax.Array:
    """Returns the kernel that a layer with such options computes with, from its parameter."""
    if module.mask is not None:
        kernel = kernel * module.mask
    if getattr(module, "balanced", False):
        kernel = phases.balance(type(module).__name__, kernel, options["strides"])
    return kernel


def image(who: str, x: ArrayLike) -> jax.Array:
    """Returns the input of a layer as an array with at least channels, or refuses it."""
    array = arguments.as_array(who, "x", x)
    if array.ndim == 0:
        raise ValueError(f"{who}: x must have shape (*batch, *spatial, channels); got shape ().")
    return array


def _features(who: str, groups: int, features: dict[str, int | None]) -> tuple[int, int]:
    """Returns the channels in and out; unknown ones count as the fewest possible."""
    known = {name: geo.positive_int(who, name, n) for name, n in features.items() if n is not None}
    if any(n % groups for n in known.values()):
        listed = ", ".join(f"{name}={n}" for name, n in known.items())
        raise ValueError(
            f"{who}: feature_group_count must divide {' and '.join(known)}; got feature_group_count={groups}, {listed}."
        )
    source, target = (known.get(name, groups) for name in features)
    return source, target


def _resolve_border(
    who: str,
    function: Callable[..., jax.Array],
    kernel_size: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    """Replaces Flax's border strings in `options` by a padding and a padding mode."""
    padding, rank = options["padding"], len(kernel_size)
    extent = geo.kernel_extent(kernel_size, options["kernel_dilation"])
    if function is strided_conv:
        modes = {"CIRCULAR": "circular", "REFLECT": "reflect", "CAUSAL": "zeros"}
    elif function is conv_transpose:
        modes = {"CIRCULAR": "circular"}
    else:
        modes = {}
    if isinstance(padding, str):
        allowed = (*geo.STRING_PADDINGS, *modes)
        padding = geo.choice(who, "padding", padding, allowed)
    if not isinstance(padding, str) or padding not in modes:
        options["padding"] = geo.resolve_padding(who, padding, rank)
        return
    mode = modes[padding]
    if options["padding_mode"] not in {"zeros", mode}:
        raise ValueError(
            f"{who}: padding={padding!r} already says what lies beyond the border; got "
            f"padding_mode={options['padding_mode']!r}. Leave padding_mode at 'zeros'."
        )
    if padding == "CAUSAL":
        if rank != 1:
            raise ValueError(
                f"{who}: padding='CAUSAL' is for one spatial axis; got kernel_size={kernel_size}. "
                "Give (low, high) pairs."
            )
        pairs: Pairs = ((extent[0] - 1, 0),)
    elif function is conv_transpose:
        up = int(options["transpose_kernel"])
        strides = options["strides"]
        lows = ((max(e - s, 0) + up) // 2 for e, s in zip(extent, strides, strict=True))
        pairs = tuple((low, e - s - low) for low, e, s in zip(lows, extent, strides, strict=True))
        options["padding_convention"] = "forward"
    else:
        pairs = tuple(((e - 1) // 2, e // 2) for e in extent)
    options["padding"], options["padding_mode"] = pairs, mode


def _refuse_geometry(
    who: str,
    function: Callable[..., jax.Array],
    kernel_size: tuple[int, ...],
    options: Mapping[str, Any],
) -> None:
    shape = (LARGE,) * len(kernel_size)
    resolve = geo.conv_geometry
    names = ["strides", "padding", "kernel_dilation", "feature_group_count"]
    if function is conv_transpose:
        resolve = geo.conv_transpose_geometry
        names += ["output_padding", "padding_convention"]
    given = {n: options[n] for n in names if n in options}
    resolve(who, shape, kernel_size, **given, bounded=False)


def fixed_options(
    who: str, name: str, value: Sequence[int], padding_mode: PaddingMode, **least: tuple[int, int]
) -> tuple[Any, ...]:
    """Returns the canonical arguments of a layer with a fixed filter, or refuses what every call would refuse.

    Args:
      who: name of the layer, for error messages.
      name: of the argument that has one integer per spatial axis.
      value: of this argument.
      padding_mode: of the filter.
      **least: for other integers, their value and the smallest one possible.
    """
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{who}: {name} must be a sequence with one integer per spatial axis; got {name}={value!r}. "
            "Write (2, 2) for height and width by a factor of two."
        )
    others = [geo.ints(who, n, (number,), minimum=m)[0] for n, (number, m) in least.items()]
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    return geo.ints(who, name, value, minimum=1), *others, padding_mode


def pixel_kernel_shapes(
    who: str, in_features: int, out_features: int, kernel_size: Ints, padding_mode: PaddingMode
) -> list[tuple[int, ...]]:
    """Returns the shapes of the three kernels of `pixel_conv_transpose`, or refuses what every call would refuse."""
    features = {"in_features": in_features, "out_features": out_features}
    source, target = (geo.positive_int(who, name, n) for name, n in features.items())
    k = geo.per_axis(who, "kernel_size", kernel_size, 2)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    return [(*k, source, target), (*k, target, target), (3, 3, target, target)]


def large_and_small(
    who: str, kernel_size: Ints, small_kernel_size: Ints, options: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the sizes of two kernels with one center, or refuses others and a padding that would move them."""
    rank = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
    large = geo.per_axis(who, "kernel_size", kernel_size, rank)
    small = geo.per_axis(who, "small_kernel_size", small_kernel_size, rank)
    if any((a - b) % 2 for a, b in zip(large, small, strict=True)):
        raise ValueError(
            f"{who}: small_kernel_size must differ from kernel_size by even numbers, else the centers differ by half a "
            f"pixel; got kernel_size={large}, small_kernel_size={small}."
        )
    if {"padding", "output_padding", "kernel_dilation"} & options.keys():
        raise TypeError(
            f"{who}: padding, output_padding and kernel_dilation are not among its options, as both layers must have "
            f"one size and one center; got {sorted(options)}. The padding is 'SAME'."
        )
    return large, small


def carafe_options(
    who: str, scale: Sequence[int], window: Ints, padding_mode: PaddingMode
) -> tuple[tuple[int, ...], tuple[int, ...], PaddingMode]:
    """Returns the canonical arguments of `carafe`, or refuses what every call would refuse."""
    factors, mode = fixed_options(who, "scale", scale, padding_mode)
    return factors, odd_window(who, window, len(factors)), mode


def dysample_options(
    who: str, features: int | None, scale: Sequence[int], groups: int
) -> tuple[tuple[int, ...], int]:
    """Returns the canonical arguments of `dysample`, or refuses what every call would refuse."""
    factors, count, _ = fixed_options(who, "scale", scale, "replicate", groups=(groups, 1))
    if features is not None and features % count:
        raise ValueError(
            f"{who}: groups must divide the channels; got groups={count}, channels={features}."
        )
    return factors, count


def upsampler(
    who: str, kernel_size: Ints, scale: Ints, method: str, order: str | None, options: Any
) -> tuple[str, dict[str, Any]]:
    """Returns the name of the layer that a `method` of `Upsample` stands for, and the options that are its own."""
    geo.choice(who, "method", method, UPSAMPLE_METHODS)
    geo.per_axis(who, "scale", scale, len(kernel_size) if isinstance(kernel_size, Sequence) else 1)
    taken = {"strides", "scale", "method", "order", "padding", "padding_mode"}
    if not isinstance(options, Mapping) or taken & options.keys():
        raise TypeError(
            f"{who}: options are keywords of the layer inside, except those that {who} sets; got {options!r}. "
            f"{', '.join(sorted(taken))} are not among them."
        )
    if method == "subpixel_conv":
        return "SubpixelConv", {"order": "CRD" if order is None else order}
    if order is not None:
        raise ValueError(
            f"{who}: order belongs to method='subpixel_conv'; got order={order!r} with method={method!r}. "
            "Leave it out."
        )
    return (
        ("ConvTranspose", {}) if method == "conv_transpose" else ("ResizeConv", {"method": method})
    )
