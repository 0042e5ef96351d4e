"""How fast the copies of a wave fade as it gets longer, behind a transposed convolution and holds of rising order.

A wave of λ input pixels comes out with copies around the stride harmonics. Behind a kernel of zero order L their
amplitude falls as λ^−L, and each convolution with s ones adds 1 to L: one average turns a pattern that never fades into
one that fades as 1 / λ.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.fields import periodic
from experiments.training import Arrays, Measures, Scalars
from tconvjax import nnx as tnn

WAVELENGTHS = (8, 16, 32, 64, 128)  # input pixels
LENGTH = 256  # of a signal
MARGIN = 16
METRICS = ("order", *(f"copies_db_{n}" for n in WAVELENGTHS))


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    holds: int = field(default=0, metadata={"minimum": 0, "maximum": 4})  # convolutions with s ones
    scale: int = field(default=2, metadata={"minimum": 2})
    kernel_size: int = field(default=4, metadata={"minimum": 1})
    features: int = field(default=64, metadata={"minimum": 1})


def measure(options: Options, key: jax.Array) -> tuple[Scalars, Arrays]:
    """Returns the metrics of one variant, and what pictures need."""
    n, scale = options.features, (options.scale,)
    k = (options.kernel_size,)
    layers: list[Any] = [tnn.ConvTranspose(n, n, k, scale, rngs=nnx.Rngs(key))]
    if options.holds:
        layers.append(tnn.Hold(scale, order=options.holds - 1))
    enlarge = periodic(nnx.Sequential(*layers), 1, MARGIN)
    log_ratio = jnp.stack([jnp.log(copies(enlarge, n, wave, options)) for wave in WAVELENGTHS])
    log_length = jnp.log(jnp.array(WAVELENGTHS, log_ratio.dtype))
    rate = jnp.polyfit(log_length, log_ratio, 1)[0]
    decibel = 20 / jnp.log(10) * log_ratio
    named = {f"copies_db_{n}": v for n, v in zip(WAVELENGTHS, decibel, strict=True)}
    return {"order": -rate, **named}, {}


def copies(enlarge: Any, features: int, wavelength: int, options: Options) -> jax.Array:
    """Returns the amplitude of all copies of a wave over its own, energies added over channels."""
    wave = jnp.cos(2 * jnp.pi * jnp.arange(LENGTH) / wavelength)[None, :, None]
    # One channel at a time: all kernels count, none cancels another.
    y = enlarge(wave * jnp.eye(features)[:, None, :])
    power = (jnp.abs(jnp.fft.fft(y, axis=1)) ** 2).sum((0, 2))
    cycles = LENGTH // wavelength
    own = power[cycles] + power[-cycles]
    around = sum(
        power[q * LENGTH + cycles] + power[q * LENGTH - cycles] for q in range(1, options.scale)
    )
    return jnp.sqrt(around / own)


DOTS = {"order": "order", "copies_db_8": "copies of a wave of 8 pixels, dB"}
KIND = Measures(
    options=Options,
    shared=frozenset({"features"}),
    metrics=METRICS,
    curves=DOTS,
    measure=measure,
)
