"""Checks and resolves a user's arguments; every refusal is made here, and nothing is resolved again further down.

A convolution becomes one frozen `Call`: its integers (`Geometry`) and its settings. The operators pass it to a face of
the trilinear form, the face is bound with it, and the lowering reads it. An operator with a border holds the call in a
`Bordered`, which adds the border, and the shape and channel axis of the result.

For functions without a kernel, `image_and_factors` checks the image and one integer per axis.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._geometry import Geometry, Ints, Padding, PaddingMode, Pairs

Implementation = Literal[
    "auto", "phase", "matmul", "planes", "elementwise", "dilated", "linear_transpose"
]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
# References in JAX's own operations, without a primitive of ours.
PLAIN = ("dilated", "linear_transpose")

P = ParamSpec("P")


@dataclass(frozen=True)
class Call:
    """One face of a convolution, resolved.

    Attributes:
      geometry: its integers.
      dtype: of the result; inside a lowering, of the sums.
      precision: one per operand, or None for XLA's default.
      implementation: 'auto', or the name of a lowering.
      platform: 'cpu', or None for any accelerator; set when a program is lowered.
      spread: whether the compiler may split arrays over devices; set when a program is lowered.
      mesh: of these devices, if known; convolutions keep images and kernels whole in space on it.
    """

    geometry: Geometry
    dtype: jnp.dtype
    precision: tuple[lax.Precision, lax.Precision] | None = None
    implementation: str = "auto"
    # Unknown, and of no interest, in the program that a user prints.
    platform: str | None = field(default=None, repr=False)
    spread: bool = field(default=False, repr=False)
    mesh: AbstractMesh | None = field(default=None, repr=False)

    @property
    def product_options(self) -> dict[str, Any]:
        """Keywords of XLA's convolutions and products."""
        return {"precision": self.precision, "preferred_element_type": self.dtype}


class Bordered(NamedTuple):
    """A call on an image with a border.

    Attributes:
      call: on the user's image.
      pads: pixels beyond the border, (low, high) per axis.
      mode: content of these pixels.
      shape: of the result.
      features: axis of the kernel that holds the channels of the result.
    """

    call: Call
    pads: Pairs
    mode: PaddingMode
    shape: tuple[int, ...]
    features: int = -1

    @property
    def padded_call(self) -> Call:
        """The call on the padded image, without padding of its own."""
        geometry = self.call.geometry
        big = tuple(m + lo + hi for m, (lo, hi) in zip(geometry.big, self.pads, strict=True))
        return replace(self.call, geometry=replace(geometry, big=big, offset=(0,) * geometry.rank))


def operator(
    function: Callable[Concatenate[jax.Array, jax.Array, Bordered, P], jax.Array],
) -> Callable[Concatenate[jax.Array, jax.Array, Bordered, P], jax.Array]:
    """Makes `function(x, kernel, bordered, ..)` behave like an operation of JAX.

    Where it runs at once it is one program, not one per operation inside. Under Explicit axes its result has a
    sharding. In a traced program it is its operations alone, without a `jit` around them.
    """
    options = list(inspect.signature(function).parameters)[2:]
    compiled = jax.jit(function, static_argnames=options)

    @wraps(function)
    def run(
        x: jax.Array, kernel: jax.Array, bordered: Bordered, /, *args: P.args, **kwargs: P.kwargs
    ) -> jax.Array:
        meshes = (jax.typeof(array).sharding.mesh for array in (x, kernel))
        if any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
            return sharding.placed(
                lambda x, kernel: function(x, kernel, bordered, *args, **kwargs),
                x,
                kernel,
                shape=bordered.shape,
                features=(kernel, bordered.features),
            )
        run_now = _has_value(x) and _has_value(kernel)
        return (compiled if run_now else function)(x, kernel, bordered, *args, **kwargs)

    return run


def _has_value(array: jax.Array) -> bool:
    """Whether an array is computed at once, as outside of `jit` and also under an eager `jax.grad`."""
    return not isinstance(array, jax.core.Tracer) or array.to_concrete_value() is not None


