"""One loop for every task: seeds vmapped outside, `lax.scan` inside, host code between chunks of steps.

A task is three pure functions. `make_train` turns them into two jitted programs, compiled once per variant: `advance`
runs one chunk of steps for all seeds, `evaluate` measures all seeds. The key of step i is `fold_in(seed key, i)`, so
a run that was cut into chunks, stopped and continued draws the same numbers as an unbroken one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any
Scalars = dict[str, jax.Array]
Arrays = dict[str, jax.Array]


class Task(NamedTuple):
    """What a task must know how to do; the loop knows nothing else about it."""

    init: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], tuple[State, Scalars]]  # draws its batch from the key
    evaluate: Callable[
        [State, jax.Array], tuple[Scalars, Arrays]
    ]  # metrics, and what pictures need


class Kind(NamedTuple):
    """What a file in `experiments.tasks` offers: a family of tasks that differ in their options."""

    options: type  # a frozen dataclass; its `errors()` says what no single field can know
    shared: frozenset[str]  # options that no variant may change
    metrics: tuple[str, ...]  # names that claims may use, all computed by `Task.evaluate`
    curves: dict[str, str]  # metrics that the report draws along training, with their titles
    prepare: Callable[
        ..., Any
    ]  # (data, options, classifier_steps=, seed=) -> what all variants share
    make_task: Callable[[Any, Any], Task]  # (options, what `prepare` returned)


class Train(NamedTuple):
    """A whole run of all seeds; states are stacked over seeds."""

    init: Callable[[], State]
    advance: Callable[
        [State, int], tuple[State, Scalars]
    ]  # (state, first step) -> (state, per-step scalars)
    evaluate: Callable[[State], tuple[Scalars, Arrays]]


def make_train(task: Task, seeds: Sequence[int], chunk_steps: int) -> Train:
    """Returns the training of a task for all seeds at once.

    Args:
      task: pure functions of one seed.
      seeds: one run each; every result has a leading axis of this length.
      chunk_steps: steps per call of `advance`.
    """
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    init_keys, loop_keys, eval_keys = (
        jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(3)
    )

    def init() -> State:
        # Not jitted: the initializers are compiled once for all variants, not once for each.
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(task.init, init_keys))

    def advance(states: State, first: int) -> tuple[State, Scalars]:
        def run(state: State, key: jax.Array) -> tuple[State, Scalars]:
            steps = first + jnp.arange(chunk_steps)
            return jax.lax.scan(lambda s, i: task.step(s, jax.random.fold_in(key, i)), state, steps)

        return jax.vmap(run)(states, loop_keys)

    @jax.jit
    def evaluate(states: State) -> tuple[Scalars, Arrays]:
        # One seed after another: the images of all seeds together would not fit a cache.
        return jax.lax.map(lambda args: task.evaluate(*args), (states, eval_keys))

    return Train(init, jax.jit(advance, donate_argnums=0), evaluate)


def first_nonfinite(log: Scalars) -> tuple[int, int, str] | None:
    """Returns (step in the chunk, seed index, name) of the earliest value that is not finite, if any."""
    worst: tuple[int, int, str] | None = None
    for name, values in log.items():  # (seeds, steps)
        bad = ~jnp.isfinite(values)
        if bool(bad.any()):
            step = int(jnp.argmax(bad.any(0)))
            seed = int(jnp.argmax(bad[:, step]))
            worst = min(worst or (step, seed, name), (step, seed, name))
    return worst
