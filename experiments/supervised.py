"""The training of networks that have a target: one model, one loss, Adam."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from experiments.meshes import along_data
from experiments.optimizers import Optimization, adam, averaged
from experiments.training import Arrays, Scalars, Task, graph_of


class State(NamedTuple):
    """Everything that training changes."""

    model: Any
    average: Any  # of the model; itself without `ema`
    optimizer: optax.OptState


def supervised(
    options: Optimization,
    steps: int,
    records: int,
    build: Callable[[nnx.Rngs], nnx.Module],
    loss: Callable[[Any, jax.Array], jax.Array],
    evaluate: Callable[[Any, jax.Array], tuple[Scalars, Arrays]],
) -> Task:
    """Returns the training of a model.

    Args:
      options: of the optimizer.
      steps: of the training.
      records: number of those that a batch is drawn from.
      build: makes the model.
      loss: of a model on a batch, given as the numbers of its records.
      evaluate: `(averaged model, key)` to metrics, and what pictures need.
    """
    optimizer = adam(options, steps)
    graph = graph_of(build)

    def init(key: jax.Array) -> State:
        model = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key))))
        return State(model, model, optimizer.init(model))

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (options.batch_size,), 0, records)

    def step(state: State, key: jax.Array) -> tuple[State, Scalars]:
        batch = along_data(draw(key))
        of = lambda model: loss(nnx.merge(graph, model), batch)
        value, grads = jax.value_and_grad(of)(state.model)
        updates, optimizer_state = optimizer.update(grads, state.optimizer)
        model = optax.apply_updates(state.model, updates)
        average = averaged(options, state.average, model)
        return State(model, average, optimizer_state), {"loss": value}

    def measure(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:
        return evaluate(nnx.merge(graph, state.average), key)

    return Task(init, step, measure, draw)
