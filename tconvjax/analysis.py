"""What a layer's integers and weights say about its output, before any image is made.

Phases are counted on the kernel as it is *painted*: w[a] lands on pixel `s·i + a`, so phase p of the full output,
before any crop, is fed by the taps w[p], w[p + s], .. A crop by o pixels shifts which pixel shows which phase and
changes nothing else. Kernels are in the layouts of `tconvjax.conv_transpose`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import geometry as geo
from tconvjax.geometry import Ints, Padding


class CenterMap(NamedTuple):
    """Input i of a transposed convolution is centered at output `scale·i + offset`, per axis."""

    scale: tuple[int, ...]
    offset: tuple[float, ...]

    @property
    def shift(self) -> tuple[float, ...]:
        """Output pixels by which the layer displaces the image; 0 is half-pixel aligned."""
        return tuple(o - (s - 1) / 2 for s, o in zip(self.scale, self.offset, strict=True))


def tap_counts(kernel_size: Ints, strides: Ints) -> np.ndarray:
    """Counts the taps that reach each output phase: `n_p = Π max(0, ceil((k − p)/s))`, an array of shape `strides`.

    Uneven counts are the checkerboard of a transposed convolution with equal weights; equal counts need strides that
    divide the kernel size.

    Args:
      kernel_size: k, one integer per axis; an int with int strides is one axis.
      strides: s; an int serves all axes of the other argument.

    Returns:
      Integers that sum to the number of taps.

    Raises:
      ValueError, TypeError: for sizes that are not positive integers or do not match.

    Example:
      >>> tap_counts(3, 2)
      array([2, 1])
      >>> tap_counts((3, 3), 2)
      array([[4, 2],
             [2, 1]])

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003, section "Deconvolution & Overlap".
    """
    lengths = [len(v) for v in (kernel_size, strides) if isinstance(v, Sequence)]
    rank = max(lengths, default=1)
    k = geo.per_axis("tap_counts", "kernel_size", kernel_size, rank)
    s = geo.per_axis("tap_counts", "strides", strides, rank)
    return _outer([np.array(geo.phase_tap_counts(*ks)) for ks in zip(k, s, strict=True)])


def overlap_map(
    input_shape: Sequence[int],
    kernel_size: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    output_padding: Ints | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_dilation: Ints = 1,
) -> np.ndarray:
    """Counts the taps that paint every output pixel, borders included.

    Args:
      input_shape: spatial shape of the input, one integer per axis; fixes the rank.
      kernel_size: as in `conv_transpose`, like all other arguments; an int serves all axes.
      strides: see there.
      padding: see there.
      output_padding: see there.
      output_shape: see there.
      kernel_dilation: see there.

    Returns:
      Integers in the spatial shape of the output.

    Raises:
      ValueError, TypeError: as `conv_transpose`.

    Example:
      >>> overlap_map((4,), 3, strides=2, padding=1)
      array([1, 2, 1, 2, 1, 2, 1])

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    shape = geo.ints("overlap_map", "input_shape", input_shape, minimum=1)
    geometry = geo.conv_transpose_geometry(
        "overlap_map",
        shape,
        geo.per_axis("overlap_map", "kernel_size", kernel_size, len(shape)),
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_shape=output_shape,
        kernel_dilation=kernel_dilation,
    )
    counts = []
    for axis in range(geometry.rank):
        o, a = np.ogrid[: geometry.small[axis], : geometry.kernel_size[axis]]
        s, d, p = geometry.strides[axis], geometry.kernel_dilation[axis], geometry.offset[axis]
        painted = (s * o + d * a - p).ravel()
        size = geometry.big[axis]
        counts.append(np.bincount(painted[(painted >= 0) & (painted < size)], minlength=size))
    return _outer(counts)


