"""What a network that reduces images sees of their pixels: the gradient with respect to its input, before any training.

The backward pass of a strided convolution is a transposed convolution, so with independent weights the energy of the
gradient at a phase of the input is proportional to the taps that see it: 4 : 2 : 2 : 1 with three taps and stride 2,
equal where the stride divides the kernel, 1 : 0 : 0 : 0 with one tap, as in the shortcuts of ResNet. Pooling by means
sees every pixel alike, pooling by maxima one of four, wherever it is (Odena et al. 2016, doi:10.23915/distill.00003,
"Artifacts in gradients"). What is optimized through such a gradient inherits its pattern, unless the image is moved by
a random number of pixels in each step.

A step ascends the gradient of one feature of a random network, from a grey image of little noise.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import fields
from experiments.training import Arrays, Scalars, Task, Trains, graph_of, traced
from experiments.upsamplers import Downsampler, downsampler
from tconvjax import metrics
from tconvjax import nnx as tnn
from tconvjax.analysis import gradient_coverage

SIZE = 48  # pixels along each axis of an image
IMAGES = 8  # optimized side by side
DRAWS = 16  # of weights, for the energies
METRICS = (
    "gradient_evenness",
    "deviation_from_coverage",
    "activation",
    "phase_mean_fraction",
    "band_contrast_diagonal",
    "band_contrast_horizontal",
)
CURVES = {
    "activation": "activation",
    "phase_mean_fraction": "phase-mean fraction, period 2",
    "band_contrast_diagonal": "diagonal band contrast at period 2, dB",
    "band_contrast_horizontal": "horizontal band contrast at period 2, dB",
}


@dataclass(frozen=True)
class Options:
    """What a variant may change."""

    downsampler: Downsampler = "conv"
    kernel_size: int = field(default=3, metadata={"minimum": 1})  # of 'conv' and 'conv_hold'
    levels: int = field(default=2, metadata={"minimum": 1, "maximum": 3})  # that halve
    features: int = field(default=32, metadata={"minimum": 1})
    # Pixels by which the image is moved at most in each step, along both axes.
    jitter: int = field(default=0, metadata={"minimum": 0})
    learning_rate: float = field(default=0.02, metadata=traced(minimum=0.0))


class State(NamedTuple):
    """Images that are being optimized, and the random network that they excite."""

    network: Any
    images: jax.Array
    optimizer: optax.OptState


class Network(nnx.Module):
    """Grey images `(batch, h, w, 1)` to features; every level convolves and halves."""

    def __init__(self, options: Options, rngs: nnx.Rngs) -> None:
        n, k = options.features, (options.kernel_size,) * 2
        self.first = tnn.Conv(1, n, (1, 1), rngs=rngs)
        self.down = nnx.List(
            downsampler(options.downsampler, n, k, (2, 2), rngs) for _ in range(options.levels)
        )
        # Pools mix no features; a convolution of one tap changes no coverage.
        self.mix = nnx.List(tnn.Conv(n, n, (1, 1), rngs=rngs) for _ in range(options.levels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features `(batch, h / 2^levels, w / 2^levels, features)`."""
        x = self.first(x)
        for down, mix in zip(self.down, self.mix, strict=True):
            x = nnx.relu(mix(down(x)))
        return x


def make_task(options: Options, *_: Any) -> Task:
    """Returns the ascent of one variant."""
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale(options.learning_rate))  # ascends
    graph = graph_of(partial(Network, options))
    build = lambda key: nnx.to_pure_dict(nnx.state(Network(options, nnx.Rngs(key))))

    def init(key: jax.Array) -> State:
        images = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), (IMAGES, SIZE, SIZE, 1))
        return State(build(jax.random.fold_in(key, 0)), images, optimizer.init(images))

    def activation(images: jax.Array, network: Any) -> jax.Array:
        # Image i excites feature i.
        found = nnx.merge(graph, network)(jnp.clip(images, -1, 1)).mean((1, 2))
        return jnp.trace(found[:, :IMAGES])

    def step(state: State, key: jax.Array) -> tuple[State, Scalars]:
        by = jax.random.randint(key, (2,), 0, options.jitter + 1)
        moved = jnp.roll(state.images, by, (1, 2))
        value, gradient = jax.value_and_grad(activation)(moved, state.network)
        gradient = jnp.roll(gradient, -by, (1, 2))
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        images = jnp.clip(state.images + updates, -1, 1)
        return State(state.network, images, optimizer_state), {"ascended": value}

    def evaluate(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:
        energies = energy_by_phase(options, key)
        contrast = metrics.band_contrast(state.images, 2)
        scalars = {
            "gradient_evenness": energies.min() / energies.max(),
            "activation": activation(state.images, state.network),
            "phase_mean_fraction": metrics.phase_mean_fraction(state.images, 2).mean(),
            "band_contrast_diagonal": contrast.diagonal,
            "band_contrast_horizontal": contrast.horizontal,
        }
        if options.downsampler == "conv":
            shares = gradient_coverage((options.kernel_size,) * 2, (2, 2))
            # Padding decides which phase is the first: compared in order of size.
            expected = jnp.sort(jnp.asarray(shares, energies.dtype).ravel())
            found = jnp.sort(energies / energies.sum())
            scalars["deviation_from_coverage"] = jnp.abs(found - expected).max() * 4
        return scalars, {"panel": state.images[0, ..., 0]}

    return Task(init, step, evaluate)


def energy_by_phase(options: Options, key: jax.Array) -> jax.Array:
    """Returns the energy of one level's gradient at the four phases of its input, mean over draws of the weights."""
    n, k = options.features, (options.kernel_size,) * 2
    shape = (2, 24, 24, n)

    def draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        down = downsampler(options.downsampler, n, k, (2, 2), nnx.Rngs(keys[0]))
        y, pullback = jax.vjp(down, jax.random.normal(keys[1], shape))
        (gradient,) = pullback(jax.random.normal(keys[2], y.shape))
        return fields.energy_by_phase(gradient, margin=6).ravel()

    return jax.lax.map(draw, jax.random.split(key, DRAWS)).mean(0)


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics that a variant has not."""
    return frozenset(() if options.downsampler == "conv" else {"deviation_from_coverage"})


KIND = Trains(
    options=Options,
    shared=frozenset({"features"}),
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    panels="An image that excites one feature of the network",
    lacking=lacking,
)
