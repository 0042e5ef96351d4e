"""Small GANs on images whose generators differ in their upsampling layers alone.

The generators are Distill's: a dense layer to 4 x 4, then layers that double the image, each an upsampler of the family
with the same kernel size; a transposed convolution and a resize-convolution have the same number of parameters. The
discriminator is neutral, stride-1 convolutions and average pooling, whose gradients reach every pixel alike, or has
strided convolutions, whose gradients do not.

Every layer of a generator is measured along training: the share of a constant's energy that it puts on its stride
harmonics, and by how much the energy of its output, and that of the discriminator's gradient there, is larger at the
pixels that a transposed convolution paints with most taps than at those with fewest. Independent weights of kernel 3,
stride 2 begin with a ratio of 4, which training may strengthen, keep or remove.

Spectral regularization (Durall, Keuper & Keuper 2020, arXiv:2003.01826) compares mean power spectra of generated and
real images. The paper intends its gradient to reach the generator; the code released with it computes the spectra
outside of the graph, so that the term scales the loss and no more. Both are here, and the mean square of the difference
in dB, whose gradient is of equal size at all frequencies.

Loss: R3GAN, the relativistic pairing loss with zero-centered gradient penalties on real and generated images
(Huang et al. 2024, arXiv:2501.05441). Untuned, it collapsed in none of the runs of this project's demo, and its double
backward pass through every layer is what this library claims to make cheap.

Images are square, of 16, 32, .. 256 pixels, grey or in color. The features of quality metrics come from a classifier
trained in the run, or from random weights if the set has no labels: such distances order sets of one run, no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

from experiments import features
from experiments.data import Split
from experiments.data.table import Table, evenly, table_of
from experiments.fields import energy_by_phase
from experiments.meshes import along_data
from experiments.optimizers import Optimization, adam, averaged
from experiments.plugins import Name
from experiments.spectra import mean_spectrum
from experiments.tasks.initialization import share_on_constants
from experiments.training import Arrays, Data, Scalars, Task, Trains, graph_of, traced
from experiments.upsamplers import Upsampler, upsampler, wrong
from tconvjax import metrics
from tconvjax import nnx as tnn
from tconvjax.analysis import overlap_map

SIZES = (16, 32, 64, 128, 256)  # pixels of images; below, the band of period 4 has no surroundings
PERIODS = (2, 4)  # what the last two upsampling layers can leave
SHOWN = 16  # generated images kept for pictures at every evaluation
PROBED = 64  # generated images that measure layers
OF_LAYERS = ("harmonic_share", "imbalance", "gradient_imbalance")  # the last two in dB, null 0
LAYERS = len(SIZES) + 1  # of the largest generator
METRICS = (
    *(f"phase_mean_fraction_{period}" for period in PERIODS),
    "phase_mean_fraction_only_4",
    *(f"band_contrast_{o}_{p}" for p in PERIODS for o in ("horizontal", "vertical", "diagonal")),
    "frechet_classifier_distance",
    "kernel_classifier_distance",
    "log_spectral_distance",
    "detectability",
    *(f"layer_{i}_{name}" for i in range(1, LAYERS + 1) for name in OF_LAYERS),
)

CURVES = {
    "phase_mean_fraction_2": "phase-mean fraction, period 2",
    "phase_mean_fraction_4": "phase-mean fraction, period 4",
    "band_contrast_diagonal_2": "diagonal band contrast at period 2, dB",
    "frechet_classifier_distance": "Fréchet classifier distance",
    "log_spectral_distance": "log-spectral distance to real images, dB",
    **{
        f"layer_{i}_{name}": f"layer {i}: {title}"
        for name, title in (
            ("imbalance", "energy where most taps paint over where fewest do, dB"),
            ("gradient_imbalance", "the same of the discriminator's gradient, dB"),
        )
        for i in range(1, LAYERS + 1)
    },
}


@dataclass(frozen=True)
class Options(Optimization):
    """What a variant may change."""

    # From 4 pixels on, each doubles; one entry serves all.
    upsamplers: tuple[Upsampler | Name, ...] = ("resize_conv",)
    kernel_size: int = field(default=3, metadata={"minimum": 2})  # of every upsampling layer
    generator_features: tuple[int, ...] = field(
        default=(64, 32, 16), metadata={"minimum": 1}
    )  # inputs of the upsampling layers
    discriminator_features: tuple[int, ...] = field(
        default=(16, 32, 32), metadata={"minimum": 1}
    )  # each followed by a 2 x 2 mean
    discriminator: Literal["average", "conv"] = "average"  # or strided convolutions
    discriminator_kernel_size: int = field(default=3, metadata={"minimum": 1})
    spectral: Literal["none", "released", "intended", "decibel"] = (
        "none"  # regularization of spectra
    )
    spectral_weight: float = field(default=1.0, metadata=traced(minimum=0.0))
    latent: int = field(default=64, metadata={"minimum": 1})
    gamma: float = field(default=1.0, metadata=traced(minimum=0.0))  # weight of the penalties
    learning_rate: float = field(default=2e-3, metadata=traced(minimum=0.0))  # of both networks
    b1: float = field(default=0.0, metadata=traced(minimum=0.0, below=1.0))
    b2: float = field(default=0.9, metadata=traced(minimum=0.0, below=1.0))
    samples: int = field(
        default=512, metadata={"minimum": 2, "maximum": 1000}
    )  # generated per evaluation and seed

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        counts = self.counts
        if len(set(counts.values())) == 1:
            reasons = (
                wrong(name, features, self.kernel_size, 2, 2)
                for name, features in zip(self.kinds, self.generator_features, strict=True)
            )
            return [f"upsamplers: {one}" for one in dict.fromkeys(reasons) if one]
        got = ", ".join(f"{name} has {count}" for name, count in counts.items())
        return [f"upsamplers: expected as many entries as of features, one per doubling; {got}"]

    @property
    def counts(self) -> dict[str, int]:
        """How many doublings the entries of each option are for."""
        return {
            "upsamplers": len(self.kinds),
            "generator_features": len(self.generator_features),
            "discriminator_features": len(self.discriminator_features),
        }

    @property
    def kinds(self) -> tuple[Upsampler | Name, ...]:
        """The upsampler of every doubling."""
        once = len(self.upsamplers) == 1
        return self.upsamplers * len(self.generator_features) if once else self.upsamplers


class Generator(nnx.Module):
    """Latents `(batch, latent)` to images `(batch, size, size, channels)` in (-1, 1)."""

    def __init__(self, options: Options, channels: int, rngs: nnx.Rngs) -> None:
        first, *_ = widths = (*options.generator_features, channels)
        self.dense = nnx.Linear(options.latent, 4 * 4 * first, rngs=rngs)
        k = (options.kernel_size,) * 2
        self.layers = nnx.List(
            upsampler(kind, i, o, k, (2, 2), rngs=rngs)
            for kind, (i, o) in zip(options.kinds, pairwise(widths), strict=True)
        )

    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns one image per latent."""
        return self.trace(z, [0.0] * len(self.layers))[0]

    def trace(self, z: jax.Array, nudges: Sequence[Any]) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the images, and what the layers make, each with something added."""
        x = self.dense(z).reshape(len(z), 4, 4, -1)
        outputs = []
        for layer, nudge in zip(self.layers, nudges, strict=True):
            x = layer(nnx.leaky_relu(x, 0.2)) + nudge
            outputs.append(x)
        return jnp.tanh(x), outputs


class Discriminator(nnx.Module):
    """Images `(batch, size, size, channels)` to logits `(batch,)`."""

    def __init__(self, options: Options, channels: int, rngs: nnx.Rngs) -> None:
        widths = (channels, *options.discriminator_features)
        k, self.averages = (
            (options.discriminator_kernel_size,) * 2,
            options.discriminator == "average",
        )
        self.layers = nnx.List(
            tnn.Conv(i, o, k, 1 if self.averages else 2, rngs=rngs) for i, o in pairwise(widths)
        )
        self.dense = nnx.Linear(4 * 4 * widths[-1], 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns one logit per image."""
        for layer in self.layers:
            x = nnx.leaky_relu(layer(x), 0.2)
            x = halve(x) if self.averages else x
        return self.dense(x.reshape(len(x), -1))[:, 0]