def phase_gains(kernel: ArrayLike, strides: Ints, *, transpose_kernel: bool = False) -> jax.Array:
    """Returns what each phase answers to a constant: `G_p = Σ_j w[p + s·j]`, shape `(*strides, in, out)`.

    The layer turns a constant input c into c·G_p on all pixels of phase p. All gains equal is the same as a constant
    output, and the same as zeros of the kernel's spectrum at every stride harmonic.

    Args:
      kernel: `(*kernel_size, in, out)`, as in `conv_transpose`; differentiable.
      strides: s; an int serves all axes.
      transpose_kernel: the kernel is `(*kernel_size, out, in)`, as in `conv_transpose`.

    Returns:
      Gains of the *painting* kernel: with `transpose_kernel=False` that is the given one, flipped.

    Raises:
      ValueError, TypeError: for a kernel without spatial axes or strides that do not match it.

    Example:
      >>> phase_gains(jnp.ones((3, 1, 1)), 2).ravel()
      Array([2., 1.], dtype=float32)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    kernel = jnp.asarray(kernel)
    rank = kernel.ndim - 2
    if rank < 1:
        raise ValueError(
            f"phase_gains: kernel must have shape (*kernel_size, in, out) with at least one spatial axis; got "
            f"kernel shape {kernel.shape}."
        )
    s = geo.per_axis("phase_gains", "strides", strides, rank)
    space = tuple(range(rank))
    painted = jnp.swapaxes(kernel, -1, -2) if transpose_kernel else jnp.flip(kernel, space)
    gains = painted
    for axis, stride in enumerate(s):
        rows = -(-gains.shape[axis] // stride)
        pads = [(0, 0)] * gains.ndim
        pads[axis] = (0, rows * stride - gains.shape[axis])
        padded = jnp.pad(gains, pads)
        split = padded.reshape(*padded.shape[:axis], rows, stride, *padded.shape[axis + 1 :])
        gains = split.sum(axis)
    return gains


def harmonic_share(
    kernel: ArrayLike, strides: Ints, *, transpose_kernel: bool = False
) -> jax.Array:
    """Returns the part of a constant's output energy that lies on the stride harmonics, in [0, 1].

    `Σ_p |G_p − mean G|² / Σ_p |G_p|²` over the phase gains, energies summed over channels. 0 exactly when a constant
    stays constant; `1 − 1/Πs` on average for independent weights of zero mean, whatever the kernel size.

    Args:
      kernel: as in `phase_gains`, like the other arguments; differentiable.
      strides: see there.
      transpose_kernel: see there.

    Returns:
      A scalar; 0 for a kernel of zeros.

    Raises:
      ValueError, TypeError: as `phase_gains`.

    Example:
      >>> round(float(harmonic_share(jnp.ones((3, 3, 1, 1)), 2)), 4)  # 4, 2, 2, 1 against their mean
      0.19

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003; Kinoshita & Kiya 2020, arXiv:2002.02117.
    """
    gains = phase_gains(kernel, strides, transpose_kernel=transpose_kernel)
    phases = tuple(range(gains.ndim - 2))
    deviation = jnp.sum(jnp.abs(gains - gains.mean(phases, keepdims=True)) ** 2)
    energy = jnp.sum(jnp.abs(gains) ** 2)
    share: jax.Array = jnp.where(energy > 0, deviation / jnp.where(energy > 0, energy, 1), 0)
    return share


def center_map(
    kernel_size: Ints,
    strides: Ints,
    padding: Padding = "SAME",
    *,
    kernel_dilation: Ints = 1,
) -> CenterMap:
    """Returns where a transposed convolution centers its input pixels, in output pixels.

    Args:
      kernel_size: k, one integer per axis; an int with int strides is one axis.
      strides: s; an int serves all axes.
      padding: as in `conv_transpose`, with the sizes it chooses by default.
      kernel_dilation: d; an int serves all axes.

    Returns:
      `scale` and `offset` per axis: input i is centered at `scale·i + offset`, and `shift` is the displacement against
      half-pixel alignment, `(k − s)/2 − p` for padding p.

    Raises:
      ValueError, TypeError: as `conv_transpose`.

    Example:
      >>> center_map(3, 2, padding=1).shift  # PyTorch's k3 s2 p1 is half a pixel off
      (-0.5,)
      >>> center_map(4, 2, padding=1).shift
      (0.0,)

    References:
      Araujo, Norris & Sim 2019, doi:10.23915/distill.00021.
    """
    lengths = [len(v) for v in (kernel_size, strides) if isinstance(v, Sequence)]
    rank = max(lengths, default=1)
    geometry = geo.conv_transpose_geometry(
        "center_map",
        (1 << 30,) * rank,  # the crop does not depend on the size; this one outlasts any
        geo.per_axis("center_map", "kernel_size", kernel_size, rank),
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
    )
    return CenterMap(
        geometry.strides,
        tuple((e - 1) / 2 - p for e, p in zip(geometry.extent, geometry.offset, strict=True)),
    )


def adjoint_error(
    f: Callable[[jax.Array], jax.Array],
    ft: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """Returns `|⟨f(x), y⟩ − ⟨x, ft(y)⟩| / (‖f(x)‖‖y‖)`: rounding if `ft` is the transpose of the linear `f`.

    Products are not conjugated, as in `jax.linear_transpose`.

    Args:
      f: linear.
      ft: the candidate for its transpose.
      x: argument of `f`, any shape.
      y: argument of `ft`, of the shape of `f(x)`.

    Returns:
      A real scalar; 0 if both products are.

    Raises:
      ValueError: if the shapes do not match.

    Example:
      >>> x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
      >>> float(adjoint_error(lambda u: 2 * u, lambda v: 2 * v, x, y))
      0.0

    References:
      The dot-product test of Claerbout, Earth Soundings Analysis, 1992.
    """
    fx, fty = f(x), ft(y)
    if fx.shape != y.shape or fty.shape != x.shape:
        raise ValueError(
            "adjoint_error: f must map x to the shape of y, and ft y to the shape of x; got "
            f"x {x.shape} -> {fx.shape}, y {y.shape} -> {fty.shape}."
        )
    difference = jnp.abs(jnp.sum(fx * y) - jnp.sum(x * fty))
    scale = jnp.linalg.norm(fx) * jnp.linalg.norm(y)
    error: jax.Array = jnp.where(difference > 0, difference / jnp.where(scale > 0, scale, 1), 0)
    return error


def _outer(per_axis: Sequence[np.ndarray]) -> np.ndarray:
    """Products of one count per axis."""
    return np.array(prod(np.ix_(*per_axis)))
