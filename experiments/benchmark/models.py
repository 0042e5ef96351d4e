"""Whole training steps: a DCGAN and a U-Net of Flax's layers, of ours, and of torch's.

The two in JAX are one model with another set of layers, from the same parameters; their losses must agree. Torch's has
the same layers and sizes with parameters of its own. Everything that is no convolution is Flax's in both: batch
normalization, pooling, Adam of optax.

    dcgan   Radford et al. 2016, arXiv:1511.06434, for 32 x 32 images: discriminator and generator, one step of each
    unet    Ronneberger et al. 2015, arXiv:1505.04597, two levels, 64 x 64, mean squared error
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmark import layers, timing
from experiments.benchmark.shared import (
    B1,
    RATE,
    Prepared,
    Sizes,
    Unavailable,
    dcgan_batch,
    unet_batch,
)
from experiments.records import RunError
from tconvjax import nnx as tnn

LAYERS: Mapping[str, ModuleType] = {layers.OURS: tnn, "flax": nnx}
INIT = jax.nn.initializers.lecun_normal()  # Flax's; ours is another


SIZES = {
    "dcgan": Sizes(batch=16, size=32, widths=(256, 128, 64), latent=100),
    "unet": Sizes(batch=8, size=64, widths=(32, 64)),
}


class Generator(nnx.Module):
    """Latents to images: a dense layer, then one transposed convolution k4 s2 per width."""

    def __init__(self, lib: Any, sizes: Sizes, rngs: nnx.Rngs) -> None:
        first = sizes.widths[0]
        self.side = sizes.size >> len(sizes.widths)
        self.dense = nnx.Linear(sizes.latent, self.side**2 * first, rngs=rngs)
        outs = (*sizes.widths[1:], 3)
        self.norms = nnx.List(nnx.BatchNorm(w, rngs=rngs) for w in sizes.widths)
        self.ups = nnx.List(
            lib.ConvTranspose(i, o, (4, 4), (2, 2), padding="SAME", kernel_init=INIT, rngs=rngs)
            for i, o in zip(sizes.widths, outs, strict=True)
        )

    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns one image per latent."""
        x = self.dense(z).reshape(len(z), self.side, self.side, -1)
        for norm, up in zip(self.norms, self.ups, strict=True):
            x = up(nnx.relu(norm(x)))
        return jnp.tanh(x)


