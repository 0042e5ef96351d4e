"""What all peers are given, and what they return: operands of layers, batches of models, and subjects to time."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from experiments.benchmark import timing
from experiments.benchmark.config import Layer

RATE, B1 = 2e-4, 0.5  # of Adam, as in DCGAN


class Unavailable(Exception):
    """This peer does not run here, or has no such layer; the message is the reason."""


@dataclass(frozen=True)
class Prepared:
    """One layer under one peer in one pass, ready to be timed."""

    subject: timing.Subject
    outputs: Callable[[], tuple[np.ndarray, ...]]  # as ours: output, and in training both gradients
    compile_s: float | None = None
    temporary_bytes: int | None = None


@dataclass(frozen=True)
class Arrays:
    """What all peers of a layer are given, as NumPy in float32 and channels last."""

    x: np.ndarray
    kernel: np.ndarray
    cotangent: np.ndarray


def draw(layer: Layer) -> Arrays:
    """Returns random operands of a layer, the same in every run."""
    random = np.random.default_rng(0)
    fan_in = prod(layer.kernel_shape[:-1])
    return Arrays(
        random.standard_normal(layer.input_shape, np.float32),
        random.standard_normal(layer.kernel_shape, np.float32) / np.float32(fan_in) ** 0.5,
        random.standard_normal(layer.output_shape, np.float32),
    )


class Sizes(NamedTuple):
    """How large a model is; the defaults are those of the benchmark."""

    batch: int
    size: int  # pixels along each axis of the image
    widths: tuple[int, ...]
    latent: int = 0


def dcgan_batch(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents and 'real' images, channels first."""
    random = np.random.default_rng(0)
    z = random.standard_normal((sizes.batch, sizes.latent), np.float32)
    return z, np.tanh(random.standard_normal((sizes.batch, 3, sizes.size, sizes.size), np.float32))


def unet_batch(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and what to make of them, channels first."""
    random = np.random.default_rng(0)
    shape = (sizes.batch, 3, sizes.size, sizes.size)
    return random.standard_normal(shape, np.float32), random.standard_normal(shape, np.float32)
