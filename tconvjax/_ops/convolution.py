"""Convolution and transposed convolution of any rank, channels last, with PyTorch's arguments and lax's strings.

Both functions resolve their arguments into one call and bind one face of the trilinear form; see
`tconvjax._arguments` and `tconvjax._faces`. The reference implementations 'dilated' and 'linear_transpose' are
plain JAX.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from tconvjax import _arguments as arguments
from tconvjax import _boundary as boundary
from tconvjax import _faces as faces
from tconvjax import _geometry as geo
from tconvjax._arguments import Bordered, Implementation, flip_and_swap, operator
from tconvjax._geometry import Ints, Padding, PaddingConvention, PaddingMode


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: Ints = 1,
    *,
    padding: Padding = "SAME",
    padding_mode: PaddingMode = "zeros",
    kernel_dilation: Ints = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Convolves: every output pixel gathers the pixels under the kernel.

    `(*batch, *spatial, in)` and `(*kernel_size, in // groups, out)` give `(*batch, *new_spatial, out)` with
    `new = (n + low + high − d(k − 1) − 1) // s + 1` pixels per axis. As usual in neural networks the kernel is not
    flipped (a cross-correlation): `y[o] = Σ_a x[s·o + d·a − low] · kernel[a]`.

    Args:
      x: floating or complex, channels last; any number of leading batch axes, none included.
      kernel: fixes the rank.
      strides: s >= 1, input pixels per output pixel; an int serves all axes.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair of pixels per axis; negative
        ones crop.
      padding_mode: content of the padding: 'zeros', or pixels of the image: 'circular', 'reflect' (without repeating
        the border pixel) or 'replicate'.
      kernel_dilation: d >= 1, input pixels between neighboring taps; an int serves all axes.
      feature_group_count: splits the channels into blocks with kernels of their own; divides `in` and `out`.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default the promoted dtype of the operands. Half precision
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
    who = "conv"
    x, kernel = arguments.operands(who, x, kernel)
    bordered = arguments.resolve_gather(
        who,
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
    return gather(x, kernel, bordered)


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: Ints = 1,
    *,
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
      kernel: fixes the rank. By default as in `jax.lax.conv_transpose`, which correlates it with the zero-inserted
        input: it is painted *flipped*.
      strides: s >= 1, output pixels per input pixel; an int serves all axes.
      padding: of the *forward* convolution: a larger padding crops more. 'SAME',
        'SAME_LOWER', 'VALID', an int, or one int or (low, high) pair per axis.
      padding_mode: of the forward convolution: pixels painted beyond the border are dropped ('zeros') or added to the
        pixels that the forward convolution reads there ('circular', 'reflect', 'replicate').
      output_padding: pixels kept at the high end beyond the smallest size, `0 <= output_padding < max(s, d)`; goes
        with integer paddings.
      output_shape: spatial shape to produce, one of the sizes that the forward convolution maps back to the input.
      kernel_dilation: d >= 1, output pixels between neighboring taps; an int serves all axes.
      feature_group_count: splits the channels into blocks with kernels of their own; divides `in` and `out`.
      transpose_kernel: takes the kernel of the forward convolution, `(*kernel_size, out // groups, in)`; the result is
        the exact adjoint of `conv` with it.
      padding_convention: 'forward', or 'dilated' for integers that pad the zero-inserted input, as in lax and Flax.
      precision: of the products, as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default the promoted dtype of the operands. Half precision
        accumulates in float32 either way.
      implementation: 'auto', or a lowering by name: 'phase', 'matmul', 'planes', 'elementwise', or the references in
        plain JAX 'dilated' and 'linear_transpose'. Never changes the result beyond rounding.

    Returns:
      The painted images, in the promoted dtype.

    Raises:
      ValueError: for shapes, channels or values that do not fit together; for an impossible `output_shape` it lists
        the valid sizes.
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
    x, kernel = arguments.operands(who, x, kernel)
    bordered = arguments.resolve_paint(
        who,
        x,
        kernel,
        strides=strides,
        padding=padding,
        padding_mode=padding_mode,
        output_padding=output_padding,
        output_shape=output_shape,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        transpose_kernel=transpose_kernel,
        padding_convention=padding_convention,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
    )
    return paint(x, kernel, bordered, transpose_kernel=transpose_kernel)


@operator
def gather(x: jax.Array, kernel: jax.Array, bordered: Bordered) -> jax.Array:
    """Convolves an image under any border."""
    if bordered.mode == "zeros":
        return faces.run("gather", x, kernel, bordered.call)
    padded = boundary.pad(x, bordered.pads, bordered.mode)
    return faces.run("gather", padded, kernel, bordered.padded_call)


@operator
def paint(
    x: jax.Array, kernel: jax.Array, bordered: Bordered, *, transpose_kernel: bool
) -> jax.Array:
    """Paints an image under any border."""
    call = bordered.call
    if not transpose_kernel:
        kernel = flip_and_swap(kernel, call.geometry.rank, call.geometry.feature_group_count)
    if bordered.mode == "zeros":
        return faces.run("paint", x, kernel, call)
    # Folding adds pixels, too, so the accumulator's dtype stays until then.
    wide = replace(bordered.padded_call, dtype=arguments.accumulator(call.dtype))
    padded = faces.run("paint", x, kernel, wide)
    folded = boundary.fold(padded, call.geometry.big, bordered.pads, bordered.mode)
    return folded.astype(call.dtype)


def conv_matrix(
    input_shape: Sequence[int],
    kernel: ArrayLike,
    strides: Ints = 1,
    *,
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
    kernel = arguments.as_array(who, "kernel", kernel)
    arguments.check_bits(who, "kernel", kernel)
    geo.choice(who, "padding_mode", padding_mode, geo.PADDING_MODES)
    shape = geo.ints(who, "input_shape", input_shape, minimum=1)
    spatial = arguments.spatial_shape(who, shape, kernel, "input_shape")
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
    arguments.check_channels(who, shape, kernel.shape, g, "input_shape")
    boundary.check(who, geometry.big, geometry.padding, padding_mode)
    matrix_shape = prod(geometry.small) * kernel.shape[-1], prod(shape)
    geo.fits(who, matrix_shape, geo.MOST_COUNTS)
    # Each group maps its inputs to its outputs: a block diagonal in the channels.
    blocks = kernel.reshape(*kernel.shape[:-1], g, -1)
    diagonal = jnp.eye(g, dtype=kernel.dtype)
    matrix = jnp.einsum("...igo,gh->...hgio", blocks, diagonal, precision=lax.Precision.HIGHEST)
    matrix = jnp.swapaxes(matrix, -3, -2).reshape(*kernel.shape[:-2], shape[-1], kernel.shape[-1])
    # Taps of the leading axis become (small, big), moved behind all others.
    for axis in range(rank):
        s, d, (low, high) = (
            geometry.strides[axis],
            geometry.kernel_dilation[axis],
            geometry.padding[axis],
        )
        o, a = jnp.ogrid[: geometry.small[axis], : geometry.kernel_size[axis]]
        # Row q of `read` marks the pixel at position q of the padded axis: none or one.
        read = boundary.pad(
            jnp.eye(geometry.big[axis], dtype=kernel.dtype), ((low, high),), padding_mode
        )
        meets = read[s * o + d * a]  # (small, taps, big)
        matrix = jnp.tensordot(matrix, meets, axes=((0,), (1,)), precision=lax.Precision.HIGHEST)
    # (in, out, small_1, big_1, small_2, big_2, ..) -> (small_1, .., out, big_1, .., in)
    small_axes, big_axes = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    matrix = matrix.transpose(*small_axes, 1, *big_axes, 0)
    return matrix.reshape(matrix_shape)
