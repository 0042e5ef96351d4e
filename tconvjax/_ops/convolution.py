"""Convolution and transposed convolution of any rank, channels last, with PyTorch's arguments and lax's manners.

Both functions resolve what the user wrote into one `Geometry` and bind one face of the trilinear form; see
`tconvjax._faces`. The reference implementations 'dilated' and 'linear_transpose' stay in plain JAX.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _boundary as boundary
from tconvjax import _faces as faces
from tconvjax import _geometry as geo
from tconvjax import _lowerings as lowerings
from tconvjax import _sharding as sharding
from tconvjax._geometry import Geometry, Ints, Padding, PaddingConvention, PaddingMode, Pairs
from tconvjax._lowerings import Implementation


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Convolves: every output pixel gathers what lies under the kernel.

    `(*batch, *spatial, in)` and `(*kernel_size, in // groups, out)` give `(*batch, *new_spatial, out)` with
    `new = (n + low + high − d(k − 1) − 1) // s + 1` pixels per axis. As everywhere in neural networks the kernel is
    not flipped (a cross-correlation): `y[o] = Σ_a x[s·o + d·a − low] · kernel[a]`.

    Args:
      x: floating or complex, channels last; any number of leading batch axes, none included.
      kernel: fixes the rank.
      strides: s >= 1, input pixels per output pixel; an int serves all axes.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair of pixels per axis; negative
        ones crop.
      padding_mode: what the padding holds: 'zeros', or the image again: 'circular', 'reflect' (without repeating
        the border pixel) or 'replicate'.
      kernel_dilation: d >= 1, input pixels between neighboring taps; an int serves all axes.
      feature_group_count: splits the channels into blocks with kernels of their own; divides `in` and `out`.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default that of the promoted operands. Half precision
        accumulates in float32 either way.
      implementation: 'auto', or a lowering by name: 'phase', 'matmul', 'planes', 'elementwise', or the references in
        plain JAX 'dilated' and 'linear_transpose'. Never changes the result beyond rounding.

    Returns:
      The convolved images, in the promoted dtype.

    Raises:
      ValueError: for shapes, channels or values that do not fit together.
      TypeError: for two integer operands, or options of the wrong kind.

    Example:
      >>> conv(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16)), strides=2).shape
      (2, 4, 4, 16)
    """
    return gather(
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
    )


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    transpose_kernel: bool = False,
    padding_convention: PaddingConvention = "forward",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Transposed convolution: every input pixel paints a copy of the kernel.

    `(*batch, *spatial, in)` and `(*kernel_size, in // groups, out)` give `(*batch, *new_spatial, out)` with
    `new = s(n − 1) + d(k − 1) + 1 − low − high + output_padding` pixels per axis for integer paddings; 'SAME' gives
    `s·n`, 'VALID' `s·n + max(d(k − 1) + 1 − s, 0)`, as in lax.

    Args:
      x: floating or complex, channels last; any number of leading batch axes, none included.
      kernel: fixes the rank. By default the kernel of `jax.lax.conv_transpose`, which correlates with the
        zero-inserted input, so that it is painted *flipped*.
      strides: s >= 1, output pixels per input pixel; an int serves all axes.
      padding: of the *forward* convolution, whose transpose this is: a larger padding crops more. 'SAME',
        'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair per axis.
      padding_mode: of the forward convolution: what is painted beyond the border is lost ('zeros') or added to the
        pixel that the forward convolution reads there ('circular', 'reflect', 'replicate').
      output_padding: pixels kept at the high end beyond the smallest size, `0 <= output_padding < max(s, d)`; goes
        with integer paddings.
      output_shape: spatial shape to produce, one of the sizes that the forward convolution maps back to the input.
      kernel_dilation: d >= 1, output pixels between neighboring taps; an int serves all axes.
      feature_group_count: splits the channels into blocks with kernels of their own; divides `in` and `out`.
      transpose_kernel: the kernel is that of the forward convolution, `(*kernel_size, out // groups, in)`, and the
        result is the exact adjoint of `conv` with it.
      padding_convention: 'forward', or 'dilated' for integers that pad the zero-inserted input, as in lax and Flax.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default that of the promoted operands. Half precision
        accumulates in float32 either way.
      implementation: 'auto', or a lowering by name: 'phase', 'matmul', 'planes', 'elementwise', or the references in
        plain JAX 'dilated' and 'linear_transpose'. Never changes the result beyond rounding.

    Returns:
      The painted images, in the promoted dtype.

    Raises:
      ValueError: for shapes, channels or values that do not fit together; an impossible `output_shape` is answered
        with the valid sizes.
      TypeError: for two integer operands, or options of the wrong kind.

    Example:
      >>> ones = jnp.ones((4, 1))  # four pixels, one channel
      >>> conv_transpose(ones, jnp.ones((3, 1, 1)), strides=2, padding=1)[:, 0]  # 2, 1, 2, 1: a checkerboard
      Array([1., 2., 1., 2., 1., 2., 1.], dtype=float32)

    References:
      Dumoulin & Visin 2016, arXiv:1603.07285, chapter 4.

    PyTorch:
      `torch.nn.functional.conv_transpose2d(x, weight, stride=s, padding=p, output_padding=op)` is this function with
      the same integers, channels last, `transpose_kernel=True` and the ungrouped weight's axes `(in, out, *k)` moved to
      `(*k, out, in)`.
    """
    who = "conv_transpose"
    x, kernel = operands(who, x, kernel)
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
    boundary.check(who, geometry.big, geometry.padding, padding_mode)
    options = face_options(who, x, precision, preferred_element_type, implementation)
    features = kernel.shape[-2] * groups if transpose_kernel else kernel.shape[-1]
    shape = (*x.shape[: -geometry.rank - 1], *geometry.big, features)
    geo.fits(who, shape)

    def paint(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if not transpose_kernel:
            kernel = lowerings.flip_and_swap(kernel, geometry.rank, groups)
        if padding_mode == "zeros":
            return run_face("paint", x, kernel, geometry, options)
        wide = options | {"dtype": lowerings.accumulator(options["dtype"])}  # folding adds, too
        padded = run_face("paint", x, kernel, _padded(geometry, geometry.padding), wide)
        folded = boundary.fold(padded, geometry.big, geometry.padding, padding_mode)
        return folded.astype(options["dtype"])

    return sharding.placed(
        paint,
        x,
        kernel,
        shape=shape,
        features=(kernel, -2 if transpose_kernel else -1),
    )


def conv_matrix(
    input_shape: Sequence[int],
    kernel: ArrayLike,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
) -> jax.Array:
    """Returns the explicit matrix A of `conv`: `conv(x).ravel() == A @ x.ravel()`.

    Its transpose is the matrix of `conv_transpose(..., transpose_kernel=True)`. Shape
    `(prod(*new_spatial, out), prod(*spatial, in))`: for proofs, tests and pictures of small cases.

    Args:
      input_shape: `(*spatial, in)`, no batch axes.
      kernel: `(*kernel_size, in // groups, out)`, as in `conv`, like all other arguments.
      strides: see there.
      padding: see there.
      padding_mode: see there.
      kernel_dilation: see there.
      feature_group_count: see there.

    Returns:
      A matrix in the kernel's dtype.

    Raises:
      ValueError, TypeError: as `conv`.

    Example:
      >>> kernel = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
      >>> conv_matrix((5, 1), kernel, strides=2, padding=1)
      Array([[2., 3., 0., 0., 0.],
             [0., 1., 2., 3., 0.],
             [0., 0., 0., 1., 2.]], dtype=float32)
    """
    who = "conv_matrix"
    kernel = as_array(who, "kernel", kernel)
    check_bits(who, "kernel", kernel)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    shape = geo.ints(who, "input_shape", input_shape, minimum=1)
    spatial = spatial_shape(who, shape, kernel, "input_shape")
    if len(shape) != len(spatial) + 1:
        raise ValueError(
            f"{who}: input_shape must be (*spatial, in) without batch axes; got {shape} for "
            f"kernel shape {kernel.shape}."
        )
    geometry = geo.conv_geometry(
        who,
        spatial,
        kernel.shape[:-2],
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    g, rank = geometry.feature_group_count, geometry.rank
    check_channels(who, shape, kernel.shape, g, "input_shape")
    boundary.check(who, geometry.big, geometry.padding, padding_mode)
    matrix_shape = prod(geometry.small) * kernel.shape[-1], prod(shape)
    geo.fits(who, matrix_shape, geo.MOST_COUNTS)
    # Group h maps its own inputs to its own outputs: a block diagonal in the channels.
    blocks = kernel.reshape(*kernel.shape[:-1], g, -1)
    diagonal = jnp.eye(g, dtype=kernel.dtype)
    matrix = jnp.einsum("...igo,gh->...hgio", blocks, diagonal, precision=lax.Precision.HIGHEST)
    matrix = jnp.swapaxes(matrix, -3, -2).reshape(*kernel.shape[:-2], shape[-1], kernel.shape[-1])
    for axis in range(
        rank
    ):  # taps of the leading axis become (small, big), moved behind all others
        s, d, (low, high) = (
            geometry.strides[axis],
            geometry.kernel_dilation[axis],
            geometry.padding[axis],
        )
        o, a = jnp.ogrid[: geometry.small[axis], : geometry.kernel_size[axis]]
        # Row q of `read` marks the pixel that the padded axis shows at q: none or one.
        read = boundary.pad(
            jnp.eye(geometry.big[axis], dtype=kernel.dtype), ((low, high),), padding_mode
        )
        meets = read[s * o + d * a]  # (small, taps, big)
        matrix = jnp.tensordot(matrix, meets, axes=((0,), (1,)), precision=lax.Precision.HIGHEST)
    # (in, out, small_1, big_1, small_2, big_2, ..) -> (small_1, .., out, big_1, .., in)
    small_axes, big_axes = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    matrix = matrix.transpose(*small_axes, 1, *big_axes, 0)
    return matrix.reshape(matrix_shape)


def operands(
    who: str, x: ArrayLike, kernel: ArrayLike, name: str = "kernel"
) -> tuple[jax.Array, jax.Array]:
    """Returns both operands as arrays of the dtype that JAX promotes them to; `name` is that of the second."""
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
    """Raises for floating numbers of less than 16 bits, which are for storage: every sum would be rounded to a few."""
    if jnp.issubdtype(array.dtype, jnp.inexact) and jnp.finfo(array.dtype).bits < 16:
        raise TypeError(
            f"{who}: {name} must have 16 bits or more, to calculate with; got dtype {array.dtype}. "
            f"Convert it, for example with {name}.astype(jnp.bfloat16)."
        )


def spatial_shape(
    who: str, shape: Sequence[int], kernel: jax.Array, name: str = "x"
) -> tuple[int, ...]:
    """Returns the spatial part of an image shape, whose rank the kernel fixes; `name` is that of the image."""
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


def gather(
    who: str,
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Ints = 1,
    padding: Padding,
    padding_mode: PaddingMode,
    kernel_dilation: Ints,
    feature_group_count: int,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    implementation: str,
    spatial: tuple[int, ...] | None = None,
    run: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """`conv` in the name of `who`, which is what its errors say.

    Another operator that is a convolution of an image of shape `spatial` computes by `run`, of the arguments of
    `run_gather`.
    """
    x, kernel = operands(who, x, kernel)
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
    resolved = geo.resolve_padding(who, padding, geometry.rank)
    pads = geometry.padding if isinstance(resolved, str) else resolved
    pads = ((0, 0),) * geometry.rank if resolved == "VALID" else pads  # not even a derived crop
    boundary.check(who, geometry.big, pads, padding_mode)
    options = face_options(who, x, precision, preferred_element_type, implementation)
    shape = (*x.shape[: -geometry.rank - 1], *geometry.small, kernel.shape[-1])
    geo.fits(who, shape)

    def resolved_run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (run or run_gather)(x, kernel, geometry, pads, padding_mode, options)

    return sharding.placed(
        resolved_run,
        x,
        kernel,
        shape=shape,
        features=(kernel, -1),
    )


def run_gather(
    x: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    pads: Pairs,
    padding_mode: PaddingMode,
    options: dict[str, Any],
) -> jax.Array:
    """Gathers from an image under any border."""
    if padding_mode == "zeros":
        return run_face("gather", x, kernel, geometry, options)
    padded = boundary.pad(x, pads, padding_mode)
    return run_face("gather", padded, kernel, _padded(geometry, pads), options)


def _padded(geometry: Geometry, pads: Pairs) -> Geometry:
    """Returns the geometry that sees the padded image, and pads no more."""
    big = tuple(m + lo + hi for m, (lo, hi) in zip(geometry.big, pads, strict=True))
    return replace(geometry, big=big, offset=(0,) * geometry.rank)


def face_options(
    who: str,
    image: jax.Array,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    implementation: str,
) -> dict[str, Any]:
    """Returns what a face takes beside arrays and geometry, or refuses it."""
    geo.choice(who, "implementation", implementation, lowerings.IMPLEMENTATIONS)
    return {
        "dtype": jnp.dtype(_result_dtype(who, image.dtype, preferred_element_type)),
        "precision": canonical_precision(who, precision) or _configured_precision(),
        "implementation": implementation,
    }


def run_face(
    face: str, image: jax.Array, kernel: jax.Array, geometry: Geometry, options: dict[str, Any]
) -> jax.Array:
    """Binds a face that takes an image and a kernel, with any number of batch axes."""
    batch = image.shape[: -geometry.rank - 1]
    image = image.reshape(1, prod(batch), *image.shape[len(batch) :])
    image, kernel = sharding.varying_alike(image, kernel[None])
    if options["implementation"] in lowerings.PLAIN:
        spread = sharding.mesh_of(image, kernel) is not None
        name = "matmul" if spread else options["implementation"]  # in JAX's own operations, too
        options = options | {"implementation": name}
        out = lowerings.compute(
            face, image, kernel, None, geometry=geometry, spread=spread, **options
        )
    else:
        out = faces.bind(face, image, kernel, geometry=geometry, **options)
    return out.reshape(*batch, *out.shape[2:])


def canonical_precision(
    who: str, precision: lax.PrecisionLike
) -> tuple[lax.Precision, lax.Precision] | None:
    """Returns one precision per operand, or None, which is resolved to the configured default at every call."""
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
    """Returns what `jax.default_matmul_precision` asks for, where it is a precision and not an algorithm."""
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
