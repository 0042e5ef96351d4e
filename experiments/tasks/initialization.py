"""What upsamplers leave in their images before any training: the table of the family.

A constant image shows it best: what a layer paints on it with the period of its stride is pattern, all of it. With
independent random weights the pattern holds `1 − 1 / Πs` of the energy, whatever the kernel size; with weights whose
phase gains are equal it holds nothing. The share is measured in images, as one of energies added over constants,
channels and axes, and compared with the law; on random images the metrics of trained models are measured beside it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.fields import interior, power_law
from experiments.plugins import Name, is_name
from experiments.training import Arrays, Measures, Scalars
from experiments.upsamplers import Upsampler, upsampler, wrong
from tconvjax import max_pool, pixel_unshuffle
from tconvjax.analysis import tap_counts
from tconvjax.metrics import phase_mean_fraction

RANKS = (1, 2, 3)
SCALES = (2, 3, 4)
CONSTANTS = {
    1: 64,
    2: 64,
    3: 8,
}  # images per draw of weights; in space there are more harmonics to average over
SMALL = {1: 8, 2: 8, 3: 4}  # pixels along each axis of a constant image
SIZE = 48  # of a random one
MARGIN = 12  # pixels of an enlarged random image that see its border
SHARES = tuple(f"harmonic_share_{d}d_x{s}" for d in RANKS for s in SCALES)
METRICS = (
    *SHARES,
    "deviation_from_law",
    "phase_mean_fraction",
    "high_frequency_share",
    "variance",
    "phase_variance_ratio",
)
# Weights alone do not decide what these make of constants.
UNPREDICTED = ("pixel_conv_transpose", "unpool_conv")
FLAT = (
    "conv_transpose_balanced_init", "conv_transpose_balanced", "conv_transpose_hold_0", "conv_transpose_hold_1",
    "conv_transpose_hold_2", "resize_conv", "resize_conv_linear", "resize_conv_cubic", "resize_conv_binomial",
    "resize_conv_fourier", "conv_binomial", "subpixel_conv_icnr", "bilinear_additive_conv", "carafe_conv",
    "dysample_conv",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    upsampler: Literal[Upsampler, "unpool_conv"] | Name = "conv_transpose"
    kernel_size: int = field(
        default=3, metadata={"minimum": 1}
    )  # of the layer with weights, along each axis
    features: int = field(default=64, metadata={"minimum": 1})  # of input and result

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        reason = wrong(self.upsampler, self.features, self.kernel_size, 2, 2)
        return [f"upsampler: {reason}"] if reason else []


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics of scales that an upsampler does not know, and the law where there is none."""
    missing = {
        f"harmonic_share_{d}d_x{s}" for d in RANKS for s in SCALES if not known(options, d, s)
    }
    return frozenset(missing if predicted(options) else missing | {"deviation_from_law"})


def predicted(options: Options) -> bool:
    """Whether there is a law for what an upsampler makes of constants."""
    return options.upsampler not in UNPREDICTED and not is_name(options.upsampler)


def known(options: Options, rank: int, scale: int) -> bool:
    """Whether an upsampler is defined for this rank and scale."""
    return not wrong(options.upsampler, options.features, options.kernel_size, scale, rank)


def predicted_share(options: Options, rank: int, scale: int) -> float:
    """Returns the share of the energy on stride harmonics that a constant has, expected over weights.

    Phases p and q of one axis share C_pq weights: independent weights only the n_p of C_pp, a nearest upsampling
    all. The energy of all phases is expected to be ΣC_pp, that of their mean ΣΣC_pq / s, along each axis.
    """
    if options.upsampler in FLAT:
        return 0.0
    own = tap_counts((options.kernel_size,), (scale,))
    common = np.diag(own)
    if options.upsampler == "conv_transpose_icnr":
        common = np.minimum.outer(own, own)  # copies of the cells that both phases reach
    return float(1 - (common.sum() / (scale * own.sum())) ** rank)


