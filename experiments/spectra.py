"""Spectra of sets of images."""

import jax
import jax.numpy as jnp


def mean_spectrum(images: jax.Array) -> jax.Array:
    """Mean power spectrum of a set, zero frequency in the middle, `(height, width)`; mean removed, no window."""
    x = images - images.mean((1, 2), keepdims=True)
    power = jnp.abs(jnp.fft.fft2(x, axes=(1, 2))) ** 2
    return jnp.fft.fftshift(power.mean((0, 3)))
