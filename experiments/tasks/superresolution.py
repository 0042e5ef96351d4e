"""Super-resolution networks that differ in their last layer alone, at equal cost.

Small images are means of blocks of large ones. Two convolutions look at the small image, the last layer enlarges, as
in ESPCN (Shi et al. 2016, arXiv:1609.05158), and a tenth of what comes out (as in EDSR, Lim et al. 2017,
arXiv:1707.02921) is added to cubic interpolation, as in VDSR (Kim et al. 2016, arXiv:1511.04587); the loss is the mean
square error. A sub-pixel convolution with k taps, a transposed convolution with k·s and a convolution with k behind
nearest enlargement cost the same multiplications and see the same; the first two can compute the same, too. So the
comparison is one of weights: independent, tied by ICNR at first, or of equal phase gains, at first or throughout
(Aitken et al. 2017, arXiv:1707.02937).

There is a target, so the artifact is measured in the error, where content cancels, as well as in the last layer
itself, by what it makes of constants.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import Split
from experiments.data.table import Table, evenly, table_of
from experiments.fields import interior
from experiments.optimizers import Optimization
from experiments.plugins import Name
from experiments.spectra import mean_spectrum
from experiments.supervised import supervised
from experiments.tasks.initialization import share_on_constants
from experiments.training import Arrays, Data, Scalars, Task, Trains, traced
from experiments.upsamplers import Upsampler, average_pool, upsampler, wrong
from tconvjax import metrics, resize
from tconvjax import nnx as tnn

SHOWN = 16
DETAIL = 0.1  # of the network in the result: what cubic interpolation lacks is small
SCALES = (2, 3, 4)
METRICS = (
    "psnr",
    "psnr_gain",
    "ssim",
    "residual_phase_mean_fraction",
    "residual_artifact_over_null",
    "harmonic_share",
)
CURVES = {
    "psnr_gain": "PSNR over cubic interpolation, dB",
    "residual_artifact_over_null": "periodic part of the error, over that of white noise",
    "harmonic_share": "share of a constant's energy on harmonics, last layer",
    "ssim": "structural similarity",
}


@dataclass(frozen=True)
class Options(Optimization):
    """What a variant may change."""

    upsampler: Upsampler | Name = "subpixel_conv"
    scale: int = field(default=2, metadata={"minimum": 2, "maximum": 4})
    kernel_size: int = field(
        default=3, metadata={"minimum": 1}
    )  # of the last layer, in pixels of the small image
    features: int = field(default=32, metadata={"minimum": 1})
    learning_rate: float = field(default=2e-3, metadata=traced(minimum=0.0))
    samples: int = field(
        default=64, metadata={"minimum": SHOWN}
    )  # held-out images of an evaluation

    def errors(self) -> list[str]:
        """Returns what no single field can know."""
        reason = wrong(self.upsampler, self.features, self.last_kernel_size, self.scale, 2)
        return [f"upsampler: {reason}"] if reason else []

    @property
    def last_kernel_size(self) -> int:
        """That of the last layer; a transposed convolution sees its kernel over its stride of the small image."""
        return self.kernel_size * (self.scale if self.upsampler.startswith("conv_trans") else 1)


class Network(nnx.Module):
    """Small images `(batch, h, w, channels)` to large ones."""

    def __init__(self, options: Options, channels: int, rngs: nnx.Rngs) -> None:
        n, s = options.features, options.scale
        k = (options.last_kernel_size,) * 2
        self.scale = (s, s)
        self.first = tnn.Conv(channels, n, (5, 5), rngs=rngs)
        self.second = tnn.Conv(n, n, (3, 3), rngs=rngs)
        self.last = upsampler(options.upsampler, n, channels, k, (s, s), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the large images."""
        detail: jax.Array = self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))
        return resize(x, self.scale, method="cubic") + DETAIL * detail


class Setting(NamedTuple):
    """What all variants of a run share, a pytree."""

    images: Table  # for training
    held_out: jax.Array
    real: dict[str, float]
    arrays: dict[str, np.ndarray]
    notes: dict[str, float]


def prepare(data: Split, options: Options) -> Setting:
    """Takes the images of an evaluation aside."""
    held_out = jnp.asarray(data.test.images(evenly(len(data.test), options.samples)))
    shown = held_out[jnp.linspace(0, len(held_out) - 1, SHOWN).astype(int)]
    arrays = {"samples": np.asarray(shown), "spectrum": np.asarray(mean_spectrum(held_out))}
    return Setting(table_of(data.train), held_out, {}, arrays, {})


def check(data: Split, options: Options) -> list[str]:
    """Returns what is wrong with options for a set.

    Raises:
      ValueError: if no options go with it.
    """
    height, width, channels = data.train.shape
    if channels not in (1, 3) or min(height, width) < 24:
        raise ValueError(
            f"super-resolution needs images of 24 pixels or more with 1 or 3 channels; got {height} x {width} with "
            f"{channels}. Most sources take data.size"
        )
    if height % options.scale or width % options.scale:
        return [f"scale: must divide the images, of {height} x {width} pixels; got {options.scale}"]
    return []


def make_task(options: Options, setting: Setting, steps: int) -> Task:
    """Returns the training of one variant."""
    scale = (options.scale,) * 2
    channels = setting.images.shape[-1]
    small = partial(average_pool, scale=scale)
    away = partial(interior, margin=2 * options.scale, rank=2)

    def loss(model: Any, batch: jax.Array) -> jax.Array:
        target = setting.images[batch]
        return jnp.mean((model(small(target)) - target) ** 2)

    def evaluate(model: Any, key: jax.Array) -> tuple[Scalars, Arrays]:
        target = setting.held_out
        images = model(small(target))
        cubic = resize(small(target), scale, method="cubic")
        psnr, simple = (
            metrics.psnr(away(x), away(target), data_range=2.0).mean() for x in (images, cubic)
        )
        error = away(images - target)
        artifact = metrics.phase_mean_fraction(error, scale).mean()
        null = (options.scale**2 - 1) / (error.shape[1] * error.shape[2] - 1)
        share = share_on_constants(model.last, key, options.features, 2, options.scale, margin=4)
        scalars = {
            "psnr": psnr,
            "psnr_gain": psnr - simple,
            "ssim": metrics.ssim(away(images), away(target), data_range=2.0).mean(),
            "residual_phase_mean_fraction": artifact,
            "residual_artifact_over_null": artifact / null,
            "harmonic_share": share,
        }
        shown = jnp.linspace(0, len(images) - 1, SHOWN).astype(int)
        return scalars, {"samples": images[shown], "spectrum": mean_spectrum(images)}

    build = lambda rngs: Network(options, channels, rngs)
    return supervised(options, steps, len(setting.images), build, loss, evaluate)


KIND = Trains(
    options=Options,
    shared=frozenset({"samples"}),
    metrics=METRICS,
    curves=CURVES,
    make_task=make_task,
    networks=("model",),
    data=Data(prepare, check),
)
