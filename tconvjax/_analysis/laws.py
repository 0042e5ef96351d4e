"""Errors of a function against two laws: its transpose, and its commutation with shifts."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._arguments import as_array, check_bits
from tconvjax._geometry import Ints


def adjoint_error(
    f: Callable[[jax.Array], jax.Array],
    ft: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    y: ArrayLike,
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
      TypeError: for arguments that are no arrays, or of less than 16 bits.

    Example:
      >>> x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
      >>> float(adjoint_error(lambda u: 2 * u, lambda v: 2 * v, x, y))
      0.0

    References:
      The dot-product test of Claerbout, Earth Soundings Analysis, 1992.
    """
    x, y = as_array("adjoint_error", "x", x), as_array("adjoint_error", "y", y)
    for name, array in (("x", x), ("y", y)):
        check_bits("adjoint_error", name, array)
    fx, fty = f(x), ft(y)
    if fx.shape != y.shape or fty.shape != x.shape:
        raise ValueError(
            "adjoint_error: f must map x to the shape of y, and ft y to the shape of x; got "
            f"x {x.shape} -> {fx.shape}, y {y.shape} -> {fty.shape}."
        )
    difference = jnp.abs(jnp.sum(fx * y) - jnp.sum(x * fty))
    return _ratio(difference, jnp.linalg.norm(fx) * jnp.linalg.norm(y))


def equivariance_error(
    fn: Callable[[jax.Array], jax.Array], x: ArrayLike, shift: Sequence[int], strides: Ints = 1
) -> jax.Array:
    """Returns `‖fn(T x) − T fn(x)‖ / ‖fn(x)‖`: 0 if shifting and `fn` commute; T shifts periodically.

    The shift is in pixels of the finer of both images. The coarser one moves by `shift / strides`: by whole pixels if
    strides divide the shift, exactly; else along its Fourier series, which is exact for images without power at and
    beyond the Nyquist frequency. So whole shifts test a layer's arithmetic, and should give rounding; parts of a pixel
    test its images (aliases), and `−20·log10` of the error is the ratio of signal to alias in dB.

    Args:
      fn: maps images to images, up or down by `strides`; borders must be periodic for a small error.
      x: `(*batch, *spatial, channels)`, floating or complex.
      shift: one integer per spatial axis, of either sign; fixes the rank.
      strides: pixels of the finer image per pixel of the coarser one; an int serves all axes. For a network, the
        product of its layers' strides; for an encoder-decoder 1.

    Returns:
      A real scalar, differentiable where it is not 0; 0 if both images are.

    Raises:
      ValueError: if an axis of `fn(x)` is neither `strides` times that of `x` nor the reverse.
      TypeError: for shifts that are not integers, or an image of integers.

    Example:
      >>> x = jnp.array([0.0, 1.0, 0.0, -1.0]).reshape(4, 1)  # one period of a sine
      >>> nearest = lambda x: jnp.repeat(x, 2, axis=0)
      >>> float(equivariance_error(nearest, x, (2,), 2))  # a whole input pixel
      0.0
      >>> print(f"{equivariance_error(nearest, x, (1,), 2):.3f}")  # half of one: 2 sin(π/8), the alias
      0.765

    References:
      Karras et al. 2021, arXiv:2106.12423, equation 3, for the decibels; Zhang 2019, arXiv:1904.11486.
    """
    who = "equivariance_error"
    x = as_array(who, "x", x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{who}: x must be floating or complex; got dtype {x.dtype}. "
            "Convert it, for example with x.astype(jnp.float32)."
        )
    check_bits(who, "x", x)
    moves = geo.ints(who, "shift", shift, minimum=-geo.LARGEST)
    s = geo.per_axis(who, "strides", strides, len(moves))
    y = fn(x)
    before, after = (a.shape[max(a.ndim - 1 - len(s), 0) : -1] for a in (x, y))
    up = tuple(m * t for m, t in zip(before, s, strict=False)), after
    down = tuple(m * t for m, t in zip(after, s, strict=False)), before
    if len(before) != len(s) or len(after) != len(s) or not (up[0] == up[1] or down[0] == down[1]):
        raise ValueError(
            f"{who}: fn must enlarge or reduce every spatial axis by strides; got strides={s}, spatial shape {before} "
            f"-> {after}."
        )
    fine = tuple(Fraction(t) for t in moves)
    coarse = tuple(Fraction(t, n) for t, n in zip(moves, s, strict=True))
    first, second = (coarse, fine) if up[0] == up[1] else (fine, coarse)
    difference = fn(_shifted(x, first)) - _shifted(y, second)
    return _ratio(jnp.linalg.norm(difference), jnp.linalg.norm(y))


def _shifted(x: jax.Array, shift: Sequence[Fraction]) -> jax.Array:
    """Moves an image by pixels and parts of a pixel, periodically."""
    for axis, t in enumerate(shift, start=x.ndim - 1 - len(shift)):
        if t.denominator == 1:
            x = jnp.roll(x, int(t), axis)
            continue
        wide = jnp.complex128 if jnp.finfo(x.dtype).bits == 64 else jnp.complex64
        ramp = np.exp(-2j * np.pi * np.fft.fftfreq(x.shape[axis]) * float(t))
        factors = jnp.expand_dims(jnp.asarray(ramp, wide), [i for i in range(x.ndim) if i != axis])
        moved = jnp.fft.ifft(jnp.fft.fft(x.astype(wide), axis=axis) * factors, axis=axis)
        x = (moved if jnp.iscomplexobj(x) else moved.real).astype(x.dtype)
    return x


def _ratio(difference: jax.Array, size: jax.Array) -> jax.Array:
    """Divides; 0 by 0 gives 0."""
    ratio: jax.Array = jnp.where(difference == 0, 0, difference / jnp.where(size == 0, 1, size))
    return ratio