class State(NamedTuple):
    """Everything that training changes."""

    generator: Any
    average: Any  # of the generator; itself without `ema`
    discriminator: Any
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState


class Setting(NamedTuple):
    """What all variants of a run share, a pytree."""

    images: Table  # for training
    extract: Partial  # images to features
    held_out: jax.Array
    real_features: jax.Array  # of held-out images
    rings: jax.Array  # mean power of training images, by frequency
    real: dict[
        str, float
    ]  # metrics of held-out images; distances between held-out and training images
    arrays: dict[str, np.ndarray]  # some held-out images and the spectrum of all, for pictures
    notes: dict[str, float]


def prepare(data: Split, options: Options, *, classifier_steps: int, seed: int) -> Setting:
    """Trains the feature network and measures the real images.

    Args:
      data: a set that passes `check`.
      options: of the variants; `samples` fixes the size of the real set.
      classifier_steps: training steps of the feature network.
      seed: of the feature network.
    """
    extract, accuracy = features.train_classifier(data, steps=classifier_steps, seed=seed)
    count = min(options.samples, len(data.test))
    # Every class in equal parts, whatever the count.
    held_out, as_many = (
        jnp.asarray(part.images(evenly(len(part), count))) for part in (data.test, data.train)
    )

    @jax.jit
    def measure(held_out: jax.Array, as_many: jax.Array) -> tuple[Scalars, Any]:
        real_features = extract(held_out)
        scalars = artifact_metrics(held_out) | quality_metrics(extract(as_many), real_features)
        scalars |= spectral_metrics(as_many, held_out)
        rings = metrics.radial_spectrum(as_many)
        return scalars, (real_features, rings, mean_spectrum(held_out))

    real, (real_features, rings, spectrum) = measure(held_out, as_many)
    return Setting(
        images=table_of(data.train),
        extract=extract,
        held_out=held_out,
        real_features=real_features,
        rings=rings,
        real={name: float(value) for name, value in real.items()},
        arrays={
            "samples": np.asarray(held_out[jnp.linspace(0, count - 1, SHOWN).astype(int)]),
            "spectrum": np.asarray(spectrum),
        },
        notes={"random_features": 1.0}
        if accuracy is None
        else {"feature_network_accuracy": accuracy},
    )


