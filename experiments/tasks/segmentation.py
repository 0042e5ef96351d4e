"""U-Nets that outline shapes, and where their levels put them.

A level that halves and doubles an image may put it elsewhere: `conv_transpose` with three taps and stride 2, padding
'SAME', moves it by half a pixel of its output, pooling not at all, so three levels of them drift by 0.5 + 1 + 2 pixels
against what the skip connections bring. The drift is predicted by `analysis.center_map`, measured in the network before
training and after, by where the energy of a pixel's influence lies, and its cost by the overlap of the outlines.

The masks are exact: procedural shapes. The loss is the cross-entropy of the pixels.
"""

from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import Arrays as DataArrays
from experiments.data import Split
from experiments.data.table import Table, evenly, table_of
from experiments.optimizers import Optimization
from experiments.plugins import Name, is_name
from experiments.spectra import mean_spectrum
from experiments.supervised import supervised
from experiments.training import Arrays, Data, Scalars, Task, Trains, traced
from experiments.upsamplers import Downsampler, Upsampler, downsampler, upsampler, wrong
from tconvjax import max_pool, metrics
from tconvjax import nnx as tnn
from tconvjax.analysis import CenterMap, center_map

SHOWN = 16
PROBED = 64  # pixels along each axis of the image in which the drift is measured
SLOPE = 0.1  # of ReLUs below zero; with 0, a seed in six loses half of its few features
BORDER = 1  # pixels within which an outline is
METRICS = (
    "iou",
    "boundary_iou",
    "cross_entropy",
    "drift",
    "predicted_drift",
    "residual_phase_mean_fraction",
)
CURVES = {
    "iou": "intersection over union",
    "boundary_iou": "intersection over union of the outlines",
    "drift": "drift of what comes through the levels, pixels",
    "cross_entropy": "cross-entropy of held-out images",
}


@dataclass(frozen=True)
class Options(Optimization):
    """What a variant may change."""

    upsampler: Literal[Upsampler, "unpool_conv"] | Name = "conv_transpose"
    kernel_size: int = field(default=2, metadata={"minimum": 1})  # of the upsamplers
    downsampler: Downsampler = "max_pool"
    down_kernel_size: int = field(default=3, metadata={"minimum": 1})  # of 'conv' and 'conv_hold'
    levels: int = field(default=3, metadata={"minimum": 1, "maximum": 4})
    features: int = field(
        default=8, metadata={"minimum": 4}
    )  # of the first level; the next have twice as many
    learning_rate: float = field(default=3e-3, metadata=traced(minimum=0.0))
    samples: int = field(
        default=128, metadata={"minimum": SHOWN}
    )  # held-out images of an evaluation

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        if self.upsampler == "unpool_conv" and self.downsampler != "max_pool":
            where = "puts pixels back where 'max_pool' found them"
            return [f"upsampler: 'unpool_conv' {where}; got downsampler={self.downsampler!r}"]
        reason = wrong(self.upsampler, 2 * self.features, self.kernel_size, 2, 2)
        return [f"upsampler: {reason}"] if reason else []