def resolve_gather(
    who: str,
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: str = "auto",
    spatial: tuple[int, ...] | None = None,
) -> Bordered:
    """Resolves the arguments of `conv` in the name of `who`, for arrays that `operands` returned.

    `spatial` is the shape of the convolved image, if that is made from x.
    """
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    geometry = geo.conv_geometry(
        who,
        spatial_shape(who, x.shape, kernel) if spatial is None else spatial,
        kernel.shape[:-2],
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    check_channels(who, x.shape, kernel.shape, geometry.feature_group_count)
    call = face_call(who, geometry, x, precision, preferred_element_type, implementation)
    shape = (*x.shape[: -geometry.rank - 1], *geometry.small, kernel.shape[-1])
    pads: Pairs = geometry.padding
    if padding_mode != "zeros":
        resolved = geo.resolve_padding(who, padding, geometry.rank)
        if resolved == "VALID":  # no padding, and no crop of pixels that no window reaches
            pads = ((0, 0),) * geometry.rank
        elif not isinstance(resolved, str):
            pads = resolved
        boundary.check(who, geometry.big, pads, padding_mode)
    geo.fits(who, shape)
    return Bordered(call, pads, padding_mode, shape)


def resolve_paint(
    who: str,
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    transpose_kernel: bool = False,
    padding_convention: str = "forward",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: str = "auto",
) -> Bordered:
    """Resolves the arguments of `conv_transpose` in the name of `who`, for arrays that `operands` returned."""
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    geometry = geo.conv_transpose_geometry(
        who,
        spatial_shape(who, x.shape, kernel),
        kernel.shape[:-2],
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_shape=output_shape,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        padding_convention=padding_convention,
    )
    groups = geometry.feature_group_count
    check_channels(who, x.shape, kernel.shape, groups, transpose_kernel=transpose_kernel)
    call = face_call(who, geometry, x, precision, preferred_element_type, implementation)
    features = kernel.shape[-2] * groups if transpose_kernel else kernel.shape[-1]
    shape = (*x.shape[: -geometry.rank - 1], *geometry.big, features)
    if padding_mode != "zeros":
        boundary.check(who, geometry.big, geometry.padding, padding_mode)
    geo.fits(who, shape)
    return Bordered(call, geometry.padding, padding_mode, shape, -2 if transpose_kernel else -1)


def face_call(
    who: str,
    geometry: Geometry,
    image: jax.Array,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    implementation: str,
) -> Call:
    """Resolves the settings of a face that reads `image`, or refuses them in the name of `who`."""
    geo.choice(who, "implementation", implementation, IMPLEMENTATIONS)
    dtype = _result_dtype(who, image.dtype, preferred_element_type)
    return Call(
        geometry,
        jnp.dtype(dtype),
        canonical_precision(who, precision) or _configured_precision(),
        implementation,
    )


def operands(
    who: str, x: ArrayLike, kernel: ArrayLike, name: str = "kernel"
) -> tuple[jax.Array, jax.Array]:
    """Returns both operands as arrays of their promoted dtype; `name` is the name of the second."""
    x, kernel = as_array(who, "x", x), as_array(who, name, kernel)
    if not any(jnp.issubdtype(a.dtype, jnp.inexact) for a in (x, kernel)):
        raise TypeError(
            f"{who}: x or {name} must be floating or complex; got x of {x.dtype} and {name} of {kernel.dtype}. "
            "Convert one of them, for example with x.astype(jnp.float32)."
        )
    for label, array in (("x", x), (name, kernel)):
        check_bits(who, label, array)
    try:
        dtype = jnp.result_type(x, kernel)
    except ValueError:
        raise TypeError(
            f"{who}: x and {name} must have dtypes that JAX promotes; got {x.dtype} and {kernel.dtype}. Convert one."
        ) from None
    return x.astype(dtype), kernel.astype(dtype)


def as_array(who: str, name: str, value: ArrayLike) -> jax.Array:
    """Returns `value` as an array of numbers, or refuses it by `name`."""
    try:
        array = jnp.asarray(value)
        number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_
    except (TypeError, ValueError, OverflowError):
        number = False
    if not number:
        raise TypeError(
            f"{who}: {name} must be an array; got {name} of type {type(value).__name__}."
        )
    return array


def check_bits(who: str, name: str, array: jax.Array) -> None:
    """Raises for floating numbers of less than 16 bits: they are for storage, sums need more."""
    if jnp.issubdtype(array.dtype, jnp.inexact) and jnp.finfo(array.dtype).bits < 16:
        raise TypeError(
            f"{who}: {name} must have 16 bits or more, to calculate with; got dtype {array.dtype}. "
            f"Convert it, for example with {name}.astype(jnp.bfloat16)."
        )


def check_inexact(who: str, image: jax.Array, name: str = "x") -> None:
    """Raises unless an image is floating or complex, as a filter needs; `name` is the name of the argument."""
    if not jnp.issubdtype(image.dtype, jnp.inexact):
        raise TypeError(
            f"{who}: a filter needs a floating or complex {name}; got dtype {image.dtype}. "
            f"Convert it, for example with {name}.astype(jnp.float32)."
        )
    check_bits(who, name, image)


def spatial_shape(
    who: str, shape: Sequence[int], kernel: jax.Array, name: str = "x"
) -> tuple[int, ...]:
    """Returns the spatial part of an image shape; the kernel fixes its rank, `name` is the name of the image."""
    rank = kernel.ndim - 2
    if rank < 1:
        raise ValueError(
            f"{who}: kernel must have shape (*kernel_size, in // groups, out) with at least one spatial axis; got "
            f"kernel shape {kernel.shape}."
        )
    if len(shape) < rank + 1:
        raise ValueError(
            f"{who}: {name} must have shape (*batch, *spatial, channels) with one spatial axis per kernel axis; got "
            f"shape {tuple(shape)} for kernel shape {kernel.shape} ({rank} spatial axes)."
        )
    return tuple(shape[-rank - 1 : -1])


def check_channels(
    who: str,
    shape: Sequence[int],
    kernel_shape: Sequence[int],
    groups: int,
    name: str = "x",
    *,
    transpose_kernel: bool = False,
) -> None:
    """Raises unless the channels of an image, a kernel and the groups fit together."""
    layout = (
        "(*kernel_size, out // groups, in)"
        if transpose_kernel
        else "(*kernel_size, in // groups, out)"
    )
    expected = kernel_shape[-1] if transpose_kernel else kernel_shape[-2] * groups
    if shape[-1] != expected:
        raise ValueError(
            f"{who}: the channels of {name} must be those of the kernel {layout}; got {shape[-1]} channels for "
            f"kernel shape {tuple(kernel_shape)} with feature_group_count={groups}, which needs {expected}."
        )
    if kernel_shape[-1] % groups:
        raise ValueError(
            f"{who}: feature_group_count must divide the last axis of the kernel {layout}; got "
            f"feature_group_count={groups} for kernel shape {tuple(kernel_shape)}."
        )


def image_and_factors(
    who: str, x: ArrayLike, name: str, value: Ints, rank: int | None = None
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns an image and one positive integer for each of its spatial axes, or refuses them in the name of `who`.

    An int serves all axes if something else fixes their number, `rank`.
    """
    image, value = as_array(who, "x", x), geo.as_list(value)
    if rank is not None:
        factors = geo.per_axis(who, name, value, rank)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        factors = geo.ints(who, name, value, minimum=1)
    else:
        raise TypeError(
            f"{who}: {name} must be a sequence with one integer per spatial axis; got {name}={value!r}. "
            "Write (2, 2) for two along height and width."
        )
    if not 1 <= len(factors) < image.ndim:
        raise ValueError(
            f"{who}: x must have shape (*batch, *spatial, channels) with one spatial axis per entry of {name}, "
            f"at least one; got shape {image.shape} for {name}={factors}."
        )
    return image, factors


def enlarged_shape(
    who: str,
    shape: tuple[int, ...],
    factors: tuple[int, ...],
    output_shape: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Returns the shape of images enlarged by whole factors to a size of the user's, or refuses it."""
    rank = len(factors)
    large = geo.enlarged_sizes(who, output_shape, shape[-1 - rank : -1], factors)
    new = (*shape[: -1 - rank], *large, shape[-1])
    geo.fits(who, new)
    return new


def flip_and_swap(w: jax.Array, rank: int, groups: int) -> jax.Array:
    """Turns the kernel of a convolution into that of its transpose and back: axes reversed, channels swapped per group.

    `(*kernel_size, in // groups, out)` becomes `(*kernel_size, out // groups, in)`.
    """
    w = jnp.flip(w, tuple(range(rank)))
    *k, i, o = w.shape
    split = w.reshape(*k, i, groups, o // groups)
    return jnp.swapaxes(split, -3, -1).reshape(*k, o // groups, groups * i)


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which sums of `dtype` are taken: float32 for half precision."""
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if half else jnp.dtype(dtype)


def widened(x: jax.Array) -> jax.Array:
    """Returns `x` in the dtype to calculate in: float32 for half precision."""
    return x.astype(accumulator(x.dtype))


def canonical_precision(
    who: str, precision: lax.PrecisionLike
) -> tuple[lax.Precision, lax.Precision] | None:
    """Returns one precision per operand, or None; every call replaces None by the configured default."""
    if precision is None:
        return None
    pair = precision if isinstance(precision, tuple | list) else (precision, precision)
    try:
        lhs, rhs = (lax.Precision(p) for p in pair)
    except (ValueError, TypeError):
        raise ValueError(
            f"{who}: precision must be None, a jax.lax.Precision, its name, or a pair of these; got {precision!r}."
        ) from None
    return lhs, rhs


def _configured_precision() -> tuple[lax.Precision, lax.Precision] | None:
    """Returns the precision in `jax.default_matmul_precision`; None if it names an algorithm."""
    configured = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
    try:
        return configured and (lax.Precision(configured),) * 2
    except ValueError:
        return None


def _result_dtype(
    who: str, promoted: jnp.dtype, preferred_element_type: DTypeLike | None
) -> jnp.dtype:
    if preferred_element_type is None:
        return promoted
    try:
        dtype = jax.dtypes.canonicalize_dtype(preferred_element_type)
    except TypeError:
        dtype = None
    kind = jnp.complexfloating if jnp.issubdtype(promoted, jnp.complexfloating) else jnp.floating
    if dtype is None or not jnp.issubdtype(dtype, kind) or jnp.finfo(dtype).bits < 16:
        raise TypeError(
            f"{who}: preferred_element_type must be floating for floating operands and complex for complex ones, of 16 "
            f"bits or more; got {preferred_element_type!r} for operands of {promoted}."
        )
    return jnp.dtype(dtype)
