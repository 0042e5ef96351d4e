"""A feature network of our own for quality metrics: a small classifier, trained in the run.

Distances on its features are called classifier distances, never FID or KID, which are defined on Inception's.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.tree_util import Partial

from experiments.data import Split
from experiments.data.table import MEASURED, Table, evenly, one_ahead, piece_of, table_of
from tconvjax import nnx as tnn

FEATURES = (
    32  # small against the number of samples, which biases a Fréchet distance by about dim²/samples
)
BATCH_SIZE = 64


class Classifier(nnx.Module):
    """Images `(batch, size, size, channels)` to logits `(batch, classes)`; size is 4 times a power of two."""

    def __init__(self, size: int, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        halvings = (size // 4).bit_length() - 1
        widths = (channels, 16, *[32] * (halvings - 1))
        self.layers = nnx.List(tnn.Conv(i, o, (4, 4), 2, rngs=rngs) for i, o in pairwise(widths))
        self.dense = nnx.Linear(4 * 4 * widths[-1], FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, classes, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the activations before the last layer, `(batch, 32)`."""
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return nnx.relu(self.dense(x.reshape(len(x), -1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns one logit per class."""
        logits: jax.Array = self.head(self.features(x))
        return logits


def train_classifier(data: Split, *, steps: int, seed: int) -> tuple[Partial, float | None]:
    """Trains the classifier.

    Args:
      data: square images; without labels of two kinds, the weights stay random.
      steps: of Adam.
      seed: of weights and batches.

    Returns:
      The feature extractor, images to `(batch, 32)` with mean square 1 on the training images, and the accuracy on the
      held-out images, None if the weights are random; in a large set, 4096 stand for all.
    """
    init_key, loop_key = jax.random.split(jax.random.key(seed))
    size, _, channels = data.train.shape
    classes = data.train.classes
    graph, state = nnx.split(Classifier(size, channels, max(1, classes), nnx.Rngs(init_key)))
    params = nnx.to_pure_dict(state)
    optimizer = optax.adam(1e-3)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (BATCH_SIZE,), 0, len(data.train))

    @jax.jit
    def train(carry: Any, images: Table, labels: jax.Array, keys: jax.Array) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, opt = carry
            index = draw(key)
            updates, opt = optimizer.update(
                jax.grad(loss)(params, images[index], labels[index]), opt
            )
            return (optax.apply_updates(params, updates), opt), None

        return jax.lax.scan(step, carry, keys)[0]

    accuracy = None
    if classes > 1:
        piece, capacity = piece_of(data.train, steps, BATCH_SIZE)
        keys = jax.random.split(loop_key, steps).reshape(-1, piece)
        tables = one_ahead(lambda k: table_of(data.train, jax.vmap(draw)(k), capacity), list(keys))
        carry, labels = (params, optimizer.init(params)), jnp.asarray(data.train.label)
        for part, images in zip(keys, tables, strict=True):
            carry = train(carry, images, labels, part)
        params, _ = carry
        some = evenly(len(data.test), MEASURED)
        logits = jax.jit(nnx.merge(graph, params).__call__)(jnp.asarray(data.test.images(some)))
        accuracy = float((logits.argmax(-1) == jnp.asarray(data.test.label)[some]).mean())

    def features(params: Any, scale: jax.Array | float, x: jax.Array) -> jax.Array:
        activations: jax.Array = nnx.merge(graph, params).features(x)
        return activations / scale

    images = jnp.asarray(data.train.images(evenly(len(data.train), MEASURED)))
    scale = jnp.sqrt(jnp.mean(jax.jit(features)(params, 1.0, images) ** 2))
    return Partial(features, params, scale), accuracy