class UNet(nnx.Module):
    """Images `(batch, h, w, channels)` to logits `(batch, h, w)` (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, options: Options, channels: int, rngs: nnx.Rngs) -> None:
        o, widths = options, [options.features * 2**i for i in range(options.levels + 1)]
        k, d = (o.kernel_size,) * 2, (o.down_kernel_size,) * 2
        init = nnx.initializers.he_normal()
        conv = lambda i, n: tnn.Conv(i, n, (3, 3), kernel_init=init, rngs=rngs)
        pairs = list(pairwise(widths))
        self.unpools = o.upsampler == "unpool_conv"
        self.first = conv(channels, widths[0])
        self.down = nnx.List(downsampler(o.downsampler, n, d, (2, 2), rngs) for n, _ in pairs)
        self.encode = nnx.List(conv(n, m) for n, m in pairs)
        # Unpooling takes as many features as were pooled, and changes none.
        self.up = nnx.List(
            upsampler(o.upsampler, n if self.unpools else m, n, k, (2, 2), rngs=rngs)
            for n, m in reversed(pairs)
        )
        self.thin = nnx.List(
            tnn.Conv(m, n, (1, 1), rngs=rngs) for n, m in reversed(pairs) if self.unpools
        )
        self.decode = nnx.List(conv(2 * n, n) for n, _ in reversed(pairs))
        self.last = tnn.Conv(widths[0], 1, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, *, skip: bool = True) -> jax.Array:
        """Returns the logits.

        Args:
          x: images, whose sides are multiples of 2^levels.
          skip: whether what is not halved is seen; without, all comes through the lowest level.
        """
        relu = lambda x: nnx.leaky_relu(x, SLOPE)
        x = relu(self.first(x))
        seen = []
        for down, encode in zip(self.down, self.encode, strict=True):
            seen.append(x)
            x = relu(encode(down(x)))
        for i, (up, decode) in enumerate(zip(self.up, self.decode, strict=True)):
            beside = seen.pop()
            indices = (max_pool(beside, (2, 2)).indices,) if self.unpools else ()
            x = up(self.thin[i](x) if self.unpools else x, *indices)
            x = relu(decode(jnp.concatenate([x, beside * skip], -1)))
        logits: jax.Array = self.last(x)[..., 0]
        return logits


class Setting(NamedTuple):
    """What all variants of a run share, a pytree."""

    images: Table  # for training
    masks: jax.Array
    held_out: jax.Array
    held_out_masks: jax.Array
    real: dict[str, float]
    arrays: dict[str, np.ndarray]
    notes: dict[str, float]


def prepare(data: Split, options: Options) -> Setting:
    """Takes the images of an evaluation aside."""
    assert isinstance(data.train, DataArrays)
    assert isinstance(data.test, DataArrays)
    chosen = data.test.part(evenly(len(data.test), options.samples))
    masks = jnp.asarray(chosen.mask) > 0
    pictures = signed(masks)
    shown = pictures[jnp.linspace(0, len(pictures) - 1, SHOWN).astype(int)]
    return Setting(
        images=table_of(data.train),
        masks=jnp.asarray(data.train.mask) > 0,
        held_out=jnp.asarray(chosen.image),
        held_out_masks=masks,
        real={},
        arrays={"samples": np.asarray(shown), "spectrum": np.asarray(mean_spectrum(pictures))},
        notes={},
    )


def check(data: Split, options: Options) -> list[str]:
    """Returns what is wrong with options for a set.

    Raises:
      ValueError: if no options go with it.
    """
    if not isinstance(data.train, DataArrays) or data.train.mask is None:
        raise ValueError(
            "segmentation needs images with masks, in memory. Of the built-in sets `shapes` has some"
        )
    height, width, _ = data.train.shape
    unit = 2**options.levels
    if height % unit or width % unit:
        return [f"levels: 2^{options.levels} must divide the images, of {height} x {width} pixels"]
    return []


def make_task(options: Options, setting: Setting, steps: int) -> Task:
    """Returns the training of one variant."""
    channels = setting.images.shape[-1]

    def loss(model: Any, batch: jax.Array) -> jax.Array:
        return cross_entropy(model(setting.images[batch]), setting.masks[batch])

    def evaluate(model: Any, key: jax.Array) -> tuple[Scalars, Arrays]:
        logits, masks = model(setting.held_out), setting.held_out_masks
        found = nnx.sigmoid(logits)
        error = (found - masks)[..., None]
        scalars = {
            "iou": overlap(logits > 0, masks),
            "boundary_iou": overlap(outline(logits > 0), outline(masks)),
            "cross_entropy": cross_entropy(logits, masks),
            "drift": drift(model, channels, options.levels, key),
            "residual_phase_mean_fraction": metrics.phase_mean_fraction(error, 2).mean(),
        }
        if not lacking(options):
            scalars["predicted_drift"] = jnp.asarray(predicted_drift(options))
        shown = jnp.linspace(0, len(found) - 1, SHOWN).astype(int)
        pictures = (2 * found - 1)[..., None]
        return scalars, {"samples": pictures[shown], "spectrum": mean_spectrum(pictures)}

    build = lambda rngs: UNet(options, channels, rngs)
    return supervised(options, steps, len(setting.images), build, loss, evaluate)


def cross_entropy(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of pixels."""
    return optax.sigmoid_binary_cross_entropy(logits, masks.astype(logits.dtype)).mean()


