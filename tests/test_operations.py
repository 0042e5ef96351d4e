"""Whole models need no more multiplications through `accelerate`, and fewer where JAX multiplies with inserted zeros.

Counted in the program for CPUs before XLA optimizes it: every product, convolution and multiplication, and also the
zeros that a convolution of XLA inserts, for its CPU compiler multiplies with them.
"""

import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from cases import each
from flax import nnx
from jax import lax

from experiments.benchmark import models
from experiments.benchmark.shared import Sizes
from tconvjax import accelerate

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(prod(shape)).normal(size=shape), jnp.float32)


def multiplications(fn, *args):
    """Returns the number of multiplications in a program."""
    text = jax.jit(fn).lower(*args).as_text()
    assert "stablehlo.while" not in text  # counted once, not for every turn
    total = 0
    for line in text.splitlines():
        shapes = [[int(n) for n in s.split("x")[:-1]] for s in re.findall(r"tensor<([^>]*)>", line)]
        if "stablehlo.multiply" in line:
            total += prod(shapes[-1])
        elif "stablehlo.dot_general" in line:
            axes = re.search(r"contracting_dims = \[([\d, ]*)\]", line).group(1)
            total += prod(shapes[-1]) * prod(shapes[-3][int(n)] for n in axes.split(",") if n)
        elif "stablehlo.convolution" in line:
            letters = re.search(r"x\[([^\]]*)\]->", line).group(1).split(", ")
            total += prod(shapes[-1]) * prod(shapes[-2]) // shapes[-2][letters.index("o")]
    return total


def conv(x, w, stride=1, **options):
    strides = (stride,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NHWC, **options)


def up(x, w):
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=NHWC)


def encoder(params, x):
    return conv(jax.nn.relu(conv(x, params[0], 2)), params[1], 2)


def generator(params, x):
    return jnp.tanh(up(jax.nn.relu(up(x, params[0])), params[1]))


def unet(params, x):
    """One level down by a strided convolution, one up by k2 s2, and a shortcut."""
    down, rise, last = params
    return conv(jnp.concatenate([x, up(jax.nn.relu(conv(x, down, 2)), rise)], -1), last)


def residual(params, x):
    """A block of a ResNet that halves the image, behind its first convolution."""
    first, *both, shortcut = params
    x = jax.nn.relu(conv(x, first))
    return conv(jax.nn.relu(conv(x, both[0], 2)), both[1]) + conv(x, shortcut, 2)


def separable(params, x):
    """Depthwise and pointwise convolutions."""
    first, depthwise, pointwise = params
    x = jax.nn.relu(conv(x, first))
    return conv(conv(x, depthwise, 2, feature_group_count=16), pointwise)


def grouped(params, x):
    return conv(jax.nn.relu(conv(x, params[0])), params[1], 2, feature_group_count=4)


def atrous(params, x):
    return conv(jax.nn.relu(conv(x, params[0])), params[1], rhs_dilation=(2, 2))


def padded(params, x):
    """A transposed convolution as in Equinox: each image is padded before it gets a batch axis."""

    def one(image):
        config = ((0, 1, 1), (0, 1, 1), (0, 0, 0))
        return conv(lax.pad(image, jnp.float32(0), config)[None], params[0])[0]

    return jax.vmap(one)(x)


def volumes(params, x):
    """The same in three dimensions."""
    x = lax.pad(x, jnp.float32(0), ((0, 0, 0), (0, 0, 0), *((0, 1, 1),) * 3))
    return lax.conv_general_dilated(x, params[0], (1, 1, 1), ((1, 1),) * 3)


X = (2, 16, 16, 4)
# The shapes of the parameters and the image, and the largest share of the multiplications that may remain.
BY_HAND = {
    encoder: ([(4, 4, 4, 16), (4, 4, 16, 32)], X, 0.7),
    generator: ([(4, 4, 16, 8), (4, 4, 8, 3)], (2, 8, 8, 16), 0.4),
    unet: ([(3, 3, 4, 8), (2, 2, 8, 4), (3, 3, 8, 3)], X, 0.9),
    residual: ([(3, 3, 4, 8), (3, 3, 8, 16), (3, 3, 16, 16), (1, 1, 8, 16)], X, 0.9),
    separable: ([(3, 3, 4, 16), (3, 3, 1, 16), (1, 1, 16, 16)], X, 1),
    grouped: ([(3, 3, 4, 16), (3, 3, 4, 16)], X, 0.9),
    atrous: ([(3, 3, 4, 8), (3, 3, 8, 8)], X, 1),
    padded: ([(4, 4, 4, 8)], X, 0.4),
    volumes: ([(4, 8, 3, 3, 3)], (1, 8, 6, 6, 6), 0.2),
}


@each("model", BY_HAND)
def test_gradients_of_models(model):
    shapes, image, share = BY_HAND[model]
    params, x = [normal(*shape) for shape in shapes], normal(*image)
    loss = lambda fn: lambda params, x: jnp.mean(fn(params, x) ** 2)
    plain = multiplications(jax.value_and_grad(loss(model)), params, x)
    around = multiplications(jax.value_and_grad(accelerate(loss(model))), params, x)
    within = multiplications(accelerate(jax.value_and_grad(loss(model))), params, x)
    assert plain > 10**5
    assert max(around, within) <= share * plain


STEPS = {
    "dcgan": (Sizes(batch=2, size=16, widths=(16, 8), latent=10), 0.6),
    "unet": (Sizes(batch=2, size=16, widths=(8, 16)), 0.95),
}


@each("name", STEPS)
def test_training_steps_of_the_benchmark(name):
    sizes, share = STEPS[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step, operands = models.STEPS[name](nnx, sizes)
        plain, fast = (multiplications(f, *operands) for f in (step, accelerate(step)))
    assert fast <= share * plain


def test_the_count():
    x, w = normal(2, 8, 8, 4), normal(3, 3, 4, 5)
    assert multiplications(conv, x, w) == 2 * 8 * 8 * 5 * 3 * 3 * 4
    assert multiplications(up, x, w) == 2 * 16 * 16 * 5 * 3 * 3 * 4  # zeros included
    assert multiplications(lambda x: 3 * x, x) == x.size
    assert multiplications(jnp.matmul, x[0], w[0, 0]) == 8 * 8 * 4 * 5
