"""The tones that upsamplers add to sound, before any training.

Three layers double a signal each, as in a small decoder of sound. What is constant in a feature comes out with the
period of the stride: tones at multiples of half, a quarter and an eighth of the sampling rate, which replicate those of
the layers before. Biases and the first ReLU are what makes features constant on average; silence has nothing else
(Pons et al. 2021, arXiv:2010.14356).
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.fields import interior
from experiments.plugins import Name
from experiments.training import Arrays, Measures, Scalars
from experiments.upsamplers import Upsampler, upsampler, wrong
from tconvjax.metrics import phase_mean_fraction

SIGNALS = 16
LENGTH = 128  # samples of the input
LAYERS = 3
MARGIN = 16  # samples of the input whose results see the border
PERIODS = (2, 4, 8)  # samples of the output
SURROUNDINGS = 24  # bins on both sides of a tone
SHORTEST = 2  # bins from a tone on, which the window smears
METRICS = (
    *(f"tones_in_noise_{period}" for period in PERIODS),
    "tones_in_silence",
    "tones_of_constants",
    *(f"tone_db_{period}" for period in PERIODS),
)


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    upsampler: Upsampler | Name = "conv_transpose"
    kernel_size: int = field(default=4, metadata={"minimum": 1})
    biases: bool = True  # drawn as in PyTorch, else 0
    relus: Literal["both", "second", "neither"] = "both"  # between the layers
    features: int = field(default=32, metadata={"minimum": 1})

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        reason = wrong(self.upsampler, self.features, self.kernel_size, 2, 1)
        return [f"upsampler: {reason}"] if reason else []


class Decoder(nnx.Module):
    """Signals `(batch, n, features)` to `(batch, 8n, features)`."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        n, k = options.features, (options.kernel_size,)
        self.layers = nnx.List(
            upsampler(options.upsampler, n, n, k, (2,), rngs=rngs) for _ in range(LAYERS)
        )
        self.relus = {"both": (True, True), "second": (False, True), "neither": (False, False)}[
            options.relus
        ]
        if options.biases:
            _draw_biases(self, n * options.kernel_size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the signals without their ends."""
        first, *others = self.layers
        x = first(x)
        for layer, relu in zip(others, self.relus, strict=True):
            x = layer(nnx.relu(x) if relu else x)
        return interior(x, MARGIN * 2**LAYERS, 1)


def _draw_biases(module: nnx.Module, fan_in: int, rngs: nnx.Rngs) -> None:
    """Draws all biases as PyTorch does, ±1 / sqrt(fan-in); Flax begins with 0."""
    state = nnx.state(module, nnx.Param)
    for path, param in nnx.to_flat_state(state):
        if path[-1] == "bias":
            limit = fan_in**-0.5
            shape = param[...].shape
            param[...] = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
    nnx.update(module, state)


def measure(options: Options, key: jax.Array) -> tuple[Scalars, Arrays]:
    """Returns the metrics of one variant, and what pictures need."""
    decoder = Decoder(options, nnx.Rngs(jax.random.fold_in(key, 0)))
    shape = (SIGNALS, LENGTH, options.features)
    noise = decoder(jax.random.normal(jax.random.fold_in(key, 1), shape))
    silence = decoder(jnp.zeros((1, *shape[1:])))
    ones = decoder(jnp.ones((1, *shape[1:])))
    shares = [phase_mean_fraction(noise, (period,)).mean() for period in PERIODS]
    # Harmonics nest: what repeats with a period and not with half of it.
    alone = [shares[0], *(wide - narrow for narrow, wide in pairwise(shares))]
    power = spectrum(noise)
    scalars = {
        **{f"tones_in_noise_{p}": share for p, share in zip(PERIODS, alone, strict=True)},
        "tones_in_silence": phase_mean_fraction(silence, PERIODS[-1:]).mean(),
        "tones_of_constants": phase_mean_fraction(ones, PERIODS[-1:]).mean(),
        **{f"tone_db_{p}": tone(power, p) for p in PERIODS},
    }
    return scalars, {"power": power}


def spectrum(x: jax.Array) -> jax.Array:
    """Returns the mean power of signals by frequency, 0 to 1/2 cycle per sample, under a Hann window."""
    x = x - x.mean(1, keepdims=True)
    window = jnp.hanning(x.shape[1])[None, :, None]
    return jnp.mean(jnp.abs(jnp.fft.rfft(x * window, axis=1)) ** 2, (0, 2))


def tone(power: jax.Array, period: int) -> jax.Array:
    """Returns how far the tones of a period that no smaller one has stand above what is around, in dB; mean of them."""
    n = 2 * (len(power) - 1)
    levels = []
    for harmonic in range(1, period // 2 + 1, 2):
        place = harmonic * n // period
        around = [i for i in range(SHORTEST, SURROUNDINGS) for i in (place - i, place + i)]
        around = [i for i in around if i < len(power)]
        floor = jnp.median(power[jnp.array(around)])
        levels.append(10 * jnp.log10(power[place] / floor))
    return jnp.mean(jnp.stack(levels))


DOTS = {
    "tones_in_noise_2": "share of tones at 1/2 of the sampling rate, of noise",
    "tones_in_noise_8": "share of tones at 1/8 and 3/8, of noise",
    "tones_in_silence": "share of tones, of silence",
    "tone_db_8": "tones at 1/8 and 3/8 above what is around, dB",
}
KIND = Measures(
    options=Options,
    shared=frozenset({"features"}),
    metrics=METRICS,
    curves=DOTS,
    measure=measure,
)