def overlap(found: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns the pixels that both sets have over those that one has, of all images together."""
    return jnp.sum(found & masks) / jnp.maximum(jnp.sum(found | masks), 1)


def outline(masks: jax.Array) -> jax.Array:
    """Returns the pixels of masks `(batch, h, w)` that are near others (Cheng et al. 2021, arXiv:2103.16562)."""
    window = (1, 2 * BORDER + 1, 2 * BORDER + 1)
    inner = jax.lax.reduce_window(masks, True, jnp.logical_and, window, (1, 1, 1), "SAME")  # noqa: FBT003
    return masks & ~inner


def signed(masks: jax.Array) -> jax.Array:
    """Returns masks as images, −1 and 1, `(batch, h, w, 1)`."""
    return 2 * masks[..., None].astype(jnp.float32) - 1


def lacking(options: Options) -> frozenset[str]:
    """Returns the metrics that a variant has not: nobody knows where an upsampler of a user puts its images."""
    return frozenset({"predicted_drift"} if is_name(options.upsampler) else ())


def predicted_drift(options: Options) -> float:
    """Returns how far the levels move an image along both axes, in its pixels, by `center_map`."""
    strided = options.downsampler in {"conv", "conv_hold"}
    halving = options.down_kernel_size if strided else 2
    # In front of the layer, by two taps of a hold or by the window of two pixels of `max_blur_pool`.
    before = -0.5 if options.downsampler in {"conv_hold", "max_blur_pool"} else 0.0
    doubling, behind = 2, 0.0  # of all others, which enlarge around the middle of each pixel
    if options.upsampler.startswith("conv_transpose"):
        doubling = options.kernel_size
        if options.upsampler.endswith(("hold_0", "hold_2")):
            behind = -0.5  # of a filter with an even number of taps
    up = center_map(doubling, 2).then(CenterMap((1.0,), (behind,)))
    down = CenterMap((1.0,), (before,)).then(center_map(halving, 2, transpose=False))
    maps = [down] * options.levels + [up] * options.levels
    (shift,) = reduce(CenterMap.then, maps).shift
    return shift


def drift(model: UNet, channels: int, levels: int, key: jax.Array) -> jax.Array:
    """Returns how far the energy of a pixel's influence lies from it, along both axes, through the lowest level alone.

    The mean over one period of the levels in the middle of white images, weighted with the energy.
    """
    period = 2**levels
    image = jax.random.normal(key, (1, PROBED, PROBED, channels))
    middle = PROBED // 2 - period // 2
    at = middle + jnp.stack(jnp.meshgrid(*[jnp.arange(period)] * 2, indexing="ij"), -1)

    def influence(place: jax.Array) -> jax.Array:
        nudge = jnp.zeros_like(image).at[0, place[0], place[1]].set(1)
        return jax.jvp(lambda x: model(x, skip=False), (image,), (nudge,))[1][0] ** 2

    def moments(place: jax.Array) -> jax.Array:
        energy = influence(place)
        pixel = jnp.arange(PROBED)
        rows, columns = energy.sum(1), energy.sum(0)
        moved = jnp.sum(rows * (pixel - place[0])) + jnp.sum(columns * (pixel - place[1]))
        return jnp.stack([moved / 2, energy.sum()])

    moved, energy = jax.lax.map(moments, at.reshape(-1, 2)).sum(0)
    return moved / jnp.maximum(energy, jnp.finfo(energy.dtype).tiny)


KIND = Trains(
    options=Options,
    shared=frozenset({"samples"}),
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    networks=("model",),
    data=Data(prepare, check),
    lacking=lacking,
)