def measure(options: Options, key: jax.Array) -> tuple[Scalars, Arrays]:
    """Returns the metrics of one variant, and what pictures need."""
    make = partial(upsampler, options.upsampler, options.features, options.features)

    def build(key: jax.Array, rank: int, scale: int) -> Any:
        shape = (options.kernel_size,) * rank, (scale,) * rank
        module = make(*shape, padding_mode="circular", rngs=nnx.Rngs(key))
        if options.upsampler != "unpool_conv":
            return module

        def unpool(x: jax.Array) -> jax.Array:
            larger = (len(x), *(scale * n for n in x.shape[1:-1]), x.shape[-1])
            noise = jax.random.normal(key, larger)
            return module(x, max_pool(noise, (scale,) * rank).indices)

        return unpool

    scalars = {}
    errors = []
    for d in RANKS:
        for s in SCALES:
            if not known(options, d, s):
                continue
            module = build(jax.random.fold_in(key, 10 * d + s), d, s)
            share = share_on_constants(module, jax.random.fold_in(key, d), options.features, d, s)
            scalars[f"harmonic_share_{d}d_x{s}"] = share
            errors.append(share - predicted_share(options, d, s))
    if predicted(options):
        scalars["deviation_from_law"] = jnp.sqrt(jnp.mean(jnp.stack(errors) ** 2))
    module = build(jax.random.fold_in(key, 22), 2, 2)
    more, image = on_random_images(module, key, options.features)
    return scalars | more, {"panel": image}


def share_on_constants(
    module: Any, key: jax.Array, features: int, rank: int, scale: int, margin: int = 0
) -> jax.Array:
    """Returns the energy of constants on stride harmonics over all of it, added over images and channels.

    Args:
      module: enlarges images by `scale`.
      key: of the constants, one per image and channel.
      features: channels of the input.
      rank: spatial axes.
      scale: along all of them.
      margin: pixels of the input that see zeros beyond the border.
    """
    values = jax.random.normal(key, (CONSTANTS[rank], *(1,) * rank, features))
    size = SMALL[rank] + 2 * margin
    y = module(jnp.broadcast_to(values, (len(values), *(size,) * rank, features)))
    y = interior(y, margin * scale, rank)
    phases = pixel_unshuffle(y, (scale,) * rank).mean(tuple(range(1, rank + 1)))
    phases = phases.reshape(-1, scale**rank)  # by image and channel
    return phases.var(1).mean() / (phases**2).mean()


def on_random_images(module: Any, key: jax.Array, features: int) -> tuple[Scalars, jax.Array]:
    """Returns metrics of doubled images, away from the border, and one of them.

    Fields of amplitude 1 / frequency, negative values cut off as in a network, show patterns and too much detail; white
    ones show the variance, of all pixels and by phase.
    """
    shape = (4, SIZE, SIZE, features)
    away = partial(interior, margin=MARGIN, rank=2)
    smooth = away(module(jax.nn.relu(power_law(jax.random.fold_in(key, 0), shape))))
    white = away(module(power_law(jax.random.fold_in(key, 1), shape, exponent=0.0)))
    by_phase = pixel_unshuffle(white, (2, 2)).reshape(-1, features, 4).var((0, 1))
    scalars = {
        "phase_mean_fraction": phase_mean_fraction(smooth, 2).mean(),
        "high_frequency_share": high_frequency_share(smooth),
        "variance": white.var(),
        "phase_variance_ratio": by_phase.max() / by_phase.min(),
    }
    return scalars, smooth[0, :48, :48, 0]


def high_frequency_share(images: jax.Array) -> jax.Array:
    """Returns the part of the power above 3/8 cycles per pixel along either axis, under a Hann window."""
    n = images.shape[1]
    window = jnp.outer(jnp.hanning(n), jnp.hanning(n))[None, ..., None]
    power = jnp.abs(jnp.fft.fft2(centered(images) * window, axes=(1, 2))) ** 2
    high = jnp.abs(jnp.fft.fftfreq(n)) > 0.375
    return (power.sum((0, 3)) * (high[:, None] | high)).sum() / power.sum()


def centered(images: jax.Array) -> jax.Array:
    """Removes the mean of every image and channel."""
    return images - images.mean((1, 2), keepdims=True)


DOTS = {
    "harmonic_share_2d_x2": "share of a constant's energy on stride harmonics, images x2",
    "phase_mean_fraction": "phase-mean fraction, images x2",
    "high_frequency_share": "share of the power above 3/8 cycles per pixel",
    "phase_variance_ratio": "largest over smallest variance of a phase, white images",
}
KIND = Measures(
    options=Options,
    shared=frozenset({"features"}),
    metrics=METRICS,
    curves=DOTS,
    measure=measure,
    panels="One channel of a smooth image, doubled before any training",
    lacking=lacking,
)
