"""Distances of images from their references, pixel by pixel and window by window."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tconvjax import _geometry as geo
from tconvjax._ops.filters import upfirdn
from tconvjax.metrics import _arrays as arrays

WINDOW, DEVIATION = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(images: ArrayLike, reference: ArrayLike, data_range: float = 1.0) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each image in dB: `10·log10(data_range² / mean squared error)`.

    Blind to structure: a shift of brightness, noise and a checkerboard of equal energy score the same.

    Args:
      images: `(*batch, height, width, channels)`; the mean is over pixels and channels.
      reference: target images of the same shape.
      data_range: difference of the highest and lowest possible value, > 0: 1 for images in [0, 1], 255 for bytes.

    Returns:
      One value per image, shape `batch`; infinite for equal images; differentiable elsewhere.

    Raises:
      ValueError, TypeError: for shapes that differ, or integer images without their range.

    Example:
      >>> x = jnp.zeros((2, 8, 8, 3))
      >>> psnr(x, x + 0.1)
      Array([20., 20.], dtype=float32)

    References:
      The name and form in use since the coding standards of the 1980s, such as ITU-T H.261.
    """
    x, y = _compared("psnr", images, reference, data_range)
    error = jnp.mean((x - y) ** 2, axis=(-3, -2, -1))
    return 10 * jnp.log10(data_range**2 / error)


def ssim(images: ArrayLike, reference: ArrayLike, data_range: float = 1.0) -> jax.Array:
    """Returns the structural similarity of each image to its reference, in [-1, 1].

    `(2 m_x m_y + C1)(2 c_xy + C2) / ((m_x² + m_y² + C1)(v_x + v_y + C2))` of means, variances and the covariance under
    a Gaussian window of 11 pixels and deviation 1.5; `C1 = (0.01 data_range)²`, `C2 = (0.03 data_range)²`. Mean over
    all windows inside the image and over channels. Blind to a grid that is weak beside the contrast of its window.

    Args:
      images: `(*batch, height, width, channels)`, at least 11 pixels along both axes.
      reference: target images of the same shape.
      data_range: as in `psnr`.

    Returns:
      One value per image, shape `batch`; 1 for equal images; differentiable.

    Raises:
      ValueError, TypeError: as `psnr`, and for images smaller than the window.

    Example:
      >>> x = jax.random.uniform(jax.random.key(0), (16, 16, 1))
      >>> print(f"{ssim(x, x):.2f} {ssim(x, 1 - x):.2f} {ssim(x, 0.9 * x):.2f}")
      1.00 -0.98 0.99

    References:
      Wang, Bovik, Sheikh & Simoncelli 2004, doi:10.1109/TIP.2003.819861, with its released code's valid windows.
    """
    x, y = _compared("ssim", images, reference, data_range)
    if min(x.shape[-3:-1]) < WINDOW:
        raise ValueError(
            f"ssim: images must be at least {WINDOW} pixels high and wide; got {x.shape[-3]} x {x.shape[-2]}. "
            "Use larger images, or psnr."
        )
    # Variances do not depend on the level; without the level, products of bright images lose fewer digits.
    level = y.mean((-3, -2), keepdims=True)
    u, v = x - level, y - level
    taps = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / DEVIATION) ** 2)
    window = jnp.asarray(taps / taps.sum(), x.dtype)
    moments = jnp.concatenate([u, v, u * u, v * v, u * v], -1)
    moments = upfirdn(upfirdn(moments, window[:, None]), window[None])
    u, v, uu, vv, uv = jnp.split(moments, 5, -1)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    x_mean, y_mean = u + level, v + level
    luminance = (2 * x_mean * y_mean + c1) / (x_mean**2 + y_mean**2 + c1)
    structure = (2 * (uv - u * v) + c2) / (uu - u**2 + vv - v**2 + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _compared(
    who: str, images: ArrayLike, reference: ArrayLike, data_range: float
) -> tuple[jax.Array, jax.Array]:
    """Returns images and reference as floating arrays of one shape and dtype, or raises if they differ."""
    x = arrays.real_images(who, images)
    y = arrays.real_images(who, reference, name="reference")
    if x.shape != y.shape:
        raise ValueError(
            f"{who}: images and reference must have the same shape; got {x.shape} and {y.shape}. Repeat or crop one."
        )
    geo.positive(who, "data_range", data_range)
    integers = [
        d for a in (images, reference) if jnp.issubdtype(d := jnp.result_type(a), jnp.integer)
    ]
    if integers and data_range == 1:
        raise ValueError(
            f"{who}: integer images need their range; got dtype {integers[0]} and data_range=1. "
            "Pass data_range=255 for bytes, or convert both to [0, 1]."
        )
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)