class Discriminator(nnx.Module):
    """Images to logits: convolutions k4 s2, mirrored."""

    def __init__(self, lib: Any, sizes: Sizes, rngs: nnx.Rngs) -> None:
        widths = (3, *reversed(sizes.widths))
        self.downs = nnx.List(
            lib.Conv(i, o, (4, 4), (2, 2), padding="SAME", rngs=rngs) for i, o in pairwise(widths)
        )
        self.norms = nnx.List(nnx.BatchNorm(w, rngs=rngs) for w in widths[2:])
        self.dense = nnx.Linear((sizes.size >> len(sizes.widths)) ** 2 * widths[-1], 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns one logit per image."""
        x = nnx.leaky_relu(self.downs[0](x), 0.2)
        for norm, down in zip(self.norms, self.downs[1:], strict=True):
            x = nnx.leaky_relu(norm(down(x)), 0.2)
        return self.dense(x.reshape(len(x), -1))[:, 0]


class UNet(nnx.Module):
    """Images to images: pairs of 3 x 3 convolutions, pooling, transposed convolutions k2 s2, concatenated shortcuts."""

    def __init__(self, lib: Any, sizes: Sizes, rngs: nnx.Rngs) -> None:
        widths = (*sizes.widths, 2 * sizes.widths[-1])

        def pair(i: int, o: int) -> nnx.List[Any]:
            return nnx.List(lib.Conv(n, o, (3, 3), padding="SAME", rngs=rngs) for n in (i, o))

        ins = (3, *widths[:-1])
        self.downs = nnx.List(pair(i, o) for i, o in zip(ins, widths, strict=True))
        self.ups = nnx.List(
            lib.ConvTranspose(i, o, (2, 2), (2, 2), padding="SAME", kernel_init=INIT, rngs=rngs)
            for i, o in pairwise(reversed(widths))
        )
        self.merges = nnx.List(pair(2 * w, w) for w in reversed(sizes.widths))
        self.last = lib.Conv(widths[0], 3, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an image of the same size."""
        shortcuts = []
        for level, pair in enumerate(self.downs):
            if level:
                shortcuts.append(x)
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for layer in pair:
                x = nnx.relu(layer(x))
        for up, pair in zip(self.ups, self.merges, strict=True):
            x = jnp.concatenate([shortcuts.pop(), up(x)], -1)
            for layer in pair:
                x = nnx.relu(layer(x))
        return self.last(x)


class Step(NamedTuple):
    """One training step and its operands."""

    step: Callable[..., Any]  # (state, *batch) -> (state, losses)
    operands: tuple[Any, ...]


def measure(
    name: str,
    peers: Sequence[str],
    *,
    rounds: int,
    budget_s: float,
    sizes: Sizes | None = None,
) -> list[dict[str, Any]]:
    """Checks and times the training step of one model, and returns one entry per peer, ours first.

    Args:
      name: 'dcgan' or 'unet'.
      peers: beside ours; those that are no model here are left out.
      rounds: as in `timing.interleaved`, like `budget_s`.
      budget_s: see there.
      sizes: of the model, by default those of the benchmark.

    Raises:
      RunError: if ours and Flax's do not have the same losses.
    """
    sizes = sizes or SIZES[name]
    ready: dict[str, Prepared] = {}
    skipped: dict[str, str] = {}
    for peer in (layers.OURS, *(p for p in peers if p not in ("lax", "keras"))):
        try:
            if peer in LAYERS:
                step, operands = STEPS[name](LAYERS[peer], sizes)
                ready[peer] = layers.compiled(peer, step, operands)
            else:
                layers.require("torch")
                # Imported here: without torch there is no such module.
                from experiments.benchmark import torch_models

                ready[peer] = torch_models.prepare(name, sizes, peer)
        except Unavailable as error:
            skipped[peer] = str(error)
    _check_losses(name, ready)
    samples = timing.interleaved([p.subject for p in ready.values()], rounds, budget_s)
    common = {"model": name, **sizes._asdict()}
    entries = [
        {
            **common,
            "peer": peer,
            **timing.milliseconds(samples, peer),
            "ratio": None
            if peer == layers.OURS
            else timing.ratio(samples[peer].seconds, samples[layers.OURS].seconds)._asdict(),
            "compile_s": prepared.compile_s,
            "temporary_bytes": prepared.temporary_bytes,
        }
        for peer, prepared in ready.items()
    ]
    return entries + [{**common, "peer": peer, "skipped": why} for peer, why in skipped.items()]


def dcgan(lib: Any, sizes: Sizes) -> Step:
    """Returns a step of the discriminator, then one of the generator against it."""
    generator = _split(Generator(lib, sizes, nnx.Rngs(0)))
    discriminator = _split(Discriminator(lib, sizes, nnx.Rngs(1)))
    optimizer = optax.adam(RATE, b1=B1)

    def d_loss(params: Any, rest: Any, real: jax.Array, fake: jax.Array) -> tuple[jax.Array, Any]:
        on_real, rest = _apply(discriminator.graph, params, rest, real)
        on_fake, rest = _apply(discriminator.graph, params, rest, fake)
        return jnp.mean(nnx.softplus(-on_real)) + jnp.mean(nnx.softplus(on_fake)), rest

    def g_loss(params: Any, rest: Any, d: _Model, z: jax.Array) -> tuple[jax.Array, Any]:
        fake, rest = _apply(generator.graph, params, rest, z)
        logits, _ = _apply(discriminator.graph, d.params, d.rest, fake)
        return jnp.mean(nnx.softplus(-logits)), rest

    def step(state: Any, z: jax.Array, real: jax.Array) -> Any:
        (g_params, g_rest, g_opt), (d_params, d_rest, d_opt) = state
        fake, _ = _apply(generator.graph, g_params, g_rest, z)
        (loss_d, d_rest), grads = jax.value_and_grad(d_loss, has_aux=True)(
            d_params, d_rest, real, fake
        )
        d_params, d_opt = _update(optimizer, grads, d_opt, d_params)
        d = _Model(None, d_params, d_rest)
        (loss_g, g_rest), grads = jax.value_and_grad(g_loss, has_aux=True)(g_params, g_rest, d, z)
        g_params, g_opt = _update(optimizer, grads, g_opt, g_params)
        state = (g_params, g_rest, g_opt), (d_params, d_rest, d_opt)
        return state, (loss_d, loss_g)

    state = tuple((m.params, m.rest, optimizer.init(m.params)) for m in (generator, discriminator))
    z, real = (jnp.asarray(a) for a in dcgan_batch(sizes))
    return Step(step, (state, z, jnp.moveaxis(real, 1, -1)))


def unet(lib: Any, sizes: Sizes) -> Step:
    """Returns a step that fits one image to another."""
    model = _split(UNet(lib, sizes, nnx.Rngs(0)))
    optimizer = optax.adam(RATE, b1=B1)

    def loss(params: Any, rest: Any, x: jax.Array, want: jax.Array) -> jax.Array:
        got, _ = _apply(model.graph, params, rest, x)
        return jnp.mean((got - want) ** 2)

    def step(state: Any, x: jax.Array, want: jax.Array) -> Any:
        params, rest, opt = state
        value, grads = jax.value_and_grad(loss)(params, rest, x, want)
        params, opt = _update(optimizer, grads, opt, params)
        return (params, rest, opt), (value,)

    x, want = (jnp.moveaxis(jnp.asarray(a), 1, -1) for a in unet_batch(sizes))
    return Step(step, ((model.params, model.rest, optimizer.init(model.params)), x, want))


STEPS: Mapping[str, Callable[[Any, Sizes], Step]] = {"dcgan": dcgan, "unet": unet}


class _Model(NamedTuple):
    graph: Any
    params: Any
    rest: Any  # running statistics


def _split(module: nnx.Module) -> _Model:
    graph, state = nnx.split(module)
    params, rest = nnx.split_state(state, nnx.Param, ...)
    return _Model(graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest))


def _apply(graph: Any, params: Any, rest: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Returns the output of a model and its new statistics."""
    module = nnx.merge(graph, params, rest)
    y = module(x)
    return y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def _update(optimizer: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state


def _check_losses(name: str, ready: Mapping[str, Prepared]) -> None:
    """Raises unless ours and Flax's have the same losses; they are the last leaves of what a step returns."""
    count = 2 if name == "dcgan" else 1
    losses = {peer: ready[peer].outputs()[-count:] for peer in LAYERS if peer in ready}
    for peer, values in losses.items():
        if not np.allclose(values, losses[layers.OURS], rtol=1e-3):
            raise RunError(
                f"model {name}: the losses of {peer} are {values}, ours are {losses[layers.OURS]}: not the same model."
            )
