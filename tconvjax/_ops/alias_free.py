"""Low-pass filters by a window, and nonlinearities between them, whose new frequencies do not fold back."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _boundary as boundary
from tconvjax import _geometry as geo
from tconvjax import _sharding as sharding
from tconvjax._arguments import check_inexact, enlarged_shape, image_and_factors, widened
from tconvjax._geometry import PaddingMode
from tconvjax._ops.resize import filtered

Window = Literal["kaiser", "lanczos"]
LONGEST = 1024  # taps


def lowpass(
    *, filter_size: int, cutoff: float, width: float = 0.1, window: Window = "kaiser"
) -> jax.Array:
    """Designs a low-pass filter, for `upfirdn`: a sinc under a window, `(filter_size,)`, of sum 1.

    Args:
      filter_size: taps, 1 to 1024.
      cutoff: where the filter passes half, in cycles per sample, 0 < cutoff < 1/2.
      width: of the transition around it for 'kaiser', in cycles per sample, > 0; the attenuation beyond follows,
        `2.285 (filter_size − 1) · 2π · width + 7.95` dB.
      window: 'kaiser'; or 'lanczos', the main lobe of a sinc that is zero one tap beyond the ends, whose transition is
        what the taps allow, whatever the `width`.

    Returns:
      The taps, symmetric, float32, or float64 where JAX has it.

    Raises:
      ValueError: for values out of range.
      TypeError: for values that are not numbers.

    Example:
      >>> [round(float(tap), 3) for tap in lowpass(filter_size=4, cutoff=0.25, width=0.3)]
      [0.125, 0.375, 0.375, 0.125]

    References:
      Karras et al. 2021, arXiv:2106.12423, appendix C; Duchon 1979, "Lanczos filtering in one and two dimensions".
      `scipy.signal.firwin(filter_size, cutoff, width=width, fs=1)` is 'kaiser'.
    """
    who = "lowpass"
    geo.choice(who, "window", window, get_args(Window))
    size = geo.positive_int(who, "filter_size", filter_size)
    for name, value in (("cutoff", cutoff), ("width", width)):
        geo.positive(who, name, value)
    if size > LONGEST or cutoff >= 0.5:
        raise ValueError(
            f"{who}: filter_size must be at most {LONGEST} and cutoff below 1/2; got filter_size={size}, "
            f"cutoff={cutoff!r}. Use a shorter filter, or cycles per sample."
        )
    return jnp.asarray(_taps(size, cutoff, width, window))


def filtered_activation(
    x: ArrayLike,
    scale: Sequence[int],
    *,
    activation: Callable[[jax.Array], jax.Array],
    support: int = 6,
    window: Window = "kaiser",
    padding_mode: PaddingMode = "replicate",
) -> jax.Array:
    """Enlarges, applies a nonlinearity to each pixel, filters and shrinks back: x to the same shape.

    A nonlinearity makes frequencies that the grid cannot hold, and that fold back as aliases. On a grid `scale` times
    finer most of them fit, and the second filter removes them. Both filters have `support · s` taps, the cutoff 1/(2s)
    and 51 dB of attenuation at `support = 6`; the second is the adjoint of the first, so nothing moves.

    Args:
      x: floating or complex, channels last; any number of leading batch axes.
      scale: s >= 1, fine pixels per pixel, one factor per spatial axis; fixes the rank.
      activation: maps every number on its own, such as `jax.nn.silu`.
      support: pixels of x under the filter, >= 2.
      window: of the filters, as in `lowpass`.
      padding_mode: pixels beyond the border, 'zeros', 'circular', 'reflect' or 'replicate'.

    Returns:
      The images, dtype kept; half precision calculates in float32.

    Raises:
      ValueError: for values out of range, or an image too small for 'reflect'.
      TypeError: for integer images, a scale that is not a sequence of integers, or an activation that is no function.

    Example:
      >>> filtered_activation(jnp.ones((4, 1)), (2,), activation=jax.nn.relu).round(4)[:, 0]
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Karras et al. 2021, arXiv:2106.12423; Lee et al. 2022, arXiv:2206.04658.
    """
    who = "filtered_activation"
    image, factors = image_and_factors(who, x, "scale", scale)
    check_inexact(who, image)
    check_design(who, factors, activation, support, window, padding_mode)
    enlarged_shape(who, image.shape, factors)
    first = image.ndim - 1 - len(factors)
    reach = tuple(((support + 1) // 2 + 1,) * 2 for _ in factors)
    boundary.check(who, image.shape[first:-1], reach, padding_mode)
    options = {"factors": factors, "support": support, "window": window, "mode": padding_mode}

    def run(x: jax.Array) -> jax.Array:
        return _down(activation(_up(widened(x), **options)), **options).astype(x.dtype)

    return sharding.placed(run, image, shape=image.shape)


def check_design(
    who: str, factors: tuple[int, ...], activation: object, support: int, window: str, mode: str
) -> None:
    """Raises for options that `filtered_activation` refuses."""
    geo.choice(who, "window", window, get_args(Window))
    geo.choice(who, "padding_mode", mode, geo.PADDING_MODES)
    geo.ints(who, "support", (support,), minimum=2)
    if max(factors) * support > LONGEST:
        raise ValueError(
            f"{who}: support times scale must be at most {LONGEST} taps; got support={support}, scale={factors}. "
            "Use less support."
        )
    if not callable(activation):
        raise TypeError(f"{who}: activation must be a function of an array; got {activation!r}.")


def _taps(size: int, cutoff: float, width: float, window: str) -> np.ndarray:
    t = np.arange(size) - (size - 1) / 2
    decibels = 2.285 * (size - 1) * 2 * np.pi * width + 7.95
    beta = 0.5842 * max(decibels - 21, 0) ** 0.4 + 0.07886 * max(decibels - 21, 0)
    beta = 0.1102 * (decibels - 8.7) if decibels > 50 else beta
    shape = np.kaiser(size, beta) if window == "kaiser" else np.sinc(2 * t / (size + 1))
    taps: np.ndarray = np.sinc(2 * cutoff * t) * shape
    return taps / taps.sum()


def _axis_taps(s: int, support: int, window: str) -> np.ndarray:
    return _taps(support * s, 0.5 / s, 6 / 11 / s, window)  # BigVGAN's 51 dB at s = 2


@partial(jax.jit, static_argnames=("factors", "support", "window", "mode"))
def _up(
    x: jax.Array, factors: tuple[int, ...], support: int, window: str, mode: PaddingMode
) -> jax.Array:
    """Output `s·i + t − low` gets s times tap t of input i, for every i beyond the border, too."""
    for axis, s in enumerate(factors, start=x.ndim - 1 - len(factors)):
        if s == 1:
            continue
        taps, low = s * _axis_taps(s, support, window), (support - 1) * s // 2
        n, reach = x.shape[axis], support // 2 + 1
        y = _padded(x, axis, len(factors), reach, mode)
        phases = []
        for p in range(s):
            q, r = divmod(p + low, s)  # output s·m + p reads inputs m + q − j with tap s·j + r
            start = reach + q - support + 1
            part = jax.lax.slice_in_dim(y, start, start + n + support - 1, axis=axis)
            phases.append(filtered(part, axis, taps[r::s][::-1].tolist()))
        x = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], n * s, *x.shape[axis + 1 :])
    return x


@partial(jax.jit, static_argnames=("factors", "support", "window", "mode"))
def _down(
    x: jax.Array, factors: tuple[int, ...], support: int, window: str, mode: PaddingMode
) -> jax.Array:
    for axis, s in enumerate(factors, start=x.ndim - 1 - len(factors)):
        if s == 1:
            continue
        taps, low = _axis_taps(s, support, window), (support - 1) * s // 2
        n, reach = x.shape[axis] // s, support * s
        y = _padded(x, axis, len(factors), reach, mode)
        start = reach - low  # output i reads fine pixels s·i + t − low
        y = jax.lax.slice_in_dim(y, start, start + s * (n - 1) + len(taps), axis=axis)
        x = filtered(y, axis, taps.tolist(), s)
    return x


def _padded(x: jax.Array, axis: int, rank: int, reach: int, mode: PaddingMode) -> jax.Array:
    first = x.ndim - 1 - rank
    return boundary.pad(
        x, tuple((reach, reach) if first + i == axis else (0, 0) for i in range(rank)), mode
    )
