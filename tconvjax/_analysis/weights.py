"""Effects of a transposed convolution's weights on constants and polynomials, and their repair."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._arguments import as_array, check_bits
from tconvjax._geometry import Ints
from tconvjax._ops import phases


def phase_gains(kernel: ArrayLike, strides: Ints, *, transpose_kernel: bool = False) -> jax.Array:
    """Returns the response of each phase to a constant: `G_p = Σ_j w[p + s·j]`, shape `(*strides, in, out)`.

    The layer turns a constant input c into c·G_p on all pixels of phase p. All gains are equal exactly if the output is
    constant, and exactly if the kernel's spectrum is zero at every stride harmonic.

    Args:
      kernel: `(*kernel_size, in, out)`, as in `conv_transpose`; differentiable.
      strides: s; an int serves all axes.
      transpose_kernel: the kernel is `(*kernel_size, out, in)`, as in `conv_transpose`.

    Returns:
      Gains of the *painting* kernel: with `transpose_kernel=False`, the given kernel, flipped.

    Raises:
      ValueError, TypeError: for a kernel without spatial axes or strides that do not match it.

    Example:
      >>> phase_gains(jnp.ones((3, 1, 1)), 2).ravel()
      Array([2., 1.], dtype=float32)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658.
    """
    return _gains("phase_gains", kernel, strides, transpose_kernel=transpose_kernel)


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
    return _share(_gains("harmonic_share", kernel, strides, transpose_kernel=transpose_kernel))


@partial(jax.jit, inline=True)
def _share(gains: jax.Array) -> jax.Array:
    axes = tuple(range(gains.ndim - 2))
    deviation = jnp.sum(jnp.abs(gains - gains.mean(axes, keepdims=True)) ** 2)
    energy = jnp.sum(jnp.abs(gains) ** 2)
    share: jax.Array = jnp.where(energy == 0, 0, deviation / jnp.where(energy == 0, 1, energy))
    return share


def zero_order(
    kernel: ArrayLike,
    strides: Ints,
    *,
    transpose_kernel: bool = False,  # noqa: ARG001
) -> float:
    """Returns the order L of the kernel's zero at every stride harmonic: below degree L polynomials have no ripple.

    L is the largest integer with `Σ_a a^α w[a] e^(−2πi·q·a/s) = 0` for all harmonics q ≠ 0 and all powers of total
    degree |α| < L, the Strang-Fix condition. The ripple on a sinusoid of wavelength λ falls as λ^(−L). L >= 1 is the
    same as a harmonic share of 0. Random kernels have 0, nearest 1, linear 2 (or 3 at s = 2); convolving the output
    with `ones(s)` adds 1.

    Args:
      kernel: as in `phase_gains`, like the other arguments; read on the host.
      strides: see there.
      transpose_kernel: see there; the order is the same in both layouts.

    Returns:
      An integer, the smallest over all pairs of channels; infinite at stride 1, without harmonics, and for a kernel of
      zeros. Moments below `max(1e-9, 16·eps)` times `Σ|w||a^α|` count as zero; a counts from the middle, eps belongs to
      the kernel's dtype.

    Raises:
      ValueError, TypeError: as `phase_gains`.

    Example:
      >>> pyramid = jnp.array([1.0, 3.0, 3.0, 1.0]).reshape(4, 1, 1)
      >>> zero_order(jnp.ones((2, 1, 1)), 2), zero_order(pyramid, 2), zero_order(jnp.ones((3, 1, 1)), 2)
      (1, 3, 0)

    References:
      Strang & Fix 1971, "A Fourier analysis of the finite element variational method".
    """
    array = as_array("zero_order", "kernel", kernel)
    check_bits("zero_order", "kernel", array)
    s = phases.per_spatial_axis("zero_order", "strides", strides, array.shape)
    geo.fits("zero_order", (*s, *array.shape[-2:]), geo.MOST_COUNTS)
    eps = jnp.finfo(array.dtype).eps if jnp.issubdtype(array.dtype, jnp.inexact) else 0.0
    w = np.asarray(array).astype(np.complex128)  # a flip turns q into −q, and all q count
    taps = [np.arange(k) - (k - 1) / 2 for k in w.shape[:-2]]
    tones = [
        np.exp(-2j * np.pi * np.outer(np.arange(n), a) / n) for n, a in zip(s, taps, strict=True)
    ]
    highest = sum(k - 1 for k in w.shape[:-2])  # no nonzero polynomial has a zero of higher order
    for degree in range(highest + 1):
        for alpha in product(range(degree + 1), repeat=len(s)):
            if sum(alpha) != degree:
                continue
            moment, size = w, abs(w)
            for a, tone, power in zip(taps, tones, alpha, strict=True):
                moment = np.tensordot(moment, tone * a**power, (0, 1))  # a tap axis for one of q
                size = np.tensordot(size, abs(a) ** power, (0, 0))
            harmonics = moment.reshape(*size.shape, -1)[..., 1:]  # all q but 0
            if not np.all(abs(harmonics) <= max(1e-9, 16 * float(eps)) * size[..., None]):
                return degree
    return float("inf")


def balance(
    kernel: ArrayLike,
    strides: Ints,
    *,
    transpose_kernel: bool = False,  # noqa: ARG001
) -> jax.Array:
    """Repairs a kernel with the smallest change that makes all its phase gains equal, which removes its checkerboard.

    `w[p + s·j] += (Ḡ − G_p)/n_p` with `Ḡ = Σ(G_p/n_p) / Σ(1/n_p)`, for each pair of channels: the orthogonal projection
    onto the kernels that keep a constant constant. Ḡ is the mean gain if strides divide the kernel size. Applied to
    trained weights it is a repair; inside a model, before `conv_transpose`, a constraint.

    Args:
      kernel: as in `phase_gains`, like the other arguments; floating or complex, differentiable.
      strides: see there.
      transpose_kernel: see there; the change is the same in both layouts.

    Returns:
      A kernel of the same shape, layout and dtype; a second call changes nothing.

    Raises:
      ValueError: for k < s, where a phase without taps cannot be repaired; else as `phase_gains`.
      TypeError: for a kernel of integers.

    Example:
      >>> balance(jnp.ones((3, 1, 1)), 2)[:, 0, 0]  # phases 0 and 1 had the gains 2 and 1, both get 4/3
      Array([0.667, 1.333, 0.667], dtype=float32)

    References:
      Sugawara, Shiota & Kiya 2018, arXiv:1806.02658, for the condition.
    """
    array = as_array("balance", "kernel", kernel)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"balance: kernel must be floating or complex; got dtype {array.dtype}. "
            "Convert it, for example with kernel.astype(jnp.float32)."
        )
    check_bits("balance", "kernel", array)
    return phases.balance("balance", array, strides)


def _gains(who: str, kernel: ArrayLike, strides: Ints, *, transpose_kernel: bool) -> jax.Array:
    kernel = as_array(who, "kernel", kernel)
    check_bits(who, "kernel", kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.inexact):  # sums of small integers would overflow
        kernel = kernel.astype(jnp.float32)
    s = phases.per_spatial_axis(who, "strides", strides, kernel.shape)
    geo.fits(who, (*s, *kernel.shape[-2:]), geo.MOST_COUNTS)
    return phases.gains(phases.painted(kernel, transpose_kernel=transpose_kernel), s)
