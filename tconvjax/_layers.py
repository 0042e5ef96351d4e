"""The layers without their parameters: the one specification behind NNX and Linen.

A layer is a public function with fixed options and a learned kernel. `spec` turns the arguments of a layer, with Flax's
values among them, into canonical, hashable options of the function and the shape of the kernel; `apply` is the call.
The module sets only make parameters.

Flax's strings for borders stand for, with a dilated kernel of extent e and strides s,

    'CIRCULAR', 'REFLECT'   of Conv            padding ((e − 1)//2, e//2) with this padding_mode
    'CAUSAL'                of Conv, one axis   padding (e − 1, 0)
    'CAUSAL'                of ConvTranspose, one axis   padding (0, e − s)
    'CIRCULAR'              of ConvTranspose   padding (low, e − s − low) with padding_mode='circular', where low is
                                               max(e − s, 0)/2, rounded up for transpose_kernel and else down
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from tconvjax import _sharding as sharding
from tconvjax._arguments import IMPLEMENTATIONS, Bordered, Implementation, operator
from tconvjax._geometry import Geometry, Ints, Padding, PaddingMode, Pairs
from tconvjax._ops import phases
from tconvjax._ops.adaptive import odd_window
from tconvjax._ops.convolution import conv_transpose, gather
from tconvjax._ops.resize import METHODS, Method
from tconvjax._ops.resize_conv import RESIZE_CONV_IMPLEMENTATIONS, resize_conv
from tconvjax._ops.streaming import causal_conv, causal_conv_transpose
from tconvjax._ops.subpixel import (
    ORDERS,
    at_size,
    biased_subpixel_conv,
    pixel_shuffle,
    subpixel_conv,
)
from tconvjax.initializers import variance_scaling_transpose

UpsampleMethod = Literal["conv_transpose", "subpixel_conv"] | Method
UPSAMPLE_METHODS = ("conv_transpose", "subpixel_conv", *METHODS)
AMPLE = 1 << 30  # pixels of an axis: enough for any layer to have output
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
    bordered = arguments.resolve_gather(
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


Hook = Callable[..., jax.Array]


def check_hook(who: str, hook: Hook | None, implementation: str) -> Hook | None:
    """Returns Flax's hook `conv_general_dilated`, None if it is lax's own; refuses an implementation beside it."""
    if hook is None or hook is lax.conv_general_dilated:
        return None
    if implementation != "auto":
        raise ValueError(
            f"{who}: conv_general_dilated computes in place of an implementation; got both, "
            f"implementation={implementation!r}. Leave one out."
        )
    return hook


def refuse_hook(who: str, layer: Any) -> None:
    """Raises for a layer whose hook computes in place of this library."""
    names = ("conv_general_dilated", "conv_general_dilated_cls")
    hooks = [n for n in names if getattr(layer, n, None) not in (None, lax.conv_general_dilated)]
    if hooks:
        raise ValueError(
            f"{who}: the layer must compute by itself; got one with the hook {hooks[0]}. Build it without."
        )


def hooked(
    who: str,
    hook: Hook,
    options: Mapping[str, Any],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    **at_call: Any,
) -> jax.Array:
    """Returns what Flax's hook computes in place of `lax.conv_general_dilated`, called as Flax calls it, plus bias."""
    rank = kernel.ndim - 2
    gaps, padding = options["input_dilation"], options["padding"]
    spatial = arguments.spatial_shape(who, x.shape, kernel)
    images = x.reshape(-1, *x.shape[-rank - 1 :])
    if options["padding_mode"] != "zeros":
        names = ("strides", "padding", "padding_mode", "kernel_dilation", "feature_group_count")
        wide = tuple(r * (n - 1) + 1 for r, n in zip(gaps, spatial, strict=True))
        bordered = arguments.resolve_gather(
            who, x, kernel, **{n: options[n] for n in names}, spatial=wide
        )
        images = boundary.pad(images, bordered.pads, bordered.mode)
        padding = "VALID"
    if options["preferred_element_type"] is not None:
        at_call["preferred_element_type"] = options["preferred_element_type"]
    outer = (0, rank + 1, *range(1, rank + 1))
    y = hook(
        images,
        kernel,
        options["strides"],
        padding if isinstance(padding, str) else list(padding),
        lhs_dilation=gaps,
        rhs_dilation=options["kernel_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(outer, (rank + 1, rank, *range(rank)), outer),
        feature_group_count=options["feature_group_count"],
        precision=options["precision"],
        **at_call,
    )
    if bias is not None:
        y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return y.reshape(*x.shape[: -rank - 1], *y.shape[1:])


def placed(y: jax.Array, out_sharding: Any) -> jax.Array:
    """Returns an array with a sharding of the user's, if it is given."""
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


@dataclass(frozen=True)
class Border:
    """The meaning of one of Flax's border strings: padding mode and pixels.

    Attributes:
      mode: of the padding.
      pads: `(who, kernel_size, options)` to pairs (low, high).
    """

    mode: PaddingMode
    pads: Callable[[str, tuple[int, ...], Mapping[str, Any]], Pairs]


@dataclass(frozen=True)
class Kind:
    """The properties that all layers of one function share.

    Attributes:
      function: `f(x, kernel, **options)`.
      biased: `f(x, kernel, bias, **options)`.
      geometry: resolves the integers of a call.
      kernel_init: `(options)` to the default initializer.
      outputs_per_channel: `(options)` to the outputs of the kernel per output channel of the layer.
      borders: Flax's strings for `padding`, in addition to lax's.
      implementations: of the function.
    """

    function: Callable[..., jax.Array]
    biased: Callable[..., jax.Array]
    geometry: Callable[..., Geometry] = geo.conv_geometry
    kernel_init: Callable[[Mapping[str, Any]], Initializer] = lambda _: lecun_normal()
    outputs_per_channel: Callable[[Mapping[str, Any]], int] = lambda _: 1
    borders: Mapping[str, Border] = field(default_factory=dict)
    implementations: tuple[str, ...] = IMPLEMENTATIONS

    @functools.cached_property
    def option_names(self) -> tuple[str, ...]:
        """Arguments of the function that a layer fixes: all but the arrays and the shape that a call chooses."""
        names = inspect.signature(self.function).parameters
        return tuple(name for name in names if name not in {"x", "kernel", "output_shape"})


class Spec(NamedTuple):
    """A resolved layer.

    Attributes:
      kernel_size: one integer per spatial axis.
      kernel_shape: of the parameter `kernel`.
      bias_shape: of the parameter `bias`.
      kernel_init: the default initializer.
      options: keywords of the layer's function; the values are canonical and hashable.
    """

    kernel_size: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    kernel_init: Initializer
    options: dict[str, Any]


def spec(
    who: str,
    kind: Kind,
    in_features: int | None,
    out_features: int,
    kernel_size: Ints,
    *,
    out_name: str = "out_features",
    **options: Any,
) -> Spec:
    """Resolves the arguments of a layer, or refuses arguments that every call would refuse.

    Args:
      who: name of the layer, for error messages.
      kind: of the layer.
      in_features: channels of the input; None if not known yet.
      out_features: channels of the output.
      kernel_size: one integer per spatial axis; an int is one axis, as in Flax.
      out_name: the layer's name for `out_features`.
      **options: every option of the function, Flax's None and strings allowed.

    Raises:
      ValueError, TypeError: for a value or kind that the function refuses.
    """
    kernel_size = geo.as_list(kernel_size)
    rank = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
    k = geo.per_axis(who, "kernel_size", kernel_size, rank)
    if not isinstance(kernel_size, Sequence):
        _refuse_more_axes(who, k[0], options)
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
    geo.choice(who, "implementation", options["implementation"], kind.implementations)
    options["precision"] = arguments.canonical_precision(who, options["precision"])
    inexact(who, "preferred_element_type", options["preferred_element_type"])
    if options.get("output_padding") is not None:
        options["output_padding"] = geo.per_axis(
            who, "output_padding", options["output_padding"], rank, minimum=0
        )
    _resolve_border(who, kind, k, options)
    _refuse_geometry(who, kind, k, options)
    groups = geo.positive_int(who, "feature_group_count", options["feature_group_count"])
    features = {"in_features": in_features, out_name: out_features}
    source, target = _features(who, groups, features)
    target *= kind.outputs_per_channel(options)
    transpose_kernel = options.get("transpose_kernel", False)
    channels = (target // groups, source) if transpose_kernel else (source // groups, target)
    geo.fits(who, (*k, *channels))
    return Spec(k, (*k, *channels), (target,), kind.kernel_init(options), options)


def apply(
    kind: Kind,
    options: Mapping[str, Any],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """Returns `function(x, kernel) + bias`, for arrays of the dtype of the computation."""
    if bias is None:
        return kind.function(x, kernel, **options)
    return kind.biased(x, kernel, bias, **options)


def stream(
    transpose: bool,  # noqa: FBT001
    kernel_size: tuple[int, ...],
    options: Mapping[str, Any],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    state: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the output of a causal layer for a chunk of a signal, and its state; refuses other layers."""
    who = "stream"
    wanted = _causal_transpose if transpose else _causal
    geometry = {"padding": wanted(who, kernel_size, options), "padding_mode": "zeros"}
    plain = {"input_dilation": (1,), "output_padding": None, "padding_convention": "forward"}
    other = {n: v for n, v in (geometry | plain).items() if options.get(n, v) != v}
    if other:
        raise ValueError(
            f"{who}: the layer must be causal, with {', '.join(f'{n}={v!r}' for n, v in other.items())}; got "
            f"{', '.join(f'{n}={options[n]!r}' for n in other)}. Make it with padding='CAUSAL'."
        )
    function = causal_conv_transpose if transpose else causal_conv
    kept = {
        n: v
        for n, v in options.items()
        if n not in {*geometry, *plain, "strides", "kernel_dilation"}
    }
    (s,), (d,) = options["strides"], options["kernel_dilation"]
    y, state = function(x, kernel, s, state=state, kernel_dilation=d, **kept)
    return (y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))), state


def inexact(who: str, name: str, dtype: DTypeLike | None) -> None:
    """Raises unless a dtype is floating, complex or None."""
    try:
        good = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
        # Fewer bits can store parameters, but not compute.
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
    """Raises unless a mask has the shape of the kernel and the dtypes are floating or complex."""
    inexact(who, "dtype", dtype)
    inexact(who, "param_dtype", param_dtype)
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise ValueError(
            f"{who}: mask must have the shape of the kernel; got {jnp.shape(mask)}, kernel {kernel_shape}."
        )


def check_balanced(
    who: str,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    kernel_dilation: tuple[int, ...],
    mask: ArrayLike | None,
    *,
    balanced: bool,
) -> None:
    """Raises if `balanced` and the kernel of a transposed convolution cannot be balanced."""
    if not balanced:
        return
    small = any(k < s for k, s in zip(kernel_size, strides, strict=True))
    if mask is not None or set(kernel_dilation) != {1} or small:
        raise ValueError(
            f"{who}: balanced=True needs an undilated kernel without a mask, of at least the size of the strides; got "
            f"kernel_size={kernel_size}, strides={strides}, kernel_dilation={kernel_dilation}, "
            f"mask {'None' if mask is None else 'given'}."
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
    array = arguments.as_array(who, "inputs", x)
    if array.ndim == 0:
        raise ValueError(
            f"{who}: inputs must have shape (*batch, *spatial, channels); got shape ()."
        )
    return array


def _refuse_more_axes(who: str, kernel_size: int, options: Mapping[str, Any]) -> None:
    """Raises if other arguments show that an int for the kernel size, one axis in Flax, was meant for several."""
    for name in (*PER_AXIS, "output_padding", "padding"):
        value = geo.as_list(options.get(name))
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
            raise ValueError(
                f"{who}: kernel_size={kernel_size} is one spatial axis, as in Flax; got {name}={value!r}. "
                f"Write kernel_size={(kernel_size,) * len(value)}."
            )


def _features(who: str, groups: int, features: dict[str, int | None]) -> tuple[int, int]:
    """Returns the channels in and out; an unknown number becomes the smallest possible."""
    known = {name: geo.positive_int(who, name, n) for name, n in features.items() if n is not None}
    if any(n % groups for n in known.values()):
        listed = ", ".join(f"{name}={n}" for name, n in known.items())
        raise ValueError(
            f"{who}: feature_group_count must divide {' and '.join(known)}; got feature_group_count={groups}, {listed}."
        )
    source, target = (known.get(name, groups) for name in features)
    return source, target


def _resolve_border(
    who: str, kind: Kind, kernel_size: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Replaces Flax's border strings in `options` by a padding and a padding mode."""
    padding = options["padding"]
    if isinstance(padding, str):
        words = (*geo.STRING_PADDINGS, *kind.borders)
        known = padding.upper() in words
        padding = geo.choice(who, "padding", padding.upper() if known else padding, words)
    if not isinstance(padding, str) or padding not in kind.borders:
        options["padding"] = geo.resolve_padding(who, padding, len(kernel_size))
        return
    border = kind.borders[padding]
    if options["padding_mode"] not in {"zeros", border.mode}:
        raise ValueError(
            f"{who}: padding={padding!r} already sets the padding mode; got "
            f"padding_mode={options['padding_mode']!r}. Leave padding_mode at 'zeros'."
        )
    options["padding"] = border.pads(who, kernel_size, options)
    options["padding_mode"] = border.mode
    if "padding_convention" in options:
        options["padding_convention"] = "forward"


def _refuse_geometry(
    who: str, kind: Kind, kernel_size: tuple[int, ...], options: Mapping[str, Any]
) -> None:
    names = inspect.signature(kind.geometry).parameters.keys() & options.keys()
    shape = (AMPLE,) * len(kernel_size)
    kind.geometry(who, shape, kernel_size, **{n: options[n] for n in names}, bounded=False)


def _centered(_who: str, kernel_size: tuple[int, ...], options: Mapping[str, Any]) -> Pairs:
    extent = geo.kernel_extent(kernel_size, options["kernel_dilation"])
    return tuple(((e - 1) // 2, e // 2) for e in extent)


def _causal(who: str, kernel_size: tuple[int, ...], options: Mapping[str, Any]) -> Pairs:
    (extent,) = _one_extent(who, kernel_size, options)
    return ((extent - 1, 0),)


def _causal_transpose(who: str, kernel_size: tuple[int, ...], options: Mapping[str, Any]) -> Pairs:
    (extent,) = _one_extent(who, kernel_size, options)
    return ((0, extent - options["strides"][0]),)


def _one_extent(
    who: str, kernel_size: tuple[int, ...], options: Mapping[str, Any]
) -> tuple[int, ...]:
    if len(kernel_size) != 1:
        raise ValueError(
            f"{who}: padding='CAUSAL' is for one spatial axis; got kernel_size={kernel_size}. "
            "Give (low, high) pairs."
        )
    return geo.kernel_extent(kernel_size, options["kernel_dilation"])


def _whole_strides(_who: str, kernel_size: tuple[int, ...], options: Mapping[str, Any]) -> Pairs:
    """Returns the padding of Flax's transposed convolution, with s output pixels per input pixel."""
    extent = geo.kernel_extent(kernel_size, options["kernel_dilation"])
    round_up, strides = int(options["transpose_kernel"]), options["strides"]
    low_pads = ((max(e - s, 0) + round_up) // 2 for e, s in zip(extent, strides, strict=True))
    return tuple((low, e - s - low) for low, e, s in zip(low_pads, extent, strides, strict=True))


def _plus_bias(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def biased(x: jax.Array, kernel: jax.Array, bias: jax.Array, **options: Any) -> jax.Array:
        y = function(x, kernel, **options)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    return biased


CONV = Kind(
    strided_conv,
    _plus_bias(strided_conv),
    borders={
        "CIRCULAR": Border("circular", _centered),
        "REFLECT": Border("reflect", _centered),
        "CAUSAL": Border("zeros", _causal),
    },
)
CONV_TRANSPOSE = Kind(
    conv_transpose,
    _plus_bias(conv_transpose),
    geometry=geo.conv_transpose_geometry,
    kernel_init=lambda options: variance_scaling_transpose(
        options["strides"],
        transpose_kernel=options["transpose_kernel"],
        feature_group_count=options["feature_group_count"],
    ),
    borders={
        "CIRCULAR": Border("circular", _whole_strides),
        "CAUSAL": Border("zeros", _causal_transpose),
    },
)
RESIZE_CONV = Kind(
    resize_conv, _plus_bias(resize_conv), implementations=RESIZE_CONV_IMPLEMENTATIONS
)
SUBPIXEL_CONV = Kind(
    subpixel_conv, biased_subpixel_conv, outputs_per_channel=lambda options: prod(options["scale"])
)


def fixed_options(
    who: str, name: str, value: Sequence[int], padding_mode: PaddingMode, **least: tuple[int, int]
) -> tuple[Any, ...]:
    """Returns the canonical arguments of a layer with a fixed filter, or refuses them.

    Args:
      who: name of the layer, for error messages.
      name: of the argument with one integer per spatial axis.
      value: of this argument.
      padding_mode: of the filter.
      **least: other integers by name: their value and the smallest possible one.
    """
    value = geo.as_list(value)
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{who}: {name} must be a sequence with one integer per spatial axis; got {name}={value!r}. "
            "Write (2, 2) for height and width by a factor of two."
        )
    others = [geo.ints(who, n, (number,), minimum=m)[0] for n, (number, m) in least.items()]
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    return geo.ints(who, name, value, minimum=1), *others, padding_mode


def unpool_options(
    who: str, strides: Sequence[int], window_shape: Ints | None, padding: Padding
) -> tuple[tuple[int, ...], tuple[int, ...], Padding]:
    """Returns the canonical arguments of `max_unpool`, or refuses them."""
    factors, _ = fixed_options(who, "strides", strides, "zeros")
    window = (
        factors
        if window_shape is None
        else geo.per_axis(who, "window_shape", window_shape, len(factors))
    )
    return factors, window, geo.resolve_padding(who, padding, len(factors))


def pixel_kernel_shapes(
    who: str, in_features: int, out_features: int, kernel_size: Ints, padding_mode: PaddingMode
) -> list[tuple[int, ...]]:
    """Returns the shapes of the three kernels of `pixel_conv_transpose`, or refuses its arguments."""
    features = {"in_features": in_features, "out_features": out_features}
    source, target = (geo.positive_int(who, name, n) for name, n in features.items())
    k = geo.per_axis(who, "kernel_size", kernel_size, 2)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    return [(*k, source, target), (*k, target, target), (3, 3, target, target)]


def large_and_small(
    who: str, kernel_size: Ints, small_kernel_size: Ints, options: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the sizes of two kernels with one center; refuses other sizes, and options that would move the center."""
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
    """Returns the canonical arguments of `carafe`, or refuses them."""
    factors, mode = fixed_options(who, "scale", scale, padding_mode)
    return factors, odd_window(who, window, len(factors)), mode


def dysample_options(
    who: str, features: int | None, scale: Sequence[int], groups: int
) -> tuple[tuple[int, ...], int]:
    """Returns the canonical arguments of `dysample`, or refuses them."""
    factors, count, _ = fixed_options(who, "scale", scale, "replicate", groups=(groups, 1))
    if features is not None and features % count:
        raise ValueError(
            f"{who}: groups must divide the channels; got groups={count}, channels={features}."
        )
    return factors, count


def continued(
    who: str,
    x: jax.Array,
    scale: tuple[int, ...],
    output_shape: Sequence[int] | None,
    mode: PaddingMode,
) -> jax.Array:
    """Returns features with a border at the high end, if the enlarged image needs more of them than there are."""
    small = x.shape[-1 - len(scale) : -1]
    large = geo.enlarged_sizes(who, output_shape, small, scale)
    pads = tuple((0, more) for more in geo.extra_cells(small, large, scale))
    longer = (n + more for n, (_, more) in zip(small, pads, strict=True))
    shape = (*x.shape[: -1 - len(scale)], *longer, x.shape[-1])
    return sharding.placed(lambda x: boundary.pad(x, pads, mode), x, shape=shape)


def shuffled(y: jax.Array, scale: tuple[int, ...], output_shape: Sequence[int] | None) -> jax.Array:
    """Returns `pixel_shuffle(y, scale)`, cropped to a shape."""
    y = pixel_shuffle(y, scale)
    return y if output_shape is None else at_size(y, output_shape)


def upsampler(
    who: str, kernel_size: Ints, scale: Ints, method: str, order: str | None, options: Any
) -> tuple[str, dict[str, Any]]:
    """Returns the name of the layer for a `method` of `Upsample`, and the options that only this method has."""
    geo.choice(who, "method", method, UPSAMPLE_METHODS)
    geo.per_axis(who, "scale", scale, len(kernel_size) if isinstance(kernel_size, Sequence) else 1)
    reserved = {"strides", "scale", "method", "order", "padding", "padding_mode"}
    if not isinstance(options, Mapping) or reserved & options.keys():
        raise TypeError(
            f"{who}: options are keywords of the layer inside, except those that {who} sets; got {options!r}. "
            f"{', '.join(sorted(reserved))} are not among them."
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
