"""Taps, variance and gradient by phase, which kernel size and strides alone decide."""

from collections.abc import Sequence

import numpy as np

from tconvjax import _geometry as geo
from tconvjax._geometry import Ints
from tconvjax._ops import phases


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
    return _counts("tap_counts", kernel_size, strides)


def phase_variance(kernel_size: Ints, strides: Ints) -> float:
    """Returns the variance of the output's strongest phase over that of its weakest, `max n_p / min n_p`.

    Independent weights of equal variance give phase p of a transposed convolution a variance proportional to its taps
    n_p. The ratio is 1 if strides divide the kernel size, and 1 for every larger kernel with
    `initializers.variance_scaling_transpose(strides, per_phase=True)`, which this function does not consider.

    Args:
      kernel_size: as in `tap_counts`.
      strides: see there.

    Returns:
      A ratio of variances, at least 1; infinite if a phase has no taps, which is k < s.

    Raises:
      ValueError, TypeError: as `tap_counts`.

    Example:
      >>> phase_variance((3, 3), 2), phase_variance((4, 4), 2), phase_variance((1, 1), 2)
      (4.0, 1.0, inf)

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003.
    """
    counts = _counts("phase_variance", kernel_size, strides)
    return float(counts.max() / counts.min()) if counts.min() else float("inf")


def gradient_coverage(kernel_size: Ints, strides: Ints) -> np.ndarray:
    """Returns the share of the gradient that each input phase of a strided convolution gets, `n_p / Σ n_p`.

    The gradient of a strided convolution with respect to its input is a transposed convolution, so a checkerboard
    there: independent weights, or the equal ones of an average pool, send phase p the energy n_p. A max pool sends the
    gradient of a window to one of its pixels, in phases that depend on the content.

    Args:
      kernel_size: size of the kernel or of the pool's window; as in `tap_counts`.
      strides: see there.

    Returns:
      Shares that sum to 1, of shape `strides`; even is `1 / Πs`. Phases count from the first pixel of the padded input.

    Raises:
      ValueError, TypeError: as `tap_counts`.

    Example:
      >>> gradient_coverage((3, 3), 2) * 9
      array([[4., 2.],
             [2., 1.]])
      >>> gradient_coverage((1, 1), 2)  # the shortcut of a ResNet: three of four pixels get no gradient
      array([[1., 0.],
             [0., 0.]])

    References:
      Odena, Dumoulin & Olah 2016, doi:10.23915/distill.00003, section "Artifacts in Gradients".
    """
    counts = _counts("gradient_coverage", kernel_size, strides)
    return counts / counts.sum()


def resolved(who: str, kernel_size: Ints, strides: Ints) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns both arguments with one integer per axis; the first one that is a sequence fixes the rank."""
    rank = next((len(v) for v in (kernel_size, strides) if isinstance(v, Sequence)), 1)
    k = geo.per_axis(who, "kernel_size", kernel_size, rank)
    return k, geo.per_axis(who, "strides", strides, rank)


def _counts(who: str, kernel_size: Ints, strides: Ints) -> np.ndarray:
    k, s = resolved(who, kernel_size, strides)
    geo.fits(who, s, geo.MOST_COUNTS)
    return phases.tap_counts(k, s)
