"""Whether images move with what they are made from.

An upsampler of factor s moves its image by s pixels when its input moves by one, exactly. By one pixel when the input
moves by 1/s of a pixel it can only if it leaves no copies of the spectrum: for a linear layer and an input without
frequencies beyond 1/2 cycle per pixel, the error is `Σ_q 4 sin²(π q / s) ‖Y_q‖²` over the copies Y_q, the images of
the spectrum around multiples q of the stride harmonic. With levels that halve and double, only shifts by multiples of
2^levels stay exact (Zhang 2019, arXiv:1904.11486; Karras et al. 2021, arXiv:2106.12423).
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.fields import periodic, power_law
from experiments.plugins import Name
from experiments.training import Arrays, Measures, Scalars
from experiments.upsamplers import Downsampler, Upsampler, downsampler, upsampler, wrong
from tconvjax.analysis import equivariance_error

SIZE = 64  # pixels along each axis of the input
MARGIN = 16
HIGHEST = 60  # dB; beyond it images are the same
SHIFTS = (1, 2, 4, 8)  # pixels of the image
METRICS = (
    *(f"shift_error_{t}" for t in SHIFTS),
    "fractional_shift_db",
    "predicted_fractional_shift_db",
    "deviation_from_identity_db",
)
# The identity does not hold for layers that are not linear, and an ideal layer has no error.
NO_IDENTITY = ("carafe_conv", "dysample_conv", "resize_conv_fourier")


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    upsampler: Upsampler | Name = "resize_conv"
    kernel_size: int = field(default=1, metadata={"minimum": 1})  # of layers with weights
    downsampler: Downsampler = "average"  # of levels
    levels: int = field(default=0, metadata={"minimum": 0, "maximum": 3})  # 0: the upsampler alone
    features: int = field(default=16, metadata={"minimum": 4})

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        reason = wrong(self.upsampler, self.features, self.kernel_size, 2, 2)
        return [f"upsampler: {reason}"] if reason else []


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics that a variant has not."""
    of_identity = {"predicted_fractional_shift_db", "deviation_from_identity_db"}
    if options.levels:
        return frozenset(of_identity | {"fractional_shift_db"})
    return frozenset(of_identity if options.upsampler in NO_IDENTITY else ())


class Hourglass(nnx.Module):
    """Levels that halve and double, with what is halved added to what is doubled."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        n, k = options.features, (options.kernel_size,) * 2
        levels = range(options.levels)
        self.down = nnx.List(downsampler(options.downsampler, n, k, (2, 2), rngs) for _ in levels)
        self.up = nnx.List(upsampler(options.upsampler, n, n, k, (2, 2), rngs=rngs) for _ in levels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns images of the same shape."""
        skipped = []
        for layer in self.down:
            skipped.append(x)
            x = nnx.relu(layer(x))
        for layer in self.up:
            x = layer(x) + skipped.pop()
        return x


def measure(options: Options, key: jax.Array) -> tuple[Scalars, Arrays]:
    """Returns the metrics of one variant, and what pictures need."""
    n = options.features
    rngs = nnx.Rngs(jax.random.fold_in(key, 0))
    # 1 / frequency, and nothing at 1/2 cycle per pixel.
    x = power_law(jax.random.fold_in(key, 1), (2, SIZE, SIZE, n))
    x = without_nyquist(x)
    if options.levels:
        network = periodic(Hourglass(options, rngs), 2, MARGIN)
        return {f"shift_error_{t}": equivariance_error(network, x, (t, t)) for t in SHIFTS}, {}
    module = upsampler(options.upsampler, n, n, (options.kernel_size,) * 2, (2, 2), rngs=rngs)
    if options.upsampler != "resize_conv_fourier":  # which is periodic itself
        module = periodic(module, 2, MARGIN)
    error = partial(equivariance_error, module, x, strides=2)  # of shifts in pixels of the image
    scalars = {f"shift_error_{t}": error((2 * t, 2 * t)) for t in SHIFTS}
    found = decibel(error((1, 0)))
    scalars["fractional_shift_db"] = found
    if options.upsampler not in NO_IDENTITY:
        y = module(x)
        predicted = decibel(jnp.sqrt(predicted_error(y) / jnp.sum(y**2)))
        scalars["predicted_fractional_shift_db"] = predicted
        scalars["deviation_from_identity_db"] = jnp.abs(found - predicted)
    return scalars, {}


def predicted_error(y: jax.Array) -> jax.Array:
    """Returns the energy of the error of doubled images that should have moved by one pixel along the first axis.

    Waves beyond 1/4 cycle per pixel are copies, q = 1; each goes the other way round by half a turn.
    """
    power = jnp.abs(jnp.fft.fft(y, axis=1)) ** 2 / y.shape[1]
    frequency = jnp.abs(jnp.fft.fftfreq(y.shape[1]))
    copies = (frequency > 0.25)[None, :, None, None]
    return 4 * jnp.sum(power * copies)


def without_nyquist(x: jax.Array) -> jax.Array:
    """Removes the waves of 1/2 cycle per pixel along the first axis."""
    sign = (-1.0) ** jnp.arange(x.shape[1])[None, :, None, None]
    return x - sign * jnp.mean(sign * x, axis=1, keepdims=True)


def decibel(error: jax.Array) -> jax.Array:
    """Returns `−20 log10(error)` of a relative error, at most `HIGHEST`."""
    return -20 * jnp.log10(jnp.maximum(error, 10 ** (-HIGHEST / 20)))


DOTS = {
    "shift_error_1": "relative error after a shift by one pixel",
    "shift_error_4": "relative error after a shift by four pixels",
    "fractional_shift_db": "image over error after a shift by half a pixel, dB",
}
KIND = Measures(
    options=Options,
    shared=frozenset({"features"}),
    metrics=METRICS,
    curves=DOTS,
    measure=measure,
    lacking=lacking,
)