def check(data: Split, options: Options) -> list[str]:
    """Returns what is wrong with options for a set.

    Raises:
      ValueError: if no options go with it.
    """
    height, width, channels = data.train.shape
    if height != width or width not in SIZES or channels not in (1, 3):
        raise ValueError(
            f"a GAN needs square images of {', '.join(map(str, SIZES))} pixels with 1 or 3 channels; got "
            f"{height} x {width} with {channels}. Most sources take data.size"
        )
    doublings = (width // 4).bit_length() - 1
    return [
        f"{name}: expected {doublings} entries, one per doubling from 4 to {width} pixels, got {count}"
        for name, count in options.counts.items()
        if count != doublings
    ]


def make_task(options: Options, setting: Setting, steps: int) -> Task:
    """Returns the training of one variant, of so many steps."""
    optimizer = adam(options, steps)
    channels = setting.images.shape[-1]
    g_def = graph_of(partial(Generator, options, channels))
    d_def = graph_of(partial(Discriminator, options, channels))

    def generate(params: Any, z: jax.Array) -> jax.Array:
        images: jax.Array = nnx.merge(g_def, params)(z)
        return images

    def judge(params: Any, x: jax.Array) -> jax.Array:
        logits: jax.Array = nnx.merge(d_def, params)(x)
        return logits

    def init(key: jax.Array) -> State:
        g_key, d_key = jax.random.split(key)
        g = nnx.to_pure_dict(nnx.split(Generator(options, channels, nnx.Rngs(g_key)))[1])
        d = nnx.to_pure_dict(nnx.split(Discriminator(options, channels, nnx.Rngs(d_key)))[1])
        return State(g, g, d, optimizer.init(g), optimizer.init(d))

    def d_loss(d: Any, real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
        return discriminator_loss(lambda x: judge(d, x), real, fake, options.gamma)

    def g_loss(g: Any, d: Any, real: jax.Array, z: jax.Array) -> jax.Array:
        fake = generate(g, z)
        loss = generator_loss(lambda x: judge(d, x), real, fake)
        if options.spectral == "none":
            return loss
        distance = in_decibel if options.spectral == "decibel" else cross_entropy
        term = distance(metrics.radial_spectrum(fake), setting.rings)
        if options.spectral == "released":
            return loss * (1 + options.spectral_weight * jax.lax.stop_gradient(term))
        return loss + options.spectral_weight * term

    def draw_batch(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (options.batch_size,), 0, len(setting.images))

    def draw(key: jax.Array) -> jax.Array:
        _, for_discriminator, _, for_generator = jax.random.split(key, 4)
        return jnp.stack([draw_batch(for_discriminator), draw_batch(for_generator)])

    def step(state: State, key: jax.Array) -> tuple[State, Scalars]:
        keys = jax.random.split(key, 4)
        shape = (options.batch_size, options.latent)
        batch = lambda key: along_data(setting.images[draw_batch(key)])
        g, average, d, g_opt, d_opt = state
        fake = generate(g, along_data(jax.random.normal(keys[0], shape)))
        (loss_d, margin), grads = jax.value_and_grad(d_loss, has_aux=True)(d, batch(keys[1]), fake)
        updates, d_opt = optimizer.update(grads, d_opt)
        d = optax.apply_updates(d, updates)
        z = along_data(jax.random.normal(keys[2], shape))
        loss_g, grads = jax.value_and_grad(g_loss)(g, d, batch(keys[3]), z)
        updates, g_opt = optimizer.update(grads, g_opt)
        g = optax.apply_updates(g, updates)
        log = {"generator_loss": loss_g, "discriminator_loss": loss_d, "margin": margin}
        return State(g, averaged(options, average, g), d, g_opt, d_opt), log

    def evaluate(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:
        z = along_data(jax.random.normal(key, (options.samples, options.latent)))
        images = generate(state.average, z)
        scalars = (
            artifact_metrics(images)
            | quality_metrics(setting.extract(images), setting.real_features)
            | spectral_metrics(images, setting.held_out)
        )
        generator, discriminate = (
            nnx.merge(g_def, state.average),
            partial(judge, state.discriminator),
        )
        scalars |= layer_metrics(options, generator, discriminate, z[:PROBED], key)
        return scalars, {"samples": images[:SHOWN], "spectrum": mean_spectrum(images)}

    return Task(init, step, evaluate, draw)


def discriminator_loss(
    judge: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """Returns `softplus(−(D(x) − D(G))) + γ/2 (R1 + R2)` over pairs, and the mean of `D(x) − D(G)`.

    R1 and R2 are the squared gradients of the logits, summed over pixels, at real and generated images.
    """
    # One pass forward and one back give the logits and the gradients of both penalties.
    logits, pullback = jax.vjp(judge, jnp.concatenate([real, fake]))
    (gradients,) = pullback(jnp.ones_like(logits))
    penalties = jnp.sum(gradients**2) / len(real)
    margin = logits[: len(real)] - logits[len(real) :]
    return jax.nn.softplus(-margin).mean() + gamma / 2 * penalties, margin.mean()


def generator_loss(
    judge: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array
) -> jax.Array:
    """Returns `softplus(−(D(G) − D(x)))` over pairs."""
    return jax.nn.softplus(judge(real) - judge(fake)).mean()


def artifact_metrics(images: jax.Array) -> Scalars:
    """Checkerboard metrics of a set of images, averaged over images; periods end the names."""
    result = {}
    for period in PERIODS:
        result[f"phase_mean_fraction_{period}"] = metrics.phase_mean_fraction(images, period).mean()
        contrast = metrics.band_contrast(images, period)
        for orientation, value in contrast._asdict().items():
            result[f"band_contrast_{orientation}_{period}"] = value
    # Harmonics nest: what repeats with period 4, not with period 2.
    shared, wide = (result[f"phase_mean_fraction_{period}"] for period in PERIODS)
    return result | {"phase_mean_fraction_only_4": wide - shared}


def quality_metrics(generated: jax.Array, real: jax.Array) -> Scalars:
    """Distances of two sets of classifier features: Fréchet and kernel classifier distance."""
    return {
        "frechet_classifier_distance": metrics.frechet_distance(generated, real),
        "kernel_classifier_distance": metrics.kernel_distance(generated, real),
    }


def spectral_metrics(generated: jax.Array, real: jax.Array) -> Scalars:
    """Differences of the spectra of two sets: of their means in dB, and the accuracy of a judge of single ones."""
    return {
        "log_spectral_distance": metrics.log_spectral_distance(generated, real),
        "detectability": metrics.detectability(generated, real).accuracy,
    }


def layer_metrics(
    options: Options,
    generator: Generator,
    judge: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    key: jax.Array,
) -> Scalars:
    """What every layer does to constants, and which pixels of its output have the energy and the gradient."""
    pad = (0.0,) * len(generator.layers)
    shapes = jax.eval_shape(generator.trace, z, pad)[1]
    still = [jnp.zeros(shape.shape) for shape in shapes]

    def verdict(nudges: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        images, outputs = generator.trace(z, nudges)
        return judge(images).sum(), outputs

    gradients, outputs = jax.grad(verdict, has_aux=True)(still)
    features = options.generator_features
    ends = ends_of(options.kernel_size)
    result: Scalars = {}
    for i, layer in enumerate(generator.layers):
        found = {"harmonic_share": share_on_constants(layer, key, features[i], 2, 2, margin=4)}
        if ends is not None:
            most, fewest = ends
            for name, image in (("imbalance", outputs[i]), ("gradient_imbalance", gradients[i])):
                energies = energy_by_phase(image, margin=2)
                # Where saturated images let hardly any gradient through there is none to be uneven.
                there = energies + 1e-6 * energies.mean() + jnp.finfo(energies.dtype).tiny
                found[name] = 10 * jnp.log10(there[most] / there[fewest])
        result |= {f"layer_{i + 1}_{name}": value for name, value in found.items()}
    return result


def ends_of(kernel_size: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns the phases that a transposed convolution of stride 2 paints with most and with fewest taps, if any."""
    even, odd = (int(n) for n in overlap_map((16,), kernel_size, strides=2)[16:18])
    if even == odd:
        return None
    most = int(odd > even)
    return (most, most), (1 - most, 1 - most)


def cross_entropy(generated: jax.Array, real: jax.Array) -> jax.Array:
    """Returns the mean binary cross-entropy of two spectra by rings, over their ring 0, less the least there is."""
    p, q = (jnp.clip(rings[1:] / rings[0], 1e-7, 1 - 1e-7) for rings in (generated, real))
    return jnp.mean(q * jnp.log(q / p) + (1 - q) * jnp.log((1 - q) / (1 - p)))


def in_decibel(generated: jax.Array, real: jax.Array) -> jax.Array:
    """Returns the mean square of the difference of two spectra by rings in dB, without ring 0."""
    return jnp.mean((10 * jnp.log10(generated[1:] / real[1:])) ** 2)


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics that a variant has not: of more layers, of taps that are equally many everywhere."""
    found = {
        f"layer_{i}_{name}" for i in range(len(options.kinds) + 1, LAYERS + 1) for name in OF_LAYERS
    }
    if ends_of(options.kernel_size) is None:
        found |= {f"layer_{i}_{name}" for i in range(1, LAYERS + 1) for name in OF_LAYERS[1:]}
    return frozenset(found)


def halve(x: jax.Array) -> jax.Array:
    """Means of 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


KIND = Trains(
    options=Options,
    shared=frozenset({"samples"}),
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    networks=("generator", "discriminator"),
    data=Data(prepare, check, classifies=True),
    lacking=lacking,
)
